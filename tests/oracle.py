"""The one equation, naively, in float64: what the library is held against."""

import math

import torch


def weights(x, c, kernel_type, exclude=None, **settings):
    """Normalised weights [B, M] by the published definitions, from float64 copies."""
    score = log_weights(x.double(), c.double(), kernel_type, exclude, **settings)
    return torch.softmax(score, 1)


def log_weights(
    x,
    c,
    kernel_type,
    exclude=None,
    *,
    exponent=-4.0,
    epsilon=1e-6,
    factor=2.0,
    scales=4,
    temperature=0.05,
    count=3,
):
    keep = torch.ones(len(x), len(c), dtype=torch.bool)
    if exclude is not None:
        keep[torch.arange(len(x))[exclude >= 0], exclude[exclude >= 0]] = False
    match kernel_type:
        case "euclidean":
            score = exponent * torch.log(euclidean(x, c) + epsilon)
        case "cosine":
            score = exponent * torch.log((1 - cosine(x, c).abs()).clamp(min=0) + epsilon)
        case "cosine_signed":
            score = exponent * torch.log((1 - cosine(x, c)).clamp(min=0) + epsilon)
        case "euclidian_pyramid":
            powers = [
                exponent * torch.log(euclidean(x[:, :: 2**i], c[:, :: 2**i]) + epsilon)
                for i in range(scales)
            ]
            score = torch.logsumexp(torch.stack(powers), 0) - math.log(scales)
        case "influence_cone":
            d = euclidean(x, c) + epsilon
            smallest = d.masked_fill(~keep, math.inf).amin(1, keepdim=True)
            score = torch.log((factor * smallest - d).clamp(min=0))
        case "cosine_softmax":
            score = cosine(x, c) / temperature
        case "k_nearest":
            d = euclidean(x, c).masked_fill(~keep, math.inf)
            score = torch.full_like(d, -math.inf).scatter(
                1, d.topk(count, largest=False).indices, 0
            )
    return score.masked_fill(~keep, -math.inf)


def euclidean(x, c):
    return torch.stack([(row - c).square().sum(1).sqrt() for row in x])


def cosine(x, c):
    x, c = (rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-300) for rows in (x, c))
    return x @ c.T


def condense(
    x,
    y,
    classes,
    kernel_type,
    batches,
    target_accuracy=0.9,
    max_count=3,
    max_neighbors=100_000,
    **settings,
):
    """The published training rule, a plain float64 loop: the indices that became centers."""
    chosen = batches[0].tolist()

    def wrong(batch):
        share = weights(x[batch], x[chosen], kernel_type, **settings)
        votes = torch.zeros(len(batch), classes, dtype=torch.float64).index_add_(
            1, y[chosen], share
        )
        return votes.argmax(1) != y[batch]

    for batch in batches[1:]:
        quality, rounds = 0.0, 0
        while quality < target_accuracy and rounds < max_count and len(chosen) <= max_neighbors:
            chosen += batch[wrong(batch)].tolist()
            quality = (~wrong(batch)).float().mean()
            rounds += 1
    return torch.tensor(chosen)
