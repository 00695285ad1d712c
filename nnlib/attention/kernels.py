"""The weights exp(s(x, c)) of the one equation, a small class each.

A kernel says how distances are measured (`metric`) and what a center that far weighs beside one as far as another
(`weigh`). The published names of the settings hold: `kernel_type`, `exponent`, `epsilon`, `influence_cone_factor`,
`scales`.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from nnlib._common.serialization import Registered
from nnlib._common.validation import check_int, check_number
from nnlib.distances import (
    CosineDistance,
    EuclideanDistance,
    MultiScaleDistance,
    NegativeDotProduct,
    power_,
)


@dataclass(frozen=True)
class Kernel(Registered):
    """A distance, and the weight that goes with it."""

    needs_nearest = False  # whether a weight depends on the distance to the nearest center
    k = None  # how many of the nearest centers share the weight alone: None for all

    @property
    def depends_on_others(self) -> bool:
        """Whether a center's weight changes when others come, so that sums can't simply be added to."""
        return self.needs_nearest or self.k is not None

    def distance(self, queries: Tensor, centers: Tensor, dtype: torch.dtype):
        """What measures the distances, in a frame that is chosen once for all blocks; smaller is nearer."""
        return EuclideanDistance.of(queries, centers, dtype)

    def sharpened(self, sharpness: float) -> "Kernel | None":
        """The kernel whose weights are this one's to the power of `sharpness`, None where there is no such kernel."""
        return None

    def relative_weights(
        self, distance: Float[Tensor, "B M"], near: Float[Tensor, " B"], scale: float = 1.0
    ) -> Float[Tensor, "B M"]:
        """The weights at these distances over the weight at the distance `near`. Overwrites the distances.

        Distances are `scale` times those of the data; at inf there is no weight.
        """
        raise NotImplementedError

    def scale_by_log_slope(
        self,
        pull: Float[Tensor, "B M"],
        distance: Float[Tensor, "B M"],
        near: Float[Tensor, " B"],
        scale: float,
        spare: Float[Tensor, "B M"],
    ) -> None:
        """Multiply `pull` by how much the logarithm of a weight grows with its distance. Overwrites `spare`."""
        raise NotImplementedError


@dataclass(frozen=True)
class InverseDistance(Kernel):
    """(|x - c| + epsilon)^exponent: Shepard's weights."""

    exponent: float = -4.0
    epsilon: float = 1e-6

    def __post_init__(self):
        check_number("exponent", self.exponent, "(-inf, 0)", "a negative number, such as -4")
        check_number(
            "epsilon", self.epsilon, "[0, inf)", "a small number that is not negative, as 1e-6"
        )

    def sharpened(self, sharpness):
        return replace(self, exponent=self.exponent * sharpness)

    def relative_weights(self, distance, near, scale=1.0):
        epsilon = self._epsilon(distance, scale)
        return power_(
            torch.div((near + epsilon)[:, None], distance.add_(epsilon), out=distance),
            -self.exponent,
        )

    def scale_by_log_slope(self, pull, distance, near, scale, spare):
        pull.div_(torch.add(distance, self._epsilon(distance, scale), out=spare)).mul_(
            self.exponent
        )

    def _epsilon(self, distance: Tensor, scale: float) -> float:
        """Finite weights at distance 0, without an epsilon too."""
        return max(self.epsilon * scale, torch.finfo(distance.dtype).tiny)


@dataclass(frozen=True)
class CosineInverseDistance(InverseDistance):
    """(1 - |cos(x, c)| + epsilon)^exponent, as published; 1 - cos where `signed`."""

    signed: bool = False

    def distance(self, queries, centers, dtype):
        """One minus the cosine, or minus its size."""
        return CosineDistance.of(centers, dtype, self.signed)


@dataclass(frozen=True)
class EuclideanPyramid(InverseDistance):
    """Mean over i < scales of (|(x - c)[::2^i]| + epsilon)^exponent, over the flattened features.

    Its distance is the one whose inverse power is that mean.
    """

    scales: int = 4

    def __post_init__(self):
        super().__post_init__()
        check_int("scales", self.scales)

    def sharpened(self, sharpness):
        return None  # the distance depends on the exponent too

    def distance(self, queries, centers, dtype):
        """The distance whose weight is the mean of the scales' weights."""
        return MultiScaleDistance.of(
            queries, centers, dtype, self.exponent, self.epsilon, self.scales
        )

    def _epsilon(self, distance, scale):
        return torch.finfo(distance.dtype).tiny  # the setting's own is within the distance


