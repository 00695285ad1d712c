"""Layers of dynamic classifiers, each fitted on the outputs of the one before."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Shaped
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics import accuracy_score
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from nnlib.attend import Labels, attend
from nnlib.files import folder_written_whole
from nnlib.inputs import answer, features_of, require_count
from nnlib.kernels import Kernel
from nnlib.models import ModelError, read_settings, write_settings
from nnlib.neighbors import DynamicClassifier

HEAD, LAYER = "stack.json", "layer_{}.safetensors"


class DeepClassifier(ClassifierMixin, BaseEstimator, torch.nn.Module):
    """`num_layers` DynamicClassifiers, each fitted on the class probabilities that the one before gives the same data.

    splits: for the next layer, a layer's centers stand in so many groups (contiguous, nearly equal, in the order they
    were added) of one probability vector each: splits x classes features. The prediction is the last layer's, by all
    its centers. The other settings are each layer's; changed later, they hold from the next fit on. Source: Dynamic and
    Deep Nearest Neighbors (J. Loverich, 2023), whose code takes the groups' bounds from the number of features, not of
    centers, and so leaves most centers out; here every center is in a group. `layers_`: the layers, once fitted.
    """

    def __init__(
        self,
        num_layers: int = 3,
        splits: int = 1,
        kernel: str | Kernel = "cosine",
        exponent: float = -4.0,
        epsilon: float = 1e-6,
        influence_cone_factor: float = 2.0,
        scales: int = 4,
        predictor: str = "interpolation",
        batch_size: int = 64,
        target_accuracy: float = 0.9,
        max_count: int = 3,
        max_neighbors: int = 100_000,
        shuffle: bool = True,
        seed: int | None = 0,
        device: str = "auto",
        progress: bool = True,
    ):
        super().__init__()
        self.num_layers, self.splits = num_layers, splits
        self.kernel, self.exponent, self.epsilon = kernel, exponent, epsilon
        self.influence_cone_factor, self.scales, self.predictor = influence_cone_factor, scales, predictor
        self.batch_size, self.target_accuracy, self.max_count = batch_size, target_accuracy, max_count
        self.max_neighbors, self.shuffle, self.seed = max_neighbors, shuffle, seed
        self.device, self.progress = device, progress

    def fit(self, X, y=None):
        """Learn from X [N, D] and labels y [N] of any kind: one pass a layer, and the data passed forward anew.

        Raises ValueError as DynamicClassifier.fit, and for more `splits` than a layer has centers to group.
        """
        settings = self.get_params(deep=False)
        num_layers, splits = (require_count(name, settings.pop(name)) for name in ("num_layers", "splits"))
        x, layers = features_of(self, X, reset=True), [DynamicClassifier(**settings) for _ in range(num_layers)]
        for layer in layers[:-1]:
            x = _passed(layer.fit(x, y), x, splits)
        layers[-1].fit(x, y)
        return self._made_of(layers, splits)

    def _made_of(self, layers: list[DynamicClassifier], splits: int):
        for before, layer in pairwise(layers):
            given, taken = splits * len(before.classes_), layer.n_features_in_
            if given != taken or not np.array_equal(before.classes_, layer.classes_):
                raise ValueError(f"a layer gives {given} features and the next takes {taken}, or their classes differ")
        self.layers_, self.splits_ = torch.nn.ModuleList(layers), splits
        self.n_features_in_, self.classes_ = layers[0].n_features_in_, layers[0].classes_
        return self

    @property
    def num_neighbors(self) -> int:
        """How many centers there are in all layers."""
        return sum(layer.num_neighbors for layer in getattr(self, "layers_", ()))

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "layers_")

    def forward(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        """Logarithms of the class probabilities, differentiable in x."""
        check_is_fitted(self)
        for layer in self.layers_[:-1]:
            x = _grouped(layer, x.flatten(1), self.splits_)
        return self.layers_[-1](x)

    def predict_log_proba(self, X):
        """Logarithms of the class probabilities [N, C]; a class without weight has about -87, not -inf."""
        return answer(self._last("predict_log_proba", X), X)

    def predict_proba(self, X):
        """Each class's share of the last layer's weight, [N, C]."""
        return answer(self._last("predict_proba", X), X)

    def predict(self, X):
        """The class of the largest share, [N]; a tensor for tensors, where the classes are numbers."""
        found = self._last("predict", X)
        return answer(found, X) if isinstance(found, Tensor) else found

    def score(self, X, y, sample_weight=None) -> float:
        """The share of X [N, D] whose predicted label is y's [N]."""
        return self._last("score", X, y, sample_weight)

    def layer_scores(self, X, y) -> list[float]:
        """The same of each layer's own whole prediction, in one pass."""
        check_is_fitted(self)
        x, scores = features_of(self, X, reset=False), []
        y = y.cpu().numpy() if isinstance(y, Tensor) else y
        for layer in self.layers_:
            share = layer.predict_proba(x)
            scores.append(float(accuracy_score(y, self.classes_[share.argmax(1).cpu().numpy()])))
            if len(scores) < len(self.layers_):
                x = share if self.splits_ == 1 else _passed(layer, x, self.splits_)
        return scores

    def save(self, folder: str | Path) -> None:
        """Write a folder, whole or not at all; raises OSError where it holds anything else or can't be written."""
        check_is_fitted(self)
        with folder_written_whole(folder, (HEAD, LAYER.format("*"))) as part:
            for number, layer in enumerate(self.layers_, 1):
                layer.save(part / LAYER.format(number))
            write_settings(part / HEAD, "DeepClassifier", {"num_layers": len(self.layers_), "splits": self.splits_})

    @classmethod
    def load(cls, folder: str | Path, device: str = "auto"):
        """Read a folder that `save` wrote, onto the device; raises ModelError, naming what is wrong with any other."""
        folder = Path(folder)
        told = read_settings(folder / HEAD, "DeepClassifier")
        try:
            num_layers, splits = (require_count(name, told.get(name)) for name in ("num_layers", "splits"))
            if (found := len(list(folder.glob(LAYER.format("*"))))) != num_layers:
                raise ValueError(f"it holds {found} layers for num_layers={num_layers}")
            layers = [DynamicClassifier.load(folder / LAYER.format(n + 1), device) for n in range(num_layers)]
            own, given = cls._get_param_names(), layers[0].get_params(deep=False)
            settings = {name: value for name, value in given.items() if name in own}
            return cls(num_layers, splits, **settings)._made_of(layers, splits)
        except ValueError as error:
            raise ModelError(f"folder={str(folder)!r}: {error}; give one that DeepClassifier.save wrote") from None

    def _last(self, method: str, X, *more):
        """What the last layer's method answers for X, passed through the others."""
        check_is_fitted(self)
        x = features_of(self, X, reset=False)
        for layer in self.layers_[:-1]:
            x = _passed(layer, x, self.splits_)
        return getattr(self.layers_[-1], method)(x, *more)


def _passed(layer: DynamicClassifier, x: Shaped[Tensor, "N D"], splits: int) -> Float[Tensor, "N F"]:
    """All samples through a layer, some thousands at a time, as the layer itself predicts."""
    return layer._averages(x, lambda rows: _grouped(layer, rows, splits))


def _grouped(layer: DynamicClassifier, x: Float[Tensor, "B D"], splits: int) -> Float[Tensor, "B F"]:
    """Each group's class probabilities side by side; 0 for a class that a group has no center of."""
    if splits > (most := layer.num_neighbors):
        raise ValueError(f"splits={splits} is more than a layer's {most} centers: give at most {most}")
    classes, kernel = len(layer.classes_), layer._kernel()
    groups = zip(layer.centers_.tensor_split(splits), layer.values_.tensor_split(splits), strict=True)
    return torch.cat([attend(x, centers, Labels(labels, classes), kernel) for centers, labels in groups], 1)
