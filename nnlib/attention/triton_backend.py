"""The hot path in a few Triton kernels, for few features: only results leave a GPU's cores.

Distances are direct differences, weights are relative to that of the nearest center so far, and the
backward pass measures again. Runs on CUDA, or in Triton's interpreter (TRITON_INTERPRET=1).
"""

import os
import shutil

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int64
from torch import Tensor
from triton.language import constexpr

from nnlib.attention.blockwise import working_dtype
from nnlib.attention.kernels import InfluenceCone, InverseDistance, Kernel

BLOCK = 64  # queries, and centers, at a time
FEATURES = 16  # whose differences a GPU's cores can hold
WIDTH = 128  # columns of values whose sums they can hold
POWER, CONE, NEAREST = 0, 1, 2


def unsupported_reason(queries, centers, values, kernel: Kernel) -> str | None:
    """Why the kernels can't run, and what would do; None where they can."""
    device = queries.device.type
    features = queries.shape[1]
    width = values.shape[1]
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    compilers = (os.environ.get("CC", "cc"), "gcc", "clang")
    largest = max(len(queries), centers.shape[0]) * max(features, width)
    if device != "cuda" and not interpreted:
        return f"runs on CUDA, by Triton, and queries lie on {device}: use a GPU"
    if not interpreted and not any(map(shutil.which, compilers)):
        return "needs a C compiler, and finds none: install gcc"
    if type(kernel) not in (InverseDistance, InfluenceCone):
        wanted = "InverseDistance or InfluenceCone, or CosineSoftmax with matmul_dtype='bfloat16'"
        return f"with {kernel}: give {wanted}"
    if features > FEATURES or width > WIDTH:
        wanted = f"give at most {FEATURES} and {WIDTH}"
        return f"with {features} features and {width} columns of values: {wanted}"
    if working_dtype(queries, centers) != torch.float32 or largest >= 2**31:
        return "computes in float32, and counts to 2^31: give smaller tensors, none in float64"
    return None


@triton.jit
def _load(pointer, index, size):
    return tl.load(pointer + index, mask=index < size, other=0)


@triton.jit
def _distances(x, c, skip, rows, cols, B, M, D: constexpr):
    squares = tl.zeros((rows.shape[0], cols.shape[0]), tl.float32)
    for f in tl.static_range(D):
        xf = _load(x + f * B, rows, B)
        cf = _load(c + f * M, cols, M)
        difference = xf[:, None] - cf[None, :]
        squares += difference * difference
    excluded = tl.load(skip + rows, mask=rows < B, other=-1)
    absent = (cols >= M)[None, :] | (cols[None, :] == excluded[:, None])
    return tl.where(absent, float("inf"), tl.sqrt(squares))


@triton.jit
def _add_differences(sums, x, c, weight, rows, cols, B, M, D: constexpr, AXIS: constexpr):
    """Add sums of weight_ij (x_i - c_j) over an axis, a feature a column."""
    feature = tl.arange(0, sums.shape[1])
    for f in tl.static_range(D):
        xf = _load(x + f * B, rows, B)
        cf = _load(c + f * M, cols, M)
        column = tl.sum(weight * (xf[:, None] - cf[None, :]), AXIS)
        sums += tl.where(feature == f, column[:, None], 0.0)
    return sums


@triton.jit
def _weights(distance, near, exponent, epsilon, factor, KIND: constexpr):
    closest = (tl.where(near == float("inf"), 0.0, near) + epsilon)[:, None]
    if KIND == 0:
        return tl.exp2(-exponent * tl.log2(closest / (distance + epsilon)))
    else:
        farther = distance + epsilon - closest
        return tl.maximum(1.0 - farther / ((factor - 1.0) * closest), 0.0)


@triton.jit
def _values(v, cols, M, V: constexpr, W: constexpr, LABELS: constexpr):
    column = tl.arange(0, W)
    if LABELS:
        label = tl.load(v + cols, mask=cols < M, other=-1)
        return (label[:, None] == column[None, :]).to(tl.float32)
    else:
        inside = (cols < M)[:, None] & (column < V)[None, :]
        return tl.load(v + cols[:, None] * V + column[None, :], mask=inside, other=0.0)


