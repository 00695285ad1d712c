"""The dynamic regressor: a scikit-learn estimator that is also a torch module."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from sklearn.base import RegressorMixin
from sklearn.metrics import r2_score
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from nnlib._common.validation import as_array, check_number, check_targets, like_input
from nnlib.attention import Kernel, attend
from nnlib.neighbors.base import CenterEstimator, CondensingSettings
from nnlib.neighbors.condensing.votes import CondensingRule


@dataclass(eq=False, repr=False)
class DynamicRegressor(CondensingSettings, RegressorMixin, CenterEstimator):
    """Predict values by the weighted mean over all centers: samples that the model got wrong.

    Pictures are published with kernel="influence_cone", tolerance=0.2.

    Parameters
    ----------
    exponent : float, optional
        None for minus the number of features, from -4 (published) to -16: in many dimensions only
        a steep fall lets the near samples count.
    tolerance : float
        The Euclidean error, in the targets' unit, from which a sample is wrong.
    target_accuracy : float
        A batch is learned until its mean absolute error is at most that, as published.
    kernel, epsilon, influence_cone_factor, scales, predictor, batch_size, max_neighbors, passes,
    shuffle, random_state, device, progress
        As DynamicClassifier's, and so are the attributes.

    References
    ----------
    J. Loverich, Dynamic and Deep Nearest Neighbors, 2023.

    Examples
    --------
    >>> model = DynamicRegressor().fit([[0.0], [1.0], [2.0]], [0.0, 2.0, 4.0])
    >>> model.predict([[1.0]]).round(3).tolist()
    [2.0]
    """

    saved_attributes = ("n_features_in_", "y_shape_")

    kernel: str | Kernel = "euclidean"
    exponent: float | None = None
    influence_cone_factor: float = 4.0
    batch_size: int = 256
    target_accuracy: float = 0.8
    tolerance: float = 0.05
    passes: int = 1

    def fit(self, X, y=None):
        """Learn from X [N, D] and targets y [N] or [N, V], or a DataLoader of (x, y) batches.

        Raises ValueError as DynamicClassifier.fit.
        """
        return self._fit(X, y, False)

    def partial_fit(self, X, y=None):
        """Go on learning: samples whose error reaches the tolerance join the centers."""
        return self._fit(X, y, self.centers_ is not None)

    def _encode(self, y, more: bool, classes=None) -> Float[Tensor, "N V"]:
        y = check_targets(y)
        shape = list(y.shape[1:])
        if more and shape != list(self.y_shape_):
            raise ValueError(
                f"y has shape {tuple(y.shape)}: "
                f"give targets [N, *{self.y_shape_}], as it was fitted on"
            )
        self.y_shape_ = shape
        return y.to(torch.float32).reshape(len(y), math.prod(shape))

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
        features = getattr(self, "n_features_in_", 0)  # settings are checked before a fit
        return -float(min(max(features, 4), 16))

    def _rule(self) -> CondensingRule:
        return CondensingRule(
            kernel=self._kernel(),
            values=lambda y: y,
            evaluate=self._evaluate,
            target=1 - self.target_accuracy,
            rounds=None,
            batch_size=self.batch_size,
            max_neighbors=self.max_neighbors,
        )

    def _evaluate(self, mean: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        right = (mean - y).square().sum(1).sqrt() < self.tolerance
        return ~right, 1 - (mean - y).abs().mean()

    def forward(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B V"]:
        """Return the weighted mean of the centers' values, differentiable in x."""
        check_is_fitted(self)
        return attend(x.flatten(1), self.centers_, self.values_, self._kernel())

    def predict(self, X):
        """Return the weighted mean of the centers' values, [N] or [N, V] as the targets were."""
        mean = self._averages(X, self)
        mean = like_input(mean.reshape(-1, *self.y_shape_), X)
        # float64 for arrays, as scikit-learn's regressors return
        return mean if isinstance(X, Tensor) else mean.astype(np.float64)

    def score(self, X, y, sample_weight=None) -> float:
        """Return R^2 of the predictions, as scikit-learn's regressors do."""
        return r2_score(as_array(y), as_array(self.predict(X)), sample_weight=sample_weight)
