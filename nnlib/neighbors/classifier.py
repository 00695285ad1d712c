"""The dynamic classifier: a scikit-learn estimator that is also a torch module."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from nnlib._common.validation import as_array, check_labels, encode_labels, is_stream
from nnlib.attention import Kernel, Labels, attend
from nnlib.neighbors.base import CenterClassifier
from nnlib.neighbors.condensing.votes import CondensingRule
from nnlib.neighbors.dynamic import CondensingSettings, DynamicEstimator
from nnlib.neighbors.tuning import best_shrink, class_losses, class_regrets, shrink

TOLERANCE = 0.2  # of a probability that all other samples predict


@dataclass(eq=False, repr=False)
class DynamicClassifier(CondensingSettings, CenterClassifier, DynamicEstimator):
    """Predict classes by the weight of all centers: samples that the model got wrong.

    By the smoothed rule, a sample's probabilities are first predicted by all other samples, with
    columns and neighbors chosen by leave-one-out; it becomes a center, once, where the centers
    predict others. So noise is not learned; of up to 5,000 samples all stay where few would predict
    clearly worse. By the published rule a sample's own label decides: where classes overlap,
    samples that contradict each other join again and again.

    Parameters
    ----------
    kernel : str or Kernel
        "cosine", "euclidean", "euclidian_pyramid", "influence_cone", or an object that holds its
        own settings. "cosine" suits pixels and counts: as published it takes x and -x for one.
        "auto" is "cosine" by the published rule, else "euclidean".
    exponent, epsilon, influence_cone_factor, scales
        Of a kernel given by name; epsilon in X's unit. An exponent of None is -4 by the published
        rule, else minus the number of features, from -4 to -16.
    rule : {"auto", "smoothed", "published"}
        "auto" is "smoothed" for tables, and "published" for pixels (uint8), for more than 256
        columns or fewer than 20 samples, and for streams. What streams and `partial_fit` add is
        judged by its own labels.
    scaling : {"auto", "deviation", "none"}
        Of the columns, by the smoothed rule: what predicts left-out samples best, their deviation,
        or as they are. Pixels (uint8) stay as they are, and columns for kernels by cosines.
    predictor : {"interpolation", "nearest"}
        "nearest" takes the class of the largest weight.
    batch_size, target_accuracy, max_count
        A batch is learned until that fraction of it is right, in at most so many rounds.
    max_neighbors : int
        Learning stops once there are more centers.
    passes : int
        Over the data at most; with predictor="nearest" and batch_size=1 many are Hart's rule.
    shuffle, random_state, device, progress
        Samples in random order, drawn by `random_state` (None for another each time); "auto" takes
        a GPU where there is one; a bar for what takes long.

    Attributes
    ----------
    centers_, values_, classes_
        Centers [M, D], their class numbers [M] or probabilities [M, C], and labels [C].
    offset_, column_weights_
        Centers are X's columns less `offset_` [D], times `column_weights_` [D]; None for none.
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

    published_kernel = "cosine"
    saved_attributes = ("n_features_in_", "classes_", "kernel_", "rule_")

    kernel: str | Kernel = "auto"
    exponent: float | None = None
    max_count: int = 3
    passes: int = 1
    rule: str = "auto"
    scaling: str = "auto"

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

    def _exponent(self) -> float:
        if self.exponent is None and self.rule_ == "published":
            return -4.0
        return super()._exponent()

    def _encode(self, y, more: bool, classes=None) -> Tensor:
        labels = check_labels(y)
        if not more:
            self.classes_ = np.unique(labels if classes is None else as_array(classes))
        numbers = encode_labels(labels, self.classes_)
        return numbers if self.rule_ == "published" else self._one_hot(numbers)

    def _one_hot(self, numbers: Int64[Tensor, " N"]) -> Float[Tensor, "N C"]:
        return torch.nn.functional.one_hot(numbers, len(self.classes_)).to(torch.float32)

    def _losses(self, predicted: Tensor, y: Tensor) -> Tensor:
        return class_losses(predicted, y)

    def _smooth(self, predicted: Tensor, y: Tensor) -> Tensor:
        return shrink(predicted, best_shrink(predicted, y))

    def _regrets(self, few: Tensor, everyone: Tensor) -> Tensor:
        return class_regrets(few, everyone)

    def _own_values(self, tuned) -> Tensor:
        return shrink(tuned.y, best_shrink(tuned.left_out, tuned.y))

    def _rule(self) -> CondensingRule:
        published = self.rule_ == "published"
        return CondensingRule(
            kernel=self._kernel(),
            values=self._one_hot if published else lambda y: y,
            evaluate=_misclassified if published else _differs,
            target=self.target_accuracy,
            rounds=self.max_count if published else 1,
            batch_size=self.batch_size,
            max_neighbors=self.max_neighbors,
        )

    def _class_probabilities(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        is_labels = self.values_.ndim == 1
        values = Labels(self.values_, len(self.classes_)) if is_labels else self.values_
        return attend(self._comparable(x), self.centers_, values, self._kernel())


def _misclassified(probabilities: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    wrong = probabilities.argmax(1) != y
    return wrong, (~wrong).float().mean()


def _differs(probabilities: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Which samples are predicted as another class, or far from their probabilities."""
    wrong = probabilities.argmax(1) != y.argmax(1)
    wrong |= (probabilities - y).abs().amax(1) > TOLERANCE
    return wrong, (~wrong).float().mean()
