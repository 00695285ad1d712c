"""Cosine distances 1 - cos or 1 - |cos|, exact to rounding, blind to lengths.

1 - cos = |x - c|^2 / 2 between rows of length 1, by a product; pairs that cancel go
through float64.
"""

import torch
from jaxtyping import Float, Int64, Shaped
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
    squared_norms,
    subsample,
    weighted_differences,
    wide_dtype,
)


class CosineDistance(Distance):
    """1 - |cos(x, c)|, or 1 - cos where signed. A row of zeros has cosine 0 to all.

    Parameters
    ----------
    offset : Tensor [D] or None
        Subtracted from unit rows; any is correct, `for_data` finds a good one.
    signed : bool, default False
        Whether opposite directions are far apart.

    Examples
    --------
    >>> rows = torch.tensor([[2.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    >>> distance = CosineDistance(None, signed=True)
    >>> distance.pairwise(distance.prepare(rows[:1]), distance.prepare(rows))[0]
    tensor([[0., 1., 2.]])
    """

    def __init__(self, offset: Float[Tensor, " D"] | None, signed: bool = False):
        super().__init__()
        self.preconditioner = Preconditioner(1.0, offset)
        self.signed = signed

    @classmethod
    def for_data(cls, centers: Shaped[Tensor, "M D"], dtype: torch.dtype, signed: bool):
        """Center unit rows where their mean outweighs their spread."""
        return cls(centering_offset(normalize_rows(subsample(centers, dtype))), signed)

    def prepare(self, rows: Rows) -> PreparedPoints:
        """Unit rows less the offset, half their squared norms, and 1 / the norms that they had."""
        inverse = _inverse_norm(rows)
        unit = normalize_rows(rows) if _out_of_range(inverse) else rows * inverse[:, None]
        if self.preconditioner.offset is None:
            return PreparedPoints(rows, unit, torch.full_like(inverse, 0.5), inverse)
        unit.sub_(self.preconditioner.offset)
        # A row of zeros lacks the length 1 that the others start from.
        halves = (squared_norms(unit) + (inverse == 0)) / 2
        return PreparedPoints(rows, unit, halves, inverse)

    def pairwise(self, x, c, for_backward=False, same=None) -> tuple[Block, tuple]:
        """Distances; the pairs measured again (None: all), and which cosines are negative."""
        distance = self.expand_squares(x, c, -1)
        cancels = 1 / self.cancellation(distance)
        limit = (x.squares + c.squares.max()) * cancels
        negative = None
        largest = 0.0 if self.signed else float(distance.amax())
        if not largest <= 1:  # NaN too: other queries go on
            negative = distance > 1 if for_backward else None
            opposite = torch.sub(2, distance, out=self.workspace.like("opposite", distance))
            torch.minimum(distance, opposite, out=distance)
            if not largest <= 2 - cancels:  # opposite directions cancel too
                limit = limit.clamp(min=cancels)
        if same is not None:
            distance[same] = 1
        pairs = self._measure_again(x, c, distance, close_pairs(distance, limit))
        if same is not None:  # a row of zeros is at 1 from itself too
            distance[same] = (c.inverse_norms[same[1]] == 0).to(distance.dtype)
        return distance, (pairs, negative)

    def formula(self, x, c):
        cosine = normalize_rows(x) @ normalize_rows(c).T
        distance = 1 - (cosine if self.signed else cosine.abs())
        return distance - distance.detach().clamp(max=0)  # what rounding leaves below 0

    def _measure_again(self, x, c, distance: Block, pairs: Pairs) -> Pairs | None:
        """Replace the distances of these pairs, or all where they are many (None)."""
        if len(pairs[0]) > CROWDED * distance.numel():
            distance.copy_(self._from_cosine(_wide_unit(x.raw) @ _wide_unit(c.raw).T))
            return None
        for i, j in pair_chunks(pairs, x.raw.shape[1]):
            cosine = _cosines(_near_unit(x, i), _near_unit(c, j))
            distance[i, j] = self._from_cosine(cosine).to(distance.dtype)
        return pairs

    def _from_cosine(self, cosine: Tensor) -> Tensor:
        return (1 - (cosine if self.signed else cosine.abs_())).clamp_(min=0)

    def backward(self, x, c, distance, context, gradient) -> Gradients:
        """Gradients without the part along each row, to which a cosine is blind."""
        pairs, negative = context
        weight = gradient if negative is None else torch.where(negative, -gradient, gradient)
        dtype = weight.dtype
        offset = self.preconditioner.offset
        if pairs is None:
            units = [_wide_unit(points.raw) for points in (x, c)]
            conditioned = [self.preconditioner(rows) for rows in units]
            weight = weight.to(wide_dtype(weight))
        else:
            conditioned = [x.conditioned, c.conditioned]
            units = [rows if offset is None else rows + offset for rows in conditioned]
            close = -weight[pairs]
            weight = weight.index_put_(pairs, weight.new_zeros(()))
        parts = weighted_differences(*conditioned, weight)
        to_x, to_c = (_tangent(part, unit) for part, unit in zip(parts, units, strict=True))
        chunks = () if pairs is None else pair_chunks(pairs, x.raw.shape[1], close)
        for i, j, w in chunks:
            xi = _wide_unit(x.raw[i])
            cj = _wide_unit(c.raw[j])
            to_x.index_add_(0, i, (_tangent(cj, xi) * w[:, None]).to(dtype))
            to_c.index_add_(0, j, (_tangent(xi, cj) * w[:, None]).to(dtype))
        scaled = (part * points.inverse_norms[:, None] for part, points in ((to_x, x), (to_c, c)))
        return tuple(part.to(dtype) for part in scaled)


