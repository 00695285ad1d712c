"""Blocks of queries against blocks of centers: how large they are, what is left out of them, and in what precision.

The nearest centers of each query, by any metric, a block at a time.
Running sums over blocks of centers, and nothing larger than a block.
Gradients of the weighted average: the blocks are computed again, and nothing larger than one is ever kept.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from nnlib.attention.kernels import Kernel
from nnlib.distances import Workspace

BLOCK_SHAPE = {"cpu": (1024, 1024), "other": (2048, 4096)}  # queries x centers at a time
BLOCK_FEATURES = 1 << 22  # and no more numbers than this in a block's own rows


def working_dtype(*tensors) -> torch.dtype:
    """float64 where anything is, float32 for all else."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def mask_excluded(
    distance: Float[Tensor, "B M"], exclude: Int64[Tensor, " B"] | None, cols: slice
) -> Tensor:
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
    """Slices of a length: of queries (side 0) or centers (side 1) that lie where `rows` do."""
    most = BLOCK_SHAPE["cpu" if rows.device.type == "cpu" else "other"][side]
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


def uniform_knn_average(
    queries, centers, values, kernel: Kernel, metric, exclude=None
) -> Float[Tensor, "B V"]:
    """The plain mean over each query's `kernel.k` nearest centers."""
    index = blockwise_nearest(queries, centers, kernel.k, metric, exclude)[1]
    parts = [
        mean_of_rows(values, index[rows], working_dtype(queries, centers))
        for rows in row_blocks(queries)
    ]
    return torch.cat(parts)


def mean_of_rows(values, index: Int64[Tensor, "B K"], dtype: torch.dtype) -> Float[Tensor, "B V"]:
    """The plain mean of the rows of these numbers, without those of -1."""
    found = index >= 0
    picked = values[index.clamp(min=0).flatten()].to(dtype).unflatten(0, index.shape)
    return (picked * found[..., None]).sum(1) / found.sum(1).clamp(min=1)[:, None]


@torch.no_grad()
def blockwise_nearest(queries, centers, count: int, metric, exclude=None) -> tuple[Tensor, Tensor]:
    """Distances and indices [B, count] of the nearest centers, nearest first; inf and -1 where none is left."""
    found = (
        []
        if len(queries)
        else [(queries.new_empty(0, count), queries.new_empty(0, count, dtype=torch.int64))]
    )
    for rows in row_blocks(queries):
        x, skip = (
            queries[rows].to(working_dtype(queries, centers)),
            None if exclude is None else exclude[rows],
        )
        found.append(_nearest_rows(x, centers, count, metric, skip))
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))


def _nearest_rows(
    x: Float[Tensor, "B D"], centers, count: int, metric, exclude
) -> tuple[Tensor, Tensor]:
    near = x.new_full((len(x), count), torch.inf)
    index = torch.full_like(near, -1, dtype=torch.int64)
    prepared = metric.prepare(x)
    for cols in column_blocks(centers):
        block = metric.order(prepared, metric.prepare(centers[cols].to(x.dtype)))
        merge_topk(near, index, mask_excluded(block, exclude, cols), cols.start)
    return metric.distance_of(near), index.masked_fill_(near.isinf(), -1)


def merge_topk(
    near: Float[Tensor, "B K"], index: Int64[Tensor, "B K"], block: Float[Tensor, "B M"], start: int
):
    """Put what is nearer in a block among the nearest so far: after some blocks, few queries have any."""
    count = near.shape[1]
    low = block.amin(1)
    if bool(low.isnan().any()):  # what is nowhere is near nothing
        low = block.nan_to_num_(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf).amin(1)
    rows = (low < near[:, -1]).nonzero()[:, 0]
    if len(rows) == 0:
        return
    some = block if len(rows) == len(block) else block[rows]
    if count == 1:
        near[rows], place = some.min(1, keepdim=True)
        index[rows] = place + start
        return
    values, place = some.topk(min(count, some.shape[1]), largest=False)
    near[rows], order = torch.cat([near[rows], values], 1).topk(count, largest=False)
    index[rows] = torch.cat([index[rows], place + start], 1).gather(1, order)


SUM_CENTERS = 128  # centers whose values are summed in a row: longer float32 sums drop many small weights beside a large one
WIDE_VALUES = 32  # columns of values
FEW_WEIGHTS = 1 << 14  # weights
LANES = 16  # columns that a processor multiplies at once: narrow products take as long, or several times longer


