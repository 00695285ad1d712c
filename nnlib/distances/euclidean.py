"""Euclidean distances between two blocks of rows: exact to rounding, with gradients that stay finite.

For few features by direct differences. For many by a product, whose pairs that cancel are measured again directly.
"""

import math

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from nnlib.distances.base import (
    CANCELS,
    CROWDED,
    Preconditioner,
    PreparedPoints,
    Workspace,
    centering_offset,
    close_pairs,
    pair_chunks,
    scaled_product,
    spread,
    squared_norms,
    subsample,
    wide_dtype,
)

DIRECT_FEATURES = 8  # up to here, differences feature by feature are as quick as the product, where few pairs cancel


class EuclideanDistance:
    """|x - c| times the frame's scale, between prepared rows."""

    low_precision = False  # whether products may be of rows in bfloat16

    def __init__(self, frame: Preconditioner):
        self.frame, self.scale, self.workspace = frame, frame.scale, Workspace()

    @staticmethod
    def of(
        queries: Shaped[Tensor, "B D"], centers: Shaped[Tensor, "M D"], dtype: torch.dtype
    ) -> "EuclideanDistance":
        """Scale by a power of two where squares would lose digits, centre where the mean outweighs the spread.

        Any frame is correct; a good one leaves few pairs to measure again.
        """
        largest = max(_largest(queries), _largest(centers))
        scale = 1.0 if 2**-10 < largest < 2**10 or largest == 0 else 2.0 ** -math.frexp(largest)[1]
        direct = queries.shape[1] <= DIRECT_FEATURES
        return EuclideanDistance(
            Preconditioner(
                scale, None if direct else centering_offset(subsample(centers, dtype) * scale)
            )
        )

    def prepare(self, rows: Float[Tensor, "N D"]) -> PreparedPoints:
        """What each row gives to the distances, made once for all blocks that it meets."""
        plain = rows * self.scale if self.scale != 1 else rows
        if rows.shape[1] <= DIRECT_FEATURES:
            return PreparedPoints(
                plain, plain.T.contiguous().T
            )  # a feature of all rows lies in one piece
        framed = plain if self.frame.offset is None else plain - self.frame.offset
        return PreparedPoints(plain, framed, squared_norms(framed))

    def pairwise(
        self, x: PreparedPoints, c: PreparedPoints, keep: bool = False, same=None
    ) -> tuple[Float[Tensor, "B M"], object]:
        """The distances, until it is asked again, and what their gradient needs besides.

        same: (i, j) of pairs known to be one and the same row, which need no measuring.
        """
        squares, pairs = self._squares(x, c, same)
        return squares.sqrt_(), pairs

    def order(self, x: PreparedPoints, c: PreparedPoints) -> Float[Tensor, "B M"]:
        """What sorts as the distances do: their squares, until it is asked again."""
        return self._squares(x, c)[0]

    def distance_of(self, order: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The distances that belong to what `order` gave."""
        return order.sqrt()

    def _squares(self, x: PreparedPoints, c: PreparedPoints, same=None) -> tuple[Tensor, object]:
        squares = self.workspace("distance", x.plain, len(x.plain), len(c.plain))
        if x.squares is None:
            return _direct_squares(
                x.framed, c.framed, squares, self.workspace.beside("spare", squares)
            ), None
        return squares, _product_squares(x, c, squares, same, self.low_precision)

    def backward(
        self, x: PreparedPoints, c: PreparedPoints, distance: Tensor, kept, gradient: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gradients to the rows of x and of c; a pair at distance 0 pulls at neither. Overwrites `gradient`."""
        pull = gradient.div_(distance)  # times the framed x - c is the gradient
        if bool(distance.amin() == 0):
            pull.masked_fill_(distance == 0, 0)
        if x.squares is None:
            parts = _direct_pull(x.framed, c.framed, pull, self.workspace.beside("spare", pull))
        else:
            parts = _product_pull(x, c, pull, kept, self.frame)
        return tuple(part if self.scale == 1 else part * self.scale for part in parts)


class PlainDistance:
    """A metric whose distances are quick to have, and are sorted themselves."""

    def order(self, x, c) -> Float[Tensor, "B M"]:
        """The distances."""
        return self.pairwise(x, c)[0]

    def distance_of(self, order: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The distances that belong to what `order` gave."""
        return order


class MultiScaleDistance(PlainDistance):
    """The distance whose inverse power is the mean of those over the scales i, each of every 2^i-th feature."""

    def __init__(self, levels: list[EuclideanDistance], exponent: float, epsilon: float):
        self.levels, self.exponent, self.scale, self.epsilon = (
            levels,
            exponent,
            levels[0].scale,
            epsilon,
        )
        self.workspace = Workspace()

    @staticmethod
    def of(
        queries, centers, dtype, exponent: float, epsilon: float, scales: int
    ) -> "MultiScaleDistance":
        """One frame for all scales."""
        frame = EuclideanDistance.of(queries, centers, dtype).frame
        offsets = [None if frame.offset is None else frame.offset[:: 2**i] for i in range(scales)]
        levels = [EuclideanDistance(Preconditioner(frame.scale, offset)) for offset in offsets]
        return MultiScaleDistance(
            levels, exponent, max(epsilon * frame.scale, torch.finfo(dtype).tiny)
        )

    @property
    def low_precision(self) -> bool:
        """Whether products may be of rows in bfloat16."""
        return self.levels[0].low_precision

    @low_precision.setter
    def low_precision(self, may: bool) -> None:
        for level in self.levels:
            level.low_precision = may

    def prepare(self, rows: Float[Tensor, "N D"]) -> tuple[PreparedPoints, ...]:
        """Prepared rows of each scale."""
        return tuple(
            level.prepare(rows[:, :: 2**i].contiguous()) for i, level in enumerate(self.levels)
        )

    def pairwise(self, x, c, keep: bool = False, same=None) -> tuple[Float[Tensor, "B M"], object]:
        """The distances, those of each scale kept for their gradient."""
        parts = [
            level.pairwise(*rows, same=same) for level, *rows in zip(self.levels, x, c, strict=True)
        ]
        least, ratio, mean = (
            self.workspace.beside(name, parts[0][0]) for name in ("least", "ratio", "mean")
        )
        torch.add(parts[0][0], self.epsilon, out=least)
        for length, _ in parts[1:]:
            torch.minimum(least, torch.add(length, self.epsilon, out=ratio), out=least)
        mean.zero_()
        for length, _ in parts:
            mean += power_(
                torch.div(least, torch.add(length, self.epsilon, out=ratio), out=ratio),
                -self.exponent,
            )
        return power_(mean.div_(len(parts)), 1 / self.exponent).mul_(least), parts

    def backward(self, x, c, distance: Tensor, kept, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients to the rows of x and of c, gathered from the scales."""
        whole = [torch.zeros_like(rows[0].plain) for rows in (x, c)]
        for i, (level, part) in enumerate(zip(self.levels, kept, strict=True)):
            share = power_(distance / (part[0] + self.epsilon), 1 - self.exponent).mul_(gradient)
            found = level.backward(x[i], c[i], part[0], part[1], share.div_(len(self.levels)))
            for to, add in zip(whole, found, strict=True):
                to[:, :: 2**i] += add
        return tuple(whole)


class NegativeDotProduct(PlainDistance):
    """Minus the inner product: nearer is smaller."""

    scale = 1.0

    def prepare(self, rows: Float[Tensor, "N D"]) -> PreparedPoints:
        """The rows as they are."""
        return PreparedPoints(rows, rows)

    def pairwise(
        self, x: PreparedPoints, c: PreparedPoints, keep: bool = False, same=None
    ) -> tuple[Float[Tensor, "B M"], object]:
        """-x.c, of which nothing need be kept."""
        return (x.framed @ c.framed.T).neg_(), None

    def backward(
        self, x: PreparedPoints, c: PreparedPoints, distance: Tensor, kept, gradient: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gradients to the rows of x and of c."""
        return -(gradient @ c.framed), -(gradient.T @ x.framed)


def power_(base: Float[Tensor, "..."], exponent: float) -> Float[Tensor, "..."]:
    """base^exponent in place, for base >= 0: by squaring where that is a whole number, many times quicker."""
    if exponent != int(exponent) or not 1 <= exponent <= 64:
        return base.log_().mul_(exponent).exp_()
    exponent, odd = int(exponent), None
    while exponent > 1:
        if exponent % 2:
            odd = base.clone() if odd is None else odd.mul_(base)
        base.square_()
        exponent //= 2
    return base if odd is None else base.mul_(odd)


def _largest(rows: Tensor) -> float:
    low, high = torch.aminmax(rows)
    return max(abs(float(low)), abs(float(high)))


def _direct_squares(x: Tensor, c: Tensor, squares: Tensor, spare: Tensor) -> Tensor:
    torch.sub(x[:, :1], c[:, 0], out=squares).square_()
    for feature in range(1, x.shape[1]):
        torch.sub(x[:, feature, None], c[:, feature], out=spare)
        squares.addcmul_(spare, spare)
    return squares


def _direct_pull(x: Tensor, c: Tensor, pull: Tensor, spare: Tensor) -> tuple[Tensor, Tensor]:
    to_x, to_c = torch.empty_like(x), torch.empty_like(c)
    for feature in range(x.shape[1]):
        torch.sub(x[:, feature, None], c[:, feature], out=spare).mul_(pull)
        to_x[:, feature], to_c[:, feature] = spare.sum(1), spare.sum(0).neg_()
    return to_x, to_c


def _product_squares(
    x: PreparedPoints, c: PreparedPoints, squares: Tensor, same, coarse: bool
) -> tuple[Tensor, Tensor] | None:
    """Fill in squared distances; which pairs (i, j) were measured again, None where that was the whole block."""
    scaled_product(x.framed, c.framed, -2, c.squares, squares, coarse).add_(x.squares[:, None])
    if same is not None:
        squares[same] = torch.inf
    cancels = CANCELS[torch.float32 if coarse else squares.dtype]
    pairs = close_pairs(squares, (x.squares + c.squares.max()) / cancels)  # a little too many
    if len(pairs[0]) > CROWDED * squares.numel():
        pairs = (squares * cancels < x.squares[:, None] + c.squares).nonzero(as_tuple=True)
    if len(pairs[0]) > CROWDED * squares.numel():
        squares.copy_(
            torch.cdist(x.plain, c.plain, compute_mode="donot_use_mm_for_euclid_dist").square_()
        )
        return None
    for i, j in pair_chunks(pairs, x.plain.shape[1]):
        squares[i, j] = squared_norms(x.plain[i] - c.plain[j])
    if same is not None:
        squares[same] = 0
    return pairs


def _product_pull(
    x: PreparedPoints, c: PreparedPoints, pull: Tensor, pairs, frame: Preconditioner
) -> tuple[Tensor, Tensor]:
    if pairs is None:  # everything is near: the sums below would cancel too
        offset, much = 0 if frame.offset is None else frame.offset, wide_dtype(pull)
        parts = spread(x.plain.to(much) - offset, c.plain.to(much) - offset, pull.to(much))
        return tuple(part.to(pull.dtype) for part in parts)
    near = pull[pairs]
    to_x, to_c = spread(x.framed, c.framed, pull.index_put_(pairs, pull.new_zeros(())))
    for i, j, g in pair_chunks(pairs, x.plain.shape[1], near):
        difference = (x.plain[i] - c.plain[j]).mul_(g[:, None])
        to_x.index_add_(0, i, difference)
        to_c.index_add_(0, j, difference, alpha=-1)
    return to_x, to_c
