"""Blocks of queries against blocks of centers: running sums, nearest centers, and nothing larger than a block.

Weights are taken beside that of the nearest center so far, so that the averages are exactly normalised at any scale.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from nnlib.kernels import Kernel

BLOCK = {"cpu": (1024, 1024), "other": (2048, 4096)}  # queries x centers at a time
BLOCK_FEATURES = 1 << 22  # and no more numbers than this in a block's own rows
MIXED = 128  # centers whose values are summed in a row: longer float32 sums drop many small weights beside a large one
WIDE = 32  # columns of values
FEW = 1 << 14  # weights
LANES = 16  # columns that a processor multiplies at once: narrow products take as long, or several times longer


class Labels:
    """Integer labels 0 ... classes - 1 that stand for rows of a one-hot matrix, made a block at a time."""

    def __init__(self, labels: Int64[Tensor, " M"], classes: int):
        if labels.ndim != 1 or labels.dtype != torch.int64:
            raise ValueError(f"labels is {labels.dtype} {tuple(labels.shape)}: give int64 [M]")
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
        near = torch.minimum(before, distance.amin(1))
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


def average_nearest(queries, centers, values, kernel: Kernel, metric, exclude=None) -> Float[Tensor, "B V"]:
    """The plain mean over each query's `kernel.count` nearest centers."""
    index = nearest_of(queries, centers, kernel.count, metric, exclude)[1]
    parts = [mean_of(values, index[rows], working_dtype(queries, centers)) for rows in row_blocks(queries)]
    return torch.cat(parts)


def mean_of(values, index: Int64[Tensor, "B K"], dtype: torch.dtype) -> Float[Tensor, "B V"]:
    """The plain mean of the rows of these numbers, without those of -1."""
    found = index >= 0
    picked = values[index.clamp(min=0).flatten()].to(dtype).unflatten(0, index.shape)
    return (picked * found[..., None]).sum(1) / found.sum(1).clamp(min=1)[:, None]


@torch.no_grad()
def nearest_of(queries, centers, count: int, metric, exclude=None) -> tuple[Tensor, Tensor]:
    """Distances and indices [B, count] of the nearest centers, nearest first; inf and -1 where none is left."""
    found = []
    for rows in row_blocks(queries):
        x, skip = queries[rows].to(working_dtype(queries, centers)), None if exclude is None else exclude[rows]
        found.append(_nearest_rows(x, centers, count, metric, skip))
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))


def _nearest_rows(x: Float[Tensor, "B D"], centers, count: int, metric, exclude) -> tuple[Tensor, Tensor]:
    distance = x.new_full((len(x), count), torch.inf)
    index = torch.full_like(distance, -1, dtype=torch.int64)
    prepared = metric.rows(x)
    for cols in column_blocks(centers):
        block, _ = metric.measure(prepared, metric.rows(centers[cols].to(x.dtype)))
        _take_nearer(distance, index, without(block, exclude, cols), cols.start)
    return distance, index.masked_fill_(distance.isinf(), -1)


def _take_nearer(distance: Float[Tensor, "B K"], index: Int64[Tensor, "B K"], block: Float[Tensor, "B M"], start: int):
    """Put what is nearer in a block among the nearest so far: after some blocks, few rows have any."""
    count = distance.shape[1]
    low, place = block.min(1) if count == 1 else (block.amin(1), None)
    rows = (low < distance[:, -1]).nonzero()[:, 0]
    if count == 1:
        distance[rows, 0], index[rows, 0] = low[rows], place[rows] + start
    elif len(rows):
        near, place = _nearer(block if len(rows) == len(block) else block[rows], distance[rows])
        distance[rows], order = torch.cat([distance[rows], near], 1).topk(count, largest=False)
        index[rows] = torch.cat([index[rows], place + start], 1).gather(1, order)


def _nearer(block: Float[Tensor, "B M"], than: Float[Tensor, "B K"]) -> tuple[Tensor, Tensor]:
    """The nearest of a block that are among them so far: once most are found, few of a block are."""
    count = than.shape[1]
    closer = block < than[:, -1:]
    found = closer.sum(1)
    width = int(found.max())
    if width > 4 * count:
        return block.topk(min(count, block.shape[1]), largest=False)
    row, place = closer.nonzero(as_tuple=True)
    slot = torch.arange(len(row), device=row.device) - (found.cumsum(0) - found)[row]
    near, places = block.new_full((len(block), width), torch.inf), found.new_full((len(block), width), -1)
    near[row, slot], places[row, slot] = block[row, place], place
    return near, places


def working_dtype(*tensors) -> torch.dtype:
    """float64 where anything is, float32 for all else."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def without(distance: Float[Tensor, "B M"], exclude: Int64[Tensor, " B"] | None, cols: slice) -> Tensor:
    """The distances, inf to each query's excluded center. Overwrites them."""
    if exclude is None:
        return distance
    inside = (exclude >= cols.start) & (exclude < cols.stop)
    distance[inside.nonzero()[:, 0], exclude[inside] - cols.start] = torch.inf
    return distance


def finite(near: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """The nearest distances, 0 where there is no center yet."""
    return near.masked_fill(near == torch.inf, 0)


def row_blocks(queries) -> Iterator[slice]:
    return _blocks(len(queries), 0, queries)


def column_blocks(centers) -> Iterator[slice]:
    return _blocks(centers.shape[0], 1, centers)


def _blocks(length: int, side: int, rows) -> Iterator[slice]:
    most = BLOCK["cpu" if rows.device.type == "cpu" else "other"][side]
    size = max(1, min(most, BLOCK_FEATURES // max(1, rows.shape[1])))
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


@contextmanager
def exact_products():
    """float32 products in float32: where a process allows tf32 or bf16 for its networks, distances would be lost."""
    with ExitStack() as stack:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        stack.callback(_full_precision())
        yield


def _full_precision() -> Callable[[], None]:
    """Ask for full float32 products; what is returned undoes it."""
    try:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        return lambda: torch.set_float32_matmul_precision(before)
    except RuntimeError:  # the process uses torch's newer switches, which don't mix with this one
        switches = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
        held = [switch.fp32_precision for switch in switches]

        def turn(values):
            for switch, value in zip(switches, values, strict=True):
                switch.fp32_precision = value

        turn(["ieee"] * len(switches))
        return lambda: turn(held)
