"""Centers on a lattice whose values are patches of cosines: what the free centers leave over.

The weights are the softmax of -distance^2 / (SOFTNESS pitch^2): the same average, of centers whose
positions and shapes cost no bits. It is separable, and along each side only the next lattice lines
weigh more than 1e-4. Pictures are [H, W, C], coefficients [C, rows * pitch, columns * pitch]: a
block, by frequency, for each lattice point.
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from nnlib.image_codec.entropy_coder import AdaptiveModel, Coder

SLAB = 128  # samples along one side at a time: the basis is banded, and never held whole
SOFTNESS = 1 / 16
CONTEXTS = 20
CONTEXT_BOUNDS = np.round(20 * (2 ** ((np.arange(CONTEXTS - 1) - 11.5) / 3) - 0.06)).astype(int)


@lru_cache(maxsize=256)
def _basis(length: int, pitch: int, zoom: int, start: int) -> tuple[slice, Tensor, slice]:
    """A slab of rows, the matrix from coefficients to samples there, and its nonzero columns."""
    stop = min(start + SLAB, length * zoom)
    first = max(start // zoom // pitch - 1, 0)
    last = min((stop - 1) // zoom // pitch + 2, -(-length // pitch))
    centers = (torch.arange(first, last) + 0.5) * pitch
    positions = (torch.arange(start, stop, dtype=torch.float64) + 0.5) / zoom
    offsets = positions[:, None] - centers
    weights = torch.softmax(-(offsets**2) / (SOFTNESS * pitch**2), 1)
    frequency = torch.arange(pitch)
    cosines = torch.cos(torch.pi / pitch * (offsets + pitch / 2)[..., None] * frequency)
    cosines = cosines * torch.where(frequency == 0, 1, 2) ** 0.5 / pitch**0.5
    rows = (weights[..., None] * cosines).flatten(1).float()
    return slice(start, stop), rows, slice(first * pitch, last * pitch)


def _to_samples(coefficients: Tensor, length: int, pitch: int, zoom: int) -> Tensor:
    parts = []
    for start in range(0, length * zoom, SLAB):
        _, basis, columns = _basis(length, pitch, zoom, start)
        parts.append(torch.tensordot(basis.to(coefficients), coefficients[columns], 1))
    return torch.cat(parts)


def _to_coefficients(samples: Tensor, pitch: int) -> Tensor:
    length = len(samples)
    result = samples.new_zeros(length + -length % pitch, *samples.shape[1:])
    for start in range(0, length, SLAB):
        slab, basis, columns = _basis(length, pitch, 1, start)
        result[columns] += torch.tensordot(basis.to(samples).T, samples[slab], 1)
    return result


def synthesize(coefficients: Tensor, height: int, width: int, pitch: int, zoom: int = 1) -> Tensor:
    """The picture of coefficients, with `zoom` samples a pixel along each side."""
    across = _to_samples(coefficients.permute(2, 0, 1), width, pitch, zoom)
    return _to_samples(across.permute(2, 0, 1), height, pitch, zoom)


def analyze_adjoint(picture: Tensor, pitch: int) -> Tensor:
    """The transpose of `synthesize`: the dot product of each basis function with the picture."""
    down = _to_coefficients(picture, pitch)
    return _to_coefficients(down.transpose(0, 1), pitch).permute(2, 1, 0)


def analyze(picture: Tensor, pitch: int, rounds: int = 6) -> Tensor:
    """Coefficients of a picture, in a few rounds, as the basis is nearly orthogonal."""
    coefficients = analyze_adjoint(picture, pitch)
    for _ in range(rounds):
        error = picture - synthesize(coefficients, *picture.shape[:2], pitch)
        coefficients = coefficients + analyze_adjoint(error, pitch)
    return coefficients


def quantize(picture: Tensor, coefficients: Tensor, pitch: int, step: float, rounds=3) -> Tensor:
    """Coefficients in steps, in rounds that compensate for each other's rounding errors."""
    codes = _round(coefficients / step, 0.35)
    for _ in range(rounds):
        error = picture - synthesize(codes * step, *picture.shape[:2], pitch)
        # small ones among zeros become zero: they cost more bits than they are worth
        bias = (0.15 + 0.1 * _activity(codes, pitch)).clamp(max=0.45)
        codes = _round(codes + 0.8 * analyze_adjoint(error, pitch) / step, bias)
    return codes


