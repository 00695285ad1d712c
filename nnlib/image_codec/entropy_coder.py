"""Adaptive entropy coding over constriction's range coder: one code path writes and reads.

Every method takes the numbers to write, or None to read them, and returns them; so the order of a format is written
down once. Probabilities come from counts of what has gone through, in integers, and are the same on every machine.
"""

from collections.abc import Callable

import constriction
import numpy as np
from jaxtyping import Int64

from nnlib.errors import CorruptError

Categorical, Uniform = constriction.stream.model.Categorical, constriction.stream.model.Uniform
RangeEncoder, RangeDecoder = (
    constriction.stream.queue.RangeEncoder,
    constriction.stream.queue.RangeDecoder,
)

LARGE = 15  # from here on a magnitude is coded as the bit length of the rest, at most LARGE too, and its bits
GAIN = 24  # how much one symbol adds to its count: what was seen soon outweighs what was supposed
FORGET = 1 << 15  # a row's counts are halved from here on
Codes = Int64[np.ndarray, " N"]


class AdaptiveModel:
    """Counts of symbols [classes, symbols], each row one context's distribution so far."""

    def __init__(self, prior: np.ndarray, weight: int = 256):
        share = prior / prior.sum(1, keepdims=True)
        self.counts = np.maximum((share * weight).astype(np.int64), 1)

    def saw(self, classes: Codes, symbols: Codes) -> None:
        np.add.at(self.counts, (classes, symbols), GAIN)
        full = self.counts.sum(1) > FORGET
        self.counts[full] = (self.counts[full] + 1) // 2


def magnitudes(means: np.ndarray) -> AdaptiveModel:
    """A table for magnitudes 0 ... LARGE, each class supposed geometric with its mean."""
    ratio = np.asarray(means, float)[:, None] / (1 + np.asarray(means, float)[:, None])
    return AdaptiveModel((1 - ratio) * ratio ** np.arange(LARGE + 1))


class Coder:
    """Writes where made without words, reads the words [N] (uint32) otherwise. Raises CorruptError in reading."""

    def __init__(self, words: np.ndarray | None = None):
        self.out = RangeEncoder() if words is None else None
        self.into = None if words is None else RangeDecoder(words)
        self.lengths = magnitudes([1.0, 1.0])

    def symbols(self, table: AdaptiveModel, classes: Codes, values: Codes | None = None) -> Codes:
        """Symbols under the rows of `table` that their classes name; the table learns them afterwards."""
        order = np.argsort(classes, kind="stable")
        found = np.empty(len(classes), np.int64)
        bounds = np.searchsorted(classes[order], np.arange(len(table.counts) + 1))
        for row in np.flatnonzero(np.diff(bounds)):
            at = order[bounds[row] : bounds[row + 1]]
            counts = table.counts[row]
            model = Categorical(counts / counts.sum(), perfect=False)
            found[at] = self._through(model, None if values is None else values[at], len(at))
        table.saw(classes, found)
        return found

    def integers(self, table: AdaptiveModel, classes: Codes, values: Codes | None = None) -> Codes:
        """Signed integers below 2^15: magnitudes under `table`, what is above LARGE by its bits, and signs."""
        size = None if values is None else np.abs(values)
        found = self.symbols(table, classes, None if size is None else np.minimum(size, LARGE))
        large = np.flatnonzero(found == LARGE)
        if len(large):
            found[large] += self._above(len(large), None if size is None else size[large] - LARGE)
        some = np.flatnonzero(found)
        negative = self.below(
            np.full(len(some), 2), None if values is None else (values[some] < 0).astype(np.int64)
        )
        found[some] *= 1 - 2 * negative
        return found

    def below(self, bounds: Codes, values: Codes | None = None) -> Codes:
        """Integers 0 ... bound - 1, each as likely as the other."""
        found = np.zeros(len(bounds), np.int64)
        free = np.flatnonzero(bounds > 1)  # one possibility takes no bits
        if len(free):
            sizes = bounds[free].astype(np.int32)
            found[free] = self._through(Uniform(), None if values is None else values[free], sizes)
        return found

    def _above(self, count: int, values: Codes | None) -> Codes:
        lengths = None if values is None else np.frexp(values.astype(float))[1].astype(np.int64)
        lengths = self.symbols(self.lengths, np.zeros(count, np.int64), lengths)
        found = (lengths > 0).astype(np.int64)
        for bit in range(int(lengths.max()) - 1):
            more = np.flatnonzero(lengths > bit + 1)
            shift = lengths[more] - 2 - bit
            bits = self.below(
                np.full(len(more), 2), None if values is None else (values[more] >> shift) & 1
            )
            found[more] = 2 * found[more] + bits
        return found

    def _through(self, model, values: Codes | None, size: int | np.ndarray) -> Codes:
        given = () if isinstance(size, int) else (size,)
        if self.out is not None:
            self.out.encode(values.astype(np.int32), model, *given)
            return values
        try:
            return self.into.decode(model, *(given or (size,))).astype(np.int64)
        except AssertionError as error:
            raise CorruptError("its payload can't have come out of the encoder") from error

    def words(self) -> np.ndarray:
        """What was written, as uint32."""
        return self.out.get_compressed()


def written(walk: Callable[[Coder], object]) -> bytes:
    """The bytes that a walk over the numbers writes; trailing zeros, which a reader supposes anyway, are left out."""
    coder = Coder()
    walk(coder)
    return coder.words().astype("<u4").tobytes().rstrip(b"\0")


def reader(payload: bytes) -> Coder:
    return Coder(np.frombuffer(payload + b"\0" * (-len(payload) % 4), "<u4").astype(np.uint32))
