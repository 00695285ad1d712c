"""Linear projections in closed form: onto the axes that samples vary along, and onto what tells classes apart.

Fitted on training samples alone, in tensors, on any device.
"""

import numpy as np
import torch
from jaxtyping import Float, Shaped
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_consistent_length, check_is_fitted
from torch import Tensor
from torch.nn.functional import one_hot

from nnlib.checks import require_count, require_number
from nnlib.device import device_of
from nnlib.frames import wide
from nnlib.inputs import BLOCK_NUMBERS, answer, features_of, labels_of, places_of
from nnlib.models import Saved

GRID = [10 ** (power / 2) for power in range(-10, 5)]  # ridges tried, in shares of the features' mean variance
MOST = 64  # axes, where their number is left open
NONE = 1e-30  # what a variance of 0 counts as where it divides


class Projection(Saved, ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """What both projections share: x less the mean, times `axes_`, plus `offset_`."""

    saved_tensors = ("mean_", "axes_", "offset_")

    def transform(self, X) -> Float[Tensor, "N K"]:
        """The projected rows in float32, on the device where X lies."""
        check_is_fitted(self)
        x = features_of(self, X, reset=False)
        parts = [self._centered(part.to(self.mean_.device)) @ self.axes_ + self.offset_ for part in _parts(x)]
        return answer(torch.cat(parts), X)

    @property
    def _n_features_out(self) -> int:
        return self.axes_.shape[1]

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []  # float32 whatever comes
        return tags

    def _taken(self, X) -> Shaped[Tensor, "N D"]:
        """The training samples on the device, two of them at least, their mean measured."""
        x = features_of(self, X, reset=True).to(device_of(self.device))
        if len(x) < 2:
            raise ValueError("X has n_samples=1, which varies along no axis: give two or more")
        self.mean_ = (sum(part.to(wide(part)).sum(0) for part in _parts(x)) / len(x)).float()
        return x

    def _centered(self, part: Shaped[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        return part.float() - self.mean_

    def _axes(self, x: Shaped[Tensor, "N D"]) -> tuple[Float[Tensor, " D"], Float[Tensor, "D D"]]:
        """The variances along the axes of x, the smallest first, and the axes, one a column."""
        squares = sum((rows := self._centered(part)).T @ rows for part in _parts(x)) / len(x)
        if not squares.isfinite().all():
            raise ValueError("X's squares are more than float32 holds: divide it by its deviation first")
        variances, axes = torch.linalg.eigh(squares.cpu().double())
        return variances.clamp(min=0).float().to(x.device), axes.float().to(x.device)


class PrincipalComponents(Projection):
    """Samples [N, D] to their `dim` coordinates [N, dim] along the axes of largest variance, the largest first.

    dim: None for as many as there can be, 64 at most. whiten: divide each by its deviation, to whose square `floor`
    times the mean variance of all axes is added, so that axes of mere noise stay small. Fitted: `mean_`, `axes_` [D,
    dim], and `share_`, of the variance that is kept.
    """

    saved_attributes = ("n_features_in_", "share_")

    def __init__(self, dim: int | None = None, whiten: bool = False, floor: float = 1e-3, device: str = "auto"):
        self.dim, self.whiten, self.floor, self.device = dim, whiten, floor, device

    def fit(self, X, y=None):
        """Find the axes; raises ValueError for NaN, or more of them than there are samples or features."""
        x = self._taken(X)
        dim, most = self.dim, min(x.shape)
        if require_count("dim", dim := min(most, MOST) if dim is None else dim) > most:
            raise ValueError(f"dim={dim} of {x.shape[0]} samples of {x.shape[1]} features: give at most {most}")
        require_number("floor", self.floor, "[0, inf)", "0 or more")
        variances, axes = (part.flip(-1) for part in self._axes(x))
        self.share_ = float(variances[:dim].sum() / variances.sum().clamp(min=NONE))
        if self.whiten:
            axes = axes * (variances + self.floor * variances.mean()).clamp(min=NONE).rsqrt()
        self.axes_, self.offset_ = axes[:, :dim].contiguous(), torch.zeros((), device=x.device)
        return self


class RidgeProjection(Projection):
    """Samples [N, D] to [N, C]: guesses by regularised least squares at whether each is of a class, 1, or not, 0.

    ridge: added to the variances, in shares of their mean; None: whichever of a grid guesses best for samples left out.
    `fit_transform` gives each training sample the guess of the fit without it (exactly, by the leave-one-out identity,
    means and ridge being those of all samples), so that who learns from the guesses sees the errors that new samples
    have. Fitted: `mean_`, `axes_` [D, C], `offset_` [C], `classes_`, `ridge_`, and `errors_`, the mean square of the
    guesses left out, by ridge.
    Source of the identity: D. Allen, The relationship between variable selection and data augmentation (1974).
    """

    saved_attributes = ("n_features_in_", "classes_", "ridge_")

    def __init__(self, ridge: float | None = None, device: str = "auto"):
        self.ridge, self.device = ridge, device

    def fit(self, X, y=None):
        """Learn from labels y [N] of any kind; raises ValueError for NaN, lengths, or a ridge that isn't positive."""
        self._fit(X, y)
        return self

    def fit_transform(self, X, y=None, **unused) -> Float[Tensor, "N C"]:
        """The guesses for the training samples, each by the fit without it."""
        return answer(self._fit(X, y), X)

    def _fit(self, X, y) -> Float[Tensor, "N C"]:
        if self.ridge is not None:
            require_number("ridge", self.ridge, "(0, inf)", "a positive number, or None")
        x, y = self._taken(X), labels_of(y)
        check_consistent_length(x, y)
        self.classes_ = np.unique(y)
        truth = one_hot(places_of(y, self.classes_), len(self.classes_)).float().to(x.device)
        self.offset_ = truth.mean(0)
        pairs = list(zip(_parts(x), _parts(truth, len(_parts(x)[0])), strict=True))
        variances, axes = self._axes(x)
        along = axes.T @ sum(self._centered(part).T @ (own - self.offset_) for part, own in pairs) / len(x)
        grid = GRID if self.ridge is None else [self.ridge]
        inverses = 1 / (variances + torch.tensor(grid, device=x.device)[:, None] * variances.mean().clamp(min=NONE))
        found = torch.cat([self._left_out(part, own, axes, along, inverses, len(x)) for part, own in pairs], 1)
        errors = (found - truth).square().mean((1, 2))
        best = int(errors.argmin())
        self.ridge_, self.errors_ = grid[best], dict(zip(grid, errors.tolist(), strict=True))
        self.axes_ = axes @ (inverses[best, :, None] * along)
        return found[best]

    def _left_out(self, part, own, axes, along, inverses, samples: int) -> Float[Tensor, "R B C"]:
        """For each ridge, what a fit without a sample guesses for it: the guess less its own pull.

        The mean keeps the sample's share: without it guesses that say nothing would still tell the label, by being low.
        """
        rows = self._centered(part) @ axes
        guess = torch.stack([rows @ (inverse[:, None] * along) for inverse in inverses]) + self.offset_
        pull = (rows.square() @ inverses.T / samples).T.clamp(max=1 - 1e-6)[..., None]
        return (guess - pull * own) / (1 - pull)


def _parts(x: Shaped[Tensor, "N D"], rows: int | None = None) -> tuple[Tensor, ...]:
    """Some rows at a time."""
    return x.split(rows or max(1, BLOCK_NUMBERS // x.shape[1]))
