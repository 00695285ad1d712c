"""The one hot path: a streaming, exactly normalised weighted average over centers.

    y(x) = sum_j softmax_j(s(x, c_j)) v_j

Nothing larger than a block of queries and centers is ever held; the backward pass computes the blocks again instead of
keeping them.
"""

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from nnlib.frames import Room
from nnlib.kernels import Kernel, KNearest
from nnlib.search import hindrance, pays, searched, tree_nearest
from nnlib.stream import (
    Labels,
    average_nearest,
    column_blocks,
    exact_products,
    finite,
    nearest_of,
    products,
    row_blocks,
    streamed,
    without,
    working_dtype,
)

BACKENDS = ("auto", "blocks", "search")


def attend(
    queries: Shaped[Tensor, "B D"],
    centers: Shaped[Tensor, "M D"],
    values: "Shaped[Tensor, 'M V'] | Labels",
    kernel: Kernel,
    exclude: Int64[Tensor, " B"] | None = None,
    backend: str = "auto",
    tolerance: float = 0.0,
) -> Float[Tensor, "B V"]:
    """The weighted average of `values` over all centers, for each query.

    queries [B, D], centers [M, D], values [M, V] of any real type: computed in float64 where queries or centers are, in
    float32 otherwise. values may be Labels: the result is each class's share of the weight.
    exclude [B]: the index of a center to leave out, -1 for none. A query that is left without any weight gets 0.
    backend: "blocks" measures all distances; "search" finds the few centers that matter, for at most 3 features on a
    CPU, without gradients: as exactly for InfluenceCone and for KNearest by a Euclidean distance. "auto" takes the
    quicker one. tolerance: the share of the weight that a search with InverseDistance may leave out, which moves an
    average by at most this share of the values' range.
    Differentiable in queries, centers and values (KNearest: in values alone). Raises ValueError where shapes, devices
    or `backend` don't fit.
    """
    _check(queries, centers, values, exclude, backend)
    if not 0 <= tolerance < 1:
        raise ValueError(f"tolerance={tolerance!r} can't be used: give a share in [0, 1)")
    if len(values.shape) != 2:
        raise ValueError(f"values has shape {tuple(values.shape)}: give [M, V], or Labels")
    if len(queries) == 0:
        return torch.zeros(0, values.shape[1], dtype=working_dtype(queries, centers), device=queries.device)
    with exact_products():
        if _searches(queries, centers, values, kernel, backend, tolerance):
            return searched(queries, centers, values, kernel, exclude, tolerance)
        if kernel.count is not None:
            metric = kernel.metric(queries.detach(), centers.detach(), working_dtype(queries, centers))
            return average_nearest(queries, centers, values, kernel, metric, exclude)
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
    backend: str = "auto",
) -> tuple[Float[Tensor, "B K"], Int64[Tensor, "B K"]]:
    """Distances and indices of the `count` nearest centers, nearest first, by the kernel's own distance.

    A place that no center is left for (excluded, or fewer than `count`) has distance inf and index -1.
    """
    _check(queries, centers, None, exclude, backend)
    if _searches(queries, centers, None, KNearest(count, kernel), backend):
        return tree_nearest(queries, centers, count, kernel, exclude)
    with exact_products():
        metric = kernel.metric(queries, centers, working_dtype(queries, centers))
        distance, index = nearest_of(queries, centers, count, metric, exclude)
        return distance / metric.scale, index


def _searches(queries, centers, values, kernel: Kernel, backend: str, tolerance: float = 0.0) -> bool:
    """Whether to search; raises ValueError where that was asked for and can't be done."""
    width = 1 if values is None else values.shape[1] + 1
    if backend == "blocks" or (backend == "auto" and not pays(len(queries), len(centers), width, kernel.count)):
        return False
    given = [part for part in (queries, centers, values) if isinstance(part, Tensor)]
    reason = hindrance(kernel, centers, *given, tolerance=tolerance)
    if reason and backend == "search":
        raise ValueError(f"backend='search' {reason}, or backend='auto'")
    return reason is None


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx, queries, centers, values, labels, kernel, exclude):
        """The averages [B, V]; of the weights only their totals are kept, beside that of the nearest center."""
        metric = kernel.metric(queries, centers, working_dtype(queries, centers))
        source = values if labels is None else labels
        result, near, total = streamed(queries, centers, source, kernel, metric, exclude)
        ctx.save_for_backward(queries, centers, values, result, near, total, exclude)
        ctx.labels, ctx.kernel, ctx.metric = labels, kernel, metric
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        with exact_products():
            return (*_Backward(ctx, gradient).run(), None, None, None)


