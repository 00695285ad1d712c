"""What the centers so far predict for a block of samples, some of which become centers meanwhile.

The centers before the block are compared with all of it in one product; those that it adds join
the sums of the samples still to come. What may be cached depends on the kernel.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

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
    uniform_knn_average,
)
from nnlib.distances import take_rows
from nnlib.neighbors.condensing.centers import GrowingCenters

BLOCK_ROWS = 2048  # samples compared with all centers at once
LOOKAHEAD = 256  # samples that meet a new center as soon as it is one
WEIGHED_ROWS = 256  # of cached distances turned into weights at a time


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


@runtime_checkable
class VoteCache(Protocol):
    """Predictions for a block by the centers so far; made anew for each block.

    Its constructor takes the block's samples and values, the centers and the rule.
    """

    def add(self, chosen: Int64[Tensor, " K"], start: int) -> None:
        """Make samples of the block centers, for those from `start` on."""

    def average(self, rows: slice) -> Float[Tensor, "N V"]:
        """Predict some samples of the block; slices are asked for in their order."""


class LazyValues:
    """Targets that are encoded as values to vote for a slice at a time."""

    def __init__(self, targets, encode: Callable[[Tensor], Tensor]):
        self.targets = targets
        self.encode = encode
        self.shape = (targets.shape[0], encode(targets[:1]).shape[1])

    def __getitem__(self, cols) -> Tensor:
        return self.encode(self.targets[cols])


class _BlockVotes:
    """A block's samples prepared for measuring, and the numbers of those that became centers."""

    def __init__(self, x, values, centers: GrowingCenters, rule: CondensingRule):
        self.x = x
        self.values = values
        self.kernel = rule.kernel
        self.distance = rule.kernel.distance(x, x, x.dtype)
        self.points = self.distance.prepare(x)
        self.chosen = torch.empty(0, dtype=torch.int64, device=x.device)
        self._compare(centers, rule)

    def add(self, chosen, start):
        self.chosen = torch.cat([self.chosen, chosen])

    def _compare(self, centers: GrowingCenters, rule: CondensingRule) -> None:
        """Measure the centers before the block, once."""
        self.earlier_values = rule.values(centers.y) if len(centers) else self.values[:0]
        self.distances = self.x.new_empty(len(self.x), len(centers))
        for start in range(0, len(centers), BLOCK_ROWS):
            cols = slice(start, min(start + BLOCK_ROWS, len(centers)))
            points = self.distance.prepare(centers.x[cols].to(self.x.dtype))
            self.distances[:, cols] = self.distance.pairwise(self.points, points)[0]

    def _pairwise(self, rows: slice, chosen: Int64[Tensor, " K"], same=None) -> Tensor:
        """Measure samples against chosen ones; `same`: pairs of a sample with itself."""
        samples = take_rows(self.points, rows)
        return self.distance.pairwise(samples, take_rows(self.points, chosen), same=same)[0]


