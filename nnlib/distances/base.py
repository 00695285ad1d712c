"""What all distances share: an abstract class, points prepared once, and memory used again.

A matrix product gives |x - c|^2 = |x|^2 + |c|^2 - 2 x.c at the hardware's speed, but cancels where
x and c are close relative to their length. So points are centered and scaled first, and the pairs
that still cancel are measured again directly.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

# (|x|^2 + |c|^2) / |x - c|^2 above which a pair is measured again
CANCELLATION = {torch.float32: 16.0, torch.float64: 1e5}
CROWDED = 1 / 64  # fraction of such pairs in a block above which all of it is measured again
PAIR_BYTES = 1 << 22  # of the rows gathered at a time, so that they stay in a cache

Rows = Float[Tensor, "N D"]
Block = Float[Tensor, "B M"]
Pairs = tuple[Int[Tensor, " P"], Int[Tensor, " P"]]  # indices of queries, and of centers
Gradients = tuple[Float[Tensor, "B D"], Float[Tensor, "M D"]]


class Preconditioner(NamedTuple):
    """x -> x * scale - offset, after which products of rows lose few digits."""

    scale: float = 1.0
    offset: Float[Tensor, " D"] | None = None

    def __call__(self, rows: Rows) -> Rows:
        if self.scale != 1.0:
            rows = rows * self.scale
        return rows if self.offset is None else rows - self.offset


class PreparedPoints(NamedTuple):
    """Rows as they are and preconditioned, squared norms (for cosines half), and 1 / norms."""

    raw: Rows
    conditioned: Rows
    squares: Float[Tensor, " N"] | None = None
    inverse_norms: Float[Tensor, " N"] | None = None


class Workspace:
    """Blocks that are used again: fresh memory costs more than the sums done in it."""

    def __init__(self):
        self.blocks = {}

    def __call__(self, name: str, like: Tensor, rows: int, columns: int) -> Block:
        """The block of that name; what it held before is lost."""
        size = rows * columns
        flat = self.blocks.get(name)
        if flat is None or len(flat) < size or flat.dtype != like.dtype:
            flat = self.blocks[name] = like.new_empty(size)
        return flat[:size].view(rows, columns)

    def like(self, name: str, block: Tensor) -> Block:
        """A block of another's shape."""
        return self(name, block, *block.shape)


class Distance(ABC):
    """How far apart the points of two blocks are, with gradients; smaller is nearer.

    Examples
    --------
    >>> from nnlib.distances import EuclideanDistance
    >>> x = torch.tensor([[3.0, 4.0]])
    >>> distance = EuclideanDistance.for_data(x, x, torch.float32)
    >>> distance.pairwise(distance.prepare(x), distance.prepare(0 * x))[0]
    tensor([[5.]])
    """

    scale = 1.0  # distances are this many times those of the data
    low_precision = False  # whether products may be of rows in bfloat16

    def __init__(self):
        self.workspace = Workspace()

    def expand_squares(self, x: PreparedPoints, c: PreparedPoints, factor: float) -> Block:
        """x.squares_i + c.squares_j + factor x_i.c_j, of rows in bfloat16 where that is enough."""
        out = self.workspace("distance", x.raw, len(x.raw), len(c.raw))
        if self.low_precision:
            product = x.conditioned.bfloat16() @ c.conditioned.bfloat16().T
            out.copy_(product).mul_(factor).add_(c.squares)
        else:
            norms = c.squares.expand_as(out)
            torch.addmm(norms, x.conditioned, c.conditioned.T, alpha=factor, out=out)
        return out.add_(x.squares[:, None])

    def cancellation(self, block: Block) -> float:
        """How many times as large as a distance the terms may be that it is the difference of."""
        return CANCELLATION[torch.float32 if self.low_precision else block.dtype]

    @abstractmethod
    def prepare(self, rows: Rows):
        """Compute what distances need of each row, once for all the blocks that it meets."""

    @abstractmethod
    def pairwise(self, x, c, for_backward: bool = False, same: Pairs | None = None):
        """Measure distances [B, M], valid until the next call; also what `backward` needs of them.

        same: pairs known to be one and the same row, which are not measured.
        """

    @abstractmethod
    def backward(self, x, c, distance: Tensor, context, gradient: Tensor):
        """Gradients to rows of x and c, for those to the distances. Overwrites `gradient`."""

    def formula(self, x: Float[Tensor, "B D"], c: Float[Tensor, "M D"]) -> Block:
        """The same distances by plain operations on rows, which differentiate twice."""
        name = type(self).__name__
        raise NotImplementedError(f"{name} has no formula, which second derivatives need")

    def sort_key(self, x, c) -> Block:
        """Compute what sorts as the distances do, valid until the next call."""
        return self.pairwise(x, c)[0]

    def from_sort_key(self, key: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Distances that belong to sort keys."""
        return key


def take_rows(points, index: slice | Int[Tensor, " K"]):
    """Select some prepared points, be they of one scale or of several."""
    if isinstance(points, PreparedPoints):
        return PreparedPoints(*(None if part is None else part[index] for part in points))
    return tuple(take_rows(part, index) for part in points)


def centering_offset(sample: Rows) -> Float[Tensor, " D"] | None:
    """The mean, where it outweighs the spread around it."""
    mean = sample.mean(0)
    spread = (sample - mean).square().sum(1).mean()
    return mean if bool(mean.square().sum() > spread) else None


def plain_squares(x: Float[Tensor, "B D"], c: Float[Tensor, "M D"]) -> Block:
    """|x - c|^2 by plain operations; pairs that would cancel are subtracted."""
    shift = c.detach().mean(0)
    x, c = x - shift, c - shift
    norms = squared_norms(x)[:, None] + squared_norms(c)
    squares = norms - 2 * x @ c.T
    i, j = (squares.detach() * CANCELLATION[x.dtype] < norms).nonzero(as_tuple=True)
    return squares.index_put((i, j), squared_norms(x[i] - c[j]))


def subsample(rows: Shaped[Tensor, "N D"], dtype: torch.dtype) -> Float[Tensor, "K D"]:
    """About 512 of them, evenly spaced."""
    return rows[:: max(1, rows.shape[0] // 512)].to(dtype)


def squared_norms(rows: Rows) -> Float[Tensor, " N"]:
    """Squared lengths of rows."""
    return torch.linalg.vecdot(rows, rows)


def close_pairs(block: Block, below: Float[Tensor, " B"]) -> Pairs:
    """Find entries below each row's limit; most rows are dismissed by their smallest entry."""
    rows = (block.amin(1) < below).nonzero()[:, 0]
    if len(rows) == 0:
        return rows, rows
    i, j = (block[rows] < below[rows, None]).nonzero(as_tuple=True)
    return rows[i], j


def pair_chunks(pairs: Pairs, features: int, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Split pairs, and other numbers of each, so that the rows they gather fit in PAIR_BYTES."""
    if len(pairs[0]):
        length = max(1, PAIR_BYTES // (features * 8))
        yield from zip(*(part.split(length) for part in (*pairs, *others)), strict=True)


def weighted_differences(
    x: Float[Tensor, "B D"], c: Float[Tensor, "M D"], weight: Block
) -> Gradients:
    """sum_j weight_ij (x_i - c_j), and minus the same over i."""
    to_x = weight.sum(1, keepdim=True) * x - weight @ c
    return to_x, weight.sum(0)[:, None] * c - weight.T @ x


def wide_dtype(rows: Tensor) -> torch.dtype:
    """float64 where the device has it."""
    return rows.dtype if rows.device.type == "mps" else torch.float64
