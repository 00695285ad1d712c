"""Inverse distance weighting in two Triton kernels, for few features: only results leave the cores.

Distances are direct differences, weights are relative to that of the nearest center so far, and the
backward pass measures again. Runs on CUDA, or in Triton's interpreter (TRITON_INTERPRET=1).
"""

import os
import shutil

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from triton.language import constexpr

from nnlib.attention.blockwise import working_dtype
from nnlib.attention.kernels import InverseDistance, Kernel

BLOCK = 64  # queries, and centers, at a time
FEATURES = 16  # whose differences a GPU's cores can hold
WIDTH = 128  # columns of values whose sums they can hold
COMPILERS = ("cc", "gcc", "clang")  # of which Triton needs one


def unsupported_reason(queries, centers, values, kernel: Kernel) -> str | None:
    """Why the kernels can't run, and what would do; None where they can."""
    device = queries.device.type
    features = queries.shape[1]
    width = values.shape[1]
    largest = max(len(queries), centers.shape[0]) * max(features, width)
    if os.environ.get("TRITON_INTERPRET") != "1":
        if device != "cuda":
            return f"runs on CUDA, by Triton, and queries lie on {device}: use a GPU"
        if not any(map(shutil.which, (os.environ.get("CC", "cc"), *COMPILERS))):
            return "needs a C compiler, and finds none: install gcc"
    if type(kernel) is not InverseDistance:
        wanted = "InverseDistance, or CosineSoftmax with matmul_dtype='bfloat16'"
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
def _weights(distance, near, exponent, epsilon):
    """Weights relative to that of a center at the nearest distance [rows, 1]."""
    closest = tl.where(near == float("inf"), 0.0, near) + epsilon
    return tl.exp2(-exponent * tl.log2(closest / (distance + epsilon)))


@triton.jit
def _matrix(pointer, rows, count, V: constexpr, W: constexpr):
    """Rows of a matrix of V columns, and a mask, both padded to W."""
    column = tl.arange(0, W)
    inside = (rows < count)[:, None] & (column < V)[None, :]
    places = pointer + rows[:, None] * V + column[None, :]
    return places, inside


@triton.jit
def _values(v, cols, M, V: constexpr, W: constexpr, LABELS: constexpr):
    if LABELS:
        label = tl.load(v + cols, mask=cols < M, other=-1)
        return (label[:, None] == tl.arange(0, W)[None, :]).to(tl.float32)
    else:
        places, inside = _matrix(v, cols, M, V, W)
        return tl.load(places, mask=inside, other=0.0)


