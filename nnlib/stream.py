"""Running sums over blocks of centers, and nothing larger than a block.

Weights are taken beside that of the nearest center so far, so that the averages are exactly normalised at any scale.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from nnlib.blocks import column_blocks, finite, row_blocks, without, working_dtype
from nnlib.kernels import Kernel
from nnlib.nearby import nearest_of

MIXED = 128  # centers whose values are summed in a row: longer float32 sums drop many small weights beside a large one
WIDE = 32  # columns of values
FEW = 1 << 14  # weights
LANES = 16  # columns that a processor multiplies at once: narrow products take as long, or several times longer


class Labels:
    """Integer labels 0 ... classes - 1 that stand for rows of a one-hot matrix, made a block at a time."""

    def __init__(self, labels: Int64[Tensor, " M"], classes: int):
        if labels.ndim != 1 or labels.dtype != torch.int64:
            raise ValueError(f"labels is {labels.dtype} {tuple(labels.shape)}: give int64 [M]")
        low, high = map(int, torch.aminmax(labels)) if len(labels) else (0, 0)
        if low < 0 or high >= max(1, classes):
            raise ValueError(f"labels holds {low} ... {high}: give 0 ... {classes - 1}")
        self.labels, self.shape, self.dtype, self.device = labels, (len(labels), classes), labels.dtype, labels.device

    def __getitem__(self, cols) -> Tensor:
        return torch.nn.functional.one_hot(self.labels[cols], self.shape[1])


class RunningAverage:
    """Sums of w v and of w for a block of queries, the weights w taken beside that of the nearest center so far."""

    def __init__(self, kernel: Kernel, queries: int, values: int, like: Tensor, scale: float = 1.0):
        self.kernel, self.scale = kernel, scale
        self.near = like.new_full((queries,), torch.inf)
        self.sums = like.new_zeros(queries, values + 1)  # the last column is the sum of the weights

    def add(
        self,
        distance: Float[Tensor, "B M"],
        values: Float[Tensor, "M V"],
        rows: slice | Int64[Tensor, " B"] = slice(None),
    ) -> None:
        """Take in more centers, for the queries of `rows`. Overwrites `distance`."""
        if distance.numel() == 0:
            return
        before, sums = self.near[rows], self.sums[rows]
        near = before if self.kernel.needs_nearest else torch.minimum(before, distance.amin(1))
        beside = finite(near)
        sums *= self.kernel.weigh(before[:, None].clone(), beside, self.scale)
        add_products(sums, self.kernel.weigh(distance, beside, self.scale), values)
        self.near[rows] = near
        if not isinstance(rows, slice):  # which would have been a view
            self.sums[rows] = sums

    def value(self, rows: slice = slice(None)) -> Float[Tensor, "B V"]:
        """The average so far; 0 for a query without any weight."""
        return average_of(self.sums[rows])


def with_ones(values: Float[Tensor, "M V"]) -> Float[Tensor, "M W"]:
    """The values and a last column of ones, whose sum is that of the weights."""
    return torch.cat([values, values.new_ones(len(values), 1)], 1)


def add_products(sums: Float[Tensor, "B W"], weights: Float[Tensor, "B M"], values: Float[Tensor, "M V"]) -> None:
    """Add weights @ values to the sums, and the weights' own sum to their last column."""
    if values.shape[1] < WIDE:
        sums += products(weights, with_ones(values))
    else:  # a copy with ones beside wide values costs more than one more pass over the weights
        sums[:, :-1] += products(weights, values)
        sums[:, -1] += weights.sum(1)


def products(weights: Float[Tensor, "B M"], values: Float[Tensor, "M V"]) -> Float[Tensor, "B V"]:
    """weights @ values, some centers at a time on a processor, which adds up in a row, and in full lanes."""
    width = values.shape[1]
    if values.device.type != "cpu" or weights.numel() < FEW:
        return weights @ values
    if width % LANES:
        values = torch.nn.functional.pad(values, (0, -width % LANES))
    result = values.new_zeros(len(weights), values.shape[1])
    for part in range(0, len(values), MIXED):
        result.addmm_(weights[:, part : part + MIXED], values[part : part + MIXED])
    return result[:, :width]


def average_of(sums: Float[Tensor, "B W"]) -> Float[Tensor, "B V"]:
    """The sums over the last of their columns; 0 for a query without any weight."""
    return sums[:, :-1] / torch.where(sums[:, -1:] > 0, sums[:, -1:], 1)


def accumulate(state: RunningAverage, x, centers, values, metric, exclude=None) -> RunningAverage:
    """Take all centers into the running average of one block of prepared queries, a block of centers at a time."""
    for cols in column_blocks(centers):
        distance, _ = metric.measure(x, metric.rows(centers[cols].to(state.sums.dtype)))
        state.add(without(distance, exclude, cols), values[cols].to(state.sums.dtype))
    return state


def streamed(queries, centers, values, kernel: Kernel, metric, exclude=None) -> tuple[Tensor, Tensor, Tensor]:
    """The averages [B, V], the nearest distances [B], and the total weights [B] beside the nearest one's."""
    dtype = working_dtype(queries, centers)
    result = torch.empty(len(queries), values.shape[1], dtype=dtype, device=queries.device)
    near, total = result.new_empty(2, len(queries))
    for rows in row_blocks(queries):
        x, skip = metric.rows(queries[rows].to(dtype)), None if exclude is None else exclude[rows]
        state = RunningAverage(kernel, rows.stop - rows.start, values.shape[1], result, metric.scale)
        if kernel.needs_nearest:
            state.near = nearest_of(queries[rows], centers, 1, metric, skip)[0][:, 0]
        accumulate(state, x, centers, values, metric, skip)
        result[rows], near[rows], total[rows] = state.value(), state.near, state.sums[:, -1]
    return result, near, total
