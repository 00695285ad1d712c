"""Blocks of queries against blocks of centers: running sums, nearest centers, and nothing larger than a block.

An online maximum keeps the exponentials in range, so that the averages are exactly normalised at any scale.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from nnlib.distances import Frame
from nnlib.kernels import Kernel

BLOCK = {"cpu": (1024, 1024), "other": (2048, 4096)}  # queries x centers at a time
BLOCK_FEATURES = 1 << 22  # and no more numbers than this in a block's own rows
MIXED = 128  # centers whose values are summed in a row: longer float32 sums drop many small weights beside a large one
WIDE = 32  # columns of values


class Labels:
    """Integer labels 0 ... classes - 1 that stand for rows of a one-hot matrix, made a block at a time."""

    def __init__(self, labels: Int64[Tensor, " M"], classes: int):
        if labels.ndim != 1 or labels.dtype != torch.int64:
            raise ValueError(f"labels is {labels.dtype} {tuple(labels.shape)}: give int64 [M]")
        self.labels, self.shape, self.dtype, self.device = labels, (len(labels), classes), labels.dtype, labels.device

    def __getitem__(self, cols) -> Tensor:
        return torch.nn.functional.one_hot(self.labels[cols], self.shape[1])


class RunningAverage:
    """Sums of exp(s) v and of exp(s) under a running maximum of s, for a block of queries."""

    def __init__(self, queries: int, values: int, like: Tensor):
        self.top = like.new_full((queries,), -torch.inf)
        self.sums = like.new_zeros(queries, values + 1)  # the last column is the sum of the weights

    def add(
        self,
        scores: Float[Tensor, "B M"],
        values: Float[Tensor, "M V"],
        rows: slice | Int64[Tensor, " B"] = slice(None),
    ) -> None:
        """Take in more centers, for the queries of `rows`. Overwrites `scores`."""
        if scores.numel() == 0:
            return
        before = self.top[rows]
        top = torch.maximum(before, scores.amax(1))
        weights = scores.sub_(finite(top)[:, None]).exp_()
        sums = self.sums[rows].mul_(torch.exp(before - finite(top))[:, None])
        add_products(sums, weights, values)
        self.sums[rows], self.top[rows] = sums, top

    def value(self, rows: slice = slice(None)) -> Float[Tensor, "B V"]:
        """The average so far; 0 for a query without any weight."""
        return average_of(self.sums[rows])

    def log_total(self) -> Float[Tensor, " B"]:
        """log of the sum of the weights."""
        return self.top + self.sums[:, -1].log()


def with_ones(values: Float[Tensor, "M V"]) -> Float[Tensor, "M W"]:
    """The values and a last column of ones, whose sum is that of the weights."""
    return torch.cat([values, values.new_ones(len(values), 1)], 1)


def add_products(sums: Float[Tensor, "B W"], weights: Float[Tensor, "B M"], values: Float[Tensor, "M V"]) -> None:
    """Add weights @ values to the sums and the weights' own sum to their last column, some centers at a time."""
    wide = values.shape[1] >= WIDE  # a copy with ones beside wide values costs more than one more pass over the weights
    products = sums.new_zeros(len(sums), values.shape[1]) if wide else sums
    values = values if wide else with_ones(values)
    step = MIXED if values.device.type == "cpu" or not wide else 16 * MIXED  # a GPU adds up in parts itself
    for part in range(0, len(values), step):
        if wide:
            products.addmm_(weights[:, part : part + step], values[part : part + step])
        else:  # added apart, the sums of all classes agree with their total to the last digits
            products += weights[:, part : part + step] @ values[part : part + step]
    if wide:
        sums[:, :-1] += products
        sums[:, -1] += weights.sum(1)


def average_of(sums: Float[Tensor, "B W"]) -> Float[Tensor, "B V"]:
    """The sums over the last of their columns; 0 for a query without any weight."""
    return sums[:, :-1] / torch.where(sums[:, -1:] > 0, sums[:, -1:], 1)