@triton.jit
def _forward(
    x, c, v, skip, exponent, epsilon, B, M, result, nearest, total,
    D: constexpr, V: constexpr, W: constexpr, LABELS: constexpr, BLOCK: constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    near = tl.full((BLOCK, 1), float("inf"), tl.float32)
    weight = tl.zeros((BLOCK, 1), tl.float32)
    sums = tl.zeros((BLOCK, W), tl.float32)
    for start in range(0, M, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        distance = _distances(x, c, skip, rows, cols, B, M, D)
        closer = tl.minimum(near, tl.min(distance, 1)[:, None])
        kept = _weights(near, closer, exponent, epsilon)
        weights = _weights(distance, closer, exponent, epsilon)
        values = _values(v, cols, M, V, W, LABELS)
        sums = sums * kept + tl.dot(weights, values, input_precision="ieee")
        weight = weight * kept + tl.sum(weights, 1)[:, None]
        near = closer
    tl.store(nearest + rows[:, None], near, mask=(rows < B)[:, None])
    tl.store(total + rows[:, None], weight, mask=(rows < B)[:, None])
    places, inside = _matrix(result, rows, B, V, W)
    tl.store(places, sums / tl.where(weight > 0, weight, 1.0), mask=inside)


@triton.jit
def _backward(
    x, c, v, skip, exponent, epsilon, B, M, gradient, mean, nearest, to_points, to_values,
    D: constexpr, P: constexpr, V: constexpr, W: constexpr, LABELS: constexpr, BLOCK: constexpr,
    AXIS: constexpr,
):  # fmt: skip
    """Sum over centers for gradients to queries (AXIS 1), or over queries for those to centers."""
    own = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    feature = tl.arange(0, P)
    sums = tl.zeros((BLOCK, P), tl.float32)
    value_sums = tl.zeros((BLOCK, W), tl.float32)
    for start in range(0, M if AXIS == 1 else B, BLOCK):
        others = start + tl.arange(0, BLOCK)
        rows = own if AXIS == 1 else others
        cols = others if AXIS == 1 else own
        places, inside = _matrix(gradient, rows, B, V, W)
        g = tl.load(places, mask=inside, other=0.0)
        values = _values(v, cols, M, V, W, LABELS)
        distance = _distances(x, c, skip, rows, cols, B, M, D)
        weights = _weights(distance, _load(nearest, rows, B)[:, None], exponent, epsilon)
        toward = tl.dot(g, tl.trans(values), input_precision="ieee")
        slope = weights * (toward - _load(mean, rows, B)[:, None]) * exponent / (distance + epsilon)
        slope = tl.where(distance > 0, slope / distance, 0.0)
        for f in tl.static_range(D):
            xf = _load(x + f * B, rows, B)
            cf = _load(c + f * M, cols, M)
            column = tl.sum(slope * (xf[:, None] - cf[None, :]), AXIS)
            sums += tl.where(feature == f, column[:, None], 0.0)
        if AXIS == 0:
            value_sums += tl.dot(tl.trans(weights), g, input_precision="ieee")
    places, inside = _matrix(to_points, own, B if AXIS == 1 else M, D, P)
    tl.store(places, sums if AXIS == 1 else -sums, mask=inside)
    if AXIS == 0 and not LABELS:
        places, inside = _matrix(to_values, own, M, V, W)
        tl.store(places, value_sums, mask=inside)


class TritonAttention:
    """One call's inputs as the kernels take them: features in rows, scaled, and settings."""

    def __init__(
        self, queries, centers, values, labels, kernel: InverseDistance, scale: float, exclude=None
    ):
        x, c = ((rows.detach().float() * scale).T.contiguous() for rows in (queries, centers))
        v = (values.detach().float() if labels is None else labels.labels).contiguous()
        if exclude is None:
            exclude = torch.full(queries.shape[:1], -1, device=x.device)
        epsilon = max(kernel.epsilon * scale, torch.finfo(torch.float32).tiny)
        self.inputs = (x, c, v, exclude.contiguous(), kernel.exponent, epsilon, len(x.T), len(c.T))
        self.scale = scale
        self.features = len(x)
        self.width = values.shape[1] if labels is None else labels.shape[1]
        self.shape = {
            "D": self.features,
            "V": self.width,
            "W": max(16, triton.next_power_of_2(self.width)),
            "LABELS": labels is not None,
            "BLOCK": BLOCK,
        }

    def averages(self) -> tuple[Float[Tensor, "B V"], Float[Tensor, " B"], Float[Tensor, " B"]]:
        """Averages, nearest distances, and total weights relative to the nearest's."""
        count = self.inputs[-2]
        outputs = (self._new(count, self.width), self._new(count), self._new(count))
        _forward[(triton.cdiv(count, BLOCK),)](*self.inputs, *outputs, **self.shape)
        return outputs

    def gradients(self, gradient, mean, near) -> list[Tensor]:
        """Gradients to queries, centers and values, for that over total weights, and its mean."""
        given = (*self.inputs, gradient.contiguous(), mean.contiguous(), near)
        shape = self.shape | {"P": triton.next_power_of_2(self.features)}
        to_values = self._new(0 if shape["LABELS"] else self.inputs[-1], self.width)
        to_points = []
        for axis, count in zip((1, 0), self.inputs[-2:], strict=True):
            to_points.append(self._new(count, self.features))
            grid = (triton.cdiv(count, BLOCK),)
            _backward[grid](*given, to_points[-1], to_values, **shape, AXIS=axis)
        return [part.mul_(self.scale) for part in to_points] + [to_values]

    def _new(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self.inputs[0].device)
