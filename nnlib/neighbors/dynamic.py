"""Estimators that condense: of the samples, only those that they get wrong become centers."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, repeat
from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from tqdm.auto import tqdm

from nnlib._common.runtime import check_seed, make_generator, resolve_device, torch_defaults
from nnlib._common.validation import (
    check_choice,
    check_features,
    check_int,
    check_lengths,
    check_number,
    is_stream,
    rebatch,
    storage_dtype,
)
from nnlib.attention import InverseDistance, Kernel, attend, nearest
from nnlib.neighbors.base import CenterEstimator
from nnlib.neighbors.columns import SCALINGS, plain_columns
from nnlib.neighbors.condensing.centers import GrowingCenters
from nnlib.neighbors.condensing.rule import Batch, block_rows, condense
from nnlib.neighbors.condensing.votes import CondensingRule
from nnlib.neighbors.tuning import leave_one_out, tune, tune_interpolation

RULES = ("auto", "smoothed", "published")
TABLE_COLUMNS = 256  # at most, and
TABLE_SAMPLES = 20  # at least, that are learned by the smoothed rule
KEPT_SAMPLES = 5000  # at most: of larger sets, a part is always enough
JUDGED = 2000  # samples at most that tell whether few centers are enough
MANY_BATCHES = 10  # from which it says something that most samples became centers
ALLOWED = 0.015  # of the loss by the mean alone, that few centers may cost


class _Tuned(NamedTuple):
    """The kernel by which all others predict a sample, its own values, and the predicted ones."""

    kernel: Kernel
    y: Float[Tensor, "N V"]
    left_out: Float[Tensor, "N V"]
    smoothed: Float[Tensor, "N V"]


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


class DynamicEstimator(CenterEstimator):
    """A weighted average over samples that it got wrong while it learned.

    By the smoothed rule a sample is wrong where it is not predicted as all other samples predict
    it, and that prediction becomes its value; by the published rule, where its own label is not.
    """

    batch_size: int
    max_neighbors: int
    passes: int
    rule: str
    scaling: str
    device: str

    def _rule(self) -> CondensingRule:
        raise NotImplementedError

    def _encode(self, y, more: bool, classes=None) -> Tensor:
        """Turn labels or targets into what is stored; `more`: they join earlier ones."""
        raise NotImplementedError

    def _losses(self, predicted: Tensor, y: Tensor) -> Tensor:
        """Return one loss a sample, of what the others predict."""
        raise NotImplementedError

    def _smooth(self, predicted: Tensor, y: Tensor) -> Tensor:
        """Turn what all other samples predict into the values of centers."""
        return predicted

    def _regrets(self, few: Tensor, everyone: Tensor) -> Tensor:
        """Return what predictions by few centers cost, if those by all samples are right."""
        raise NotImplementedError

    def _own_values(self, tuned: "_Tuned") -> Tensor:
        """Return the values of the samples where all of them are centers."""
        return tuned.y

    def _check_settings(self) -> None:
        check_choice("rule", self.rule, RULES)
        check_choice("scaling", self.scaling, SCALINGS)
        self._make_kernel()
        for name in ("batch_size", "max_neighbors", "max_count", "passes"):
            check_int(name, getattr(self, name, 1))
        check_number("target_accuracy", self.target_accuracy, "(0, 1]")
        check_seed(self.random_state, "random_state")

    def _restore(self, tensors: dict[str, Tensor]) -> None:
        super()._restore(tensors)
        self.indices_: Tensor | None = None

    @torch_defaults(gradients=True)
    def _fit(self, X, y, more: bool, classes=None):
        """Condense samples or a stream of batches, into new centers or into `more` of them."""
        self._check_settings()
        batches = None
        if is_stream(X):
            batches, X, y = self._peek(X)
        x, y = self._check_batch(X, y, more, classes, is_whole=batches is None)
        if self.rule_ == "published" or self.kernel != "auto":
            self._warn_about_kernel(x)
        device = resolve_device(self.device)
        y = y.to(device)
        tuned = None
        if not more:
            self._set_columns(plain_columns(x, self._kernel()))
            if self.rule_ == "smoothed" and batches is None:
                tuned = self._tune(x, y)
                y = tuned.smoothed
        x = self._columns.apply(x)
        if x.device != device:
            x = x.to(device=device, dtype=storage_dtype(x))
        rule = self._rule()
        centers = self._start(x, y, more)
        rows = partial(block_rows, centers, rule)
        if batches is None:
            numbered = not more
            generator = make_generator(self.random_state, "random_state")
            passes = (self._blocks(x, y, rows, generator, numbered) for _ in range(self.passes))
            self._condense(passes, centers, len(x) * self.passes)
        else:
            passes = (self._stream_blocks(part, storage_dtype(x), rows) for part in batches)
            self._condense(passes, centers, None)
        if tuned is not None:
            self._keep_all_if_better(x, tuned)
        elif batches is None and not more:
            self._warn_of_many_centers(len(x))
        return self

    def _warn_of_many_centers(self, samples: int) -> None:
        if samples >= MANY_BATCHES * self.batch_size and self.num_neighbors > samples / 2:
            warnings.warn(
                f"{self.num_neighbors} of {samples} samples became centers, as by the published "
                "rule where classes overlap or targets are noisy: rule='smoothed' does without",
                stacklevel=5,
            )

    def _tune(self, x: Shaped[Tensor, "N D"], y: Tensor) -> "_Tuned":
        """Choose columns and kernels, and predict each sample by all others."""
        base = None if self.kernel == "auto" else self._kernel()
        seed = check_seed(self.random_state, "random_state")
        columns, kernel = tune(x, y, self._losses, seed, self.scaling, base)
        self._set_columns(columns)
        x = columns.apply(x).to(y.device)
        left_out = leave_one_out(x, y, kernel)
        smoothed = self._smooth(left_out, y)
        if base is None:
            between = tune_interpolation(x, smoothed, y, self._losses, seed)
            self.kernel_ = self._by_predictor(between)
        return _Tuned(kernel, y, left_out, smoothed)

    def _keep_all_if_better(self, x: Shaped[Tensor, "N D"], tuned: "_Tuned") -> None:
        """Let all samples be centers where fewer predict left-out samples clearly worse."""
        if self.kernel != "auto" and self._kernel().k is None:
            return
        if len(x) > min(self.max_neighbors, KEPT_SAMPLES):
            return
        rows = torch.arange(0, len(x), -(-len(x) // JUDGED), device=x.device)
        others = nearest(x[rows], x, 1, InverseDistance(), rows)[1][:, 0] if len(x) > 1 else rows
        unseen = 2 * x[rows].to(torch.float32) - x[others]  # as far from all as samples are
        few = attend(unseen, self.centers_, self.values_, self._kernel())
        everyone = attend(unseen, x, tuned.y, tuned.kernel)
        level = self._losses(tuned.y.mean(0).expand_as(tuned.y), tuned.y).mean()
        if float(self._regrets(few, everyone).mean()) <= ALLOWED * float(level):
            return
        self.kernel_ = tuned.kernel
        self.centers_ = x
        self.values_ = self._own_values(tuned)
        self.indices_ = torch.arange(len(x))
        self._grown = None

    def _blocks(self, x, y, rows: Callable[[], int], generator, numbered: bool) -> Iterator[Batch]:
        """Yield a set in memory once, in its own or another order."""
        order = torch.arange(len(x))
        if self.shuffle:
            order = torch.randperm(len(x), generator=generator)
        start = 0
        while start < len(x):
            numbers = order[start : start + rows()].to(x.device)
            yield (
                x.index_select(0, numbers).to(torch.float32),
                y[numbers],
                numbers if numbered else None,
            )
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
            yield self._columns.apply(x.to(device)).to(torch.float32), y.to(device), None

    def _check_batch(
        self, X, y, more: bool, classes=None, dtype: torch.dtype | None = None, is_whole=False
    ):
        x = check_features(self, X, reset=not more)
        if not more:
            is_table = is_whole and x.dtype != torch.uint8 and x.shape[1] <= TABLE_COLUMNS
            is_table = is_table and len(x) >= TABLE_SAMPLES
            self.rule_ = self.rule
            if self.rule == "auto":
                self.rule_ = "smoothed" if is_table else "published"
            self.kernel_ = None
            if (self.rule, self.kernel) == ("auto", "auto") and float(x.amin()) < 0:
                # cosines would take x and -x for one
                kernel = InverseDistance(self._exponent(), self.epsilon)
                self.kernel_ = self._by_predictor(kernel)
        if dtype not in (None, storage_dtype(x)):
            raise ValueError(f"X hands out {x.dtype} after {dtype}: give all batches in one type")
        y = self._encode(y, more, classes)
        check_lengths(x, y)
        return x, y

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
            if self.progress:
                bar.set_postfix(neighbors=neighbors, refresh=False)
                bar.update(samples)

        with bar:
            condense(passes, centers, self._rule(), callback)
        self.growth_ = torch.tensor(growth)
        self.indices_ = None if centers.numbers is None else centers.numbers.clone()
        self.centers_ = centers.x
        self.values_ = centers.y
        self._grown = centers

    def __getstate__(self):
        state = super().__getstate__().copy()
        state.pop("_grown", None)
        buffers = state["_buffers"].items()  # copied without the spare memory behind them
        state["_buffers"] = {name: None if part is None else part.clone() for name, part in buffers}
        return state
