"""The dynamic classifier: a scikit-learn estimator that is also a torch module."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int64
from sklearn.utils.validation import check_consistent_length
from torch import Tensor

from nnlib._common.validation import (
    as_array,
    check_features,
    check_labels,
    encode_labels,
    is_stream,
)
from nnlib.attention import Kernel, Labels, attend
from nnlib.neighbors.base import CenterClassifier
from nnlib.neighbors.condensing.votes import CondensingRule


class DynamicClassifier(CenterClassifier):
    """Classes by the summed weight of all centers, which are the samples that it got wrong while it learned.

    kernel: a published kernel_type ("cosine", "euclidean", "euclidian_pyramid", "influence_cone") or a Kernel, with
    `exponent`, `epsilon` (in X's unit), `influence_cone_factor` and `scales` for those that have them. "cosine" is for
    pixels and counts: as published it takes x and -x for one, and no account of lengths. Else give "euclidean".
    predictor: "interpolation", or "nearest" for the class of the largest weight. A batch of `batch_size` is learned
    until `target_accuracy` of it is right, in at most `max_count` rounds; learning ends once there are more than
    `max_neighbors` centers, a batch more at most. Where classes overlap, samples that contradict each other join again
    and again: PrototypeClassifier does without. passes: over the data, each in another order where they are shuffled, until
    one adds no sample that wasn't a center; with predictor="nearest" and batch_size=1 that is P. Hart's condensed
    nearest neighbor rule (1968). The rule and its settings: Dynamic and Deep Nearest Neighbors (J. Loverich, 2023).
    """

    def __init__(
        self,
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
        passes: int = 1,
    ):
        super().__init__()
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
        self.passes = passes

    def fit(self, X, y=None, classes: Sequence | None = None):
        """Learn from X [N, D] and labels y [N] of any kind, in one pass over shuffled batches, or as the settings say.

        X may be a DataLoader of (x, y) batches, taken in its own order; `classes` then names all labels there are.
        Raises ValueError for NaN or infinity, lengths that differ, labels outside `classes`, settings without sense.
        """
        return self._fit(X, y, classes, more=False)

    def partial_fit(self, X, y=None, classes: Sequence | None = None):
        """Go on learning: what the model gets wrong of X, y joins its centers. The first call needs `classes`.

        Samples of earlier calls aren't looked at again, so some of them may come out wrong.
        """
        more = self.centers_ is not None
        if (
            more
            and classes is not None
            and not np.array_equal(np.unique(as_array(classes)), self.classes_)
        ):
            raise ValueError(
                f"classes={list(classes)!r} is not what it was fitted on: give {self.classes_.tolist()}"
            )
        if not more and classes is None:
            raise ValueError(
                "classes must be passed on the first call to partial_fit: give all labels there will be"
            )
        return self._fit(X, y, None if more else classes, more)

    def _fit(self, X, y, classes, more: bool):
        self._check_settings()
        if is_stream(X):
            if not more and classes is None:
                raise ValueError(
                    "classes=None with a stream of batches: give all labels there will be"
                )
            self.classes_ = self.classes_ if more else np.unique(as_array(classes))
            self._learn_stream(X, more)
            return self
        x = check_features(self, X, reset=not more)
        y = check_labels(y)
        check_consistent_length(x, y)
        if not more:
            self.classes_ = np.unique(y if classes is None else as_array(classes))
        self._learn(x, self._encoded(y, more), more)
        return self

    def _encoded(self, y, more: bool) -> Int64[Tensor, " N"]:
        return encode_labels(y, self.classes_)

    def _rule(self) -> CondensingRule:
        classes = len(self.classes_)
        return CondensingRule(
            values=lambda y: torch.nn.functional.one_hot(y, classes).to(torch.float32),
            evaluate=_misclassified,
            target=self.target_accuracy,
            rounds=self.max_count,
            batch_size=self.batch_size,
            max_neighbors=self.max_neighbors,
        )

    def _class_probabilities(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        return attend(x, self.centers_, Labels(self.values_, len(self.classes_)), self._kernel())


def _misclassified(share: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    wrong = share.argmax(1) != y
    return wrong, (~wrong).float().mean()
