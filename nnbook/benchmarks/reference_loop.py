"""The published training loop written out plainly, in float32: what speed and order are compared with.

Every prediction measures every distance anew, centers are joined by concatenation, and Euclidean distances are taken
from all differences at once.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from nnlib.attention import InfluenceCone, InverseDistance


def fit(
    x: Float[Tensor, "N D"],
    y: Int64[Tensor, " N"],
    order: Int64[Tensor, " N"],
    kernel_type: str,
    classes: int = 10,
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
            quality = float(
                (predict(x[batch], centers, labels, kernel_type, classes) == y[batch])
                .float()
                .mean()
            )
            rounds += 1
    return centers, labels, chosen


def predict(
    x: Tensor, centers: Tensor, labels: Tensor, kernel_type: str, classes: int
) -> Int64[Tensor, " B"]:
    """The class with the largest sum of weights."""
    if kernel_type == "cosine":
        unit = [rows / rows.norm(dim=1, keepdim=True) for rows in (x, centers)]
        distance = 1 - (unit[0] @ unit[1].T).abs()
    else:
        distance = (x[:, None] - centers[None]).norm(dim=2)
    distance = distance + InverseDistance.epsilon
    weights = distance**InverseDistance.exponent
    if kernel_type == "influence_cone":
        weights = (
            InfluenceCone.influence_cone_factor * distance.amin(1, keepdim=True) - distance
        ).clamp(min=0)
    elif kernel_type == "euclidian_pyramid":
        for step in (2, 4, 8):
            coarse = (x[:, None, ::step] - centers[None, :, ::step]).norm(dim=2)
            weights = weights + (coarse + InverseDistance.epsilon) ** InverseDistance.exponent
    sums = [weights[:, labels == label].sum(1) for label in range(classes)]
    return torch.stack(sums, 1).argmax(1)


def fit_values(
    x: Float[Tensor, "N D"],
    y: Float[Tensor, "N V"],
    order: Int64[Tensor, " N"],
    factor: float,
    tolerance: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """One pass of the regressor with influence cones (batch 256, target 0.8), as `fit`."""
    batches = order.split(256)
    centers, values, chosen = x[batches[0]], y[batches[0]], batches[0]
    for batch in batches[1:]:
        quality = 0.0
        while quality < 1 - 0.8:
            error = (
                (predict_values(x[batch], centers, values, factor) - y[batch])
                .square()
                .sum(1)
                .sqrt()
            )
            wrong = error >= tolerance
            if not wrong.any():
                break
            centers, values = (
                torch.cat([centers, x[batch][wrong]]),
                torch.cat([values, y[batch][wrong]]),
            )
            chosen = torch.cat([chosen, batch[wrong]])
            quality = float(
                1 - (predict_values(x[batch], centers, values, factor) - y[batch]).abs().mean()
            )
    return centers, values, chosen


def predict_values(
    x: Tensor, centers: Tensor, values: Tensor, factor: float
) -> Float[Tensor, "B V"]:
    """The mean of the values, weighted by influence cones."""
    exact = "donot_use_mm_for_euclid_dist"  # and several times as quick as all differences at once
    distance = torch.cdist(x, centers, compute_mode=exact) + InfluenceCone.epsilon
    weights = (factor * distance.amin(1, keepdim=True) - distance).clamp(min=0)
    return weights @ values / weights.sum(1, keepdim=True)
