"""Centers found without looking at all of them: the nearest ones, and those within the reach of a cone.

A k-d tree finds the nearest. What lies within a reach is read off a grid whose lines are quantiles of the centers:
those of a row of cells lie in one run of memory, so that a query needs a few runs.

What `attend` and `nearest` give, from the few centers that matter: for few features, on a CPU.
"""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, Int, Int64, Shaped
from scipy.spatial import cKDTree
from torch import Tensor

from nnlib._common.runtime import single_thread
from nnlib.attention.blockwise import (
    SUM_CENTERS,
    average_of,
    blockwise_average,
    finite,
    mean_of_rows,
    with_ones,
    working_dtype,
)
from nnlib.attention.kernels import InfluenceCone, InverseDistance, Kernel, UniformKNN
from nnlib.distances import Preconditioner

PAIRS = (
    1 << 16
)  # queries and centers within their reach that are weighed at a time: they stay in a cache
FINER = 4  # times as many lines across a row of cells, which cost nothing there
FURTHER = 1 + 1e-5  # than a reach rounded to float32


class KDTreeIndex:
    """The nearest of fixed centers, by a k-d tree."""

    def __init__(self, centers: Float[Tensor, "M D"], frame: Preconditioner):
        self.frame, self.tree = frame, cKDTree(frame(centers.double()).numpy())

    def nearest(
        self, x: Float[Tensor, "B D"], count: int, exclude: Int64[Tensor, " B"] | None = None
    ) -> tuple[Float[Tensor, "B K"], Int64[Tensor, "B K"]]:
        """Distances in float64, times the frame's scale, and indices; inf and -1 where no center is left."""
        places = np.arange(1, 1 + count + (exclude is not None))
        found = self.tree.query(
            self.frame(x.double()).numpy(), places, workers=torch.get_num_threads()
        )
        distance, index = map(torch.from_numpy, found)
        if exclude is not None:
            distance, order = distance.masked_fill_(index == exclude[:, None], torch.inf).sort(
                dim=1, stable=True
            )
            distance, index = distance[:, :count], index.gather(1, order)[:, :count]
        return distance, index.masked_fill_(distance.isinf(), -1)


