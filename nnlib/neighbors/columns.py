"""Columns of a table: what is subtracted from each, and how much it counts."""

from typing import NamedTuple

import torch
from jaxtyping import Float64, Shaped
from torch import Tensor

from nnlib._common.validation import BLOCK_NUMBERS, WIDE
from nnlib.attention import EuclideanPyramid, Kernel, UniformKNN

SCALINGS = ("auto", "deviation", "none")
LOST_DIGITS = 1e-4  # of a column's deviation, rounded away in float32


class Columns(NamedTuple):
    """What is subtracted from each column, and the factor that it then counts with."""

    offset: Float64[Tensor, " D"] | None = None
    weight: Float64[Tensor, " D"] | None = None

    def apply(
        self, x: Shaped[Tensor, "N D"], dtype: torch.dtype = torch.float32
    ) -> Shaped[Tensor, "N D"]:
        """The columns as they are compared: in float64 until numbers are small."""
        if self.offset is None and self.weight is None:
            return x.to(dtype) if x.dtype in WIDE else x
        if len(x) * x.shape[1] > BLOCK_NUMBERS and not x.requires_grad:
            size = max(1, BLOCK_NUMBERS // x.shape[1])
            return torch.cat([self.apply(block, dtype) for block in x.split(size)])
        x = x.to(torch.float64)
        if self.offset is not None:
            x = x - self.offset.to(x.device)
        if self.weight is not None:
            x = x * self.weight.to(x.device)
        return x.to(dtype)


def is_euclidean(kernel: Kernel) -> bool:
    """Whether a kernel looks at differences alone, so that columns may be moved and weighed."""
    if isinstance(kernel, UniformKNN):
        return is_euclidean(kernel.base)
    return isinstance(kernel, EuclideanPyramid) or type(kernel).distance is Kernel.distance


def plain_columns(x: Shaped[Tensor, "N D"], kernel: Kernel | None = None) -> Columns:
    """Columns as they are, less their mean where float32 would round their differences away."""
    if x.dtype not in WIDE or not (kernel is None or is_euclidean(kernel)):
        return Columns()
    rows = x[:: max(1, len(x) // 512)].to(torch.float64)
    lost = (rows - rows.float()).abs().amax(0) > LOST_DIGITS * rows.std(0, correction=0)
    if not bool((lost & (rows.amax(0) > rows.amin(0))).any()):
        return Columns()
    return Columns(x.to(torch.float64).mean(0))
