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

from nnlib._common.runtime import single_thread
from nnlib.attention.blockwise import (
    SUM_CENTERS,
    Averages,
    Exclude,
    Indices,
    PerQuery,
    Sums,
    average_of,
    mean_of_rows,
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
VALUES = 1 << 21  # gathered at a time

Queries = Float[Tensor, "B D"]
Centers = Float[Tensor, "M D"]


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
    kernel: InfluenceCone | UniformKNN,
    exclude: Exclude = None,
) -> Averages:
    """The averages that `attend` gives."""
    dtype = working_dtype(queries, centers)
    x = queries.detach().to(dtype)
    preconditioner = kernel.distance(queries.detach(), centers.detach(), dtype).preconditioner
    c = centers.detach().to(dtype)
    size = QUERIES
    if kernel.k is None:
        grid = QuantileGrid(c, values, kernel, preconditioner)
    else:
        tree = KDTreeIndex(c, preconditioner)
        size = max(1, min(QUERIES, VALUES // (kernel.k * values.shape[1])))
    averages = []
    for start in range(0, len(x), size):
        part = slice(start, start + size)
        skip = None if exclude is None else exclude[part]
        if kernel.k is None:
            averages.append(average_of(grid.sums(x[part], grid.nearest(x[part], skip), skip)))
        else:
            index = tree.nearest(x[part], kernel.k, skip)[1]
            averages.append(mean_of_rows(values, index, dtype))
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
        self,
        centers: Centers,
        values,
        kernel: InfluenceCone,
        preconditioner: Preconditioner,
    ):
        self.centers = centers
        self.kernel = kernel
        self.preconditioner = preconditioner
        self.tree = KDTreeIndex(centers, preconditioner)
        points = preconditioner(centers).numpy()
        features = points.shape[1]
        rows = max(1, round(len(centers) ** (1 / features)))
        self.shape = (rows,) * (features - 1) + (LAST_AXIS_FACTOR * rows,)
        columns = zip(points.T, self.shape, strict=True)
        self.lines = [_quantiles(column, count) for column, count in columns]
        cell = np.ravel_multi_index(self._cells(points), self.shape)
        self.order = np.argsort(cell)
        counts = np.bincount(cell, minlength=np.prod(self.shape))
        self.starts = np.concatenate([[0], counts.cumsum()])
        self.points = points[self.order].T.copy()
        self.table = with_ones(values[torch.from_numpy(self.order)].to(centers.dtype))

    def nearest(self, x: Queries, exclude: Exclude = None) -> PerQuery:
        """The nearest center's distance, rounded as by blocks; inf where there is none."""
        index = self.tree.nearest(x, 1, exclude)[1][:, 0]
        difference = self.preconditioner(x) - self.preconditioner(self.centers[index])
        return torch.linalg.vector_norm(difference, dim=1).masked_fill_(index < 0, torch.inf)

    @single_thread()
    def sums(
        self,
        x: Queries,
        nearest: PerQuery,
        exclude: Exclude = None,
    ) -> Sums:
        """Sums of weights times values, and of the weights in the last column.

        nearest [B]: the distance of the nearest center there is, be it one of these or not.
        """
        sums = x.new_zeros(len(x), self.table.shape[1])
        queries = _GridQueries(self, x, nearest, exclude)
        reachable = np.flatnonzero(np.isfinite(queries.nearest))
        for part in _pieces(queries.runs[reachable], PAIRS):
            for who, begin, length in self._runs(queries, reachable[part]):
                weighted = self._sum_runs(queries, who, begin, length)
                sums.index_add_(0, torch.from_numpy(who), weighted)
        return sums

    def _cells(self, points) -> list[np.ndarray]:
        axes = zip(self.lines, points.T, strict=True)
        return [np.searchsorted(lines, column, "right") for lines, column in axes]

    def _runs(self, queries, who) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Queries, and where runs of centers start and how long they are, some pairs at a time."""
        row = np.zeros(len(who), np.int64)
        axes = zip(queries.low[:-1], queries.high[:-1], self.shape[1:], strict=True)
        for low, high, count in axes:
            of, step = _repeated(high[who] - low[who] + 1)
            who = who[of]
            row = (row[of] + low[who] + step) * count
        begin = self.starts[row + queries.low[-1][who]]
        length = self.starts[row + queries.high[-1][who] + 1] - begin
        of, step = _repeated(-(-length // SUM_CENTERS))
        who = who[of]
        begin = begin[of] + SUM_CENTERS * step
        length = np.minimum(length[of] - SUM_CENTERS * step, SUM_CENTERS)
        for part in _pieces(length, PAIRS):
            yield who[part], begin[part], length[part]

    def _sum_runs(self, queries, who, begin, length) -> Float[Tensor, "R W"]:
        """The weighted sum of each run."""
        starts = length.cumsum() - length
        index = np.arange(length.sum()) + np.repeat(begin - starts, length)
        distance = 0
        for own, points in zip(queries.points, self.points, strict=True):
            difference = np.repeat(own[who], length)
            difference -= points.take(index)
            distance += np.square(difference, out=difference)
        weight = np.repeat(queries.radius[who], length)
        weight -= np.sqrt(distance, out=distance) - np.repeat(queries.nearest[who], length)
        weight = np.maximum(weight, 0, out=weight)
        if queries.exclude is not None:
            weight[self.order[index] == np.repeat(queries.exclude[who], length)] = 0
        index, weight, starts = map(torch.from_numpy, (index, weight, starts))
        return torch.nn.functional.embedding_bag(
            index, self.table, starts, mode="sum", per_sample_weights=weight
        )


class _GridQueries:
    """The queries of a grid: columns, support radius, and the range of cells they meet."""

    def __init__(self, grid: QuantileGrid, x, nearest, exclude):
        points = grid.preconditioner(x)
        radius = grid.kernel.support_radius(nearest, grid.preconditioner.scale)
        farthest = (nearest + radius).double()[:, None] * MARGIN
        self.points = points.T.contiguous().numpy()
        self.nearest = nearest.numpy()
        self.radius = radius.numpy()
        self.exclude = None if exclude is None else exclude.numpy()
        self.low = grid._cells((points.double() - farthest).numpy())
        self.high = grid._cells((points.double() + farthest).numpy())
        axes = zip(self.low[:-1], self.high[:-1], strict=True)
        widths = [high - low + 1.0 for low, high in axes]
        self.runs = np.prod(widths, 0) * np.ones(len(x))


def _quantiles(column: np.ndarray, parts: int) -> np.ndarray:
    """The inner borders of about equal parts."""
    sample = np.sort(column[:: max(1, len(column) // (8 * parts))])
    return sample[np.arange(1, parts) * len(sample) // parts].astype(np.float64)


def _repeated(counts: Int[np.ndarray, " N"]) -> tuple[Int[np.ndarray, " P"], Int[np.ndarray, " P"]]:
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
