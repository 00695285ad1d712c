"""The one hot path: a streaming, exactly normalised weighted average over centers.

"blocks" measures all distances, a block at a time. "search" finds the few centers that matter: at
most 3 features, on a CPU, without gradients, for InfluenceCone and for UniformKNN by a Euclidean
distance. "fused" runs in a few GPU kernels: by Triton for InverseDistance of at most 16 features,
by PyTorch's attention for CosineSoftmax with products in bfloat16. "auto" takes the quickest that
is exact.
"""

import importlib.util
import math
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from nnlib._common.runtime import torch_defaults
from nnlib._common.validation import as_integers, as_tensor, check_choice, check_int
from nnlib.attention.blockwise import (
    Call,
    Labels,
    LoopedFunction,
    as_exact,
    blank_rows,
    blockwise_average,
    mean_of_nearest,
    nearest_by_kernel,
    spread,
    spread_nan,
    working_dtype,
)
from nnlib.attention.derivatives import GradientsFunction, HessianFunction
from nnlib.attention.kdtree import tree_average, tree_nearest, unsupported_reason
from nnlib.attention.kernels import CosineSoftmax, DotProduct, Kernel, UniformKNN, make_kernel
from nnlib.distances import normalize_rows

BACKENDS = ("auto", "blocks", "search", "fused")
MATMUL_DTYPES = ("float32", "bfloat16")
SDPA_WIDTH = 256  # features, and columns of values, that PyTorch's attention takes
SDPA_LANES = 8  # whose widths are multiples of it
SEARCH_QUERIES = 64  # from which sorting the centers first is quicker
SEARCH_PAIRS = 1 << 18
SEARCH_CENTERS = 32  # are measured in the time that a tree takes for one of the nearest
SEARCH_TABLE = 1 << 23  # numbers in a sorted copy of the values, at most
Numbers = Any  # tensors, arrays, frames, lists


@torch_defaults()
def attend(
    queries: Numbers,
    centers: Numbers,
    values: Numbers | Labels,
    kernel: Any,
    exclude: Numbers = None,
    backend: str = "auto",
    matmul_dtype: str = "float32",
    sharpness: Numbers = None,
) -> Float[Tensor, "B V"]:
    """Average `values` over all centers, weighted by a kernel, for each query.

    Parameters
    ----------
    queries, centers : Tensor [B, D] and [M, D] of real numbers of any type, arrays, or lists
    values : the same [M, V], or Labels, for each class's fraction of the weight
    kernel : Kernel, or a name that `make_kernel` knows
    exclude : Tensor [B], the center 0 ... M - 1 that each query leaves out, -1 for none
    backend : "auto", "blocks", "search" or "fused", as the module says
    matmul_dtype : "bfloat16" for quick products that leave distances right to a per cent or two
    sharpness : Tensor [] or float, a power of all weights, for InverseDistance and cosine kernels

    Returns
    -------
    Tensor [B, V], float64 where queries or centers are, float32 for all else; 0 for queries without
    weight, NaN where a query or any center isn't finite. Differentiates twice, also by torch.func
    (UniformKNN: in values alone; PyTorch's attention: once, by autograd; vmap is a loop).

    Raises
    ------
    ValueError, where shapes, devices, or settings don't fit. RuntimeError or NotImplementedError,
    where a derivative is asked for that there isn't.

    Examples
    --------
    >>> centers, values = torch.tensor([[0.0], [3.0]]), torch.tensor([[0.0], [17.0]])
    >>> attend(torch.tensor([[1.0]]), centers, values, "euclidean")
    tensor([[1.0000]])
    """
    check_choice("matmul_dtype", matmul_dtype, MATMUL_DTYPES)
    given = (queries, centers, values, exclude, kernel)
    queries, centers, values, exclude, kernel = _check(*given, backend)
    coarse = matmul_dtype == "bfloat16"
    if coarse and (kernel.k is not None or type(kernel) is DotProduct):
        raise ValueError(f"matmul_dtype={matmul_dtype!r} with {kernel}: give 'float32'")
    if sharpness is not None:
        sharpness = as_tensor("sharpness", sharpness)
        kernel = _sharpened(kernel, sharpness, backend)
        backend = "blocks"
    if coarse and _takes_sdpa(queries, values, kernel, exclude, backend):
        return _sdpa_average(queries, centers, values, kernel.temperature)
    labels = values if isinstance(values, Labels) else None
    rows = values if labels is None else None
    call = Call(kernel, labels, backend, coarse, torch.is_grad_enabled())
    return AttendFunction.apply(queries, centers, rows, sharpness, exclude, call)[0]


