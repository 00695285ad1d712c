"""What features are trained for: neighbors of their class, instances told apart, or classes."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from nnlib._common.runtime import make_generator
from nnlib.nca import MemoryBank, nca_loss

LOSSES = ("nca", "instance", "softmax")


class Objective(nn.Module):
    """The loss of a batch of unit features; the first two keep a bank, which moves after a step.

    - nca: neighborhood component analysis, every training sample votes for its class.
    - instance: every sample is a class of its own (Wu, Xiong, Yu, Lin. Unsupervised Feature
      Learning via Non-Parametric Instance Discrimination. CVPR 2018), the whole bank in the sum.
    - softmax: a linear classifier on the features over the temperature, as a baseline.
    """

    def __init__(self, labels: Int64[Tensor, " N"], settings):
        super().__init__()
        self.settings = settings
        self.bank = None
        if settings.loss == "instance":
            labels = torch.arange(len(labels))
        if settings.loss != "softmax":
            self.bank = MemoryBank(labels, settings.low_dim, sharded=True, seed=settings.seed)

    def forward(self, features, scores, labels, index) -> Float[Tensor, ""]:
        """The loss of unit features [B, D] of the samples `index`; `scores` are a softmax's."""
        s = self.settings
        if s.loss == "softmax":
            return nn.functional.cross_entropy(scores.float() / s.temperature, labels)
        if s.loss == "instance":
            return nca_loss(features, index, self.bank, None, None, s.temperature, s.margin)
        return nca_loss(features, labels, self.bank, None, index, s.temperature, s.margin)


class Learner(nn.Module):
    """The network, and for a softmax the layer of class directions: all that is trained."""

    def __init__(self, network: nn.Module, classes: int | None, seed: int = 0):
        super().__init__()
        self.network = network
        self.head = None
        if classes is not None:
            self.head = nn.utils.skip_init(nn.Linear, network.low_dim, classes, bias=False)
            bound = network.low_dim**-0.5
            nn.init.uniform_(self.head.weight, -bound, bound, make_generator(seed))

    def forward(self, images):
        features = self.network(images)
        return features, None if self.head is None else self.head(features)
