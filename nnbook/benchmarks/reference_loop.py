"""The published training loop written out plainly: what speed and order are compared with.

Every prediction measures every distance anew, centers are joined by concatenation, and Euclidean
distances are taken from all differences at once, in float32.
"""

import torch
from torch import Tensor

from nnlib.attention import InfluenceCone, InverseDistance

Condensed = tuple[Tensor, Tensor, Tensor]  # centers, their values, the samples that they are
EPSILON, EXPONENT = InverseDistance.epsilon, InverseDistance.exponent


def fit(x: Tensor, y: Tensor, order: Tensor, kernel_type: str, classes: int = 10) -> Condensed:
    """One pass over x [N, D] and y [N]: exponent -4, batches of 64, target 0.9, three rounds."""
    first, *batches = order.split(64)
    centers, labels, chosen = x[first], y[first], first
    for batch in batches:
        for _ in range(3):
            wrong = predict(x[batch], centers, labels, kernel_type, classes) != y[batch]
            centers = torch.cat([centers, x[batch][wrong]])
            labels = torch.cat([labels, y[batch][wrong]])
            chosen = torch.cat([chosen, batch[wrong]])
            right = predict(x[batch], centers, labels, kernel_type, classes) == y[batch]
            if float(right.float().mean()) >= 0.9:
                break
    return centers, labels, chosen


def predict(x: Tensor, centers: Tensor, labels: Tensor, kernel_type: str, classes: int) -> Tensor:
    """The class [B] with the largest sum of weights."""
    if kernel_type == "cosine":
        unit = [rows / rows.norm(dim=1, keepdim=True) for rows in (x, centers)]
        distance = 1 - (unit[0] @ unit[1].T).abs()
    else:
        distance = (x[:, None] - centers[None]).norm(dim=2)
    distance = distance + EPSILON
    weights = distance**EXPONENT
    if kernel_type == "influence_cone":
        support = InfluenceCone.influence_cone_factor * distance.amin(1, keepdim=True)
        weights = (support - distance).clamp(min=0)
    elif kernel_type == "euclidian_pyramid":
        for step in (2, 4, 8):
            coarse = (x[:, None, ::step] - centers[None, :, ::step]).norm(dim=2)
            weights = weights + (coarse + EPSILON) ** EXPONENT
    sums = [weights[:, labels == label].sum(1) for label in range(classes)]
    return torch.stack(sums, 1).argmax(1)


def fit_values(x: Tensor, y: Tensor, order: Tensor, factor: float, tolerance: float) -> Condensed:
    """One pass of the regressor with influence cones: y [N, V], batches of 256, target 0.8."""
    first, *batches = order.split(256)
    centers, values, chosen = x[first], y[first], first
    for batch in batches:
        quality = 0.0
        while quality < 1 - 0.8:
            error = predict_values(x[batch], centers, values, factor) - y[batch]
            wrong = error.square().sum(1).sqrt() >= tolerance
            if not wrong.any():
                break
            centers = torch.cat([centers, x[batch][wrong]])
            values = torch.cat([values, y[batch][wrong]])
            chosen = torch.cat([chosen, batch[wrong]])
            error = predict_values(x[batch], centers, values, factor) - y[batch]
            quality = float(1 - error.abs().mean())
    return centers, values, chosen


def predict_values(x: Tensor, centers: Tensor, values: Tensor, factor: float) -> Tensor:
    """The mean [B, V] of the values, weighted by influence cones."""
    exact = "donot_use_mm_for_euclid_dist"  # several times as quick as all differences at once
    distance = torch.cdist(x, centers, compute_mode=exact) + InfluenceCone.epsilon
    weights = (factor * distance.amin(1, keepdim=True) - distance).clamp(min=0)
    return weights @ values / weights.sum(1, keepdim=True)
