"""A learned metric: an encoder after which samples of a class are neighbors."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64, Shaped
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_consistent_length, check_is_fitted
from torch import Tensor, nn
from torch.nn.functional import normalize

from nnlib._common.runtime import check_seed, resolve_device
from nnlib._common.serialization import SafetensorsMixin
from nnlib._common.validation import (
    BLOCK_NUMBERS,
    check_choice,
    check_features,
    check_int,
    check_labels,
    check_number,
    encode_labels,
    like_input,
)
from nnlib.attention import MATMUL_DTYPES, CosineSoftmax, class_log_probabilities
from nnlib.distances import wide_dtype
from nnlib.neighbors.optim import minimize_adam

ENCODERS = ("linear", "residual", "network")
PROXIES = 300  # by default, or one a class if there are more classes
TRANSFORMED_ROWS = 8192  # at a time


class Standardizer(nn.Module):
    """Features less their mean, over one common deviation: learning rates suit any unit."""

    def __init__(self, features: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("deviation", torch.ones(()))

    def measure(self, x: Shaped[Tensor, "N D"]) -> None:
        """Take mean and deviation from training samples [N, D] of any type, a block at a time."""
        blocks = x.split(max(1, BLOCK_NUMBERS // x.shape[1]))
        wide = wide_dtype(x)
        self.mean.copy_(sum(block.to(wide).sum(0) for block in blocks) / len(x))
        squares = sum(float((block.to(wide) - self.mean).square().sum()) for block in blocks)
        self.deviation.fill_((squares / x.numel()) ** 0.5 or 1.0)

    def forward(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        return (x.float() - self.mean) / self.deviation


class Residual(nn.Module):
    """x + f(x), f a hidden layer that starts at 0: the published code's learned transform."""

    def __init__(self, features: int, width: int, dropout: float):
        super().__init__()
        last = nn.Linear(width, features)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.inner = nn.Sequential(nn.Linear(features, width), nn.ReLU(), nn.Dropout(dropout), last)

    def forward(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        return x + self.inner(x)


def make_encoder(
    name: str, features: int, dim: int, width: int, dropout: float, drop_inputs: float
) -> nn.Sequential:
    """Make the encoder [B, features] -> [B, dim] of that name; "residual" keeps the features."""
    check_choice("map", name, ENCODERS)
    layers = [Standardizer(features), nn.Dropout(drop_inputs)]
    if name == "residual":
        return nn.Sequential(*layers, Residual(features, width, dropout))
    last = features
    for size in (width, width) if name == "network" else ():
        layers += [nn.Linear(last, size, bias=False), nn.BatchNorm1d(size)]
        layers += [nn.ReLU(), nn.Dropout(dropout)]
        last = size
    return nn.Sequential(*layers, nn.Linear(last, dim))


@dataclass(eq=False, repr=False)
class NCATransformer(
    SafetensorsMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator, nn.Module
):
    """Encode samples as unit rows, among whose cosines those of a class are the largest.

    The loss is neighborhood component analysis's, against proxies that learn along.

    Parameters
    ----------
    map : {"network", "linear", "residual"}
        Two hidden layers of `width`, a matrix, or x + f(x), which keeps the features.
    dim : int
        Features of a row, where the map doesn't keep them.
    proxies : int, optional
        None for 300, or one a class if there are more; 0 to compare within the batch.
    drop_inputs : float
        Fraction of the features hidden while learning.
    adversarial : float
        Learn also from rows moved that far, relative to their length, to where the loss is higher.
    temperature, epochs, batch_size, lr, random_state, device, progress
        As PrototypeClassifier's, but for an absolute `lr`.
    matmul_dtype : {"float32", "bfloat16"}

    Attributes
    ----------
    map_, proxies_, losses_
        The encoder, the proxies [K, dim], and each epoch's mean loss.

    References
    ----------
    J. Goldberger et al., Neighbourhood Components Analysis, 2004. Y. Movshovitz-Attias et al., No
    Fuss Distance Metric Learning using Proxies, 2017. I. Goodfellow et al., Explaining and
    Harnessing Adversarial Examples, 2015.

    Examples
    --------
    >>> X = [[0.0, 0.0], [1.0, 0.0], [0.0, 5.0], [1.0, 5.0]]
    >>> NCATransformer("linear", dim=2, epochs=1).fit(X, [0, 0, 1, 1]).transform(X).shape
    (4, 2)
    """

    saved_attributes = ("n_features_in_", "classes_")

    map: str = "network"
    dim: int = 64
    proxies: int | None = None
    temperature: float = 0.1
    width: int = 1024
    dropout: float = 0.5
    drop_inputs: float = 0.2
    adversarial: float = 0.0
    epochs: int = 30
    batch_size: int | None = None
    lr: float = 2e-3
    matmul_dtype: str = "float32"
    random_state: int | None = 0
    device: str = "auto"
    progress: bool = True

    def __post_init__(self):
        nn.Module.__init__(self)

    def fit(self, X, y=None):
        """Learn from X [N, D] and labels y [N]; ValueError for NaN or settings without sense."""
        x = check_features(self, X, reset=True)
        y = check_labels(y)
        check_consistent_length(x, y)
        self.classes_ = np.unique(y)
        self._check_settings()
        if len(x) < 2:
            raise ValueError("X has n_samples=1, which is no one's neighbor: give two or more")
        device = resolve_device(self.device)
        x = x.to(device)
        y = encode_labels(y, self.classes_).to(device)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(check_seed(self.random_state, "random_state"))
            self.map_ = self._make_encoder().to(device)
            self.map_[0].measure(x)
            self._learn(x, y)
        self.map_.eval().requires_grad_(False)
        return self

    def _learn(self, x: Shaped[Tensor, "N D"], y: Int64[Tensor, " N"]) -> None:
        count = max(PROXIES, len(self.classes_)) if self.proxies is None else self.proxies
        labels = torch.arange(count, device=x.device) % len(self.classes_)
        start = torch.randn(count, self._n_features_out).to(x.device)
        proxies = nn.Parameter(normalize(start, dim=1))
        swa = torch.optim.swa_utils.AveragedModel
        average = swa(self.map_, multi_avg_fn=_update_average, use_buffers=True)
        reduced = self.matmul_dtype == "bfloat16"

        def loss_at(inputs: Float[Tensor, "B D"], y: Int64[Tensor, " B"]) -> Float[Tensor, ""]:
            """The loss of standardized inputs."""
            with torch.autocast(x.device.type, torch.bfloat16, enabled=reduced):
                z = self.map_[1:](inputs)
            return self._loss(normalize(z.float(), dim=1), y, proxies, labels)

        def loss(rows: Int64[Tensor, " B"]) -> Float[Tensor, ""]:
            """The loss of some samples, and of what they become when moved against the metric."""
            average.update_parameters(self.map_)  # with the step before
            inputs = self.map_[0](x[rows]).requires_grad_(self.adversarial > 0)
            clean = loss_at(inputs, y[rows])
            if not self.adversarial:
                return clean
            (gradient,) = torch.autograd.grad(clean, inputs, retain_graph=True)
            step = self.adversarial * inputs.shape[1] ** 0.5 * normalize(gradient, dim=1)
            return (clean + loss_at(inputs.detach() + step, y[rows])) / 2

        rates = [(part, self.lr) for part in (*self.map_.parameters(), proxies)]
        run = (len(x), self.epochs, self.batch_size, self.random_state, self.progress)
        self.losses_ = minimize_adam(loss, rates, *run)
        self.map_ = average.module
        self.proxies_ = normalize(proxies.detach(), dim=1)

    def _loss(
        self, z: Float[Tensor, "B D"], y: Int64[Tensor, " B"], proxies, labels
    ) -> Float[Tensor, ""]:
        exclude = None
        if self.proxies == 0:
            proxies, labels = z, y
            exclude = torch.arange(len(z), device=z.device)
        kernel = CosineSoftmax(self.temperature)
        classes = len(self.classes_)
        logs = class_log_probabilities(z, proxies, labels, classes, kernel, exclude=exclude)
        return -logs.gather(1, y[:, None]).mean()

    def transform(self, X) -> Float[Tensor, "N dim"]:
        """Return the unit rows [N, dim], on the device of X."""
        check_is_fitted(self)
        x = check_features(self, X, reset=False)
        self.map_.eval()  # whatever mode a module around it was put in since
        device = next(self.map_.buffers()).device
        with torch.no_grad():
            blocks = x.split(TRANSFORMED_ROWS)
            rows = [normalize(self.map_(block.to(device)).float(), dim=1) for block in blocks]
        return like_input(torch.cat(rows), X)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []  # float32 for any input
        return tags

    def _make_encoder(self) -> nn.Sequential:
        sizes = (self.n_features_in_, self.dim, self.width)
        return make_encoder(self.map, *sizes, self.dropout, self.drop_inputs)

    def _tensors(self) -> dict[str, Tensor]:
        state = {f"map.{name}": part for name, part in self.map_.state_dict().items()}
        return {"proxies": self.proxies_} | state

    def _restore(self, tensors: dict[str, Tensor]) -> None:
        self.proxies_ = tensors.pop("proxies")
        with torch.device("meta"):  # so that a file's settings alone take no memory
            self.map_ = self._make_encoder().eval().requires_grad_(False)
        state = {name.removeprefix("map."): part for name, part in tensors.items()}
        self.map_.load_state_dict(state, assign=True)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "map_")

    @property
    def _n_features_out(self) -> int:
        return self.n_features_in_ if self.map == "residual" else self.dim

    def _check_settings(self) -> None:
        for name in ("dim", "width", "epochs"):
            check_int(name, getattr(self, name))
        classes = len(self.classes_)
        if self.proxies is not None and 0 < check_int("proxies", self.proxies, 0) < classes:
            raise ValueError(
                f"proxies={self.proxies!r} for {classes} classes: give one each at least, or 0"
            )
        check_choice("matmul_dtype", self.matmul_dtype, MATMUL_DTYPES)
        for name in ("dropout", "drop_inputs", "adversarial"):
            check_number(name, getattr(self, name), "[0, 1)", "a fraction in [0, 1)")
        for name in ("lr", "temperature"):
            check_number(name, getattr(self, name), "(0, inf)", "a positive number")


def _update_average(averages: list[Tensor], parts: list[Tensor], steps: Tensor) -> None:
    """Update a running mean of the weights over the last thousand steps, or fewer at the start."""
    fraction = max(1e-3, float(1 / (steps / 10 + 1)))
    for average, part in zip(averages, parts, strict=True):
        if average.is_floating_point():
            average.lerp_(part, fraction)
        else:
            average.copy_(part)
