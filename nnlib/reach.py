"""Centers found without looking at all of them: the nearest ones, and those within the reach of a cone.

A k-d tree finds the nearest. What lies within a reach is read off a grid whose lines are quantiles of the centers:
those of a row of cells lie in one run of memory, so that a query needs a few runs.
"""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from scipy.spatial import cKDTree
from torch import Tensor

from nnlib.device import one_thread
from nnlib.frames import Frame
from nnlib.kernels import InfluenceCone
from nnlib.stream import MIXED, average_of, with_ones

PAIRS = 1 << 16  # queries and centers within their reach that are weighed at a time: they stay in a cache
FINER = 4  # times as many lines across a row of cells, which cost nothing there
FURTHER = 1 + 1e-5  # than a reach rounded to float32


class Tree:
    """The nearest of fixed centers, by a k-d tree."""

    def __init__(self, centers: Float[Tensor, "M D"], frame: Frame):
        self.frame, self.tree = frame, cKDTree(frame(centers.double()).numpy())

    def nearest(
        self, x: Float[Tensor, "B D"], count: int, exclude: Int64[Tensor, " B"] | None = None
    ) -> tuple[Float[Tensor, "B K"], Int64[Tensor, "B K"]]:
        """Distances in float64, times the frame's scale, and indices; inf and -1 where no center is left."""
        places = np.arange(1, 1 + count + (exclude is not None))
        found = self.tree.query(self.frame(x.double()).numpy(), places, workers=torch.get_num_threads())
        distance, index = map(torch.from_numpy, found)
        if exclude is not None:
            distance, order = distance.masked_fill_(index == exclude[:, None], torch.inf).sort(dim=1, stable=True)
            distance, index = distance[:, :count], index.gather(1, order)[:, :count]
        return distance, index.masked_fill_(distance.isinf(), -1)


class Cone:
    """Sums over fixed centers, of which each query has a weight for the few within its reach."""

    def __init__(self, centers: Float[Tensor, "M D"], values, kernel: InfluenceCone, frame: Frame):
        self.centers, self.values, self.kernel, self.frame = centers, values, kernel, frame
        self.tree = Tree(centers, frame)
        points = frame(centers).numpy()
        rows = max(1, round(len(centers) ** (1 / points.shape[1])))
        self.shape = (rows,) * (points.shape[1] - 1) + (FINER * rows,)
        self.lines = [_quantiles(column, count) for column, count in zip(points.T, self.shape, strict=True)]
        key = np.ravel_multi_index(self._cells(points), self.shape)
        self.order = np.argsort(key)
        self.starts = np.concatenate([[0], np.bincount(key, minlength=np.prod(self.shape)).cumsum()])
        self.points = points[self.order].T.copy()
        self.table = with_ones(values[torch.from_numpy(self.order)].to(centers.dtype))

    def nearest(self, x: Float[Tensor, "B D"], exclude: Int64[Tensor, " B"] | None = None) -> Float[Tensor, " B"]:
        """The nearest center's distance, rounded as the blocks round it; inf where there is none."""
        index = self.tree.nearest(x, 1, exclude)[1][:, 0]
        distance = torch.linalg.vector_norm(self.frame(x) - self.frame(self.centers[index]), dim=1)
        return distance.masked_fill_(index < 0, torch.inf)

    def averages(self, x: Float[Tensor, "B D"], exclude: Int64[Tensor, " B"] | None = None) -> Float[Tensor, "B V"]:
        """The weighted averages of the values."""
        return average_of(self.sums(x, self.nearest(x, exclude), exclude))

    @one_thread()
    def sums(
        self, x: Float[Tensor, "B D"], near: Float[Tensor, " B"], exclude: Int64[Tensor, " B"] | None = None
    ) -> Float[Tensor, "B W"]:
        """Sums of weights times values, and of the weights in the last column.

        near [B]: the distance of the nearest center there is, be it one of these or not.
        """
        sums = x.new_zeros(len(x), self.table.shape[1])
        queries = _Queries(self, x, near, exclude)
        some = np.flatnonzero(np.isfinite(queries.near))
        for part in _pieces(queries.runs[some], PAIRS):
            for who, begin, length in self._runs(queries, some[part]):
                sums.index_add_(0, torch.from_numpy(who), self._weighed(queries, who, begin, length))
        return sums

    def _cells(self, points):
        return [np.searchsorted(lines, column, "right") for lines, column in zip(self.lines, points.T, strict=True)]

    def _runs(self, queries, who) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Queries, and where the centers of a row of cells start and how many there are, some pairs at a time."""
        row = np.zeros(len(who), np.int64)
        for low, high, count in zip(queries.low[:-1], queries.high[:-1], self.shape[1:], strict=True):
            of, step = _expanded(high[who] - low[who] + 1)
            who, row = who[of], (row[of] + low[who[of]] + step) * count
        begin = self.starts[row + queries.low[-1][who]]
        length = self.starts[row + queries.high[-1][who] + 1] - begin
        of, step = _expanded(-(-length // MIXED))
        who, begin, length = who[of], begin[of] + MIXED * step, np.minimum(length[of] - MIXED * step, MIXED)
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
        weight = np.repeat(queries.reach[who], length)
        weight -= np.sqrt(distance, out=distance) - np.repeat(queries.near[who], length)
        weight = np.maximum(weight, 0, out=weight)
        if queries.exclude is not None:
            weight[self.order[index] == np.repeat(queries.exclude[who], length)] = 0
        index, weight, starts = map(torch.from_numpy, (index, weight, starts))
        return torch.nn.functional.embedding_bag(index, self.table, starts, mode="sum", per_sample_weights=weight)


class _Queries:
    """What a cone needs of its queries: framed columns, the reach, and the cells that it meets."""

    def __init__(self, cone: Cone, x, near, exclude):
        framed, reach = cone.frame(x), cone.kernel.reach(near, cone.frame.scale)
        far = (near + reach).double()[:, None] * FURTHER
        self.points, self.near, self.reach = framed.T.contiguous().numpy(), near.numpy(), reach.numpy()
        self.exclude = None if exclude is None else exclude.numpy()
        self.low, self.high = (cone._cells(part.numpy()) for part in (framed.double() - far, framed.double() + far))
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
