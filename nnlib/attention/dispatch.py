"""The one hot path: a streaming, exactly normalised weighted average over centers.

"blocks" measures all distances, a block at a time. "search" finds the few centers that matter: at
most 3 features, on a CPU, without gradients, for InfluenceCone and for UniformKNN by a Euclidean
distance. "fused" runs in a few GPU kernels: by Triton for InverseDistance of at most 16 features,
by PyTorch's attention for CosineSoftmax with products in bfloat16. "auto" takes the quickest that
is exact.
"""

import importlib.util
import math

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from nnlib._common.runtime import full_precision
from nnlib._common.validation import check_choice
from nnlib.attention.blockwise import (
    BlockwiseBackward,
    Labels,
    blockwise_average,
    blockwise_nearest,
    uniform_knn_average,
    working_dtype,
)
from nnlib.attention.kdtree import tree_average, tree_nearest, unsupported_reason
from nnlib.attention.kernels import CosineSoftmax, DotProduct, Kernel, UniformKNN
from nnlib.distances import normalize_rows

BACKENDS = ("auto", "blocks", "search", "fused")
MATMUL_DTYPES = ("float32", "bfloat16")
SDPA_WIDTH = 256  # features, and columns of values, that PyTorch's attention takes
SDPA_LANES = 8  # whose widths are multiples of it
SEARCH_QUERIES = 64  # from which sorting the centers first is quicker
SEARCH_PAIRS = 1 << 18
SEARCH_CENTERS = 32  # are measured in the time that a tree takes for one of the nearest
SEARCH_TABLE = 1 << 23  # numbers in a sorted copy of the values, at most

Queries = Shaped[Tensor, "B D"]
Centers = Shaped[Tensor, "M D"]
Exclude = Int64[Tensor, " B"] | None


def attend(
    queries: Queries,
    centers: Centers,
    values: "Shaped[Tensor, 'M V'] | Labels",
    kernel: Kernel,
    exclude: Exclude = None,
    backend: str = "auto",
    matmul_dtype: str = "float32",
    sharpness: Float[Tensor, ""] | None = None,
) -> Float[Tensor, "B V"]:
    """Average `values` over all centers, weighted by a kernel, for each query.

    Parameters
    ----------
    queries, centers : Tensor [B, D] and [M, D] of any real type; float64 is computed in float64
    values : Tensor [M, V], or Labels, for each class's fraction of the weight
    exclude : Tensor [B], the center that each query leaves out, -1 for none
    backend : "auto", "blocks", "search" or "fused", as the module says
    matmul_dtype : "bfloat16" for quick products that leave distances right to a per cent or two
    sharpness : Tensor [], a power of all weights, for InverseDistance and cosine kernels

    Returns
    -------
    Tensor [B, V], 0 for queries without weight; differentiable (UniformKNN: in values alone).

    Raises
    ------
    ValueError, where shapes, devices, or settings don't fit.

    Examples
    --------
    >>> from nnlib.attention import InverseDistance
    >>> centers, values = torch.tensor([[0.0], [3.0]]), torch.tensor([[0.0], [9.0]])
    >>> attend(torch.tensor([[1.0]]), centers, values, InverseDistance(exponent=-2.0))
    tensor([[1.8000]])
    """
    _check(queries, centers, values, exclude, backend)
    with full_precision():
        return _attend(queries, centers, values, kernel, exclude, backend, matmul_dtype, sharpness)


def _attend(queries, centers, values, kernel, exclude, backend, matmul_dtype, sharpness) -> Tensor:
    dtype = working_dtype(queries, centers)
    check_choice("matmul_dtype", matmul_dtype, MATMUL_DTYPES)
    if matmul_dtype != "float32" and (kernel.k is not None or type(kernel) is DotProduct):
        raise ValueError(f"matmul_dtype={matmul_dtype!r} with {kernel}: give 'float32'")
    if sharpness is not None:
        kernel = _sharpened(kernel, sharpness, backend)
        backend = "blocks"
    if len(queries) == 0:
        return torch.zeros(0, values.shape[1], dtype=dtype, device=queries.device)
    if _takes_search(queries, centers, values, kernel, backend):
        return tree_average(queries, centers, values, kernel, exclude)
    if _takes_sdpa(queries, values, kernel, exclude, backend, matmul_dtype):
        return _sdpa_average(queries, centers, values, kernel.temperature, dtype)
    fused = _takes_triton(queries, centers, values, kernel, backend)
    if kernel.k is not None:
        distance_fn = kernel.distance(queries.detach(), centers.detach(), dtype)
        return uniform_knn_average(queries, centers, values, kernel, distance_fn, exclude)
    labels = values if isinstance(values, Labels) else None
    rows = values if labels is None else None
    return AttendFunction.apply(
        queries, centers, rows, sharpness, labels, kernel, exclude, fused, matmul_dtype
    )


