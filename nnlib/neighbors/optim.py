"""Gradient descent for small models: shuffled batches, Adam, a one-cycle learning rate."""

import math
from collections.abc import Callable
from contextlib import nullcontext

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from tqdm.auto import tqdm

from nnlib._common.runtime import make_generator, single_thread
from nnlib._common.validation import check_int

SMALL_STEP = 1 << 22  # multiplications in a step, below which more threads only delay it


def minimize_adam(
    loss: Callable[[Int64[Tensor, " B"]], Float[Tensor, ""]],
    rates: list[tuple[Tensor, float]],
    samples: int,
    epochs: int,
    batch_size: int | None,
    seed: int | None,
    progress: bool = False,
) -> list[float]:
    """Minimize the mean of `loss(rows)` over (parameter, rate) pairs; return each epoch's mean.

    A batch_size of None is a hundredth of the samples, 32 to 500: small sets have some thousand
    steps too, and large ones steps that keep a processor busy. Raises ValueError once the loss is
    not finite.
    """
    if batch_size is None:
        batch_size = min(max(samples // 100, 32), 500)
    check_int("batch_size", batch_size, 2)
    batches = max(1, round(samples / batch_size))
    optimizer, scheduler = _one_cycle(rates, epochs * batches)
    device = rates[0][0].device
    generator = make_generator(seed)
    losses = []
    small = batch_size * sum(parameter.numel() for parameter, _ in rates) < SMALL_STEP
    with single_thread() if small else nullcontext():
        for _ in tqdm(range(epochs), unit=" epochs", delay=5, leave=False, disable=not progress):
            total = torch.zeros((), device=device)
            for rows in torch.randperm(samples, generator=generator).tensor_split(batches):
                value = loss(rows.to(device))
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
                scheduler.step()
                total += value.detach()
            losses.append(float(total) / batches)
            if not math.isfinite(losses[-1]):
                raise ValueError(f"lr is too large: the loss is {losses[-1]}, give a smaller lr")
    return losses


def _one_cycle(rates: list[tuple[Tensor, float]], steps: int):
    """Return an optimizer and a scheduler, whose rates rise to these and fall again."""
    groups = [{"params": [parameter], "lr": rate} for parameter, rate in rates]
    optimizer = torch.optim.Adam(groups, fused=rates[0][0].device.type in ("cpu", "cuda"))
    steps = max(6, steps)  # a fifth of five steps would be a rise of no length
    highest = [rate for _, rate in rates]
    cycle = torch.optim.lr_scheduler.OneCycleLR
    return optimizer, cycle(optimizer, highest, steps, pct_start=0.2)
