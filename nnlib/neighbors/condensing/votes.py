"""What the centers so far predict for a block of samples, some of which become centers meanwhile.

The centers before the block are compared with all of it at once, perhaps by another thread; those
that come later join what is kept of the comparison, which depends on the kernel.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from nnlib.attention import (
    Kernel,
    OnlineWeightedMean,
    QuantileGrid,
    accumulate,
    add_products,
    average_of,
    blockwise_average,
    blockwise_nearest,
    mean_of_rows,
    merge_topk,
    uniform_knn_average,
)
from nnlib.distances import take_rows
from nnlib.neighbors.condensing.centers import GrowableTensor, GrowingCenters

LOOKAHEAD = 256  # samples that meet a new center as soon as it is one
PART = 1024  # centers whose distances are kept at a time, and samples predicted by a thread


class CondensingRule(NamedTuple):
    """How centers vote, for what, which samples are wrong, and when a batch is good enough.

    `evaluate(predictions, targets)` gives a mask of the wrong samples and the batch's quality.
    """

    kernel: Kernel
    values: Callable[[Tensor], Float[Tensor, "N V"]]
    evaluate: Callable[[Float[Tensor, "N V"], Tensor], tuple[Tensor, Tensor]]
    target: float
    rounds: int | None
    batch_size: int
    max_neighbors: int


class LazyValues:
    """Targets that are encoded as values to vote for a slice at a time."""

    def __init__(self, targets, encode: Callable[[Tensor], Tensor]):
        self.targets = targets
        self.encode = encode
        self.shape = (targets.shape[0], encode(targets[:1]).shape[1])

    def __getitem__(self, cols) -> Tensor:
        return self.encode(self.targets[cols])


class AdditiveVotes:
    """Running averages, where a center's weight does not depend on the other centers.

    Takes a block's samples, the centers, and how many of these the whole block is compared with.
    """

    def __init__(self, x, centers: GrowingCenters, compared: int, rule: CondensingRule):
        self.x = x
        self.centers = centers
        self.compared = compared
        self.counted = compared  # for the next samples, which end at `until`
        self.until = 0
        self.rule = rule
        self.kernel = rule.kernel
        self.distance = rule.kernel.distance(x, x, x.dtype)
        self.points = self.distance.prepare(x)
        self._compare(centers.x[:compared], LazyValues(centers.y[:compared], rule.values))

    def update(self, start: int, chosen: Int64[Tensor, " K"] | None = None) -> None:
        """Count new centers for the next samples, from `start` on; they may be `chosen` of these.

        Slices are asked for in their order.
        """
        if self.until == 0:  # the block met others while these became centers
            self._count(slice(0, len(self.x)))
            self.compared = self.counted
        if start >= self.until:
            self.until = start + max(1, LOOKAHEAD // self.rule.batch_size) * self.rule.batch_size
            self.counted = self.compared
        self._count(slice(start, min(self.until, len(self.x))), chosen)

    def average(self, rows: slice) -> Float[Tensor, "N V"]:
        """Predict some samples of the block."""
        return self.mean.value(rows)

    def _compare(self, x, values: LazyValues) -> None:
        scale = self.distance.scale
        self.mean = OnlineWeightedMean(self.kernel, len(self.x), values.shape[1], self.x, scale)
        accumulate(self.mean, self.points, x, values, self.distance)

    def _count(self, rows: slice, chosen=None) -> None:
        new = slice(self.counted, len(self.centers))
        if new.start == new.stop:
            return
        self.counted = new.stop
        if chosen is None:
            c = self.distance.prepare(self.centers.x[new].to(self.x.dtype))
            same = None
        else:
            c = take_rows(self.points, chosen)
            same = (chosen - rows.start, torch.arange(len(chosen), device=chosen.device))
        distances = self.distance.pairwise(take_rows(self.points, rows), c, same=same)[0]
        self._add(distances, self.rule.values(self.centers.y[new]), rows)

    def _add(self, distances, values, rows: slice) -> None:
        self.mean.add(distances, values, rows)


class UniformKNNVotes(AdditiveVotes):
    """Means over the k nearest centers so far."""

    def average(self, rows):
        values = LazyValues(self.centers.y, self.rule.values)
        return mean_of_rows(values, self.index[rows], self.x.dtype)

    def _compare(self, x, values):
        k = self.kernel.k
        self.nearest, self.index = blockwise_nearest(self.x, x, k, self.distance)

    def _add(self, distances, values, rows):
        first = self.counted - len(values)
        merge_topk(self.nearest[rows], self.index[rows], distances, first)


class CachedDistanceVotes(AdditiveVotes):
    """Sums of weights that depend on the nearest center: anew from distances, when that changes."""

    searched = 0  # the first centers, whose distances are not kept

    def average(self, rows):
        return average_of(self.sums[rows])

    def _compare(self, x, values):
        self._allocate(len(x) + PART, values.shape[1])
        for start in range(0, len(x), PART):
            cols = slice(start, start + PART)
            points = self.distance.prepare(x[cols].to(self.x.dtype))
            distances = self.distance.pairwise(points, self.points)[0]
            self.distances.extend(len(distances)).copy_(distances)
            self.values.extend(len(distances)).copy_(values[cols])
            self.nearest = torch.minimum(self.nearest, distances.amin(0))
        self.sums = self._sum(slice(None), self.nearest)

    def _allocate(self, capacity: int, width: int) -> None:
        self.distances = GrowableTensor(self.x.new_empty(capacity, len(self.x)), 0)
        self.values = GrowableTensor(self.x.new_empty(capacity, width), 0)
        self.nearest = self.x.new_full((len(self.x),), torch.inf)

    def _add(self, distances, values, rows):
        # Those that only earlier samples have met are overwritten.
        self.distances.length = self.counted - len(values) - self.searched
        self.values.length = self.distances.length
        nearest = self.nearest[rows]
        sums = self.sums[rows]
        smallest = distances.amin(1)
        nearer = (smallest < nearest).nonzero()[:, 0]
        if len(nearer):
            nearest[nearer] = smallest[nearer]
            sums[nearer] = self._sum(nearer + rows.start, nearest[nearer])
        self.distances.extend(len(values))[:, rows] = distances.T
        self.values.extend(len(values)).copy_(values)
        self._weigh(sums, distances, nearest, values)

    def _sum(self, rows, nearest: Float[Tensor, " K"]) -> Float[Tensor, "K W"]:
        """Sum anew over the centers, for samples whose nearest is that far."""
        sums = self._search(rows, nearest)
        for start in range(0, self.distances.length, PART):
            cols = slice(start, min(start + PART, self.distances.length))
            distances = self.distances.storage[cols, rows].clone()
            self._weigh(sums, distances.T, nearest, self.values.storage[cols])
        return sums

    def _search(self, rows, nearest) -> Float[Tensor, "K W"]:
        """Sum over the centers whose distances are not kept."""
        return nearest.new_zeros(len(nearest), self.values.storage.shape[1] + 1)

    def _weigh(self, sums, distances, nearest, values) -> None:
        """Add weights as a grid search sums them: not relative to the nearest center's."""
        scale = self.distance.scale
        radius = self.kernel.support_radius(nearest, scale)
        weights = self.kernel.relative_weights(distances, nearest, scale)
        add_products(sums, weights.mul_(radius[:, None]), values)


