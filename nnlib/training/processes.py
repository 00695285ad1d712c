"""Joining the processes that torchrun started, and picking each one's device."""

import gc
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from nnlib._common.runtime import resolve_device
from nnlib.nca import distributed


@contextmanager
def process_group(device: str) -> Iterator[None]:
    """Join the other processes within the block, where torchrun started this one."""
    joins = int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized()
    if joins:
        dist.init_process_group("nccl" if _is_cuda(device) else "gloo")
    try:
        yield
    finally:
        if joins:
            gc.collect()  # networks that hold the group would keep its threads past Python's end
            dist.destroy_process_group()


def own_device(device: str) -> torch.device:
    """Return the device of that name; of several GPUs, the one of this process."""
    if distributed.world_size() > 1 and _is_cuda(device):
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        return torch.device("cuda", torch.cuda.current_device())
    return resolve_device(device)


def _is_cuda(device: str) -> bool:
    return device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())


def all_gather_unique(items: Iterable) -> list:
    """Return the items of every process, each once, in the order of ranks."""
    parts = [list(items)] * distributed.world_size()
    if distributed.world_size() > 1:
        dist.all_gather_object(parts, parts[0])
    return list(dict.fromkeys(item for part in parts for item in part))
