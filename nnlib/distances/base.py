"""What distances are measured in, and rows prepared for it once for all the blocks that they meet.

A matrix product gives |x - c|^2 = |x|^2 + |c|^2 - 2 x.c at the hardware's speed, and loses its digits where x and c are
close beside their own length. So rows are centred and scaled first, and the pairs that still cancel are measured again.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

CANCELS = {
    torch.float32: 16.0,
    torch.float64: 1e5,
}  # (|x|^2 + |c|^2) / |x - c|^2 above which a pair is measured again
CROWDED = 1 / 64  # share of such pairs in a block above which all of it is
PAIR_BYTES = 1 << 22  # for the rows gathered at a time, so that they stay in a cache


class Preconditioner(NamedTuple):
    """x -> x * scale - offset: what distances are measured in, so that they are `scale` times those of the data."""

    scale: float = 1.0
    offset: Float[Tensor, " D"] | None = None

    def __call__(self, rows: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        if self.scale != 1.0:
            rows = rows * self.scale
        return rows if self.offset is None else rows - self.offset


class PreparedPoints(NamedTuple):
    """Rows as they are, in the frame that products are taken in, and what those products lack, [N] each or None."""

    plain: Float[Tensor, "N D"]
    framed: Float[Tensor, "N D"]
    squares: Float[Tensor, " N"] | None = None
    inverse: Float[Tensor, " N"] | None = None


class Workspace:
    """Blocks that are overwritten and used again: fresh memory costs more than the sums that are done in it."""

    def __init__(self):
        self.kept = {}

    def __call__(self, name: str, like: Tensor, rows: int, columns: int) -> Float[Tensor, "B M"]:
        """The block of that name; what it held before is lost."""
        flat = self.kept.get(name)
        if flat is None or len(flat) < rows * columns or flat.dtype != like.dtype:
            flat = self.kept[name] = like.new_empty(rows * columns)
        return flat[: rows * columns].view(rows, columns)

    def beside(self, name: str, block: Tensor) -> Float[Tensor, "B M"]:
        """A block like another."""
        return self(name, block, *block.shape)


def scaled_product(
    x: Float[Tensor, "B D"],
    c: Float[Tensor, "M D"],
    scale: float,
    beside: Float[Tensor, " M"],
    out: Tensor,
    coarse: bool,
) -> Float[Tensor, "B M"]:
    """beside_j + scale x_i.c_j into `out`; coarse: of rows in bfloat16, which some processors multiply faster."""
    if coarse:
        return out.copy_(x.bfloat16() @ c.bfloat16().T).mul_(scale).add_(beside)
    return torch.addmm(beside.expand_as(out), x, c.T, alpha=scale, out=out)


def take_rows(rows, index: slice | Int[Tensor, " K"]):
    """Some of prepared rows, whatever they are made of."""
    if rows is None or isinstance(rows, Tensor):
        return None if rows is None else rows[index]
    parts = [take_rows(part, index) for part in rows]
    return type(rows)(*parts) if isinstance(rows, PreparedPoints) else tuple(parts)


def centering_offset(sample: Float[Tensor, "N D"]) -> Float[Tensor, " D"] | None:
    """The mean, where it outweighs the spread around it."""
    mean = sample.mean(0)
    spread = (sample - mean).square().sum(1).mean()
    return mean if bool(mean.square().sum() > spread) else None


def subsample(rows: Shaped[Tensor, "N D"], dtype: torch.dtype) -> Float[Tensor, "K D"]:
    """About 512 of them, evenly."""
    return rows[:: max(1, rows.shape[0] // 512)].to(dtype)


def squared_norms(rows: Float[Tensor, "N D"]) -> Float[Tensor, " N"]:
    """Squared lengths."""
    return torch.linalg.vecdot(rows, rows)


def close_pairs(block: Float[Tensor, "B M"], below: Float[Tensor, " B"]) -> tuple[Tensor, Tensor]:
    """(i, j) of what lies below each row's limit: most rows are dismissed by their smallest entry."""
    rows = (block.amin(1) < below).nonzero()[:, 0]
    if len(rows) == 0:
        return rows, rows
    i, j = (block[rows] < below[rows, None]).nonzero(as_tuple=True)
    return rows[i], j


def pair_chunks(
    pairs: tuple[Int[Tensor, " P"], ...] | None, features: int, *along: Tensor
) -> Iterator[tuple[Tensor, ...]]:
    """The pairs and what goes along with each, as many at a time as their gathered rows fit in PAIR_BYTES."""
    if pairs is not None and len(pairs[0]):
        length = max(1, PAIR_BYTES // (features * 8))
        yield from zip(*(part.split(length) for part in (*pairs, *along)), strict=True)


def spread(
    x: Float[Tensor, "B D"], c: Float[Tensor, "M D"], pull: Float[Tensor, "B M"]
) -> tuple[Float[Tensor, "B D"], Float[Tensor, "M D"]]:
    """sum_j pull_ij (x_i - c_j), and minus the same over i."""
    return pull.sum(1, keepdim=True) * x - pull @ c, pull.sum(0)[:, None] * c - pull.T @ x


def wide_dtype(rows: Tensor) -> torch.dtype:
    """float64 where the device has it."""
    return rows.dtype if rows.device.type == "mps" else torch.float64
