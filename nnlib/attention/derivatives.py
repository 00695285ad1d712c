"""Derivatives of the average: once by blocks of both sides, twice by blocks of queries."""

import torch
from torch import Tensor

from nnlib._common.runtime import torch_defaults
from nnlib.attention.blockwise import (
    Averages,
    Call,
    LoopedFunction,
    as_exact,
    block_slices,
    blockwise_average,
    blockwise_nearest,
    finite,
    mask_excluded,
    mean_of_rows,
    spread,
    weighted_sums,
)
from nnlib.distances import EuclideanDistance, Workspace, wide_dtype

TINY = torch.finfo(torch.float32).tiny
PAIRS = 1 << 18  # of queries and centers that are differentiated twice at a time


class GradientsFunction(LoopedFunction):
    """Gradients to queries, centers, values and sharpness, those of them that are needed."""

    @staticmethod
    def forward(gradient, *inputs):
        """The first derivatives, measured again block by block."""
        *inputs, exclude, result, nearest, total, call = inputs
        queries, centers, values, _ = exact = (*map(as_exact, inputs[:2]), *inputs[2:])
        with torch_defaults():
            if call.kernel.k is not None:
                parts = [None, None, _knn_gradient(values, nearest, gradient), None]
            else:
                if len(total) != len(queries):  # a search found the average
                    rows = values if call.labels is None else call.labels
                    distance_fn = call.distance(queries, centers)
                    result, nearest, total = blockwise_average(
                        queries, centers, rows, call.kernel, distance_fn, exclude
                    )
                outputs = (result, nearest, total)
                blocks = BlockwiseBackward(call, exact, exclude, gradient, outputs)
                if call.triton is None:
                    parts = blocks.run()
                else:
                    mean = blocks.mean[:, 0]
                    parts = [*call.triton.gradients(blocks.gradient, mean, nearest), None]
        found = zip(parts, inputs, call.needed, strict=True)
        return tuple(part.to(like.dtype) for part, like, wanted in found if wanted)

    @staticmethod
    def backward(ctx, *vectors):
        vectors = (None, *spread(vectors, ctx.settings.needed))
        products = HessianFunction.apply(*ctx.saved_tensors[:8], *vectors, ctx.settings)
        return *products, *[None] * 5

    @staticmethod
    def jvp(ctx, *tangents):
        products = HessianFunction.apply(*ctx.saved_tensors[:8], *tangents[:5], ctx.settings)
        found = zip(products[1:], ctx.settings.needed, strict=True)
        return tuple(part for part, wanted in found if wanted)


