"""Centers as whole numbers, and their way into bytes and back: where they are, their shapes, their colours.

Places are coded by halving the picture and saying how many centers lie in the first half, down to half a pixel; the
depth at which a center is alone tells about its size. A colour is told as the difference from the mean of the three
nearest centers that are known already. All of it is integer arithmetic: both sides agree on every machine.
"""

from math import log
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from scipy.spatial import cKDTree
from torch import Tensor

from nnlib.image_codec.entropy_coder import AdaptiveModel, Coder, magnitudes

FINE = 2  # places a pixel, along each side
SHAPE_STEP, LUMA_STEP, CHROMA_STEP = 0.2, 0.06, 0.08
SHAPE_LIMITS = (
    (-10.0, -4.0, -4.0),
    (3.0, 4.0, 4.0),
)  # of m, p, q: widths from a fifth of a pixel to 150 pixels
COUNTED = 16  # up to so many centers in a box, how they split is learned
WAVES = 5  # the first has every 32nd center, each next one as many as are known
ANCHORS = 3


class QuantizedCenters(NamedTuple):
    """Quantised centers: places [N, 2] in 1 / FINE pixels, shapes [N, 3] and colours [N, C] in steps, all int64."""

    places: Int64[np.ndarray, "N 2"]
    shapes: Int64[np.ndarray, "N 3"]
    colours: Int64[np.ndarray, "N C"]

    def tensors(self) -> tuple[Float[Tensor, "N 2"], Float[Tensor, "N 3"], Float[Tensor, "N C"]]:
        """Places in pixels, shapes and opponent colours in 0..1, as float32."""
        parts = (
            (self.places + 0.5) / FINE,
            self.shapes * SHAPE_STEP,
            self.colours * colour_steps(self.colours.shape[1]),
        )
        return tuple(torch.from_numpy(part.astype(np.float32)) for part in parts)


def colour_steps(channels: int) -> np.ndarray:
    return np.array([LUMA_STEP, CHROMA_STEP, CHROMA_STEP])[:channels]


def snap(
    places: Tensor, shapes: Tensor, colours: Tensor, height: int, width: int
) -> QuantizedCenters:
    """The nearest centers that can be written."""
    last = np.array([height, width]) * FINE - 1
    places = np.clip(np.floor(places.numpy().astype(float) * FINE), 0, last)
    low, high = (np.rint(np.array(limit) / SHAPE_STEP) for limit in SHAPE_LIMITS)
    shapes = np.clip(np.rint(shapes.numpy() / SHAPE_STEP), low, high)
    colours = np.clip(np.rint(colours.numpy() / colour_steps(colours.shape[1])), -255, 255)
    return QuantizedCenters(*(part.astype(np.int64) for part in (places, shapes, colours)))


def code_centers(
    coder: Coder,
    count: int,
    height: int,
    width: int,
    channels: int,
    marks: QuantizedCenters | None = None,
) -> QuantizedCenters:
    """Write the centers, or read `count` of them. Returns them in the order of the boxes that they lie in."""
    places, depth, order = code_positions(coder, count, height, width, marks and marks.places)
    shapes = code_shapes(coder, depth, marks and marks.shapes[order])
    return QuantizedCenters(
        places, shapes, code_colours(coder, places, channels, marks and marks.colours[order])
    )


