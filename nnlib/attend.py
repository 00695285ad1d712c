"""The one hot path: a streaming, exactly normalised weighted average over centers.

    y(x) = sum_j softmax_j(s(x, c_j)) v_j

Blocks of queries meet blocks of centers, an online maximum keeps the exponentials in range, and nothing larger than a
block is ever held. The backward pass computes the blocks again instead of keeping them.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from nnlib.distances import Frame
from nnlib.kernels import Kernel

BLOCK = {"cpu": (1024, 1024), "other": (2048, 4096)}  # queries x centers at a time
BLOCK_FEATURES = 1 << 22  # and no more numbers than this in a block's own rows
MIXED = 128  # centers whose values are summed in a row: longer float32 sums drop many small weights beside a large one
BACKENDS = ("auto", "blocks")


def attend(
    queries: Shaped[Tensor, "B D"],
    centers: Shaped[Tensor, "M D"],
    values: "Shaped[Tensor, 'M V'] | Labels",
    kernel: Kernel,
    exclude: Int64[Tensor, " B"] | None = None,
    backend: str = "auto",
) -> Float[Tensor, "B V"]:
    """The weighted average of `values` over all centers, for each query.

    queries [B, D], centers [M, D], values [M, V] of any real type: float64 is computed in float64, all else in float32.
    values may be Labels: the result is each class's share of the weight.
    exclude [B]: the index of a center to leave out, -1 for none. A query that is left without any weight gets 0.
    Differentiable in queries, centers and values. Raises ValueError where shapes, devices or `backend` don't fit.
    """
    _check(queries, centers, values, exclude, backend)
    if len(values.shape) != 2:
        raise ValueError(f"values has shape {tuple(values.shape)}: give [M, V], or Labels")
    with exact_products():
        if kernel.count is not None:
            frame = kernel.frame(queries, centers, working_dtype(queries, centers))
            return average_nearest(queries, centers, values, kernel, frame, exclude)
        labels = values if isinstance(values, Labels) else None
        return _Attend.apply(queries, centers, None if labels else values, labels, kernel, exclude)


def class_log_probabilities(
    queries: Shaped[Tensor, "B D"],
    centers: Shaped[Tensor, "M D"],
    labels: Int64[Tensor, " M"],
    classes: int,
    kernel: Kernel,
    exclude: Int64[Tensor, " B"] | None = None,
    backend: str = "auto",
) -> Float[Tensor, "B C"]:
    """log of each class's share of the weight: the average of one-hot labels, without ever holding them whole.

    labels [M] in 0 ... classes - 1. A class without weight gets the logarithm of the smallest normal float, not -inf.
    """
    share = attend(queries, centers, Labels(labels, classes), kernel, exclude, backend)
    return share.clamp(min=torch.finfo(share.dtype).tiny).log()


@torch.no_grad()
def nearest(
    queries: Shaped[Tensor, "B D"],
    centers: Shaped[Tensor, "M D"],
    count: int,
    kernel: Kernel,
    exclude: Int64[Tensor, " B"] | None = None,
) -> tuple[Float[Tensor, "B K"], Int64[Tensor, "B K"]]:
    """Distances and indices of the `count` nearest centers, nearest first, by the kernel's own distance.

    A place that no center is left for (excluded, or fewer than `count`) has distance inf and index -1.
    """
    _check(queries, centers, None, exclude, "auto")
    frame = kernel.frame(queries, centers, working_dtype(queries, centers))
    distance, index = _nearest(queries, centers, count, kernel, frame, exclude)
    return distance / frame.scale, index


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

    def add(self, scores: Float[Tensor, "B M"], values: Float[Tensor, "M V"], rows: slice = slice(None)) -> None:
        """Take in more centers, for the queries of `rows`. Overwrites `scores`."""
        if scores.shape[1] == 0:
            return
        before, values = self.top[rows], torch.cat([values, values.new_ones(len(values), 1)], 1)
        top = torch.maximum(before, scores.amax(1))
        weights = scores.sub_(_finite(top)[:, None]).exp_()
        sums = self.sums[rows].mul_(torch.exp(before - _finite(top))[:, None])
        for part in range(0, len(values), MIXED):
            sums += weights[:, part : part + MIXED] @ values[part : part + MIXED]
        self.top[rows] = top

    def value(self, rows: slice = slice(None)) -> Float[Tensor, "B V"]:
        """The average so far; 0 for a query without any weight."""
        total = self.sums[rows, -1:]
        return self.sums[rows, :-1] / torch.where(total > 0, total, 1)

    def log_total(self) -> Float[Tensor, " B"]:
        """log of the sum of the weights."""
        return self.top + self.sums[:, -1].log()


def accumulate(
    state: RunningAverage, queries: Tensor, centers, values, kernel: Kernel, frame: Frame, near=None, exclude=None
) -> RunningAverage:
    """Take all centers into the running average of one block of queries, a block of centers at a time."""
    for cols in _cols(centers):
        distance = kernel.distance(queries, centers[cols].to(queries.dtype), frame)
        scores = _without(kernel.log_weight(distance, frame, near), exclude, cols)
        state.add(scores, values[cols].to(queries.dtype))
    return state


def streamed(queries, centers, values, kernel: Kernel, frame: Frame, exclude=None) -> tuple[Tensor, Tensor]:
    """The averages [B, V] and the logarithms of the total weights [B], a block of queries and of centers at a time."""
    dtype = working_dtype(queries, centers)
    result = torch.empty(len(queries), values.shape[1], dtype=dtype, device=queries.device)
    log_total = result.new_empty(len(queries))
    for rows in _rows(queries):
        x, skip = queries[rows].to(dtype), None if exclude is None else exclude[rows]
        near, _ = _nearest_one(queries, rows, centers, kernel, frame, exclude)
        state = RunningAverage(len(x), values.shape[1], x)
        accumulate(state, x, centers, values, kernel, frame, near, skip)
        result[rows], log_total[rows] = state.value(), state.log_total()
    return result, log_total


def working_dtype(*tensors) -> torch.dtype:
    """float64 where anything is, float32 for all else."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def average_nearest(queries, centers, values, kernel: Kernel, frame: Frame, exclude=None) -> Float[Tensor, "B V"]:
    """The plain mean over each query's `kernel.count` nearest centers."""
    with torch.no_grad():
        _, index = _nearest(queries, centers, kernel.count, kernel, frame, exclude)
    found = index >= 0
    picked = values[index.clamp(min=0).flatten()].to(working_dtype(queries, centers)).unflatten(0, index.shape)
    return (picked * found[..., None]).sum(1) / found.sum(1).clamp(min=1)[:, None]


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx, queries, centers, values, labels, kernel, exclude):
        frame = kernel.frame(queries, centers, working_dtype(queries, centers))
        source = values if labels is None else labels
        result, log_total = streamed(queries, centers, source, kernel, frame, exclude)
        ctx.save_for_backward(queries, centers, values, result, log_total, exclude)
        ctx.labels, ctx.kernel, ctx.frame = labels, kernel, frame
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        with exact_products():
            return (*_Backward(ctx, gradient).run(), None, None, None)


