"""Centers on a lattice whose values are patches of cosines: what the free centers leave over.

The weights are the softmax of -distance^2 / (SOFTNESS pitch^2) over the lattice: the same average,
with fixed centers whose positions and shapes cost no bits. It is separable, and along each side
only the next lattice lines weigh more than 1e-4 at a pixel.
"""

from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int16
from torch import Tensor
from torch.nn import functional

from nnlib.image_codec.entropy_coder import AdaptiveModel, Coder

SLAB = 128  # samples along one side at a time: the basis is banded, and never held whole
SOFTNESS = 1 / 16
CONTEXTS = 20
CONTEXT_BOUNDS = np.round(20 * (2 ** ((np.arange(CONTEXTS - 1) - 11.5) / 3) - 0.06)).astype(int)
FEEDBACK = 0.8  # of the error that one round of quantization corrects in the next


@lru_cache(maxsize=256)
def basis(
    length: int, pitch: int, start: int, stop: int, zoom: int
) -> tuple[Float[Tensor, "R S"], slice]:
    """Rows start...stop of the matrix from coefficients to samples, and the coefficients it needs."""
    first = max(start // zoom // pitch - 1, 0)
    last = min((stop - 1) // zoom // pitch + 2, -(-length // pitch))
    x = (torch.arange(start, stop, dtype=torch.float64)[:, None] + 0.5) / zoom
    centers = (torch.arange(first, last) + 0.5) * pitch
    weights = torch.softmax(-((x - centers) ** 2) / (SOFTNESS * pitch**2), 1)
    frequency = torch.arange(pitch)
    cosines = torch.cos(torch.pi / pitch * (x - centers + pitch / 2)[..., None] * frequency)
    cosines = cosines * torch.where(frequency == 0, 1, 2) ** 0.5 / pitch**0.5
    rows = (weights[..., None] * cosines).flatten(1).float()
    return rows, slice(first * pitch, last * pitch)


def _slabs(length: int, pitch: int, zoom: int = 1):
    for start in range(0, length * zoom, SLAB):
        stop = min(start + SLAB, length * zoom)
        yield slice(start, stop), *basis(length, pitch, start, stop, zoom)


def _to_samples(coefficients: Float[Tensor, "S *M"], length: int, pitch: int, zoom: int) -> Tensor:
    """Apply the basis along the first dimension."""
    rows = coefficients.flatten(1)
    parts = [part.to(rows) @ rows[needed] for _, part, needed in _slabs(length, pitch, zoom)]
    return torch.cat(parts).unflatten(1, coefficients.shape[1:])


def _to_coefficients(samples: Float[Tensor, "R *M"], pitch: int) -> Tensor:
    """Apply the transposed basis along the first dimension."""
    rows = samples.flatten(1)
    result = rows.new_zeros(-(-len(rows) // pitch) * pitch, rows.shape[1])
    for some, part, needed in _slabs(len(rows), pitch):
        result[needed] += part.to(rows).T @ rows[some]
    return result.unflatten(1, samples.shape[1:])


def synthesize(
    coefficients: Float[Tensor, "C S R"], height: int, width: int, pitch: int, zoom: int = 1
) -> Float[Tensor, "H W C"]:
    """The picture of lapped cosine coefficients."""
    across = _to_samples(coefficients.permute(2, 0, 1), width, pitch, zoom)
    return _to_samples(across.permute(2, 0, 1), height, pitch, zoom)


def analyze_adjoint(picture: Float[Tensor, "H W C"], pitch: int) -> Float[Tensor, "C S R"]:
    """The transpose of `synthesize`: the dot product of each basis function with the picture."""
    down = _to_coefficients(picture, pitch)
    return _to_coefficients(down.transpose(0, 1), pitch).permute(2, 1, 0)


def analyze(picture: Float[Tensor, "H W C"], pitch: int, rounds: int = 6) -> Float[Tensor, "C S R"]:
    """Coefficients of a picture, in a few rounds, as the basis is nearly orthogonal."""
    coefficients = analyze_adjoint(picture, pitch)
    for _ in range(rounds):
        error = picture - synthesize(coefficients, *picture.shape[:2], pitch)
        coefficients = coefficients + analyze_adjoint(error, pitch)
    return coefficients


def quantize(picture, coefficients: Float[Tensor, "C S R"], pitch: int, step: float) -> Tensor:
    """Coefficients in steps, in rounds that compensate for each other's rounding errors.

    Small ones among zeros become zero, as they would cost more bits than they are worth.
    """
    codes = _round(coefficients / step, 0.35)
    for _ in range(3):
        error = picture - synthesize(codes * step, *picture.shape[:2], pitch)
        bias = (0.15 + 0.1 * _activity(codes, pitch)).clamp(max=0.45)
        codes = _round(codes + FEEDBACK * analyze_adjoint(error, pitch) / step, bias)
    return codes


def _round(values: Tensor, bias: Tensor | float) -> Tensor:
    return values.sign() * (values.abs() + bias).floor()


def _activity(codes: Float[Tensor, "C S R"], pitch: int) -> Float[Tensor, "C S R"]:
    """Sum magnitudes of the next frequencies, and of the same one at the next lattice points."""
    _, height, width = codes.shape
    padded = functional.pad(codes.abs(), (pitch,) * 4)
    rows = padded.narrow(2, pitch, width)
    columns = padded.narrow(1, pitch, height)
    total = torch.zeros_like(codes)
    for shift in (1, -1, pitch, -pitch):
        total += rows.narrow(1, pitch + shift, height)
        total += columns.narrow(2, pitch + shift, width)
    return total


def dequantize(codes: Tensor, step: float) -> Tensor:
    """Coefficients of codes: of those with magnitude 1, the smaller are more likely."""
    return (codes.float() - 0.05 * codes.sign() * (codes.abs() == 1)) * step


def to_file_order(codes: Float[Tensor, "C S R"], pitch: int) -> Int16[np.ndarray, "C U V Y X"]:
    """Rearrange codes from blocks in a picture to frequencies (U, V) of blocks (Y, X)."""
    blocks = codes.unflatten(2, (-1, pitch)).unflatten(1, (-1, pitch)).permute(0, 2, 4, 1, 3)
    return blocks.clamp(-32767, 32767).to(torch.int16).cpu().numpy()


def from_file_order(codes: Int16[np.ndarray, "C U V Y X"]) -> Tensor:
    """Undo `to_file_order`."""
    return torch.from_numpy(codes).permute(0, 3, 1, 4, 2).flatten(3).flatten(1, 2)


def count_diagonals(codes: Int16[np.ndarray, "C U V Y X"]) -> list[int]:
    """How many diagonals of frequencies, lowest first, each channel uses."""
    u, v = np.indices(codes.shape[1:3])
    used = [(u + v)[part.any((2, 3))] for part in codes]
    return [int(diagonals.max(initial=-1)) + 1 for diagonals in used]


def code_residual(
    coder: Coder, codes: Int16[np.ndarray, "C U V Y X"], diagonals: list[int]
) -> Int16[np.ndarray, "C U V Y X"]:
    """Code the lattice's quantized coefficients, a diagonal of frequencies at a time.

    Blocks are coded in two halves, as the black and white fields of a chessboard. Known magnitudes
    of lower frequencies, neighboring blocks and earlier channels tell each coefficient's context.
    """
    channels, pitch, _, rows, columns = codes.shape
    result = np.zeros(codes.shape, np.int16)
    padded = (channels, pitch + 2, pitch + 2, rows + 2, columns + 2)
    magnitudes = np.zeros(padded, np.int16)
    white = np.indices((rows, columns)).sum(0) % 2 > 0
    for channel in range(channels):
        model = AdaptiveModel.geometric(2.0 ** ((np.arange(CONTEXTS) - 12) / 2))
        for diagonal in range(diagonals[channel]):
            u = np.arange(max(0, diagonal - pitch + 1), min(diagonal, pitch - 1) + 1)
            v = diagonal - u
            sums = _context_sums(magnitudes, channel, u, v)
            values = codes[channel, u, v]
            for field in (~white, white):
                contexts = np.searchsorted(CONTEXT_BOUNDS, sums[:, field].ravel())
                contexts = np.clip(contexts - 3 * diagonal // (2 * pitch), 0, CONTEXTS - 1)
                coded = coder.integers(model, contexts, values[:, field].ravel())
                values[:, field] = coded.reshape(len(u), -1)
                known = magnitudes[channel, u + 2, v + 2]
                known[:, 1:-1, 1:-1][:, field] = np.abs(values[:, field])
                magnitudes[channel, u + 2, v + 2] = known
                sums = sums * 3 // 5 + 6 * _neighbor_sums(known)
            result[channel, u, v] = values
    return result


def _context_sums(magnitudes, channel: int, u, v):
    """Weigh magnitudes of lower frequencies, around them too, and of earlier channels."""
    sums = 0
    for du, dv in ((1, 0), (0, 1)):
        lower = magnitudes[channel, u + 2 - du, v + 2 - dv]
        sums = sums + 10 * lower[:, 1:-1, 1:-1].astype(np.int64) + 2 * _neighbor_sums(lower)
    for du, dv in ((1, 1), (2, 0), (0, 2)):
        lower = magnitudes[channel, u + 2 - du, v + 2 - dv, 1:-1, 1:-1]
        sums = sums + 5 * lower.astype(np.int64)
    for other in range(channel):
        # in 16 bits, although 8 times a magnitude above 4095 overflows: files depend on it
        sums = sums + 8 * magnitudes[other, u + 2, v + 2, 1:-1, 1:-1]
    return sums


def _neighbor_sums(values):
    """Sum each block's four neighbors, of blocks with a margin."""
    values = values.astype(np.int64)
    vertical = values[:, :-2, 1:-1] + values[:, 2:, 1:-1]
    return vertical + values[:, 1:-1, :-2] + values[:, 1:-1, 2:]
