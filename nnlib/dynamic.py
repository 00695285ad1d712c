"""What the dynamic classifier and regressor share: condensing, of data at hand or of a stream."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain, repeat

import torch
from jaxtyping import Float, Int64, Shaped
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_consistent_length
from torch import Tensor
from tqdm.auto import tqdm

from nnlib.attend import nearest
from nnlib.checks import require_count, require_known, require_number
from nnlib.condense import Batch, Watch, block_rows, condense_in_passes
from nnlib.device import device_of
from nnlib.frames import sample_of, wide
from nnlib.inputs import answer, features_of, gathered, stored_type
from nnlib.kernels import Kernel, KNearest, kernel_of
from nnlib.models import Saved
from nnlib.rows import Chosen, Copied
from nnlib.seeds import generator_of, seed_of
from nnlib.votes import Rule

PREDICTORS = ("interpolation", "nearest")
BLOTTED = 100  # times epsilon: distances that are no larger lose much to it
PREDICT_ROWS = 8192  # at least
PREDICT_NUMBERS = 1 << 19  # the features of more where they have few


class Dynamic(Saved, BaseEstimator, torch.nn.Module):
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
        if require_count("n_neighbors", n_neighbors) > self.num_neighbors:
            raise ValueError(f"n_neighbors={n_neighbors!r} of {self.num_neighbors} centers: give 1 up to as many")
        x = self.centers_ if X is None else features_of(self, X, reset=False).to(self.centers_.device)
        own = torch.arange(len(x), device=x.device) if X is None else None
        distance, index = nearest(x, self.centers_, n_neighbors, self._kernel(), own)
        return (answer(distance, X), answer(index, X)) if return_distance else answer(index, X)

    def _kernel(self) -> Kernel:
        """What the settings say, checked."""
        kernel = kernel_of(self.kernel, self._exponent(), self.epsilon, self.influence_cone_factor, self.scales)
        require_known("predictor", self.predictor, PREDICTORS)
        return KNearest(1, kernel) if self.predictor == "nearest" else kernel

    def _exponent(self) -> float:
        return self.exponent

    def _rule(self) -> Rule:
        raise NotImplementedError

    def _encoded(self, y, more: bool) -> Tensor:
        """Labels or targets as they are stored; `more`: of the kind that earlier ones were."""
        raise NotImplementedError

    def _check_settings(self) -> None:
        self._kernel()
        for name in ("batch_size", "max_neighbors", "max_count", "passes"):
            require_count(name, getattr(self, name, 1))
        require_number("target_accuracy", self.target_accuracy, "(0, 1]")
        seed_of(self.seed)

    def _restore(self, tensors: dict[str, Tensor]) -> None:
        super()._restore(tensors)
        centers, values = self.centers_, self.values_
        if centers.ndim != 2 or len(centers) != len(values) or centers.shape[1] != self.n_features_in_:
            raise ValueError(f"centers {tuple(centers.shape)} and values {tuple(values.shape)} don't belong together")
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
        spread = float(sample_of(x, wide(x)).std(0, correction=0).amax())
        if 0 < spread < BLOTTED * self.epsilon:
            warnings.warn(
                f"X varies by {spread:.2g}, which epsilon={self.epsilon:g} blots out: scale X, or give less epsilon",
                stacklevel=5,
            )

    def _require_fitted(self) -> None:
        if self.centers_ is None:
            raise NotFittedError(f"This {type(self).__name__} instance is not fitted yet: call fit or load one")

    def _learn(self, x: Shaped[Tensor, "N D"], y: Shaped[Tensor, "N *V"], more: bool) -> None:
        """Condense a set at hand into new centers, or into `more` of them."""
        self._warn_of_kernel(x)
        device = device_of(self.device)
        if x.device != device:
            x = x.to(device=device, dtype=stored_type(x))
        y = y.to(device)
        centers = self._copied(device, stored_type(x)) if more else Chosen(x, y)
        self._grow(self._learner(x, y, centers), centers, len(x) * self.passes)

    def _learner(self, x, y, centers: Chosen | Copied) -> Callable[[Watch], None]:
        """What adds samples of a set at hand to the centers, and tells `watch` how it goes on."""
        passes = (_blocks(x, y, order.to(x.device), self._block_rows(centers)) for order in self._orders(len(x)))
        return partial(condense_in_passes, passes, centers, self._kernel(), self._rule())

    def _learn_stream(self, batches: Iterable, more: bool) -> None:
        """The same from (x, y) batches, in the order they come; only the centers are kept."""
        if self.passes > 1 and isinstance(batches, Iterator):
            raise ValueError(f"passes={self.passes!r} over an iterator, which ends: give a DataLoader, or passes=1")
        device, once = device_of(self.device), iter(batches)
        first = next(once, None)
        if first is None:
            raise ValueError("X hands out no batches: give at least one")
        x, y = self._taken(first, more)
        self._warn_of_kernel(x)
        kept = stored_type(x)
        centers = self._copied(device, kept) if more else Copied(x[:0].to(device, kept), y[:0].to(device))

        def checked(batch) -> tuple[Tensor, Tensor]:
            """A batch, held to the first one's type."""
            x, y = self._taken(batch, True)
            if stored_type(x) != kept:
                raise ValueError(f"X hands out {x.dtype} after {kept}: give all batches in one type")
            return x, y

        def blocks(batches):
            """Batches as the rule takes them, each on the device."""
            for x, y in gathered(map(checked, batches), self._block_rows(centers)):
                yield x.to(device, torch.float32), y.to(device), None

        passes = map(blocks, chain([chain([first], once)], repeat(batches, self.passes - 1)))
        self._grow(partial(condense_in_passes, passes, centers, self._kernel(), self._rule()), centers, None)

    def _taken(self, batch, more: bool) -> tuple[Shaped[Tensor, "B D"], Shaped[Tensor, "B *V"]]:
        """A stream's batch, checked; `more`: to be like those before."""
        x, y = features_of(self, batch[0], reset=not more), self._encoded(batch[1], more)
        check_consistent_length(x, y)
        return x, y

    def _grow(self, learn: Callable[[Watch], None], centers: Chosen | Copied, samples: int | None) -> None:
        """Let centers be added, and take them over."""
        growth = []
        with tqdm(total=samples, unit=" samples", delay=5, leave=False, disable=not self.progress) as bar:

            def watch(samples: int, neighbors: int) -> None:
                growth.append(neighbors)
                bar.set_postfix(neighbors=neighbors, refresh=False)
                bar.update(samples)

            learn(watch)
        self.growth_ = torch.tensor(growth)
        self._grown = centers if isinstance(centers, Copied) else None
        self.indices_ = None if self._grown is not None else centers.numbers.clone()
        self.centers_, self.values_ = centers.finished(stored_type(centers.x))

    def _orders(self, samples: int) -> Iterator[Int64[Tensor, " N"]]:
        """The samples' order in each pass: their own, or each time another."""
        generator = generator_of(self.seed)
        for _ in range(self.passes):
            yield torch.randperm(samples, generator=generator) if self.shuffle else torch.arange(samples)

    def _copied(self, device: torch.device, dtype: torch.dtype) -> Copied:
        """The centers there are, with the room that an earlier call left behind them, in a type that holds new ones."""
        grown, dtype = getattr(self, "_grown", None), torch.promote_types(self.centers_.dtype, dtype)
        same = grown is not None and grown.x.data_ptr() == self.centers_.data_ptr() and len(grown) == self.num_neighbors
        if same and grown.x.dtype == dtype:
            return grown.again()
        return Copied(self.centers_.to(device, dtype), self.values_.to(device))

    def _block_rows(self, centers: Chosen | Copied) -> Callable[[], int]:
        kernel, rule = self._kernel(), self._rule()
        return lambda: block_rows(kernel, centers, rule)

    def _averages(self, X, average: Callable[[Tensor], Tensor]) -> Float[Tensor, "N V"]:
        """`average(x)` of all samples, some thousands at a time."""
        self._require_fitted()
        x = features_of(self, X, reset=False)
        size = max(PREDICT_ROWS, PREDICT_NUMBERS // x.shape[1])
        with torch.no_grad():
            return torch.cat([average(rows.to(self.centers_.device, torch.float32)) for rows in x.split(size)])

    def __getstate__(self):
        state = super().__getstate__().copy()
        state.pop("_grown", None)
        state["_buffers"] = {  # without the room to grow
            name: part if part is None or part.untyped_storage().nbytes() == part.nbytes else part.clone()
            for name, part in state["_buffers"].items()
        }
        return state


def _blocks(x, y, order, rows: Callable[[], int]) -> Iterator[Batch]:
    start = 0
    while start < len(order):
        numbers = order[start : start + rows()]
        yield x[numbers].to(torch.float32), y[numbers], numbers
        start += len(numbers)
