"""Gradient descent as small models need it: shuffled batches, Adam, one rise and fall of its rates."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from tqdm.auto import tqdm


def descend(
    loss: Callable[[Int64[Tensor, " B"]], Float[Tensor, ""]],
    rates: list[tuple[Tensor, float]],
    samples: int,
    epochs: int,
    batch_size: int,
    seed: int,
    progress: bool = False,
) -> list[float]:
    """Move (parameter, rate) pairs down the mean of `loss(rows)`; the mean loss of each epoch.

    The last batch of an epoch takes what is left over, and joins the one before where that is less than half of one.
    """
    device = rates[0][0].device
    groups = [{"params": [parameter], "lr": rate} for parameter, rate in rates]
    optimizer = torch.optim.Adam(groups, fused=device.type in ("cpu", "cuda"))
    batches = max(1, round(samples / batch_size))
    turn = torch.optim.lr_scheduler.OneCycleLR(optimizer, [rate for _, rate in rates], epochs * batches, pct_start=0.2)
    generator, losses = torch.Generator().manual_seed(seed), []
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
    return losses
