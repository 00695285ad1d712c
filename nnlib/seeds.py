"""Seeds: what is drawn by one is drawn alike wherever it runs."""

import secrets
from numbers import Integral

import torch

from nnlib.checks import require

MOST = 2**32  # and no seed as large, as in numpy


def seed_of(given: int | None) -> int:
    """`given` as an int, or one of the system's own choice for None; raises ValueError for anything else."""
    if given is None:
        return secrets.randbelow(MOST)
    holds = isinstance(given, Integral) and 0 <= given < MOST
    require(holds, "seed", given, f"a whole number from 0 to {MOST - 1}, or None for another each time")
    return int(given)


def generator_of(seed: int | None) -> torch.Generator:
    """What draws by such a seed, on the CPU, so that every device draws alike."""
    return torch.Generator().manual_seed(seed_of(seed))
