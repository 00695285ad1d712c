"""Distances between two blocks of rows: exact to rounding, with gradients that stay finite.

A matrix product gives |x - c|^2 = |x|^2 + |c|^2 - 2 x.c at the hardware's speed, and loses its digits where x and c are
close beside their own length. So: rows are centred and scaled first (`Frame`), and every pair that still cancels is
measured again, by direct differences (Euclidean) or in float64 (cosine).
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

DIRECT_FEATURES = 16  # up to here, differences feature by feature are as quick as the product
CANCELS = {torch.float32: 16.0, torch.float64: 1e5}  # (|x|^2 + |c|^2) / |x - c|^2 above which a pair is measured again
CROWDED = 1 / 64  # share of such pairs in a block above which all of it is
PAIR_BYTES = 1 << 22  # for the rows gathered at a time, so that they stay in a cache


class Frame(NamedTuple):
    """x -> x * scale - offset: what distances are measured in, so that they are `scale` times those of the data."""

    scale: float = 1.0
    offset: Float[Tensor, " D"] | None = None

    def __call__(self, rows: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        if self.scale != 1.0:
            rows = rows * self.scale
        return rows if self.offset is None else rows - self.offset


def frame_of(queries: Tensor, centers: Tensor, dtype: torch.dtype) -> Frame:
    """Scale by a power of two where squares would lose digits, centre where the mean outweighs the spread.

    queries [B, D], centers [M, D] -> Frame. Any frame is correct; a good one leaves few pairs to measure again.
    """
    largest = max(_largest(queries), _largest(centers))
    scale = 1.0 if 2**-10 < largest < 2**10 or largest == 0 else 2.0 ** -math.frexp(largest)[1]
    if queries.shape[1] <= DIRECT_FEATURES:
        return Frame(scale)
    return Frame(scale, _offset(_sample(centers, dtype) * scale))


def _sample(rows: Tensor, dtype: torch.dtype) -> Tensor:
    return rows[:: max(1, rows.shape[0] // 512)].to(dtype)


def _offset(sample: Tensor) -> Tensor | None:
    """The mean, where it outweighs the spread around it."""
    mean = sample.mean(0)
    spread = (sample - mean).square().sum(1).mean()
    return mean if bool(mean.square().sum() > spread) else None


def _squared(rows: Tensor) -> Tensor:
    return torch.linalg.vecdot(rows, rows)


def _largest(rows: Tensor) -> float:
    low, high = torch.aminmax(rows)
    return max(abs(float(low)), abs(float(high)))


def euclidean(x: Float[Tensor, "B D"], c: Float[Tensor, "M D"], frame: Frame) -> Float[Tensor, "B M"]:
    """|x_i - c_j| times the frame's scale. The gradient at distance 0 is 0."""
    return _Euclidean.apply(x, c, frame, x is c)


class _Euclidean(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, c, frame, itself):
        """Distances of the framed rows [B, M]: direct for few features, by a matrix product for many."""
        if x.shape[1] <= DIRECT_FEATURES:
            squares, ctx.pairs = _direct_squares(x * frame.scale, c * frame.scale), None
        else:
            squares, ctx.pairs = _product_squares(x, c, frame, itself)
        distance = squares.sqrt_()
        ctx.frame = frame
        ctx.save_for_backward(x, c, distance)
        return distance

    @staticmethod
    def backward(ctx, gradient):
        """Gradients to x and c; a pair at distance 0 pulls at neither."""
        x, c, distance = ctx.saved_tensors
        scale = ctx.frame.scale
        pull = torch.where(distance > 0, gradient / distance, 0)  # times the framed x - c is the gradient
        if x.shape[1] <= DIRECT_FEATURES:
            to_x, to_c = _direct_pull(x * scale, c * scale, pull)
        else:
            to_x, to_c = _product_pull(x, c, pull, ctx.frame, ctx.pairs)
        return to_x * scale, to_c * scale, None, None


def _direct_squares(x: Tensor, c: Tensor) -> Tensor:
    squares = (x[:, :1] - c[:, 0]).square_()
    for feature in range(1, x.shape[1]):
        difference = x[:, feature, None] - c[:, feature]
        squares.addcmul_(difference, difference)
    return squares


def _direct_pull(x: Tensor, c: Tensor, pull: Tensor) -> tuple[Tensor, Tensor]:
    to_x, to_c = torch.empty_like(x), torch.empty_like(c)
    for feature in range(x.shape[1]):
        difference = (x[:, feature, None] - c[:, feature]).mul_(pull)
        to_x[:, feature], to_c[:, feature] = difference.sum(1), -difference.sum(0)
    return to_x, to_c


