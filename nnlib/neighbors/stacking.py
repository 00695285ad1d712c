"""What stacks of classifiers share once they are fitted: passing samples forward, and folders of layers.

The published stack: layers of dynamic classifiers, each fitted on the outputs of the one before.
Stacks in which depth pays: each layer learns from what the one before says of samples that it has not seen.
"""

from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.metrics import accuracy_score
from sklearn.utils.validation import check_consistent_length, check_is_fitted
from torch import Tensor
from tqdm.auto import tqdm

from nnlib import neighbors
from nnlib._common.files import atomic_folder
from nnlib._common.runtime import check_seed
from nnlib._common.serialization import COLUMNS, ModelError, read_settings, write_settings
from nnlib._common.validation import (
    check_features,
    check_int,
    check_labels,
    check_number,
    encode_labels,
    like_input,
)
from nnlib.attention import Kernel, Labels, attend
from nnlib.neighbors.base import CenterClassifier
from nnlib.neighbors.classifier import DynamicClassifier
from nnlib.neighbors.prototypes import PrototypeClassifier
from nnlib.training import held_out

HEAD, LAYER = "stack.json", "layer_{}.safetensors"
KINDS = ("DynamicClassifier", "PrototypeClassifier")


class BaseStack(ClassifierMixin, BaseEstimator, torch.nn.Module):
    """Classifiers over centers, `layers_`, each on the class probabilities of the one before; the last one predicts.

    `splits_`: in so many groups of centers a layer stands for the next, one probability vector each.
    """

    def _made_of(self, layers: list[CenterClassifier], splits: int = 1):
        for before, layer in pairwise(layers):
            given, taken = splits * len(before.classes_), layer.n_features_in_
            if given != taken or not np.array_equal(before.classes_, layer.classes_):
                raise ValueError(
                    f"a layer gives {given} features and the next takes {taken}, or their classes differ"
                )
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
            x = group_probabilities(layer, x.flatten(1), self.splits_)
        return self.layers_[-1](x)

    def predict_log_proba(self, X):
        """Logarithms of the class probabilities [N, C]; a class without weight has about -87, not -inf."""
        return like_input(self._last("predict_log_proba", X), X)

    def predict_proba(self, X):
        """Each class's share of the last layer's weight, [N, C]."""
        return like_input(self._last("predict_proba", X), X)

    def predict(self, X):
        """The class of the largest share, [N]; a tensor for tensors, where the classes are whole numbers."""
        found = self._last("predict", X)
        return like_input(found, X) if isinstance(found, Tensor) else found

    def score(self, X, y, sample_weight=None) -> float:
        """The share of X [N, D] whose predicted label is y's [N]."""
        return self._last("score", X, y, sample_weight)

    def layer_scores(self, X, y) -> list[float]:
        """The same of each layer's own whole prediction, in one pass."""
        check_is_fitted(self)
        x, scores = check_features(self, X, reset=False), []
        y = y.cpu().numpy() if isinstance(y, Tensor) else y
        for layer in self.layers_:
            share = layer.predict_proba(x)
            scores.append(float(accuracy_score(y, self.classes_[share.argmax(1).cpu().numpy()])))
            if len(scores) < len(self.layers_):
                x = share if self.splits_ == 1 else next_features(layer, x, self.splits_)
        return scores

    def save(self, folder: str | Path) -> None:
        """Write a folder, whole or not at all; raises OSError where it holds anything else or can't be written."""
        check_is_fitted(self)
        settings = self._settings() | {"num_layers": len(self.layers_), "splits": self.splits_}
        settings |= {name: getattr(self, name).tolist() for name in COLUMNS if hasattr(self, name)}
        with atomic_folder(folder, (HEAD, LAYER.format("*"))) as part:
            for number, layer in enumerate(self.layers_, 1):
                layer.save(part / LAYER.format(number))
            write_settings(part / HEAD, type(self).__name__, settings)

    @classmethod
    def load(cls, folder: str | Path, device: str = "auto"):
        """Read a folder that `save` wrote, onto the device; raises ModelError, naming what is wrong with any other."""
        folder = Path(folder)
        told = read_settings(folder / HEAD, cls.__name__)
        try:
            num_layers, splits = (
                check_int(name, told.get(name)) for name in ("num_layers", "splits")
            )
            if (found := len(list(folder.glob(LAYER.format("*"))))) != num_layers:
                raise ValueError(f"it holds {found} layers for num_layers={num_layers}")
            kinds = told.get("kinds", ["DynamicClassifier"] * num_layers)
            if (
                not isinstance(kinds, list)
                or len(kinds) != num_layers
                or not set(map(str, kinds)) <= set(KINDS)
            ):
                raise ValueError(
                    f"kinds={kinds!r} for num_layers={num_layers}: each is one of {', '.join(KINDS)}"
                )
            paths = [folder / LAYER.format(number) for number in range(1, num_layers + 1)]
            layers = [
                getattr(neighbors, kind).load(path, device)
                for kind, path in zip(kinds, paths, strict=True)
            ]
            stack = cls._from_settings(told, layers)._made_of(layers, splits)
            for name in COLUMNS & told.keys():
                setattr(stack, name, np.array(told[name], dtype=object))
            return stack
        except ValueError as error:
            raise ModelError(
                f"folder={str(folder)!r}: {error}; give one that {cls.__name__}.save wrote"
            ) from None

    def _settings(self) -> dict:
        """What `save` keeps beside the layers, of which it writes their number and `splits`."""
        return {}

    @classmethod
    def _from_settings(cls, told: dict, layers: list[CenterClassifier]):
        """A model that isn't fitted, with the settings that were saved."""
        raise NotImplementedError

    def _last(self, method: str, X, *more):
        """What the last layer's method answers for X, passed through the others."""
        check_is_fitted(self)
        x = check_features(self, X, reset=False)
        for layer in self.layers_[:-1]:
            x = next_features(layer, x, self.splits_)
        return getattr(self.layers_[-1], method)(x, *more)


