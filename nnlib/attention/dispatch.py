"""Softmax of cosines as the attention that PyTorch has a fused kernel for, in bfloat16.

The one hot path: a streaming, exactly normalised weighted average over centers.
"""

import importlib.util
import math
import os
import shutil

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from nnlib._common.validation import check_choice, check_number
from nnlib.attention.blockwise import (
    BlockwiseBackward,
    Labels,
    blockwise_average,
    blockwise_nearest,
    exact_products,
    uniform_knn_average,
    working_dtype,
)
from nnlib.attention.kdtree import is_worthwhile, searched, tree_nearest, unsupported_reason
from nnlib.attention.kernels import (
    CosineSoftmax,
    DotProduct,
    InfluenceCone,
    InverseDistance,
    Kernel,
    UniformKNN,
)
from nnlib.distances import normalize_rows

SDPA_WIDTH = 256  # features, and columns of values, that those kernels take
LANES = 8  # their widths are multiples of it


def softmax_averages(
    queries: Shaped[Tensor, "B D"],
    centers: Shaped[Tensor, "M D"],
    values: Shaped[Tensor, "M V"],
    temperature: float,
    dtype: torch.dtype,
) -> Float[Tensor, "B V"]:
    """Averages by exp(cos / temperature), differentiable; unit rows and values are rounded to eight bits."""
    width = max(queries.shape[1], values.shape[1])
    width += -width % LANES

    def rows(part: Tensor) -> Tensor:
        return pad(part, (0, width - part.shape[1])).bfloat16()[None, None]

    q, k = (rows(normalize_rows(part.to(dtype))) for part in (queries, centers))
    return scaled_dot_product_attention(q, k, rows(values), scale=1 / temperature)[
        0, 0, :, : values.shape[1]
    ].to(dtype)


BACKENDS = ("auto", "blocks", "search", "fused")
MATMUL_DTYPES = ("float32", "bfloat16")
FUSED_FEATURES, FUSED_WIDTH = 16, 128  # what a GPU's cores can hold the differences and the sums of


def attend(
    queries: Shaped[Tensor, "B D"],
    centers: Shaped[Tensor, "M D"],
    values: "Shaped[Tensor, 'M V'] | Labels",
    kernel: Kernel,
    exclude: Int64[Tensor, " B"] | None = None,
    backend: str = "auto",
    tolerance: float = 0.0,
    matmul_dtype: str = "float32",
    sharpness: Float[Tensor, ""] | None = None,
) -> Float[Tensor, "B V"]:
    """The weighted average of `values` over all centers, for each query.

    queries [B, D], centers [M, D], values [M, V] of any real type: computed in float64 where queries or centers are, in
    float32 otherwise. values may be Labels: the result is each class's share of the weight.
    exclude [B]: the index of a center to leave out, -1 for none. A query that is left without any weight gets 0.
    backend: "blocks" measures all distances, a block at a time; "fused" does so in a few kernels on a CUDA GPU, for
    InverseDistance and InfluenceCone of at most 16 features, and for CosineSoftmax by PyTorch's attention, on any
    device, with coarse products, no `exclude`, and at most 256 features and columns of values; "search" finds the few
    centers that matter, for at most 3 features on a CPU, without gradients: as exactly for InfluenceCone and for
    UniformKNN by a Euclidean distance. "auto" takes the quickest one. tolerance: the share of the weight that a search
    with InverseDistance may leave out, which moves an average by at most this share of the values' range. products:
    "bfloat16" for coarse products of many features, where Euclidean or cosine distances are to a per cent or two; some
    processors do them in half the time. sharpness: a power of all weights, a number in a tensor, for InverseDistance
    and cosine kernels, by blocks.
    Differentiable in queries, centers, values and sharpness (UniformKNN: in values alone). Raises ValueError where
    shapes, devices or `backend` don't fit.
    """
    _check(queries, centers, values, exclude, backend)
    _check_averages(values, kernel, tolerance, matmul_dtype)
    if sharpness is not None:
        kernel, backend = _sharpened(kernel, sharpness, backend), "blocks"
    if len(queries) == 0:
        return torch.zeros(
            0, values.shape[1], dtype=working_dtype(queries, centers), device=queries.device
        )
    with exact_products():
        return _averages(
            queries, centers, values, kernel, exclude, backend, tolerance, matmul_dtype, sharpness
        )


