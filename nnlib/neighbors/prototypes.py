"""Centers, what they say and how sharply they say it, learned by gradient through the weighted average."""

import math
import warnings

import numpy as np
import torch
from jaxtyping import Float, Int64, Shaped
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_consistent_length
from torch import Tensor, nn

from nnlib._common.runtime import check_seed, resolve_device
from nnlib._common.validation import (
    check_choice,
    check_features,
    check_int,
    check_labels,
    check_number,
    encode_labels,
)
from nnlib.attention import Kernel, attend, make_kernel
from nnlib.distances import subsample, wide_dtype
from nnlib.neighbors.base import CenterClassifier
from nnlib.neighbors.classifier import DynamicClassifier
from nnlib.neighbors.optim import SMALL, default_batch_size, minimize_adam

STARTS = ("kmeans", "condensed")
CLUSTERED = 20_000  # samples of a class that its first centers are found from
SHARE, MOST = (
    20,
    300,
)  # one center for so many samples, up to so many, where their number is left open
MOST_POWER = 10.0  # of e, that sharpness may become or be one over
FEW, FAR = (
    0.02,
    3.0,
)  # a share of the rows that may be so many times as long as all others without adding to the spread
SURE = 4.0  # the first logit of a center's own class, those of the others being 0


class PrototypeClassifier(CenterClassifier):
    """A weighted average over `n_prototypes` centers that gradients have moved, each with class probabilities of its own.

    n_prototypes: None for a twentieth of the samples, two a class at least and 300 at most. start: "kmeans" within each class,
    or "condensed": the first samples that a DynamicClassifier gets wrong. kernel and its settings as
    DynamicClassifier's, or "cosine_softmax", to begin with at `temperature`. How sharp it is (the exponent, one over
    the temperature) is learned too where it can be. The loss is the mean of -log p(own class): that of neighborhood
    component analysis, over centers. It falls in `epochs` of batches of `batch_size` (None: a hundredth of the samples,
    32 to 500) under Adam, whose rate rises to `lr` times the data's spread and falls again; epochs=0 leaves the centers
    where they start.
    Fitted: `centers_` [M, D] and `values_` [M, C], whose rows sum to 1, `sharpness_`, and `losses_`, an epoch each.
    Sources: M. Kusner et al., Stochastic Neighbor Compression (2014); learning vector quantization (T. Kohonen).
    """

    saved_attributes = ("n_features_in_", "classes_", "sharpness_")

    def __init__(
        self,
        n_prototypes: int | None = None,
        kernel: str | Kernel = "euclidean",
        temperature: float = 0.1,
        exponent: float = -4.0,
        epsilon: float = 1e-6,
        influence_cone_factor: float = 2.0,
        scales: int = 4,
        start: str = "kmeans",
        epochs: int = 20,
        batch_size: int | None = None,
        lr: float = 0.02,
        seed: int | None = 0,
        device: str = "auto",
        progress: bool = True,
    ):
        super().__init__()
        self.n_prototypes, self.kernel, self.temperature = n_prototypes, kernel, temperature
        self.exponent, self.epsilon = exponent, epsilon
        self.influence_cone_factor, self.scales, self.start = influence_cone_factor, scales, start
        self.epochs, self.batch_size, self.lr, self.seed = epochs, batch_size, lr, seed
        self.device, self.progress = device, progress

    def fit(self, X, y=None):
        """Learn from X [N, D] and labels y [N] of any kind.

        Raises ValueError for NaN or infinity, lengths that differ, fewer centers than classes, settings without sense.
        """
        x, y = check_features(self, X, reset=True), check_labels(y)
        check_consistent_length(x, y)
        self.classes_ = np.unique(y)
        y = encode_labels(y, self.classes_)
        self._check_settings()
        count = self._number(len(x))
        self._warn_of_kernel(x)
        device = resolve_device(self.device)
        self._descend(x.to(device), y.to(device), count)
        return self

    def _descend(self, x: Shaped[Tensor, "N D"], y: Int64[Tensor, " N"], count: int) -> None:
        """Find where centers start, and move them, what they say, and how sharply."""
        centers, owner = self._first(x, y, count)
        logits = SURE * nn.functional.one_hot(owner, len(self.classes_)).float()
        centers, logits, power = (
            nn.Parameter(part) for part in (centers, logits, torch.zeros((), device=x.device))
        )
        sharpens, kernel = self._given().sharpened(1.0) is not None, self._given()

        def sharpness() -> Float[Tensor, ""]:
            """What `power` is the logarithm of."""
            return power.clamp(-MOST_POWER, MOST_POWER).exp()

        def loss(rows: Int64[Tensor, " B"]) -> Float[Tensor, ""]:
            """The mean of -log p(own class)."""
            sharp = sharpness() if sharpens else None
            shares = attend(x[rows].float(), centers, logits.softmax(1), kernel, sharpness=sharp)
            own = shares.gather(1, y[rows, None])
            return -own.clamp(min=torch.finfo(own.dtype).tiny).log().mean()

        rates = [
            (centers, self.lr * _spread(subsample(x, wide_dtype(x)))),
            (logits, 5 * self.lr),
            (power, self.lr),
        ]
        size = default_batch_size(self.batch_size, len(x))
        small = size * centers.numel() < SMALL
        self.losses_ = minimize_adam(
            loss, rates, len(x), self.epochs, size, self.seed, self.progress, small
        )
        self.sharpness_ = float(sharpness().detach())
        self.centers_, self.values_ = centers.detach(), logits.detach().softmax(1)

    def _first(
        self, x: Shaped[Tensor, "N D"], y: Int64[Tensor, " N"], count: int
    ) -> tuple[Float[Tensor, "M D"], Int64[Tensor, " M"]]:
        if self.start == "condensed":
            settings = {
                "kernel": self._given(),
                "max_neighbors": count,
                "seed": self.seed,
                "progress": False,
            }
            model = DynamicClassifier(device=self.device, **settings).fit(x, y)
            return model.centers_[:count].float().clone(), model.values_[:count]
        classes = len(self.classes_)
        shares = [count // classes + (place < count % classes) for place in range(classes)]
        parts = [self._clusters(x[y == place], share) for place, share in enumerate(shares)]
        owner = [
            torch.full((len(part),), place, device=x.device) for place, part in enumerate(parts)
        ]
        return torch.cat(parts), torch.cat(owner)

    def _clusters(self, x: Shaped[Tensor, "N D"], count: int) -> Float[Tensor, "K D"]:
        from sklearn.cluster import (
            KMeans,  # takes a second to load, which who only condenses is spared
        )

        count, step = min(count, len(x)), -(-len(x) // CLUSTERED)
        rows = x[::step].float().cpu().numpy()
        scale = 2.0 ** (
            math.frexp(abs(rows).max())[1] - 1
        )  # exact, and squares stay numbers in any unit
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", category=ConvergenceWarning
            )  # equal samples have equal centers
            means = KMeans(
                min(count, len(rows)), n_init=1, max_iter=20, random_state=check_seed(self.seed)
            )
            found = means.fit(rows / scale)
        return torch.from_numpy(found.cluster_centers_ * scale).to(x.device, torch.float32)

    def _given(self) -> Kernel:
        """The kernel of the settings, as sharp as they say."""
        settings = (
            self.exponent,
            self.epsilon,
            self.influence_cone_factor,
            self.scales,
            self.temperature,
        )
        return make_kernel(self.kernel, *settings)

    def _kernel(self) -> Kernel:
        return self._given().sharpened(self.sharpness_) or self._given()

    def _class_probabilities(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        return attend(x, self.centers_, self.values_, self._kernel())

    def _check_settings(self) -> None:
        check_int("epochs", self.epochs, 0)
        if self._given().k is not None:
            raise ValueError(
                f"kernel={self.kernel!r} passes no gradient on to centers: give one that weighs them all"
            )
        check_choice("start", self.start, STARTS)
        check_number("lr", self.lr, "(0, inf)", "a positive number, such as 0.02")

    def _number(self, samples: int) -> int:
        classes = len(self.classes_)
        if self.n_prototypes is None:
            return max(2 * classes, min(samples // SHARE, MOST))
        if (count := check_int("n_prototypes", self.n_prototypes)) < classes:
            raise ValueError(
                f"n_prototypes={count} for {classes} classes: give one center each at least"
            )
        return count


def _spread(x: Float[Tensor, "N D"]) -> float:
    """The deviation of a feature, of all together; no more than a few rows far out let it be."""
    lengths = (x - x.median(0).values).square().mean(1).sqrt()
    whole, others = (
        float(x.std(0, correction=0).square().mean().sqrt()),
        float(lengths.quantile(1 - FEW)),
    )
    return min(whole, FAR * others or whole) or 1.0
