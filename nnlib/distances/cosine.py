"""Cosine distances between two blocks of rows, 1 - cos or 1 - |cos|: exact to rounding, blind to lengths.

1 - cos = |x - c|^2 / 2 between rows of length 1, by a product; the pairs whose digits cancel are measured in float64.
"""

import torch
from jaxtyping import Float, Int64, Shaped
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
from nnlib.distances.euclidean import PlainDistance


class CosineDistance(PlainDistance):
    """1 - |cos(x, c)|, or 1 - cos where signed. A row of zeros has cosine 0 to all; its gradient is 0."""

    scale = 1.0
    low_precision = False  # whether products may be of rows in bfloat16

    def __init__(self, offset: Float[Tensor, " D"] | None, signed: bool = False):
        self.frame, self.signed, self.workspace = Preconditioner(1.0, offset), signed, Workspace()

    @staticmethod
    def of(centers: Shaped[Tensor, "M D"], dtype: torch.dtype, signed: bool) -> "CosineDistance":
        """Rows of length 1, centred where their mean outweighs their spread."""
        return CosineDistance(centering_offset(normalize_rows(subsample(centers, dtype))), signed)

    def prepare(self, rows: Float[Tensor, "N D"]) -> PreparedPoints:
        """Unit rows, half their squared length, and 1 over the length that they had."""
        inverse = _inverse_norm(rows)
        framed = normalize_rows(rows) if _strays(inverse) else rows * inverse[:, None]
        if self.frame.offset is None:
            return PreparedPoints(rows, framed, torch.full_like(inverse, 0.5), inverse)
        framed = framed.sub_(self.frame.offset)
        lacking = inverse == 0  # a row of zeros lacks the length 1 that the others start from
        return PreparedPoints(rows, framed, (squared_norms(framed) + lacking) / 2, inverse)

    def pairwise(
        self, x: PreparedPoints, c: PreparedPoints, keep: bool = False, same=None
    ) -> tuple[Float[Tensor, "B M"], object]:
        """The distances, until it is asked again, the pairs measured again, and, to be kept, negative cosines.

        same: (i, j) of pairs known to be one and the same row, which need no measuring.
        """
        distance = self.workspace("distance", x.plain, len(x.plain), len(c.plain))
        scaled_product(x.framed, c.framed, -1, c.squares, distance, self.low_precision).add_(
            x.squares[:, None]
        )
        cancels = 1 / CANCELS[torch.float32 if self.low_precision else distance.dtype]
        limit = (x.squares + c.squares.max()) * cancels
        negative = None
        if not self.signed and (most := float(distance.amax())) > 1:
            negative = distance > 1 if keep else None
            torch.minimum(
                distance,
                torch.sub(2, distance, out=self.workspace.beside("spare", distance)),
                out=distance,
            )
            if most > 2 - cancels:  # the far end cancels too
                limit = limit.clamp(min=cancels)
        if same is not None:
            distance[same] = 1
        pairs = close_pairs(distance, limit)
        if len(pairs[0]) > CROWDED * distance.numel():
            pairs = None
            distance.copy_(self._exact(_wide_unit(x.plain) @ _wide_unit(c.plain).T))
        for i, j in pair_chunks(pairs, x.plain.shape[1]):
            distance[i, j] = self._exact(_cosines(_near_unit(x, i), _near_unit(c, j))).to(
                distance.dtype
            )
        if same is not None:
            distance[same] = (c.inverse[same[1]] == 0).to(
                distance.dtype
            )  # a row of zeros is at 1 from itself too
        return distance, (pairs, negative)

    def _exact(self, similarity: Tensor) -> Tensor:
        return (1 - (similarity if self.signed else similarity.abs_())).clamp_(min=0)

    def backward(
        self, x: PreparedPoints, c: PreparedPoints, distance: Tensor, kept, gradient: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gradients to the rows of x and c, without the part along each row, to which a cosine is blind."""
        pairs, negative = kept
        pull = gradient if negative is None else torch.where(negative, -gradient, gradient)
        near = None if pairs is None else -pull[pairs]
        much = pull.dtype if pairs else wide_dtype(pull)
        far = (pull.index_put_(pairs, pull.new_zeros(())) if pairs else pull).to(much)
        if pairs is None:
            xu, cu = _wide_unit(x.plain), _wide_unit(c.plain)
            xf, cf = self.frame(xu), self.frame(cu)
        else:
            xf, cf = x.framed, c.framed
            xu, cu = (
                rows if self.frame.offset is None else rows + self.frame.offset for rows in (xf, cf)
            )
        to_x, to_c = (
            _tangent(to, rows) for to, rows in zip(spread(xf, cf, far), (xu, cu), strict=True)
        )
        for i, j, g in pair_chunks(pairs, x.plain.shape[1], *([near] if pairs else [])):
            xi, cj = _wide_unit(x.plain[i]), _wide_unit(c.plain[j])
            to_x.index_add_(0, i, (_tangent(cj, xi) * g[:, None]).to(much))
            to_c.index_add_(0, j, (_tangent(xi, cj) * g[:, None]).to(much))
        return (to_x * x.inverse[:, None]).to(pull.dtype), (to_c * c.inverse[:, None]).to(
            pull.dtype
        )


def _near_unit(rows: PreparedPoints, index: Int64[Tensor, " P"]) -> Float[Tensor, "P D"]:
    """Some rows in float64, of length 1 to float32's rounding."""
    return rows.plain[index].to(wide_dtype(rows.plain)).mul_(rows.inverse[index, None])


def _cosines(x: Float[Tensor, "P D"], c: Float[Tensor, "P D"]) -> Float[Tensor, " P"]:
    """cos(x_i, c_i); 0 for a row of zeros."""
    return torch.linalg.vecdot(x, c).div_(
        (squared_norms(x) * squared_norms(c)).sqrt_().clamp_(min=0.5)
    )


def normalize_rows(rows: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
    """Rows of length 1, whatever their scale; a row of zeros stays zero."""
    norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    if _strays(norm):
        rows = _rescaled(rows)
        norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows * torch.where(norm > 0, 1 / norm, 0)


def _inverse_norm(rows: Tensor) -> Float[Tensor, " N"]:
    norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    if _strays(norm):
        norm = rows.abs().amax(1, keepdim=True) * torch.linalg.vector_norm(
            _rescaled(rows), dim=1, keepdim=True
        )
    return torch.where(norm > 0, 1 / norm, 0).clamp_(max=torch.finfo(rows.dtype).max)[:, 0]


def _strays(norm: Tensor) -> bool:
    """Whether squares left the float range somewhere, or a row is zero."""
    return bool(((norm < 1e-15) | (norm > 1e15)).any())


def _rescaled(rows: Tensor) -> Tensor:
    largest = rows.abs().amax(1, keepdim=True)
    return rows / torch.where(largest > 0, largest, 1)


def _tangent(vector: Tensor, normal: Tensor) -> Tensor:
    return vector - (vector * normal).sum(1, keepdim=True) * normal


def _wide_unit(rows: Tensor) -> Tensor:
    return normalize_rows(rows.to(wide_dtype(rows)))
