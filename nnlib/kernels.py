"""The log-weights s(x, c) of the one equation, a small class each.

A kernel says how far a center is from a query (`distance`) and what a center that far weighs (`log_weight`). The
published names of the settings hold: `kernel_type`, `exponent`, `epsilon`, `influence_cone_factor`, `scales`.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nnlib.distances import Frame, cosine, cosine_frame, euclidean, frame_of


def _power(distance: Tensor, exponent: float, epsilon: float) -> Tensor:
    """log((distance + epsilon)^exponent), finite at 0 without an epsilon too."""
    epsilon = max(epsilon, torch.finfo(distance.dtype).tiny)
    if distance.requires_grad:
        return (distance + epsilon).log() * exponent
    return distance.add_(epsilon).log_().mul_(exponent)


def _require(holds: bool, name: str, given, wanted: str) -> None:
    if not holds:
        raise ValueError(f"{name}={given!r} can't be used: give {wanted}")


@dataclass(frozen=True)
class Kernel:
    """A distance, and the logarithm of the weight that goes with it."""

    needs_nearest = False  # whether a weight depends on the distance to the nearest center
    count = None  # how many of the nearest centers share the weight alone: None for all

    @property
    def ranks(self) -> bool:
        """Whether a center's weight changes when others come, so that sums can't simply be added to."""
        return self.needs_nearest or self.count is not None

    def frame(self, queries: Tensor, centers: Tensor, dtype: torch.dtype) -> Frame:
        """The frame that the distances are measured in, chosen once for all blocks."""
        return frame_of(queries, centers, dtype)

    def distance(self, x: Float[Tensor, "B D"], c: Float[Tensor, "M D"], frame: Frame) -> Float[Tensor, "B M"]:
        """How far every center of a block is from every query, nearer being smaller, times the frame's scale."""
        return euclidean(x, c, frame)

    def log_weight(
        self, distance: Float[Tensor, "B M"], frame: Frame, nearest: Float[Tensor, " B"] | None = None
    ) -> Float[Tensor, "B M"]:
        """The logarithm of the weights, up to a constant a query; -inf where there is no weight.

        May overwrite distances that need no gradient.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class InverseDistance(Kernel):
    """(|x - c| + epsilon)^exponent: Shepard's weights."""

    exponent: float = -4.0
    epsilon: float = 1e-6

    def __post_init__(self):
        _require(-math.inf < self.exponent < 0, "exponent", self.exponent, "a negative number, such as -4")
        _require(0 <= self.epsilon < math.inf, "epsilon", self.epsilon, "a small number that is not negative, as 1e-6")

    def log_weight(self, distance, frame, nearest=None):
        return _power(distance, self.exponent, self.epsilon * frame.scale)


@dataclass(frozen=True)
class CosineInverseDistance(InverseDistance):
    """(1 - |cos(x, c)| + epsilon)^exponent, as published; 1 - cos where `signed`."""

    signed: bool = False

    def frame(self, queries, centers, dtype):
        return cosine_frame(centers, dtype)

    def distance(self, x, c, frame):
        """One minus the cosine, or minus its size."""
        return cosine(x, c, frame, self.signed)


@dataclass(frozen=True)
class EuclideanPyramid(InverseDistance):
    """Mean over i < scales of (|(x - c)[::2^i]| + epsilon)^exponent, over the flattened features.

    Its distance is the one whose inverse power is that mean.
    """

    scales: int = 4

    def __post_init__(self):
        super().__post_init__()
        _require(self.scales >= 1, "scales", self.scales, "a whole number, 1 or more")

    def distance(self, x, c, frame):
        """The distance whose weight is the mean of the scales' weights."""
        logs = None
        for i in range(self.scales):
            step = 2**i
            offset = None if frame.offset is None else frame.offset[::step]
            part = euclidean(x[:, ::step].contiguous(), c[:, ::step].contiguous(), Frame(frame.scale, offset))
            part = _power(part, self.exponent, self.epsilon * frame.scale)
            logs = part if logs is None else torch.logaddexp(logs, part)
        return torch.exp((logs - math.log(self.scales)) / self.exponent)

    def log_weight(self, distance, frame, nearest=None):
        return _power(distance, self.exponent, 0)  # epsilon is within


