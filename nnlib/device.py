"""Where to compute."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def device_of(device: str | torch.device = "auto") -> torch.device:
    """The device of that name; "auto" is CUDA where there is one, else MPS, else the CPU.

    Raises ValueError for one that can't be used here.
    """
    if str(device) != "auto":
        try:
            return torch.zeros(0, device=device).device
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"device={str(device)!r} can't be used here ({reason}): give 'auto' or 'cpu'") from None
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one core: small steps gain nothing from more, and lose a hundredfold where others use them too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
