"""The file: a header, the free centers, the ripples of the lattice. Every byte is checked before it is believed.

| bytes | what |
|---|---|
| 3, 1 | "nnc", the version |
| 4 | CRC-32 of all that follows |
| 1 | flags: colour, a grey picture with no axis for channels, ripples every 16 pixels and not every 8 |
| 2, 2 | height and width |
| 3 | number of centers |
| 1 | step of the ripples, 2^(1 - n / 24) |
| 1 a channel | diagonals of frequencies that are there |
| the rest | range coded: centers, then ripples |
"""

import struct
import zlib
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int16
from torch import Tensor

from nnlib.image_codec import center_coding, lapped_cosine
from nnlib.image_codec.center_coding import QuantizedCenters
from nnlib.image_codec.entropy_coder import Coder, CorruptError, reader, written
from nnlib.image_codec.splatting import TileGrid, render, select_centers

MAGIC, VERSION = b"nnc", 1
HEAD = struct.Struct("<BHHHBB")
MAX_PIXELS = 1 << 24  # that are decoded unless a caller allows more: 16.8 million
COLOUR, FLAT, WIDE = 1, 2, 4
STEPS = 256  # sizes of step, 24 an octave
OPPONENT = torch.tensor(  # luma, red against blue, green against both: orthonormal, so that errors count alike
    [[3**-0.5] * 3, [2**-0.5, 0, -(2**-0.5)], [-(6**-0.5), 2 * 6**-0.5, -(6**-0.5)]]
)


class Coded(NamedTuple):
    """What a file says: its size, its centers, and its ripples [C, U, V, rows, columns] in steps."""

    height: int
    width: int
    flat: bool
    centers: QuantizedCenters
    step: int
    ripples: Int16[np.ndarray, "C U V Y X"]

    @property
    def channels(self) -> int:
        return len(self.ripples)

    @property
    def pitch(self) -> int:
        return self.ripples.shape[1]


def step_size(step: int) -> float:
    """A coefficient's quantum; a constant one changes its pixels by as much over the pitch, of full scale."""
    return 2 ** (1 - step / 24)


def pack(coded: Coded) -> bytes:
    """The whole file."""
    extents = lapped_cosine.extent(coded.ripples)
    flags = COLOUR * (coded.channels == 3) + FLAT * coded.flat + WIDE * (coded.pitch == 16)
    count = len(coded.centers.places)
    head = HEAD.pack(flags, coded.height, coded.width, count & 0xFFFF, count >> 16, coded.step)
    body = (
        head
        + bytes(extents)
        + written(lambda coder: _walk(coder, coded, extents, coded.centers, coded.ripples))
    )
    return MAGIC + bytes([VERSION]) + struct.pack("<I", zlib.crc32(body)) + body


def unpack(data: bytes, max_pixels: int = MAX_PIXELS, zoom: int = 1) -> Coded:
    """What a file says. Raises CorruptError for what is no such file, damaged or too large, before it allocates."""
    empty, extents, payload = _head(data, max_pixels, zoom)
    return _walk(reader(payload), empty, extents)


def _walk(
    coder: Coder,
    coded: Coded,
    extents: list[int],
    centers: QuantizedCenters | None = None,
    codes=None,
) -> Coded:
    size = len(coded.centers.places), coded.height, coded.width, coded.channels
    centers = center_coding.code_centers(coder, *size, centers)
    return coded._replace(
        centers=centers,
        ripples=lapped_cosine.code_residual(coder, coded.ripples.shape, extents, codes),
    )


def parts_of(coded: Coded) -> dict[str, int]:
    """Where the bytes go: what the file grows by with each part."""
    size, centers = (len(coded.centers.places), coded.height, coded.width), coded.centers

    def upto(part: int, coder: Coder) -> None:
        """Write the places; from 1 on the shapes too; at 2 all of the centers."""
        _, depth, order = center_coding.code_positions(coder, *size, centers.places)
        if part > 0:
            center_coding.code_shapes(coder, depth, centers.shapes[order])
        if part > 1:
            center_coding.code_colours(
                coder, centers.places[order], coded.channels, centers.colours[order]
            )

    ends = [len(written(partial(upto, part))) for part in range(3)]
    head = 8 + HEAD.size + coded.channels
    sizes = [head, ends[0], ends[1] - ends[0], ends[2] - ends[1], len(pack(coded)) - head - ends[2]]
    return dict(
        zip(
            ("head_bytes", "place_bytes", "shape_bytes", "colour_bytes", "ripple_bytes"),
            sizes,
            strict=True,
        )
    )


