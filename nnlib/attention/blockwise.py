"""Weighted averages and nearest centers by blocks of queries against blocks of centers.

Nothing larger than a block is held: sums run on from block to block.
"""

import inspect
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from nnlib._common.validation import as_integers, check_int
from nnlib.attention.kernels import Kernel
from nnlib.distances import Distance

BLOCK_SHAPE = {"cpu": (1024, 1024), "other": (2048, 4096)}  # queries x centers at a time
BLOCK_FEATURES = 1 << 22  # at most, in a block's own rows
SUM_CENTERS = 128  # summed in a row: longer float32 sums lose small weights added to a large one
WIDE_VALUES = 32  # columns of values from which a column of ones costs more than another sum
FEW_WEIGHTS = 1 << 14  # not worth cutting
LANES = 16  # columns that a processor multiplies at once; narrower products are no faster
WHOLE = 1 << 24  # up to here float32 holds all integers

Block = Float[Tensor, "B M"]
Values = Float[Tensor, "M V"]
Averages = Float[Tensor, "B V"]
Sums = Float[Tensor, "B W"]
Indices = Int64[Tensor, "B K"]
PerQuery = Float[Tensor, " B"]
Exclude = Int64[Tensor, " B"] | None


class Labels:
    """Integer labels that stand for rows of a one-hot matrix, made a block at a time.

    Parameters
    ----------
    labels : Tensor or array [M] of whole numbers in 0 ... classes - 1
    classes : int, the columns of the matrix

    Raises
    ------
    ValueError, for other types, shapes or labels.

    Examples
    --------
    >>> from nnlib import attend
    >>> from nnlib.attention import InverseDistance
    >>> labels = Labels(torch.tensor([0, 0, 1]), classes=2)
    >>> centers = torch.tensor([[0.0], [2.0], [4.0]])
    >>> attend(torch.tensor([[1.0]]), centers, labels, InverseDistance(-1.0, epsilon=0.0))
    tensor([[0.8571, 0.1429]])
    """

    def __init__(self, labels, classes: int):
        classes = check_int("classes", classes)
        self.labels = as_integers("labels", labels, interval=(0, classes - 1))
        self.shape = (len(self.labels), classes)
        self.dtype = self.labels.dtype
        self.device = self.labels.device

    def __getitem__(self, cols) -> Tensor:
        return torch.nn.functional.one_hot(self.labels[cols], self.shape[1])


@dataclass
class Call:
    """What a call is given beside tensors, and what its gradients use again."""

    kernel: Kernel
    labels: Labels | None
    backend: str
    low_precision: bool
    records: bool  # whether the caller records gradients
    needed: tuple[bool, ...] = ()  # which of queries, centers, values, sharpness
    distance_fn: Distance | None = None
    triton: Any = None

    def distance(self, queries, centers) -> Distance:
        """What measures the distances, made once."""
        if self.distance_fn is None:
            dtype = working_dtype(queries, centers)
            self.distance_fn = self.kernel.distance(queries, centers, dtype)
            self.distance_fn.low_precision = self.low_precision
        return self.distance_fn


class LoopedFunction(torch.autograd.Function):
    """A function that vmap calls for one entry after the other, and that has no derivative."""

    def __init_subclass__(cls):
        super().__init_subclass__()  # each call looks at the signature, which takes long to find
        cls.forward.__signature__ = inspect.signature(cls.forward)

    @staticmethod
    def setup_context(ctx, inputs, output):
        """Save all tensors; the last input holds what is none."""
        *tensors, ctx.settings = inputs
        ctx.save_for_backward(*tensors, *output)
        ctx.save_for_forward(*tensors, *output)

    @staticmethod
    def backward(ctx, *gradients):
        raise RuntimeError("a third derivative is asked for, and there are two: leave it out")

    @classmethod
    def vmap(cls, info, in_dims, *inputs):
        """Stack the outputs of one call an entry."""

        def entry(part, dim, index: int):
            if isinstance(part, Call):
                return replace(part, distance_fn=None, triton=None)
            return part.select(dim, index) if isinstance(dim, int) else part

        calls = [
            cls.apply(*(entry(*given, index) for given in zip(inputs, in_dims, strict=True)))
            for index in range(info.batch_size)
        ]
        columns = zip(*calls, strict=True)
        outputs = [None if column[0] is None else torch.stack(column) for column in columns]
        return tuple(outputs), tuple(None if part is None else 0 for part in outputs)


def spread(parts, wanted) -> list:
    """Give each wanted place its part, in their order, and None to the others."""
    parts = iter(parts)
    return [next(parts) if each else None for each in wanted]