def _product_squares(x: Tensor, c: Tensor, frame: Frame, itself: bool) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    """Squared distances, and the pairs (i, j) that were measured again: None where that was the whole block."""
    xf, cf = frame(x), frame(c)
    xx, cc = _squared(xf), _squared(cf)
    squares = torch.addmm(cc.expand(len(x), -1), xf, cf.T, alpha=-2).add_(xx[:, None])
    limit = CANCELS[x.dtype]
    pairs = (squares < ((xx + cc.max()) / limit)[:, None]).nonzero(as_tuple=True)  # one cheap pass, a little too many
    if len(pairs[0]) > CROWDED * squares.numel():
        pairs = (squares * limit < xx[:, None] + cc).nonzero(as_tuple=True)
    if len(pairs[0]) > CROWDED * squares.numel():
        exact = torch.cdist(x * frame.scale, c * frame.scale, compute_mode="donot_use_mm_for_euclid_dist")
        return exact.square_(), None
    pairs = _but_itself(squares, pairs, itself)
    for i, j in _chunks(pairs, x):
        squares[i, j] = (x[i] - c[j]).mul_(frame.scale).square_().sum(1)
    return squares, pairs


def _product_pull(x: Tensor, c: Tensor, pull: Tensor, frame: Frame, pairs) -> tuple[Tensor, Tensor]:
    if pairs is None:  # everything is near: the sums below would cancel too
        wide = (frame(x.to(_wide(x))), frame(c.to(_wide(x))), pull.to(_wide(x)))
        return tuple(part.to(x.dtype) for part in _spread(*wide))
    xf, cf = frame(x), frame(c)
    to_x, to_c = _spread(xf, cf, pull.index_put(pairs, pull.new_zeros(())))
    for i, j, g in _chunks(pairs, x, pull[pairs]):
        difference = (x[i] - c[j]).mul_(frame.scale).mul_(g[:, None])
        to_x.index_add_(0, i, difference)
        to_c.index_add_(0, j, difference, alpha=-1)
    return to_x, to_c


def _spread(x: Tensor, c: Tensor, pull: Tensor) -> tuple[Tensor, Tensor]:
    """sum_j pull_ij (x_i - c_j), and minus the same over i."""
    return pull.sum(1, keepdim=True) * x - pull @ c, pull.sum(0)[:, None] * c - pull.T @ x


def cosine(
    x: Float[Tensor, "B D"], c: Float[Tensor, "M D"], frame: Frame, signed: bool = False
) -> Float[Tensor, "B M"]:
    """1 - |cos(x_i, c_j)|, or 1 - cos where signed. A row of zeros has cosine 0 to all; its gradient is 0."""
    return _Cosine.apply(x, c, frame, signed)


def cosine_frame(centers: Shaped[Tensor, "M D"], dtype: torch.dtype) -> Frame:
    """The frame for cosines: rows of length 1, centred where their mean outweighs their spread."""
    return Frame(1.0, _offset(unit(_sample(centers, dtype))))


