"""Centers as integers, and how these are coded: positions, then shapes, then colours.

Positions are coded by halving the picture down to half a pixel, and saying how many centers lie in
each first half; the depth at which a center is alone predicts its size. A colour is coded as the
difference from a mean of the three nearest centers that are known already. All of it is integer
arithmetic, so that encoder and decoder agree on every machine.
"""

from math import log
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int64
from scipy.spatial import cKDTree
from scipy.special import binom
from torch import Tensor

from nnlib.image_codec.entropy_coder import AdaptiveModel, Coder

SUBPIXELS = 2  # positions per pixel, along each side
SHAPE_STEP = 0.2
COLOUR_STEPS = np.array([0.06, 0.08, 0.08])  # luma, then two of chroma
SHAPE_MIN = (-10.0, -4.0, -4.0)  # of m, p, q: widths up to 150 pixels
SHAPE_MAX = (3.0, 4.0, 4.0)  # widths from a fifth of a pixel
MODELLED_COUNT = 16  # up to so many centers in a box, how they split is learned
_count = np.arange(1, MODELLED_COUNT + 1)[:, None]
_in_first = np.arange(MODELLED_COUNT + 1)
SPLIT_PRIOR = binom(_count, _in_first) / 2.0**_count + 0.3 / (_count + 1)  # centers cluster
SPLIT_PRIOR[_in_first > _count] = 0
STRIDES = (32, 16, 8, 4, 2, 1)  # colours of every 32nd center are coded first, then of every 16th
ANCHORS = 3  # known centers from which a colour is predicted
COLOUR_ERRORS = ([1.0, 2.0, 3.0, 5.0, 8.0], *[[0.5, 1.0, 1.5, 2.0, 3.0]] * 2)  # by context


class QuantizedCenters(NamedTuple):
    """Positions in half pixels, shapes and opponent colours in quantization steps, all int64."""

    positions: Int64[np.ndarray, "N 2"]
    shapes: Int64[np.ndarray, "N 3"]
    colours: Int64[np.ndarray, "N C"]

    def tensors(self) -> tuple[Tensor, ...]:
        """Return positions in pixels, shapes, and opponent colours in 0..1, as float32."""
        positions = (self.positions + 0.5) / SUBPIXELS
        colours = self.colours * COLOUR_STEPS[: self.colours.shape[1]]
        parts = (positions, self.shapes * SHAPE_STEP, colours)
        return tuple(torch.from_numpy(part.astype(np.float32)) for part in parts)


def quantize_centers(positions, shapes, colours, height: int, width: int) -> QuantizedCenters:
    """Round tensors as those of `QuantizedCenters.tensors` to the nearest that can be coded."""
    last = np.array([height, width]) * SUBPIXELS - 1
    positions = positions.numpy(force=True).astype(float) * SUBPIXELS
    positions = np.clip(np.floor(positions), 0, last)
    shapes = np.rint(shapes.numpy(force=True) / SHAPE_STEP)
    steps = COLOUR_STEPS[: colours.shape[1]]
    colours = np.clip(np.rint(colours.numpy(force=True) / steps), -255, 255)
    return QuantizedCenters(*(part.astype(np.int64) for part in (positions, shapes, colours)))


def code_centers(coder: Coder, centers: QuantizedCenters, height: int, width: int):
    """Code the centers; return them in the order of the boxes in which they lie."""
    positions, depth, order = code_positions(coder, centers.positions, height, width)
    coder.end_section("position_bytes")
    shapes = code_shapes(coder, depth, centers.shapes[order])
    coder.end_section("shape_bytes")
    colours = code_colours(coder, positions, centers.colours[order])
    coder.end_section("colour_bytes")
    return QuantizedCenters(positions, shapes, colours)


