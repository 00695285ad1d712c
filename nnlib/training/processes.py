"""Joining the processes that torchrun started."""

import gc
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from nnlib.nca import distributed


@contextmanager
def process_group(device: str) -> Iterator[None]:
    """Join the other processes within the block, on a GPU each, where torchrun started this one."""
    joins = int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized()
    has_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if joins:
        if has_gpu:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if has_gpu else "gloo")
    try:
        yield
    finally:
        if joins:
            gc.collect()  # networks that hold the group would keep its threads past Python's end
            dist.destroy_process_group()


def all_gather_unique(items: Iterable) -> list:
    """Return the items of every process, each once, in the order of ranks."""
    parts = [list(items)] * distributed.world_size()
    if distributed.world_size() > 1:
        dist.all_gather_object(parts, parts[0])
    return list(dict.fromkeys(item for part in parts for item in part))