class QuantileGrid:
    """Sums over fixed centers, of which each query has a weight for the few within its reach."""

    def __init__(
        self, centers: Float[Tensor, "M D"], values, kernel: InfluenceCone, frame: Preconditioner
    ):
        self.centers, self.values, self.kernel, self.frame = centers, values, kernel, frame
        self.tree = KDTreeIndex(centers, frame)
        points = frame(centers).numpy()
        rows = max(1, round(len(centers) ** (1 / points.shape[1])))
        self.shape = (rows,) * (points.shape[1] - 1) + (FINER * rows,)
        self.lines = [
            _quantiles(column, count) for column, count in zip(points.T, self.shape, strict=True)
        ]
        key = np.ravel_multi_index(self._cells(points), self.shape)
        self.order = np.argsort(key)
        self.starts = np.concatenate(
            [[0], np.bincount(key, minlength=np.prod(self.shape)).cumsum()]
        )
        self.points = points[self.order].T.copy()
        self.table = with_ones(values[torch.from_numpy(self.order)].to(centers.dtype))

    def nearest(
        self, x: Float[Tensor, "B D"], exclude: Int64[Tensor, " B"] | None = None
    ) -> Float[Tensor, " B"]:
        """The nearest center's distance, rounded as the blocks round it; inf where there is none."""
        index = self.tree.nearest(x, 1, exclude)[1][:, 0]
        distance = torch.linalg.vector_norm(self.frame(x) - self.frame(self.centers[index]), dim=1)
        return distance.masked_fill_(index < 0, torch.inf)

    def averages(
        self, x: Float[Tensor, "B D"], exclude: Int64[Tensor, " B"] | None = None
    ) -> Float[Tensor, "B V"]:
        """The weighted averages of the values."""
        return average_of(self.sums(x, self.nearest(x, exclude), exclude))

    @single_thread()
    def sums(
        self,
        x: Float[Tensor, "B D"],
        near: Float[Tensor, " B"],
        exclude: Int64[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B W"]:
        """Sums of weights times values, and of the weights in the last column.

        near [B]: the distance of the nearest center there is, be it one of these or not.
        """
        sums = x.new_zeros(len(x), self.table.shape[1])
        queries = _Queries(self, x, near, exclude)
        some = np.flatnonzero(np.isfinite(queries.near))
        for part in _pieces(queries.runs[some], PAIRS):
            for who, begin, length in self._runs(queries, some[part]):
                sums.index_add_(
                    0, torch.from_numpy(who), self._weighed(queries, who, begin, length)
                )
        return sums

    def _cells(self, points):
        return [
            np.searchsorted(lines, column, "right")
            for lines, column in zip(self.lines, points.T, strict=True)
        ]

    def _runs(self, queries, who) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Queries, and where the centers of a row of cells start and how many there are, some pairs at a time."""
        row = np.zeros(len(who), np.int64)
        for low, high, count in zip(
            queries.low[:-1], queries.high[:-1], self.shape[1:], strict=True
        ):
            of, step = _expanded(high[who] - low[who] + 1)
            who, row = who[of], (row[of] + low[who[of]] + step) * count
        begin = self.starts[row + queries.low[-1][who]]
        length = self.starts[row + queries.high[-1][who] + 1] - begin
        of, step = _expanded(-(-length // SUM_CENTERS))
        who, begin, length = (
            who[of],
            begin[of] + SUM_CENTERS * step,
            np.minimum(length[of] - SUM_CENTERS * step, SUM_CENTERS),
        )
        for part in _pieces(length, PAIRS):
            yield who[part], begin[part], length[part]

    def _weighed(self, queries, who, begin, length) -> Float[Tensor, "R W"]:
        """The sums of each run."""
        starts = length.cumsum() - length
        index = np.arange(length.sum()) + np.repeat(begin - starts, length)
        distance = 0
        for own, points in zip(queries.points, self.points, strict=True):
            difference = np.repeat(own[who], length)
            difference -= points.take(index)
            distance += np.square(difference, out=difference)
        weight = np.repeat(queries.support_radius[who], length)
        weight -= np.sqrt(distance, out=distance) - np.repeat(queries.near[who], length)
        weight = np.maximum(weight, 0, out=weight)
        if queries.exclude is not None:
            weight[self.order[index] == np.repeat(queries.exclude[who], length)] = 0
        index, weight, starts = map(torch.from_numpy, (index, weight, starts))
        return torch.nn.functional.embedding_bag(
            index, self.table, starts, mode="sum", per_sample_weights=weight
        )


class _Queries:
    """What a cone needs of its queries: framed columns, the reach, and the cells that it meets."""

    def __init__(self, cone: QuantileGrid, x, near, exclude):
        framed, reach = cone.frame(x), cone.kernel.support_radius(near, cone.frame.scale)
        far = (near + reach).double()[:, None] * FURTHER
        self.points, self.near, self.support_radius = (
            framed.T.contiguous().numpy(),
            near.numpy(),
            reach.numpy(),
        )
        self.exclude = None if exclude is None else exclude.numpy()
        self.low, self.high = (
            cone._cells(part.numpy()) for part in (framed.double() - far, framed.double() + far)
        )
        widths = [high - low + 1.0 for low, high in zip(self.low, self.high, strict=True)]
        self.runs = np.prod(widths[:-1], 0) * np.ones(len(x))


def _quantiles(column: np.ndarray, parts: int) -> np.ndarray:
    """The inner borders of about equal parts."""
    sample = np.sort(column[:: max(1, len(column) // (8 * parts))])
    return sample[np.arange(1, parts) * len(sample) // parts].astype(np.float64)


def _expanded(counts: Int[np.ndarray, " N"]) -> tuple[Int[np.ndarray, " P"], Int[np.ndarray, " P"]]:
    """For count[i] copies of each i: the i, and 0, 1, 2 ... among its copies."""
    of = np.repeat(np.arange(len(counts)), counts)
    return of, np.arange(len(of)) - np.repeat(counts.cumsum() - counts, counts)


def _pieces(costs: np.ndarray, most: int) -> Iterator[slice]:
    """Slices one after the other, each of at least one item and of at most `most` in sum beyond it."""
    total, start = costs.cumsum(), 0
    while start < len(costs):
        spent = total[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(total, spent + most, "right")))
        yield slice(start, stop)
        start = stop


FEATURES = 3  # up to here few cells of a grid lie within a reach
MANY = 32  # centers can be measured in the time that a tree takes for one of the nearest
ENOUGH = (
    64,
    1 << 18,
)  # queries, and pairs of queries and centers, from which sorting the centers first pays
TABLE = 1 << 23  # numbers in a sorted copy of the values, at most
ROWS = 1 << 17  # queries at a time
NUMBERS = 1 << 21  # of the values that are gathered at a time
COUNTS = (32, 128, 512)  # nearest centers to try, before all of them


def unsupported_reason(
    kernel: Kernel, centers, *others: Tensor, tolerance: float = 0.0
) -> str | None:
    """Why centers [M, D] can't be searched for a kernel, and what would do; None where they can.

    `others` are checked for gradients, and for NaN and infinity, which a tree can't place.
    """
    by = kernel.base if type(kernel) is UniformKNN else kernel
    if (
        type(kernel) not in (InfluenceCone, InverseDistance, UniformKNN)
        or type(by).distance is not Kernel.distance
    ):
        return f"with {kernel}: give InfluenceCone, InverseDistance, or UniformKNN by a Euclidean distance"
    if type(kernel) is InverseDistance and tolerance == 0:
        return "with InverseDistance leaves out far centers: give the share that it may, as tolerance=0.01"
    if centers.device.type != "cpu" or centers.shape[1] > FEATURES:
        return f"with {centers.shape[1]} features on {centers.device.type}: give at most {FEATURES} on cpu"
    if torch.is_grad_enabled() and any(part.requires_grad for part in others):
        return "gives no gradients: give tensors without, or use torch.no_grad()"
    if not all(bool(part.isfinite().all()) for part in others):
        return "with NaN or infinity: give finite numbers"
    return None


def is_worthwhile(queries: int, centers: int, width: int = 1, count: int | None = None) -> bool:
    """Whether to sort the centers, and values of some `width`, is quicker than to measure all distances.

    count: how many nearest centers are wanted, where they are.
    """
    few = count is None or MANY * count <= centers
    return (
        few and queries >= ENOUGH[0] and queries * centers >= ENOUGH[1] and centers * width <= TABLE
    )


def searched(
    queries: Shaped[Tensor, "B D"],
    centers: Shaped[Tensor, "M D"],
    values,
    kernel: Kernel,
    exclude: Int64[Tensor, " B"] | None = None,
    tolerance: float = 0.0,
) -> Float[Tensor, "B V"]:
    """The averages that `attend` gives, for a kernel without a `hindrance`."""
    dtype, queries, centers = working_dtype(queries, centers), queries.detach(), centers.detach()
    metric, centers = kernel.distance(queries, centers, dtype), centers.to(dtype)
    if type(kernel) is InfluenceCone:
        source, most = QuantileGrid(centers, values, kernel, metric.frame), ROWS
    else:
        count = kernel.k or COUNTS[-1]
        source = (_Nearest if kernel.k else _Shares)(centers, values, kernel, metric, tolerance)
        most = max(1, min(ROWS, NUMBERS // (count * values.shape[1])))
    parts = [slice(start, start + most) for start in range(0, len(queries), most)]
    skips = [None if exclude is None else exclude[part] for part in parts]
    return torch.cat(
        [
            source.averages(queries[part].to(dtype), skip)
            for part, skip in zip(parts, skips, strict=True)
        ]
    )


def tree_nearest(
    queries, centers, count: int, kernel: Kernel, exclude=None
) -> tuple[Tensor, Tensor]:
    """What `nearest` gives, for a kernel by Euclidean distance."""
    dtype, queries, centers = working_dtype(queries, centers), queries.detach(), centers.detach()
    frame = kernel.distance(queries, centers, dtype).frame
    distance, index = KDTreeIndex(centers.to(dtype), frame).nearest(
        queries.to(dtype), count, exclude
    )
    return (distance / frame.scale).to(dtype), index


class _Nearest:
    """The plain mean over the nearest centers."""

    def __init__(self, centers, values, kernel: Kernel, metric, tolerance):
        self.centers, self.values, self.kernel, self.metric = centers, values, kernel, metric
        self.tree, self.tolerance = KDTreeIndex(centers, metric.frame), tolerance

    def averages(self, x, exclude):
        """Means of the values of the nearest centers of each query [B, V]."""
        return mean_of_rows(self.values, self.tree.nearest(x, self.kernel.k, exclude)[1], x.dtype)


class _Shares(_Nearest):
    """Averages over as few of the nearest centers as leave out at most `tolerance` of the weight, or over all."""

    def averages(self, x, exclude):
        """Weighted averages [B, V], by more neighbors for the queries whose fewer leave out too much."""
        result, left = x.new_empty(len(x), self.values.shape[1]), torch.arange(len(x))
        for count in COUNTS:
            if len(left) == 0 or MANY * count > len(self.centers):
                break
            average, share = self._few(x[left], count, None if exclude is None else exclude[left])
            done = share <= self.tolerance
            result[left[done]], left = average[done], left[~done]
            if (
                share.median() * (count / COUNTS[-1]) ** (-self.kernel.exponent / x.shape[1])
                > self.tolerance
            ):
                break  # evenly spread centers would not get there with the most that are tried
        if len(left):
            skip = None if exclude is None else exclude[left]
            result[left] = blockwise_average(
                x[left], self.centers, self.values, self.kernel, self.metric, skip
            )[0]
        return result

    def _few(self, x, count: int, exclude) -> tuple[Tensor, Tensor]:
        """The averages over some nearest centers, and no less than the share of the weight that the others have."""
        distance, index = self.tree.nearest(x, count, exclude)
        distance = distance.to(x.dtype)
        weights = self.kernel.relative_weights(distance, finite(distance[:, 0]), self.metric.scale)
        total, others = weights.sum(1, keepdim=True), weights[:, -1] * (len(self.centers) - count)
        picked = self.values[index.flatten()].to(x.dtype).unflatten(0, index.shape)
        return (weights / total)[:, None].matmul(picked)[:, 0], others / (total[:, 0] + others)
