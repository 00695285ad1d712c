"""Rows that are spread over the processes of torch.distributed, in shards of any lengths."""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor


def world_size() -> int:
    """Return the number of processes: 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def shard_bounds(length: int) -> slice:
    """Return this process's part of `length` rows; the parts differ by one row at most."""
    return slice(length * rank() // world_size(), length * (rank() + 1) // world_size())


def all_gather_rows(
    rows: Shaped[Tensor, "B *D"], sharded: bool = True
) -> list[Shaped[Tensor, "_ *D"]]:
    """Return the rows of every process, in the order of ranks, if they are spread over them.

    All processes call it at once.
    """
    if world_size() == 1 or not sharded:
        return [rows]
    lengths = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(world_size())]
    dist.all_gather(lengths, torch.tensor([len(rows)], device=rows.device))
    longest = max(int(length) for length in lengths)
    padding = rows.new_zeros(longest - len(rows), *rows.shape[1:])
    padded = torch.cat([rows, padding]).contiguous()
    parts = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(parts, padded)
    return [part[: int(length)] for part, length in zip(parts, lengths, strict=True)]


def own_rows(rows: Shaped[Tensor, "A *D"], parts: list[Tensor]) -> Shaped[Tensor, "B *D"]:
    """Return this process's rows out of all, which were gathered in those parts."""
    return rows.split([len(part) for part in parts])[rank()]


def all_reduce_sum(numbers: Shaped[Tensor, "*D"]) -> Shaped[Tensor, "*D"]:
    """Sum the numbers over all processes, in place."""
    if world_size() > 1:
        dist.all_reduce(numbers)
    return numbers


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Make every process's tensors those of the first; all wait for it."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)
        dist.barrier()
