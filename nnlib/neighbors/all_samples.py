"""Estimators in which all samples vote: columns and neighbors are chosen by leaving samples out."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from nnlib._common.runtime import check_seed, resolve_device, torch_defaults
from nnlib._common.validation import (
    check_choice,
    check_features,
    check_int,
    check_labels,
    check_lengths,
    encode_labels,
    storage_dtype,
)
from nnlib.attention import InverseDistance, Kernel, Labels, UniformKNN, attend
from nnlib.neighbors.base import CenterClassifier, CenterEstimator
from nnlib.neighbors.columns import SCALINGS
from nnlib.neighbors.regressor import CenterRegressor
from nnlib.neighbors.tuning import (
    best_shrink,
    class_losses,
    shrink,
    squared_errors,
    tune,
)

WEIGHTS = ("auto", "uniform", "distance")
LEAVING_OUT = 2000  # samples that choose how far probabilities are shrunk


@dataclass(eq=False, repr=False)
class NeighborsSettings:
    """Settings of the estimators in which all samples vote."""

    n_neighbors: int | None = None
    weights: str | Kernel = "auto"
    scaling: str = "auto"
    random_state: int | None = 0
    device: str = "auto"


class AllSamplesEstimator(CenterEstimator):
    """A weighted average over all samples, by a kernel that a fit chooses."""

    weights: str | Kernel
    n_neighbors: int | None
    scaling: str

    def _base(self) -> Kernel | None:
        """Return the kernel as far as settings name one; raise ValueError where they can't."""
        if isinstance(self.weights, Kernel):
            return self.weights
        check_choice("weights", self.weights, WEIGHTS)
        if self.n_neighbors is None:
            return InverseDistance() if self.weights == "uniform" else None
        if self.weights == "distance":
            raise ValueError(
                f"n_neighbors={self.n_neighbors!r} with weights='distance', by which all samples "
                "count: give n_neighbors=None, or weights='uniform'"
            )
        return UniformKNN(check_int("n_neighbors", self.n_neighbors))

    def _remember(self, x: Shaped[Tensor, "N D"], values: Float[Tensor, "N V"], losses) -> None:
        """Keep all samples, in the columns by which left-out ones are predicted best."""
        check_choice("scaling", self.scaling, SCALINGS)
        seed = check_seed(self.random_state, "random_state")
        inverse_only = self.weights == "distance"
        columns, kernel = tune(x, values, losses, seed, self.scaling, self._base(), inverse_only)
        self._set_columns(columns)
        rows = columns.apply(x)
        self.centers_ = rows.to(values.device, storage_dtype(rows))
        self.kernel_ = kernel


@dataclass(eq=False, repr=False)
class NeighborsClassifier(NeighborsSettings, CenterClassifier, AllSamplesEstimator):
    """Predict classes by the votes of all training samples, or of the nearest of them.

    By default leaving each sample out chooses the columns' weights (as they are, over their
    deviation, or learned by gradient), the number of neighbors or the fall of their weight, and
    how far probabilities are shrunk towards even ones.

    Parameters
    ----------
    n_neighbors : int, optional
        None to choose it.
    weights : {"auto", "uniform", "distance"} or Kernel
        The nearest samples alike, all by their inverse distance, or what predicts better.
    scaling : {"auto", "deviation", "none"}
        Of the columns. Pixels (uint8) stay as they are.
    random_state, device
        Draws the samples that are left out, where there are many; "auto" takes a GPU.

    Attributes
    ----------
    kernel_, offset_, column_weights_
        The kernel chosen; samples are compared in columns less `offset_` times the weights [D].
    centers_, values_, classes_
        The samples [N, D] so, their class numbers [N], and labels [C].

    References
    ----------
    J. Goldberger et al., Neighbourhood Components Analysis, 2004.

    Examples
    --------
    >>> model = NeighborsClassifier(1).fit([[0.0], [1.0], [5.0]], ["a", "a", "b"])
    >>> model.predict([[4.0]]).tolist()
    ['b']
    """

    saved_attributes = ("n_features_in_", "classes_", "kernel_", "shrinkage_")

    @torch_defaults(gradients=True)
    def fit(self, X, y=None):
        """Learn from X [N, D] and labels y [N] of any kind.

        Raises ValueError for NaN or infinity, lengths that differ, settings without sense.
        """
        x = check_features(self, X, reset=True)
        labels = check_labels(y)
        check_lengths(x, labels)
        self.classes_ = np.unique(labels)
        numbers = encode_labels(labels, self.classes_).to(resolve_device(self.device))
        values = torch.nn.functional.one_hot(numbers, len(self.classes_)).to(torch.float32)
        self._remember(x, values, class_losses)
        self.values_ = numbers
        step = -(-len(numbers) // LEAVING_OUT)
        self.shrinkage_ = self._choose_shrinkage(values, step)
        return self

    def _choose_shrinkage(self, values: Float[Tensor, "N C"], step: int) -> float:
        rows = torch.arange(0, len(values), step, device=values.device)
        if len(values) == 1:
            return 0.0
        left_out = attend(self.centers_[rows], self.centers_, values, self.kernel_, rows)
        return best_shrink(left_out, values[rows])

    def _class_probabilities(self, x: Shaped[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        labels = Labels(self.values_, len(self.classes_))
        votes = attend(self._comparable(x), self.centers_, labels, self.kernel_)
        return shrink(votes, self.shrinkage_)


@dataclass(eq=False, repr=False)
class NeighborsRegressor(NeighborsSettings, CenterRegressor, AllSamplesEstimator):
    """Predict values by the weighted mean over all training samples, or the nearest of them.

    Columns and neighbors are chosen by leaving samples out, as NeighborsClassifier's.

    Parameters
    ----------
    n_neighbors, weights, scaling, random_state, device
        As NeighborsClassifier's, and so are the attributes.

    References
    ----------
    K. Weinberger and G. Tesauro, Metric Learning for Kernel Regression, 2007.

    Examples
    --------
    >>> model = NeighborsRegressor(1).fit([[0.0], [1.0], [5.0]], [0.0, 2.0, 4.0])
    >>> model.predict([[4.0]]).tolist()
    [4.0]
    """

    saved_attributes = ("n_features_in_", "y_shape_", "kernel_")

    @torch_defaults(gradients=True)
    def fit(self, X, y=None):
        """Learn from X [N, D] and targets y [N] or [N, V].

        Raises ValueError as NeighborsClassifier.fit.
        """
        x = check_features(self, X, reset=True)
        values = self._encode(y, False).to(resolve_device(self.device))
        check_lengths(x, values)
        self._remember(x, values, squared_errors)
        self.values_ = values
        return self