def next_features(
    layer: CenterClassifier, x: Shaped[Tensor, "N D"], splits: int = 1
) -> Float[Tensor, "N F"]:
    """All samples through a layer, some thousands at a time, as the layer itself predicts."""
    return layer._averages(x, lambda rows: group_probabilities(layer, rows, splits))


def group_probabilities(
    layer: CenterClassifier, x: Float[Tensor, "B D"], splits: int
) -> Float[Tensor, "B F"]:
    """Each group's class probabilities side by side; 0 for a class that a group has no center of."""
    if splits == 1:
        return layer._class_probabilities(x)
    if splits > (most := layer.num_neighbors):
        raise ValueError(
            f"splits={splits} is more than a layer's {most} centers: give at most {most}"
        )
    classes, kernel = len(layer.classes_), layer._kernel()
    groups = zip(
        layer.centers_.tensor_split(splits), layer.values_.tensor_split(splits), strict=True
    )
    return torch.cat(
        [attend(x, centers, Labels(labels, classes), kernel) for centers, labels in groups], 1
    )


class DeepClassifier(BaseStack):
    """`num_layers` DynamicClassifiers, each fitted on the class probabilities that the one before gives the same data.

    splits: for the next layer, a layer's centers stand in so many groups (contiguous, nearly equal, in the order they
    were added) of one probability vector each: splits x classes features. The prediction is the last layer's, by all
    its centers. The other settings are each layer's; changed later, they hold from the next fit on. Source: Dynamic and
    Deep Nearest Neighbors (J. Loverich, 2023), whose code takes the groups' bounds from the number of features, not of
    centers, and so leaves most centers out; here every center is in a group. `layers_`: the layers, once fitted.
    Each layer trusts the one before more than new samples bear out; StackedClassifier mends that.
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
        self.influence_cone_factor, self.scales, self.predictor = (
            influence_cone_factor,
            scales,
            predictor,
        )
        self.batch_size, self.target_accuracy, self.max_count = (
            batch_size,
            target_accuracy,
            max_count,
        )
        self.max_neighbors, self.shuffle, self.seed = max_neighbors, shuffle, seed
        self.device, self.progress = device, progress

    def fit(self, X, y=None):
        """Learn from X [N, D] and labels y [N] of any kind: one pass a layer, and the data passed forward anew.

        Raises ValueError as DynamicClassifier.fit, and for more `splits` than a layer has centers to group.
        """
        settings = self.get_params(deep=False)
        num_layers, splits = (
            check_int(name, settings.pop(name)) for name in ("num_layers", "splits")
        )
        x, layers = (
            check_features(self, X, reset=True),
            [DynamicClassifier(**settings) for _ in range(num_layers)],
        )
        for layer in layers[:-1]:
            x = next_features(layer.fit(x, y), x, splits)
        layers[-1].fit(x, y)
        return self._made_of(layers, splits)

    @classmethod
    def _from_settings(cls, told: dict, layers: list[DynamicClassifier]):
        own, given = cls._get_param_names(), layers[0].get_params(deep=False)
        return cls(
            len(layers),
            told["splits"],
            **{name: value for name, value in given.items() if name in own},
        )


KEPT = (
    "folds",
    "validation",
    "seed",
    "progress",
)  # settings that a saved stack has beside its layers
LATER = 100  # centers of a later layer, where nothing else is said


class StackedClassifier(BaseStack):
    """At most `num_layers` classifiers over centers, each on the class probabilities of the one before.

    A layer is fitted on all training samples. What the next one learns from, though, are its probabilities for samples
    left out: those of `folds` further fits, each without one fold, so that training and new samples look alike to it. A
    layer that is right on the share `validation` of the samples, which no layer learns from, no more often than the one
    before, by more than chance would (two standard errors of the difference), is refused, and the stack ends there.
    first: a DynamicClassifier, or a PrototypeClassifier; None: the former by Euclidean distances. later: the same for the
    layers after it; None: PrototypeClassifier of softmaxed cosines, since who keeps mistakes as centers keeps mostly noise
    where classes overlap. Fitted: `layers_`, and `validation_scores_`, of each layer tried: one more than there are
    layers where the last was refused. Sources: D. Wolpert, Stacked generalization (1992); the stack: J. Loverich,
    Dynamic and Deep Nearest Neighbors (2023).
    """

    def __init__(
        self,
        num_layers: int = 3,
        first: CenterClassifier | None = None,
        later: CenterClassifier | None = None,
        folds: int = 5,
        validation: float = 0.1,
        seed: int | None = 0,
        device: str = "auto",
        progress: bool = True,
    ):
        super().__init__()
        self.num_layers, self.first, self.later = num_layers, first, later
        self.folds, self.validation, self.seed = folds, validation, seed
        self.device, self.progress = device, progress

    def __setattr__(self, name: str, value) -> None:
        """Settings that are estimators stay settings: as parts of the module they would be moved and saved with it."""
        (object if name in ("first", "later") else torch.nn.Module).__setattr__(self, name, value)

    def fit(self, X, y=None):
        """Learn from X [N, D] and labels y [N] of any kind: folds + 1 fits a layer, and one of the last.

        Raises ValueError for NaN or infinity, lengths that differ, too few samples, settings without sense.
        """
        x, labels = check_features(self, X, reset=True), check_labels(y)
        check_consistent_length(x, labels)
        self._check_settings(len(x))
        place, counts = np.unique(labels, return_inverse=True, return_counts=True)[1:]
        held = held_out(torch.from_numpy(place), self.validation, self.seed).numpy()
        if not held.any():
            raise ValueError(
                "y has no class of three samples, of which one could be held out: give more samples"
            )
        (x, held_x), (labels, held_labels) = ((part[~held], part[held]) for part in (x, labels))
        layers, before, self.validation_scores_ = [], None, []
        for number in tqdm(
            range(self.num_layers), unit=" layers", delay=5, leave=False, disable=not self.progress
        ):
            given = self._layer(number, len(counts))
            layer = clone(given).fit(x, labels)
            guess = next_features(layer, held_x)
            right = torch.from_numpy(layer.classes_[guess.argmax(1).cpu().numpy()] == held_labels)
            self.validation_scores_.append(float(right.float().mean()))
            if layers and not _better(right, before):
                break
            layers, before, held_x = [*layers, layer], right, guess
            x = (
                self._left_out(given, x, labels, layer.classes_)
                if number + 1 < self.num_layers
                else x
            )
        return self._made_of(layers)

    def _layer(self, number: int, classes: int) -> CenterClassifier:
        given = self.later if number else self.first
        if given is None:
            settings = {"seed": self.seed, "device": self.device, "progress": False}
            if number == 0:
                return DynamicClassifier("euclidean", **settings)
            return PrototypeClassifier(max(LATER, classes), "cosine_softmax", **settings)
        return given

    def _left_out(
        self, given: CenterClassifier, x: Shaped[Tensor, "N D"], labels, classes
    ) -> Float[Tensor, "N C"]:
        """Each sample's class probabilities by the fit without its fold; 0 for a class that this fit has not met."""
        guess, fold = torch.zeros(len(x), len(classes), device=x.device), self._folds(labels)
        for number in range(self.folds):
            out = fold == number
            layer = clone(given).fit(x[~out], labels[~out])
            place = encode_labels(layer.classes_, classes).to(x.device)
            guess[torch.from_numpy(out.nonzero()[0]).to(x.device)[:, None], place] = next_features(
                layer, x[out]
            ).to(guess)
        return guess

    def _folds(self, labels: np.ndarray) -> np.ndarray:
        """Each sample's fold: shuffled, then dealt out class by class, so that folds are alike."""
        order = np.random.default_rng(check_seed(self.seed)).permutation(len(labels))
        order = order[np.unique(labels[order], return_inverse=True)[1].argsort(kind="stable")]
        fold = np.empty_like(order)
        fold[order] = np.arange(len(order)) % self.folds
        return fold

    def _check_settings(self, samples: int) -> None:
        check_int("num_layers", self.num_layers)
        check_number("validation", self.validation, "(0, 0.5]", "a share above 0, at most 0.5")
        if samples < (least := 2 * check_int("folds", self.folds, 2)):
            raise ValueError(
                f"n_samples={samples} for folds={self.folds}: give {least} samples or more, or fewer folds"
            )
        for name in ("first", "later"):
            given = getattr(self, name)
            if given is not None and type(given).__name__ not in KINDS:
                raise ValueError(
                    f"{name}={given!r} can't be a layer: give one of {', '.join(KINDS)}, or None"
                )

    def _settings(self) -> dict:
        kinds = [type(layer).__name__ for layer in self.layers_]
        kept = {name: getattr(self, name) for name in KEPT}
        given = [name for name in ("first", "later") if getattr(self, name) is not None]
        return {"kinds": kinds, "most": self.num_layers, "given": given} | kept

    @classmethod
    def _from_settings(cls, told: dict, layers: list[CenterClassifier]):
        kept = {name: told[name] for name in KEPT if name in told}
        places = {"first": layers[:1], "later": layers[1:]}
        given = {
            name: clone(part[-1])
            for name, part in places.items()
            if part and name in told.get("given", places)
        }
        return cls(told.get("most", len(layers)), **given, **kept)


def _better(right: Bool[Tensor, " N"], before: Bool[Tensor, " N"]) -> bool:
    """Whether more are right than before, by more than two standard errors of the difference."""
    gain = right.float() - before.float()
    return float(gain.mean()) > 2 * float(gain.std(correction=0)) / len(gain) ** 0.5
