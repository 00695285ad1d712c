"""Distances between blocks of points, exact to rounding, with gradients."""

from nnlib.distances.base import Distance
from nnlib.distances.base import Preconditioner as Preconditioner
from nnlib.distances.base import Workspace as Workspace
from nnlib.distances.base import subsample as subsample
from nnlib.distances.base import take_rows as take_rows
from nnlib.distances.base import wide_dtype as wide_dtype
from nnlib.distances.cosine import CosineDistance
from nnlib.distances.cosine import normalize_rows as normalize_rows
from nnlib.distances.euclidean import EuclideanDistance
from nnlib.distances.euclidean import MultiScaleDistance as MultiScaleDistance
from nnlib.distances.euclidean import NegativeDotProduct as NegativeDotProduct
from nnlib.distances.euclidean import power_ as power_

__all__ = ["CosineDistance", "Distance", "EuclideanDistance"]
