"""What the dynamic classifier and regressor share: condensing, of data at hand or of a stream.

What classifiers over centers share: shares of the weight as class probabilities.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain, repeat

import numpy as np
import torch
from jaxtyping import Float, Int64, Shaped
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_consistent_length
from torch import Tensor
from tqdm.auto import tqdm

from nnlib._common.runtime import check_seed, make_generator, resolve_device
from nnlib._common.serialization import SafetensorsMixin
from nnlib._common.validation import (
    as_array,
    check_choice,
    check_features,
    check_int,
    check_labels,
    check_number,
    like_input,
    rebatch,
    storage_dtype,
)
from nnlib.attention import Kernel, UniformKNN, make_kernel, nearest
from nnlib.distances import subsample, wide_dtype
from nnlib.neighbors.condensing.centers import CopiedCenters, IndexedCenters
from nnlib.neighbors.condensing.rule import Batch, Callback, block_rows, condense_in_passes
from nnlib.neighbors.condensing.votes import CondensingRule

PREDICTORS = ("interpolation", "nearest")
BLOTTED = 100  # times epsilon: distances that are no larger lose much to it
PREDICT_ROWS = 8192  # at least
PREDICT_NUMBERS = 1 << 19  # the features of more where they have few


class CenterEstimator(SafetensorsMixin, BaseEstimator, torch.nn.Module):
    """A weighted average over centers, which are the samples that it got wrong while it learned.

    Fitted, it has the buffers `centers_` [M, D] and `values_` [M, ...]; `indices_` [M]: which samples of a set at hand
    became centers (None after a stream or `partial_fit`); `growth_`: how many there were after each batch,
    of all passes. A state_dict holds what was learned but not the classes; `save` and `load` keep all.
    """

    def __init__(self):
        super().__init__()
        self.register_buffer("centers_", None)
        self.register_buffer("values_", None)

    @property
    def num_neighbors(self) -> int:
        """How many centers there are."""
        return 0 if self.centers_ is None else len(self.centers_)

    def __sklearn_is_fitted__(self) -> bool:
        return self.centers_ is not None

    def kneighbors(self, X=None, n_neighbors: int = 5, return_distance: bool = True):
        """Distances and numbers of each sample's nearest centers, nearest first, by the kernel's own distance.

        X [N, D], or None for the centers themselves, each without itself -> [N, K] and [N, K] (or the numbers alone).
        """
        self._require_fitted()
        if check_int("n_neighbors", n_neighbors) > self.num_neighbors:
            raise ValueError(
                f"n_neighbors={n_neighbors!r} of {self.num_neighbors} centers: give 1 up to as many"
            )
        x = (
            self.centers_
            if X is None
            else check_features(self, X, reset=False).to(self.centers_.device)
        )
        own = torch.arange(len(x), device=x.device) if X is None else None
        distance, index = nearest(x, self.centers_, n_neighbors, self._kernel(), own)
        return (
            (like_input(distance, X), like_input(index, X))
            if return_distance
            else like_input(index, X)
        )

    def _kernel(self) -> Kernel:
        """What the settings say, checked."""
        kernel = make_kernel(
            self.kernel, self._exponent(), self.epsilon, self.influence_cone_factor, self.scales
        )
        check_choice("predictor", self.predictor, PREDICTORS)
        return UniformKNN(1, kernel) if self.predictor == "nearest" else kernel

    def _exponent(self) -> float:
        return self.exponent

    def _rule(self) -> CondensingRule:
        raise NotImplementedError

    def _encoded(self, y, more: bool) -> Tensor:
        """Labels or targets as they are stored; `more`: of the kind that earlier ones were."""
        raise NotImplementedError

    def _check_settings(self) -> None:
        self._kernel()
        for name in ("batch_size", "max_neighbors", "max_count", "passes"):
            check_int(name, getattr(self, name, 1))
        check_number("target_accuracy", self.target_accuracy, "(0, 1]")
        check_seed(self.seed)

    def _restore(self, tensors: dict[str, Tensor]) -> None:
        super()._restore(tensors)
        centers, values = self.centers_, self.values_
        if (
            centers.ndim != 2
            or len(centers) != len(values)
            or centers.shape[1] != self.n_features_in_
        ):
            raise ValueError(
                f"centers {tuple(centers.shape)} and values {tuple(values.shape)} don't belong together"
            )
        self._kernel()

    def _warn_of_kernel(self, x: Shaped[Tensor, "N D"]) -> None:
        """Of what a kernel given by name can't tell apart: x and -x, or distances that its epsilon blots out."""
        if x.dtype == torch.uint8 or not isinstance(self.kernel, str):
            return
        if self.kernel == "cosine" and float(x.amin()) < 0:
            warnings.warn(
                "kernel='cosine' takes x and -x for one, as published, and X has negative numbers: "
                "'euclidean' and CosineInverseDistance(signed=True) tell them apart",
                stacklevel=5,
            )
        if self.kernel.startswith("cosine"):
            return  # whose epsilon is one of cosines
        spread = float(subsample(x, wide_dtype(x)).std(0, correction=0).amax())
        if 0 < spread < BLOTTED * self.epsilon:
            warnings.warn(
                f"X varies by {spread:.2g}, which epsilon={self.epsilon:g} blots out: scale X, or give less epsilon",
                stacklevel=5,
            )

    def _require_fitted(self) -> None:
        if self.centers_ is None:
            raise NotFittedError(
                f"This {type(self).__name__} instance is not fitted yet: call fit or load one"
            )

    def _learn(self, x: Shaped[Tensor, "N D"], y: Shaped[Tensor, "N *V"], more: bool) -> None:
        """Condense a set at hand into new centers, or into `more` of them."""
        self._warn_of_kernel(x)
        device = resolve_device(self.device)
        if x.device != device:
            x = x.to(device=device, dtype=storage_dtype(x))
        y = y.to(device)
        centers = self._copied(device, storage_dtype(x)) if more else IndexedCenters(x, y)
        self._grow(self._learner(x, y, centers), centers, len(x) * self.passes)

    def _learner(self, x, y, centers: IndexedCenters | CopiedCenters) -> Callable[[Callback], None]:
        """What adds samples of a set at hand to the centers, and tells `watch` how it goes on."""
        passes = (
            _blocks(x, y, order.to(x.device), self._block_rows(centers))
            for order in self._orders(len(x))
        )
        return partial(condense_in_passes, passes, centers, self._kernel(), self._rule())

    def _learn_stream(self, batches: Iterable, more: bool) -> None:
        """The same from (x, y) batches, in the order they come; only the centers are kept."""
        if self.passes > 1 and isinstance(batches, Iterator):
            raise ValueError(
                f"passes={self.passes!r} over an iterator, which ends: give a DataLoader, or passes=1"
            )
        device, once = resolve_device(self.device), iter(batches)
        first = next(once, None)
        if first is None:
            raise ValueError("X hands out no batches: give at least one")
        x, y = self._taken(first, more)
        self._warn_of_kernel(x)
        kept = storage_dtype(x)
        centers = (
            self._copied(device, kept)
            if more
            else CopiedCenters(x[:0].to(device, kept), y[:0].to(device))
        )

        def checked(batch) -> tuple[Tensor, Tensor]:
            """A batch, held to the first one's type."""
            x, y = self._taken(batch, True)
            if storage_dtype(x) != kept:
                raise ValueError(
                    f"X hands out {x.dtype} after {kept}: give all batches in one type"
                )
            return x, y

        def blocks(batches):
            """Batches as the rule takes them, each on the device."""
            for x, y in rebatch(map(checked, batches), self._block_rows(centers)):
                yield x.to(device, torch.float32), y.to(device), None

        passes = map(blocks, chain([chain([first], once)], repeat(batches, self.passes - 1)))
        self._grow(
            partial(condense_in_passes, passes, centers, self._kernel(), self._rule()),
            centers,
            None,
        )

    def _taken(self, batch, more: bool) -> tuple[Shaped[Tensor, "B D"], Shaped[Tensor, "B *V"]]:
        """A stream's batch, checked; `more`: to be like those before."""
        x, y = check_features(self, batch[0], reset=not more), self._encoded(batch[1], more)
        check_consistent_length(x, y)
        return x, y

    def _grow(
        self,
        learn: Callable[[Callback], None],
        centers: IndexedCenters | CopiedCenters,
        samples: int | None,
    ) -> None:
        """Let centers be added, and take them over."""
        growth = []
        with tqdm(
            total=samples, unit=" samples", delay=5, leave=False, disable=not self.progress
        ) as bar:

            def watch(samples: int, neighbors: int) -> None:
                growth.append(neighbors)
                bar.set_postfix(neighbors=neighbors, refresh=False)
                bar.update(samples)

            learn(watch)
        self.growth_ = torch.tensor(growth)
        self._grown = centers if isinstance(centers, CopiedCenters) else None
        self.indices_ = None if self._grown is not None else centers.numbers.clone()
        self.centers_, self.values_ = centers.finished(storage_dtype(centers.x))

    def _orders(self, samples: int) -> Iterator[Int64[Tensor, " N"]]:
        """The samples' order in each pass: their own, or each time another."""
        generator = make_generator(self.seed)
        for _ in range(self.passes):
            yield (
                torch.randperm(samples, generator=generator)
                if self.shuffle
                else torch.arange(samples)
            )

    def _copied(self, device: torch.device, dtype: torch.dtype) -> CopiedCenters:
        """The centers there are, with the room that an earlier call left behind them, in a type that holds new ones."""
        grown, dtype = (
            getattr(self, "_grown", None),
            torch.promote_types(self.centers_.dtype, dtype),
        )
        same = (
            grown is not None
            and grown.x.data_ptr() == self.centers_.data_ptr()
            and len(grown) == self.num_neighbors
        )
        if same and grown.x.dtype == dtype:
            return grown.again()
        return CopiedCenters(self.centers_.to(device, dtype), self.values_.to(device))

    def _block_rows(self, centers: IndexedCenters | CopiedCenters) -> Callable[[], int]:
        kernel, rule = self._kernel(), self._rule()
        return lambda: block_rows(kernel, centers, rule)

    def _averages(self, X, average: Callable[[Tensor], Tensor]) -> Float[Tensor, "N V"]:
        """`average(x)` of all samples, some thousands at a time."""
        self._require_fitted()
        x = check_features(self, X, reset=False)
        size = max(PREDICT_ROWS, PREDICT_NUMBERS // x.shape[1])
        with torch.no_grad():
            return torch.cat(
                [average(rows.to(self.centers_.device, torch.float32)) for rows in x.split(size)]
            )

    def __getstate__(self):
        state = super().__getstate__().copy()
        state.pop("_grown", None)
        state["_buffers"] = {  # without the room to grow
            name: part
            if part is None or part.untyped_storage().nbytes() == part.nbytes
            else part.clone()
            for name, part in state["_buffers"].items()
        }
        return state


def _blocks(x, y, order, rows: Callable[[], int]) -> Iterator[Batch]:
    start = 0
    while start < len(order):
        numbers = order[start : start + rows()]
        yield x[numbers].to(torch.float32), y[numbers], numbers
        start += len(numbers)


class CenterClassifier(ClassifierMixin, CenterEstimator):
    """Classes by the shares of the weight that `_shares(x)` gives."""

    saved_attributes = ("n_features_in_", "classes_")

    def _class_probabilities(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        raise NotImplementedError

    def forward(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        """Logarithms of the class probabilities, differentiable in x."""
        self._require_fitted()
        share = self._class_probabilities(x.flatten(1))
        return share.clamp(min=torch.finfo(share.dtype).tiny).log()

    def predict_log_proba(self, X):
        """Logarithms of the class probabilities [N, C]; a class without weight has about -87, not -inf."""
        return like_input(self._averages(X, self), X)

    def predict_proba(self, X):
        """Each class's share of the weight, [N, C]."""
        return like_input(self._averages(X, self._class_probabilities), X)

    def predict(self, X):
        """The class of the largest share, [N]; a tensor for tensors, where the classes are whole numbers."""
        place = self._averages(X, self._class_probabilities).argmax(1)
        if isinstance(X, Tensor) and self.classes_.dtype.kind in "iub":
            return torch.from_numpy(self.classes_).to(X.device)[place.to(X.device)]
        return self.classes_[place.cpu().numpy()]

    def score(self, X, y, sample_weight=None) -> float:
        """The share of X [N, D] whose predicted label is y's [N]."""
        guess, y = as_array(self.predict(X)), check_labels(y)
        check_consistent_length(guess, y)
        right = guess == y
        return float(np.average(right, weights=sample_weight))
