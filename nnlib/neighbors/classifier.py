"""The dynamic classifier: a scikit-learn estimator that is also a torch module."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from nnlib._common.validation import as_array, check_labels, encode_labels, is_stream
from nnlib.attention import Labels, attend
from nnlib.neighbors.base import CenterClassifier, CondensingSettings
from nnlib.neighbors.condensing.votes import CondensingRule


@dataclass(eq=False, repr=False)
class DynamicClassifier(CondensingSettings, CenterClassifier):
    """Predict classes by the summed weight of all centers: samples that the model got wrong.

    Where classes overlap, samples that contradict each other join again and again;
    PrototypeClassifier does without.

    Parameters
    ----------
    kernel : str or Kernel
        "cosine", "euclidean", "euclidian_pyramid", "influence_cone", or an object that holds its
        own settings. "cosine" suits pixels and counts: as published it takes x and -x for one.
    exponent, epsilon, influence_cone_factor, scales
        Of a kernel given by name; epsilon in X's unit.
    predictor : {"interpolation", "nearest"}
        "nearest" takes the class of the largest weight.
    batch_size, target_accuracy, max_count
        A batch is learned until that fraction of it is right, in at most so many rounds.
    max_neighbors : int
        Learning stops once there are more centers.
    passes : int
        Over the data at most; with predictor="nearest" and batch_size=1 many are Hart's rule.
    shuffle, random_state, device, progress
        Samples in random order, drawn by `random_state` (None for another each time); "auto" takes a GPU
        where there is one; a bar for what takes long.

    Attributes
    ----------
    centers_, values_, classes_
        Centers [M, D], their class numbers [M], and labels [C].
    indices_, growth_
        Which samples became centers (None after a stream, `partial_fit` or `load`), and the number
        of centers after each batch.

    References
    ----------
    J. Loverich, Dynamic and Deep Nearest Neighbors, 2023. P. Hart, The condensed nearest neighbor
    rule, 1968.

    Examples
    --------
    >>> model = DynamicClassifier("euclidean").fit([[0.0], [1.0], [5.0]], ["a", "a", "b"])
    >>> model.predict([[4.0]]).tolist()
    ['b']
    """

    max_count: int = 3
    passes: int = 1

    def fit(self, X, y=None, classes: Sequence | None = None):
        """Learn from X [N, D] and labels y [N] of any kind.

        X may be a DataLoader of (x, y) batches, taken in its own order; `classes` then names all
        labels. Raises ValueError for NaN or infinity, lengths that differ, labels outside
        `classes`, settings without sense.
        """
        if classes is None and is_stream(X):
            raise ValueError("classes=None with a stream of batches: give all labels there will be")
        return self._fit(X, y, False, classes)

    def partial_fit(self, X, y=None, classes: Sequence | None = None):
        """Go on learning: wrong samples join the centers. The first call needs `classes`.

        Samples of earlier calls aren't looked at again, so some of them may come out wrong.
        """
        more = self.centers_ is not None
        if not more and classes is None:
            raise ValueError(
                "classes must be passed on the first call to partial_fit: "
                "give all labels there will be"
            )
        if more and classes is not None:
            if not np.array_equal(np.unique(as_array(classes)), self.classes_):
                raise ValueError(
                    f"classes={list(classes)!r} is not what it was fitted on: "
                    f"give {self.classes_.tolist()}"
                )
        return self._fit(X, y, more, classes)

    def _encode(self, y, more: bool, classes=None) -> Int64[Tensor, " N"]:
        labels = check_labels(y)
        if not more:
            self.classes_ = np.unique(labels if classes is None else as_array(classes))
        return encode_labels(labels, self.classes_)

    def _rule(self) -> CondensingRule:
        classes = len(self.classes_)
        return CondensingRule(
            kernel=self._kernel(),
            values=lambda y: torch.nn.functional.one_hot(y, classes).to(torch.float32),
            evaluate=_misclassified,
            target=self.target_accuracy,
            rounds=self.max_count,
            batch_size=self.batch_size,
            max_neighbors=self.max_neighbors,
        )

    def _class_probabilities(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        return attend(x, self.centers_, Labels(self.values_, len(self.classes_)), self._kernel())


def _misclassified(probabilities: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    wrong = probabilities.argmax(1) != y
    return wrong, (~wrong).float().mean()
