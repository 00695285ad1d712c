"""Settings that can't be used are refused by name, with what would do.

What users hand over, as tensors: numpy arrays, tensors, frames, lists, or a DataLoader's batches.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from numbers import Integral, Real

import numpy as np
import torch
from jaxtyping import Int64, Shaped
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d, validate_data
from torch import Tensor


def check(holds: bool, name: str, given, wanted: str) -> None:
    """Raise ValueError, naming the setting, where it doesn't hold."""
    if not holds:
        raise ValueError(f"{name}={given!r:.60} can't be used: give {wanted}")


def check_int(name: str, given, least: int = 1) -> int:
    """`given` itself; raises ValueError, naming it, where that is no whole number or too small."""
    check(
        isinstance(given, Integral) and given >= least,
        name,
        given,
        f"a whole number, {least} or more",
    )
    return int(given)


def check_number(name: str, given, within: str, wanted: str = "") -> float:
    """`given` itself; raises ValueError, naming it, for what is no number in an interval such as "(0, 1]"."""
    low, high = (float(end) for end in within[1:-1].split(","))
    holds = isinstance(given, Real) and (low < given or within[0] == "[" and low == given)
    holds = holds and (given < high or within[-1] == "]" and given == high)
    check(holds, name, given, wanted or f"a number in {within}")
    return given


def check_choice(name: str, given, known: Iterable[str]) -> None:
    """Raise ValueError, naming what is known, where `given` isn't among it."""
    if given not in known:
        raise ValueError(f"{name}={given!r} is not known: give one of {', '.join(known)}")


KEPT = (
    torch.uint8,
    torch.bfloat16,
    torch.float16,
    torch.float32,
)  # what centers are stored in; else float32
WIDE = (torch.float64, torch.int32, torch.int64)  # types that hold more digits than float32
LOST = 0.05  # how much of a column's deviation may be rounded away
BLOCK_NUMBERS = 1 << 22


def check_features(estimator, X, reset: bool) -> Shaped[Tensor, "N D"]:
    """X as a tensor [N, D], without a copy where that can be; further dimensions are flattened.

    Raises ValueError for NaN, infinity, no samples, no features, or another number of features than fitted on.
    """
    if is_stream(X):
        raise ValueError(
            "X is a stream of batches, which fit and partial_fit take alone: give a tensor or an array"
        )
    if not isinstance(X, Tensor):
        rows = (
            X.reshape(len(X), math.prod(X.shape[1:]))
            if isinstance(X, np.ndarray) and X.ndim > 2
            else X
        )
        x = as_tensor(validate_data(estimator, rows, reset=reset))
    else:
        x = _flatten(X)
        if reset:
            estimator.n_features_in_ = x.shape[1]
        elif x.shape[1] != estimator.n_features_in_:
            raise ValueError(
                f"X has {x.shape[1]} features, but {type(estimator).__name__} is expecting "
                f"{estimator.n_features_in_} features as input: give as many as it was fitted on"
            )
    check_finite("X", x)
    if reset and x.dtype in WIDE:
        _warn_of_lost_digits(x)
    return x