@triton.jit
def _forward(
    x, c, v, skip, result, nearest, total, index, exponent, epsilon, factor, B, M,
    D: constexpr, V: constexpr, W: constexpr, LABELS: constexpr,
    KIND: constexpr, BLOCK: constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    near = tl.full((BLOCK,), float("inf"), tl.float32)
    if KIND == 1:
        near = _load(nearest, rows, B)
    which = tl.full((BLOCK,), -1, tl.int64)
    weight = tl.zeros((BLOCK,), tl.float32)
    sums = tl.zeros((BLOCK, W), tl.float32)
    for start in range(0, M, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        distance = _distances(x, c, skip, rows, cols, B, M, D)
        if KIND == 2:
            here, place = tl.min(distance, 1, return_indices=True)
            which = tl.where(here < near, start + place.to(tl.int64), which)
            near = tl.minimum(near, here)
        else:
            if KIND == 0:
                closer = tl.minimum(near, tl.min(distance, 1))
                closest = tl.where(closer == float("inf"), 0.0, closer) + epsilon
                shrunk = tl.exp2(-exponent * tl.log2(closest / (near + epsilon)))
                weight *= shrunk
                sums *= shrunk[:, None]
                near = closer
            weights = _weights(distance, near, exponent, epsilon, factor, KIND)
            weight += tl.sum(weights, 1)
            sums += tl.dot(weights, _values(v, cols, M, V, W, LABELS), input_precision="ieee")
    tl.store(nearest + rows, near, mask=rows < B)
    if KIND == 2:
        tl.store(index + rows, which, mask=rows < B)
    else:
        tl.store(total + rows, weight, mask=rows < B)
        column = tl.arange(0, W)
        inside = (rows < B)[:, None] & (column < V)[None, :]
        average = sums / tl.where(weight > 0, weight, 1.0)[:, None]
        tl.store(result + rows[:, None] * V + column[None, :], average, mask=inside)


@triton.jit
def _queries(gradient, mean, nearest, rows, B, V: constexpr, W: constexpr):
    column = tl.arange(0, W)
    inside = (rows < B)[:, None] & (column < V)[None, :]
    g = tl.load(gradient + rows[:, None] * V + column[None, :], mask=inside, other=0.0)
    m = _load(mean, rows, B)
    return g, m, _load(nearest, rows, B)


@triton.jit
def _slopes(distance, values, g, m, near, exponent, epsilon, factor, KIND: constexpr):
    """The weights, and the gradient to each distance."""
    weights = _weights(distance, near, exponent, epsilon, factor, KIND)
    toward = tl.dot(g, tl.trans(values), input_precision="ieee") - m[:, None]
    if KIND == 0:
        return weights, weights * toward * exponent / (distance + epsilon)
    else:
        radius = (factor - 1.0) * (tl.where(near == float("inf"), 0.0, near) + epsilon)
        return weights, tl.where(weights > 0, -toward / radius[:, None], 0.0)


@triton.jit
def _to_queries(
    x, c, v, skip, gradient, mean, nearest, to_x, to_near, exponent, epsilon, factor, B, M,
    D: constexpr, P: constexpr, V: constexpr, W: constexpr, LABELS: constexpr,
    KIND: constexpr, BLOCK: constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    feature = tl.arange(0, P)
    g, m, near = _queries(gradient, mean, nearest, rows, B, V, W)
    sums = tl.zeros((BLOCK, P), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, M, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        distance = _distances(x, c, skip, rows, cols, B, M, D)
        values = _values(v, cols, M, V, W, LABELS)
        _, slope = _slopes(distance, values, g, m, near, exponent, epsilon, factor, KIND)
        total += tl.sum(slope, 1)
        slope = tl.where(distance > 0, slope / distance, 0.0)
        sums = _add_differences(sums, x, c, slope, rows, cols, B, M, D, 1)
    tl.store(to_near + rows, -factor * total, mask=rows < B)
    inside = (rows < B)[:, None] & (feature < D)[None, :]
    tl.store(to_x + rows[:, None] * D + feature[None, :], sums, mask=inside)


@triton.jit
def _to_centers(
    x, c, v, skip, gradient, mean, nearest, to_c, to_v, exponent, epsilon, factor, B, M,
    D: constexpr, P: constexpr, V: constexpr, W: constexpr, LABELS: constexpr,
    KIND: constexpr, BLOCK: constexpr,
):  # fmt: skip
    cols = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    column = tl.arange(0, W)
    feature = tl.arange(0, P)
    values = _values(v, cols, M, V, W, LABELS)
    sums = tl.zeros((BLOCK, P), tl.float32)
    to_values = tl.zeros((BLOCK, W), tl.float32)
    for start in range(0, B, BLOCK):
        rows = start + tl.arange(0, BLOCK)
        g, m, near = _queries(gradient, mean, nearest, rows, B, V, W)
        distance = _distances(x, c, skip, rows, cols, B, M, D)
        weights, slope = _slopes(distance, values, g, m, near, exponent, epsilon, factor, KIND)
        to_values += tl.dot(tl.trans(weights), g, input_precision="ieee")
        slope = tl.where(distance > 0, -slope / distance, 0.0)
        sums = _add_differences(sums, x, c, slope, rows, cols, B, M, D, 0)
    if not LABELS:
        inside = (cols < M)[:, None] & (column < V)[None, :]
        tl.store(to_v + cols[:, None] * V + column[None, :], to_values, mask=inside)
    inside = (cols < M)[:, None] & (feature < D)[None, :]
    tl.store(to_c + cols[:, None] * D + feature[None, :], sums, mask=inside)


class TritonAttention:
    """One call's inputs as the kernels take them: features in rows, scaled, and settings."""

    def __init__(
        self, queries, centers, values, labels, kernel: Kernel, scale: float, exclude=None
    ):
        self.x, self.c = (
            (rows.detach().float() * scale).T.contiguous() for rows in (queries, centers)
        )
        self.v = (values.detach().float() if labels is None else labels.labels).contiguous()
        self.features, self.queries = self.x.shape
        self.centers = self.c.shape[1]
        self.width = values.shape[1] if labels is None else labels.shape[1]
        nothing = self._new(self.queries, dtype=torch.int64).fill_(-1)
        self.skip = nothing if exclude is None else exclude.contiguous()
        self.scale = scale
        cone = isinstance(kernel, InfluenceCone)
        self.kind = CONE if cone else POWER
        exponent = 0.0 if cone else kernel.exponent
        epsilon = max(kernel.epsilon * scale, torch.finfo(torch.float32).tiny)
        factor = kernel.influence_cone_factor if cone else 0.0
        self.settings = (exponent, epsilon, factor, self.queries, self.centers)
        self.shape = {
            "D": self.features,
            "V": self.width,
            "W": max(16, triton.next_power_of_2(self.width)),
            "LABELS": labels is not None,
            "BLOCK": BLOCK,
        }

    def nearest(self) -> tuple[Float[Tensor, " B"], Int64[Tensor, " B"]]:
        """The nearest center's distance and index; inf and -1 where none is left."""
        near = self._new(self.queries)
        index = self._new(self.queries, dtype=torch.int64)
        self._run_forward(near, near, near, index, NEAREST)
        return near, index

    def averages(self) -> tuple[Float[Tensor, "B V"], Float[Tensor, " B"], Float[Tensor, " B"]]:
        """Averages, nearest distances, and total weights relative to the nearest's."""
        near = self.nearest()[0] if self.kind == CONE else self._new(self.queries)
        result = self._new(self.queries, self.width)
        total = self._new(self.queries)
        self._run_forward(result, near, total, self.skip, self.kind)
        return result, near, total

    def gradients(self, gradient, mean, near) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients to queries, centers and values, for that over total weights, and its mean."""
        to_x = self._new(self.queries, self.features)
        to_c = self._new(self.centers, self.features)
        to_near = self._new(self.queries)
        to_v = self._new(0 if self.shape["LABELS"] else self.centers, self.width)
        inputs = (self.x, self.c, self.v, self.skip)
        inputs = (*inputs, gradient.contiguous(), mean.contiguous(), near)
        shape = self.shape | {"KIND": self.kind, "P": triton.next_power_of_2(self.features)}
        row_grid = (triton.cdiv(self.queries, BLOCK),)
        column_grid = (triton.cdiv(self.centers, BLOCK),)
        _to_queries[row_grid](*inputs, to_x, to_near, *self.settings, **shape)
        _to_centers[column_grid](*inputs, to_c, to_v, *self.settings, **shape)
        if self.kind == CONE:
            self._add_nearest(to_x, to_c, to_near)
        return to_x.mul_(self.scale), to_c.mul_(self.scale), to_v

    def _add_nearest(self, to_x, to_c, to_near) -> None:
        """Pass the gradient to the nearest distance on to that pair."""
        near, index = self.nearest()
        index = index.clamp(min=0)
        length = torch.where((near > 0) & near.isfinite(), near, 1)
        to_pair = (self.x - self.c[:, index]).T * (to_near / length)[:, None]
        to_x += to_pair
        to_c.index_add_(0, index, to_pair, alpha=-1)

    def _run_forward(self, result, near, total, index, kind: int) -> None:
        outputs = (result, near, total, index)
        _forward[(triton.cdiv(self.queries, BLOCK),)](
            self.x, self.c, self.v, self.skip, *outputs, *self.settings, **self.shape, KIND=kind
        )

    def _new(self, *shape, dtype=torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.x.device)