class HessianFunction(LoopedFunction):
    """Second derivatives of (gradient . average), by all that it depends on, times a vector."""

    @staticmethod
    def forward(*inputs):
        """Take what the gradients depend on, and a vector for each of the first five.

        By blocks of queries, since autograd holds all their pairs with the centers.
        """
        parts, (exclude, _, index), vectors, call = (
            inputs[:5],
            inputs[5:8],
            inputs[8:13],
            inputs[13],
        )
        index = index if call.kernel.k is not None else None
        present = [part is not None for part in parts]
        leaves = [part.detach().to(wide_dtype(part)) for part in parts if part is not None]
        sums = [torch.zeros_like(leaf) for leaf in leaves]
        leaves = spread([leaf.requires_grad_() for leaf in leaves], present)
        vectors = [vector for vector, given in zip(vectors, present, strict=True) if given]
        size = max(1, PAIRS // len(leaves[2]))
        for start in range(0, len(leaves[0]), size):
            rows = slice(start, start + size)
            skip, places = (None if part is None else part[rows] for part in (exclude, index))
            with torch_defaults(gradients=True):
                inputs = (leaves[1][rows], *leaves[2:], skip, places)
                average = _plain_average(call, *inputs)
                products = _second(average, leaves, rows, vectors)
            for total, product in zip(sums, products, strict=True):
                total += product
        kept = (part.dtype for part in parts if part is not None)
        return tuple(spread(map(Tensor.to, sums, kept), present))


def _second(average, leaves, rows: slice, vectors) -> tuple[Tensor, ...]:
    """One block's products of its second derivatives with the vectors."""
    every = [leaf for leaf in leaves if leaf is not None]
    first = torch.autograd.grad(
        average, every[1:], leaves[0][rows], create_graph=True, materialize_grads=True
    )
    of_average = None if vectors[0] is None else vectors[0][rows]
    pairs = zip((average, *first), (of_average, *vectors[1:]), strict=True)
    terms = [part * vector for part, vector in pairs if vector is not None and part.requires_grad]
    return torch.autograd.grad([term.sum() for term in terms], every, materialize_grads=True)


def _plain_average(call: Call, queries, centers, values, sharpness, exclude, index) -> Averages:
    """The average by plain operations, all pairs at once."""
    rows = values if call.labels is None else call.labels
    if call.kernel.k is not None:
        return mean_of_rows(rows, index, queries.dtype)
    distance_fn = call.distance(queries, centers)
    distance = distance_fn.formula(queries, centers) / distance_fn.scale
    skip = torch.full_like(queries[:, 0], -1) if exclude is None else exclude
    absent = skip[:, None] == torch.arange(len(centers), device=skip.device)
    nearest = distance.masked_fill(absent, torch.inf).amin(1, keepdim=True)
    logs = call.kernel.log_weight(distance, nearest)
    if sharpness is not None:
        logs = logs * (sharpness / sharpness.detach())
    logs = logs.masked_fill(absent, -torch.inf)
    largest = logs.detach().amax(1, keepdim=True).clamp(min=torch.finfo(logs.dtype).min)
    weights = (logs - largest).exp()
    if call.labels is None:
        sums = weights @ values
    else:
        sums = weights.new_zeros(len(weights), rows.shape[1])
        sums = sums.index_add(1, rows.labels, weights)
    total = weights.sum(1, keepdim=True)
    return sums / torch.where(total > 0, total, 1)


def _knn_gradient(values, index, gradient) -> Tensor:
    """The gradient to values of their means over the nearest, by autograd."""
    total = torch.zeros_like(values, dtype=gradient.dtype)
    for rows in block_slices(gradient, 0):
        with torch.enable_grad():
            leaf = values.detach().to(gradient.dtype).requires_grad_()
            mean = mean_of_rows(leaf, index[rows], gradient.dtype)
        total += torch.autograd.grad(mean, leaf, gradient[rows])[0]
    return total


class BlockwiseBackward:
    """Gradients to queries, centers, values and sharpness, those of them that are needed."""

    def __init__(self, call: Call, inputs, exclude, gradient, outputs):
        self.queries, self.centers, values, self.sharpness = inputs
        result, self.nearest, total = outputs
        self.exclude = exclude
        self.kernel = call.kernel
        self.distance_fn = call.distance(self.queries, self.centers)
        self.workspace = Workspace()
        self.values = values if call.labels is None else call.labels
        self.gradient = gradient / torch.where(total > 0, total, 1)[:, None]
        self.mean = (self.gradient * result).sum(1, keepdim=True)
        self.sums = [
            self.gradient.new_zeros(like.shape) if wanted else None
            for wanted, like in zip(call.needed, inputs, strict=True)
        ]

    def run(self) -> list[Tensor | None]:
        """Measure all blocks again; the gradients, None where none is needed."""
        for rows in block_slices(self.queries, 0):
            x = self.distance_fn.prepare(self.queries[rows].to(self.gradient.dtype))
            nearest = finite(self.nearest[rows])
            to_nearest = torch.zeros_like(nearest)
            for cols in block_slices(self.centers, 1):
                self._add_block(x, rows, cols, nearest, to_nearest)
            if self.kernel.needs_nearest and self._to_points:
                self._add_nearest(rows, to_nearest)
        return self.sums

    @property
    def _to_points(self) -> bool:
        return self.sums[0] is not None or self.sums[1] is not None

    def _add_block(self, x, rows: slice, cols: slice, nearest: Tensor, to_nearest: Tensor) -> None:
        scale = self.distance_fn.scale
        c = self.distance_fn.prepare(self.centers[cols].to(self.gradient.dtype))
        distance, context = self.distance_fn.pairwise(x, c, for_backward=True)
        weights = self.workspace.like("weights", distance).copy_(distance)
        mask_excluded(weights, None if self.exclude is None else self.exclude[rows], cols)
        weights = self.kernel.relative_weights(weights, nearest, scale)
        gradient = self.gradient[rows]
        to_queries, to_centers, to_values, to_sharpness = self.sums
        if to_values is not None:
            to_values[cols] += weighted_sums(weights.T, gradient)
        if not self._to_points and to_sharpness is None:
            return
        v = self.values[cols].to(gradient.dtype)
        slope = torch.mm(gradient, v.T, out=self.workspace.like("slope", distance))
        slope.sub_(self.mean[rows]).mul_(weights)
        if to_sharpness is not None:  # d log w / d power = log w / power
            logs = torch.xlogy(slope, weights.clamp(min=TINY))
            to_sharpness += logs.sum() / self.sharpness
        if not self._to_points:
            return
        part = self.kernel.scale_by_log_slope(slope, distance, nearest, scale, weights)
        if part is not None:
            to_nearest += part
        parts = self.distance_fn.backward(x, c, distance, context, slope)
        if to_queries is not None:
            to_queries[rows] += parts[0]
        if to_centers is not None:
            to_centers[cols] += parts[1]

    def _add_nearest(self, rows: slice, to_nearest: Tensor) -> None:
        """Pass the gradient to the nearest distance on to that pair."""
        if not isinstance(self.distance_fn, EuclideanDistance):
            raise NotImplementedError(f"{self.kernel} needs_nearest: give it Euclidean distances")
        skip = None if self.exclude is None else self.exclude[rows]
        x = self.queries[rows]
        _, index = blockwise_nearest(x, self.centers, 1, self.distance_fn, skip)
        index = index[:, 0].clamp(min=0)
        dtype = self.gradient.dtype
        scale = self.distance_fn.scale
        difference = (x.to(dtype) - self.centers[index].to(dtype)) * scale
        length = torch.linalg.vector_norm(difference, dim=1)
        slope = to_nearest * scale / torch.where(length > 0, length, 1)
        to_pair = difference * slope[:, None]
        if self.sums[0] is not None:
            self.sums[0][rows] += to_pair
        if self.sums[1] is not None:
            self.sums[1].index_add_(0, index, to_pair, alpha=-1)
