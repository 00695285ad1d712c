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
import torch
from jaxtyping import Float, Int16
from torch import Tensor

from nnlib._common.validation import check
from nnlib.errors import CorruptError
from nnlib.image_codec import lapped_cosine
from nnlib.image_codec.center_coding import QuantizedCenters, code_centers
from nnlib.image_codec.entropy_coder import Coder
from nnlib.image_codec.splatting import TileGrid, render

MAGIC = b"nnc"
VERSION = 1
HEADER = struct.Struct("<BHHHBB")  # what follows the checksum, up to the diagonals
MAX_PIXELS = 1 << 24  # that are decoded unless a caller allows more: 16.8 million
COLOUR, NO_CHANNEL_AXIS, BLOCKS_OF_16 = 1, 2, 4  # flags
STEPS = 256  # step sizes, 24 an octave
OPPONENT = torch.tensor(  # luma, red - blue, green - both: orthonormal, so that errors count alike
    [[3**-0.5] * 3, [2**-0.5, 0, -(2**-0.5)], [-(6**-0.5), 2 * 6**-0.5, -(6**-0.5)]]
)


class CodedImage(NamedTuple):
    """The content of a file; `coefficients` are in steps, by frequencies (U, V) of blocks (Y, X)."""

    height: int
    width: int
    no_channel_axis: bool
    centers: QuantizedCenters
    step: int
    coefficients: Int16[np.ndarray, "C U V Y X"]


def step_size(step: int) -> float:
    """The quantization step; full scale is 1."""
    return 2 ** (1 - step / 24)


def pack(coded: CodedImage) -> bytes:
    """Return the whole file."""
    return _write(coded)[0]


def section_sizes(coded: CodedImage) -> dict[str, int]:
    """How many bytes each part of the file takes."""
    data, ends = _write(coded)
    names = [f"{name}_bytes" for name in ("header", *ends)]
    header = len(data) - max(ends.values())
    return dict(zip(names, np.diff([0, header, *(header + end for end in ends.values())]).tolist()))


def _write(coded: CodedImage) -> tuple[bytes, dict[str, int]]:
    channels, pitch = coded.coefficients.shape[:2]
    count = len(coded.centers.positions)
    diagonals = lapped_cosine.count_diagonals(coded.coefficients)
    flags = COLOUR * (channels == 3) + NO_CHANNEL_AXIS * coded.no_channel_axis
    flags += BLOCKS_OF_16 * (pitch == 16)
    size = (coded.height, coded.width, count & 0xFFFF, count >> 16)
    coder = Coder()
    _code(coder, coded, diagonals)
    body = HEADER.pack(flags, *size, coded.step) + bytes(diagonals) + coder.to_bytes()
    checksum = struct.pack("<I", zlib.crc32(body))
    return MAGIC + bytes([VERSION]) + checksum + body, coder.section_ends


def _code(coder: Coder, coded: CodedImage, diagonals: list[int]) -> CodedImage:
    centers = code_centers(coder, coded.centers, coded.height, coded.width)
    coefficients = lapped_cosine.code_residual(coder, coded.coefficients, diagonals)
    coder.end_section("residual")
    return coded._replace(centers=centers, coefficients=coefficients)


def unpack(data: bytes, max_pixels: int = MAX_PIXELS, zoom: int = 1) -> CodedImage:
    """Read what a file says, without rendering it.

    Parameters
    ----------
    data : bytes
        What `encode` returned.
    max_pixels : int, default 2^24
        Refuse larger pictures.
    zoom : int, default 1
        Samples a pixel along each side that will be rendered, and count for `max_pixels`.

    Returns
    -------
    CodedImage
        Its `centers.tensors()` are positions in pixels, shapes, and opponent colours.

    Raises
    ------
    CorruptError
        For anything but a whole file within the limits, before memory is allocated.

    Examples
    --------
    >>> from nnlib.image_codec import encode
    >>> unpack(encode(torch.zeros(8, 9, 3, dtype=torch.uint8), steps=2)).width
    9
    """
    expected, diagonals, payload = _read_header(data, max_pixels, zoom)
    return _code(Coder(payload), expected, diagonals)