def accumulate(
    state: RunningAverage, queries: Tensor, centers, values, kernel: Kernel, frame: Frame, near=None, exclude=None
) -> RunningAverage:
    """Take all centers into the running average of one block of queries, a block of centers at a time."""
    for cols in column_blocks(centers):
        distance = kernel.distance(queries, centers[cols].to(queries.dtype), frame)
        scores = without(kernel.log_weight(distance, frame, near), exclude, cols)
        state.add(scores, values[cols].to(queries.dtype))
    return state


def streamed(queries, centers, values, kernel: Kernel, frame: Frame, exclude=None) -> tuple[Tensor, Tensor]:
    """The averages [B, V] and the logarithms of the total weights [B], a block of queries and of centers at a time."""
    dtype = working_dtype(queries, centers)
    result = torch.empty(len(queries), values.shape[1], dtype=dtype, device=queries.device)
    log_total = result.new_empty(len(queries))
    for rows in row_blocks(queries):
        x, skip = queries[rows].to(dtype), None if exclude is None else exclude[rows]
        near, _ = nearest_one(queries, rows, centers, kernel, frame, exclude)
        state = RunningAverage(len(x), values.shape[1], x)
        accumulate(state, x, centers, values, kernel, frame, near, skip)
        result[rows], log_total[rows] = state.value(), state.log_total()
    return result, log_total


def average_nearest(queries, centers, values, kernel: Kernel, frame: Frame, exclude=None) -> Float[Tensor, "B V"]:
    """The plain mean over each query's `kernel.count` nearest centers."""
    parts = []
    for rows in row_blocks(queries):
        with torch.no_grad():
            _, index = nearest_rows(queries, rows, centers, kernel.count, kernel, frame, exclude)
        parts.append(mean_of(values, index, working_dtype(queries, centers)))
    return torch.cat(parts)


def mean_of(values, index: Int64[Tensor, "B K"], dtype: torch.dtype) -> Float[Tensor, "B V"]:
    """The plain mean of the rows of these numbers, without those of -1."""
    found = index >= 0
    picked = values[index.clamp(min=0).flatten()].to(dtype).unflatten(0, index.shape)
    return (picked * found[..., None]).sum(1) / found.sum(1).clamp(min=1)[:, None]


def nearest_of(queries, centers, count, kernel, frame, exclude) -> tuple[Tensor, Tensor]:
    found = [nearest_rows(queries, rows, centers, count, kernel, frame, exclude) for rows in row_blocks(queries)]
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))


def nearest_rows(queries, rows, centers, count, kernel, frame, exclude):
    """Distances and indices of the nearest centers for one block of queries; inf and -1 where none is left."""
    x = queries[rows].to(working_dtype(queries, centers))
    skip = None if exclude is None else exclude[rows]
    distance = x.new_full((len(x), count), torch.inf)
    index = torch.full((len(x), count), -1, device=x.device)
    for cols in column_blocks(centers):
        block = without(kernel.distance(x, centers[cols].to(x.dtype), frame), skip, cols, torch.inf)
        near, place = _nearer(block, distance)
        distance, order = torch.cat([distance, near], 1).topk(count, largest=False)
        index = torch.cat([index, place + cols.start], 1).gather(1, order)
    return distance, index.masked_fill_(distance.isinf(), -1)


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


def nearest_one(queries, rows, centers, kernel, frame, exclude):
    """The nearest center's distance and index for one block of queries, for kernels that ask for it."""
    if not kernel.needs_nearest:
        return None, None
    distance, index = nearest_rows(queries, rows, centers, 1, kernel, frame, exclude)
    return distance[:, 0], index[:, 0]


def working_dtype(*tensors) -> torch.dtype:
    """float64 where anything is, float32 for all else."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def without(scores: Tensor, exclude: Tensor | None, cols: slice, value: float = -torch.inf) -> Tensor:
    """The scores with each query's excluded center set to `value`. Overwrites them."""
    if exclude is None:
        return scores
    inside = (exclude >= cols.start) & (exclude < cols.stop)
    scores[inside.nonzero()[:, 0], exclude[inside] - cols.start] = value
    return scores


def finite(top: Tensor) -> Tensor:
    return torch.where(top == -torch.inf, 0, top)


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
