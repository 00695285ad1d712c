"""The file format: a header, the free centers, the lattice's coefficients; all checked when read.

| bytes | what |
|---|---|
| 3, 1 | "nnc", the version |
| 4 | CRC-32 of all that follows |
| 1 | flags: colour, a grey picture without an axis for channels, blocks of 16 pixels and not 8 |
| 2, 2 | height and width |
| 3 | number of centers |
| 1 | step n of the coefficients, 2^(1 - n / 24) |
| 1 a channel | diagonals of frequencies that are coded |
| the rest | range coded: centers, then coefficients |
"""

import struct
import zlib
from typing import NamedTuple

import numpy as np
from torch import Tensor

from nnlib._common.runtime import torch_defaults
from nnlib._common.validation import check
from nnlib.errors import CorruptError
from nnlib.image_codec import lapped_cosine
from nnlib.image_codec.center_coding import QuantizedCenters, code_centers
from nnlib.image_codec.entropy_coder import Coder

MAGIC = b"nnc"
VERSION = b"\1"
HEADER = struct.Struct("<BHH3sB")  # what follows the checksum, up to the diagonals
MAX_PIXELS = 1 << 24  # that are decoded unless a caller allows more: 16.8 million
COLOUR, NO_CHANNEL_AXIS, BLOCKS_OF_16 = 1, 2, 4  # flags
STEP_SIZES = [2 ** (1 - n / 24) for n in range(256)]  # of coefficients; full scale is 1
# luma, red - blue, green - both: orthonormal, so that errors count alike
OPPONENT = np.array([[1, 1, 1], [1, 0, -1], [-1, 2, -1]])
OPPONENT = (OPPONENT / np.linalg.norm(OPPONENT, axis=1, keepdims=True)).astype(np.float32)


class CodedImage(NamedTuple):
    """The content of a file; `codes` are the lattice's coefficients in steps, int16 [C, S, R]."""

    height: int
    width: int
    no_channel_axis: bool
    centers: QuantizedCenters
    step: int
    pitch: int
    codes: np.ndarray


def pack(coded: CodedImage) -> tuple[bytes, dict[str, int]]:
    """Return the whole file, and how many bytes each part of it takes."""
    count = len(coded.centers.positions)
    diagonals = lapped_cosine.count_diagonals(coded.codes, coded.pitch)
    flags = COLOUR * (len(diagonals) == 3) + NO_CHANNEL_AXIS * coded.no_channel_axis
    flags += BLOCKS_OF_16 * (coded.pitch == 16)
    size = (coded.height, coded.width, count.to_bytes(3, "little"))
    header = HEADER.pack(flags, *size, coded.step) + bytes(diagonals)
    coder = Coder()
    _code(coder, coded, diagonals)
    body = header + coder.to_bytes()
    data = MAGIC + VERSION + struct.pack("<I", zlib.crc32(body)) + body
    return data, {"header_bytes": 8 + len(header), **coder.sections}


def _code(coder: Coder, coded: CodedImage, diagonals: list[int]) -> CodedImage:
    centers = code_centers(coder, coded.centers, coded.height, coded.width)
    codes = lapped_cosine.code_residual(coder, coded.codes, coded.pitch, diagonals)
    coder.end_section("residual_bytes")
    return coded._replace(centers=centers, codes=codes)


def unpack(data: bytes, max_pixels: int = MAX_PIXELS, zoom: int = 1) -> CodedImage:
    """Read a file; `centers.tensors()` of the result are positions, shapes, opponent colours.

    Parameters
    ----------
    data : bytes
    max_pixels, zoom : int, default 2^24 and 1, as in `decode`

    Examples
    --------
    >>> from nnlib.image_codec import encode
    >>> unpack(encode(np.zeros((8, 9, 3), np.uint8), steps=2)).width
    9
    """
    expected, diagonals, payload = _read_header(data, max_pixels, zoom)
    return _code(Coder(payload), expected, diagonals)


def _read_header(data: bytes, max_pixels: int, zoom: int = 1):
    """Return an image of zeros that take no memory, its diagonals and the payload."""
    check(isinstance(data, bytes | bytearray | memoryview), "data", data, "bytes")
    data = bytes(data)
    if data[:3] != MAGIC:
        raise CorruptError(f"this is no picture of centers: it begins with {data[:3]!r}")
    if data[3:4] != VERSION:
        raise CorruptError(f"its version is {data[3:4]!r}: this library reads version {VERSION!r}")
    body = data[8:]
    checksum = struct.pack("<I", zlib.crc32(body))
    if len(body) <= HEADER.size or data[4:8] != checksum:
        raise CorruptError(f"{len(data)} bytes are damaged or not all there: the checksum differs")
    flags, height, width, count, step = HEADER.unpack_from(body)
    channels = 3 if flags & COLOUR else 1
    pitch = 16 if flags & BLOCKS_OF_16 else 8
    count = int.from_bytes(count, "little")
    if not 0 < height * width * zoom**2 <= max_pixels:
        claim = f"it claims {height} x {width} pixels at zoom {zoom}"
        raise CorruptError(f"{claim}: at most max_pixels={max_pixels} are decoded")
    end = HEADER.size + channels
    diagonals = list(body[HEADER.size : end])
    most = min(height * width, len(body) + 16)  # a center takes more than a byte
    holds = 0 < count <= most and flags <= 7
    if not holds or len(diagonals) < channels or max(diagonals) >= 2 * pitch:
        content = f"{count} centers, {diagonals} diagonals, flags {flags}"
        raise CorruptError(f"its header makes no sense: {content}")
    zeros = [np.broadcast_to(np.int64(0), (count, size)) for size in (2, 3, channels)]
    padded = (channels, height + -height % pitch, width + -width % pitch)
    codes = np.broadcast_to(np.int16(0), padded)
    no_axis = bool(flags & NO_CHANNEL_AXIS)
    image = CodedImage(height, width, no_axis, QuantizedCenters(*zeros), step, pitch, codes)
    return image, diagonals, body[end:]


def rgb_to_opponent(picture: Tensor) -> Tensor:
    """Turn RGB into luma and two opponent colours; grey becomes luma on the same scale."""
    return picture @ picture.new_tensor(OPPONENT).T if picture.shape[2] == 3 else picture * 3**0.5


@torch_defaults()
def opponent_to_rgb(picture: Tensor) -> Tensor:
    """Turn luma and opponent colours, or luma alone, into RGB or grey.

    Parameters
    ----------
    picture : float tensor [H, W, 3] or [H, W, 1]

    Examples
    --------
    >>> opponent_to_rgb(Tensor([[[3**0.5]]])).item()
    1.0
    """
    return picture @ picture.new_tensor(OPPONENT) if picture.shape[2] == 3 else picture / 3**0.5