def code_positions(coder: Coder, count: int, height: int, width: int, places=None):
    """Halve a square of 2^k fine places: each box says how many of its centers lie in its first half.

    Returns places [N, 2], the depth at which each was alone [N], and where each was in the places given [N].
    """
    ends = np.array([height, width]) * FINE
    levels = 2 * int(ends.max() - 1).bit_length()
    order, keys = (None, None) if places is None else _ordered(places, levels)
    table, boxes, counts, depth = (
        _splits(),
        np.zeros(1, np.int64),
        np.full(1, count),
        np.zeros(1, np.int64),
    )
    for level in range(levels):
        left = levels - level - 1
        halves = np.stack([2 * boxes, 2 * boxes + 1], 1)
        held = (
            None if keys is None else np.diff(np.searchsorted(keys, halves << left), axis=1)[:, 0]
        )
        corner = _unkeyed(halves[:, 1], level + 1) << ((left + np.array([0, 1])) // 2)
        first = _split(coder, table, counts, (corner < ends).all(1), held)
        depth = np.repeat(depth + (counts > 1), 2)
        boxes, counts = halves.ravel(), np.stack([first, counts - first], 1).ravel()
        boxes, counts, depth = (part[counts > 0] for part in (boxes, counts, depth))
    return np.repeat(_unkeyed(boxes, levels), counts, 0), np.repeat(depth, counts), order


def _split(coder: Coder, table: AdaptiveModel, counts, inside, held):
    """How many of each box's centers lie in its first half; where the second is outside the picture, all do."""
    left = counts.copy()
    for some, through in (
        (np.flatnonzero(inside & (counts <= COUNTED)), lambda n, v: coder.symbols(table, n - 1, v)),
        (np.flatnonzero(inside & (counts > COUNTED)), lambda n, v: coder.below(n + 1, v)),
    ):
        found = through(counts[some], None if held is None else held[some])
        left[some] = np.minimum(found, counts[some])  # only a forged file says more
    return left


def _splits() -> AdaptiveModel:
    halves = np.zeros((COUNTED, COUNTED + 1))
    row = np.ones(1)
    for n in range(COUNTED):
        row = (np.append(row, 0) + np.append(0, row)) / 2
        halves[n, : n + 2] = row + 0.3 / (
            n + 2
        )  # centers gather, so splits are less even than chance
    return AdaptiveModel(halves, 4096)


def _ordered(places, levels: int):
    keys = np.zeros(len(places), np.int64)
    for level in range(levels):  # alternate the bits of row and column, highest first
        keys = keys * 2 + ((places[:, level % 2] >> (levels // 2 - 1 - level // 2)) & 1)
    order = np.argsort(keys, kind="stable")
    return order, keys[order]


def _unkeyed(keys, levels: int):
    places = np.zeros((len(keys), 2), np.int64)
    for level in range(levels):
        side = places[:, level % 2]
        side[:] = side * 2 + ((keys >> (levels - 1 - level)) & 1)
    return places


def code_shapes(coder: Coder, depth, shapes=None):
    """m less what the depth tells of it, then p and q; each learns its own statistics."""
    usual = np.rint((depth - depth.max(initial=0)) * (log(2) / SHAPE_STEP) * 0.7).astype(np.int64)
    found = []
    for part, mean in enumerate((6.0, 6.0, 6.0)):
        given = None if shapes is None else shapes[:, part] - (usual if part == 0 else 0)
        part = coder.integers(magnitudes([mean]), np.zeros(len(depth), np.int64), given)
        found.append(part + usual if not found else part)
    return np.stack(found, 1)


def code_colours(coder: Coder, places, channels: int, colours=None):
    """Channel after channel within a wave; how far the anchors differ, and the luma's own surprise, tell the spread."""
    tables = [
        magnitudes([1.0, 2.0, 3.0, 5.0, 8.0]),
        *(magnitudes([0.5, 1.0, 1.5, 2.0, 3.0]) for _ in range(2)),
    ]
    found = np.zeros((len(places), channels), np.int64)
    new = np.arange(0, len(places), 2**WAVES)
    expected, spread = np.tile([int(0.87 / LUMA_STEP), 0, 0], (len(new), 1)), np.full(len(new), 4)
    for stride in (0, *(2**wave for wave in reversed(range(WAVES)))):
        if stride:
            new = np.arange(stride, len(places), 2 * stride)
            expected, spread = _expected(places, found, np.arange(0, len(places), 2 * stride), new)
        for channel in range(channels):
            given = None if colours is None else colours[new, channel] - expected[:, channel]
            rest = coder.integers(tables[channel], spread, given)
            found[new, channel] = rest + expected[:, channel]
            spread = np.minimum(np.abs(rest), 4) if channel == 0 else spread
    return found


def _expected(places, colours, known, new):
    """The mean of the nearest known colours, and how far these differ in luma, in classes 0 ... 4."""
    count = min(2 * ANCHORS, len(known))
    if not len(new):
        return np.zeros((0, 3), np.int64), np.zeros(0, np.int64)
    _, index = cKDTree(places[known]).query(places[new], k=range(1, count + 1))
    distance = ((places[known][index] - places[new][:, None]) ** 2).sum(2)
    best = np.lexsort((index, distance))[
        :, :ANCHORS
    ]  # in integers, so that ties fall alike everywhere
    index, distance = (
        known[np.take_along_axis(index, best, 1)],
        np.take_along_axis(distance, best, 1),
    )
    weight = np.maximum((1 << 20) // (16 + distance), 1)
    total = weight.sum(1)[:, None]
    expected = ((colours[index] * weight[..., None]).sum(1) + total // 2) // total
    luma = colours[index, 0]
    return expected, np.searchsorted([2, 4, 7, 11], luma.max(1) - luma.min(1))