class _Cosine(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, c, frame, signed):
        """One minus the cosine, or minus its size where the sign is ignored [B, M]; what cancels is measured again."""
        distance, limit = _one_minus_cosine(x, c, frame)
        ctx.sign = None if signed else torch.sign(1 - distance) if any(ctx.needs_input_grad) else 1
        if not signed and (most := float(distance.amax())) > 1:
            distance = torch.minimum(distance, 2 - distance)
            if most > 2 - 1 / CANCELS[x.dtype]:  # the far end cancels too
                limit = torch.as_tensor(limit).clamp(min=1 / CANCELS[x.dtype])
        pairs = (distance < limit).nonzero(as_tuple=True)
        if len(pairs[0]) > CROWDED * distance.numel():
            pairs, similarity = None, _wide_unit(x) @ _wide_unit(c).T
            distance = (1 - (similarity if signed else similarity.abs_())).clamp_(min=0).to(x.dtype)
        ctx.pairs = pairs
        for i, j in _chunks(pairs, x):
            similarity = (_wide_unit(x[i]) * _wide_unit(c[j])).sum(1)
            distance[i, j] = (1 - (similarity if signed else similarity.abs_())).clamp_(min=0).to(x.dtype)
        ctx.frame = frame
        ctx.save_for_backward(x, c)
        return distance

    @staticmethod
    def backward(ctx, gradient):
        """Gradients to x and c, without the part along each row, to which a cosine is blind."""
        x, c = ctx.saved_tensors
        pull = -gradient if ctx.sign is None else -gradient * ctx.sign  # by the cosine
        wide = x.dtype if ctx.pairs else _wide(x)
        far = (pull.index_put(ctx.pairs, pull.new_zeros(())) if ctx.pairs else pull).to(wide)
        xu, cu = unit(x.to(wide)), unit(c.to(wide))
        to_x, to_c = _spread(ctx.frame(xu), ctx.frame(cu), -far)
        to_x, to_c = _tangent(to_x, xu), _tangent(to_c, cu)
        for i, j, g in _chunks(ctx.pairs, x, *([pull[ctx.pairs]] if ctx.pairs else [])):
            xi, cj = _wide_unit(x[i]), _wide_unit(c[j])
            to_x.index_add_(0, i, (_tangent(cj, xi) * g[:, None]).to(wide))
            to_c.index_add_(0, j, (_tangent(xi, cj) * g[:, None]).to(wide))
        return (to_x * _inverse_norm(x)).to(x.dtype), (to_c * _inverse_norm(c)).to(x.dtype), None, None


def _one_minus_cosine(x: Tensor, c: Tensor, frame: Frame) -> tuple[Tensor, Tensor | float]:
    """1 - cos by a product, and below what it has lost digits."""
    if frame.offset is None:
        similarity = (unit(x) @ c.T).mul_(_inverse_norm(c).T)
        return torch.sub(1, similarity, out=similarity), 1 / CANCELS[x.dtype]
    xf, cf = unit(x).sub_(frame.offset), unit(c).sub_(frame.offset)
    xx, cc = (  # halves of squared lengths; a row of zeros lacks the length 1 that the others start from
        (_squared(framed) + (_inverse_norm(rows)[:, 0] == 0)) / 2 for framed, rows in ((xf, x), (cf, c))
    )
    distance = torch.addmm(cc.expand(len(x), -1), xf, cf.T, alpha=-1).add_(xx[:, None])
    return distance, ((xx + cc.max()) / CANCELS[x.dtype])[:, None]


def unit(rows: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
    """Rows of length 1, whatever their scale; a row of zeros stays zero."""
    norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    if _strays(norm):
        rows = _rescaled(rows)
        norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows * torch.where(norm > 0, 1 / norm, 0)


def _inverse_norm(rows: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    if _strays(norm):
        norm = rows.abs().amax(1, keepdim=True) * torch.linalg.vector_norm(_rescaled(rows), dim=1, keepdim=True)
    return torch.where(norm > 0, 1 / norm, 0).clamp_(max=torch.finfo(rows.dtype).max)


def _strays(norm: Tensor) -> bool:
    """Whether squares left the float range somewhere, or a row is zero."""
    return bool(((norm < 1e-15) | (norm > 1e15)).any())


def _rescaled(rows: Tensor) -> Tensor:
    largest = rows.abs().amax(1, keepdim=True)
    return rows / torch.where(largest > 0, largest, 1)


def _tangent(vector: Tensor, normal: Tensor) -> Tensor:
    return vector - (vector * normal).sum(1, keepdim=True) * normal


def _wide_unit(rows: Tensor) -> Tensor:
    return unit(rows.to(_wide(rows)))


def _wide(rows: Tensor) -> torch.dtype:
    return rows.dtype if rows.device.type == "mps" else torch.float64  # that device has no float64


def _but_itself(distance: Tensor, pairs: tuple[Tensor, Tensor], itself: bool) -> tuple[Tensor, Tensor]:
    """The pairs without each row and itself, whose distance is 0 and needs no measuring."""
    if not itself:
        return pairs
    distance.fill_diagonal_(0)
    apart = pairs[0] != pairs[1]
    return pairs[0][apart], pairs[1][apart]


def _chunks(pairs: tuple[Int[Tensor, " P"], ...] | None, rows: Tensor, *along: Tensor):
    """The pairs and what goes along with each, as many at a time as their gathered rows fit in PAIR_BYTES."""
    if pairs is not None and len(pairs[0]):
        length = max(1, PAIR_BYTES // (rows.shape[1] * 8))
        yield from zip(*(part.split(length) for part in (*pairs, *along)), strict=True)