def class_log_probabilities(
    queries: Queries,
    centers: Centers,
    labels: Int64[Tensor, " M"],
    classes: int,
    kernel: Kernel,
    exclude: Exclude = None,
    backend: str = "auto",
) -> Float[Tensor, "B C"]:
    """Log of each class's fraction of the weight; one-hot labels are never held whole.

    Parameters
    ----------
    labels : Tensor [M], int64 in 0 ... classes - 1
    queries, centers, kernel, exclude, backend : as in `attend`

    Returns
    -------
    Tensor [B, C]; a class without weight has the log of the smallest normal float, not -inf.

    Examples
    --------
    >>> from nnlib.attention import InverseDistance
    >>> centers, labels = torch.tensor([[0.0], [3.0]]), torch.tensor([0, 1])
    >>> kernel = InverseDistance(exponent=-2.0)
    >>> class_log_probabilities(torch.tensor([[1.0]]), centers, labels, 2, kernel).exp()
    tensor([[0.8000, 0.2000]])
    """
    fraction = attend(queries, centers, Labels(labels, classes), kernel, exclude, backend)
    return fraction.clamp(min=torch.finfo(fraction.dtype).tiny).log()


@torch.no_grad()
def nearest(
    queries: Queries,
    centers: Centers,
    count: int,
    kernel: Kernel,
    exclude: Exclude = None,
    backend: str = "auto",
) -> tuple[Float[Tensor, "B K"], Int64[Tensor, "B K"]]:
    """Find the nearest centers of each query, nearest first, by the kernel's own distance.

    Parameters
    ----------
    count : int
    queries, centers, kernel, exclude, backend : as in `attend`; "fused" is for averages alone

    Returns
    -------
    distances, indices : Tensor [B, count]; inf and -1 where no center is left

    Examples
    --------
    >>> from nnlib.attention import InverseDistance
    >>> nearest(torch.tensor([[1.0]]), torch.tensor([[0.0], [3.0]]), 2, InverseDistance())
    (tensor([[1., 2.]]), tensor([[0, 1]]))
    """
    _check(queries, centers, None, exclude, backend)
    dtype = working_dtype(queries, centers)
    if backend == "fused":
        wanted = "give 'auto', 'blocks' or 'search'"
        raise ValueError(f"backend='fused' gives averages, and no nearest centers: {wanted}")
    if len(queries) == 0:
        empty = torch.empty(0, count, dtype=dtype, device=queries.device)
        return empty, empty.long()
    if _takes_search(queries, centers, None, UniformKNN(count, kernel), backend):
        return tree_nearest(queries, centers, count, kernel, exclude)
    with full_precision():
        distance_fn = kernel.distance(queries, centers, dtype)
        distance, index = blockwise_nearest(queries, centers, count, distance_fn, exclude)
        return distance / distance_fn.scale, index


class AttendFunction(torch.autograd.Function):
    """The average, and its gradients, by blocks or by Triton."""

    @staticmethod
    def forward(
        ctx, queries, centers, values, sharpness, labels, kernel, exclude, fused, matmul_dtype
    ):
        """The averages [B, V]; of the weights only their totals are saved."""
        distance_fn = kernel.distance(queries, centers, working_dtype(queries, centers))
        distance_fn.low_precision = matmul_dtype == "bfloat16"
        ctx.triton = None
        if fused:
            from nnlib.attention.triton_backend import TritonAttention

            scale = distance_fn.scale
            ctx.triton = TritonAttention(queries, centers, values, labels, kernel, scale, exclude)
            result, closest, total = ctx.triton.averages()
        else:
            rows = values if labels is None else labels
            result, closest, total = blockwise_average(
                queries, centers, rows, kernel, distance_fn, exclude
            )
        ctx.save_for_backward(queries, centers, values, sharpness, result, closest, total, exclude)
        ctx.labels = labels
        ctx.kernel = kernel
        ctx.distance_fn = distance_fn
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        """Gradients to queries, centers, values and sharpness, in their own types."""
        with full_precision():
            blocks = BlockwiseBackward(ctx, gradient)
            if ctx.triton is None:
                parts = blocks.run()
            else:
                parts = ctx.triton.gradients(blocks.gradient, blocks.mean[:, 0], blocks.nearest)
        gradients = [None] * 9
        for i, part in enumerate(parts):
            if ctx.needs_input_grad[i]:
                gradients[i] = part.to(ctx.saved_tensors[i].dtype)
        return tuple(gradients)


