from nnlib.distances.base import Preconditioner, Workspace, subsample, take_rows, wide_dtype
from nnlib.distances.cosine import CosineDistance, normalize_rows
from nnlib.distances.euclidean import (
    EuclideanDistance,
    MultiScaleDistance,
    NegativeDotProduct,
    power_,
)

__all__ = [
    "CosineDistance",
    "EuclideanDistance",
    "MultiScaleDistance",
    "NegativeDotProduct",
    "Preconditioner",
    "Workspace",
    "normalize_rows",
    "power_",
    "subsample",
    "take_rows",
    "wide_dtype",
]
