"""What stacks of classifiers share once they are fitted: passing samples forward, and folders of layers."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Shaped
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics import accuracy_score
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from nnlib import neighbors
from nnlib.attend import Labels, attend
from nnlib.checks import require_count
from nnlib.files import folder_written_whole
from nnlib.inputs import answer, features_of
from nnlib.models import COLUMNS, ModelError, read_settings, write_settings
from nnlib.shares import Classifier

HEAD, LAYER = "stack.json", "layer_{}.safetensors"
KINDS = ("DynamicClassifier", "LearnedCenters")


class Layered(ClassifierMixin, BaseEstimator, torch.nn.Module):
    """Classifiers over centers, `layers_`, each on the class probabilities of the one before; the last one predicts.

    `splits_`: in so many groups of centers a layer stands for the next, one probability vector each.
    """

    def _made_of(self, layers: list[Classifier], splits: int = 1):
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
            x = grouped(layer, x.flatten(1), self.splits_)
        return self.layers_[-1](x)

    def predict_log_proba(self, X):
        """Logarithms of the class probabilities [N, C]; a class without weight has about -87, not -inf."""
        return answer(self._last("predict_log_proba", X), X)

    def predict_proba(self, X):
        """Each class's share of the last layer's weight, [N, C]."""
        return answer(self._last("predict_proba", X), X)

    def predict(self, X):
        """The class of the largest share, [N]; a tensor for tensors, where the classes are whole numbers."""
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
                x = share if self.splits_ == 1 else passed(layer, x, self.splits_)
        return scores

    def save(self, folder: str | Path) -> None:
        """Write a folder, whole or not at all; raises OSError where it holds anything else or can't be written."""
        check_is_fitted(self)
        settings = self._settings() | {"num_layers": len(self.layers_), "splits": self.splits_}
        settings |= {name: getattr(self, name).tolist() for name in COLUMNS if hasattr(self, name)}
        with folder_written_whole(folder, (HEAD, LAYER.format("*"))) as part:
            for number, layer in enumerate(self.layers_, 1):
                layer.save(part / LAYER.format(number))
            write_settings(part / HEAD, type(self).__name__, settings)

    @classmethod
    def load(cls, folder: str | Path, device: str = "auto"):
        """Read a folder that `save` wrote, onto the device; raises ModelError, naming what is wrong with any other."""
        folder = Path(folder)
        told = read_settings(folder / HEAD, cls.__name__)
        try:
            num_layers, splits = (require_count(name, told.get(name)) for name in ("num_layers", "splits"))
            if (found := len(list(folder.glob(LAYER.format("*"))))) != num_layers:
                raise ValueError(f"it holds {found} layers for num_layers={num_layers}")
            kinds = told.get("kinds", ["DynamicClassifier"] * num_layers)
            if not isinstance(kinds, list) or len(kinds) != num_layers or not set(map(str, kinds)) <= set(KINDS):
                raise ValueError(f"kinds={kinds!r} for num_layers={num_layers}: each is one of {', '.join(KINDS)}")
            paths = [folder / LAYER.format(number) for number in range(1, num_layers + 1)]
            layers = [getattr(neighbors, kind).load(path, device) for kind, path in zip(kinds, paths, strict=True)]
            stack = cls._from_settings(told, layers)._made_of(layers, splits)
            for name in COLUMNS & told.keys():
                setattr(stack, name, np.array(told[name], dtype=object))
            return stack
        except ValueError as error:
            raise ModelError(f"folder={str(folder)!r}: {error}; give one that {cls.__name__}.save wrote") from None

    def _settings(self) -> dict:
        """What `save` keeps beside the layers, of which it writes their number and `splits`."""
        return {}

    @classmethod
    def _from_settings(cls, told: dict, layers: list[Classifier]):
        """A model that isn't fitted, with the settings that were saved."""
        raise NotImplementedError

    def _last(self, method: str, X, *more):
        """What the last layer's method answers for X, passed through the others."""
        check_is_fitted(self)
        x = features_of(self, X, reset=False)
        for layer in self.layers_[:-1]:
            x = passed(layer, x, self.splits_)
        return getattr(self.layers_[-1], method)(x, *more)


def passed(layer: Classifier, x: Shaped[Tensor, "N D"], splits: int = 1) -> Float[Tensor, "N F"]:
    """All samples through a layer, some thousands at a time, as the layer itself predicts."""
    return layer._averages(x, lambda rows: grouped(layer, rows, splits))


def grouped(layer: Classifier, x: Float[Tensor, "B D"], splits: int) -> Float[Tensor, "B F"]:
    """Each group's class probabilities side by side; 0 for a class that a group has no center of."""
    if splits == 1:
        return layer._shares(x)
    if splits > (most := layer.num_neighbors):
        raise ValueError(f"splits={splits} is more than a layer's {most} centers: give at most {most}")
    classes, kernel = len(layer.classes_), layer._kernel()
    groups = zip(layer.centers_.tensor_split(splits), layer.values_.tensor_split(splits), strict=True)
    return torch.cat([attend(x, centers, Labels(labels, classes), kernel) for centers, labels in groups], 1)