@torch_defaults()
def class_log_probabilities(
    queries: Numbers,
    centers: Numbers,
    labels: Numbers,
    classes: int,
    kernel: Any,
    exclude: Numbers = None,
    backend: str = "auto",
) -> Float[Tensor, "B C"]:
    """Log of each class's fraction of the weight; one-hot labels are never held whole.

    Parameters
    ----------
    labels : Tensor [M], whole numbers in 0 ... classes - 1
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


@torch_defaults()
@torch.no_grad()
def nearest(
    queries: Numbers,
    centers: Numbers,
    count: int,
    kernel: Any,
    exclude: Numbers = None,
    backend: str = "auto",
) -> tuple[Float[Tensor, "B K"], Int64[Tensor, "B K"]]:
    """Find the nearest centers of each query, nearest first, by the kernel's own distance.

    Parameters
    ----------
    count : int
    queries, centers, kernel, exclude, backend : as in `attend`; "fused" is for averages alone

    Returns
    -------
    distances, indices : Tensor [B, count]; inf and -1 where no center is left, or none is near, as
        to a query that isn't finite

    Examples
    --------
    >>> nearest([[1.0]], [[0.0], [3.0]], 2, "euclidean")
    (tensor([[1., 2.]], dtype=torch.float64), tensor([[0, 1]]))
    """
    if backend == "fused":
        wanted = "give 'auto', 'blocks' or 'search'"
        raise ValueError(f"backend='fused' gives averages, and no nearest centers: {wanted}")
    check_int("count", count)
    given = (queries, centers, centers, exclude, kernel)  # centers are good values
    queries, centers, _, exclude, kernel = _check(*given, backend)
    if exclude is not None:
        as_integers("exclude", exclude, interval=(-1, len(centers) - 1))
    points = blank_rows(as_exact(queries)), blank_rows(as_exact(centers))
    searched = _takes_search(*points, None, UniformKNN(count, kernel), backend)
    find = tree_nearest if searched else nearest_by_kernel
    distance, index = find(*points, count, kernel, exclude)
    return distance.to(working_dtype(queries, centers)), index


class AttendFunction(LoopedFunction):
    """The average by the quickest backend, and its derivatives."""

    @staticmethod
    def forward(queries, centers, values, sharpness, exclude, call: Call):
        """Averages; and for their gradients nearest distances and total weights, or indices."""
        rows = values if call.labels is None else call.labels
        kernel: Any = call.kernel
        if exclude is not None:
            as_integers("exclude", exclude, interval=(-1, len(centers) - 1))
        points = as_exact(queries), as_exact(centers)
        nearest = total = torch.empty(0, device=queries.device)
        with torch.set_grad_enabled(call.records):
            searched = _takes_search(*points, rows, kernel, call.backend)
        fused = not searched and _takes_triton(*points, rows, kernel, call.backend)
        if kernel.k is not None:
            find = tree_nearest if searched else nearest_by_kernel
            nearest = find(*points, kernel.k, kernel, exclude)[1]
            result = mean_of_nearest(rows, nearest, working_dtype(*points))
        elif searched:
            result = tree_average(*points, rows, kernel, exclude)
        elif fused:
            from nnlib.attention.triton_backend import TritonAttention

            scale = call.distance(*points).scale
            call.triton = TritonAttention(*points, values, call.labels, kernel, scale, exclude)
            result, nearest, total = call.triton.averages()
        else:
            outputs = blockwise_average(*points, rows, kernel, call.distance(*points), exclude)
            result, nearest, total = outputs
        return spread_nan(result, *points).to(working_dtype(queries, centers)), nearest, total

    @staticmethod
    def setup_context(ctx, inputs, output):
        LoopedFunction.setup_context(ctx, inputs, output)
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)  # None where there is no derivative

    @staticmethod
    def backward(ctx, gradient, *_):
        """Gradients to queries, centers, values and sharpness, in their own types."""
        needed = ctx.needs_input_grad[:4]
        if gradient is None:
            return (None,) * 6
        if ctx.settings.kernel.k is not None:
            if torch.is_grad_enabled() or not needed[2]:
                _check_points(ctx.settings.kernel, any(needed[:2]))
            needed = (False, False, needed[2], False)
        call = replace(ctx.settings, needed=needed)
        parts = GradientsFunction.apply(gradient, *ctx.saved_tensors, call)
        return *spread(parts, needed), None, None

    @staticmethod
    def jvp(ctx, *tangents):
        """Forward derivatives: those of (gradient . average) by the gradient, whatever it is."""
        _check_points(ctx.settings.kernel, tangents[:2] != (None, None))
        *tensors, result, nearest, _ = ctx.saved_tensors
        tensors = (torch.zeros_like(result), *tensors, result, nearest)
        products = HessianFunction.apply(*tensors, None, *tangents[:4], ctx.settings)
        return products[0], None, None


def _check_points(kernel: Kernel, differentiated: bool) -> None:
    if kernel.k is not None and differentiated:
        raise RuntimeError(f"{kernel} has gradients to values alone: detach queries and centers")


def _sdpa_average(queries, centers, values, temperature: float) -> Tensor:
    """Averages by exp(cos / temperature); unit rows and values are rounded to eight bits."""
    dtype = working_dtype(queries, centers)
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
    if backend in ("blocks", "fused") or len(queries) == 0:
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


def _takes_sdpa(queries, values, kernel, exclude, backend: str) -> bool:
    """Whether PyTorch's attention does it: coarse products of cosines, all centers counting."""
    wanted = backend == "fused" or (backend == "auto" and queries.device.type == "cuda")
    fits = exclude is None and max(queries.shape[1], values.shape[1]) <= SDPA_WIDTH
    return wanted and fits and len(queries) > 0 and type(kernel) is CosineSoftmax


