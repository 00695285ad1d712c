"""Gradient descent as small models need it: shuffled batches, Adam, one rise and fall of its rates."""

import math
from collections.abc import Callable
from contextlib import nullcontext

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from tqdm.auto import tqdm

from nnlib._common.runtime import make_generator, single_thread
from nnlib._common.validation import check_int

SMALL = 1 << 22  # multiplications


def default_batch_size(batch_size: int | None, samples: int) -> int:
    """How many samples a step takes: a hundredth of all, 32 to 500, where that is left open.

    So a small set has some thousand steps too, and a large one steps that keep a processor busy.
    """
    return (
        min(max(samples // 100, 32), 500)
        if batch_size is None
        else check_int("batch_size", batch_size, 2)
    )


def minimize_adam(
    loss: Callable[[Int64[Tensor, " B"]], Float[Tensor, ""]],
    rates: list[tuple[Tensor, float]],
    samples: int,
    epochs: int,
    batch_size: int,
    seed: int | None,
    progress: bool = False,
    small: bool = False,
) -> list[float]:
    """Move (parameter, rate) pairs down the mean of `loss(rows)`; the mean loss of each epoch.

    Batches are as equal as can be. Raises ValueError once the loss is no number. small: whether a step is so little
    work that more than one thread only delays it.
    """
    device = rates[0][0].device
    groups = [{"params": [parameter], "lr": rate} for parameter, rate in rates]
    optimizer = torch.optim.Adam(groups, fused=device.type in ("cpu", "cuda"))
    batches = max(1, round(samples / batch_size))
    steps = max(
        6, epochs * batches
    )  # a rise over a fifth of exactly five steps would have no length
    turn = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [rate for _, rate in rates], steps, pct_start=0.2
    )
    generator, losses = make_generator(seed), []
    with single_thread() if small else nullcontext():
        for _ in tqdm(range(epochs), unit=" epochs", delay=5, leave=False, disable=not progress):
            total = torch.zeros((), device=device)
            for rows in torch.randperm(samples, generator=generator).tensor_split(batches):
                value = loss(rows.to(device))
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
                turn.step()
                total += value.detach()
            losses.append(float(total) / batches)
            if not math.isfinite(losses[-1]):
                raise ValueError(
                    f"lr is too large: the loss came to {losses[-1]}, give a smaller lr"
                )
    return losses
