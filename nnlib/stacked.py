"""Stacks in which depth pays: each layer learns from what the one before says of samples that it has not seen."""

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from sklearn.base import clone
from sklearn.utils.validation import check_consistent_length
from torch import Tensor
from tqdm.auto import tqdm

from nnlib.checks import require_count, require_number
from nnlib.inputs import features_of, labels_of, places_of
from nnlib.layers import KINDS, Layered, passed
from nnlib.neighbors import DynamicClassifier, LearnedCenters
from nnlib.seeds import seed_of
from nnlib.shares import Classifier
from nnlib.splits import held_out

KEPT = ("folds", "validation", "seed", "progress")  # settings that a saved stack has beside its layers
LATER = 100  # centers of a later layer, where nothing else is said


class StackedClassifier(Layered):
    """At most `num_layers` classifiers over centers, each on the class probabilities of the one before.

    A layer is fitted on all training samples. What the next one learns from, though, are its probabilities for samples
    left out: those of `folds` further fits, each without one fold, so that training and new samples look alike to it. A
    layer that is right on the share `validation` of the samples, which no layer learns from, no more often than the one
    before, by more than chance would (two standard errors of the difference), is refused, and the stack ends there.
    first: a DynamicClassifier, or a LearnedCenters; None: the former by Euclidean distances. later: the same for the
    layers after it; None: LearnedCenters of softmaxed cosines, since who keeps mistakes as centers keeps mostly noise
    where classes overlap. Fitted: `layers_`, and `validation_scores_`, of each layer tried: one more than there are
    layers where the last was refused. Sources: D. Wolpert, Stacked generalization (1992); the stack: J. Loverich,
    Dynamic and Deep Nearest Neighbors (2023).
    """

    def __init__(
        self,
        num_layers: int = 3,
        first: Classifier | None = None,
        later: Classifier | None = None,
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
        x, labels = features_of(self, X, reset=True), labels_of(y)
        check_consistent_length(x, labels)
        self._check_settings(len(x))
        place, counts = np.unique(labels, return_inverse=True, return_counts=True)[1:]
        held = held_out(torch.from_numpy(place), self.validation, self.seed).numpy()
        if not held.any():
            raise ValueError("y has no class of three samples, of which one could be held out: give more samples")
        (x, held_x), (labels, held_labels) = ((part[~held], part[held]) for part in (x, labels))
        layers, before, self.validation_scores_ = [], None, []
        for number in tqdm(range(self.num_layers), unit=" layers", delay=5, leave=False, disable=not self.progress):
            given = self._layer(number, len(counts))
            layer = clone(given).fit(x, labels)
            guess = passed(layer, held_x)
            right = torch.from_numpy(layer.classes_[guess.argmax(1).cpu().numpy()] == held_labels)
            self.validation_scores_.append(float(right.float().mean()))
            if layers and not _better(right, before):
                break
            layers, before, held_x = [*layers, layer], right, guess
            x = self._left_out(given, x, labels, layer.classes_) if number + 1 < self.num_layers else x
        return self._made_of(layers)

    def _layer(self, number: int, classes: int) -> Classifier:
        given = self.later if number else self.first
        if given is None:
            settings = {"seed": self.seed, "device": self.device, "progress": False}
            if number == 0:
                return DynamicClassifier("euclidean", **settings)
            return LearnedCenters(max(LATER, classes), "cosine_softmax", **settings)
        return given

    def _left_out(self, given: Classifier, x: Shaped[Tensor, "N D"], labels, classes) -> Float[Tensor, "N C"]:
        """Each sample's class probabilities by the fit without its fold; 0 for a class that this fit has not met."""
        guess, fold = torch.zeros(len(x), len(classes), device=x.device), self._folds(labels)
        for number in range(self.folds):
            out = fold == number
            layer = clone(given).fit(x[~out], labels[~out])
            place = places_of(layer.classes_, classes).to(x.device)
            guess[torch.from_numpy(out.nonzero()[0]).to(x.device)[:, None], place] = passed(layer, x[out]).to(guess)
        return guess

    def _folds(self, labels: np.ndarray) -> np.ndarray:
        """Each sample's fold: shuffled, then dealt out class by class, so that folds are alike."""
        order = np.random.default_rng(seed_of(self.seed)).permutation(len(labels))
        order = order[np.unique(labels[order], return_inverse=True)[1].argsort(kind="stable")]
        fold = np.empty_like(order)
        fold[order] = np.arange(len(order)) % self.folds
        return fold

    def _check_settings(self, samples: int) -> None:
        require_count("num_layers", self.num_layers)
        require_number("validation", self.validation, "(0, 0.5]", "a share above 0, at most 0.5")
        if samples < (least := 2 * require_count("folds", self.folds, 2)):
            raise ValueError(
                f"n_samples={samples} for folds={self.folds}: give {least} samples or more, or fewer folds"
            )
        for name in ("first", "later"):
            given = getattr(self, name)
            if given is not None and type(given).__name__ not in KINDS:
                raise ValueError(f"{name}={given!r} can't be a layer: give one of {', '.join(KINDS)}, or None")

    def _settings(self) -> dict:
        kinds = [type(layer).__name__ for layer in self.layers_]
        kept = {name: getattr(self, name) for name in KEPT}
        given = [name for name in ("first", "later") if getattr(self, name) is not None]
        return {"kinds": kinds, "most": self.num_layers, "given": given} | kept

    @classmethod
    def _from_settings(cls, told: dict, layers: list[Classifier]):
        kept = {name: told[name] for name in KEPT if name in told}
        places = {"first": layers[:1], "later": layers[1:]}
        given = {name: clone(part[-1]) for name, part in places.items() if part and name in told.get("given", places)}
        return cls(told.get("most", len(layers)), **given, **kept)


def _better(right: Bool[Tensor, " N"], before: Bool[Tensor, " N"]) -> bool:
    """Whether more are right than before, by more than two standard errors of the difference."""
    gain = right.float() - before.float()
    return float(gain.mean()) > 2 * float(gain.std(correction=0)) / len(gain) ** 0.5