def _takes_triton(queries, centers, values, kernel: Kernel, backend: str) -> bool:
    """Whether Triton does it; raises ValueError where that was asked for and can't be done."""
    on_gpu = queries.device.type == "cuda"
    if backend not in ("auto", "fused") or (backend == "auto" and not on_gpu):
        return False
    if importlib.util.find_spec("triton") is None:
        reason: str | None = "needs Triton, which is not installed: install it"
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


def _check(queries, centers, values, exclude, kernel, backend: str):
    """The inputs as tensors, and the kernel; raises ValueError, naming what doesn't fit."""
    check_choice("backend", backend, BACKENDS)
    queries = as_tensor("queries", queries)
    centers = as_tensor("centers", centers)
    shape = tuple(queries.shape)
    points = tuple(centers.shape)
    if len(shape) != 2 or len(points) != 2 or shape[1] != points[1] or shape[1] == 0:
        wanted = "give [B, D] and [M, D], D 1 or more"
        raise ValueError(f"queries {shape} and centers {points}: {wanted}")
    if points[0] == 0:
        raise ValueError("centers is empty: give at least one")
    if not isinstance(values, Labels):
        values = as_tensor("values", values)
    if len(values.shape) != 2 or values.shape[0] != points[0]:
        found = f"shape {tuple(values.shape)} for {points[0]} centers"
        raise ValueError(f"values has {found}: give [M, V], or Labels")
    if exclude is not None:
        exclude = as_integers("exclude", exclude, shape[0])
    tensors = (queries, centers, values, exclude)
    devices = {part.device for part in tensors if part is not None}
    if len(devices) > 1:
        where = " and ".join(sorted(map(str, devices)))
        wanted = "move queries, centers, values, exclude to one"
        raise ValueError(f"tensors lie on {where}: {wanted}")
    return queries, centers, values, exclude, make_kernel(kernel)