@dataclass(frozen=True)
class InfluenceCone(Kernel):
    """max(0, factor * d_min(x) - d), d = |x - c| + epsilon and d_min its smallest over the centers."""

    influence_cone_factor: float = 2.0
    epsilon: float = 1e-6
    needs_nearest = True

    def __post_init__(self):
        _require(
            1 < self.influence_cone_factor < math.inf,
            "influence_cone_factor",
            self.influence_cone_factor,
            "a number above 1: at 1 or below no center has any weight",
        )
        _require(0 < self.epsilon < math.inf, "epsilon", self.epsilon, "a small positive number, as 1e-6")

    def reach(self, nearest: Float[Tensor, " B"], frame: Frame) -> Float[Tensor, " B"]:
        """How much farther than the nearest center one may be until it has no weight."""
        return (self.influence_cone_factor - 1) * (nearest + self.epsilon * frame.scale)

    def weight(self, distance: Float[Tensor, "B M"], frame: Frame, nearest: Float[Tensor, " B"]):
        """factor * d_min - d, exact for factors near 1 too; 0 out of reach."""
        return (self.reach(nearest, frame)[:, None] - (distance - nearest[:, None])).clamp_(min=0)

    def log_weight(self, distance, frame, nearest=None):
        weight = self.weight(distance, frame, nearest)
        inside = weight > 0
        return torch.where(inside, torch.where(inside, weight, 1).log(), -math.inf)


@dataclass(frozen=True)
class CosineSoftmax(Kernel):
    """exp(cos(x, c) / temperature): the weights of neighborhood component analysis on the sphere."""

    temperature: float = 0.05

    def __post_init__(self):
        _require(0 < self.temperature < math.inf, "temperature", self.temperature, "a positive number, such as 0.05")

    def frame(self, queries, centers, dtype):
        return cosine_frame(centers, dtype)

    def distance(self, x, c, frame):
        """One minus the cosine."""
        return cosine(x, c, frame, signed=True)

    def log_weight(self, distance, frame, nearest=None):
        return distance / -self.temperature


@dataclass(frozen=True)
class DotProduct(Kernel):
    """exp(x . c): plain attention. In monomials of a place it is a Gaussian of any shape about each center."""

    def frame(self, queries, centers, dtype):
        return Frame(1.0, None)

    def distance(self, x, c, frame):
        """Minus the inner product: nearer is smaller."""
        return -(x @ c.T)

    def log_weight(self, distance, frame, nearest=None):
        return -distance


@dataclass(frozen=True)
class KNearest(Kernel):
    """The same weight for each of the `count` nearest centers by another kernel's distance, none for the others.

    Of equally far centers, any may be taken.
    """

    count: int = 1
    by: Kernel = InverseDistance()

    def __post_init__(self):
        _require(self.count >= 1, "count", self.count, "a whole number, 1 or more")

    def frame(self, queries, centers, dtype):
        return self.by.frame(queries, centers, dtype)

    def distance(self, x, c, frame):
        return self.by.distance(x, c, frame)

    def log_weight(self, distance, frame, nearest=None):
        return torch.zeros_like(distance)  # of the centers that are left once the others were dropped


KERNEL_TYPES = ("cosine", "euclidean", "euclidian_pyramid", "influence_cone")


def kernel_of(
    kernel_type: str | Kernel = "cosine",
    exponent: float = -4.0,
    epsilon: float = 1e-6,
    influence_cone_factor: float = 2.0,
    scales: int = 4,
) -> Kernel:
    """The kernel of a published `kernel_type` (either spelling of euclidean); a Kernel is passed through.

    Raises ValueError for an unknown name or a setting that leaves no sense.
    """
    if isinstance(kernel_type, Kernel):
        return kernel_type
    match str(kernel_type).replace("euclidian", "euclidean"):
        case "cosine":
            return CosineInverseDistance(exponent, epsilon)
        case "euclidean":
            return InverseDistance(exponent, epsilon)
        case "euclidean_pyramid":
            return EuclideanPyramid(exponent, epsilon, scales)
        case "influence_cone":
            return InfluenceCone(influence_cone_factor, epsilon)
    raise ValueError(f"kernel={kernel_type!r} is not known: give one of {', '.join(KERNEL_TYPES)}, or a Kernel")
