"""Maps that a metric is learned as: linear, residual (x + f(x)), or a network of two hidden layers."""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from nnlib.checks import require_known
from nnlib.frames import wide
from nnlib.inputs import BLOCK_NUMBERS

MAPS = ("linear", "residual", "network")


class Standard(nn.Module):
    """Features less their mean, over one common deviation, so that learning rates mean the same for all data."""

    def __init__(self, features: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("deviation", torch.ones(()))

    def measure(self, x: Shaped[Tensor, "N D"]) -> None:
        """Take both from training samples [N, D] of any type, a block at a time."""
        parts = x.split(max(1, BLOCK_NUMBERS // x.shape[1]))
        self.mean.copy_(sum(part.to(wide(part)).sum(0) for part in parts) / len(x))
        square = sum(float((part.to(wide(part)) - self.mean).square().sum()) for part in parts)
        self.deviation.fill_((square / x.numel()) ** 0.5 or 1.0)

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
    require_known("map", shape, MAPS)
    first = [Standard(features), nn.Dropout(drop_inputs)]
    if shape == "linear":
        return nn.Sequential(*first, nn.Linear(features, dim))
    if shape == "residual":
        return nn.Sequential(*first, Residual(features, width, dropout))
    return nn.Sequential(
        *first, *_hidden(features, width, dropout), *_hidden(width, width, dropout), nn.Linear(width, dim)
    )


def _hidden(before: int, after: int, dropout: float) -> list[nn.Module]:
    return [nn.Linear(before, after, bias=False), nn.BatchNorm1d(after), nn.ReLU(), nn.Dropout(dropout)]
