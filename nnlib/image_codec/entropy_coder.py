"""Adaptive entropy coding with constriction's range coder: one code path writes and reads.

Every method takes the numbers to write and returns them. A coder that reads ignores the numbers it
is given (any of the same shape will do) and returns those it reads, so that the order of a format
is written down once. Probabilities come from integer counts and are the same on every machine.
"""

import constriction
import numpy as np
from jaxtyping import Int64

from nnlib.errors import CorruptError

Categorical = constriction.stream.model.Categorical
Uniform = constriction.stream.model.Uniform
RangeDecoder = constriction.stream.queue.RangeDecoder
RangeEncoder = constriction.stream.queue.RangeEncoder

ESCAPE = 15  # larger magnitudes are followed by what exceeds it: its bit length, then its bits
INCREMENT = 24  # of a symbol's count when it is seen, so that data soon outweigh the prior
COUNT_LIMIT = 1 << 15  # the counts of a context are halved beyond
Array = Int64[np.ndarray, " N"]


class AdaptiveModel:
    """Counts of symbols [contexts, symbols]: a row is one context's distribution so far."""

    def __init__(self, prior: np.ndarray, weight: int = 256):
        probabilities = prior / prior.sum(1, keepdims=True)
        self.counts = np.maximum((probabilities * weight).astype(np.int64), 1)

    @classmethod
    def geometric(cls, means) -> "AdaptiveModel":
        """Magnitudes 0 ... ESCAPE, geometric with a mean for each context."""
        means = np.array(means)[:, None]
        ratio = means / (1 + means)
        return cls((1 - ratio) * ratio ** np.arange(ESCAPE + 1))

    def update(self, contexts: Array, symbols: Array) -> None:
        """Count symbols that were coded."""
        np.add.at(self.counts, (contexts, symbols), INCREMENT)
        full = self.counts.sum(1) > COUNT_LIMIT
        self.counts[full] = (self.counts[full] + 1) // 2


class Coder:
    """Write without `data`; with it, read, and raise CorruptError where no encoder wrote that."""

    def __init__(self, data: bytes | None = None):
        self.encoder = RangeEncoder()
        self.decoder = None
        self.section_ends: dict[str, int] = {}  # in bytes, of what was written
        self.lengths = AdaptiveModel.geometric([1.0])
        if data is not None:
            padded = data + b"\0" * (-len(data) % 4)
            self.decoder = RangeDecoder(np.frombuffer(padded, "<u4").astype(np.uint32))

    def symbols(self, model: AdaptiveModel, contexts: Array, values: Array) -> Array:
        """Code symbols, each by its context's row of `model`, which learns them afterwards."""
        result = np.empty(len(contexts), np.int64)
        for context in np.unique(contexts):
            index = np.flatnonzero(contexts == context)
            counts = model.counts[context]
            distribution = Categorical(counts / counts.sum(), perfect=False)
            result[index] = self._code(distribution, values[index])
        model.update(contexts, result)
        return result

    def integers(self, model: AdaptiveModel, contexts: Array, values: Array) -> Array:
        """Code signed integers below 2^15: magnitudes by `model`, and signs."""
        magnitudes = np.abs(values)
        result = self.symbols(model, contexts, np.minimum(magnitudes, ESCAPE))
        large = np.flatnonzero(result == ESCAPE)
        if len(large):
            result[large] += self._excess(magnitudes[large] - ESCAPE)
        nonzero = np.flatnonzero(result)
        negative = self._bits(values[nonzero] < 0)
        result[nonzero] *= 1 - 2 * negative
        return result

    def uniform(self, bounds: Array, values: Array) -> Array:
        """Code integers 0 ... bound - 1, all equally likely."""
        result = np.zeros(len(bounds), np.int64)
        free = np.flatnonzero(bounds > 1)  # a single possibility takes no bits
        if len(free):
            result[free] = self._code(Uniform(), values[free], bounds[free].astype(np.int32))
        return result

    def end_section(self, name: str) -> None:
        """Remember how many bytes are written up to here."""
        if self.decoder is None:
            self.section_ends[name] = len(self.to_bytes())

    def to_bytes(self) -> bytes:
        """Return what was written, without trailing zeros, which a reader adds anyway."""
        return self.encoder.get_compressed().astype("<u4").tobytes().rstrip(b"\0")

    def _bits(self, values) -> Array:
        return self.uniform(np.full(len(values), 2), values)

    def _excess(self, values: Array) -> Array:
        """Code integers below 2^15: bit lengths, then all bits after the highest."""
        lengths = np.frexp(values.astype(float))[1]
        lengths = self.symbols(self.lengths, np.zeros(len(values), np.int64), lengths)
        result = (lengths > 0).astype(np.int64)
        for bit in range(int(lengths.max()) - 1):
            longer = np.flatnonzero(lengths > bit + 1)
            shift = lengths[longer] - 2 - bit
            result[longer] = 2 * result[longer] + self._bits(values[longer] >> shift & 1)
        return result

    def _code(self, model, values: Array, *bounds) -> Array:
        if self.decoder is None:
            self.encoder.encode(values.astype(np.int32), model, *bounds)
            return values
        try:
            return self.decoder.decode(model, *(bounds or [len(values)])).astype(np.int64)
        except AssertionError as error:
            raise CorruptError("its payload can't have come out of the encoder") from error
