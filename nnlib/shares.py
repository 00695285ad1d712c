"""What classifiers over centers share: shares of the weight as class probabilities."""

import numpy as np
import torch
from jaxtyping import Float
from sklearn.base import ClassifierMixin
from sklearn.utils.validation import check_consistent_length
from torch import Tensor

from nnlib.dynamic import Dynamic
from nnlib.inputs import answer, array_of, labels_of


class Classifier(ClassifierMixin, Dynamic):
    """Classes by the shares of the weight that `_shares(x)` gives."""

    saved_attributes = ("n_features_in_", "classes_")

    def _shares(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        raise NotImplementedError

    def forward(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        """Logarithms of the class probabilities, differentiable in x."""
        self._require_fitted()
        share = self._shares(x.flatten(1))
        return share.clamp(min=torch.finfo(share.dtype).tiny).log()

    def predict_log_proba(self, X):
        """Logarithms of the class probabilities [N, C]; a class without weight has about -87, not -inf."""
        return answer(self._averages(X, self), X)

    def predict_proba(self, X):
        """Each class's share of the weight, [N, C]."""
        return answer(self._averages(X, self._shares), X)

    def predict(self, X):
        """The class of the largest share, [N]; a tensor for tensors, where the classes are whole numbers."""
        place = self._averages(X, self._shares).argmax(1)
        if isinstance(X, Tensor) and self.classes_.dtype.kind in "iub":
            return torch.from_numpy(self.classes_).to(X.device)[place.to(X.device)]
        return self.classes_[place.cpu().numpy()]

    def score(self, X, y, sample_weight=None) -> float:
        """The share of X [N, D] whose predicted label is y's [N]."""
        guess, y = array_of(self.predict(X)), labels_of(y)
        check_consistent_length(guess, y)
        right = guess == y
        return float(np.average(right, weights=sample_weight))
