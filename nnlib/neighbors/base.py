"""What estimators over centers share: condensing samples into centers, and class probabilities."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, repeat

import torch
from jaxtyping import Float, Shaped
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics import accuracy_score
from sklearn.utils.validation import check_consistent_length, check_is_fitted
from torch import Tensor
from tqdm.auto import tqdm

from nnlib._common.runtime import check_seed, make_generator, resolve_device
from nnlib._common.serialization import SafetensorsMixin
from nnlib._common.validation import (
    as_array,
    check_choice,
    check_features,
    check_int,
    check_number,
    is_stream,
    like_input,
    rebatch,
    storage_dtype,
)
from nnlib.attention import Kernel, UniformKNN, make_kernel, nearest
from nnlib.distances import subsample, wide_dtype
from nnlib.neighbors.condensing.centers import GrowingCenters
from nnlib.neighbors.condensing.rule import Batch, block_rows, condense
from nnlib.neighbors.condensing.votes import CondensingRule

EPSILON_MARGIN = 100  # X has to vary by so many epsilons, or distances lose much to it
PREDICTED_ROWS = 8192  # at a time, and at least
PREDICTED_NUMBERS = 1 << 19  # rows times features, where rows are short


@dataclass(eq=False, repr=False)
class CondensingSettings:
    """Settings of all that condenses samples into centers, with their published defaults."""

    kernel: str | Kernel = "cosine"
    exponent: float | None = -4.0
    epsilon: float = 1e-6
    influence_cone_factor: float = 2.0
    scales: int = 4
    predictor: str = "interpolation"
    batch_size: int = 64
    target_accuracy: float = 0.9
    max_neighbors: int = 100_000
    shuffle: bool = True
    random_state: int | None = 0
    device: str = "auto"
    progress: bool = True


class CenterEstimator(SafetensorsMixin, BaseEstimator, torch.nn.Module):
    """A weighted average over centers, which are the samples that it got wrong while it learned."""

    def __post_init__(self):
        torch.nn.Module.__init__(self)
        self.register_buffer("centers_", None)
        self.register_buffer("values_", None)

    @property
    def num_neighbors(self) -> int:
        """The number of centers."""
        return 0 if self.centers_ is None else len(self.centers_)

    def __sklearn_is_fitted__(self) -> bool:
        return self.centers_ is not None

    def kneighbors(self, X=None, n_neighbors: int = 5, return_distance: bool = True):
        """Find each sample's nearest centers, nearest first, by the kernel's own distance.

        X [N, D], or None for the centers themselves, each without itself. Returns distances and
        center numbers [N, n_neighbors], or the numbers alone.
        """
        check_is_fitted(self)
        if check_int("n_neighbors", n_neighbors) > self.num_neighbors:
            raise ValueError(
                f"n_neighbors={n_neighbors!r} of {self.num_neighbors} centers: give 1 up to as many"
            )
        if X is None:
            x = self.centers_
            exclude = torch.arange(len(x), device=x.device)
        else:
            x = check_features(self, X, reset=False).to(self.centers_.device)
            exclude = None
        distance, index = nearest(x, self.centers_, n_neighbors, self._kernel(), exclude)
        index = like_input(index, X)
        return (like_input(distance, X), index) if return_distance else index

    def _kernel(self) -> Kernel:
        check_choice("predictor", self.predictor, ("interpolation", "nearest"))
        factor = self.influence_cone_factor
        kernel = make_kernel(self.kernel, self._exponent(), self.epsilon, factor, self.scales)
        return UniformKNN(1, kernel) if self.predictor == "nearest" else kernel

    def _exponent(self) -> float:
        return self.exponent

    def _rule(self) -> CondensingRule:
        raise NotImplementedError

    def _encode(self, y, more: bool, classes=None) -> Tensor:
        """Turn labels or targets into what is stored; `more`: they join earlier ones."""
        raise NotImplementedError

    def _check_settings(self) -> None:
        self._kernel()
        for name in ("batch_size", "max_neighbors", "max_count", "passes"):
            check_int(name, getattr(self, name, 1))
        check_number("target_accuracy", self.target_accuracy, "(0, 1]")
        check_seed(self.random_state, "random_state")

    def _restore(self, tensors: dict[str, Tensor]) -> None:
        super()._restore(tensors)
        centers = tuple(self.centers_.shape)
        values = tuple(self.values_.shape)
        if centers != (len(self.values_), self.n_features_in_):
            raise ValueError(f"centers {centers} and values {values} don't belong together")
        self.indices_: Tensor | None = None
        self._kernel()

    def _warn_about_kernel(self, x: Shaped[Tensor, "N D"]) -> None:
        """Warn where a kernel given by name takes different samples for one."""
        if x.dtype == torch.uint8 or not isinstance(self.kernel, str):
            return
        if self.kernel == "cosine" and float(x.amin()) < 0:
            warnings.warn(
                "kernel='cosine' takes x and -x for one, as published, and X has negative numbers: "
                "'euclidean' and CosineInverseDistance(signed=True) tell them apart",
                stacklevel=4,
            )
        if self.kernel.startswith("cosine"):
            return  # whose epsilon is one of cosines
        deviation = float(subsample(x, wide_dtype(x)).std(0, correction=0).amax())
        if 0 < deviation < EPSILON_MARGIN * self.epsilon:
            warnings.warn(
                f"X varies by {deviation:.2g}, which epsilon={self.epsilon:g} blots out: "
                "scale X, or give less epsilon",
                stacklevel=4,
            )

    def _fit(self, X, y, more: bool, classes=None):
        """Condense samples or a stream of batches, into new centers or into `more` of them."""
        self._check_settings()
        batches = None
        if is_stream(X):
            batches, X, y = self._peek(X)
        x, y = self._check_batch(X, y, more, classes)
        self._warn_about_kernel(x)
        device = resolve_device(self.device)
        if x.device != device:
            x = x.to(device=device, dtype=storage_dtype(x))
        y = y.to(device)
        centers = self._start(x, y, more)
        rows = partial(block_rows, centers, self._rule())
        if batches is None:
            numbered = not more
            generator = make_generator(self.random_state, "random_state")
            passes = (self._blocks(x, y, rows, generator, numbered) for _ in range(self.passes))
            self._condense(passes, centers, len(x) * self.passes)
        else:
            passes = (self._stream_blocks(part, storage_dtype(x), rows) for part in batches)
            self._condense(passes, centers, None)
        return self

    def _blocks(self, x, y, rows: Callable[[], int], generator, numbered: bool) -> Iterator[Batch]:
        """Yield a set in memory once, in its own or another order."""
        order = torch.arange(len(x))
        if self.shuffle:
            order = torch.randperm(len(x), generator=generator)
        start = 0
        while start < len(x):
            numbers = order[start : start + rows()].to(x.device)
            yield x[numbers].to(torch.float32), y[numbers], numbers if numbered else None
            start += len(numbers)

    def _peek(self, stream: Iterable) -> tuple[Iterator[Iterable], object, object]:
        """Return the batches of each pass, and the first batch's samples and targets."""
        if self.passes > 1 and isinstance(stream, Iterator):
            raise ValueError(
                f"passes={self.passes!r} over an iterator, which ends: "
                "give a DataLoader, or passes=1"
            )
        rest = iter(stream)
        first = next(rest, None)
        if first is None:
            raise ValueError("X hands out no batches: give at least one")
        return chain([chain([first], rest)], repeat(stream, self.passes - 1)), first[0], first[1]

    def _stream_blocks(
        self, batches: Iterable, dtype: torch.dtype, rows: Callable[[], int]
    ) -> Iterator[Batch]:
        """Yield batches in the order they come, joined to blocks; only centers stay in memory."""
        device = resolve_device(self.device)
        checked = (self._check_batch(*batch[:2], True, dtype=dtype) for batch in batches)
        for x, y in rebatch(checked, rows):
            yield x.to(device, torch.float32), y.to(device), None

    def _check_batch(self, X, y, more: bool, classes=None, dtype: torch.dtype | None = None):
        x = check_features(self, X, reset=not more)
        if dtype not in (None, storage_dtype(x)):
            raise ValueError(f"X hands out {x.dtype} after {dtype}: give all batches in one type")
        if y is not None:
            check_consistent_length(x, y)
        return x, self._encode(y, more, classes)

    def _start(self, x: Shaped[Tensor, "N D"], y: Tensor, more: bool) -> GrowingCenters:
        """Return no centers yet, or those there are: with the spare memory behind them, if any."""
        dtype = storage_dtype(x)
        if not more:
            return GrowingCenters(x[:0].to(dtype), y[:0])
        dtype = torch.promote_types(self.centers_.dtype, dtype)
        grown = getattr(self, "_grown", None)
        if grown is not None and (grown.x.dtype, len(grown)) == (dtype, self.num_neighbors):
            if grown.x.data_ptr() == self.centers_.data_ptr():
                return grown.share_storage()
        return GrowingCenters(self.centers_.to(x.device, dtype), self.values_.to(x.device))

    def _condense(self, passes: Iterable, centers: GrowingCenters, samples: int | None) -> None:
        growth = []
        bar = tqdm(total=samples, unit=" samples", delay=5, leave=False, disable=not self.progress)

        def callback(samples: int, neighbors: int) -> None:
            growth.append(neighbors)
            bar.set_postfix(neighbors=neighbors, refresh=False)
            bar.update(samples)

        with bar:
            condense(passes, centers, self._rule(), callback)
        self.growth_ = torch.tensor(growth)
        self.indices_ = None if centers.numbers is None else centers.numbers.clone()
        self.centers_ = centers.x
        self.values_ = centers.y
        self._grown = centers

    def _averages(self, X, average: Callable[[Tensor], Tensor]) -> Float[Tensor, "N V"]:
        """Compute `average(x)` of all samples, some thousands at a time."""
        check_is_fitted(self)
        x = check_features(self, X, reset=False)
        size = max(PREDICTED_ROWS, PREDICTED_NUMBERS // x.shape[1])
        device = self.centers_.device
        with torch.no_grad():
            parts = [average(rows.to(device, torch.float32)) for rows in x.split(size)]
        return torch.cat(parts)

    def __getstate__(self):
        state = super().__getstate__().copy()
        state.pop("_grown", None)
        buffers = state["_buffers"].items()  # copied without the spare memory behind them
        state["_buffers"] = {name: None if part is None else part.clone() for name, part in buffers}
        return state


class ProbabilisticClassifier(ClassifierMixin):
    """Predictions by `_class_probabilities` of rows and `_probabilities` of users' input."""

    def _class_probabilities(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        raise NotImplementedError

    def _probabilities(self, X) -> Float[Tensor, "N C"]:
        raise NotImplementedError

    def forward(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        """Return log class probabilities, differentiable in x."""
        check_is_fitted(self)
        return log_probabilities(self._class_probabilities(x.flatten(1)))

    def predict_log_proba(self, X):
        """Return log class probabilities [N, C]; about -87, not -inf, for a class of no weight."""
        return like_input(log_probabilities(self._probabilities(X)), X)

    def predict_proba(self, X):
        """Return class probabilities [N, C]: each class's fraction of the weight."""
        return like_input(self._probabilities(X), X)

    def predict(self, X):
        """Return the most probable class [N], as a tensor for tensors if labels are integers."""
        index = self._probabilities(X).argmax(1)
        if isinstance(X, Tensor) and self.classes_.dtype.kind in "iub":
            return torch.from_numpy(self.classes_).to(X.device)[index.to(X.device)]
        return self.classes_[index.cpu().numpy()]

    def score(self, X, y, sample_weight=None) -> float:
        """Return the accuracy on X [N, D] and labels y [N]."""
        predicted = as_array(self.predict(X))
        return accuracy_score(as_array(y), predicted, sample_weight=sample_weight)


def log_probabilities(probabilities: Float[Tensor, "B C"]) -> Float[Tensor, "B C"]:
    """Logs, of the smallest normal float for what is 0."""
    return probabilities.clamp(min=torch.finfo(probabilities.dtype).tiny).log()


class CenterClassifier(ProbabilisticClassifier, CenterEstimator):
    """Base of the classifiers over centers, whose class probabilities are fractions of the weight.

    Fitted: `centers_` [M, D], `values_`, their class numbers [M] or probabilities [M, C], and
    `classes_` [C], the labels.
    """

    saved_attributes = ("n_features_in_", "classes_")

    def _probabilities(self, X) -> Float[Tensor, "N C"]:
        return self._averages(X, self._class_probabilities)
