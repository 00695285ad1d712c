"""Gradient descent for small models: shuffled batches, Adam, a one-cycle learning rate."""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR
from tqdm.auto import tqdm

from nnlib._common.runtime import make_generator, single_thread
from nnlib._common.validation import check_int


def minimize_adam(
    loss: Callable[[Int64[Tensor, " B"]], Float[Tensor, ""]],
    rates: Sequence[tuple[Tensor, float]],
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
    optimizer = torch.optim.Adam([{"params": parameter} for parameter, _ in rates], fused=True)
    highest = [rate for _, rate in rates]
    steps = max(6, epochs * batches)  # a fifth of five would be a rise of no length
    scheduler = OneCycleLR(optimizer, highest, steps, pct_start=0.2)
    device = rates[0][0].device
    generator = make_generator(seed)
    losses = []
    with single_thread(batch_size * sum(parameter.numel() for parameter, _ in rates)):
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
