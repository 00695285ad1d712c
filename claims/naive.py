"""The published training loop written out plainly, in float32: what speed and order are compared with.

Every prediction measures every distance anew, centers are joined by concatenation, and Euclidean distances are taken
from all differences at once.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from nnlib.kernels import InverseDistance


def fit(
    x: Float[Tensor, "N D"], y: Int64[Tensor, " N"], order: Int64[Tensor, " N"], kernel_type: str, classes: int = 10
) -> tuple[Tensor, Tensor, Tensor]:
    """One pass at the published setting (exponent -4, batch 64, target 0.9, 3 rounds).

    Returns the centers, their labels, and which samples they are, in the order that they were added.
    """
    batches = order.split(64)
    centers, labels, chosen = x[batches[0]], y[batches[0]], batches[0]
    for batch in batches[1:]:
        quality, rounds = 0.0, 0
        while quality < 0.9 and rounds < 3:
            wrong = predict(x[batch], centers, labels, kernel_type, classes) != y[batch]
            centers = torch.cat([centers, x[batch][wrong]])
            labels = torch.cat([labels, y[batch][wrong]])
            chosen = torch.cat([chosen, batch[wrong]])
            quality = float((predict(x[batch], centers, labels, kernel_type, classes) == y[batch]).float().mean())
            rounds += 1
    return centers, labels, chosen


def predict(x: Tensor, centers: Tensor, labels: Tensor, kernel_type: str, classes: int) -> Int64[Tensor, " B"]:
    """The class with the largest sum of weights."""
    if kernel_type == "cosine":
        unit = [rows / rows.norm(dim=1, keepdim=True) for rows in (x, centers)]
        distance = 1 - (unit[0] @ unit[1].T).abs()
    else:
        distance = (x[:, None] - centers[None]).norm(dim=2)
    weights = (distance + InverseDistance.epsilon) ** InverseDistance.exponent
    sums = [weights[:, labels == label].sum(1) for label in range(classes)]
    return torch.stack(sums, 1).argmax(1)