def _sdpa_average(queries, centers, values, temperature: float, dtype: torch.dtype) -> Tensor:
    """Averages by exp(cos / temperature); unit rows and values are rounded to eight bits."""
    values = values[:] if isinstance(values, Labels) else values
    width = max(queries.shape[1], values.shape[1])
    width += -width % SDPA_LANES

    def padded(rows: Tensor) -> Tensor:
        return pad(rows, (0, width - rows.shape[1])).bfloat16()[None, None]

    q, k = (padded(normalize_rows(rows.to(dtype))) for rows in (queries, centers))
    result = scaled_dot_product_attention(q, k, padded(values), scale=1 / temperature)
    return result[0, 0, :, : values.shape[1]].to(dtype)


def is_worthwhile(queries: int, centers: int, width: int = 1, k: int | None = None) -> bool:
    """Whether sorting the centers, and values of some width, beats measuring all distances."""
    many = queries >= SEARCH_QUERIES and queries * centers >= SEARCH_PAIRS
    few_nearest = k is None or SEARCH_CENTERS * k <= centers
    return many and few_nearest and centers * width <= SEARCH_TABLE


def _takes_search(queries, centers, values, kernel: Kernel, backend: str) -> bool:
    """Whether to search; raises ValueError where that was asked for and can't be done."""
    if backend in ("blocks", "fused"):
        return False
    width = 1 if values is None else values.shape[1] + 1
    sizes = (len(queries), len(centers), width)
    if backend == "auto" and not is_worthwhile(*sizes, kernel.k):
        return False
    tensors = (part for part in (queries, centers, values) if isinstance(part, Tensor))
    reason = unsupported_reason(kernel, centers, *tensors)
    if reason and backend == "search":
        raise ValueError(f"backend='search' {reason}, or backend='auto'")
    return reason is None


def _takes_sdpa(queries, values, kernel, exclude, backend: str, matmul_dtype: str) -> bool:
    """Whether PyTorch's attention does it: coarse products of cosines, all centers counting."""
    wanted = backend == "fused" or (backend == "auto" and queries.device.type == "cuda")
    fits = exclude is None and max(queries.shape[1], values.shape[1]) <= SDPA_WIDTH
    return wanted and fits and matmul_dtype == "bfloat16" and type(kernel) is CosineSoftmax


def _takes_triton(queries, centers, values, kernel: Kernel, backend: str) -> bool:
    """Whether Triton does it; raises ValueError where that was asked for and can't be done."""
    on_gpu = queries.device.type == "cuda"
    if backend not in ("auto", "fused") or (backend == "auto" and not on_gpu):
        return False
    if importlib.util.find_spec("triton") is None:
        reason = "needs Triton, which is not installed: install it"
    else:
        from nnlib.attention import triton_backend

        reason = triton_backend.unsupported_reason(queries, centers, values, kernel)
    if reason and backend == "fused":
        raise ValueError(f"backend='fused' {reason}, or backend='auto'")
    return reason is None


def _sharpened(kernel: Kernel, sharpness: Tensor, backend: str) -> Kernel:
    """The power of a kernel, in which only blocks give a gradient."""
    power = float(sharpness.detach())
    if not 0 < power < math.inf:
        raise ValueError(f"sharpness={power!r} can't be used: give one positive number")
    if backend not in ("auto", "blocks"):
        raise ValueError(f"backend={backend!r} with sharpness: give 'auto' or 'blocks'")
    sharp = kernel.sharpened(power)
    if sharp is None:
        wanted = "InverseDistance, CosineInverseDistance or CosineSoftmax"
        raise ValueError(f"sharpness with {kernel}: give {wanted}")
    return sharp


def _check(queries, centers, values, exclude, backend: str) -> None:
    check_choice("backend", backend, BACKENDS)
    shape = tuple(queries.shape)
    points = tuple(centers.shape)
    if len(shape) != 2 or len(points) != 2 or shape[1] != points[1]:
        raise ValueError(f"queries {shape} and centers {points}: give [B, D] and [M, D]")
    if points[0] == 0:
        raise ValueError("centers is empty: give at least one")
    if values is not None and (len(values.shape) != 2 or values.shape[0] != points[0]):
        found = f"shape {tuple(values.shape)} for {points[0]} centers"
        raise ValueError(f"values has {found}: give [M, V], or Labels")
    if exclude is not None and exclude.shape != queries.shape[:1]:
        wanted = f"give [{shape[0]}], one index a query"
        raise ValueError(f"exclude has shape {tuple(exclude.shape)}: {wanted}")
    tensors = [part for part in (queries, centers, values, exclude) if part is not None]
    devices = sorted({str(part.device) for part in tensors})
    if len(devices) > 1:
        raise ValueError(f"tensors lie on {' and '.join(devices)}: move them to one device")
