"""A learned metric: an encoder after which samples of a class are neighbors."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64, Shaped
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.utils import skip_init
from torch.optim.swa_utils import AveragedModel

from nnlib._common.runtime import check_seed, make_generator, resolve_device, torch_defaults
from nnlib._common.serialization import SafetensorsMixin
from nnlib._common.validation import (
    BLOCK_NUMBERS,
    as_tensor,
    check_choice,
    check_features,
    check_int,
    check_labels,
    check_lengths,
    check_number,
    encode_labels,
    like_input,
)
from nnlib.attention import MATMUL_DTYPES, CosineSoftmax, class_log_probabilities
from nnlib.distances import wide_dtype
from nnlib.neighbors.optim import minimize_adam

PROXIES = 300  # by default, or one a class if there are more classes
TRANSFORMED_ROWS = 8192  # at a time


class Standardizer(nn.Module):
    """Columns less their mean, over their deviation: learning rates suit any unit."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, mean: Float[Tensor, " D"], deviation: Tensor):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation)

    @classmethod
    def of(cls, x: Shaped[Tensor, "N D"], common: bool) -> "Standardizer":
        """Take mean and deviation from training samples [N, D] of any type, a block at a time."""
        blocks = x.split(max(1, BLOCK_NUMBERS // x.shape[1]))
        wide = wide_dtype(x)
        first = x[0].to(wide)  # a constant column's mean, exactly
        mean = first + sum((block.to(wide) - first).sum(0) for block in blocks) / len(x)
        variance = sum((block.to(wide) - mean).square().sum(0) for block in blocks) / len(x)
        if common:
            variance = variance.mean()
        deviation = variance.sqrt()
        return cls(mean, torch.where(deviation > 0, deviation, 1).float())

    def forward(self, x: Shaped[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        return (x.to(self.mean.dtype) - self.mean).to(self.deviation.dtype) / self.deviation


@dataclass(eq=False, repr=False)
class NCATransformer(
    SafetensorsMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator, nn.Module
):
    """Encode samples as unit rows, among whose cosines those of a class are the largest.

    The loss is neighborhood component analysis's, against proxies that learn along.

    Parameters
    ----------
    map : {"network", "linear"}
        Two hidden layers of `width`, or a matrix.
    dim : int
        Features of a row.
    proxies : int, optional
        At least one a class; None for 300, or one a class if there are more.
    scaling : {"auto", "columns", "common"}
        Over each column's deviation, or over that of all together; "auto" takes a common one for
        uint8, as pictures are, whose faintest columns say least.
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
    scaling: str = "auto"

    def __post_init__(self):
        nn.Module.__init__(self)

    @torch_defaults(gradients=True)
    def fit(self, X, y=None):
        """Learn from X [N, D] and labels y [N]; ValueError for NaN or settings without sense."""
        x = check_features(self, X, reset=True)
        y = check_labels(y)
        check_lengths(x, y)
        self.classes_ = np.unique(y)
        self._check_settings()
        if len(x) < 2:
            raise ValueError("X has n_samples=1, which is no one's neighbor: give two or more")
        device = resolve_device(self.device)
        seed = check_seed(self.random_state, "random_state")
        self._learn(x.to(device), encode_labels(y, self.classes_).to(device), seed)
        return self

    def _learn(self, x: Shaped[Tensor, "N D"], y: Int64[Tensor, " N"], seed: int) -> None:
        generator = make_generator(seed)
        common = self.scaling == "common" or (self.scaling == "auto" and x.dtype == torch.uint8)
        encoder = self._make_encoder(Standardizer.of(x, common), generator).to(x.device)
        count = max(PROXIES, len(self.classes_)) if self.proxies is None else self.proxies
        start = torch.randn(count, self.dim, generator=generator, dtype=torch.float32)
        proxies = nn.Parameter(normalize(start.to(x.device), dim=1))
        labels = torch.arange(count, device=x.device) % len(self.classes_)
        kernel = CosineSoftmax(self.temperature)
        average = AveragedModel(encoder, avg_fn=_running_mean, use_buffers=True)
        if x.device.type != "cpu":
            generator = torch.Generator(x.device).manual_seed(seed)

        def loss_at(inputs: Float[Tensor, "B D"], y: Int64[Tensor, " B"]) -> Float[Tensor, ""]:
            """The mean of -log p(own class), of standardized inputs."""
            reduced = self.matmul_dtype == "bfloat16"
            with torch.autocast(x.device.type, torch.bfloat16, enabled=reduced):
                z = _with_dropout(encoder[1:], inputs, generator)
            z = normalize(z.float(), dim=1)
            logs = class_log_probabilities(z, proxies, labels, len(self.classes_), kernel)
            return -logs.gather(1, y[:, None]).mean()

        def loss(rows: Int64[Tensor, " B"]) -> Float[Tensor, ""]:
            """The loss of some samples, and of what they become when moved against the metric."""
            average.update_parameters(encoder)  # with the step before
            inputs = encoder[0](x[rows]).requires_grad_(self.adversarial > 0)
            clean = loss_at(inputs, y[rows])
            if not self.adversarial:
                return clean
            (gradient,) = torch.autograd.grad(clean, inputs, retain_graph=True)
            step = self.adversarial * inputs.shape[1] ** 0.5 * normalize(gradient, dim=1)
            return (clean + loss_at(inputs.detach() + step, y[rows])) / 2

        rates = [(part, self.lr) for part in (*encoder.parameters(), proxies)]
        run = (len(x), self.epochs, self.batch_size, seed, self.progress)
        self.losses_ = minimize_adam(loss, rates, *run)
        self.map_ = average.module.eval().requires_grad_(False)
        self.proxies_ = normalize(proxies.detach(), dim=1)

    @torch_defaults()
    def forward(self, x: Shaped[Tensor, "B *D"]) -> Float[Tensor, "B dim"]:
        """Return the unit rows, differentiable in x."""
        check_is_fitted(self)
        x = as_tensor("x", x)
        if x.ndim < 2 or math.prod(x.shape[1:]) != self.n_features_in_:
            raise ValueError(f"x has shape {tuple(x.shape)}: give [B, {self.n_features_in_}]")
        self.map_.eval()  # whatever mode a module around it was put in since
        return normalize(self.map_(x.flatten(1)), dim=1)

    @torch_defaults()
    @torch.no_grad()
    def transform(self, X) -> Float[Tensor, "N dim"]:
        """Return the unit rows [N, dim], on the device of X."""
        check_is_fitted(self)
        x = check_features(self, X, reset=False)
        device = next(self.map_.buffers()).device
        rows = [self(block.to(device)) for block in x.split(TRANSFORMED_ROWS)]
        return like_input(torch.cat(rows), X)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.transformer_tags.preserves_dtype = []  # float32 for any input
        return tags

    def _make_encoder(
        self, standardizer: Standardizer, generator: torch.Generator | None
    ) -> nn.Sequential:
        """Make the encoder [B, D] -> [B, dim], drawn by a generator, or to be read if None."""
        how: dict = {"device": "meta" if generator is None else "cpu", "dtype": torch.float32}
        layers = [standardizer, nn.Dropout(self.drop_inputs)]
        last = self.n_features_in_
        for width in (self.width, self.width) if self.map == "network" else ():
            layers.append(skip_init(nn.Linear, last, width, bias=False, **how))
            layers += [nn.BatchNorm1d(width, **how), nn.ReLU(), nn.Dropout(self.dropout)]
            last = width
        layers.append(skip_init(nn.Linear, last, self.dim, **how))
        for layer in layers:
            if generator is not None and isinstance(layer, nn.Linear):
                bound = layer.in_features**-0.5
                for parameter in layer.parameters():
                    nn.init.uniform_(parameter, -bound, bound, generator)
        return nn.Sequential(*layers)

    def _tensors(self) -> dict[str, Tensor]:
        state = {f"map.{name}": part for name, part in self.map_.state_dict().items()}
        return {"proxies": self.proxies_} | state

    def _restore(self, tensors: dict[str, Tensor]) -> None:
        self.proxies_ = tensors.pop("proxies")
        state = {name.removeprefix("map."): part for name, part in tensors.items()}
        standardizer = Standardizer(state["0.mean"], state["0.deviation"])
        self.map_ = self._make_encoder(standardizer, None)
        self.map_.load_state_dict(state, assign=True)
        self.map_.eval().requires_grad_(False)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "map_")

    @property
    def _n_features_out(self) -> int:
        return self.dim

    def _check_settings(self) -> None:
        check_choice("map", self.map, ("network", "linear"))
        check_choice("scaling", self.scaling, ("auto", "columns", "common"))
        for name in ("dim", "width", "epochs"):
            check_int(name, getattr(self, name))
        if self.proxies is not None:
            check_int("proxies", self.proxies, len(self.classes_))
        check_choice("matmul_dtype", self.matmul_dtype, MATMUL_DTYPES)
        for name in ("dropout", "drop_inputs", "adversarial"):
            check_number(name, getattr(self, name), "[0, 1)", "a fraction in [0, 1)")
        for name in ("lr", "temperature"):
            check_number(name, getattr(self, name), "(0, inf)", "a positive number")


def _with_dropout(
    layers: nn.Sequential, x: Float[Tensor, "B D"], generator: torch.Generator
) -> Float[Tensor, "B dim"]:
    """Apply the layers, dropout by a generator of one's own: fits in threads don't meet."""
    for layer in layers:
        if not isinstance(layer, nn.Dropout):
            x = layer(x)
        elif layer.p > 0:
            kept = torch.empty_like(x).bernoulli_(1 - layer.p, generator=generator)
            x = x * kept.div_(1 - layer.p)
    return x


def _running_mean(average: Tensor, part: Tensor, steps: Tensor | int) -> Tensor:
    """The mean over the last thousand steps, or fewer at the start."""
    return average + (part - average) * max(1e-3, 1 / (float(steps) / 10 + 1))