def _averages(
    queries, centers, values, kernel, exclude, backend, tolerance, matmul_dtype, sharpness
) -> Tensor:
    """The averages, by what does them the quickest, or as `backend` says."""
    if _searches(queries, centers, values, kernel, backend, tolerance):
        return searched(queries, centers, values, kernel, exclude, tolerance)
    if _flashes(queries, values, kernel, exclude, backend, matmul_dtype):
        rows, dtype = (
            values[:] if isinstance(values, Labels) else values,
            working_dtype(queries, centers),
        )
        return softmax_averages(queries, centers, rows, kernel.temperature, dtype)
    fused = _fuses(queries, centers, values, kernel, backend)
    if kernel.k is not None:
        metric = kernel.distance(
            queries.detach(), centers.detach(), working_dtype(queries, centers)
        )
        return uniform_knn_average(queries, centers, values, kernel, metric, exclude)
    labels = values if isinstance(values, Labels) else None
    rows = None if labels else values
    return AttendFunction.apply(
        queries, centers, rows, sharpness, labels, kernel, exclude, fused, matmul_dtype
    )


def _sharpened(kernel: Kernel, sharpness: Tensor, backend: str) -> Kernel:
    """The power of a kernel, in which only blocks give a gradient."""
    power = float(sharpness.detach())
    if not 0 < power < math.inf:
        raise ValueError(f"sharpness={power!r} can't be used: give one positive number")
    if backend not in ("auto", "blocks"):
        raise ValueError(f"backend={backend!r} with sharpness: give 'auto' or 'blocks'")
    if (sharp := kernel.sharpened(power)) is None:
        raise ValueError(
            f"sharpness with {kernel}: give InverseDistance, CosineInverseDistance or CosineSoftmax"
        )
    return sharp


def class_log_probabilities(
    queries: Shaped[Tensor, "B D"],
    centers: Shaped[Tensor, "M D"],
    labels: Int64[Tensor, " M"],
    classes: int,
    kernel: Kernel,
    exclude: Int64[Tensor, " B"] | None = None,
    backend: str = "auto",
) -> Float[Tensor, "B C"]:
    """log of each class's share of the weight: the average of one-hot labels, without ever holding them whole.

    labels [M] in 0 ... classes - 1. A class without weight gets the logarithm of the smallest normal float, not -inf.
    """
    share = attend(queries, centers, Labels(labels, classes), kernel, exclude, backend)
    return share.clamp(min=torch.finfo(share.dtype).tiny).log()


@torch.no_grad()
def nearest(
    queries: Shaped[Tensor, "B D"],
    centers: Shaped[Tensor, "M D"],
    count: int,
    kernel: Kernel,
    exclude: Int64[Tensor, " B"] | None = None,
    backend: str = "auto",
) -> tuple[Float[Tensor, "B K"], Int64[Tensor, "B K"]]:
    """Distances and indices of the `count` nearest centers, nearest first, by the kernel's own distance.

    backend: as `attend` has them; "fused" is for averages alone. A place that no center is left for (excluded, or fewer
    than `count`) has distance inf and index -1.
    """
    _check(queries, centers, None, exclude, backend)
    if len(queries) == 0:
        return blockwise_nearest(queries.to(working_dtype(queries, centers)), centers, count, None)
    if backend == "fused":
        raise ValueError(
            "backend='fused' gives averages, and no nearest centers: give 'auto', 'blocks' or 'search'"
        )
    if _searches(queries, centers, None, UniformKNN(count, kernel), backend):
        return tree_nearest(queries, centers, count, kernel, exclude)
    with exact_products():
        metric = kernel.distance(queries, centers, working_dtype(queries, centers))
        distance, index = blockwise_nearest(queries, centers, count, metric, exclude)
        return distance / metric.scale, index


def _searches(
    queries, centers, values, kernel: Kernel, backend: str, tolerance: float = 0.0
) -> bool:
    """Whether to search; raises ValueError where that was asked for and can't be done."""
    width = 1 if values is None else values.shape[1] + 1
    if backend in ("blocks", "fused") or (
        backend == "auto" and not is_worthwhile(len(queries), len(centers), width, kernel.k)
    ):
        return False
    given = [part for part in (queries, centers, values) if isinstance(part, Tensor)]
    reason = unsupported_reason(kernel, centers, *given, tolerance=tolerance)
    if reason and backend == "search":
        raise ValueError(f"backend='search' {reason}, or backend='auto'")
    return reason is None


def _flashes(queries, values, kernel: Kernel, exclude, backend: str, matmul_dtype: str) -> bool:
    """Whether PyTorch's own attention does it: coarse products of cosines, all centers counting."""
    wanted = backend == "fused" or (backend == "auto" and queries.device.type == "cuda")
    fits = exclude is None and max(queries.shape[1], values.shape[1]) <= SDPA_WIDTH
    return wanted and fits and matmul_dtype == "bfloat16" and type(kernel) is CosineSoftmax


