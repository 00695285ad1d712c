"""Maps that a metric is learned as: linear, residual (x + f(x)), or a network of two hidden layers.

A metric learned before neighbors are chosen: a map after which samples of a class lie together.
"""

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
from nnlib.neighbors.optim import SMALL, default_batch_size, minimize_adam

ENCODERS = ("linear", "residual", "network")


class Standard(nn.Module):
    """Features less their mean, over one common deviation, so that learning rates mean the same for all data."""

    def __init__(self, features: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("deviation", torch.ones(()))

    def pairwise(self, x: Shaped[Tensor, "N D"]) -> None:
        """Take both from training samples [N, D] of any type, a block at a time."""
        parts = x.split(max(1, BLOCK_NUMBERS // x.shape[1]))
        self.mean.copy_(sum(part.to(wide_dtype(part)).sum(0) for part in parts) / len(x))
        square = sum(
            float((part.to(wide_dtype(part)) - self.mean).square().sum()) for part in parts
        )
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


def make_encoder(
    shape: str, features: int, dim: int, width: int, dropout: float, drop_inputs: float
) -> nn.Sequential:
    """The map [B, features] -> [B, dim] (residual: [B, features]) of that name; raises ValueError for another name."""
    check_choice("map", shape, ENCODERS)
    first = [Standard(features), nn.Dropout(drop_inputs)]
    if shape == "linear":
        return nn.Sequential(*first, nn.Linear(features, dim))
    if shape == "residual":
        return nn.Sequential(*first, Residual(features, width, dropout))
    return nn.Sequential(
        *first,
        *_hidden(features, width, dropout),
        *_hidden(width, width, dropout),
        nn.Linear(width, dim),
    )


def _hidden(before: int, after: int, dropout: float) -> list[nn.Module]:
    return [
        nn.Linear(before, after, bias=False),
        nn.BatchNorm1d(after),
        nn.ReLU(),
        nn.Dropout(dropout),
    ]


PROXIES = 300  # where their number is left open, or one a class if there are more
TRANSFORMED = 8192  # samples at a time


class NCATransformer(
    SafetensorsMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator, nn.Module
):
    """Samples [N, D] to unit rows [N, dim], in whose cosines those of a class are neighbors.

    map: "linear"; "residual", x + f(x), which keeps the features; or "network" of two hidden layers of `width`, batch
    norm and `dropout`. drop_inputs: share of the features hidden while learning. adversarial: also learn from each row
    moved so far, as a share of a row's usual length, to where the loss is higher (twice the time; features should be
    alike in scale). The loss is neighborhood component analysis's at `temperature`: against `proxies` centers (None:
    300, or one a class where those are more), as many of each class, that learn along and are then left behind
    (`proxies_`, for who wants to start from them), or, with proxies=0, against the rest of the batch. batch_size and lr
    are PrototypeClassifier's, without a spread. matmul_dtype: "bfloat16" for the map's products while it learns. Sources: J.
    Goldberger et al., Neighbourhood Components Analysis (2004); Y. Movshovitz-Attias et al., No Fuss Distance Metric
    Learning using Proxies (2017); I. Goodfellow et al., Explaining and Harnessing Adversarial Examples (2015); x +
    f(x): J. Loverich.
    """

    saved_attributes = ("n_features_in_", "classes_")

    def __init__(
        self,
        map: str = "network",
        dim: int = 64,
        proxies: int | None = None,
        temperature: float = 0.1,
        width: int = 1024,
        dropout: float = 0.5,
        drop_inputs: float = 0.2,
        adversarial: float = 0.0,
        epochs: int = 30,
        batch_size: int | None = None,
        lr: float = 2e-3,
        matmul_dtype: str = "float32",
        seed: int | None = 0,
        device: str = "auto",
        progress: bool = True,
    ):
        super().__init__()
        self.map, self.dim, self.proxies, self.temperature, self.width = (
            map,
            dim,
            proxies,
            temperature,
            width,
        )
        self.dropout, self.drop_inputs, self.adversarial = dropout, drop_inputs, adversarial
        self.epochs, self.batch_size = epochs, batch_size
        self.lr, self.matmul_dtype, self.seed, self.device, self.progress = (
            lr,
            matmul_dtype,
            seed,
            device,
            progress,
        )

    def fit(self, X, y=None):
        """Learn the map from X [N, D] and labels y [N]; raises ValueError for NaN, lengths, settings without sense."""
        x, y = check_features(self, X, reset=True), check_labels(y)
        check_consistent_length(x, y)
        self.classes_ = np.unique(y)
        self._check_settings()
        if len(x) < 2:
            raise ValueError("X has n_samples=1, which is no one's neighbor: give two or more")
        device = resolve_device(self.device)
        x, y = x.to(device), encode_labels(y, self.classes_).to(device)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(check_seed(self.seed))
            self.map_ = self._map().to(device)
            self.map_[0].pairwise(x)
            self._descend(x, y)
        self.map_.eval().requires_grad_(False)
        return self

    def _descend(self, x: Shaped[Tensor, "N D"], y: Int64[Tensor, " N"]) -> None:
        count = max(PROXIES, len(self.classes_)) if self.proxies is None else self.proxies
        owner = torch.arange(count, device=x.device) % len(self.classes_)
        proxies = nn.Parameter(
            normalize(torch.randn(count, self._n_features_out).to(x.device), dim=1)
        )
        average = torch.optim.swa_utils.AveragedModel(
            self.map_, multi_avg_fn=_ema, use_buffers=True
        )

        def at(seen: Float[Tensor, "B D"], labels: Int64[Tensor, " B"]) -> Float[Tensor, ""]:
            """The loss where rows are, in deviations."""
            with torch.autocast(
                x.device.type, torch.bfloat16, enabled=self.matmul_dtype == "bfloat16"
            ):
                found = self.map_[1:](seen)
            return self._loss(normalize(found.float(), dim=1), labels, proxies, owner)

        def loss(rows: Int64[Tensor, " B"]) -> Float[Tensor, ""]:
            """The loss of a batch, after the step before it has joined the running mean."""
            average.update_parameters(self.map_)
            seen, labels = self.map_[0](x[rows]), y[rows]
            here = at(seen.requires_grad_(self.adversarial > 0), labels)
            if not self.adversarial:
                return here
            (uphill,) = torch.autograd.grad(here, seen, retain_graph=True)
            step = self.adversarial * seen.shape[1] ** 0.5
            return (here + at(seen.detach() + step * normalize(uphill, dim=1), labels)) / 2

        rates = [(part, self.lr) for part in (*self.map_.parameters(), proxies)]
        size = default_batch_size(self.batch_size, len(x))
        small = size * sum(rate[0].numel() for rate in rates) < SMALL
        self.losses_ = minimize_adam(
            loss, rates, len(x), self.epochs, size, self.seed, self.progress, small
        )
        self.map_, self.proxies_ = average.module, normalize(proxies.detach(), dim=1)

    def _loss(
        self, z: Float[Tensor, "B D"], y: Int64[Tensor, " B"], proxies, owner
    ) -> Float[Tensor, ""]:
        kernel, classes = CosineSoftmax(self.temperature), len(self.classes_)
        if self.proxies != 0:
            found = class_log_probabilities(z, proxies, owner, classes, kernel)
        else:
            found = class_log_probabilities(
                z, z, y, classes, kernel, exclude=torch.arange(len(z), device=z.device)
            )
        return -found.gather(1, y[:, None]).mean()

    def transform(self, X) -> Float[Tensor, "N dim"]:
        """The rows, on the device where X lies."""
        check_is_fitted(self)
        x = check_features(self, X, reset=False)
        self.map_.eval()  # whatever mode a module around it was put in since
        device = next(self.map_.buffers()).device
        with torch.no_grad():
            parts = [
                normalize(self.map_(part.to(device)).float(), dim=1)
                for part in x.split(TRANSFORMED)
            ]
        return like_input(torch.cat(parts), X)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []  # float32 whatever comes
        return tags

    def _map(self) -> nn.Sequential:
        return make_encoder(
            self.map, self.n_features_in_, self.dim, self.width, self.dropout, self.drop_inputs
        )

    def _tensors(self) -> dict[str, Tensor]:
        return {"proxies": self.proxies_} | {
            f"map.{name}": part for name, part in self.map_.state_dict().items()
        }

    def _restore(self, tensors: dict[str, Tensor]) -> None:
        self.proxies_ = tensors.pop("proxies")
        with torch.device("meta"):  # so that a file's settings alone take no memory
            self.map_ = self._map().eval().requires_grad_(False)
        self.map_.load_state_dict(
            {name.removeprefix("map."): part for name, part in tensors.items()}, assign=True
        )

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "map_")

    @property
    def _n_features_out(self) -> int:
        return self.n_features_in_ if self.map == "residual" else self.dim

    def _check_settings(self) -> None:
        for name in ("dim", "width", "epochs"):
            check_int(name, getattr(self, name))
        if self.proxies is not None and 0 < check_int("proxies", self.proxies, 0) < len(
            self.classes_
        ):
            raise ValueError(
                f"proxies={self.proxies!r} for {len(self.classes_)} classes: give one each at least, or 0"
            )
        check_choice("matmul_dtype", self.matmul_dtype, MATMUL_DTYPES)
        for name in ("dropout", "drop_inputs", "adversarial"):
            check_number(name, getattr(self, name), "[0, 1)", "a share in [0, 1)")
        for name in ("lr", "temperature"):
            check_number(name, getattr(self, name), "(0, inf)", "a positive number")


def _ema(averages: list[Tensor], parts: list[Tensor], seen: Tensor) -> None:
    """A running mean of the weights over the last thousand steps, or so many as there were."""
    share = max(1e-3, float(1 / (seen / 10 + 1)))
    for average, part in zip(averages, parts, strict=True):
        if average.is_floating_point():
            average.lerp_(part, share)
        else:
            average.copy_(part)
