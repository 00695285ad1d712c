"""The weights exp(s(x, c)) of the one equation, a small class each.

A kernel says how distances are measured (`distance`), and what a center at one weighs
(`log_weight`; the two methods after it are quicker). Settings have their published names.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from nnlib._common.serialization import Registered
from nnlib._common.validation import check_int, check_number
from nnlib.distances import (
    CosineDistance,
    Distance,
    EuclideanDistance,
    MultiScaleDistance,
    NegativeDotProduct,
    power_,
)

Distances = Float[Tensor, "B M"]
PerQuery = Float[Tensor, " B"]


@dataclass(frozen=True)
class Kernel(Registered):
    """A distance, and the weight that goes with it; subclass it for one of your own.

    Examples
    --------
    >>> InverseDistance().depends_on_others, UniformKNN(3).depends_on_others
    (False, True)
    """

    needs_nearest = False  # whether a weight depends on the distance to the nearest center
    k = None  # how many of the nearest centers share the weight, None for all

    @property
    def depends_on_others(self) -> bool:
        """Whether a center's weight changes when others come."""
        return self.needs_nearest or self.k is not None

    def distance(self, queries: Tensor, centers: Tensor, dtype: torch.dtype) -> Distance:
        """Make what measures the distances, preconditioned once for all blocks."""
        return EuclideanDistance.for_data(queries, centers, dtype)

    def sharpened(self, sharpness: float) -> "Kernel | None":
        """The kernel of these weights to a power; None where there is none."""
        return None

    def log_weight(self, distance: Distances, nearest: Float[Tensor, "B 1"]) -> Distances:
        """Log of each weight, up to a number a query; `nearest` is the least distance."""
        raise NotImplementedError(f"{type(self).__name__} has no log_weight: define it")

    def relative_weights(self, distance: Distances, nearest: PerQuery, scale=1.0) -> Distances:
        """Weights over that at `nearest`. Both are the data's times `scale`; may be in place."""
        closest = nearest[:, None] / scale
        logs = self.log_weight(distance / scale, closest) - self.log_weight(closest, closest)
        return logs.exp().masked_fill(distance == torch.inf, 0)

    def scale_by_log_slope(self, gradient, distance, nearest, scale, out) -> PerQuery | None:
        """Multiply `gradient` in place by d(log weight) / d(distance). May overwrite `out`.

        Where the kernel `needs_nearest`, returns the gradient to that.
        """
        with torch.enable_grad():
            leaves = [(part / scale).detach().requires_grad_() for part in (distance, nearest)]
            logs = self.log_weight(leaves[0], leaves[1][:, None])
            slopes = torch.autograd.grad(logs, leaves, gradient, materialize_grads=True)
        gradient.copy_(slopes[0]).div_(scale)
        return slopes[1] / scale


@dataclass(frozen=True)
class InverseDistance(Kernel):
    """(|x - c| + epsilon)^exponent.

    Parameters
    ----------
    exponent : float, negative; the further below 0, the more the nearest centers decide
    epsilon : float, keeps weights finite at distance 0

    References
    ----------
    D. Shepard, A two-dimensional interpolation function for irregularly-spaced data (1968).

    Examples
    --------
    >>> from nnlib import attend
    >>> centers = torch.tensor([[0.0], [3.0]])
    >>> attend(torch.tensor([[1.0]]), centers, torch.eye(2), InverseDistance(-2.0, epsilon=0.0))
    tensor([[0.8000, 0.2000]])
    """

    exponent: float = -4.0
    epsilon: float = 1e-6

    def __post_init__(self):
        check_number("exponent", self.exponent, "(-inf, 0)", "a negative number, such as -4")
        wanted = "a small number that is not negative, as 1e-6"
        check_number("epsilon", self.epsilon, "[0, inf)", wanted)

    def sharpened(self, sharpness):
        return replace(self, exponent=self.exponent * sharpness)

    def log_weight(self, distance, nearest):
        return self.exponent * (distance + self._epsilon(distance, 1.0)).log()

    def relative_weights(self, distance, nearest, scale=1.0):
        epsilon = self._epsilon(distance, scale)
        ratio = torch.div((nearest + epsilon)[:, None], distance.add_(epsilon), out=distance)
        return power_(ratio, -self.exponent)

    def scale_by_log_slope(self, gradient, distance, nearest, scale, out):
        torch.add(distance, self._epsilon(distance, scale), out=out)
        gradient.div_(out).mul_(self.exponent)

    def _epsilon(self, distance: Tensor, scale: float) -> float:
        return max(self.epsilon * scale, torch.finfo(distance.dtype).tiny)


@dataclass(frozen=True)
class CosineInverseDistance(InverseDistance):
    """(1 - |cos(x, c)| + epsilon)^exponent, or of 1 - cos.

    Parameters
    ----------
    exponent, epsilon : as in InverseDistance
    signed : bool, whether opposite directions are far apart; as published they are one

    Examples
    --------
    >>> from nnlib import attend
    >>> kernel = CosineInverseDistance(-1.0, epsilon=0.0)
    >>> attend(torch.tensor([[2.0, 1.0]]), torch.eye(2), torch.eye(2), kernel)
    tensor([[0.8396, 0.1604]])
    """

    signed: bool = False

    def distance(self, queries, centers, dtype):
        return CosineDistance.for_data(centers, dtype, self.signed)


