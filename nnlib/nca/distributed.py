"""Rows that are spread over the processes of torch.distributed, in batches and shards of any lengths."""

import gc
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor

from nnlib._common.runtime import resolve_device


def world_size() -> int:
    """How many processes work together: 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def shard_bounds(length: int) -> slice:
    """This process's part of `length` rows: parts of equal length, but for one."""
    return slice(length * rank() // world_size(), length * (rank() + 1) // world_size())


def all_gather_rows(rows: Shaped[Tensor, "B *D"]) -> list[Shaped[Tensor, "_ *D"]]:
    """The rows of every process, in the order of their ranks. All processes have to ask at once."""
    if world_size() == 1:
        return [rows]
    lengths = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(world_size())]
    dist.all_gather(lengths, torch.tensor([len(rows)], device=rows.device))
    longest = max(int(length) for length in lengths)
    padded = torch.cat([rows, rows.new_zeros(longest - len(rows), *rows.shape[1:])]).contiguous()
    parts = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(parts, padded)
    return [part[: int(length)] for part, length in zip(parts, lengths, strict=True)]


def own(rows: Shaped[Tensor, "A *D"], parts: list[Tensor]) -> Shaped[Tensor, "B *D"]:
    """Of rows that belong to the gathered `parts`, those of this process."""
    return rows.split([len(part) for part in parts])[rank()]


def all_reduce_sum(numbers: Shaped[Tensor, "*D"]) -> Shaped[Tensor, "*D"]:
    """Their sum over all processes, in place."""
    if world_size() > 1:
        dist.all_reduce(numbers)
    return numbers


def all_reduce_max(numbers: Shaped[Tensor, "*D"]) -> Shaped[Tensor, "*D"]:
    """Their largest over all processes, in place."""
    if world_size() > 1:
        dist.all_reduce(numbers, dist.ReduceOp.MAX)
    return numbers


def all_gather_objects(names: Iterable[str]) -> list[str]:
    """The names of every process, each once, in the order of their ranks. All processes have to ask at once."""
    parts = [list(names)] * world_size()
    if world_size() > 1:
        dist.all_gather_object(parts, parts[0])
    return list(dict.fromkeys(name for part in parts for name in part))


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Make every process's tensors those of the first; all wait for it."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)
        dist.barrier()


@contextmanager
def process_group(device: str) -> Iterator[None]:
    """Join the other processes for as long, where torchrun started this one."""
    joins = int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized()
    if joins:
        dist.init_process_group("nccl" if _on_gpu(device) else "gloo")
    try:
        yield
    finally:
        if joins:
            gc.collect()  # a network that holds the group would keep its threads until Python ends, which they disturb
            dist.destroy_process_group()


def own_device(device: str) -> torch.device:
    """The device of that name; of several GPUs, this process's."""
    if world_size() > 1 and _on_gpu(device):
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        return torch.device("cuda", torch.cuda.current_device())
    return resolve_device(device)


def _on_gpu(device: str) -> bool:
    return device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