class Labels:
    """Integer labels 0 ... classes - 1 that stand for rows of a one-hot matrix, made a block at a time."""

    def __init__(self, labels: Int64[Tensor, " M"], classes: int):
        if labels.ndim != 1 or labels.dtype != torch.int64:
            raise ValueError(f"labels is {labels.dtype} {tuple(labels.shape)}: give int64 [M]")
        low, high = map(int, torch.aminmax(labels)) if len(labels) else (0, 0)
        if low < 0 or high >= max(1, classes):
            raise ValueError(f"labels holds {low} ... {high}: give 0 ... {classes - 1}")
        self.labels, self.shape, self.dtype, self.device = (
            labels,
            (len(labels), classes),
            labels.dtype,
            labels.device,
        )

    def __getitem__(self, cols) -> Tensor:
        return torch.nn.functional.one_hot(self.labels[cols], self.shape[1])


class OnlineWeightedMean:
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
        sums *= self.kernel.relative_weights(before[:, None].clone(), beside, self.scale)
        add_products(sums, self.kernel.relative_weights(distance, beside, self.scale), values)
        self.near[rows] = near
        if not isinstance(rows, slice):  # which would have been a view
            self.sums[rows] = sums

    def value(self, rows: slice = slice(None)) -> Float[Tensor, "B V"]:
        """The average so far; 0 for a query without any weight."""
        return average_of(self.sums[rows])


def with_ones(values: Float[Tensor, "M V"]) -> Float[Tensor, "M W"]:
    """The values and a last column of ones, whose sum is that of the weights."""
    return torch.cat([values, values.new_ones(len(values), 1)], 1)


def add_products(
    sums: Float[Tensor, "B W"], weights: Float[Tensor, "B M"], values: Float[Tensor, "M V"]
) -> None:
    """Add weights @ values to the sums, and the weights' own sum to their last column."""
    if values.shape[1] < WIDE_VALUES:
        sums += weighted_sums(weights, with_ones(values))
    else:  # a copy with ones beside wide values costs more than one more pass over the weights
        sums[:, :-1] += weighted_sums(weights, values)
        sums[:, -1] += weights.sum(1)


def weighted_sums(
    weights: Float[Tensor, "B M"], values: Float[Tensor, "M V"]
) -> Float[Tensor, "B V"]:
    """weights @ values, some centers at a time on a processor, which adds up in a row, and in full lanes."""
    width = values.shape[1]
    if values.device.type != "cpu" or weights.numel() < FEW_WEIGHTS:
        return weights @ values
    if width % LANES:
        values = torch.nn.functional.pad(values, (0, -width % LANES))
    result = values.new_zeros(len(weights), values.shape[1])
    for part in range(0, len(values), SUM_CENTERS):
        result.addmm_(weights[:, part : part + SUM_CENTERS], values[part : part + SUM_CENTERS])
    return result[:, :width]


def average_of(sums: Float[Tensor, "B W"]) -> Float[Tensor, "B V"]:
    """The sums over the last of their columns; 0 for a query without any weight."""
    return sums[:, :-1] / torch.where(sums[:, -1:] > 0, sums[:, -1:], 1)


def accumulate(
    state: OnlineWeightedMean, x, centers, values, metric, exclude=None
) -> OnlineWeightedMean:
    """Take all centers into the running average of one block of prepared queries, a block of centers at a time."""
    for cols in column_blocks(centers):
        distance, _ = metric.pairwise(x, metric.prepare(centers[cols].to(state.sums.dtype)))
        state.add(mask_excluded(distance, exclude, cols), values[cols].to(state.sums.dtype))
    return state


def blockwise_average(
    queries, centers, values, kernel: Kernel, metric, exclude=None
) -> tuple[Tensor, Tensor, Tensor]:
    """The averages [B, V], the nearest distances [B], and the total weights [B] beside the nearest one's."""
    dtype = working_dtype(queries, centers)
    result = torch.empty(len(queries), values.shape[1], dtype=dtype, device=queries.device)
    near, total = result.new_empty(2, len(queries))
    for rows in row_blocks(queries):
        x, skip = (
            metric.prepare(queries[rows].to(dtype)),
            None if exclude is None else exclude[rows],
        )
        state = OnlineWeightedMean(
            kernel, rows.stop - rows.start, values.shape[1], result, metric.scale
        )
        if kernel.needs_nearest:
            state.near = blockwise_nearest(queries[rows], centers, 1, metric, skip)[0][:, 0]
        accumulate(state, x, centers, values, metric, skip)
        result[rows], near[rows], total[rows] = state.value(), state.near, state.sums[:, -1]
    return result, near, total


TINY = torch.finfo(torch.float32).tiny  # where a weight is 0, so is its pull