def _warn_of_lost_digits(x: Shaped[Tensor, "N D"]) -> None:
    """Say where numbers that differ are one in float32, as those far from 0 can be: looks at some hundred rows."""
    rows = x[:: max(1, len(x) // 512)].cpu().double()
    lost = (rows - rows.float()).abs().amax(0) > LOST * rows.std(0, correction=0)
    lost &= rows.amax(0) > rows.amin(0)
    if lost.any():
        warnings.warn(
            f"X's column {int(lost.int().argmax())} is so far from 0 that float32, in which all is computed, holds too "
            "few digits of what it differs by: subtract its mean first, as StandardScaler does",
            stacklevel=5,
        )


def _flatten(X: Tensor) -> Shaped[Tensor, "N D"]:
    if X.ndim < 2 or X.numel() == 0 or X.is_complex():
        raise ValueError(
            f"X is {X.dtype} of shape {tuple(X.shape)}: give real numbers [N, D], N and D 1 or more"
        )
    return X.detach().flatten(1)


def as_tensor(array) -> Tensor:
    """Numbers of any kind as a tensor, without a copy where that can be; those that torch lacks become float32."""
    if isinstance(array, Tensor):
        return array
    array = np.asarray(array)
    if array.dtype.kind in "ub" and array.dtype != np.uint8 or not array.dtype.isnative:
        array = array.astype(np.float32)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable.*")  # it is only read
        return torch.from_numpy(np.ascontiguousarray(array))


def check_finite(name: str, rows: Shaped[Tensor, "N *D"]) -> None:
    """Raise ValueError where a number is not finite in float32, looking at a block at a time."""
    if not rows.is_floating_point():
        return
    step = max(1, BLOCK_NUMBERS // max(1, rows[:1].numel()))
    for start in range(0, len(rows), step):
        good = (
            rows[start : start + step]
            .to(torch.float32)
            .reshape(-1, rows[:1].numel())
            .isfinite()
            .all(1)
        )
        if not good.all():
            raise ValueError(
                f"{name} holds NaN or infinity (in float32), first in row {start + int(good.long().argmin())}: "
                "give finite numbers, or drop such rows"
            )


def as_array(values) -> np.ndarray:
    """Labels or targets of any kind as an array."""
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def check_labels(y) -> np.ndarray:
    """Class labels as an array [N]; raises ValueError for none, for columns, and for what are no classes."""
    if y is None:
        raise ValueError("requires y to be passed, but the target y is None")
    y = column_or_1d(as_array(y), warn=True)
    if y.dtype == object:
        _check_sortable(y)
    check_classification_targets(y)
    return y


def _check_sortable(labels: np.ndarray) -> None:
    try:
        np.unique(labels)
    except TypeError:
        raise ValueError(
            "y holds labels that have no order, as words beside None: give labels of one kind"
        ) from None


def encode_labels(y, classes: np.ndarray) -> Int64[Tensor, " N"]:
    """The place of each label in the sorted `classes`; raises ValueError for one that isn't among them."""
    y = check_labels(y)
    place = np.searchsorted(classes, y).clip(max=len(classes) - 1)
    outside = classes[place] != y
    if outside.any():
        raise ValueError(
            f"y holds {y[outside][0]!r}, which is outside the classes {classes.tolist()}: "
            "drop such samples, or fit anew with all classes"
        )
    return torch.from_numpy(place.astype(np.int64))


def storage_dtype(rows: Tensor) -> torch.dtype:
    """The type that centers taken from these rows are stored in."""
    return rows.dtype if rows.dtype in KEPT else torch.float32


def is_stream(X) -> bool:
    """Whether X hands out (x, y) batches, as a DataLoader does."""
    return isinstance(X, torch.utils.data.DataLoader | Iterator)


def rebatch(batches: Iterable, rows: Callable[[], int]) -> Iterator[tuple[Tensor, Tensor]]:
    """(x, y) batches joined and cut to `rows()` samples each, but for the last."""
    x, y, held = [], [], 0
    for more_x, more_y in batches:
        x, y, held = [*x, more_x], [*y, more_y], held + len(more_x)
        while held >= (wanted := rows()):
            all_x, all_y = torch.cat(x), torch.cat(y)
            yield all_x[:wanted], all_y[:wanted]
            x, y, held = [all_x[wanted:]], [all_y[wanted:]], held - wanted
    if held:
        yield torch.cat(x), torch.cat(y)


def like_input(result: Tensor, asked) -> Tensor | np.ndarray:
    """A result in the kind of what was asked with: tensors for tensors (on their device), arrays for all else."""
    if isinstance(asked, Tensor):
        return result.to(asked.device)
    return (
        (result.float() if result.dtype == torch.bfloat16 else result).cpu().numpy()
    )  # which numpy doesn't have
