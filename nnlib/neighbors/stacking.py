"""Stacks of classifiers over centers, each fitted on the class probabilities of the one before."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float, Shaped
from sklearn.base import BaseEstimator, clone
from sklearn.model_selection import StratifiedKFold, cross_val_predict, train_test_split
from sklearn.utils.validation import check_is_fitted
from torch import Tensor
from tqdm.auto import tqdm

from nnlib._common.runtime import check_seed, torch_defaults
from nnlib._common.serialization import SafetensorsMixin
from nnlib._common.validation import (
    check,
    check_features,
    check_int,
    check_labels,
    check_lengths,
    check_number,
    like_input,
)
from nnlib.attention import Labels, attend
from nnlib.neighbors.base import CenterClassifier, ProbabilisticClassifier
from nnlib.neighbors.classifier import DynamicClassifier
from nnlib.neighbors.dynamic import CondensingSettings
from nnlib.neighbors.prototypes import PrototypeClassifier
from nnlib.neighbors.tuning import is_lower


class BaseStack(ProbabilisticClassifier, SafetensorsMixin, BaseEstimator, torch.nn.Module):
    """Base of the stacks, whose last layer predicts.

    Fitted: `layers_`, and `splits_`, into how many groups of centers each is split for the next.
    """

    saved_attributes = ("n_features_in_", "splits_")
    saved_tensors = ()
    layers_: Sequence[CenterClassifier]

    def __post_init__(self):
        torch.nn.Module.__init__(self)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    @property
    def num_neighbors(self) -> int:
        """The number of centers in all layers."""
        return sum(layer.num_neighbors for layer in getattr(self, "layers_", ()))

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "layers_")

    @torch_defaults()
    def layer_scores(self, X, y) -> list[float]:
        """Return the accuracy of each layer's own whole prediction."""
        check_is_fitted(self)
        x = check_features(self, X, reset=False)
        scores = [self.layers_[0].score(x, y)]
        for before, layer in pairwise(self.layers_):
            x = next_features(before, x, self.splits_)
            scores.append(layer.score(x, y))
        return scores

    def _set_layers(self, layers: list[CenterClassifier], splits: int):
        for before, layer in pairwise(layers):
            outputs = splits * len(before.classes_)
            inputs = layer.n_features_in_
            if outputs != inputs or not np.array_equal(before.classes_, layer.classes_):
                raise ValueError(
                    f"a layer gives {outputs} features and the next takes {inputs}, "
                    "or their classes differ"
                )
        self.layers_ = torch.nn.ModuleList(layers)
        self.splits_ = splits
        self.n_features_in_ = layers[0].n_features_in_
        self.classes_ = layers[0].classes_
        return self

    def _submodels(self) -> dict[str, CenterClassifier]:
        return {f"layer_{number}": layer for number, layer in enumerate(self.layers_, 1)}

    def _restore_submodels(self, submodels: dict[str, CenterClassifier]) -> None:
        self._set_layers(list(submodels.values()), self.splits_)

    def _restore(self, tensors: dict[str, Tensor]) -> None:
        if tensors or not hasattr(self, "layers_"):
            raise ValueError("tensors and layers don't belong together")

    def _class_probabilities(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        for layer in self.layers_[:-1]:
            x = group_probabilities(layer, x, self.splits_)
        return self.layers_[-1]._class_probabilities(x)

    def _probabilities(self, X) -> Float[Tensor, "N C"]:
        check_is_fitted(self)
        x = check_features(self, X, reset=False)
        return self.layers_[0]._averages(x, self._class_probabilities)


def next_features(
    layer: CenterClassifier, x: Shaped[Tensor, "N D"], splits: int = 1
) -> Float[Tensor, "N F"]:
    """Pass all samples through a layer, some thousands at a time, as the layer itself predicts."""
    return layer._averages(x, lambda rows: group_probabilities(layer, rows, splits))


def group_probabilities(
    layer: CenterClassifier, x: Float[Tensor, "B D"], splits: int
) -> Float[Tensor, "B F"]:
    """Concatenate the class probabilities by each group of centers, 0 where it lacks a class."""
    if splits == 1:
        return layer._class_probabilities(x)
    most = layer.num_neighbors
    check(splits <= most, "splits", splits, f"at most a layer's {most} centers")
    groups = zip(
        layer.centers_.tensor_split(splits), layer.values_.tensor_split(splits), strict=True
    )
    x = layer._comparable(x)
    kernel = layer._kernel()
    classes = len(layer.classes_)
    return torch.cat([attend(x, c, Labels(labels, classes), kernel) for c, labels in groups], 1)


@dataclass(eq=False, repr=False)
class _PublishedStack(BaseStack):
    num_layers: int = 3
    splits: int = 1


@dataclass(eq=False, repr=False)
class DeepClassifier(CondensingSettings, _PublishedStack):
    """Stack DynamicClassifiers, each fitted on what the one before says of the same data.

    Each layer trusts the one before more than new samples bear out: StackedClassifier mends that.

    Parameters
    ----------
    num_layers : int
    splits : int
        For the next layer, centers are split in so many contiguous groups of one probability
        vector each. (The published code bounds them by the number of features: most are left out.)
    kernel, exponent, epsilon, influence_cone_factor, scales, predictor, batch_size, max_count, ...
        Each layer's, as DynamicClassifier's; changed later, they hold from the next fit on.

    References
    ----------
    J. Loverich, Dynamic and Deep Nearest Neighbors, 2023.

    Examples
    --------
    >>> model = DeepClassifier(2, kernel="euclidean").fit([[0.0], [1.0], [5.0]], [0, 0, 1])
    >>> model.predict([[4.0]]).tolist()
    [1]
    """

    max_count: int = 3

    @torch_defaults(gradients=True)
    def fit(self, X, y=None):
        """Learn from X [N, D] and labels y [N] of any kind, one pass a layer.

        Raises ValueError as DynamicClassifier.fit, and for more `splits` than a layer has centers.
        """
        settings = self.get_params(deep=False)
        num_layers = check_int("num_layers", settings.pop("num_layers"))
        splits = check_int("splits", settings.pop("splits"))
        x = check_features(self, X, reset=True)
        settings["rule"] = "published"
        layers = [DynamicClassifier(**settings).fit(x, y)]
        while len(layers) < num_layers:
            x = next_features(layers[-1], x, splits)
            layers.append(DynamicClassifier(**settings).fit(x, y))
        return self._set_layers(layers, splits)


@dataclass(eq=False, repr=False)
class StackedClassifier(BaseStack):
    """Stack classifiers over centers, each fitted on probabilities for samples left out.

    The next layer learns from further fits, each without one fold, for that fold: so training and
    new samples look alike to it. A layer that is not better on validation samples than the one
    before, by two standard errors of the difference, is refused and ends the stack.

    Parameters
    ----------
    num_layers : int
        At most.
    first, later : DynamicClassifier or PrototypeClassifier, optional
        None for a DynamicClassifier by Euclidean distances, and PrototypeClassifiers of softmaxed
        cosines.
    folds, validation
        Number of folds, and fraction of the samples that no layer learns from.

    Attributes
    ----------
    layers_, validation_scores_
        The layers, and the accuracy of each one tried: one more where the last was refused.

    References
    ----------
    D. Wolpert, Stacked generalization, 1992.

    Examples
    --------
    >>> X = [[i % 2 + i / 100] for i in range(40)]
    >>> model = StackedClassifier(2, folds=2, progress=False).fit(X, [i % 2 for i in range(40)])
    >>> model.predict([[0.1]]).tolist()
    [0]
    """

    num_layers: int = 3
    first: CenterClassifier | None = None
    later: CenterClassifier | None = None
    folds: int = 5
    validation: float = 0.1
    random_state: int | None = 0
    device: str = "auto"
    progress: bool = True

    def __setattr__(self, name: str, value) -> None:
        """Hold estimators that are settings outside the module, which would save and move them."""
        owner = object if name in ("first", "later") else torch.nn.Module
        owner.__setattr__(self, name, value)

    @torch_defaults(gradients=True)
    def fit(self, X, y=None):
        """Learn from X [N, D] and labels y [N] of any kind: folds + 1 fits a layer.

        Raises ValueError for NaN or infinity, lengths that differ, too few samples, settings
        without sense.
        """
        x = check_features(self, X, reset=True)
        labels = check_labels(y)
        check_lengths(x, labels)
        self._check_settings(len(x))
        seed = check_seed(self.random_state, "random_state")
        train, held = self._split(labels, seed)
        held_x = x[held]
        held_labels = labels[held]
        x = x[train]
        labels = labels[train]
        classes = np.unique(labels)
        folds = StratifiedKFold(self.folds, shuffle=True, random_state=seed)
        layers: list[CenterClassifier] = []
        wrong_before = torch.ones(len(held), dtype=torch.float64)
        self.validation_scores_ = []
        bar = {"unit": " layers", "delay": 5, "leave": False, "disable": not self.progress}
        for number in tqdm(range(self.num_layers), **bar):
            unfitted = self._unfitted(number, len(classes), seed)
            layer = clone(unfitted).fit(x, labels)
            held_x = next_features(layer, held_x)
            right = classes[held_x.argmax(1).cpu().numpy()] == held_labels
            self.validation_scores_.append(float(right.mean()))
            wrong = torch.from_numpy(~right).to(torch.float64)
            if layers and not is_lower(wrong, wrong_before, errors=2.0):
                break
            layers.append(layer)
            wrong_before = wrong
            if number + 1 < self.num_layers:  # 0 for a class that a fold's fit lacks
                rows = like_input(x, None)
                left_out = {"cv": folds, "method": "predict_proba"}
                x = torch.from_numpy(cross_val_predict(unfitted, rows, labels, **left_out))
        return self._set_layers(layers, 1)

    def _split(self, labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw samples to learn from, and some of each class of three or more to hold out."""
        index, counts = np.unique(labels, return_inverse=True, return_counts=True)[1:]
        common = np.flatnonzero(counts[index] >= 3)
        if len(common) == 0:
            raise ValueError(
                "y has no class of three samples, of which one could be held out: give more samples"
            )
        size = max(round(self.validation * len(common)), int((counts >= 3).sum()))
        _, held = train_test_split(
            common, test_size=size, stratify=labels[common], random_state=seed
        )
        return np.setdiff1d(np.arange(len(labels)), held), np.sort(held)

    def _unfitted(self, number: int, classes: int, seed: int) -> CenterClassifier:
        layer = self.later if number else self.first
        if layer is not None:
            return layer
        settings: dict = {"random_state": seed, "device": self.device, "progress": False}
        if number == 0:
            return DynamicClassifier("euclidean", rule="published", **settings)
        settings["scaling"] = "none"  # probabilities have one unit
        return PrototypeClassifier(max(100, classes), "cosine_softmax", **settings)

    def _check_settings(self, samples: int) -> None:
        check_int("num_layers", self.num_layers)
        check_number("validation", self.validation, "(0, 0.5]", "a fraction, at most 0.5")
        least = 2 * check_int("folds", self.folds, 2)
        check(samples >= least, "n_samples", samples, f"{least} or more, or fewer folds")
        for name in ("first", "later"):
            layer = getattr(self, name)
            wanted = "a DynamicClassifier or PrototypeClassifier, or None"
            check(layer is None or isinstance(layer, CenterClassifier), name, layer, wanted)
