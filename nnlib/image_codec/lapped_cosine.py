"""Centers on a lattice whose values are little patches of cosines: what the free centers leave, texture above all.

The weights are the softmax of -distance^2 / softness over the lattice: the same average, its centers fixed, so that
places and shapes cost no bits. It splits into rows and columns, and of each only the lattice lines next to a pixel
weigh more than 1e-4.
"""

from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from nnlib.image_codec.entropy_coder import Coder, magnitudes

SLAB = (
    128  # pixels that are drawn together along one side: the basis is banded, and never held whole
)
SPREAD = 1 / 16  # softness of the weights, of pitch^2
UNIT = 20  # contexts are sums in units of 1 / UNIT
CLASSES = 20
BOUNDS = np.array([round(UNIT * (2 ** ((k - 11.5) / 3) - 0.06)) for k in range(CLASSES - 1)])


@lru_cache(maxsize=256)
def basis(
    length: int, pitch: int, start: int, stop: int, zoom: int = 1
) -> tuple[Float[Tensor, "R S"], slice]:
    """Rows start...stop of the matrix from coefficients to samples along one side, and the coefficients it needs."""
    count = -(-length // pitch)
    first, last = max(start // zoom // pitch - 1, 0), min((stop - 1) // zoom // pitch + 2, count)
    x = (torch.arange(start, stop, dtype=torch.float64)[:, None] + 0.5) / zoom
    centers = (torch.arange(first, last) + 0.5) * pitch
    weights = torch.softmax(-((x - centers) ** 2) / (SPREAD * pitch**2), 1)
    waves = torch.arange(pitch)
    ripples = torch.cos(torch.pi / pitch * (x - centers + pitch / 2)[..., None] * waves)
    ripples = ripples * torch.where(waves == 0, 1, 2) ** 0.5 / pitch**0.5
    return (weights[..., None] * ripples).flatten(1).float(), slice(first * pitch, last * pitch)


def _slabs(length: int, pitch: int, zoom: int = 1):
    for start in range(0, length * zoom, SLAB):
        stop = min(start + SLAB, length * zoom)
        yield slice(start, stop), *basis(length, pitch, start, stop, zoom)


def _down(
    values: Float[Tensor, "S M"], length: int, pitch: int, zoom: int = 1
) -> Float[Tensor, "R M"]:
    return torch.cat(
        [part.to(values) @ values[needed] for _, part, needed in _slabs(length, pitch, zoom)]
    )


def _up(values: Float[Tensor, "R M"], pitch: int) -> Float[Tensor, "S M"]:
    found = values.new_zeros(-(-len(values) // pitch) * pitch, values.shape[1])
    for rows, part, needed in _slabs(len(values), pitch):
        found[needed] += part.to(values).T @ values[rows]
    return found


def synthesize(
    ripples: Float[Tensor, "C S R"], height: int, width: int, pitch: int, zoom: int = 1
) -> Float[Tensor, "H W C"]:
    """The picture that coefficients make."""
    channels, rows, columns = ripples.shape
    across = _down(ripples.permute(2, 0, 1).flatten(1), width, pitch, zoom).reshape(
        -1, channels, rows
    )
    return _down(across.permute(2, 0, 1).flatten(1), height, pitch, zoom).reshape(
        -1, width * zoom, channels
    )


def analyze_adjoint(picture: Float[Tensor, "H W C"], pitch: int) -> Float[Tensor, "C S R"]:
    """The transposed of `draw`: each ripple's dot product with the picture."""
    height, width, channels = picture.shape
    down = _up(picture.flatten(1), pitch).reshape(-1, width, channels)
    across = _up(down.permute(1, 0, 2).flatten(1), pitch)
    return across.reshape(-1, down.shape[0], channels).permute(2, 1, 0)


def analyze(picture: Float[Tensor, "H W C"], pitch: int, rounds: int = 6) -> Float[Tensor, "C S R"]:
    """Coefficients whose picture is the given one: the ripples are all but orthogonal, so a few rounds do."""
    height, width, _ = picture.shape
    found = analyze_adjoint(picture, pitch)
    for _ in range(rounds):
        found = found + analyze_adjoint(picture - synthesize(found, height, width, pitch), pitch)
    return found


def quantize(
    picture, ripples: Float[Tensor, "C S R"], pitch: int, step: float, rounds: int = 3
) -> Tensor:
    """Coefficients in steps, each round making good what the rounding of others spoiled.

    A small one among zeros costs more bits than it is worth: the quieter it is around it, the rather it is left out.
    """
    height, width, _ = picture.shape
    found = _rounded(ripples / step, 0.35)
    for _ in range(rounds):
        error = picture - synthesize(found * step, height, width, pitch)
        bias = (0.15 + 0.1 * _noise(found, pitch)).clamp(max=0.45)
        found = _rounded(found + 0.8 * analyze_adjoint(error, pitch) / step, bias)
    return found


def _rounded(ripples: Tensor, bias: Tensor | float) -> Tensor:
    return ripples.sign() * (ripples.abs() + bias).floor()


def _noise(codes: Float[Tensor, "C S R"], pitch: int) -> Float[Tensor, "C S R"]:
    """The sum of the magnitudes of the next frequencies, and of the same one at the next lattice points."""
    margin = torch.nn.functional.pad(codes.abs(), (pitch,) * 4)
    height, width = codes.shape[1:]
    ways = [
        (far * up, far * along)
        for far in (1, pitch)
        for up, along in ((1, 0), (-1, 0), (0, 1), (0, -1))
    ]
    return sum(
        margin[:, pitch + y : pitch + y + height, pitch + x : pitch + x + width] for y, x in ways
    )


def dequantize(codes: Tensor) -> Tensor:
    """Codes as multiples of the step: where a magnitude is 1, the smaller are the more likely."""
    return codes.float() - 0.05 * codes.sign() * (codes.abs() == 1)


def extent(codes: Int64[np.ndarray, "C U V Y X"]) -> list[int]:
    """How many diagonals of frequencies, lowest first, each channel needs."""
    u, v = np.indices(codes.shape[1:3])
    used = [(u + v)[np.abs(part).sum((2, 3)) > 0] for part in codes]
    return [int(diagonals.max(initial=-1)) + 1 for diagonals in used]


def code_residual(
    coder: Coder, shape: tuple[int, ...], extents: list[int], codes=None
) -> Int64[np.ndarray, "C U V Y X"]:
    """Write codes [channels, pitch, pitch, rows, columns] of the lattice, or read them.

    A diagonal of frequencies at a time, first on the lattice's black fields, then on the white ones; what is known of
    lower frequencies, of neighbors and of the channels before tells each one's class.
    """
    channels, pitch, _, rows, columns = shape
    known = np.zeros((channels, pitch + 2, pitch + 2, rows + 2, columns + 2), np.int16)
    found = np.zeros(shape, np.int16)
    white = np.indices((rows, columns)).sum(0) % 2 > 0
    for channel in range(channels):
        table = magnitudes(2.0 ** ((np.arange(CLASSES) - 12) / 2))
        for diagonal in range(extents[channel]):
            u = np.arange(max(0, diagonal - pitch + 1), min(diagonal, pitch - 1) + 1)
            sums = _lower(known, channel, u, diagonal - u)
            for field in (~white, white):
                classes = np.searchsorted(BOUNDS, sums[:, field].ravel()) - 3 * diagonal // (
                    2 * pitch
                )
                given = (
                    None
                    if codes is None
                    else codes[channel, u, diagonal - u][:, field].ravel().astype(np.int64)
                )
                values = coder.integers(table, np.clip(classes, 0, CLASSES - 1), given).reshape(
                    len(u), -1
                )
                found[
                    channel,
                    u[:, None],
                    (diagonal - u)[:, None],
                    *(side[None] for side in field.nonzero()),
                ] = values
                known[channel, u + 2, diagonal - u + 2, 1:-1, 1:-1] = np.abs(
                    found[channel, u, diagonal - u]
                )
                sums = sums * 3 // 5 + 6 * _around(known[channel, u + 2, diagonal - u + 2])
    return found


def _lower(known, channel: int, u, v):
    """Magnitudes of lower frequencies in the same place and next to it, and of the same frequency in other channels."""

    def at(du: int, dv: int):
        return known[channel, u + 2 - du, v + 2 - dv].astype(np.int64)

    above, before = at(1, 0), at(0, 1)
    near = (above + before) * 10 + (at(1, 1) + at(2, 0) + at(0, 2)) * 5
    sums = near[:, 1:-1, 1:-1] + 2 * (_around(above) + _around(before))
    for other in range(channel):
        sums = sums + 8 * known[other, u + 2, v + 2, 1:-1, 1:-1]
    return sums


def _around(values):
    """The sum of the four neighbors, of a field with a margin."""
    return (
        values[:, :-2, 1:-1].astype(np.int64)
        + values[:, 2:, 1:-1]
        + values[:, 1:-1, :-2]
        + values[:, 1:-1, 2:]
    )
