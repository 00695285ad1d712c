"""Averages and nearest centers without looking at all centers: for few features, on a CPU.

A k-d tree finds the nearest. Those within a radius are read off a grid whose lines are quantiles
of the centers: a row of cells is one run of memory, so that a query needs a few runs.
"""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from scipy.spatial import cKDTree
from torch import Tensor
from torch.nn.functional import embedding_bag

from nnlib._common.runtime import single_thread
from nnlib.attention.blockwise import (
    SUM_CENTERS,
    Averages,
    Exclude,
    Indices,
    PerQuery,
    Sums,
    average_of,
    with_ones,
    working_dtype,
)
from nnlib.attention.kernels import InfluenceCone, Kernel, UniformKNN
from nnlib.distances import Preconditioner

FEATURES = 3  # up to here few cells of a grid lie within a radius
PAIRS = 1 << 16  # of queries and centers weighed at a time, so that they stay in a cache
LAST_AXIS_FACTOR = 4  # times as many lines along a row of cells, where they cost nothing
MARGIN = 1 + 1e-5  # covers the rounding of a radius to float32
QUERIES = 1 << 17  # at a time

Queries = Float[Tensor, "B D"]
Centers = Float[Tensor, "M D"]
Numbers = Int[np.ndarray, " _"]


def unsupported_reason(kernel: Kernel, centers, *others: Tensor) -> str | None:
    """Why centers [M, D] can't be searched for a kernel, and what would do; None where they can.

    `others` are checked for gradients, and for NaN and infinity, which a tree can't place.
    """
    base = kernel.base if type(kernel) is UniformKNN else kernel
    euclidean = type(base).distance is Kernel.distance
    if type(kernel) not in (InfluenceCone, UniformKNN) or not euclidean:
        return f"with {kernel}: give InfluenceCone, or UniformKNN by a Euclidean distance"
    if centers.device.type != "cpu" or centers.shape[1] > FEATURES:
        found = f"{centers.shape[1]} features on {centers.device.type}"
        return f"with {found}: give at most {FEATURES} on cpu"
    if torch.is_grad_enabled() and any(part.requires_grad for part in others):
        return "gives no gradients: give tensors without, or use torch.no_grad()"
    if not all(bool(part.isfinite().all()) for part in others):
        return "with NaN or infinity: give finite numbers"
    return None


def tree_average(
    queries: Shaped[Tensor, "B D"],
    centers: Shaped[Tensor, "M D"],
    values,
    kernel: InfluenceCone,
    exclude: Exclude = None,
) -> Averages:
    """The averages that `attend` gives by a cone."""
    dtype = working_dtype(queries, centers)
    preconditioner = kernel.distance(queries.detach(), centers.detach(), dtype).preconditioner
    grid = QuantileGrid(centers.detach().to(dtype), values, kernel, preconditioner)
    averages = []
    for start in range(0, len(queries), QUERIES):
        part = slice(start, start + QUERIES)
        x = queries[part].detach().to(dtype)
        skip = None if exclude is None else exclude[part]
        averages.append(average_of(grid.sums(x, grid.nearest(x, skip), skip)))
    return torch.cat(averages)


def tree_nearest(
    queries, centers, count: int, kernel: Kernel, exclude=None
) -> tuple[Tensor, Tensor]:
    """What `nearest` gives, for a kernel by Euclidean distance."""
    dtype = working_dtype(queries, centers)
    preconditioner = kernel.distance(queries.detach(), centers.detach(), dtype).preconditioner
    tree = KDTreeIndex(centers.detach().to(dtype), preconditioner)
    distance, index = tree.nearest(queries.detach().to(dtype), count, exclude)
    return (distance / preconditioner.scale).to(dtype), index


class KDTreeIndex:
    """The nearest of fixed centers, by a k-d tree."""

    def __init__(self, centers: Centers, preconditioner: Preconditioner):
        self.preconditioner = preconditioner
        self.tree = cKDTree(preconditioner(centers.double()).numpy())

    def nearest(
        self, x: Queries, count: int, exclude: Exclude = None
    ) -> tuple[Float[Tensor, "B K"], Indices]:
        """Preconditioned float64 distances, and indices; inf and -1 where none is left."""
        ranks = np.arange(1, 1 + count + (exclude is not None))
        points = self.preconditioner(x.double()).numpy()
        neighbors = self.tree.query(points, ranks, workers=torch.get_num_threads())
        distance, index = map(torch.from_numpy, neighbors)
        if exclude is not None:
            distance.masked_fill_(index == exclude[:, None], torch.inf)
            distance, order = distance.sort(dim=1, stable=True)
            distance = distance[:, :count]
            index = index.gather(1, order)[:, :count]
        return distance, index.masked_fill_(distance.isinf(), -1)