def _fuses(queries, centers, values, kernel: Kernel, backend: str) -> bool:
    """Whether one kernel does it all; raises ValueError where that was asked for and can't be done."""
    where, interpreted = queries.device.type, os.environ.get("TRITON_INTERPRET") == "1"
    if backend not in ("auto", "fused") or (backend == "auto" and where != "cuda"):
        return False
    reason = None
    if importlib.util.find_spec("triton") is None or not (where == "cuda" or interpreted):
        reason = f"runs on CUDA, by Triton, and queries lie on {where}: use a GPU"
    elif not (interpreted or any(map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang")))):
        reason = "needs a C compiler, and finds none: install gcc"
    elif type(kernel) not in (InverseDistance, InfluenceCone):
        reason = f"with {kernel}: give InverseDistance or InfluenceCone, or CosineSoftmax with matmul_dtype='bfloat16'"
    elif queries.shape[1] > FUSED_FEATURES or values.shape[1] > FUSED_WIDTH:
        given = f"{queries.shape[1]} features and {values.shape[1]} columns of values"
        reason = f"with {given}: give at most {FUSED_FEATURES} and {FUSED_WIDTH}"
    elif (
        working_dtype(queries, centers) != torch.float32
        or _numbers(queries, centers, values) >= 2**31
    ):
        reason = "computes in float32, and counts to 2^31: give smaller tensors, none in float64"
    if reason and backend == "fused":
        raise ValueError(f"backend='fused' {reason}, or backend='auto'")
    return reason is None


def _numbers(queries, centers, values) -> int:
    """How many there are in the largest of inputs and results."""
    return max(len(queries), centers.shape[0]) * max(centers.shape[1], values.shape[1])


class AttendFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, queries, centers, values, sharpness, labels, kernel, exclude, fused, matmul_dtype
    ):
        """The averages [B, V]; of the weights only their totals are kept, beside that of the nearest center."""
        metric = kernel.distance(queries, centers, working_dtype(queries, centers))
        metric.low_precision = matmul_dtype == "bfloat16"
        ctx.fused = None
        if fused:
            from nnlib.attention.triton_backend import TritonAttention

            ctx.fused = TritonAttention(
                queries, centers, values, labels, kernel, metric.scale, exclude
            )
            result, near, total = ctx.fused.averages()
        else:
            source = values if labels is None else labels
            result, near, total = blockwise_average(
                queries, centers, source, kernel, metric, exclude
            )
        ctx.save_for_backward(queries, centers, values, result, near, total, exclude, sharpness)
        ctx.labels, ctx.kernel, ctx.metric = labels, kernel, metric
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        with exact_products():
            return (*BlockwiseBackward(ctx, gradient).run(), None, None, None, None, None)


def _check_averages(values, kernel: Kernel, tolerance: float, matmul_dtype: str) -> None:
    if len(values.shape) != 2:
        raise ValueError(f"values has shape {tuple(values.shape)}: give [M, V], or Labels")
    check_number("tolerance", tolerance, "[0, 1)", "a share in [0, 1)")
    check_choice("matmul_dtype", matmul_dtype, MATMUL_DTYPES)
    if matmul_dtype != "float32" and (kernel.k is not None or type(kernel) is DotProduct):
        raise ValueError(f"matmul_dtype={matmul_dtype!r} with {kernel}: give 'float32'")


def _check(queries, centers, values, exclude, backend: str) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r} is not known: give one of {', '.join(BACKENDS)}")
    if queries.ndim != 2 or len(centers.shape) != 2 or queries.shape[1] != centers.shape[1]:
        raise ValueError(
            f"queries {tuple(queries.shape)} and centers {tuple(centers.shape)}: give [B, D] and [M, D]"
        )
    if centers.shape[0] == 0:
        raise ValueError("centers is empty: give at least one")
    if values is not None and values.shape[0] != centers.shape[0]:
        raise ValueError(
            f"values has {values.shape[0]} rows for {centers.shape[0]} centers: give one a center"
        )
    if exclude is not None and exclude.shape != queries.shape[:1]:
        raise ValueError(
            f"exclude has shape {tuple(exclude.shape)}: give [{queries.shape[0]}], one index a query"
        )
    devices = {str(t.device) for t in (queries, centers, values, exclude) if t is not None}
    if len(devices) > 1:
        raise ValueError(f"tensors lie on {' and '.join(sorted(devices))}: move them to one device")
