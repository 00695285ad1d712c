"""Euclidean distances, exact to rounding, with gradients that stay finite; and two made alike.

Few features are subtracted directly; many go through a product, and pairs
that cancel are measured again.
"""

import math

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from nnlib.distances.base import (
    CROWDED,
    Block,
    Distance,
    Gradients,
    Pairs,
    Preconditioner,
    PreparedPoints,
    Rows,
    centering_offset,
    close_pairs,
    pair_chunks,
    plain_squares,
    squared_norms,
    subsample,
    weighted_differences,
    wide_dtype,
)

DIRECT_FEATURES = 8  # up to here direct differences are as quick as the product


class EuclideanDistance(Distance):
    """|x - c| times the preconditioner's scale.

    Parameters
    ----------
    preconditioner : Preconditioner
        Any is correct; a good one leaves few pairs to measure again. `for_data` finds one.

    Examples
    --------
    >>> x, c = torch.zeros(1, 3), torch.tensor([[2.0, 3.0, 6.0]])
    >>> distance = EuclideanDistance.for_data(x, c, torch.float32)
    >>> distance.pairwise(distance.prepare(x), distance.prepare(c))[0]
    tensor([[7.]])
    """

    def __init__(self, preconditioner: Preconditioner):
        super().__init__()
        self.preconditioner = preconditioner
        self.scale = preconditioner.scale

    @classmethod
    def for_data(cls, queries: Tensor, centers: Shaped[Tensor, "M D"], dtype: torch.dtype):
        """Scale by a power of two where squares lose digits; center where the mean is large."""
        largest = max(_largest(queries), _largest(centers))
        in_range = 2**-10 < largest < 2**10 or largest == 0
        scale = 1.0 if in_range else 2.0 ** -math.frexp(largest)[1]
        direct = queries.shape[1] <= DIRECT_FEATURES
        offset = None if direct else centering_offset(subsample(centers, dtype) * scale)
        return cls(Preconditioner(scale, offset))

    def prepare(self, rows: Rows) -> PreparedPoints:
        """Rows times the scale; where they go through a product, centered, with squared norms."""
        scaled = rows * self.scale if self.scale != 1 else rows
        if rows.shape[1] <= DIRECT_FEATURES:  # each feature in one piece of memory
            return PreparedPoints(scaled, scaled.T.contiguous().T)
        offset = self.preconditioner.offset
        centered = scaled if offset is None else scaled - offset
        return PreparedPoints(scaled, centered, squared_norms(centered))

    def pairwise(self, x, c, for_backward=False, same=None) -> tuple[Block, Pairs | None]:
        """Distances, and the pairs that were measured again (None: none, or all)."""
        squares, pairs = self._squares(x, c, same)
        return squares.sqrt_(), pairs

    def formula(self, x, c):
        squares = plain_squares(x * self.scale, c * self.scale)
        apart = squares > 0  # a root has no slope at 0
        return torch.where(apart, torch.where(apart, squares, 1).sqrt(), 0)

    def sort_key(self, x, c):
        return self._squares(x, c)[0]

    def from_sort_key(self, key):
        return key.sqrt()

    def _squares(self, x: PreparedPoints, c: PreparedPoints, same=None):
        if x.squares is None:
            return self._direct_squares(x.conditioned, c.conditioned), None
        squares = self.expand_squares(x, c, -2)
        if same is not None:
            squares[same] = torch.inf
        pairs = self._cancelled(x, c, squares)
        if pairs is None:
            exact = torch.cdist(x.raw, c.raw, compute_mode="donot_use_mm_for_euclid_dist")
            return squares.copy_(exact.square_()), None
        for i, j in pair_chunks(pairs, x.raw.shape[1]):
            squares[i, j] = squared_norms(x.raw[i] - c.raw[j])
        if same is not None:
            squares[same] = 0
        return squares, pairs

    def _cancelled(self, x: PreparedPoints, c: PreparedPoints, squares: Block) -> Pairs | None:
        """Pairs to measure again; None where they are so many that the whole block is."""
        factor = self.cancellation(squares)
        most = CROWDED * squares.numel()
        pairs = close_pairs(squares, (x.squares + c.squares.max()) / factor)  # a little too many
        if len(pairs[0]) > most:
            pairs = (squares * factor < x.squares[:, None] + c.squares).nonzero(as_tuple=True)
        return None if len(pairs[0]) > most else pairs

    def backward(self, x, c, distance, context, gradient) -> Gradients:
        """Gradients to the rows; a pair at distance 0 has none."""
        weight = gradient.div_(distance)  # times x - c is the gradient
        if bool(distance.amin() == 0):
            weight.masked_fill_(distance == 0, 0)
        if x.squares is None:
            parts = self._direct_backward(x.conditioned, c.conditioned, weight)
        else:
            parts = self._product_backward(x, c, weight, context)
        return parts if self.scale == 1 else tuple(part * self.scale for part in parts)

    def _direct_squares(self, x: Tensor, c: Tensor) -> Block:
        squares = self.workspace("distance", x, len(x), len(c))
        difference = self.workspace.like("difference", squares)
        torch.sub(x[:, :1], c[:, 0], out=squares).square_()
        for feature in range(1, x.shape[1]):
            torch.sub(x[:, feature, None], c[:, feature], out=difference)
            squares.addcmul_(difference, difference)
        return squares

    def _direct_backward(self, x: Tensor, c: Tensor, weight: Block) -> Gradients:
        difference = self.workspace.like("difference", weight)
        to_x = torch.empty_like(x)
        to_c = torch.empty_like(c)
        for feature in range(x.shape[1]):
            torch.sub(x[:, feature, None], c[:, feature], out=difference).mul_(weight)
            to_x[:, feature] = difference.sum(1)
            to_c[:, feature] = difference.sum(0).neg_()
        return to_x, to_c

    def _product_backward(self, x, c, weight: Block, pairs: Pairs | None) -> Gradients:
        if pairs is None:  # everything is close: the sums below would cancel too
            offset = self.preconditioner.offset
            shift = 0 if offset is None else offset
            wide = wide_dtype(weight)
            rows = (part.raw.to(wide) - shift for part in (x, c))
            parts = weighted_differences(*rows, weight.to(wide))
            return tuple(part.to(weight.dtype) for part in parts)
        close = weight[pairs]
        weight.index_put_(pairs, weight.new_zeros(()))
        to_x, to_c = weighted_differences(x.conditioned, c.conditioned, weight)
        for i, j, w in pair_chunks(pairs, x.raw.shape[1], close):
            difference = (x.raw[i] - c.raw[j]).mul_(w[:, None])
            to_x.index_add_(0, i, difference)
            to_c.index_add_(0, j, difference, alpha=-1)
        return to_x, to_c


