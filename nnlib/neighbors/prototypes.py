"""Prototypes: centers, their class probabilities and their sharpness, learned by gradient."""

import math
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64, Shaped
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn

from nnlib._common.runtime import check_seed, make_generator, resolve_device, torch_defaults
from nnlib._common.validation import (
    check_choice,
    check_features,
    check_int,
    check_labels,
    check_lengths,
    check_number,
    encode_labels,
)
from nnlib.attention import Kernel, attend, make_kernel
from nnlib.distances import subsample, wide_dtype
from nnlib.neighbors.base import CenterClassifier, log_probabilities
from nnlib.neighbors.columns import SCALINGS
from nnlib.neighbors.optim import minimize_adam
from nnlib.neighbors.tuning import class_losses, tune_columns

CLUSTERED_SAMPLES = 20_000  # of a class, that k-means sees at most
OWN_CLASS_LOGIT = 4.0  # of a center's own class before learning, those of the others being 0
LARGEST_LOG_SHARPNESS = 10.0
MOST_PROTOTYPES = 300  # where their number is chosen
COMPARED_SAMPLES = 20_000  # of more, numbers of prototypes are not compared
HELD_OUT = 0.2  # of the samples, to compare them on


@dataclass(eq=False, repr=False)
class PrototypeClassifier(CenterClassifier):
    """Predict classes by the weighted average over a few centers that gradients have moved.

    Centers start from k-means within each class. They, their class probabilities and the kernel's
    sharpness (where it has one) minimize the mean of -log p(own class) under Adam.

    Parameters
    ----------
    n_prototypes : int, optional
        None for two a class or a twentieth of the samples, at most 300, and for `epochs` or none,
        whichever predicts samples held out better.
    kernel, exponent, epsilon, influence_cone_factor, scales, random_state, device, progress
        As DynamicClassifier's; also "cosine_softmax", which starts from `temperature`.
    epochs, batch_size
        0 epochs leave centers at their start; None for a hundredth of the samples, 32 to 500.
    scaling : {"auto", "deviation", "none"}
        Of the columns, as DynamicClassifier's.
    lr : float
        The largest learning rate, relative to the data's deviation.

    Attributes
    ----------
    centers_, values_, sharpness_, losses_
        Centers [M, D], class probabilities [M, C], the exponent's factor, each epoch's mean loss.

    References
    ----------
    M. Kusner et al., Stochastic Neighbor Compression, 2014.

    Examples
    --------
    >>> model = PrototypeClassifier(2, epochs=0, scaling="none")
    >>> model = model.fit([[0.0], [1.0], [5.0], [6.0]], [0, 0, 1, 1])
    >>> model.centers_.flatten().tolist()
    [0.5, 5.5]
    """

    saved_attributes = ("n_features_in_", "classes_", "sharpness_")

    n_prototypes: int | None = None
    kernel: str | Kernel = "euclidean"
    temperature: float = 0.1
    exponent: float = -4.0
    epsilon: float = 1e-6
    influence_cone_factor: float = 2.0
    scales: int = 4
    epochs: int = 20
    batch_size: int | None = None
    lr: float = 0.02
    scaling: str = "auto"
    random_state: int | None = 0
    device: str = "auto"
    progress: bool = True

    @torch_defaults(gradients=True)
    def fit(self, X, y=None):
        """Learn from X [N, D] and labels y [N] of any kind.

        Raises ValueError for NaN or infinity, lengths that differ, fewer prototypes than classes,
        settings without sense.
        """
        x = check_features(self, X, reset=True)
        labels = check_labels(y)
        check_lengths(x, labels)
        self.classes_ = np.unique(labels)
        self._check_settings()
        self._warn_about_kernel(x)
        device = resolve_device(self.device)
        x = x.to(device)
        y = encode_labels(labels, self.classes_).to(device)
        seed = check_seed(self.random_state, "random_state")
        one_hot = nn.functional.one_hot(y, len(self.classes_)).to(torch.float32)
        kernel = self._initial_kernel()
        columns, _ = tune_columns(x, one_hot, class_losses, seed, self.scaling, kernel)
        self._set_columns(columns)
        x = columns.apply(x)
        count = self.n_prototypes
        epochs = self.epochs
        if count is None:
            count, epochs = self._choose(x, y, seed)
        self._learn(x, y, count, epochs, seed)
        return self

    def _choose(self, x: Shaped[Tensor, "N D"], y: Int64[Tensor, " N"], seed: int) -> tuple:
        """Return the number of prototypes and epochs that predict samples held out best."""
        classes = len(self.classes_)
        most = max(2 * classes, min(len(x) // 20, MOST_PROTOTYPES))
        if len(x) > COMPARED_SAMPLES:
            return most, self.epochs
        held = torch.rand(len(x), generator=make_generator(seed)) < HELD_OUT
        held[torch.from_numpy(np.unique(y.cpu(), return_index=True)[1])] = False
        held = held.to(x.device)
        if not bool(held.any()):
            return most, self.epochs
        own = nn.functional.one_hot(y[held], classes).to(torch.float32)
        found = {}
        for count in sorted({2 * classes, most}):
            for epochs in sorted({0, self.epochs}):
                self._learn(x[~held], y[~held], count, epochs, seed)
                with torch.no_grad():
                    predicted = self._vote(x[held].to(torch.float32))
                found[count, epochs] = float(class_losses(predicted, own).mean())
        return min(found, key=lambda tried: found[tried])

    def _learn(
        self,
        x: Shaped[Tensor, "N D"],
        y: Int64[Tensor, " N"],
        count: int,
        epochs: int,
        seed: int,
    ) -> None:
        classes = len(self.classes_)
        sizes = [count // classes + (label < count % classes) for label in range(classes)]
        clusters = [self._clusters(x[y == label], size, seed) for label, size in enumerate(sizes)]
        owners = torch.arange(classes).repeat_interleave(torch.tensor([len(c) for c in clusters]))
        one_hot = nn.functional.one_hot(owners, classes).to(x.device)
        centers = nn.Parameter(torch.cat(clusters))
        logits = nn.Parameter(OWN_CLASS_LOGIT * one_hot.float())
        log_sharpness = nn.Parameter(torch.zeros((), device=x.device))
        kernel = self._initial_kernel()
        is_sharpened = kernel.sharpened(1.0) is not None

        def sharpness() -> Float[Tensor, ""]:
            return log_sharpness.clamp(-LARGEST_LOG_SHARPNESS, LARGEST_LOG_SHARPNESS).exp()

        def loss(rows: Int64[Tensor, " B"]) -> Float[Tensor, ""]:
            """The mean of -log p(own class)."""
            factor = sharpness() if is_sharpened else None
            values = logits.softmax(1)
            probabilities = attend(x[rows].float(), centers, values, kernel, sharpness=factor)
            return -log_probabilities(probabilities.gather(1, y[rows, None])).mean()

        spread = _spread(subsample(x, wide_dtype(x)))
        rates = [(centers, self.lr * spread), (logits, 5 * self.lr), (log_sharpness, self.lr)]
        self.losses_ = minimize_adam(
            loss, rates, len(x), epochs, self.batch_size, seed, self.progress
        )
        self.sharpness_ = float(sharpness().detach())
        self.centers_ = centers.detach()
        self.values_ = logits.detach().softmax(1)

    def _clusters(self, x: Shaped[Tensor, "N D"], count: int, seed: int) -> Float[Tensor, "K D"]:
        from sklearn.cluster import KMeans  # takes a second to load, which condensing is spared

        rows = x[:: -(-len(x) // CLUSTERED_SAMPLES)].float().cpu().numpy()
        # a power of two is exact, and squares stay finite in any unit
        scale = 2.0 ** (math.frexp(abs(rows).max())[1] - 1)
        with warnings.catch_warnings():
            # equal samples have equal centers
            warnings.filterwarnings("ignore", category=ConvergenceWarning)
            means = KMeans(min(count, len(rows)), n_init=1, max_iter=20, random_state=seed)
            centers = means.fit(rows / scale).cluster_centers_ * scale
        return torch.from_numpy(centers).to(x.device, torch.float32)

    def _initial_kernel(self) -> Kernel:
        kernel = (self.kernel, self.exponent, self.epsilon)
        return make_kernel(*kernel, self.influence_cone_factor, self.scales, self.temperature)

    def _kernel(self) -> Kernel:
        kernel = self._initial_kernel()
        return kernel.sharpened(self.sharpness_) or kernel

    def _class_probabilities(self, x: Shaped[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        return self._vote(self._comparable(x))

    def _vote(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        return attend(x, self.centers_, self.values_, self._kernel())

    def _check_settings(self) -> None:
        check_int("epochs", self.epochs, 0)
        if self._initial_kernel().k is not None:
            raise ValueError(
                f"kernel={self.kernel!r} passes no gradient on to centers: "
                "give one that weighs them all"
            )
        check_number("lr", self.lr, "(0, inf)", "a positive number, such as 0.02")
        check_choice("scaling", self.scaling, SCALINGS)
        classes = len(self.classes_)
        if self.n_prototypes is not None and check_int("n_prototypes", self.n_prototypes) < classes:
            raise ValueError(
                f"n_prototypes={self.n_prototypes} for {classes} classes: "
                "give one center each at least"
            )


def _spread(x: Float[Tensor, "N D"]) -> float:
    """Return the deviation of all features together, of which far outliers count as three."""
    lengths = (x - x.median(0).values).square().mean(1).sqrt()
    deviation = float(x.std(0, correction=0).square().mean().sqrt())
    typical = float(lengths.quantile(0.98))
    return min(deviation, 3.0 * typical or deviation) or 1.0