class QuantileGrid:
    """Sums over fixed centers for a cone, which weighs the few within a radius of a query."""

    def __init__(
        self, centers: Centers, values, kernel: InfluenceCone, preconditioner: Preconditioner
    ):
        self.tree = KDTreeIndex(centers, preconditioner)
        self.kernel = kernel
        self.preconditioner = preconditioner
        self.centers = preconditioner(centers)
        points = self.centers.numpy()
        features = points.shape[1]
        rows = max(1, round(len(centers) ** (1 / features)))
        self.shape = (rows,) * (features - 1) + (LAST_AXIS_FACTOR * rows,)
        columns = zip(points.T, self.shape, strict=True)
        self.lines = [_quantiles(column, count) for column, count in columns]
        cell = np.ravel_multi_index(self._cells(points), self.shape)
        self.order = np.argsort(cell)
        counts = np.bincount(cell, minlength=np.prod(self.shape))
        self.starts = np.concatenate([[0], counts.cumsum()])
        self.columns = points[self.order].T.copy()
        self.table = with_ones(values[torch.from_numpy(self.order)].to(centers.dtype))

    def nearest(self, x: Queries, exclude: Exclude = None) -> PerQuery:
        """The nearest center's distance, rounded as by blocks; inf where there is none."""
        index = self.tree.nearest(x, 1, exclude)[1][:, 0]
        difference = self.preconditioner(x) - self.centers[index]
        return torch.linalg.vector_norm(difference, dim=1).masked_fill_(index < 0, torch.inf)

    @single_thread()
    def sums(self, x: Queries, nearest: PerQuery, exclude: Exclude = None) -> Sums:
        """Sums of weights times values, and of the weights in the last column.

        nearest [B]: the distance of the nearest center there is, be it one of these or not.
        """
        points = self.preconditioner(x)
        radius = self.kernel.support_radius(nearest, self.preconditioner.scale)
        farthest = (nearest + radius).double()[:, None] * MARGIN
        low = self._cells((points.double() - farthest).numpy())
        high = self._cells((points.double() + farthest).numpy())
        runs = np.ones(len(x))
        for first, last in zip(low[:-1], high[:-1], strict=True):
            runs *= last - first + 1
        columns = (points.T.contiguous(), radius, nearest, exclude)
        queries = [None if column is None else column.numpy() for column in columns]
        sums = x.new_zeros(len(x), self.table.shape[1])
        reachable = np.flatnonzero(nearest.isfinite().numpy())
        for part in _pieces(runs[reachable], PAIRS):
            who, begin, length = self._runs(reachable[part], low, high)
            for run in _pieces(length, PAIRS):
                weighted = self._sum_runs(queries, who[run], begin[run], length[run])
                sums.index_add_(0, torch.from_numpy(who[run]), weighted)
        return sums

    def _cells(self, points) -> list[np.ndarray]:
        axes = zip(self.lines, points.T, strict=True)
        return [np.searchsorted(lines, column, "right") for lines, column in axes]

    def _runs(self, who: Numbers, low, high) -> tuple[Numbers, Numbers, Numbers]:
        """Queries, where runs of centers within their reach start, and how long these are."""
        row = np.zeros(len(who), np.int64)
        for first, last, count in zip(low[:-1], high[:-1], self.shape[1:], strict=True):
            of, step = _repeated(last[who] - first[who] + 1)
            who = who[of]
            row = (row[of] + first[who] + step) * count
        begin = self.starts[row + low[-1][who]]
        length = self.starts[row + high[-1][who] + 1] - begin
        of, step = _repeated(-(-length // SUM_CENTERS))
        step *= SUM_CENTERS
        return who[of], begin[of] + step, np.minimum(length[of] - step, SUM_CENTERS)

    def _sum_runs(self, queries, who: Numbers, begin: Numbers, length: Numbers) -> Sums:
        """The weighted sum of each run."""
        points, radius, nearest, exclude = queries
        of, step = _repeated(length)
        index = begin[of] + step
        who = who[of]
        distance = 0
        for own, column in zip(points, self.columns, strict=True):
            distance += np.square(own[who] - column[index])
        weight = np.maximum(radius[who] - (np.sqrt(distance) - nearest[who]), 0)
        if exclude is not None:
            weight[self.order[index] == exclude[who]] = 0
        starts = length.cumsum() - length
        index, weight, starts = map(torch.from_numpy, (index, weight, starts))
        return embedding_bag(index, self.table, starts, mode="sum", per_sample_weights=weight)


def _quantiles(column: np.ndarray, parts: int) -> np.ndarray:
    """The inner borders of about equal parts."""
    sample = np.sort(column[:: max(1, len(column) // (8 * parts))])
    return sample[np.arange(1, parts) * len(sample) // parts].astype(np.float64)


def _repeated(counts: Numbers) -> tuple[Numbers, Numbers]:
    """For counts[i] copies of each i: the i, and 0, 1, 2 ... among its copies."""
    of = np.repeat(np.arange(len(counts)), counts)
    return of, np.arange(len(of)) - np.repeat(counts.cumsum() - counts, counts)


def _pieces(costs: np.ndarray, most: int) -> Iterator[slice]:
    """Consecutive slices of at least one item, and of at most `most` in sum beyond it."""
    total = costs.cumsum()
    start = 0
    while start < len(costs):
        spent = total[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(total, spent + most, "right")))
        yield slice(start, stop)
        start = stop