class _Backward:
    """Gradients to queries, centers and values, the blocks computed again."""

    def __init__(self, ctx, gradient):
        self.queries, self.centers, self.values, result, self.log_total, self.exclude = ctx.saved_tensors
        self.kernel, self.frame = ctx.kernel, ctx.frame
        self.source = self.values if ctx.labels is None else ctx.labels
        self.gradient, self.mean = gradient, (gradient * result).sum(1)
        self.inputs = (self.queries, self.centers, self.values)
        self.to_queries, self.to_centers, self.to_values = (
            torch.zeros(like.shape, dtype=gradient.dtype, device=like.device) if needed else None
            for needed, like in zip(ctx.needs_input_grad[:3], self.inputs, strict=True)
        )

    def run(self):
        for rows in _rows(self.queries):
            x = self.queries[rows].to(self.gradient.dtype)
            near, index = _nearest_one(self.queries, rows, self.centers, self.kernel, self.frame, self.exclude)
            to_near = None if near is None else torch.zeros_like(near)
            for cols in _cols(self.centers):
                self._block(x, rows, cols, near, to_near)
            if near is not None:
                self._spread_nearest(x, rows, index, to_near)
        found = zip((self.to_queries, self.to_centers, self.to_values), self.inputs, strict=True)
        return tuple(None if gradient is None else gradient.to(like.dtype) for gradient, like in found)

    def _block(self, x, rows, cols, near, to_near):
        v = self.source[cols].to(x.dtype)
        inputs = [x.detach(), self.centers[cols].to(x.dtype).detach(), *([] if near is None else [near.detach()])]
        with torch.enable_grad():
            inputs = [part.requires_grad_() for part in inputs]
            distance = self.kernel.distance(*inputs[:2], self.frame)
            scores = self.kernel.log_weight(distance, self.frame, *inputs[2:])
        skip = None if self.exclude is None else self.exclude[rows]
        weights = torch.exp(_without(scores.detach().clone(), skip, cols) - _finite(self.log_total[rows])[:, None])
        gradient = self.gradient[rows]
        if self.to_values is not None:
            self.to_values[cols] += weights.T @ gradient
        if self.to_queries is not None or self.to_centers is not None:
            pull = weights.mul_(gradient @ v.T - self.mean[rows, None])
            grads = torch.autograd.grad(scores, inputs, pull)
            self._collect(rows, cols, grads, to_near)

    def _collect(self, rows, cols, grads, to_near):
        if self.to_queries is not None:
            self.to_queries[rows] += grads[0]
        if self.to_centers is not None:
            self.to_centers[cols] += grads[1]
        if to_near is not None:
            to_near += grads[2]

    def _spread_nearest(self, x, rows, index, to_near):
        """The nearest distance is itself one of the distances: pass its gradient on to that pair."""
        index = index.clamp(min=0)
        difference = (x - self.centers[index].to(x.dtype)) * self.frame.scale
        length = torch.linalg.vector_norm(difference, dim=1)
        pull = difference * (to_near * self.frame.scale / torch.where(length > 0, length, 1))[:, None]
        if self.to_queries is not None:
            self.to_queries[rows] += pull
        if self.to_centers is not None:
            self.to_centers.index_add_(0, index, pull, alpha=-1)