@dataclass(frozen=True)
class EuclideanPyramid(InverseDistance):
    """Mean over i < scales of (|(x - c)[::2^i]| + epsilon)^exponent, over flattened features.

    Parameters
    ----------
    exponent, epsilon : as in InverseDistance
    scales : int, each of half the features of the one before

    Examples
    --------
    >>> from nnlib import attend
    >>> centers = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    >>> attend(torch.zeros(1, 2), centers, torch.eye(2), EuclideanPyramid(-1.0, 1.0, scales=2))
    tensor([[0.6000, 0.4000]])
    """

    scales: int = 4

    def __post_init__(self):
        super().__post_init__()
        check_int("scales", self.scales)

    def sharpened(self, sharpness):
        return None  # the distance depends on the exponent too

    def distance(self, queries, centers, dtype):
        settings = (self.exponent, self.epsilon, self.scales)
        return MultiScaleDistance.for_data(queries, centers, dtype, *settings)

    def _epsilon(self, distance, scale):
        return torch.finfo(distance.dtype).tiny  # the setting's own is within the distance


@dataclass(frozen=True)
class InfluenceCone(Kernel):
    """max(0, factor * d_min(x) - d), d = |x - c| + epsilon, d_min its smallest over the centers.

    Parameters
    ----------
    influence_cone_factor : float above 1; centers so many times as far as the nearest weigh nothing
    epsilon : float, added to distances

    Examples
    --------
    >>> from nnlib import attend
    >>> centers = torch.tensor([[1.0], [1.5], [9.0]])
    >>> attend(torch.zeros(1, 1), centers, torch.eye(3), InfluenceCone(2.0))
    tensor([[0.6667, 0.3333, 0.0000]])
    """

    influence_cone_factor: float = 2.0
    epsilon: float = 1e-6
    needs_nearest = True

    def __post_init__(self):
        wanted = "a number above 1: at 1 or below no center has any weight"
        check_number("influence_cone_factor", self.influence_cone_factor, "(1, inf)", wanted)
        check_number("epsilon", self.epsilon, "(0, inf)", "a small positive number, as 1e-6")

    def support_radius(self, nearest: Float[Tensor, "..."], scale: float = 1.0) -> Tensor:
        """How much farther than the nearest center one may be until it has no weight."""
        return (self.influence_cone_factor - 1) * (nearest + self.epsilon * scale)

    def log_weight(self, distance, nearest):
        left = self.support_radius(nearest) - (distance - nearest)
        return torch.where(left > 0, torch.where(left > 0, left, 1).log(), -torch.inf)

    def relative_weights(self, distance, nearest, scale=1.0):
        radius = self.support_radius(nearest, scale)[:, None]
        return distance.sub_(nearest[:, None]).div_(-radius).add_(1).clamp_(min=0)

    def scale_by_log_slope(self, gradient, distance, nearest, scale, out):
        radius = self.support_radius(nearest, scale)[:, None]
        torch.sub(distance, nearest[:, None], out=out).sub_(radius)
        gradient.div_(out).masked_fill_(out >= 0, 0)
        return -self.influence_cone_factor * gradient.sum(1)


@dataclass(frozen=True)
class DotProduct(Kernel):
    """exp(x . c): plain attention, or, in monomials of a place, Gaussians of any shape.

    Examples
    --------
    >>> from nnlib import attend
    >>> attend(torch.zeros(1, 2), torch.eye(2), torch.eye(2), DotProduct())
    tensor([[0.5000, 0.5000]])
    """

    temperature = 1.0  # no setting here

    def distance(self, queries, centers, dtype):
        return NegativeDotProduct()

    def log_weight(self, distance, nearest):
        return -distance / self.temperature

    def relative_weights(self, distance, nearest, scale=1.0):
        closer = torch.sub(nearest[:, None], distance, out=distance)
        return (closer if self.temperature == 1 else closer.div_(self.temperature)).exp_()

    def scale_by_log_slope(self, gradient, distance, nearest, scale, out):
        gradient.div_(-self.temperature)


@dataclass(frozen=True)
class CosineSoftmax(DotProduct):
    """exp(cos(x, c) / temperature): the weights of neighborhood component analysis.

    Parameters
    ----------
    temperature : float; the lower, the more the nearest centers decide

    Examples
    --------
    >>> from nnlib import attend
    >>> attend(torch.ones(1, 2), torch.eye(2), torch.eye(2), CosineSoftmax(0.1))
    tensor([[0.5000, 0.5000]])
    """

    temperature: float = 0.05

    def __post_init__(self):
        check_number("temperature", self.temperature, "(0, inf)", "a positive number, such as 0.05")

    def distance(self, queries, centers, dtype):
        return CosineDistance.for_data(centers, dtype, signed=True)

    def sharpened(self, sharpness):
        return CosineSoftmax(self.temperature / sharpness)


@dataclass(frozen=True)
class UniformKNN(Kernel):
    """The same weight for each of the k nearest centers; of equally far ones, any may be taken.

    Parameters
    ----------
    k : int
    base : Kernel, by whose distance they are nearest

    Examples
    --------
    >>> from nnlib import attend
    >>> centers = torch.tensor([[1.0], [2.0], [9.0]])
    >>> attend(torch.zeros(1, 1), centers, torch.eye(3), UniformKNN(2))
    tensor([[0.5000, 0.5000, 0.0000]])
    """

    k: int = 1
    base: Kernel = InverseDistance()

    def __post_init__(self):
        check_int("k", self.k)

    def distance(self, queries, centers, dtype):
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
    """Make the kernel of a published name (either spelling of euclidean), or "cosine_softmax".

    Parameters
    ----------
    kernel_type : str, or a Kernel, which is returned as it is
    exponent, epsilon, influence_cone_factor, scales, temperature : as the kernels have them

    Raises
    ------
    ValueError, for an unknown name, or settings that make no sense.

    Examples
    --------
    >>> make_kernel("euclidean", exponent=-2.0)
    InverseDistance(exponent=-2.0, epsilon=1e-06)
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
    known = ", ".join(KERNEL_TYPES)
    raise ValueError(f"kernel={kernel_type!r} is not known: give one of {known}, or a Kernel")
