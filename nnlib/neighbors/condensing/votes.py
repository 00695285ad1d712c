"""What the centers so far say of a block's samples, while a pass over them makes more of them centers.

The centers before the block are compared with all of it in one product; those that it adds meanwhile join the sums of
the samples that are still to come. Which of the classes holds what depends on the kernel.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from nnlib.attention import (
    OnlineWeightedMean,
    QuantileGrid,
    accumulate,
    add_products,
    average_of,
    blockwise_average,
    uniform_knn_average,
)
from nnlib.distances import take_rows

BLOCK_ROWS = 2048  # samples compared with all centers at once
AHEAD = 256  # samples that meet a new center as soon as it is one
KEPT_ROWS = 256  # of kept distances weighed at a time


class CondensingRule(NamedTuple):
    """What a center votes for, which samples of a batch are wrong, and when the batch is good enough."""

    values: Callable[[Tensor], Float[Tensor, "N V"]]
    evaluate: Callable[
        [Float[Tensor, "N V"], Tensor], tuple[Tensor, Tensor]
    ]  # which are wrong, and how good it is
    target: float
    rounds: int | None
    batch_size: int
    max_neighbors: int


class AdditiveVotes:
    """The running averages of a block's samples, where every center's weight stands by itself."""

    def __init__(self, x, values, centers, kernel, rule):
        self.values, self.metric = values, kernel.distance(x, x, x.dtype)
        self.rows = self.metric.prepare(x)
        self.state = OnlineWeightedMean(kernel, len(x), values.shape[1], x, self.metric.scale)
        accumulate(
            self.state, self.rows, centers.x, LazyValues(centers.y, rule.values), self.metric
        )
        self.step, self.until = max(1, AHEAD // rule.batch_size) * rule.batch_size, 0
        self.picked = torch.empty(0, dtype=torch.int64, device=x.device)

    def add(self, picked: Int64[Tensor, " K"], start: int) -> None:
        """Make samples of the block centers, for those from `start` on."""
        self.picked = torch.cat([self.picked, picked])
        each = torch.arange(len(picked), device=picked.device)
        self._count(picked, slice(start, self.until), (picked - start, each))

    def average(self, rows: slice) -> Float[Tensor, "N V"]:
        """What the centers so far say of some samples of the block, which are asked for in their order."""
        if rows.stop > self.until:  # those picked meanwhile meet the next samples all at once
            self.until = rows.start + self.step
            self._count(self.picked, slice(rows.start, self.until))
        return self.state.value(rows)

    def _count(self, picked, rows: slice, same=None) -> None:
        if len(picked) and rows.start < rows.stop:
            distance, _ = self.metric.pairwise(
                take_rows(self.rows, rows), take_rows(self.rows, picked), same=same
            )
            self.state.add(distance, self.values[picked], rows)


class NearestScaledVotes:
    """The same where a weight depends on the nearest center: sums over the centers before the block, and its own."""

    def __init__(self, x, values, centers, kernel, rule):
        self.values, self.kernel, self.metric = values, kernel, kernel.distance(x, x, x.dtype)
        self.x, self.rows, self.picked = (
            x,
            self.metric.prepare(x),
            torch.empty(0, dtype=torch.int64, device=x.device),
        )
        self._meet(centers, rule)
        self.sums = self._sums(slice(None), self.near)

    def add(self, picked, start):
        self.picked = torch.cat([self.picked, picked])

    def average(self, rows):
        """The sums kept, made again where a picked center is nearest, with the picked ones' weights added."""
        near, sums = self.near[rows], self.sums[rows]
        if len(self.picked):
            inside = (self.picked >= rows.start).nonzero()[
                :, 0
            ]  # a batch is picked from while it is asked for
            same = self.picked[inside] - rows.start, inside
            own, _ = self.metric.pairwise(
                take_rows(self.rows, rows), take_rows(self.rows, self.picked), same=same
            )
            least = own.amin(1)
            nearer = (least < near).nonzero()[:, 0]
            near[nearer] = least[nearer]
            sums[nearer] = self._sums(nearer + rows.start, near[nearer])
            sums = self._add(sums.clone(), own, near, self.values[self.picked])
        return average_of(sums)

    def _add(self, sums, distance, near, values):
        """Sums of weights that are not taken beside the nearest one's, as a cone that is searched gives them."""
        reach = self.kernel.support_radius(near, self.metric.scale)
        add_products(
            sums,
            self.kernel.relative_weights(distance, near, self.metric.scale).mul_(reach[:, None]),
            values,
        )
        return sums

    def _meet(self, centers, rule) -> None:
        """Look at the centers before the block once, and find each sample's nearest of them: `near`."""
        raise NotImplementedError

    def _sums(
        self, index: slice | Int64[Tensor, " K"], near: Float[Tensor, " K"]
    ) -> Float[Tensor, "K W"]:
        """Their sums for some samples, whose nearest center, of all, is as far as `near`."""
        raise NotImplementedError