def code_positions(coder: Coder, positions, height: int, width: int):
    """Code sorted positions; return them, the depth where each box held one, and their order."""
    ends = np.array([height, width]) * SUBPIXELS
    levels = 2 * int(ends.max() - 1).bit_length()
    bits = [(level % 2, (levels - level - 1) // 2) for level in range(levels)]
    keys = np.zeros(len(positions), np.int64)
    for axis, bit in bits:  # of rows and columns in turn, highest first
        keys = 2 * keys + (positions[:, axis] >> bit & 1)
    order = np.argsort(keys, kind="stable")
    positions = positions[order]
    model = AdaptiveModel(SPLIT_PRIOR, 4096)
    corners = np.zeros((1, 2), np.int64)  # of the boxes that hold centers: the lowest position
    counts = np.full(1, len(positions))
    depth = np.zeros(1, np.int64)
    for axis, bit in bits:
        in_first = ~(positions[:, axis] >> bit) & 1
        in_first = np.add.reduceat(in_first, np.cumsum(counts) - counts)
        second = corners.copy()
        second[:, axis] += 1 << bit
        coded = counts.copy()  # all lie in the first, where the second is outside the picture
        divided = second[:, axis] < ends[axis]
        few = np.flatnonzero(divided & (counts <= MODELLED_COUNT))
        coded[few] = coder.symbols(model, counts[few] - 1, in_first[few])
        many = np.flatnonzero(divided & (counts > MODELLED_COUNT))
        coded[many] = coder.uniform(counts[many] + 1, in_first[many])
        in_first = np.minimum(coded, counts)  # only a forged file says more
        depth = np.repeat(depth + (counts > 1), 2)
        corners = np.stack([corners, second], 1).reshape(-1, 2)
        counts = np.stack([in_first, counts - in_first], 1).ravel()
        depth, corners, counts = (part[counts > 0] for part in (depth, corners, counts))
    return np.repeat(corners, counts, 0), np.repeat(depth, counts), order


def code_shapes(coder: Coder, depth, shapes):
    """Code m less what the depth predicts, then p and q, each by its own statistics."""
    predicted = np.rint((depth - depth.max()) * (log(2) / SHAPE_STEP) * 0.7).astype(np.int64)
    predicted = predicted[:, None] * [1, 0, 0]
    parts = []
    for part in (shapes - predicted).T:
        parts.append(coder.integers(AdaptiveModel.geometric([6.0]), 0 * depth, part))
    return np.stack(parts, 1) + predicted


def code_colours(coder: Coder, positions, colours):
    """Code colours in ever finer subsets, channel after channel, as errors of a prediction."""
    models = [AdaptiveModel.geometric(means) for means in COLOUR_ERRORS[: colours.shape[1]]]
    result = np.zeros(colours.shape, np.int64)
    known = np.arange(0)
    for stride in STRIDES:
        subset = np.arange(0, len(positions), stride)
        new = np.setdiff1d(subset, known, assume_unique=True)
        predicted, contexts = _predict_colours(positions, result, known, new)
        for channel, model in enumerate(models):
            error = colours[new, channel] - predicted[:, channel]
            error = coder.integers(model, contexts, error)
            result[new, channel] = predicted[:, channel] + error
            if channel == 0:
                contexts = np.minimum(np.abs(error), 4)  # of chroma
        known = subset
    return result


def _predict_colours(positions, colours, known, new):
    """Return means of the nearest known colours, and classes 0 ... 4 of how their luma differs."""
    if not len(known):
        usual = [int(0.87 / COLOUR_STEPS[0]), 0, 0]
        return np.tile(usual, (len(new), 1)), np.full(len(new), 4)
    candidates = range(1, min(2 * ANCHORS, len(known)) + 1)
    _, index = cKDTree(positions[known]).query(positions[new], candidates)
    distance = ((positions[known][index] - positions[new][:, None]) ** 2).sum(2)
    keys = np.sort(distance * len(known) + index)  # of integers: the same ties everywhere
    distance, index = np.divmod(keys[:, :ANCHORS], len(known))
    colours = colours[known[index]]
    weights = np.maximum((1 << 20) // (16 + distance), 1)[..., None]
    total = weights.sum(1)
    predicted = ((colours * weights).sum(1) + total // 2) // total
    luma_range = np.ptp(colours[..., 0], axis=1)
    return predicted, np.searchsorted([2, 4, 7, 11], luma_range)
