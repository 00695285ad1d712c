"""What estimators over centers share: columns, neighbors, averages, and class probabilities."""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Shaped
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics import accuracy_score
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from nnlib._common.runtime import torch_defaults
from nnlib._common.serialization import SafetensorsMixin
from nnlib._common.validation import (
    BLOCK_NUMBERS,
    WIDE,
    as_array,
    check_choice,
    check_features,
    check_int,
    like_input,
)
from nnlib.attention import Kernel, UniformKNN, make_kernel, nearest
from nnlib.distances import subsample, wide_dtype

EPSILON_MARGIN = 100  # X has to vary by so many epsilons, or distances lose much to it
PREDICTED_ROWS = 8192  # at a time, and at least
PREDICTED_NUMBERS = 1 << 19  # rows times features, where rows are short


class Columns(NamedTuple):
    """What is subtracted from each column, and the factor that it then counts with."""

    offset: Float64[Tensor, " D"] | None = None
    weight: Float64[Tensor, " D"] | None = None

    def apply(
        self, x: Shaped[Tensor, "N D"], dtype: torch.dtype = torch.float32
    ) -> Shaped[Tensor, "N D"]:
        """The columns as they are compared: in float64 until numbers are small."""
        if self.offset is None and self.weight is None:
            return x.to(dtype) if x.dtype in WIDE else x
        if len(x) * x.shape[1] > BLOCK_NUMBERS and not x.requires_grad:
            size = max(1, BLOCK_NUMBERS // x.shape[1])
            return torch.cat([self.apply(block, dtype) for block in x.split(size)])
        x = x.to(torch.float64)
        if self.offset is not None:
            x = x - self.offset.to(x.device)
        if self.weight is not None:
            x = x * self.weight.to(x.device)
        return x.to(dtype)


class CenterEstimator(SafetensorsMixin, BaseEstimator, torch.nn.Module):
    """A weighted average over centers, in columns of X less `offset_`, times `column_weights_`."""

    saved_tensors: tuple[str, ...] = ("centers_", "values_", "offset_", "column_weights_")
    centers_: Tensor
    values_: Tensor
    offset_: Tensor | None
    column_weights_: Tensor | None
    n_features_in_: int
    kernel: str | Kernel
    exponent: float | None
    epsilon: float
    influence_cone_factor: float
    scales: int
    predictor: str
    published_kernel: str  # which "auto" is by the published rule
    rule_ = "published"
    kernel_: Kernel | None = None  # chosen by a fit

    def __post_init__(self):
        torch.nn.Module.__init__(self)
        for name in self.saved_tensors:
            self.register_buffer(name, None)

    @property
    def num_neighbors(self) -> int:
        """The number of centers."""
        return 0 if self.centers_ is None else len(self.centers_)

    def __sklearn_is_fitted__(self) -> bool:
        return self.centers_ is not None

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    @torch_defaults()
    def kneighbors(self, X=None, n_neighbors: int = 5, return_distance: bool = True):
        """Find each sample's nearest centers, nearest first, by the kernel's own distance.

        X [N, D], or None for the centers themselves, each without itself. Returns distances and
        center numbers [N, n_neighbors], or the numbers alone.
        """
        check_is_fitted(self)
        if check_int("n_neighbors", n_neighbors) > self.num_neighbors:
            raise ValueError(
                f"n_neighbors={n_neighbors!r} of {self.num_neighbors} centers: give 1 up to as many"
            )
        if X is None:
            x = self.centers_
            exclude = torch.arange(len(x), device=x.device)
        else:
            x = check_features(self, X, reset=False).to(self.centers_.device)
            x = self._columns.apply(x)
            exclude = None
        distance, index = nearest(x, self.centers_, n_neighbors, self._kernel(), exclude)
        index = like_input(index, X)
        return (like_input(distance, X), index) if return_distance else index

    @property
    def _columns(self) -> Columns:
        return Columns(self.offset_, self.column_weights_)

    def _set_columns(self, columns: Columns) -> None:
        self.offset_ = columns.offset
        self.column_weights_ = columns.weight

    def _kernel(self) -> Kernel:
        return self._make_kernel() if self.kernel_ is None else self.kernel_

    def _make_kernel(self) -> Kernel:
        check_choice("predictor", self.predictor, ("interpolation", "nearest"))
        name = self.kernel
        if name == "auto":
            name = self.published_kernel if self.rule_ == "published" else "euclidean"
        factor = self.influence_cone_factor
        kernel = make_kernel(name, self._exponent(), self.epsilon, factor, self.scales)
        return self._by_predictor(kernel)

    def _by_predictor(self, kernel: Kernel) -> Kernel:
        return UniformKNN(1, kernel) if self.predictor == "nearest" else kernel

    def _exponent(self) -> float:
        if self.exponent is not None:
            return self.exponent
        features = getattr(self, "n_features_in_", 0)  # settings are checked before a fit
        return -float(min(max(features, 4), 16))

    def _restore(self, tensors: dict[str, Tensor]) -> None:
        super()._restore(tensors)
        centers = tuple(self.centers_.shape)
        values = tuple(self.values_.shape)
        if centers != (len(self.values_), self.n_features_in_):
            raise ValueError(f"centers {centers} and values {values} don't belong together")
        self._kernel()

    def _warn_about_kernel(self, x: Shaped[Tensor, "N D"]) -> None:
        """Warn where a kernel given by name takes different samples for one."""
        if x.dtype == torch.uint8 or not isinstance(self.kernel, str):
            return
        if self.kernel == "cosine" and float(x.amin()) < 0:
            warnings.warn(
                "kernel='cosine' takes x and -x for one, as published, and X has negative numbers: "
                "'euclidean' and CosineInverseDistance(signed=True) tell them apart",
                stacklevel=4,
            )
        if self.kernel.startswith("cosine"):
            return  # whose epsilon is one of cosines
        deviation = float(subsample(x, wide_dtype(x)).std(0, correction=0).amax())
        if 0 < deviation < EPSILON_MARGIN * self.epsilon:
            warnings.warn(
                f"X varies by {deviation:.2g}, which epsilon={self.epsilon:g} blots out: "
                "scale X, or give less epsilon",
                stacklevel=4,
            )

    def _averages(self, X, average: Callable[[Tensor], Tensor]) -> Float[Tensor, "N V"]:
        """Compute `average(x)` of all samples, some thousands at a time."""
        check_is_fitted(self)
        x = check_features(self, X, reset=False)
        size = max(PREDICTED_ROWS, PREDICTED_NUMBERS // x.shape[1])
        with torch.no_grad():
            parts = [average(rows.to(self.centers_.device)) for rows in x.split(size)]
        return torch.cat(parts)

    def _comparable(self, x: Shaped[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """Rows as they are compared with the centers, where these are."""
        dtype = torch.promote_types(torch.float32, self.centers_.dtype)
        return self._columns.apply(x.to(self.centers_.device), dtype).to(dtype)


class ProbabilisticClassifier(ClassifierMixin):
    """Predictions by `_class_probabilities` of rows and `_probabilities` of users' input."""

    def _class_probabilities(self, x: Shaped[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        raise NotImplementedError

    def _probabilities(self, X) -> Float[Tensor, "N C"]:
        raise NotImplementedError

    @torch_defaults()
    def forward(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        """Return log class probabilities, differentiable in x."""
        check_is_fitted(self)
        return log_probabilities(self._class_probabilities(x.flatten(1)))

    @torch_defaults()
    def predict_log_proba(self, X):
        """Return log class probabilities [N, C]; about -87, not -inf, for a class of no weight."""
        return like_input(log_probabilities(self._probabilities(X)), X)

    @torch_defaults()
    def predict_proba(self, X):
        """Return class probabilities [N, C]: each class's fraction of the weight."""
        return like_input(self._probabilities(X), X)

    @torch_defaults()
    def predict(self, X):
        """Return the most probable class [N], as a tensor for tensors if labels are integers."""
        index = self._probabilities(X).argmax(1)
        if isinstance(X, Tensor) and self.classes_.dtype.kind in "iub":
            return torch.from_numpy(self.classes_).to(X.device)[index.to(X.device)]
        return self.classes_[index.cpu().numpy()]

    def score(self, X, y, sample_weight=None) -> float:
        """Return the accuracy on X [N, D] and labels y [N]."""
        predicted = as_array(self.predict(X))
        return accuracy_score(as_array(y), predicted, sample_weight=sample_weight)


def log_probabilities(probabilities: Float[Tensor, "B C"]) -> Float[Tensor, "B C"]:
    """Logs, of the smallest normal float for what is 0."""
    return probabilities.clamp(min=torch.finfo(probabilities.dtype).tiny).log()


class CenterClassifier(ProbabilisticClassifier, CenterEstimator):
    """Base of the classifiers over centers, whose class probabilities are fractions of the weight.

    Fitted: `centers_` [M, D], `values_`, their class numbers [M] or probabilities [M, C], and
    `classes_` [C], the labels.
    """

    saved_attributes: tuple[str, ...] = ("n_features_in_", "classes_")
    classes_: np.ndarray

    def _probabilities(self, X) -> Float[Tensor, "N C"]:
        return self._averages(X, self._class_probabilities)