class CachedDistanceVotes(NearestScaledVotes):
    """The distances to all centers before the block are kept."""

    def _meet(self, centers, rule):
        self.before = rule.values(centers.y[:]) if len(centers) else self.values[:0]
        self.distance = distances(self.rows, centers.x, self.metric, self.x)
        self.near = (
            self.distance.amin(1) if len(centers) else self.x.new_full((len(self.x),), torch.inf)
        )

    def _sums(self, index, near):
        sums = self.x.new_zeros(len(near), self.values.shape[1] + 1)
        if len(self.before):
            for part, kept in zip(
                sums.split(KEPT_ROWS), self.distance[index].split(KEPT_ROWS), strict=True
            ):
                beside = near[: len(part)]
                near = near[len(part) :]
                self._add(
                    part,
                    self.metric.workspace.beside("weights", kept).copy_(kept),
                    beside,
                    self.before,
                )
        return sums


class GridVotes(NearestScaledVotes):
    """Only near centers weigh: those before the block are sorted, those of the block all measured."""

    def _meet(self, centers, rule):
        encoded = LazyValues(centers.y, rule.values)
        self.cone = QuantileGrid(
            centers.x[:].to(self.x.dtype), encoded, self.kernel, self.metric.frame
        )
        self.near = self.cone.nearest(self.x)

    def _sums(self, index, near):
        return self.cone.sums(self.x[index], near)


class UniformKNNVotes:
    """The same where the nearest few share the weight: all distances are kept and sorted anew."""

    def __init__(self, x, values, centers, kernel, rule):
        self.count, self.metric, self.own = kernel.k, kernel.distance(x, x, x.dtype), values
        self.rows, self.picked = (
            self.metric.prepare(x),
            torch.empty(0, dtype=torch.int64, device=x.device),
        )
        self.distance = distances(self.rows, centers.x, self.metric, x)
        self.before = rule.values(centers.y[:]) if len(centers) else values[:0]

    def add(self, picked, start):
        self.picked = torch.cat([self.picked, picked])

    def average(self, rows):
        """The mean over the nearest of all centers, those picked of the block among them."""
        distance = self.distance[rows]
        if len(self.picked):
            own, _ = self.metric.pairwise(
                take_rows(self.rows, rows), take_rows(self.rows, self.picked)
            )
            distance = torch.cat([distance, own], 1)
        index = distance.topk(min(self.count, distance.shape[1]), largest=False).indices
        return torch.cat([self.before, self.own[self.picked]])[index].mean(1)


def distances(rows, centers, metric, like: Tensor) -> Float[Tensor, "N M"]:
    """All distances from a block's samples `like`, prepared as `rows`, to the centers."""
    length = centers.shape[0]
    kept = like.new_empty(len(like), length)
    for start in range(0, length, BLOCK_ROWS):
        cols = slice(start, min(start + BLOCK_ROWS, length))
        kept[:, cols], _ = metric.pairwise(rows, metric.prepare(centers[cols].to(like.dtype)))
    return kept


class RecomputedVotes:
    """The same for batches too large to keep anything of: every round measures all centers anew."""

    def __init__(self, x, values, centers, kernel, rule):
        self.x, self.centers, self.kernel, self.rule = x, centers, kernel, rule

    def add(self, picked, start):
        """Nothing: the centers themselves are looked at."""

    def average(self, rows):
        """The average over all centers, or over the nearest, from the start: nothing is kept between calls."""
        x, values = self.x[rows], LazyValues(self.centers.y, self.rule.values)
        metric = self.kernel.distance(x, x, x.dtype)
        if self.kernel.k is not None:
            return uniform_knn_average(x, self.centers.x, values, self.kernel, metric)
        return blockwise_average(x, self.centers.x, values, self.kernel, metric)[0]


class LazyValues:
    """Targets that are turned into the values to vote with a slice at a time."""

    def __init__(self, targets, encode: Callable[[Tensor], Tensor]):
        self.targets, self.encode = targets, encode
        self.shape = (targets.shape[0], encode(targets[:1]).shape[1])

    def __getitem__(self, cols) -> Tensor:
        return self.encode(self.targets[cols])