class OnlineWeightedMean:
    """Running sums of w v and w for a block of queries, w relative to the nearest's so far."""

    def __init__(self, kernel: Kernel, queries: int, values: int, like: Tensor, scale: float = 1.0):
        self.kernel = kernel
        self.scale = scale
        self.nearest = like.new_full((queries,), torch.inf)
        self.sums = like.new_zeros(queries, values + 1)  # the last column is the sum of the weights

    def add(
        self, distance: Block, values: Values, rows: slice | Int64[Tensor, " B"] = slice(None)
    ) -> None:
        """Take in more centers, for the queries of `rows`. Overwrites `distance`."""
        if distance.numel() == 0:
            return
        before = self.nearest[rows]
        sums = self.sums[rows]
        nearest = before if self.kernel.needs_nearest else torch.minimum(before, distance.amin(1))
        relative_to = finite(nearest)
        sums *= self.kernel.relative_weights(before[:, None].clone(), relative_to, self.scale)
        weights = self.kernel.relative_weights(distance, relative_to, self.scale)
        add_products(sums, weights, values)
        self.nearest[rows] = nearest
        if not isinstance(rows, slice):  # which would have been a view
            self.sums[rows] = sums

    def value(self, rows: slice = slice(None)) -> Averages:
        """The average so far."""
        return average_of(self.sums[rows])


def accumulate(
    mean: OnlineWeightedMean, x, centers, values, distance_fn: Distance, exclude=None
) -> OnlineWeightedMean:
    """Take all centers into the mean of one block of prepared queries, a block at a time."""
    dtype = mean.sums.dtype
    for cols in block_slices(centers, 1):
        c = distance_fn.prepare(centers[cols].to(dtype))
        distance, _ = distance_fn.pairwise(x, c)
        mean.add(mask_excluded(distance, exclude, cols), values[cols].to(dtype))
    return mean


def blockwise_average(
    queries, centers, values, kernel: Kernel, distance_fn: Distance, exclude=None
) -> tuple[Tensor, Tensor, Tensor]:
    """Averages [B, V], nearest distances [B], and total weights [B] relative to the nearest's."""
    dtype = working_dtype(queries, centers)
    width = values.shape[1]
    result = torch.empty(len(queries), width, dtype=dtype, device=queries.device)
    nearest, total = result.new_empty(2, len(queries))
    for rows in block_slices(queries, 0):
        x = distance_fn.prepare(queries[rows].to(dtype))
        skip = None if exclude is None else exclude[rows]
        mean = OnlineWeightedMean(kernel, rows.stop - rows.start, width, result, distance_fn.scale)
        if kernel.needs_nearest:
            distance, _ = blockwise_nearest(queries[rows], centers, 1, distance_fn, skip)
            mean.nearest = distance[:, 0]
        accumulate(mean, x, centers, values, distance_fn, skip)
        result[rows] = mean.value()
        nearest[rows] = mean.nearest
        total[rows] = mean.sums[:, -1]
    return result, nearest, total


def uniform_knn_average(
    queries, centers, values, kernel: Kernel, distance_fn: Distance, exclude=None
) -> Averages:
    """The plain mean over each query's `kernel.k` nearest centers."""
    _, index = blockwise_nearest(queries, centers, kernel.k, distance_fn, exclude)
    return mean_of_nearest(values, index, working_dtype(queries, centers))


def mean_of_nearest(values, index: Indices, dtype: torch.dtype) -> Averages:
    """`mean_of_rows`, a block at a time."""
    result = torch.empty(len(index), values.shape[1], dtype=dtype, device=index.device)
    for rows in block_slices(index, 0):
        result[rows] = mean_of_rows(values, index[rows], dtype)
    return result


def mean_of_rows(values, index: Indices, dtype: torch.dtype) -> Averages:
    """The plain mean of the rows of these numbers, without those of -1."""
    present = index >= 0
    rows = values[index.clamp(min=0).flatten()].to(dtype).unflatten(0, index.shape)
    return (rows * present[..., None]).sum(1) / present.sum(1).clamp(min=1)[:, None]


@torch.no_grad()
def blockwise_nearest(
    queries, centers, count: int, distance_fn: Distance, exclude=None
) -> tuple[Tensor, Tensor]:
    """Distances and indices [B, count] of the nearest centers; inf and -1 where none is left."""
    dtype = working_dtype(queries, centers)
    nearest = torch.full((len(queries), count), torch.inf, dtype=dtype, device=queries.device)
    index = torch.full_like(nearest, -1, dtype=torch.int64)
    for rows in block_slices(queries, 0):
        x = distance_fn.prepare(queries[rows].to(dtype))
        skip = None if exclude is None else exclude[rows]
        for cols in block_slices(centers, 1):
            c = distance_fn.prepare(centers[cols].to(dtype))
            key = mask_excluded(distance_fn.sort_key(x, c), skip, cols)
            merge_topk(nearest[rows], index[rows], key, cols.start)
        nearest[rows] = distance_fn.from_sort_key(nearest[rows])
    return nearest, index.masked_fill_(nearest.isinf(), -1)


