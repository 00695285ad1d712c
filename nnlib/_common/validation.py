"""Settings and data are checked by name, and refused with what would do; data becomes tensors."""

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

STORED = (torch.uint8, torch.bfloat16, torch.float16, torch.float32)  # centers' types; else float32
WIDE = (torch.float64, torch.int32, torch.int64)  # types that hold more digits than float32
LOST = 0.05  # how much of a column's deviation may be rounded away
BLOCK_NUMBERS = 1 << 22  # checked at a time


def check(valid: bool, name: str, value, wanted: str) -> None:
    """Raise ValueError, naming the setting, where its value is not valid."""
    if not valid:
        raise ValueError(f"{name}={value!r:.60} can't be used: give {wanted}")


def check_int(name: str, value, least: int = 1) -> int:
    """The value; raises ValueError where it is no whole number, or too small."""
    valid = isinstance(value, Integral) and value >= least
    check(valid, name, value, f"a whole number, {least} or more")
    return int(value)


def check_number(name: str, value, interval: str, wanted: str = "") -> float:
    """The value; raises ValueError where it is no number in an interval such as "(0, 1]"."""
    low, high = (float(end) for end in interval[1:-1].split(","))
    valid = isinstance(value, Real) and low <= value <= high
    valid = valid and (value != low or interval[0] == "[")
    valid = valid and (value != high or interval[-1] == "]")
    check(valid, name, value, wanted or f"a number in {interval}")
    return value


def check_choice(name: str, value, known: Iterable[str]) -> None:
    """Raise ValueError, naming what is known, where the value is not."""
    if value not in known:
        raise ValueError(f"{name}={value!r} is not known: give one of {', '.join(known)}")


def check_features(estimator, X, reset: bool) -> Shaped[Tensor, "N D"]:
    """X as a tensor [N, D], without a copy where possible; further dimensions are flattened.

    Raises ValueError for NaN, infinity, no samples or features, or other features than fitted on.
    """
    if is_stream(X):
        wanted = "give a tensor or an array"
        raise ValueError(
            f"X is a stream of batches, which fit and partial_fit take alone: {wanted}"
        )
    if isinstance(X, Tensor):
        x = _flatten(X)
        if reset:
            estimator.n_features_in_ = x.shape[1]
        elif x.shape[1] != estimator.n_features_in_:
            raise ValueError(
                f"X has {x.shape[1]} features, but {type(estimator).__name__} is expecting "
                f"{estimator.n_features_in_} features as input: give as many as it was fitted on"
            )
    else:
        if isinstance(X, np.ndarray) and X.ndim > 2:
            X = X.reshape(len(X), math.prod(X.shape[1:]))
        x = as_tensor(validate_data(estimator, X, reset=reset))
    check_finite("X", x)
    if reset and x.dtype in WIDE:
        _warn_of_lost_digits(x)
    return x


def _warn_of_lost_digits(x: Shaped[Tensor, "N D"]) -> None:
    """Warn where different numbers are one in float32, as those far from 0 can be."""
    rows = x[:: max(1, len(x) // 512)].cpu().double()
    lost = (rows - rows.float()).abs().amax(0) > LOST * rows.std(0, correction=0)
    lost &= rows.amax(0) > rows.amin(0)
    if lost.any():
        column = int(lost.int().argmax())
        warnings.warn(
            f"X's column {column} is so far from 0 that float32, in which all is computed, holds "
            "too few digits of its differences: subtract its mean first, as StandardScaler does",
            stacklevel=5,
        )


def _flatten(X: Tensor) -> Shaped[Tensor, "N D"]:
    if X.ndim < 2 or X.numel() == 0 or X.is_complex():
        wanted = "give real numbers [N, D], N and D 1 or more"
        raise ValueError(f"X is {X.dtype} of shape {tuple(X.shape)}: {wanted}")
    return X.detach().flatten(1)


def as_tensor(array) -> Tensor:
    """Numbers as a tensor, without a copy where possible; types that torch lacks become float32."""
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
    width = rows[:1].numel()
    step = max(1, BLOCK_NUMBERS // max(1, width))
    for start in range(0, len(rows), step):
        block = rows[start : start + step].to(torch.float32).reshape(-1, width)
        good = block.isfinite().all(1)
        if not good.all():
            row = start + int(good.long().argmin())
            wanted = "give finite numbers, or drop such rows"
            raise ValueError(
                f"{name} holds NaN or infinity (in float32), first in row {row}: {wanted}"
            )


def as_array(values) -> np.ndarray:
    """Labels or targets of any kind as an array."""
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def check_labels(y) -> np.ndarray:
    """Class labels as an array [N]; raises ValueError for none, columns, and non-classes."""
    if y is None:
        raise ValueError("requires y to be passed, but the target y is None")
    y = column_or_1d(as_array(y), warn=True)
    if y.dtype == object:
        try:
            np.unique(y)
        except TypeError:
            found = "labels that have no order, as words and None have"
            raise ValueError(f"y holds {found}: give labels of one kind") from None
    check_classification_targets(y)
    return y


def encode_labels(y, classes: np.ndarray) -> Int64[Tensor, " N"]:
    """The index of each label in the sorted classes; raises ValueError for others."""
    y = check_labels(y)
    index = np.searchsorted(classes, y).clip(max=len(classes) - 1)
    outside = classes[index] != y
    if outside.any():
        raise ValueError(
            f"y holds {y[outside][0]!r}, which is outside the classes {classes.tolist()}: "
            "drop such samples, or fit anew with all classes"
        )
    return torch.from_numpy(index.astype(np.int64))


def storage_dtype(rows: Tensor) -> torch.dtype:
    """The type that centers taken from these rows are stored in."""
    return rows.dtype if rows.dtype in STORED else torch.float32


def is_stream(X) -> bool:
    """Whether X yields (x, y) batches, as a DataLoader does."""
    return isinstance(X, torch.utils.data.DataLoader | Iterator)


def rebatch(batches: Iterable, rows: Callable[[], int]) -> Iterator[tuple[Tensor, Tensor]]:
    """(x, y) batches joined and cut to `rows()` samples each, but for the last."""
    waiting = []
    count = 0
    for batch in batches:
        waiting.append(batch)
        count += len(batch[0])
        while count >= (size := rows()):
            x, y = map(torch.cat, zip(*waiting, strict=True))
            yield x[:size], y[:size]
            waiting = [(x[size:], y[size:])]
            count -= size
    if count:
        x, y = map(torch.cat, zip(*waiting, strict=True))
        yield x, y


def like_input(result: Tensor, given) -> Tensor | np.ndarray:
    """A result in the kind of the input: a tensor on its device, or an array for all else."""
    if isinstance(given, Tensor):
        return result.to(given.device)
    if result.dtype == torch.bfloat16:  # which numpy doesn't have
        result = result.float()
    return result.cpu().numpy()
