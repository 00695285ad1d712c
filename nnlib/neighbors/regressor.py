"""The dynamic regressor: a scikit-learn estimator that is also a torch module."""

import math

import numpy as np
import torch
from jaxtyping import Float
from sklearn.base import RegressorMixin
from sklearn.metrics import r2_score
from sklearn.utils.validation import check_array, check_consistent_length
from torch import Tensor

from nnlib._common.validation import (
    as_array,
    as_tensor,
    check_features,
    check_finite,
    check_number,
    is_stream,
    like_input,
)
from nnlib.attention import Kernel, attend
from nnlib.neighbors.base import CenterEstimator
from nnlib.neighbors.condensing.votes import CondensingRule

LEAST, MOST = 4, 16  # what minus the exponent is, where it is left open


class DynamicRegressor(RegressorMixin, CenterEstimator):
    """Values by the weighted mean over all centers, which are the samples whose error reached `tolerance`.

    tolerance: how far off one may be, in the targets' unit; 0.05 suits colours in 0..1, and less than the noise of what
    is measured makes a center of every sample. A batch is learned until nothing is wrong or its mean absolute error is
    at most `target_accuracy`, as published (at 0.8 that is mostly one round). exponent: None for minus the number of
    features, from -4 (published) to -16: in many dimensions most samples are about as far, and only a steep fall lets
    the near ones speak. The other settings are DynamicClassifier's; pictures are published with
    kernel="influence_cone", tolerance=0.2.
    """

    saved_attributes = ("n_features_in_", "y_shape_")

    def __init__(
        self,
        kernel: str | Kernel = "euclidean",
        exponent: float | None = None,
        epsilon: float = 1e-6,
        influence_cone_factor: float = 4.0,
        scales: int = 4,
        predictor: str = "interpolation",
        tolerance: float = 0.05,
        batch_size: int = 256,
        target_accuracy: float = 0.8,
        max_neighbors: int = 100_000,
        shuffle: bool = True,
        seed: int | None = 0,
        device: str = "auto",
        progress: bool = True,
        passes: int = 1,
    ):
        super().__init__()
        self.kernel, self.exponent, self.epsilon = kernel, exponent, epsilon
        self.influence_cone_factor, self.scales, self.predictor = (
            influence_cone_factor,
            scales,
            predictor,
        )
        self.tolerance, self.batch_size, self.target_accuracy = (
            tolerance,
            batch_size,
            target_accuracy,
        )
        self.max_neighbors, self.shuffle, self.seed = max_neighbors, shuffle, seed
        self.device, self.progress, self.passes = device, progress, passes

    def fit(self, X, y=None):
        """Learn from X [N, D] and targets y [N] or [N, V], in one pass over shuffled batches.

        X may be a DataLoader of (x, y) batches, taken in its own order. Raises ValueError as DynamicClassifier.fit.
        """
        return self._fit(X, y, more=False)

    def partial_fit(self, X, y=None):
        """Go on learning: samples whose error reaches the tolerance join the centers."""
        return self._fit(X, y, more=self.centers_ is not None)

    def _fit(self, X, y, more: bool):
        self._check_settings()
        if is_stream(X):
            self._learn_stream(X, more)
            return self
        x = check_features(self, X, reset=not more)
        values = self._encoded(y, more)
        check_consistent_length(x, values)
        self._learn(x, values, more)
        return self

    def _encoded(self, y, more: bool) -> Float[Tensor, "N V"]:
        if y is None:
            raise ValueError("requires y to be passed, but the target y is None")
        if not isinstance(y, Tensor):
            y = as_tensor(check_array(y, ensure_2d=False, dtype=np.float32, input_name="y"))
        check_finite("y", y)
        shape = list(y.shape[1:])
        if more and shape != list(self.y_shape_):
            raise ValueError(
                f"y has shape {tuple(y.shape)}: give targets [N, *{self.y_shape_}], as it was fitted on"
            )
        self.y_shape_ = shape
        return y.detach().to(torch.float32).reshape(len(y), math.prod(shape))

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def _check_settings(self):
        super()._check_settings()
        check_number("tolerance", self.tolerance, "(0, inf]", "a positive number")

    def _exponent(self) -> float:
        if self.exponent is not None:
            return self.exponent
        return -float(
            min(max(getattr(self, "n_features_in_", 0), LEAST), MOST)
        )  # checked before a fit knows features

    def _rule(self) -> CondensingRule:
        return CondensingRule(
            values=lambda y: y,
            evaluate=self._off,
            target=1 - self.target_accuracy,
            rounds=None,
            batch_size=self.batch_size,
            max_neighbors=self.max_neighbors,
        )

    def _off(self, mean: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return ~((mean - y).square().sum(1).sqrt() < self.tolerance), 1 - (mean - y).abs().mean()

    def forward(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B V"]:
        """The weighted mean of the centers' values, differentiable in x."""
        self._require_fitted()
        return attend(x.flatten(1), self.centers_, self.values_, self._kernel())

    def predict(self, X):
        """The weighted mean of the centers' values, [N] or [N, V] as the targets were."""
        mean = self._averages(X, self)
        mean = like_input(mean.reshape(-1, *self.y_shape_), X)
        return (
            mean if isinstance(X, Tensor) else mean.astype(np.float64)
        )  # as scikit-learn's regressors answer

    def score(self, X, y, sample_weight=None) -> float:
        """R^2 of the predictions, as scikit-learn's."""
        return r2_score(as_array(y), as_array(self.predict(X)), sample_weight=sample_weight)
