"""How columns are compared: as they are, where float32 holds their differences."""

import torch
from jaxtyping import Shaped
from torch import Tensor

from nnlib._common.validation import WIDE
from nnlib.attention import EuclideanPyramid, Kernel, UniformKNN
from nnlib.neighbors.base import Columns

SCALINGS = ("auto", "deviation", "none")
LOST_DIGITS = 1e-4  # of a column's deviation, rounded away in float32


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
