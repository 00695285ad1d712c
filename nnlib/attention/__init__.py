"""The weighted average over all centers, its kernels, and the nearest of them."""

from nnlib.attention.blockwise import Labels
from nnlib.attention.blockwise import LoopedFunction as LoopedFunction
from nnlib.attention.blockwise import OnlineWeightedMean as OnlineWeightedMean
from nnlib.attention.blockwise import accumulate as accumulate
from nnlib.attention.blockwise import add_products as add_products
from nnlib.attention.blockwise import average_of as average_of
from nnlib.attention.blockwise import blockwise_average as blockwise_average
from nnlib.attention.blockwise import blockwise_nearest as blockwise_nearest
from nnlib.attention.blockwise import finite as finite
from nnlib.attention.blockwise import mask_excluded as mask_excluded
from nnlib.attention.blockwise import mean_of_rows as mean_of_rows
from nnlib.attention.blockwise import merge_topk as merge_topk
from nnlib.attention.blockwise import uniform_knn_average as uniform_knn_average
from nnlib.attention.blockwise import with_ones as with_ones
from nnlib.attention.blockwise import working_dtype as working_dtype
from nnlib.attention.dispatch import MATMUL_DTYPES, attend, class_log_probabilities, nearest
from nnlib.attention.dispatch import is_worthwhile as is_worthwhile
from nnlib.attention.kdtree import QuantileGrid as QuantileGrid
from nnlib.attention.kdtree import unsupported_reason as unsupported_reason
from nnlib.attention.kernels import (
    CosineInverseDistance,
    CosineSoftmax,
    DotProduct,
    EuclideanPyramid,
    InfluenceCone,
    InverseDistance,
    Kernel,
    UniformKNN,
    make_kernel,
)

__all__ = [
    "attend",
    "nearest",
    "class_log_probabilities",
    "Labels",
    "Kernel",
    "make_kernel",
    "InverseDistance",
    "CosineInverseDistance",
    "EuclideanPyramid",
    "InfluenceCone",
    "CosineSoftmax",
    "DotProduct",
    "UniformKNN",
    "MATMUL_DTYPES",
]