def _head(data: bytes, max_pixels: int, zoom: int = 1) -> tuple[Coded, list[int], bytes]:
    """What the header promises, as arrays that take no memory yet; the diagonals; the payload."""
    if not isinstance(data, bytes | bytearray | memoryview):
        raise ValueError(f"data is {type(data).__name__}: give bytes")
    data = bytes(data)
    if data[:3] != MAGIC:
        raise CorruptError(
            f"this is no picture of centers: it begins with {data[:3]!r}, not {MAGIC!r}"
        )
    if data[3:4] != bytes([VERSION]):
        raise CorruptError(
            f"its version is {data[3:4].hex() or 'missing'}: this library reads version {VERSION}"
        )
    body = data[8:]
    if len(body) < HEAD.size + 1 or struct.unpack("<I", data[4:8])[0] != zlib.crc32(body):
        raise CorruptError(
            f"its {len(data)} bytes are damaged or not all there: the checksum differs"
        )
    flags, height, width, low, high, step = HEAD.unpack_from(body)
    channels, pitch, count = (
        3 if flags & COLOUR else 1,
        16 if flags & WIDE else 8,
        low + (high << 16),
    )
    if not 0 < height * width * zoom**2 <= max_pixels:
        claim = f"it claims {height} x {width} pixels" + f", at zoom {zoom}" * (zoom > 1)
        raise CorruptError(f"{claim}: at most max_pixels={max_pixels} are decoded")
    extents = list(body[HEAD.size : HEAD.size + channels])
    most = min(
        height * width, len(body) + 16
    )  # a center takes more than a byte, so that a small file is soon drawn
    if len(extents) < channels or max(extents) >= 2 * pitch or not 0 < count <= most or flags > 7:
        raise CorruptError(
            f"its header makes no sense: {count} centers, {extents} diagonals, flags {flags}"
        )
    nothing = QuantizedCenters(
        *(np.broadcast_to(np.int64(0), (count, size)) for size in (2, 3, channels))
    )
    lattice = np.broadcast_to(
        np.int16(0), (channels, pitch, pitch, -(-height // pitch), -(-width // pitch))
    )
    return (
        Coded(height, width, bool(flags & FLAT), nothing, step, lattice),
        extents,
        body[HEAD.size + channels :],
    )


def rgb_to_opponent(picture: Float[Tensor, "H W C"]) -> Float[Tensor, "H W C"]:
    """Luma and two opponent colours; a grey picture is its own luma, on the same scale."""
    return picture @ OPPONENT.to(picture).T if picture.shape[2] == 3 else picture * 3**0.5


def displayed(picture: Float[Tensor, "H W C"]) -> Float[Tensor, "H W C"]:
    """Opponent colours as RGB or grey again."""
    return picture @ OPPONENT.to(picture) if picture.shape[2] == 3 else picture / 3**0.5


def render_centers(
    coded: Coded, zoom: int = 1, device: torch.device | str = "cpu"
) -> Float[Tensor, "H W C"]:
    """The picture that the free centers make, in opponent colours."""
    grid = TileGrid(coded.height, coded.width, zoom, device)
    parts = [part.to(device) for part in coded.centers.tensors()]
    return render(grid, *parts, select_centers(grid, *parts[:2]))


def render_residual(
    coded: Coded, zoom: int = 1, device: torch.device | str = "cpu"
) -> Float[Tensor, "H W C"]:
    """The picture that the lattice adds."""
    channels, pitch, _, rows, columns = coded.ripples.shape
    codes = (
        torch.from_numpy(coded.ripples)
        .to(device)
        .permute(0, 3, 1, 4, 2)
        .reshape(channels, rows * pitch, -1)
    )
    return lapped_cosine.synthesize(
        lapped_cosine.dequantize(codes) * step_size(coded.step),
        coded.height,
        coded.width,
        pitch,
        zoom,
    )


def codes_of(values: Tensor, pitch: int) -> Int16[np.ndarray, "C U V Y X"]:
    """Coefficients [C, rows * pitch, columns * pitch] in the order of the file."""
    parts = values.unflatten(2, (-1, pitch)).unflatten(1, (-1, pitch)).permute(0, 2, 4, 1, 3)
    return parts.clamp(-32767, 32767).to(torch.int16).cpu().numpy()