class GridVotes(CachedDistanceVotes):
    """The same within a support radius: earlier centers are searched, new ones measured."""

    def _compare(self, x, values):
        self._allocate(PART, values.shape[1])
        self.searched = len(x)
        x = x.to(self.x.dtype)
        self.grid = QuantileGrid(x, values, self.kernel, self.distance.preconditioner)
        self.nearest = self.grid.nearest(self.x)
        self.sums = self._sum(slice(None), self.nearest)

    def _search(self, rows, nearest):
        return self.grid.sums(self.x[rows], nearest)


class RecomputedVotes:
    """Averages over all centers anew in every round, for batches too large to keep anything."""

    def __init__(self, start: Callable, x, centers: GrowingCenters, _, rule: CondensingRule):
        self.start = start
        self.x = x
        self.centers = centers
        self.rule = rule

    def update(self, start, chosen=None):
        """Do nothing: `average` looks at the centers themselves."""

    def average(self, rows):
        """Predict some samples, in several threads."""
        parts = [self.start(self._average, part) for part in self.x[rows].split(PART)]
        return torch.cat([part() for part in parts])

    def _average(self, x):
        kernel = self.rule.kernel
        values = LazyValues(self.centers.y, self.rule.values)
        distance = kernel.distance(x, x, x.dtype)
        if kernel.k is not None:
            return uniform_knn_average(x, self.centers.x, values, kernel, distance)
        return blockwise_average(x, self.centers.x, values, kernel, distance)[0]