def nearest_by_kernel(queries, centers, count: int, kernel: Kernel, exclude=None):
    """`blockwise_nearest` by a kernel's distance, in the data's units."""
    distance_fn = kernel.distance(queries, centers, working_dtype(queries, centers))
    distance, index = blockwise_nearest(queries, centers, count, distance_fn, exclude)
    return distance / distance_fn.scale, index


def merge_topk(nearest: Float[Tensor, "B K"], index: Indices, key: Block, start: int) -> None:
    """Merge a block's smallest keys into those so far: after some blocks, few queries have any."""
    count = nearest.shape[1]
    low = key.amin(1)
    if bool(low.isnan().any()):  # rows that hold NaN are near nothing
        low = key.nan_to_num_(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf).amin(1)
    rows = (low < nearest[:, -1]).nonzero()[:, 0]
    if len(rows) == 0:
        return
    some = key if len(rows) == len(key) else key[rows]
    if count == 1:
        nearest[rows], place = some.min(1, keepdim=True)
        index[rows] = place + start
        return
    values, place = some.topk(min(count, some.shape[1]), largest=False)
    nearest[rows], order = torch.cat([nearest[rows], values], 1).topk(count, largest=False)
    index[rows] = torch.cat([index[rows], place + start], 1).gather(1, order)


def working_dtype(*tensors) -> torch.dtype:
    """float64 where anything is, float32 for all else."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def as_exact(rows):
    """Integers beyond those that float32 holds, in float64; all else as it is."""
    if rows.dtype not in (torch.int32, torch.int64) or len(rows) == 0:
        return rows
    low, high = map(int, torch.aminmax(rows))
    return rows.double() if max(-low, high) > WHOLE else rows


def spread_nan(result: Averages, queries, centers) -> Averages:
    """Set to NaN, in place, what isn't finite: a query's row, or all rows for a center."""
    centers = centers.detach()
    if centers.is_cuda or not math.isfinite(centers.sum()):  # as large ones add up to, too
        result += sum(end * 0 for end in torch.aminmax(centers))
    result += (queries * 0).sum(1, keepdim=True)
    return result


def blank_rows(rows):
    """Rows of NaN in place of those that aren't finite, which are then near nothing."""
    if len(rows) == 0 or bool(torch.stack(torch.aminmax(rows)).isfinite().all()):
        return rows
    return rows + (rows * 0).sum(1, keepdim=True)


def block_slices(rows, axis: int) -> Iterator[slice]:
    """Slices of queries (axis 0) or centers (axis 1), of a block's size where they lie."""
    length, features = rows.shape
    most = BLOCK_SHAPE["cpu" if rows.device.type == "cpu" else "other"][axis]
    size = max(1, min(most, BLOCK_FEATURES // max(1, features)))
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def mask_excluded(distance: Block, exclude: Exclude, cols: slice) -> Block:
    """Set distances to each query's excluded center to inf, in place."""
    if exclude is None:
        return distance
    inside = (exclude >= cols.start) & (exclude < cols.stop)
    distance[inside.nonzero()[:, 0], exclude[inside] - cols.start] = torch.inf
    return distance


def finite(nearest: PerQuery) -> PerQuery:
    """The nearest distances, 0 where there is no center yet."""
    return nearest.masked_fill(nearest == torch.inf, 0)


def with_ones(values: Values) -> Float[Tensor, "M W"]:
    """The values and a last column of ones, whose sum is that of the weights."""
    return torch.cat([values, values.new_ones(len(values), 1)], 1)


def add_products(sums: Sums, weights: Block, values: Values) -> None:
    """Add weights @ values to the sums, and the weights' own sum to their last column."""
    if values.shape[1] < WIDE_VALUES:
        sums += weighted_sums(weights, with_ones(values))
        return
    sums[:, :-1] += weighted_sums(weights, values)
    sums[:, -1] += weights.sum(1)


def weighted_sums(weights: Block, values: Values) -> Averages:
    """weights @ values, on a processor some centers at a time, in full lanes."""
    width = values.shape[1]
    if values.device.type != "cpu" or weights.numel() < FEW_WEIGHTS:
        return weights @ values
    if width % LANES:
        values = torch.nn.functional.pad(values, (0, -width % LANES))
    result = values.new_zeros(len(weights), values.shape[1])
    for start in range(0, len(values), SUM_CENTERS):
        part = slice(start, start + SUM_CENTERS)
        result.addmm_(weights[:, part], values[part])
    return result[:, :width]


def average_of(sums: Sums) -> Averages:
    """The sums over the last of their columns; 0 for a query without any weight."""
    return sums[:, :-1] / torch.where(sums[:, -1:] > 0, sums[:, -1:], 1)