class AdditiveVotes(_BlockVotes):
    """Running averages, where a center's weight does not depend on the other centers."""

    def _compare(self, centers, rule):
        encoded = LazyValues(centers.y, rule.values)
        width = self.values.shape[1]
        scale = self.distance.scale
        self.mean = OnlineWeightedMean(self.kernel, len(self.x), width, self.x, scale)
        accumulate(self.mean, self.points, centers.x, encoded, self.distance)
        self.step = max(1, LOOKAHEAD // rule.batch_size) * rule.batch_size
        self.until = 0

    def add(self, chosen, start):
        super().add(chosen, start)
        each = torch.arange(len(chosen), device=chosen.device)
        self._count(chosen, slice(start, self.until), (chosen - start, each))

    def average(self, rows):
        """Running means, after the centers chosen since have joined those of the next samples."""
        if rows.stop > self.until:  # earlier chosen ones meet the next samples all at once
            self.until = rows.start + self.step
            self._count(self.chosen, slice(rows.start, self.until))
        return self.mean.value(rows)

    def _count(self, chosen, rows: slice, same=None) -> None:
        if len(chosen) and rows.start < rows.stop:
            self.mean.add(self._pairwise(rows, chosen, same), self.values[chosen], rows)


class CachedDistanceVotes(_BlockVotes):
    """Sums of weights that depend on the nearest center; distances to earlier ones are cached."""

    def __init__(self, x, values, centers, rule):
        super().__init__(x, values, centers, rule)
        self.nearest = self._nearest()
        self.sums = self._sums(slice(None), self.nearest)

    def average(self, rows):
        """Means over earlier centers, cached, and over chosen ones, measured now."""
        nearest = self.nearest[rows]
        sums = self.sums[rows]
        if len(self.chosen):
            inside = (self.chosen >= rows.start).nonzero()[:, 0]
            same = (self.chosen[inside] - rows.start, inside)
            distances = self._pairwise(rows, self.chosen, same)
            smallest = distances.amin(1)
            nearer = (smallest < nearest).nonzero()[:, 0]
            nearest[nearer] = smallest[nearer]
            sums[nearer] = self._sums(nearer + rows.start, nearest[nearer])
            sums = self._add(sums.clone(), distances, nearest, self.values[self.chosen])
        return average_of(sums)

    def _add(self, sums, distances, nearest, values):
        """Add weights as a grid search sums them: not relative to the nearest center's."""
        scale = self.distance.scale
        radius = self.kernel.support_radius(nearest, scale)
        weights = self.kernel.relative_weights(distances, nearest, scale).mul_(radius[:, None])
        add_products(sums, weights, values)
        return sums

    def _nearest(self) -> Float[Tensor, " N"]:
        if self.distances.shape[1] == 0:
            return self.x.new_full((len(self.x),), torch.inf)
        return self.distances.amin(1)

    def _sums(self, rows, nearest: Float[Tensor, " K"]) -> Float[Tensor, "K W"]:
        """Sum over the earlier centers, for samples whose nearest center of all is that far."""
        sums = self.x.new_zeros(len(nearest), self.values.shape[1] + 1)
        if len(self.earlier_values):
            parts = (part.split(WEIGHED_ROWS) for part in (sums, self.distances[rows], nearest))
            for part, distances, smallest in zip(*parts, strict=True):
                copied = self.distance.workspace.like("weights", distances).copy_(distances)
                self._add(part, copied, smallest, self.earlier_values)
        return sums


class GridVotes(CachedDistanceVotes):
    """The same within a support radius: earlier centers are searched, new ones measured."""

    def _compare(self, centers, rule):
        encoded = LazyValues(centers.y, rule.values)
        x = centers.x.to(self.x.dtype)
        self.grid = QuantileGrid(x, encoded, self.kernel, self.distance.preconditioner)

    def _nearest(self):
        return self.grid.nearest(self.x)

    def _sums(self, rows, nearest):
        return self.grid.sums(self.x[rows], nearest)


class UniformKNNVotes(_BlockVotes):
    """Means over the k nearest centers: all distances are cached and sorted anew."""

    def average(self, rows):
        """Means over the k nearest of earlier and chosen centers."""
        distances = self.distances[rows]
        if len(self.chosen):
            distances = torch.cat([distances, self._pairwise(rows, self.chosen)], 1)
        count = min(self.kernel.k, distances.shape[1])
        index = distances.topk(count, largest=False).indices
        return torch.cat([self.earlier_values, self.values[self.chosen]])[index].mean(1)


class RecomputedVotes:
    """Averages over all centers anew in every round, for batches too large to cache."""

    def __init__(self, x, values, centers, rule):
        self.x = x
        self.centers = centers
        self.rule = rule

    def add(self, chosen, start):
        """Do nothing: `average` looks at the centers themselves."""

    def average(self, rows):
        """Averages over all centers so far."""
        kernel = self.rule.kernel
        x = self.x[rows]
        values = LazyValues(self.centers.y, self.rule.values)
        distance = kernel.distance(x, x, x.dtype)
        if kernel.k is not None:
            return uniform_knn_average(x, self.centers.x, values, kernel, distance)
        return blockwise_average(x, self.centers.x, values, kernel, distance)[0]