def normalize_rows(rows: Rows) -> Rows:
    """Scale rows to length 1, whatever theirs; a row of zeros stays zero. Differentiates twice."""
    rows = rows / _power_of_two(rows)
    filled = (rows != 0).any(1, keepdim=True)
    norm = torch.linalg.vector_norm(torch.where(filled, rows, 1), dim=1, keepdim=True)
    return rows * torch.where(filled, 1 / norm, 0)


def _near_unit(points: PreparedPoints, index: Int64[Tensor, " P"]) -> Float[Tensor, "P D"]:
    """Some rows in float64, of length 1 to float32's rounding."""
    rows = points.raw[index].to(wide_dtype(points.raw))
    return rows.mul_(points.inverse_norms[index, None])


def _cosines(x: Float[Tensor, "P D"], c: Float[Tensor, "P D"]) -> Float[Tensor, " P"]:
    """cos(x_i, c_i); 0 for a row of zeros."""
    norms = (squared_norms(x) * squared_norms(c)).sqrt_()
    return torch.linalg.vecdot(x, c).div_(norms.clamp_(min=0.5))


def _inverse_norm(rows: Rows) -> Float[Tensor, " N"]:
    norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    if _out_of_range(norm):
        power = _power_of_two(rows)
        norm = torch.linalg.vector_norm(rows / power, dim=1, keepdim=True) * power
    inverse = torch.where(norm > 0, 1 / norm, 0)
    return inverse.clamp_(max=torch.finfo(rows.dtype).max)[:, 0]


def _out_of_range(norm: Tensor) -> bool:
    """Whether squares left the float range somewhere, or a row is zero."""
    return bool(((norm < 1e-15) | (norm > 1e15)).any())


def _power_of_two(rows: Rows) -> Float[Tensor, "N 1"]:
    """About the largest number of each row, by which to divide without rounding; 1 for zeros."""
    largest = rows.detach().abs().amax(1, keepdim=True)
    return torch.where(largest > 0, largest / (2 * torch.frexp(largest).mantissa), 1)


def _tangent(vector: Tensor, normal: Tensor) -> Tensor:
    return vector - (vector * normal).sum(1, keepdim=True) * normal


def _wide_unit(rows: Rows) -> Rows:
    return normalize_rows(rows.to(wide_dtype(rows)))
