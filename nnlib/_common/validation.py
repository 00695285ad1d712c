"""Settings and data are checked by name, and refused with what would do; data becomes tensors."""

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
NUMBERS = (*STORED, torch.float64, torch.int8, torch.int16, torch.int32, torch.int64)
WIDENED = {  # types that torch stores but doesn't compute in
    torch.bool: torch.uint8,
    torch.uint16: torch.int32,
    torch.uint32: torch.int64,
    torch.uint64: torch.int64,
}
WIDE = (torch.float64, torch.int32, torch.int64)  # types that hold more digits than float32
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


def as_tensor(name: str, array) -> Tensor:
    """Numbers of any kind as a tensor, without a copy where possible, and with all their digits.

    Missing values become NaN. Raises ValueError or TypeError, naming it, for what isn't numbers.
    """
    wanted = "give real numbers, such as float32, all rows of one length"
    kind = _kind(array)
    try:
        tensor = array if isinstance(array, Tensor) else _from_array(name, array)
        tensor = tensor if tensor.layout == torch.strided else tensor.to_dense()
    except (TypeError, ValueError, RuntimeError, MemoryError) as error:
        if str(error).startswith(name):
            raise
        refusal = TypeError if isinstance(error, TypeError) else ValueError
        raise refusal(f"{name} is {kind} ({error}): {wanted}") from None
    dtype = WIDENED.get(tensor.dtype, tensor.dtype)
    if tensor.is_complex():
        wanted = "Complex data not supported, give its parts as features"
    if dtype not in NUMBERS or tensor.is_meta or tensor.is_nested:
        raise ValueError(f"{name} is {kind}: {wanted}")
    if tensor.dtype == torch.uint64 and (tensor.to(dtype) < 0).any():  # too large for it
        dtype = torch.float64
    return (tensor.clone() if tensor.is_inference() else tensor).to(dtype)


def _kind(array) -> str:
    """What was given, as an error says it."""
    if not hasattr(array, "dtype") or getattr(array, "is_nested", False):
        return type(array).__name__
    return f"{array.dtype} of shape {tuple(array.shape)}"


def _from_array(name: str, array) -> Tensor:
    """Numbers from lists, arrays, scipy's sparse matrices, and pandas' columns and frames."""
    if array is None:
        raise TypeError("which holds no numbers")
    if hasattr(array, "iloc") and array.ndim == 2:
        columns = [as_tensor(f"{name}'s column {key!r}", part) for key, part in array.items()]
        array = np.column_stack(columns) if columns else np.empty((len(array), 0))
    elif hasattr(array, "iloc"):
        _check_dtype(name, array.dtype)
        array = array.to_numpy(na_value=np.nan)
    elif hasattr(array, "toarray"):
        array = array.toarray()
    elif isinstance(array, np.ma.MaskedArray):
        array = np.ma.filled(array.astype(np.float64), np.nan)
    elif isinstance(array, list | tuple) and any(isinstance(part, Tensor) for part in array):
        return torch.stack(list(array)).detach()
    array = np.asarray(array)
    _check_dtype(name, array.dtype)
    wide = array.dtype.kind == "O" or array.dtype.type is np.longdouble
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable.*")  # it is only read
        dtype = np.float64 if wide else array.dtype.newbyteorder("=")
        return torch.from_numpy(np.asarray(array, dtype, order="C"))


def _check_dtype(name: str, dtype) -> None:
    """Raise TypeError for times, words and categories, with what makes numbers of them."""
    if dtype.kind in "mM":
        raise TypeError(f"{name} is {dtype}: give numbers, as .astype('int64') makes of times")
    if dtype.kind not in "biufcO" or (dtype.kind == "O" and not isinstance(dtype, np.dtype)):
        wanted = "give numbers, as scikit-learn's OneHotEncoder or OrdinalEncoder makes of words"
        raise TypeError(f"{name} is {dtype}: {wanted}")


def as_integers(
    name: str, values, length: int | None = None, interval: tuple[int, int] | None = None
) -> Int64[Tensor, " N"]:
    """Whole numbers of any type as int64 [N]; ValueError for others, in another number or range."""
    numbers = as_tensor(name, values)
    whole = not numbers.is_floating_point() or numbers.numel() == 0
    if numbers.ndim != 1 or not whole or length not in (None, len(numbers)):
        given = f"{numbers.dtype} {tuple(numbers.shape)}"
        raise ValueError(f"{name} is {given}: give int64 [{'N' if length is None else length}]")
    numbers = numbers.long()
    if interval is not None:
        low, high = interval
        outside = numbers[(numbers < low) | (numbers > high)]
        if len(outside):
            wanted = f"0 ... {high}, or -1" if low == -1 else f"{low} ... {high}"
            raise ValueError(f"{name} holds {int(outside[0])}: give {wanted}")
    return numbers