def _nearest(queries, centers, count, kernel, frame, exclude) -> tuple[Tensor, Tensor]:
    found = [_nearest_rows(queries, rows, centers, count, kernel, frame, exclude) for rows in _rows(queries)]
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))


def _nearest_rows(queries, rows, centers, count, kernel, frame, exclude):
    x = queries[rows].to(working_dtype(queries, centers))
    skip = None if exclude is None else exclude[rows]
    distance = x.new_full((len(x), count), torch.inf)
    index = torch.full((len(x), count), -1, device=x.device)
    for cols in _cols(centers):
        block = _without(kernel.distance(x, centers[cols].to(x.dtype), frame), skip, cols, torch.inf)
        near, place = block.topk(min(count, block.shape[1]), largest=False)
        distance, order = torch.cat([distance, near], 1).topk(count, largest=False)
        index = torch.cat([index, place + cols.start], 1).gather(1, order)
    return distance, index.masked_fill_(distance.isinf(), -1)


def _nearest_one(queries, rows, centers, kernel, frame, exclude):
    if not kernel.needs_nearest:
        return None, None
    distance, index = _nearest_rows(queries, rows, centers, 1, kernel, frame, exclude)
    return distance[:, 0], index[:, 0]


def _without(scores: Tensor, exclude: Tensor | None, cols: slice, value: float = -torch.inf) -> Tensor:
    if exclude is None:
        return scores
    inside = (exclude >= cols.start) & (exclude < cols.stop)
    scores[inside.nonzero()[:, 0], exclude[inside] - cols.start] = value
    return scores


def _finite(top: Tensor) -> Tensor:
    return torch.where(top == -torch.inf, 0, top)


def _rows(queries) -> Iterator[slice]:
    return _blocks(len(queries), 0, queries)


def _cols(centers) -> Iterator[slice]:
    return _blocks(centers.shape[0], 1, centers)


def _blocks(length: int, side: int, rows) -> Iterator[slice]:
    most = BLOCK["cpu" if rows.device.type == "cpu" else "other"][side]
    size = max(1, min(most, BLOCK_FEATURES // max(1, rows.shape[1])))
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


@contextmanager
def exact_products():
    """float32 products in float32: a process that allows tf32 or bf16 for its networks would lose the distances."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _check(queries, centers, values, exclude, backend: str) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r} is not known: give one of {', '.join(BACKENDS)}")
    if queries.ndim != 2 or len(centers.shape) != 2 or queries.shape[1] != centers.shape[1]:
        raise ValueError(f"queries {tuple(queries.shape)} and centers {tuple(centers.shape)}: give [B, D] and [M, D]")
    if centers.shape[0] == 0:
        raise ValueError("centers is empty: give at least one")
    if values is not None and values.shape[0] != centers.shape[0]:
        raise ValueError(f"values has {values.shape[0]} rows for {centers.shape[0]} centers: give one a center")
    if exclude is not None and exclude.shape != queries.shape[:1]:
        raise ValueError(f"exclude has shape {tuple(exclude.shape)}: give [{queries.shape[0]}], one index a query")
    devices = {str(t.device) for t in (queries, centers, values, exclude) if t is not None}
    if len(devices) > 1:
        raise ValueError(f"tensors lie on {' and '.join(sorted(devices))}: move them to one device")
