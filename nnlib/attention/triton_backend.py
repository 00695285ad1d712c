"""The hot path in a few Triton kernels, for few features: only inputs and results leave a GPU's cores.

Distances are direct differences, weights are taken beside that of the nearest center so far, and the backward pass
measures again. Runs on CUDA, or anywhere in Triton's interpreter (TRITON_INTERPRET=1), where it is tested.
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int64
from torch import Tensor

from nnlib.attention.kernels import InfluenceCone, Kernel

BLOCK = 64  # queries, and centers, at a time
POWER, CONE, NEAREST = 0, 1, 2


@triton.jit
def _squares(x, c, rows, cols, B, M, D: tl.constexpr):
    squares = tl.zeros((rows.shape[0], cols.shape[0]), tl.float32)
    for f in tl.static_range(D):
        own = tl.load(x + f * B + rows, mask=rows < B, other=0.0)
        other = tl.load(c + f * M + cols, mask=cols < M, other=0.0)
        difference = own[:, None] - other[None, :]
        squares += difference * difference
    return squares


@triton.jit
def _distances(x, c, skip, rows, cols, B, M, D: tl.constexpr):
    distance = tl.sqrt(_squares(x, c, rows, cols, B, M, D))
    left_out = tl.load(skip + rows, mask=rows < B, other=-1)
    return tl.where(
        (cols >= M)[None, :] | (cols[None, :] == left_out[:, None]), float("inf"), distance
    )


@triton.jit
def _weights(distance, near, exponent, epsilon, factor, KIND: tl.constexpr):
    beside = tl.where(near == float("inf"), 0.0, near) + epsilon
    if KIND == 0:
        return tl.exp2(-exponent * tl.log2(beside[:, None] / (distance + epsilon)))
    else:
        return tl.maximum(
            1.0 - (distance + epsilon - beside[:, None]) / ((factor - 1.0) * beside)[:, None], 0.0
        )


@triton.jit
def _values(v, cols, M, V: tl.constexpr, W: tl.constexpr, LABELS: tl.constexpr):
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
    D: tl.constexpr, V: tl.constexpr, W: tl.constexpr, LABELS: tl.constexpr, KIND: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    near = tl.full((BLOCK,), float("inf"), tl.float32)
    if KIND == 1:
        near = tl.load(nearest + rows, mask=rows < B, other=0.0)
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
                beside = tl.where(closer == float("inf"), 0.0, closer) + epsilon
                shrunk = tl.exp2(-exponent * tl.log2(beside / (near + epsilon)))
                weight, sums, near = weight * shrunk, sums * shrunk[:, None], closer
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
def _pulls(distance, near, pull, exponent, epsilon, factor, KIND: tl.constexpr):
    """The weights, and by how much each distance is to grow, of which `pull` lacks the weight and its slope."""
    weights = _weights(distance, near, exponent, epsilon, factor, KIND)
    if KIND == 0:
        return weights, weights * pull * exponent / (distance + epsilon)
    else:
        reach = (factor - 1.0) * (tl.where(near == float("inf"), 0.0, near) + epsilon)
        return weights, tl.where(weights > 0, -pull / reach[:, None], 0.0)


@triton.jit
def _to_queries(
    x, c, v, skip, gradient, mean, nearest, to_x, to_near, exponent, epsilon, factor, B, M,
    D: tl.constexpr, P: tl.constexpr, V: tl.constexpr, W: tl.constexpr, LABELS: tl.constexpr, KIND: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    column, feature = tl.arange(0, W), tl.arange(0, P)
    inside = (rows < B)[:, None] & (column < V)[None, :]
    g = tl.load(gradient + rows[:, None] * V + column[None, :], mask=inside, other=0.0)
    m, near = (
        tl.load(mean + rows, mask=rows < B, other=0.0),
        tl.load(nearest + rows, mask=rows < B, other=0.0),
    )
    sums, grown = tl.zeros((BLOCK, P), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for start in range(0, M, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        distance = _distances(x, c, skip, rows, cols, B, M, D)
        toward = (
            tl.dot(g, tl.trans(_values(v, cols, M, V, W, LABELS)), input_precision="ieee")
            - m[:, None]
        )
        _, pull = _pulls(distance, near, toward, exponent, epsilon, factor, KIND)
        grown += tl.sum(pull, 1)
        pull = tl.where(distance > 0, pull / distance, 0.0)
        for f in tl.static_range(D):
            own = tl.load(x + f * B + rows, mask=rows < B, other=0.0)
            other = tl.load(c + f * M + cols, mask=cols < M, other=0.0)
            sums += tl.where(
                feature == f, tl.sum(pull * (own[:, None] - other[None, :]), 1)[:, None], 0.0
            )
    tl.store(to_near + rows, -factor * grown, mask=rows < B)
    tl.store(
        to_x + rows[:, None] * D + feature[None, :],
        sums,
        mask=(rows < B)[:, None] & (feature < D)[None, :],
    )


@triton.jit
def _to_centers(
    x, c, v, skip, gradient, mean, nearest, to_c, to_v, exponent, epsilon, factor, B, M,
    D: tl.constexpr, P: tl.constexpr, V: tl.constexpr, W: tl.constexpr, LABELS: tl.constexpr, KIND: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    cols = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    column, feature = tl.arange(0, W), tl.arange(0, P)
    values = _values(v, cols, M, V, W, LABELS)
    sums, shares = tl.zeros((BLOCK, P), tl.float32), tl.zeros((BLOCK, W), tl.float32)
    for start in range(0, B, BLOCK):
        rows = start + tl.arange(0, BLOCK)
        inside = (rows < B)[:, None] & (column < V)[None, :]
        g = tl.load(gradient + rows[:, None] * V + column[None, :], mask=inside, other=0.0)
        m, near = (
            tl.load(mean + rows, mask=rows < B, other=0.0),
            tl.load(nearest + rows, mask=rows < B, other=0.0),
        )
        distance = _distances(x, c, skip, rows, cols, B, M, D)
        toward = tl.dot(g, tl.trans(values), input_precision="ieee") - m[:, None]
        weights, pull = _pulls(distance, near, toward, exponent, epsilon, factor, KIND)
        shares += tl.dot(tl.trans(weights), g, input_precision="ieee")
        pull = tl.where(distance > 0, pull / distance, 0.0)
        for f in tl.static_range(D):
            own = tl.load(x + f * B + rows, mask=rows < B, other=0.0)
            other = tl.load(c + f * M + cols, mask=cols < M, other=0.0)
            sums -= tl.where(
                feature == f, tl.sum(pull * (own[:, None] - other[None, :]), 0)[:, None], 0.0
            )
    if not LABELS:
        tl.store(
            to_v + cols[:, None] * V + column[None, :],
            shares,
            mask=(cols < M)[:, None] & (column < V)[None, :],
        )
    tl.store(
        to_c + cols[:, None] * D + feature[None, :],
        sums,
        mask=(cols < M)[:, None] & (feature < D)[None, :],
    )


class TritonAttention:
    """One call's inputs as the kernels take them: features in rows, scaled, and what the weights depend on."""

    def __init__(
        self, queries, centers, values, labels, kernel: Kernel, scale: float, exclude=None
    ):
        self.x, self.c = (
            (rows.detach().float() * scale).T.contiguous() for rows in (queries, centers)
        )
        self.v = (values.detach().float() if labels is None else labels.labels).contiguous()
        (self.features, self.queries), self.centers = self.x.shape, self.c.shape[1]
        self.width = values.shape[1] if labels is None else labels.shape[1]
        none = self._new(self.queries, dtype=torch.int64).fill_(-1)
        self.skip = none if exclude is None else exclude.contiguous()
        cone = isinstance(kernel, InfluenceCone)
        self.kind, self.scale = CONE if cone else POWER, scale
        tiny = torch.finfo(torch.float32).tiny
        self.weight = (0.0 if cone else kernel.exponent, max(kernel.epsilon * scale, tiny))
        self.weight += (kernel.influence_cone_factor if cone else 0.0, self.queries, self.centers)
        lanes = max(16, triton.next_power_of_2(self.width))
        self.shape = {
            "D": self.features,
            "V": self.width,
            "W": lanes,
            "LABELS": labels is not None,
            "BLOCK": BLOCK,
        }

    def _new(self, *shape, dtype=torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.x.device)

    def nearest(self) -> tuple[Float[Tensor, " B"], Int64[Tensor, " B"]]:
        """The nearest center's distance and index; inf and -1 where none is left."""
        near, index = self._new(self.queries), self._new(self.queries, dtype=torch.int64)
        nothing = (self.v, self.skip, near, near, near, index)
        _forward[(triton.cdiv(self.queries, BLOCK),)](
            self.x, self.c, *nothing, *self.weight, **self.shape, KIND=NEAREST
        )
        return near, index

    def averages(self) -> tuple[Float[Tensor, "B V"], Float[Tensor, " B"], Float[Tensor, " B"]]:
        """The averages, the nearest distances, and the total weights beside the nearest one's."""
        near = self.nearest()[0] if self.kind == CONE else self._new(self.queries)
        result, total = self._new(self.queries, self.width), self._new(self.queries)
        given = (self.x, self.c, self.v, self.skip, result, near, total, self.skip)
        _forward[(triton.cdiv(self.queries, BLOCK),)](
            *given, *self.weight, **self.shape, KIND=self.kind
        )
        return result, near, total

    def gradients(self, gradient, mean, near) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients to queries, centers and values, for `gradient` over the total weights and its `mean`."""
        to_x, to_c = self._new(self.queries, self.features), self._new(self.centers, self.features)
        to_near, to_v = (
            self._new(self.queries),
            self._new(self.centers if not self.shape["LABELS"] else 0, self.width),
        )
        given = (self.x, self.c, self.v, self.skip, gradient.contiguous(), mean.contiguous(), near)
        shape = self.shape | {"KIND": self.kind, "P": triton.next_power_of_2(self.features)}
        _to_queries[(triton.cdiv(self.queries, BLOCK),)](
            *given, to_x, to_near, *self.weight, **shape
        )
        _to_centers[(triton.cdiv(self.centers, BLOCK),)](*given, to_c, to_v, *self.weight, **shape)
        if self.kind == CONE:
            self._spread_nearest(to_x, to_c, to_near)
        return to_x.mul_(self.scale), to_c.mul_(self.scale), to_v

    def _spread_nearest(self, to_x, to_c, to_near) -> None:
        """The nearest distance is itself one of the distances: pass its gradient on to that pair."""
        near, index = self.nearest()
        index = index.clamp(min=0)
        pull = (self.x - self.c[:, index]).T * (
            to_near / torch.where((near > 0) & near.isfinite(), near, 1)
        )[:, None]
        to_x += pull
        to_c.index_add_(0, index, pull, alpha=-1)