def _read_header(data: bytes, max_pixels: int, zoom: int = 1):
    """Return an image of zeros that take no memory, its diagonals, and the payload."""
    body = _checked_body(data)
    flags, height, width, low, high, step = HEADER.unpack_from(body)
    channels = 3 if flags & COLOUR else 1
    pitch = 16 if flags & BLOCKS_OF_16 else 8
    count = low + (high << 16)
    _require(
        0 < height * width * zoom**2 <= max_pixels,
        f"it claims {height} x {width} pixels at zoom {zoom}: "
        f"at most max_pixels={max_pixels} are decoded",
    )
    payload_start = HEADER.size + channels
    diagonals = list(body[HEADER.size : payload_start])
    most = min(height * width, len(body) + 16)  # a center takes more than a byte
    makes_sense = len(diagonals) == channels and max(diagonals) < 2 * pitch
    _require(
        makes_sense and 0 < count <= most and flags <= 7,
        f"its header makes no sense: {count} centers, {diagonals} diagonals, flags {flags}",
    )
    zeros = [np.broadcast_to(np.int64(0), (count, size)) for size in (2, 3, channels)]
    shape = (channels, pitch, pitch, -(-height // pitch), -(-width // pitch))
    lattice = np.broadcast_to(np.int16(0), shape)
    no_axis = bool(flags & NO_CHANNEL_AXIS)
    image = CodedImage(height, width, no_axis, QuantizedCenters(*zeros), step, lattice)
    return image, diagonals, body[payload_start:]


def _checked_body(data: bytes) -> bytes:
    """Return what follows the checksum."""
    check(isinstance(data, bytes | bytearray | memoryview), "data", data, "bytes")
    data = bytes(data)
    _require(data.startswith(MAGIC), f"this is no picture of centers: it begins with {data[:3]!r}")
    version = data[3:4].hex() or "missing"
    _require(
        data[3:4] == bytes([VERSION]),
        f"its version is {version}: this library reads version {VERSION}",
    )
    whole = len(data) > 8 + HEADER.size and data[4:8] == struct.pack("<I", zlib.crc32(data[8:]))
    _require(whole, f"its {len(data)} bytes are damaged or not all there: the checksum differs")
    return data[8:]


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise CorruptError(message)


def rgb_to_opponent(picture: Float[Tensor, "H W C"]) -> Float[Tensor, "H W C"]:
    """Turn RGB into luma and two opponent colours; grey becomes luma on the same scale.

    Parameters
    ----------
    picture : float tensor [H, W, 3] or [H, W, 1]
        In 0..1.

    Returns
    -------
    float tensor of the same shape

    Examples
    --------
    >>> rgb_to_opponent(torch.ones(1, 1, 1)).item()  # the root of 3
    1.7320507764816284
    """
    return picture @ OPPONENT.to(picture).T if picture.shape[2] == 3 else picture * 3**0.5


def opponent_to_rgb(picture: Float[Tensor, "H W C"]) -> Float[Tensor, "H W C"]:
    """Undo `rgb_to_opponent`.

    Parameters
    ----------
    picture : float tensor [H, W, 3] or [H, W, 1]

    Returns
    -------
    float tensor of the same shape
        RGB or grey.

    Examples
    --------
    >>> opponent_to_rgb(rgb_to_opponent(torch.ones(2, 2, 3))).mean().round().item()
    1.0
    """
    return picture @ OPPONENT.to(picture) if picture.shape[2] == 3 else picture / 3**0.5


def render_centers(
    coded: CodedImage, zoom: int = 1, device: torch.device | str = "cpu"
) -> Float[Tensor, "H W C"]:
    """Render the free centers, in opponent colours."""
    grid = TileGrid(coded.height, coded.width, zoom, device)
    return render(grid, *(part.to(device) for part in coded.centers.tensors()))


def render_residual(
    coded: CodedImage, zoom: int = 1, device: torch.device | str = "cpu"
) -> Float[Tensor, "H W C"]:
    """Render what the lattice adds to the free centers."""
    codes = lapped_cosine.from_file_order(coded.coefficients).to(device)
    coefficients = lapped_cosine.dequantize(codes, step_size(coded.step))
    pitch = coded.coefficients.shape[1]
    return lapped_cosine.synthesize(coefficients, coded.height, coded.width, pitch, zoom)
