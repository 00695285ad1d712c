"""Where to compute.

Seeds: what is drawn by one is drawn alike wherever it runs.
"""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral

import torch

from nnlib._common.validation import check


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
    """Compute on one core: small steps gain nothing from more, and lose a hundredfold where others use them too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


SEED_LIMIT = 2**32  # and no seed as large, as in numpy


def check_seed(given: int | None) -> int:
    """`given` as an int, or one of the system's own choice for None; raises ValueError for anything else."""
    if given is None:
        return secrets.randbelow(SEED_LIMIT)
    holds = isinstance(given, Integral) and 0 <= given < SEED_LIMIT
    check(
        holds,
        "seed",
        given,
        f"a whole number from 0 to {SEED_LIMIT - 1}, or None for another each time",
    )
    return int(given)


def make_generator(seed: int | None) -> torch.Generator:
    """What draws by such a seed, on the CPU, so that every device draws alike."""
    return torch.Generator().manual_seed(check_seed(seed))
