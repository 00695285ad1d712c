"""Reading on behind a text that is known: what each next character was expected to be, and coding by that."""

import constriction
import numpy as np
from jaxtyping import Float64

from nnlib.coder import CorruptError
from nnlib.contexts import CONTEXT
from nnlib.gate import Gate
from nnlib.recall import Recall

Categorical, Uniform = constriction.stream.model.Categorical, constriction.stream.model.Uniform
RangeEncoder, RangeDecoder = constriction.stream.queue.RangeEncoder, constriction.stream.queue.RangeDecoder
MOST = 100_000  # characters a byte that anyone claims; the dullest text takes more bytes than that
SURROGATES, SCALARS = range(0xD800, 0xE000), 0x110000 - 0x800  # Unicode has no characters at the former


class Reader:
    """Stands behind a known text, says what it expects, and reads on; `adapt`: learning what it reads."""

    def __init__(self, recall: Recall, gate: Gate, adapt: bool = False):
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


def encode(reader: Reader, text: str) -> bytes:
    """Write a text as the bits that the reader's probabilities are worth: 4 bytes of length, then the code."""
    encoder = RangeEncoder()
    text.encode()  # raises for halves of surrogate pairs, which are no characters
    for character in text:
        p, code = reader.probabilities(), reader.code(character)
        encoder.encode(np.array([code], np.int32), Categorical(p, perfect=False))
        if code == len(reader.alphabet):
            point = ord(character)
            encoder.encode(np.array([point - 0x800 * (point > SURROGATES[-1])], np.int32), Uniform(SCALARS))
        reader.read(character)
    return len(text).to_bytes(4, "little") + encoder.get_compressed().astype("<u4").tobytes()


def decode(reader: Reader, data: bytes) -> str:
    """Read back what `encode` wrote with a reader in the same state (and the same versions of all that computes).

    Raises CorruptError for data of no possible length; other damage isn't noticed, and gives another text.
    """
    if len(data) < 4 or len(data) % 4:
        raise CorruptError(f"data of {len(data)} bytes is cut off: give all that encode() returned")
    length, decoder, text = int.from_bytes(data[:4], "little"), RangeDecoder(np.frombuffer(data[4:], "<u4")), []
    if length > MOST * len(data):
        raise CorruptError(f"data of {len(data)} bytes says it holds {length} characters, which is more than it can")
    for _ in range(length):
        code = int(decoder.decode(Categorical(reader.probabilities(), perfect=False), 1)[0])
        if code < len(reader.alphabet):
            text.append(reader.alphabet[code])
        else:
            point = int(decoder.decode(Uniform(SCALARS), 1)[0])
            text.append(chr(point + 0x800 * (point >= SURROGATES[0])))
        reader.read(text[-1])
    return "".join(text)
