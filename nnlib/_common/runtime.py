"""Where and how to compute: the device, seeds, threads, and what the caller has set.

A generator's draws are the same wherever they are used: they are made on the CPU.
"""

import secrets
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from numbers import Integral

import numpy as np
import torch

from nnlib._common.validation import check

SEED_LIMIT = 2**32  # seeds are smaller, as in numpy
SMALL_STEP = 1 << 22  # multiplications, some tenths of a millisecond
_lock = threading.Lock()  # of the next two
_users = 0  # threads and calls that rely on the process's defaults
_restored = ExitStack()  # what their last puts back


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
def single_thread(step: float = 0) -> Iterator[None]:
    """Compute on one core, if a step has fewer than SMALL_STEP multiplications.

    More cores hardly help such steps, and wait long for each other beside another process.
    """
    before = torch.get_num_threads()
    if step < SMALL_STEP:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def torch_defaults(gradients: bool | None = None, one_core: bool = False) -> Iterator[None]:
    """Compute by PyTorch's own defaults, whatever the caller has set; a decorator too.

    That is: new tensors are float32 on the CPU and good for gradients later, products are in full
    precision, without autocast. Gradients are recorded or not, None: as by the caller.
    """
    with ExitStack() as stack:
        stack.enter_context(_process_defaults())
        if one_core:
            stack.enter_context(single_thread())
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        recorded = torch.is_grad_enabled() if gradients is None else gradients
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if recorded != torch.is_grad_enabled():
            stack.enter_context(torch.set_grad_enabled(recorded))
        yield


@contextmanager
def _process_defaults() -> Iterator[None]:
    """Hold what all threads share at its defaults, until the last of them that does so leaves."""
    global _users
    with _lock:
        _users += 1
        if torch.get_default_dtype() != torch.float32:
            _restored.callback(torch.set_default_dtype, torch.get_default_dtype())
            torch.set_default_dtype(torch.float32)
        try:
            before = torch.get_float32_matmul_precision()
            if before != "highest":
                _restored.callback(torch.set_float32_matmul_precision, before)
                torch.set_float32_matmul_precision("highest")
        except RuntimeError:  # the process uses torch's newer switches, which exclude this one
            mkldnn = torch.backends.mkldnn
            for switch in (torch.backends.cuda.matmul, mkldnn.matmul, mkldnn.conv):
                _restored.callback(setattr, switch, "fp32_precision", switch.fp32_precision)
                switch.fp32_precision = "ieee"
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                _restored.close()


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
