"""What features are trained for: to have neighbors of their class, to be told apart one by one, or to be classified.

All take unit features of a batch; the first two keep a memory bank, which moves after each step.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from nnlib.nca import MemoryBank, nca_loss

LOSSES = ("nca", "instance", "softmax")


class Neighbors(nn.Module):
    """Neighborhood component analysis: every training sample votes for its class."""

    def __init__(
        self, labels: Int64[Tensor, " N"], dim: int, temperature: float, margin: float, seed: int
    ):
        super().__init__()
        self.temperature, self.margin = temperature, margin
        self.bank = MemoryBank(labels, dim, sharded=True, seed=seed)

    def forward(self, features, scores, labels, index) -> Float[Tensor, ""]:
        return nca_loss(features, labels, self.bank, None, index, self.temperature, self.margin)


class Instances(Neighbors):
    """Instance discrimination, without labels: every sample is a class of its own, its bank row the one to find.

    Source: Wu, Xiong, Yu, Lin, "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018,
    here with the whole bank in the sum.
    """

    def __init__(self, labels, dim, temperature, margin, seed):
        super().__init__(torch.arange(len(labels)), dim, temperature, margin, seed)

    def forward(self, features, scores, labels, index):
        return nca_loss(features, index, self.bank, None, None, self.temperature, self.margin)


class Softmax(nn.Module):
    """A linear classifier on the unit features over the temperature, as a baseline."""

    bank = None

    def __init__(self, labels, dim, temperature, margin, seed):
        super().__init__()
        self.temperature = temperature

    def forward(self, features, scores, labels, index):
        return nn.functional.cross_entropy(scores.float() / self.temperature, labels)


class Learner(nn.Module):
    """The network, and for a softmax the layer of class directions on it: all that gradients go to."""

    def __init__(self, network: nn.Module, classes: int | None):
        super().__init__()
        self.network = network
        self.head = None if classes is None else nn.Linear(network.low_dim, classes, bias=False)

    def forward(self, images):
        features = self.network(images)
        return features, None if self.head is None else self.head(features)


def objective_of(
    loss: str, labels, dim: int, temperature: float, margin: float, seed: int
) -> nn.Module:
    """The objective of that name; raises ValueError for another."""
    if loss not in LOSSES:
        raise ValueError(f"loss={loss!r} is not known: give one of {', '.join(LOSSES)}")
    return (Neighbors, Instances, Softmax)[LOSSES.index(loss)](
        labels, dim, temperature, margin, seed
    )