class MultiScaleDistance(Distance):
    """The mean over scales i, by inverse power, of the distances of every 2^i-th feature."""

    def __init__(self, levels: list[EuclideanDistance], exponent: float, epsilon: float):
        super().__init__()
        self.levels = levels
        self.exponent = exponent
        self.epsilon = epsilon
        self.scale = levels[0].scale

    @classmethod
    def for_data(cls, queries, centers, dtype, exponent: float, epsilon: float, scales: int):
        """Precondition all scales alike."""
        scale, offset = EuclideanDistance.for_data(queries, centers, dtype).preconditioner
        steps = [2**i for i in range(scales)]
        offsets = [None if offset is None else offset[::step] for step in steps]
        levels = [EuclideanDistance(Preconditioner(scale, part)) for part in offsets]
        return cls(levels, exponent, max(epsilon * scale, torch.finfo(dtype).tiny))

    def prepare(self, rows: Rows) -> tuple[PreparedPoints, ...]:
        """Prepare every 2^i-th feature for level i."""
        parts = (rows[:, :: 2**i].contiguous() for i in range(len(self.levels)))
        return tuple(level.prepare(part) for level, part in zip(self.levels, parts, strict=True))

    def pairwise(self, x, c, for_backward=False, same=None) -> tuple[Block, list]:
        """Distances, and those of each level; ratios to the least one stay in range."""
        levels = zip(self.levels, x, c, strict=True)
        for level in self.levels:
            level.low_precision = self.low_precision
        parts = [level.pairwise(*points, same=same) for level, *points in levels]
        lengths = [length for length, _ in parts]
        blocks = [self.workspace.like(name, lengths[0]) for name in ("least", "ratio", "mean")]
        least, ratio, mean = blocks
        torch.add(lengths[0], self.epsilon, out=least)
        for length in lengths[1:]:
            torch.minimum(least, torch.add(length, self.epsilon, out=ratio), out=least)
        mean.zero_()
        for length in lengths:
            torch.div(least, torch.add(length, self.epsilon, out=ratio), out=ratio)
            mean += power_(ratio, -self.exponent)
        return power_(mean.div_(len(parts)), 1 / self.exponent).mul_(least), parts

    def formula(self, x, c):
        steps = enumerate(self.levels)
        lengths = [level.formula(x[:, :: 2**i], c[:, :: 2**i]) for i, level in steps]
        powers = torch.stack(lengths).add(self.epsilon).log() * self.exponent
        logs = powers.logsumexp(0) - math.log(len(lengths))
        return (logs / self.exponent).exp()

    def backward(self, x, c, distance, context, gradient) -> Gradients:
        """Gradients to the rows, summed over the levels."""
        sums = [torch.zeros_like(points[0].raw) for points in (x, c)]
        for i, (level, (length, pairs)) in enumerate(zip(self.levels, context, strict=True)):
            slope = power_(distance / (length + self.epsilon), 1 - self.exponent)
            slope.mul_(gradient).div_(len(self.levels))
            parts = level.backward(x[i], c[i], length, pairs, slope)
            for total, part in zip(sums, parts, strict=True):
                total[:, :: 2**i] += part
        return tuple(sums)


class NegativeDotProduct(Distance):
    """-x.c: nearer is smaller."""

    def prepare(self, rows: Rows) -> PreparedPoints:
        """Rows as they are."""
        return PreparedPoints(rows, rows)

    def pairwise(self, x, c, for_backward=False, same=None) -> tuple[Block, None]:
        """Minus the products of rows; `backward` needs nothing else."""
        return (x.raw @ c.raw.T).neg_(), None

    def formula(self, x, c):
        return -x @ c.T

    def backward(self, x, c, distance, context, gradient) -> Gradients:
        """Gradients to the rows."""
        return -(gradient @ c.raw), -(gradient.T @ x.raw)


def power_(base: Float[Tensor, "..."], exponent: float) -> Float[Tensor, "..."]:
    """base^exponent in place, for base >= 0; whole exponents by squaring, many times quicker."""
    if exponent != int(exponent) or not 1 <= exponent <= 64:
        return base.log_().mul_(exponent).exp_()
    remaining = int(exponent)
    odd = None
    while remaining > 1:
        if remaining % 2:
            odd = base.clone() if odd is None else odd.mul_(base)
        base.square_()
        remaining //= 2
    return base if odd is None else base.mul_(odd)


def _largest(rows: Tensor) -> float:
    if len(rows) == 0:
        return 0.0
    low, high = torch.aminmax(rows.detach())
    return max(abs(float(low)), abs(float(high)))