class _Backward:
    """Gradients to queries, centers and values, the blocks computed again."""

    def __init__(self, ctx, gradient):
        self.queries, self.centers, self.values, result, self.near, total, self.exclude = ctx.saved_tensors
        self.kernel, self.metric, self.room = ctx.kernel, ctx.metric, Room()
        self.source = self.values if ctx.labels is None else ctx.labels
        self.gradient = gradient / torch.where(total > 0, total, 1)[:, None]
        self.mean, self.pulled = (self.gradient * result).sum(1, keepdim=True), any(ctx.needs_input_grad[:2])
        self.inputs = (self.queries, self.centers, self.values)
        self.to_queries, self.to_centers, self.to_values = (
            torch.zeros(like.shape, dtype=gradient.dtype, device=like.device) if needed else None
            for needed, like in zip(ctx.needs_input_grad[:3], self.inputs, strict=True)
        )

    def run(self):
        """The gradients to queries, centers and values, None for those that need none."""
        for rows in row_blocks(self.queries):
            x = self.metric.rows(self.queries[rows].to(self.gradient.dtype))
            near, to_near = finite(self.near[rows]), torch.zeros_like(self.near[rows])
            for cols in column_blocks(self.centers):
                self._block(x, rows, cols, near, to_near)
            if self.kernel.needs_nearest and self.pulled:
                self._spread_nearest(rows, to_near)
        found = zip((self.to_queries, self.to_centers, self.to_values), self.inputs, strict=True)
        return tuple(None if gradient is None else gradient.to(like.dtype) for gradient, like in found)

    def _block(self, x, rows, cols, near, to_near):
        c = self.metric.rows(self.centers[cols].to(self.gradient.dtype))
        distance, kept = self.metric.measure(x, c, keep=True)
        skip = None if self.exclude is None else self.exclude[rows]
        weights = self.room.beside("weights", distance).copy_(distance) if self.pulled else distance
        self.kernel.weigh(without(weights, skip, cols), near, self.metric.scale)
        gradient, v = self.gradient[rows], self.source[cols].to(self.gradient.dtype)
        if self.to_values is not None:
            self.to_values[cols] += products(weights.T, gradient)
        if self.pulled:
            pull = torch.mm(gradient, v.T, out=self.room.beside("pull", distance)).sub_(self.mean[rows]).mul_(weights)
            self.kernel.steepen(pull, distance, near, self.metric.scale, weights)
            if self.kernel.needs_nearest:
                to_near -= self.kernel.influence_cone_factor * pull.sum(1)
            to_queries, to_centers = self.metric.pull(x, c, distance, kept, pull)
            if self.to_queries is not None:
                self.to_queries[rows] += to_queries
            if self.to_centers is not None:
                self.to_centers[cols] += to_centers

    def _spread_nearest(self, rows, to_near):
        """The nearest distance is itself one of the distances: pass its gradient on to that pair."""
        skip = None if self.exclude is None else self.exclude[rows]
        index = nearest_of(self.queries[rows], self.centers, 1, self.metric, skip)[1][:, 0].clamp(min=0)
        x, c = (part.to(self.gradient.dtype) for part in (self.queries[rows], self.centers[index]))
        difference = (x - c) * self.metric.scale
        length = torch.linalg.vector_norm(difference, dim=1)
        pull = difference * (to_near * self.metric.scale / torch.where(length > 0, length, 1))[:, None]
        if self.to_queries is not None:
            self.to_queries[rows] += pull
        if self.to_centers is not None:
            self.to_centers.index_add_(0, index, pull, alpha=-1)


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
