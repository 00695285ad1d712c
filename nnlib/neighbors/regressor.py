"""Regressors over centers: scikit-learn estimators that are also torch modules."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Shaped
from sklearn.base import RegressorMixin
from sklearn.metrics import r2_score
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from nnlib._common.runtime import torch_defaults
from nnlib._common.validation import as_array, check_number, check_targets, like_input
from nnlib.attention import Kernel, attend
from nnlib.neighbors.base import CenterEstimator
from nnlib.neighbors.columns import plain_columns
from nnlib.neighbors.condensing.votes import CondensingRule
from nnlib.neighbors.dynamic import CondensingSettings, DynamicEstimator
from nnlib.neighbors.tuning import squared_errors

PUBLISHED_TOLERANCE = 0.05
NOISE_PART = 0.25  # of the error for samples left out, which is no error of the centers


class CenterRegressor(RegressorMixin, CenterEstimator):
    """Base of the regressors over centers, whose values are targets less `y_offset_`."""

    saved_attributes: tuple[str, ...] = ("n_features_in_", "y_shape_")
    y_shape_: list[int]
    y_offset_: Tensor | None
    saved_tensors = (*CenterEstimator.saved_tensors, "y_offset_")

    def _encode(self, y, more: bool, classes=None) -> Float[Tensor, "N V"]:
        y = check_targets(y)
        shape = list(y.shape[1:])
        if more and shape != list(self.y_shape_):
            raise ValueError(
                f"y has shape {tuple(y.shape)}: "
                f"give targets [N, *{self.y_shape_}], as it was fitted on"
            )
        self.y_shape_ = shape
        y = y.reshape(len(y), math.prod(shape))
        if not more:
            self.y_offset_ = plain_columns(y).offset
        if self.y_offset_ is not None:
            y = y.to(torch.float64) - self.y_offset_.to(y.device)
        return y.to(torch.float32)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    @torch_defaults()
    def forward(self, x: Shaped[Tensor, "B D"]) -> Float[Tensor, "B V"]:
        """Return the weighted mean of the centers' values, differentiable in x."""
        check_is_fitted(self)
        x = self._comparable(x.flatten(1))
        mean = attend(x, self.centers_, self.values_, self._kernel())
        return mean if self.y_offset_ is None else mean + self.y_offset_

    @torch_defaults()
    def predict(self, X):
        """Return the weighted mean of the centers' values, [N] or [N, V] as the targets were."""
        mean = self._averages(X, self)
        mean = like_input(mean.reshape(-1, *self.y_shape_), X)
        # float64 for arrays, as scikit-learn's regressors return
        return mean if isinstance(X, Tensor) else mean.astype(np.float64)

    def score(self, X, y, sample_weight=None) -> float:
        """Return R^2 of the predictions, as scikit-learn's regressors do."""
        return r2_score(as_array(y), as_array(self.predict(X)), sample_weight=sample_weight)


@dataclass(eq=False, repr=False)
class DynamicRegressor(CondensingSettings, CenterRegressor, DynamicEstimator):
    """Predict values by the weighted mean over all centers: samples that the model got wrong.

    By the smoothed rule, a sample's value is first predicted by all other samples, as
    DynamicClassifier's probabilities are, and decides whether it becomes a center.
    Pictures are published with rule="published", kernel="influence_cone", tolerance=0.2.

    Parameters
    ----------
    tolerance : float, optional
        The Euclidean error, in the targets' unit, from which a sample is wrong. None is 0.05 by
        the published rule, else a quarter of the error for samples left out.
    target_accuracy : float
        A batch is learned until its mean absolute error is at most that, as published.
    kernel, exponent, epsilon, influence_cone_factor, scales, predictor, batch_size, max_neighbors,
    passes, shuffle, random_state, device, progress, rule, scaling
        As DynamicClassifier's, and so are the attributes; kernel="auto" is "euclidean".

    References
    ----------
    J. Loverich, Dynamic and Deep Nearest Neighbors, 2023.

    Examples
    --------
    >>> model = DynamicRegressor(rule="published").fit([[0.0], [1.0], [2.0]], [0.0, 2.0, 4.0])
    >>> model.predict([[1.0]]).round(3).tolist()
    [2.0]
    """

    published_kernel = "euclidean"
    tolerance_ = PUBLISHED_TOLERANCE
    saved_attributes = ("n_features_in_", "y_shape_", "tolerance_", "kernel_", "rule_")

    kernel: str | Kernel = "auto"
    exponent: float | None = None
    influence_cone_factor: float = 4.0
    batch_size: int = 256
    target_accuracy: float = 0.8
    tolerance: float | None = None
    passes: int = 1
    rule: str = "auto"
    scaling: str = "auto"

    def fit(self, X, y=None):
        """Learn from X [N, D] and targets y [N] or [N, V], or a DataLoader of (x, y) batches.

        Raises ValueError as DynamicClassifier.fit.
        """
        self.tolerance_ = PUBLISHED_TOLERANCE
        return self._fit(X, y, False)

    def partial_fit(self, X, y=None):
        """Go on learning: samples whose error reaches the tolerance join the centers."""
        return self._fit(X, y, self.centers_ is not None)

    def _check_settings(self):
        super()._check_settings()
        if self.tolerance is not None:
            check_number("tolerance", self.tolerance, "(0, inf]", "a positive number")
            self.tolerance_ = self.tolerance

    def _losses(self, predicted: Tensor, y: Tensor) -> Tensor:
        return squared_errors(predicted, y)

    def _regrets(self, few: Tensor, everyone: Tensor) -> Tensor:
        return squared_errors(few, everyone)

    def _smooth(self, predicted: Tensor, y: Tensor) -> Tensor:
        if self.tolerance is None:
            error = float(squared_errors(predicted, y).mean()) ** 0.5
            self.tolerance_ = NOISE_PART * error or PUBLISHED_TOLERANCE
        return predicted

    def _rule(self) -> CondensingRule:
        return CondensingRule(
            kernel=self._kernel(),
            values=lambda y: y,
            evaluate=self._evaluate,
            target=1 - self.target_accuracy,
            rounds=None if self.rule_ == "published" else 1,
            batch_size=self.batch_size,
            max_neighbors=self.max_neighbors,
        )

    def _evaluate(self, mean: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        right = (mean - y).square().sum(1).sqrt() < self.tolerance_
        return ~right, 1 - (mean - y).abs().mean()
