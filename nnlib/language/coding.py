"""Arithmetic coding of a text by the probabilities of a predictor that reads it on."""

import numpy as np
from constriction import stream
from jaxtyping import Float64

from nnlib.errors import CorruptError
from nnlib.language.context_orders import MAX_CONTEXT
from nnlib.language.gating import GatingNetwork
from nnlib.language.suffix_index import SuffixIndex

CHARACTERS_PER_BYTE = 256  # at most, so that a forged length is soon refused
FIRST_SURROGATE = 0xD800  # of 0x800 code points that are no characters
SCALARS = 0x110000 - 0x800  # Unicode's characters


class StreamingPredictor:
    """Predicts each next character of a text; with `adapt`, it learns from those that it reads."""

    def __init__(self, index: SuffixIndex, gating: GatingNetwork, adapt: bool = False):
        self.index = index.fork() if adapt else index
        self.gating = gating
        self.adapt = adapt
        self.alphabet = self.index.alphabet  # grows by what is read
        self.context = index.context
        self._counts = None

    def probabilities(self) -> Float64[np.ndarray, " A+1"]:
        """Of each character of `alphabet` to come next, and last of any other."""
        self._counts = self.index.counts(self.context)
        return self.gating.probabilities(self._counts)

    def code(self, character: str) -> int:
        """A character's index among the probabilities."""
        return self.index.code_of.get(character, len(self.alphabet))

    def read(self, character: str) -> None:
        """Go on to the context after this character."""
        if self.adapt:
            self.index.append(character, self._counts)
        self.context = (self.context + character)[-MAX_CONTEXT:]
        self._counts = None


def encode(predictor: StreamingPredictor, text: str) -> bytes:
    """Compress a text to about the bits that the predictor's probabilities imply.

    Parameters
    ----------
    predictor : from `ContextModel.reader`; it reads the text

    Raises
    ------
    UnicodeEncodeError : the text holds half a surrogate pair

    Examples
    --------
    >>> from nnlib.language import ContextModel
    >>> model = ContextModel().fit("to be, or not to be: ")
    >>> decode(model.reader(), encode(model.reader(), "not to be"))
    'not to be'
    """
    text.encode()  # raises
    encoder = stream.queue.RangeEncoder()
    for character in text:
        model = stream.model.Categorical(predictor.probabilities(), perfect=False)
        _write(encoder, predictor, model, character)
        predictor.read(character)
    return _pack(len(text), encoder)  # 4 bytes of length, then the code


def decode(predictor: StreamingPredictor, data: bytes) -> str:
    """Read back what `encode` wrote.

    Parameters
    ----------
    predictor : in the state that the encoder's was in, with the same versions of all libraries

    Raises
    ------
    CorruptError : what was read, encoded again, is not the same data

    Examples
    --------
    >>> from nnlib.language import ContextModel
    >>> model = ContextModel().fit("to be, or not to be: ")
    >>> decode(model.reader(), encode(model.reader(), "to be"))
    'to be'
    """
    if len(data) < 4 or len(data) % 4:
        raise CorruptError(f"data of {len(data)} bytes is cut off: give all that encode() returned")
    length = int.from_bytes(data[:4], "little")
    size = len(data) // 4 - 1
    _require(length <= CHARACTERS_PER_BYTE * len(data), data)
    decoder = stream.queue.RangeDecoder(np.frombuffer(data[4:], "<u4").astype(np.uint32))
    again = stream.queue.RangeEncoder()
    text = []
    for _ in range(length):
        model = stream.model.Categorical(predictor.probabilities(), perfect=False)
        try:
            character = _read(decoder, predictor, model)
        except AssertionError:  # how constriction says that no code begins so
            _require(False, data)
        _write(again, predictor, model, character)
        # closing the code takes up to 2 words that more text may save
        _require(again.num_words() <= size + 2, data)
        predictor.read(character)
        text.append(character)
    _require(_pack(length, again) == data, data)
    return "".join(text)


def _write(encoder, predictor: StreamingPredictor, model, character: str) -> None:
    code = predictor.code(character)
    encoder.encode(code, model)
    if code == len(predictor.alphabet):
        scalar = ord(character)
        if scalar > FIRST_SURROGATE:
            scalar -= 0x800
        encoder.encode(scalar, stream.model.Uniform(SCALARS))


def _read(decoder, predictor: StreamingPredictor, model) -> str:
    code = decoder.decode(model)
    if code < len(predictor.alphabet):
        return predictor.alphabet[code]
    scalar = decoder.decode(stream.model.Uniform(SCALARS))
    return chr(scalar + 0x800 if scalar >= FIRST_SURROGATE else scalar)


def _pack(length: int, encoder) -> bytes:
    """The length, the code, and zeros, which a decoder supposes anyway, to the least size."""
    code = encoder.get_compressed().astype("<u4").tobytes()
    return length.to_bytes(4, "little") + code.ljust(length // CHARACTERS_PER_BYTE // 4 * 4, b"\0")


def _require(holds: bool, data: bytes) -> None:
    if not holds:
        size = len(data)
        raise CorruptError(f"data of {size} bytes isn't what encode() returned: give all of that")