def check_features(estimator, X, reset: bool) -> Shaped[Tensor, "N D"]:
    """X as a tensor [N, D], without a copy where possible; further dimensions are flattened.

    Raises ValueError for NaN, infinity, no samples or features, or other features than fitted on.
    """
    if is_stream(X):
        raise ValueError("X is a stream of batches, which only a fit takes: give an array")
    x = as_tensor("X", X).detach()
    if x.ndim < 2:
        wanted = "give [N, D]. Reshape your data: X[None] is one sample, X[:, None] one feature"
        raise ValueError(f"X has shape {tuple(x.shape)}: {wanted}")
    if x.numel() == 0:
        empty = f"0 {'feature' if len(x) else 'sample'}(s) (shape={tuple(x.shape)})"
        raise ValueError(f"X has {empty} while a minimum of 1 is required: give some")
    x = x.flatten(1)
    check_finite("X", x)
    if not isinstance(X, Tensor):
        validate_data(estimator, X, reset=reset, skip_check_array=True, ensure_2d=False)
    if reset:
        estimator.n_features_in_ = x.shape[1]
    elif x.shape[1] != estimator.n_features_in_:
        raise ValueError(
            f"X has {x.shape[1]} features, but {type(estimator).__name__} is expecting "
            f"{estimator.n_features_in_} features as input: give as many as it was fitted on"
        )
    return x


def check_targets(y) -> Shaped[Tensor, "N *V"]:
    """Targets of a regressor as a tensor; raises ValueError for NaN, infinity, and no columns."""
    if y is None:
        raise ValueError("requires y to be passed, but the target y is None")
    y = as_tensor("y", y).detach()
    if y.ndim == 0 or y.numel() == 0:
        raise ValueError(f"y has shape {tuple(y.shape)}: give targets [N] or [N, V], V 1 or more")
    check_finite("y", y)
    return y


def check_finite(name: str, rows: Shaped[Tensor, "N *D"]) -> None:
    """Raise ValueError where a number is not finite in float32, looking at a block at a time."""
    if not rows.is_floating_point() or rows.numel() == 0:
        return
    width = rows[0].numel()
    step = max(1, BLOCK_NUMBERS // width)
    for start in range(0, len(rows), step):
        block = rows[start : start + step].to(torch.float32).reshape(-1, width)
        if not block.sum().isfinite() and not block.isfinite().all():  # sums are quicker
            row, column = (~block.isfinite()).nonzero()[0].tolist()
            where = f"row {start + row}, column {column}"
            wanted = "drop such rows, or fill them in, as scikit-learn's SimpleImputer does"
            raise ValueError(
                f"{name} holds NaN or infinity (in float32), first in {where}: {wanted}"
            )


def as_array(values) -> np.ndarray:
    """Labels or targets of any kind as an array."""
    if not isinstance(values, Tensor):
        return np.asarray(values)
    values = values.detach().to_dense().cpu()
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()


def check_labels(y) -> np.ndarray:
    """Class labels as an array [N]; raises ValueError for none, columns, and non-classes."""
    if y is None:
        raise ValueError("requires y to be passed, but the target y is None")
    kind = _kind(y)
    try:
        y = column_or_1d(as_array(y), warn=True)
    except (TypeError, ValueError) as error:
        raise ValueError(f"y is {kind} ({error}): give one label a sample") from None
    try:
        classes = np.unique(y)
        missing = bool((classes != classes).any())
    except TypeError:
        found = "labels that have no order, as words and None have"
        raise ValueError(f"y holds {found}: give labels of one kind") from None
    if missing:
        raise ValueError("y holds missing labels (NaN or NaT): drop such samples")
    check_classification_targets(y)
    return y


def encode_labels(y, classes: np.ndarray) -> Int64[Tensor, " N"]:
    """The index of each label in the sorted classes; raises ValueError for others."""
    y = check_labels(y)
    try:
        index = np.searchsorted(classes, y).clip(max=len(classes) - 1)
        outside = classes[index] != y
    except TypeError:  # labels of another kind
        outside = np.ones(len(y), bool)
    if outside.any():
        raise ValueError(
            f"y holds {y[outside][0]!r}, which is outside the classes {classes.tolist()}: "
            "drop such samples, or fit anew with all classes"
        )
    return torch.from_numpy(index.astype(np.int64))


def check_lengths(x, y) -> None:
    """Raise ValueError where there isn't one label or target a sample."""
    if len(x) != len(y):
        raise ValueError(f"X has {len(x)} samples, and y {len(y)}: give one each")


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


def like_input(result: Tensor, given):
    """A result in the kind of the input: a tensor on its device, or an array for all else."""
    if isinstance(given, Tensor):
        return result.to(given.device)
    if result.dtype == torch.bfloat16:  # which numpy doesn't have
        result = result.float()
    return result.cpu().numpy()
