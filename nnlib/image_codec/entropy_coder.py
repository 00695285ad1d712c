"""Adaptive entropy coding with constriction's range coder: one code path writes and reads.

Methods take the integers to write, [N], and return them. A coder that reads ignores those it is
given (any of the same shape will do) and returns what it reads, so that the order of a format is
written down once. Probabilities come from integer counts and are the same on every machine.
"""

import numpy as np
from constriction import stream

from nnlib.errors import CorruptError

ESCAPE = 15  # larger magnitudes are followed by what exceeds it: its bit length, then its bits
INCREMENT = 24  # of a symbol's count when it is seen, so that data soon outweigh the prior
COUNT_LIMIT = 1 << 15  # the counts of a context are halved beyond


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


class Coder:
    """Write without `data`; with it, read, and raise CorruptError where no encoder wrote that."""

    def __init__(self, data: bytes | None = None):
        self.encoder = stream.queue.RangeEncoder()
        self.decoder = None
        self.sections: dict[str, int] = {}  # the bytes that each took in writing
        self.excess_lengths = AdaptiveModel.geometric([1.0])
        if data is not None:
            words = np.frombuffer(data + b"\0" * (-len(data) % 4), "<u4")
            self.decoder = stream.queue.RangeDecoder(words.astype(np.uint32))

    def symbols(self, model: AdaptiveModel, contexts, values):
        """Code symbols, each by its context's row of `model`, which learns them afterwards."""
        result = np.empty(len(contexts), np.int64)
        counts = model.counts
        for context in np.unique(contexts):
            probabilities = counts[context] / counts[context].sum()
            distribution = stream.model.Categorical(probabilities, perfect=False)
            index = np.flatnonzero(contexts == context)
            result[index] = self._code(distribution, values[index])
        np.add.at(counts, (contexts, result), INCREMENT)
        full = counts.sum(1) > COUNT_LIMIT
        counts[full] = (counts[full] + 1) // 2
        return result

    def integers(self, model: AdaptiveModel, contexts, values):
        """Code signed integers below 2^15: magnitudes by `model`, and signs."""
        magnitudes = np.abs(values)
        result = self.symbols(model, contexts, np.minimum(magnitudes, ESCAPE))
        large = np.flatnonzero(result == ESCAPE)
        if len(large):
            result[large] += self._excess(magnitudes[large] - ESCAPE)
        nonzero = np.flatnonzero(result)
        negative = self.uniform(np.full(len(nonzero), 2), values[nonzero] < 0)
        result[nonzero] *= 1 - 2 * negative
        return result

    def uniform(self, bounds, values):
        """Code integers 0 ... bound - 1, all equally likely."""
        result = np.zeros(len(bounds), np.int64)
        free = np.flatnonzero(bounds > 1)  # a single possibility takes no bits
        bounds = bounds[free].astype(np.int32)
        result[free] = self._code(stream.model.Uniform(), values[free], bounds)
        return result

    def end_section(self, name: str) -> None:
        """Note how many bytes were written since the last section."""
        if self.decoder is None:
            self.sections[name] = len(self.to_bytes()) - sum(self.sections.values())

    def to_bytes(self) -> bytes:
        """Return what was written, without trailing zeros, which a reader adds anyway."""
        return self.encoder.get_compressed().astype("<u4").tobytes().rstrip(b"\0")

    def _excess(self, values):
        """Code integers below 2^15: bit lengths, then all bits after the highest."""
        lengths = np.frexp(values.astype(float))[1]
        lengths = self.symbols(self.excess_lengths, np.zeros(len(values), np.int64), lengths)
        result = (lengths > 0).astype(np.int64)
        for bit in range(int(lengths.max()) - 1):
            longer = np.flatnonzero(lengths > bit + 1)
            bits = values[longer] >> (lengths[longer] - 2 - bit) & 1
            bits = self.uniform(np.full(len(longer), 2), bits)
            result[longer] = 2 * result[longer] + bits
        return result

    def _code(self, model, values, *bounds):
        if self.decoder is None:
            self.encoder.encode(values.astype(np.int32), model, *bounds)
            return values
        try:
            return self.decoder.decode(model, *(bounds or [len(values)])).astype(np.int64)
        except AssertionError as error:
            raise CorruptError("its payload can't have come out of the encoder") from error