@dataclass(frozen=True)
class InfluenceCone(Kernel):
    """max(0, factor * d_min(x) - d), d = |x - c| + epsilon and d_min its smallest over the centers."""

    influence_cone_factor: float = 2.0
    epsilon: float = 1e-6
    needs_nearest = True

    def __post_init__(self):
        wanted = "a number above 1: at 1 or below no center has any weight"
        check_number("influence_cone_factor", self.influence_cone_factor, "(1, inf)", wanted)
        check_number("epsilon", self.epsilon, "(0, inf)", "a small positive number, as 1e-6")

    def support_radius(self, near: Float[Tensor, " B"], scale: float = 1.0) -> Float[Tensor, " B"]:
        """How much farther than the nearest center one may be until it has no weight."""
        return (self.influence_cone_factor - 1) * (near + self.epsilon * scale)

    def relative_weights(self, distance, near, scale=1.0):
        """(factor * d_min - d) / (factor * d_min - d_min), exact for factors near 1 too; 0 out of reach."""
        return (
            distance.sub_(near[:, None])
            .div_(-self.support_radius(near, scale)[:, None])
            .add_(1)
            .clamp_(min=0)
            .nan_to_num_(0)
        )

    def scale_by_log_slope(self, pull, distance, near, scale, spare):
        torch.sub(distance, near[:, None], out=spare).sub_(
            self.support_radius(near, scale)[:, None]
        )
        pull.div_(spare).masked_fill_(spare >= 0, 0)


@dataclass(frozen=True)
class CosineSoftmax(Kernel):
    """exp(cos(x, c) / temperature): the weights of neighborhood component analysis on the sphere."""

    temperature: float = 0.05

    def __post_init__(self):
        check_number("temperature", self.temperature, "(0, inf)", "a positive number, such as 0.05")

    def distance(self, queries, centers, dtype):
        """One minus the cosine."""
        return CosineDistance.of(centers, dtype, signed=True)

    def sharpened(self, sharpness):
        return CosineSoftmax(self.temperature / sharpness)

    def relative_weights(self, distance, near, scale=1.0):
        return torch.sub(near[:, None], distance, out=distance).div_(self.temperature).exp_()

    def scale_by_log_slope(self, pull, distance, near, scale, spare):
        pull.div_(-self.temperature)


@dataclass(frozen=True)
class DotProduct(Kernel):
    """exp(x . c): plain attention. In monomials of a place it is a Gaussian of any shape about each center."""

    def distance(self, queries, centers, dtype):
        """Minus the inner product."""
        return NegativeDotProduct()

    def relative_weights(self, distance, near, scale=1.0):
        return torch.sub(near[:, None], distance, out=distance).exp_()

    def scale_by_log_slope(self, pull, distance, near, scale, spare):
        pull.neg_()


@dataclass(frozen=True)
class UniformKNN(Kernel):
    """The same weight for each of the `k` nearest centers by another kernel's distance, none for the others.

    Of equally far centers, any may be taken.
    """

    k: int = 1
    base: Kernel = InverseDistance()

    def __post_init__(self):
        check_int("k", self.k)

    def distance(self, queries, centers, dtype):
        """That of the other kernel."""
        return self.base.distance(queries, centers, dtype)


KERNEL_TYPES = ("cosine", "euclidean", "euclidian_pyramid", "influence_cone", "cosine_softmax")


def make_kernel(
    kernel_type: str | Kernel = "cosine",
    exponent: float = -4.0,
    epsilon: float = 1e-6,
    influence_cone_factor: float = 2.0,
    scales: int = 4,
    temperature: float = 0.05,
) -> Kernel:
    """The kernel of a published `kernel_type` (either spelling of euclidean), or "cosine_softmax"; a Kernel is itself.

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
        case "cosine_softmax":
            return CosineSoftmax(temperature)
    raise ValueError(
        f"kernel={kernel_type!r} is not known: give one of {', '.join(KERNEL_TYPES)}, or a Kernel"
    )
