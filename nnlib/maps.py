"""Maps that a metric is learned as: linear, residual (x + f(x)), or a network of two hidden layers."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

MAPS = ("linear", "residual", "network")


class Standard(nn.Module):
    """Features less their mean, over one common deviation, so that learning rates mean the same for all data."""

    def __init__(self, features: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("deviation", torch.ones(()))

    def measure(self, x) -> None:
        """Take both from training samples [N, D] of any type, a block at a time."""
        size = max(1, (1 << 22) // x.shape[1])
        self.mean.copy_(sum(part.double().sum(0) for part in x.split(size)) / len(x))
        square = sum((part.float() - self.mean.to(part.device)).double().square().sum() for part in x.split(size))
        deviation = (square / x.numel()).sqrt()
        self.deviation.fill_(float(deviation) or 1.0)

    def forward(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        return (x.float() - self.mean) / self.deviation


class Residual(nn.Module):
    """x + f(x), f a hidden layer that starts at 0: the published code's learned transform, unfinished there."""

    def __init__(self, features: int, width: int, dropout: float):
        super().__init__()
        last = nn.Linear(width, features)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.inner = nn.Sequential(nn.Linear(features, width), nn.ReLU(), nn.Dropout(dropout), last)

    def forward(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        return x + self.inner(x)


def map_of(shape: str, features: int, dim: int, width: int, dropout: float, drop_inputs: float) -> nn.Sequential:
    """The map [B, features] -> [B, dim] (residual: [B, features]) of that name; raises ValueError for another name."""
    if shape not in MAPS:
        raise ValueError(f"map={shape!r} is not known: give one of {', '.join(MAPS)}")
    first = [Standard(features), nn.Dropout(drop_inputs)]
    if shape == "linear":
        return nn.Sequential(*first, nn.Linear(features, dim, bias=False))
    if shape == "residual":
        return nn.Sequential(*first, Residual(features, width, dropout))
    return nn.Sequential(
        *first, *_hidden(features, width, dropout), *_hidden(width, width, dropout), nn.Linear(width, dim)
    )


def _hidden(before: int, after: int, dropout: float) -> list[nn.Module]:
    return [nn.Linear(before, after, bias=False), nn.BatchNorm1d(after), nn.ReLU(), nn.Dropout(dropout)]
