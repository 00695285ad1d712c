"""Reading on behind a text that is known: what each next character was expected to be, and coding by that."""

import constriction
import numpy as np
from jaxtyping import Float64

from nnlib.image_codec import CorruptError
from nnlib.language.context_orders import CONTEXT
from nnlib.language.gating import GatingNetwork
from nnlib.language.suffix_index import SuffixIndex

Categorical, Uniform = constriction.stream.model.Categorical, constriction.stream.model.Uniform
RangeEncoder, RangeDecoder = (
    constriction.stream.queue.RangeEncoder,
    constriction.stream.queue.RangeDecoder,
)
MOST = 256  # characters that a byte may stand for, however dull: so far, and no further, a forged length is followed
SURROGATES, SCALARS = (
    range(0xD800, 0xE000),
    0x110000 - 0x800,
)  # Unicode has no characters at the former


class StreamingPredictor:
    """Stands behind a known text, says what it expects, and reads on; `adapt`: learning what it reads."""

    def __init__(self, recall: SuffixIndex, gate: GatingNetwork, adapt: bool = False):
        self.recall, self.gate, self.adapt = recall.fork() if adapt else recall, gate, adapt
        self.past, self._counts = recall.past, None

    def probabilities(self) -> Float64[np.ndarray, " A+1"]:
        """Of each character of `alphabet` to come next, and last of any other."""
        self._counts = self.recall.counts(self.past)
        return self.gate.probabilities(self._counts)

    @property
    def alphabet(self) -> list[str]:
        return self.recall.alphabet

    def code(self, character: str) -> int:
        """A character's place among the probabilities."""
        return self.recall.code.get(character, len(self.alphabet))

    def read(self, character: str) -> None:
        if self.adapt:
            self.recall.add(character, self._counts)
        self.past, self._counts = (self.past + character)[-CONTEXT:], None


def encode(reader: StreamingPredictor, text: str) -> bytes:
    """Write a text as the bits that the reader's probabilities are worth: 4 bytes of length, then the code.

    Raises UnicodeEncodeError for halves of surrogate pairs.
    """
    encoder = RangeEncoder()
    text.encode()  # raises for halves of surrogate pairs, which are no characters
    for character in text:
        expected = Categorical(reader.probabilities(), perfect=False)
        _write(encoder, reader, expected, character)
        reader.read(character)
    return _whole(len(text), encoder)


def decode(reader: StreamingPredictor, data: bytes) -> str:
    """Read back what `encode` wrote with a reader in the same state (and the same versions of all that computes).

    Raises CorruptError for data that nobody encoded so: what was read is written once more, and must come out the same.
    """
    if len(data) < 4 or len(data) % 4:
        raise CorruptError(f"data of {len(data)} bytes is cut off: give all that encode() returned")
    length, words = (
        int.from_bytes(data[:4], "little"),
        np.frombuffer(data[4:], "<u4").astype(np.uint32),
    )
    _require(length <= MOST * len(data), data)
    decoder, again, text = RangeDecoder(words), RangeEncoder(), []
    for _ in range(length):
        expected = Categorical(reader.probabilities(), perfect=False)
        try:
            text.append(_read(decoder, reader, expected))
        except AssertionError:  # how constriction says that no code begins so
            _require(False, data)
        _write(again, reader, expected, text[-1])
        _require(
            again.num_words() <= len(words) + 2, data
        )  # closing it takes up to 2 that more text may save
        reader.read(text[-1])
    _require(_whole(length, again) == data, data)
    return "".join(text)


def _write(
    encoder: RangeEncoder, reader: StreamingPredictor, expected: Categorical, character: str
) -> None:
    code, point = reader.code(character), ord(character)
    encoder.encode(np.array([code], np.int32), expected)
    if code == len(reader.alphabet):
        encoder.encode(
            np.array([point - 0x800 * (point > SURROGATES[-1])], np.int32), Uniform(SCALARS)
        )


def _read(decoder: RangeDecoder, reader: StreamingPredictor, expected: Categorical) -> str:
    code = int(decoder.decode(expected, 1)[0])
    if code < len(reader.alphabet):
        return reader.alphabet[code]
    point = int(decoder.decode(Uniform(SCALARS), 1)[0])
    return chr(point + 0x800 * (point >= SURROGATES[0]))


def _whole(length: int, encoder: RangeEncoder) -> bytes:
    """The length, the code, and zeros, which a decoder supposes anyway, up to a byte for MOST characters."""
    code = encoder.get_compressed().astype("<u4").tobytes()
    return length.to_bytes(4, "little") + code.ljust(length // MOST // 4 * 4, b"\0")


def _require(holds: bool, data: bytes) -> None:
    if not holds:
        raise CorruptError(
            f"data of {len(data)} bytes isn't what encode() returned: give all of that, as it was"
        )
