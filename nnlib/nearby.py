"""The nearest centers of each query, by any metric, a block at a time."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from nnlib.blocks import column_blocks, row_blocks, without, working_dtype
from nnlib.kernels import Kernel


def average_nearest(queries, centers, values, kernel: Kernel, metric, exclude=None) -> Float[Tensor, "B V"]:
    """The plain mean over each query's `kernel.count` nearest centers."""
    index = nearest_of(queries, centers, kernel.count, metric, exclude)[1]
    parts = [mean_of(values, index[rows], working_dtype(queries, centers)) for rows in row_blocks(queries)]
    return torch.cat(parts)


def mean_of(values, index: Int64[Tensor, "B K"], dtype: torch.dtype) -> Float[Tensor, "B V"]:
    """The plain mean of the rows of these numbers, without those of -1."""
    found = index >= 0
    picked = values[index.clamp(min=0).flatten()].to(dtype).unflatten(0, index.shape)
    return (picked * found[..., None]).sum(1) / found.sum(1).clamp(min=1)[:, None]


@torch.no_grad()
def nearest_of(queries, centers, count: int, metric, exclude=None) -> tuple[Tensor, Tensor]:
    """Distances and indices [B, count] of the nearest centers, nearest first; inf and -1 where none is left."""
    found = [] if len(queries) else [(queries.new_empty(0, count), queries.new_empty(0, count, dtype=torch.int64))]
    for rows in row_blocks(queries):
        x, skip = queries[rows].to(working_dtype(queries, centers)), None if exclude is None else exclude[rows]
        found.append(_nearest_rows(x, centers, count, metric, skip))
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))


def _nearest_rows(x: Float[Tensor, "B D"], centers, count: int, metric, exclude) -> tuple[Tensor, Tensor]:
    near = x.new_full((len(x), count), torch.inf)
    index = torch.full_like(near, -1, dtype=torch.int64)
    prepared = metric.rows(x)
    for cols in column_blocks(centers):
        block = metric.order(prepared, metric.rows(centers[cols].to(x.dtype)))
        take_nearer(near, index, without(block, exclude, cols), cols.start)
    return metric.distance_of(near), index.masked_fill_(near.isinf(), -1)


def take_nearer(near: Float[Tensor, "B K"], index: Int64[Tensor, "B K"], block: Float[Tensor, "B M"], start: int):
    """Put what is nearer in a block among the nearest so far: after some blocks, few queries have any."""
    count = near.shape[1]
    low = block.amin(1)
    if bool(low.isnan().any()):  # what is nowhere is near nothing
        low = block.nan_to_num_(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf).amin(1)
    rows = (low < near[:, -1]).nonzero()[:, 0]
    if len(rows) == 0:
        return
    some = block if len(rows) == len(block) else block[rows]
    if count == 1:
        near[rows], place = some.min(1, keepdim=True)
        index[rows] = place + start
        return
    values, place = some.topk(min(count, some.shape[1]), largest=False)
    near[rows], order = torch.cat([near[rows], values], 1).topk(count, largest=False)
    index[rows] = torch.cat([index[rows], place + start], 1).gather(1, order)