class BlockwiseBackward:
    """Gradients to queries, centers, values and sharpness, for what the forward pass has kept in `ctx`."""

    def __init__(self, ctx, gradient):
        saved = ctx.saved_tensors
        (
            self.queries,
            self.centers,
            self.values,
            result,
            self.near,
            total,
            self.exclude,
            sharpness,
        ) = saved
        self.kernel, self.metric, self.workspace, self.fused = (
            ctx.kernel,
            ctx.metric,
            Workspace(),
            ctx.fused,
        )
        self.source = self.values if ctx.labels is None else ctx.labels
        self.gradient = gradient / torch.where(total > 0, total, 1)[:, None]
        self.mean, self.pulled = (
            (self.gradient * result).sum(1, keepdim=True),
            any(ctx.needs_input_grad[:2]),
        )
        self.sharpness = sharpness if ctx.needs_input_grad[3] else None
        self.to_sharpness = None if self.sharpness is None else torch.zeros_like(sharpness)
        self.inputs = (self.queries, self.centers, self.values)
        self.to_queries, self.to_centers, self.to_values = (
            torch.zeros(like.shape, dtype=gradient.dtype, device=like.device) if needed else None
            for needed, like in zip(ctx.needs_input_grad[:3], self.inputs, strict=True)
        )

    def run(self):
        """The gradients to queries, centers, values and sharpness, None for those that need none."""
        if self.fused:
            found = self.fused.gradients(self.gradient, self.mean[:, 0], self.near)
            pairs = zip(
                found, (self.to_queries, self.to_centers, self.to_values), self.inputs, strict=True
            )
            return *(
                None if to is None else gradient.to(like.dtype) for gradient, to, like in pairs
            ), None
        for rows in row_blocks(self.queries):
            x = self.metric.prepare(self.queries[rows].to(self.gradient.dtype))
            near, to_near = finite(self.near[rows]), torch.zeros_like(self.near[rows])
            for cols in column_blocks(self.centers):
                self._block(x, rows, cols, near, to_near)
            if self.kernel.needs_nearest and self.pulled:
                self._spread_nearest(rows, to_near)
        found = zip((self.to_queries, self.to_centers, self.to_values), self.inputs, strict=True)
        return *(
            None if gradient is None else gradient.to(like.dtype) for gradient, like in found
        ), self.to_sharpness

    def _block(self, x, rows, cols, near, to_near):
        c = self.metric.prepare(self.centers[cols].to(self.gradient.dtype))
        distance, kept = self.metric.pairwise(x, c, keep=True)
        skip = None if self.exclude is None else self.exclude[rows]
        apart = self.pulled or self.sharpness is not None
        weights = self.workspace.beside("weights", distance).copy_(distance) if apart else distance
        self.kernel.relative_weights(mask_excluded(weights, skip, cols), near, self.metric.scale)
        gradient, v = self.gradient[rows], self.source[cols].to(self.gradient.dtype)
        if self.to_values is not None:
            self.to_values[cols] += weighted_sums(weights.T, gradient)
        if not apart:
            return
        pull = (
            torch.mm(gradient, v.T, out=self.workspace.beside("pull", distance))
            .sub_(self.mean[rows])
            .mul_(weights)
        )
        if (
            self.sharpness is not None
        ):  # a weight's logarithm grows with the power by that logarithm over the power
            self.to_sharpness += torch.xlogy(pull, weights.clamp(min=TINY)).sum() / self.sharpness
        if self.pulled:
            self.kernel.scale_by_log_slope(pull, distance, near, self.metric.scale, weights)
            if self.kernel.needs_nearest:
                to_near -= self.kernel.influence_cone_factor * pull.sum(1)
            to_queries, to_centers = self.metric.backward(x, c, distance, kept, pull)
            if self.to_queries is not None:
                self.to_queries[rows] += to_queries
            if self.to_centers is not None:
                self.to_centers[cols] += to_centers

    def _spread_nearest(self, rows, to_near):
        """The nearest distance is itself one of the distances: pass its gradient on to that pair."""
        skip = None if self.exclude is None else self.exclude[rows]
        index = blockwise_nearest(self.queries[rows], self.centers, 1, self.metric, skip)[1][
            :, 0
        ].clamp(min=0)
        x, c = (part.to(self.gradient.dtype) for part in (self.queries[rows], self.centers[index]))
        difference = (x - c) * self.metric.scale
        length = torch.linalg.vector_norm(difference, dim=1)
        pull = (
            difference * (to_near * self.metric.scale / torch.where(length > 0, length, 1))[:, None]
        )
        if self.to_queries is not None:
            self.to_queries[rows] += pull
        if self.to_centers is not None:
            self.to_centers.index_add_(0, index, pull, alpha=-1)