def _round(values: Tensor, bias: Tensor | float) -> Tensor:
    return values.sign() * (values.abs() + bias).floor()


def _activity(codes: Tensor, pitch: int) -> Tensor:
    """Sum magnitudes of the next frequencies, and of the same one at the next lattice points."""
    padded = functional.pad(codes.abs(), (pitch,) * 4)
    total = torch.zeros_like(padded)
    for distance in (1, -1, pitch, -pitch):
        total += padded.roll(distance, 1)
        total += padded.roll(distance, 2)
    return total[:, pitch:-pitch, pitch:-pitch]


def dequantize(codes: Tensor, step: float) -> Tensor:
    """Coefficients of codes: of those with magnitude 1, the smaller are more likely."""
    return (codes.float() - 0.05 * codes.sign() * (codes.abs() == 1)) * step


def _by_frequency(codes: np.ndarray, pitch: int) -> np.ndarray:
    """View coefficients as [C, U, V, rows, columns], by their frequencies U and V."""
    channels, height, width = codes.shape
    blocks = codes.reshape(channels, height // pitch, pitch, width // pitch, pitch)
    return blocks.transpose(0, 2, 4, 1, 3)


def count_diagonals(codes: np.ndarray, pitch: int) -> list[int]:
    """How many diagonals of frequencies, lowest first, each channel uses."""
    diagonal = np.indices((pitch, pitch)).sum(0) + 1
    used = _by_frequency(codes, pitch).any((3, 4))
    return (diagonal * used).max((1, 2)).tolist()


def code_residual(coder: Coder, codes: np.ndarray, pitch: int, diagonals: list[int]) -> np.ndarray:
    """Code 16-bit coefficients in steps, a diagonal of frequencies at a time."""
    all_coded = np.zeros(codes.shape, np.int16)
    result = _by_frequency(all_coded, pitch)
    codes = _by_frequency(codes, pitch)
    channels, _, _, rows, columns = codes.shape
    magnitudes = np.zeros((channels, pitch + 2, pitch + 2, rows + 2, columns + 2), np.int16)
    white = np.indices((rows, columns)).sum(0) % 2 > 0
    for channel in range(channels):
        model = AdaptiveModel.geometric(2.0 ** ((np.arange(CONTEXTS) - 12) / 2))
        for diagonal in range(diagonals[channel]):
            u = np.arange(max(0, diagonal - pitch + 1), min(diagonal, pitch - 1) + 1)
            v = diagonal - u
            sums = _context_sums(magnitudes, channel, u + 2, v + 2)
            values = codes[channel, u, v]
            known = magnitudes[channel, u + 2, v + 2]
            for field in (~white, white):  # blocks as on a chessboard: white ones know all around
                contexts = np.searchsorted(CONTEXT_BOUNDS, sums[:, field].ravel())
                contexts = np.clip(contexts - 3 * diagonal // (2 * pitch), 0, CONTEXTS - 1)
                coded = coder.integers(model, contexts, values[:, field].ravel())
                values[:, field] = coded.reshape(len(u), -1)
                known[:, 1:-1, 1:-1] = np.abs(values) * (field | ~white)  # not yet coded: 0
                sums = sums * 3 // 5 + 6 * _neighbor_sums(known)
            result[channel, u, v] = values
            magnitudes[channel, u + 2, v + 2] = known
    return all_coded


def _context_sums(magnitudes, channel: int, u, v):
    """Weigh magnitudes of lower frequencies, around them too, and of earlier channels."""
    sums = 0
    for du, dv in ((1, 0), (0, 1)):
        lower = magnitudes[channel, u - du, v - dv].astype(np.int64)
        sums = sums + 10 * lower[:, 1:-1, 1:-1] + 2 * _neighbor_sums(lower)
    for du, dv in ((1, 1), (2, 0), (0, 2)):
        lower = magnitudes[channel, u - du, v - dv].astype(np.int64)
        sums = sums + 5 * lower[:, 1:-1, 1:-1]
    for same in magnitudes[:channel, u, v, 1:-1, 1:-1]:
        sums = sums + 8 * same  # in 16 bits: files depend on how magnitudes above 4095 overflow
    return sums


def _neighbor_sums(values):
    values = values.astype(np.int64)
    vertical = values[:, :-2, 1:-1] + values[:, 2:, 1:-1]
    return vertical + values[:, 1:-1, :-2] + values[:, 1:-1, 2:]
