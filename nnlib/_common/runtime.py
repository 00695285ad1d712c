"""Where and how to compute: the device, seeds, threads, and the precision of products.

A generator's draws are the same wherever they are used: they are made on the CPU.
"""

import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from numbers import Integral

import numpy as np
import torch

from nnlib._common.validation import check

SEED_LIMIT = 2**32  # seeds are smaller, as in numpy


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """The device of that name; "auto" is CUDA where there is one, else MPS, else the CPU.

    Raises ValueError for one that can't be used here.
    """
    if str(device) != "auto":
        try:
            return torch.zeros(0, device=device).device
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"device={str(device)!r} can't be used here ({reason}): give 'auto' or 'cpu'"
            ) from None
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


@contextmanager
def single_thread() -> Iterator[None]:
    """Compute on one core: small steps gain nothing from more, and lose much beside others."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def full_precision() -> Iterator[None]:
    """Multiply float32 in float32, whatever the process allows networks: autocast, tf32, bf16."""
    with ExitStack() as stack:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        try:
            before = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision("highest")
            stack.callback(torch.set_float32_matmul_precision, before)
        except RuntimeError:  # the process uses torch's newer switches, which exclude this one
            for switch in (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul):
                stack.callback(setattr, switch, "fp32_precision", switch.fp32_precision)
                switch.fp32_precision = "ieee"
        yield


def check_seed(seed, name: str = "seed") -> int:
    """The seed as an int: drawn by the system for None, or by a generator of numpy's.

    Raises ValueError for anything else that is no seed.
    """
    if seed is None:
        return secrets.randbelow(SEED_LIMIT)
    if isinstance(seed, np.random.RandomState):
        return int(seed.randint(SEED_LIMIT, dtype=np.int64))
    if isinstance(seed, np.random.Generator):
        return int(seed.integers(SEED_LIMIT))
    valid = isinstance(seed, Integral) and 0 <= seed < SEED_LIMIT
    wanted = f"a whole number from 0 to {SEED_LIMIT - 1}, or None for another each time"
    check(valid, name, seed, wanted)
    return int(seed)


def make_generator(seed, name: str = "seed") -> torch.Generator:
    """A generator on the CPU, so that draws are the same for every device."""
    return torch.Generator().manual_seed(check_seed(seed, name))
