"""Blocks of queries against blocks of centers: how large they are, what is left out of them, and in what precision."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from jaxtyping import Float, Int64
from torch import Tensor

BLOCK = {"cpu": (1024, 1024), "other": (2048, 4096)}  # queries x centers at a time
BLOCK_FEATURES = 1 << 22  # and no more numbers than this in a block's own rows


def working_dtype(*tensors) -> torch.dtype:
    """float64 where anything is, float32 for all else."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def without(distance: Float[Tensor, "B M"], exclude: Int64[Tensor, " B"] | None, cols: slice) -> Tensor:
    """The distances, inf to each query's excluded center. Overwrites them."""
    if exclude is None:
        return distance
    inside = (exclude >= cols.start) & (exclude < cols.stop)
    distance[inside.nonzero()[:, 0], exclude[inside] - cols.start] = torch.inf
    return distance


def finite(near: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """The nearest distances, 0 where there is no center yet."""
    return near.masked_fill(near == torch.inf, 0)


def row_blocks(queries) -> Iterator[slice]:
    return _blocks(len(queries), 0, queries)


def column_blocks(centers) -> Iterator[slice]:
    return _blocks(centers.shape[0], 1, centers)


def _blocks(length: int, side: int, rows) -> Iterator[slice]:
    """Slices of a length: of queries (side 0) or centers (side 1) that lie where `rows` do."""
    most = BLOCK["cpu" if rows.device.type == "cpu" else "other"][side]
    size = max(1, min(most, BLOCK_FEATURES // max(1, rows.shape[1])))
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


@contextmanager
def exact_products():
    """float32 products in float32: where a process allows tf32 or bf16 for its networks, distances would be lost."""
    with ExitStack() as stack:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        stack.callback(_full_precision())
        yield


def _full_precision() -> Callable[[], None]:
    """Ask for full float32 products; what is returned undoes it."""
    try:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        return lambda: torch.set_float32_matmul_precision(before)
    except RuntimeError:  # the process uses torch's newer switches, which don't mix with this one
        switches = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
        held = [switch.fp32_precision for switch in switches]

        def turn(values):
            for switch, value in zip(switches, values, strict=True):
                switch.fp32_precision = value

        turn(["ieee"] * len(switches))
        return lambda: turn(held)
