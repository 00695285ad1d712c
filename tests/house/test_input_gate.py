"""Whatever is given to whatever takes arrays: the right answer, or an error that names it.

Each public entry meets each kind of input. What numbers can be made of gives the answer of plain
float32 tensors; all else raises ValueError or TypeError, with the argument's name, and changes no
model.
"""

import contextlib
import copy
import datetime
import re
import warnings
from decimal import Decimal
from functools import cache
from importlib import import_module

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch

import nnlib
from nnlib import attend, class_log_probabilities, nearest
from nnlib.attention import InverseDistance, Labels
from nnlib.features import (
    PatchFeatures,
    blur,
    deskew,
    mirrored_copies,
    pixel_samples,
    shifted_copies,
)
from nnlib.nca import MemoryBank, embed, knn_accuracy, knn_evaluate, knn_predict, nca_loss

FACES = ("nnlib", "nnlib.attention", "nnlib.features", "nnlib.nca", "nnlib.neighbors")
WITHOUT_ARRAYS = {  # files, texts, pictures' bytes, and settings, which have tests of their own
    *("ContextModel", "datasets", "image_codec", "distributed", "make_kernel", "MATMUL_DTYPES"),
    *("Kernel", "InverseDistance", "CosineInverseDistance", "EuclideanPyramid", "InfluenceCone"),
    *("CosineSoftmax", "DotProduct", "UniformKNN"),
}
KERNEL = InverseDistance()

# Small whole numbers, which are the same in every type.
ROWS = np.random.default_rng(0).integers(0, 20, (12, 3)).astype(np.float32)
ROWS += 40 * (np.arange(12) % 3)[:, None]
X = torch.from_numpy(ROWS)
CLASSES = np.arange(12) % 3


def frame(rows) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["a", "b", "c"])


def inference_tensor(rows) -> torch.Tensor:
    with torch.inference_mode():
        return torch.tensor(rows)


def read_only(rows) -> np.ndarray:
    rows = rows.copy()
    rows.flags.writeable = False
    return rows


NUMBERS = {  # each turns rows [N, D] into another kind of the same numbers
    "list": lambda rows: rows.tolist(),
    "tuples": lambda rows: tuple(map(tuple, rows.tolist())),
    "list of arrays": list,
    "list of tensors": lambda rows: list(torch.from_numpy(rows)),
    "objects": lambda rows: rows.astype(object),
    "decimals": lambda rows: [[Decimal(int(number)) for number in row] for row in rows],
    "read only": read_only,
    "columns first": np.asfortranarray,
    "backwards": lambda rows: rows[::-1, ::-1].copy()[::-1, ::-1],
    "a masked array without gaps": np.ma.masked_array,
    "frame": frame,
    "nullable frame": lambda rows: frame(rows.astype(int)).astype("Int64"),
    "mixed frame": lambda rows: frame(rows).astype({"a": "int16", "b": "Float32", "c": object}),
    "sparse frame": lambda rows: frame(rows).astype(pd.SparseDtype("float32", 0)),
    "csr": scipy.sparse.csr_array,
    "csc": scipy.sparse.csc_matrix,
    "coo": lambda rows: scipy.sparse.coo_array(rows.astype(int)),
    "torch sparse": lambda rows: torch.from_numpy(rows).to_sparse(),
    "torch sparse rows": lambda rows: torch.from_numpy(rows).to_sparse_csr(),
    "a view": lambda rows: torch.from_numpy(rows.T.copy()).T,
    "inference tensor": inference_tensor,
    "with gradient": lambda rows: torch.tensor(rows, requires_grad=True),
}
NUMPY_TYPES = "i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8 >i4 >f4 >f8 g".split()
NUMBERS |= {name: lambda rows, name=name: rows.astype(name) for name in NUMPY_TYPES}
TORCH_TYPES = "int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 bfloat16 float64".split()
NUMBERS |= {
    f"torch {name}": lambda rows, name=name: torch.from_numpy(rows).to(getattr(torch, name))
    for name in TORCH_TYPES
}

COMPACT = {  # in which pictures come, whose columns are scaled alike
    *("i1", "i2", "u1", "f2"),
    *(f"torch {name}" for name in ("int8", "int16", "uint8", "float16", "bfloat16")),
}
NO_NUMBERS = {
    "None": lambda rows: None,
    "a word": lambda rows: "rows",
    "words": lambda rows: [["a", "b", "c"]] * len(rows),
    "bytes": lambda rows: rows.astype("S"),
    "ragged": lambda rows: [[1.0, 2.0, 3.0], [1.0]],
    "ragged tensors": lambda rows: [torch.ones(3), torch.ones(2)],
    "dictionary": lambda rows: {"a": 1},
    "dictionaries": lambda rows: [[{}, {}, {}]] * len(rows),
    "dates": lambda rows: [[datetime.date(2020, 1, 1)] * 3] * len(rows),
    "times": lambda rows: rows.astype("M8[s]"),
    "time spans": lambda rows: rows.astype("m8[s]"),
    "records": lambda rows: np.zeros(len(rows), [("a", "f4"), ("b", "f4")]),
    "complex": lambda rows: rows.astype(complex),
    "complex tensor": lambda rows: torch.from_numpy(rows).to(torch.complex64),
    "object complex": lambda rows: rows.astype(complex).astype(object),
    "float8": lambda rows: torch.from_numpy(rows).to(torch.float8_e4m3fn),
    "without data": lambda rows: torch.from_numpy(rows).to("meta"),
    "nested": lambda rows: torch.nested.nested_tensor([torch.ones(3), torch.ones(2)]),
    "a column of words": lambda rows: frame(rows).assign(c="word"),
    "a column of categories": lambda rows: frame(rows).assign(c=pd.Categorical(["x"] * len(rows))),
    "a column of times": lambda rows: frame(rows).assign(c=pd.Timestamp("2020-01-01")),
    "a column of zoned times": lambda rows: frame(rows).assign(c=pd.Timestamp.now("UTC")),
    "a column of words and numbers": lambda rows: frame(rows.astype(object)).replace(
        rows[0, 0], "w"
    ),
    "too many numbers": lambda rows: scipy.sparse.csr_array((len(rows), 10**14)),
    "a number": lambda rows: 3.0,
    "a number in a tensor": lambda rows: torch.tensor(3.0),
    "one row": lambda rows: rows[0],
    "one dimension more": lambda rows: rows[None, None, None],
}
NOT_FINITE = {
    "NaN": lambda rows: replaced(rows, np.nan),
    "infinity": lambda rows: replaced(rows, np.inf),
    "too large": lambda rows: replaced(rows.astype(float), -1e300),
    "gaps": lambda rows: np.ma.masked_equal(rows, rows[1, 1]),
    "missing": lambda rows: replaced(rows.astype(object), None),
    "nullable with gaps": lambda rows: frame(rows).astype("Float64").mask(rows == rows[1, 1]),
}
NO_ROWS = {
    "no rows": lambda rows: rows[:0],
    "an empty list": lambda rows: [],
    "no columns": lambda rows: rows[:, :0],
    "a frame without columns": lambda rows: frame(rows)[[]],
}


def replaced(rows, value) -> np.ndarray:
    rows = rows.copy()
    rows[1, 1] = value
    return rows


WHOLE = {  # each turns whole numbers from 0 into another kind of the same
    "list": lambda numbers: numbers.tolist(),
    "tuple": lambda numbers: tuple(numbers.tolist()),
    "range": lambda numbers: numbers.astype(np.int64).tolist(),
    "column": pd.Series,
    "nullable column": lambda numbers: pd.Series(numbers, dtype="Int16"),
    "list of tensors": lambda numbers: list(torch.from_numpy(numbers)),
    "inference tensor": inference_tensor,
}
WHOLE |= {name: lambda numbers, name=name: numbers.astype(name) for name in NUMPY_TYPES[:8]}
WHOLE |= {
    f"torch {name}": lambda numbers, name=name: torch.from_numpy(numbers).to(getattr(torch, name))
    for name in TORCH_TYPES[:8]
}
NO_INTEGERS = {
    "words": lambda numbers: ["a"] * len(numbers),
    "floats": lambda numbers: numbers + 0.5,
    "NaN": lambda numbers: numbers * np.nan,
    "complex": lambda numbers: numbers.astype(complex),
    "times": lambda numbers: numbers.astype("M8[s]"),
    "gaps": lambda numbers: pd.Series(numbers, dtype="Int64").mask(numbers == 1),
    "a matrix": lambda numbers: np.stack([numbers, numbers], 1),
    "a number": lambda numbers: 1,
    "a word": lambda numbers: "label",
    "ragged": lambda numbers: [[1], [1, 2]],
}
NOT_WHOLE = NO_INTEGERS | {"one too few": lambda numbers: numbers[1:]}
OUTSIDE = {
    "too large": lambda numbers: numbers + 1000,
    "negative": lambda numbers: numbers - 1000,
}

LABELS = WHOLE | {  # of classifiers: all that has an order
    "words": lambda numbers: np.array(["a", "b", "c"])[numbers],
    "object words": lambda numbers: np.array(["a", "b", "c"], object)[numbers],
    "a column of words": lambda numbers: pd.Series(np.array(["a", "b", "c"])[numbers]),
    "categories": lambda numbers: pd.Series(np.array(["a", "b", "c"])[numbers], dtype="category"),
    "times": lambda numbers: numbers.astype("M8[D]"),
    "negative": lambda numbers: numbers - 1,
    "whole floats": lambda numbers: numbers.astype(float),
    "whole half floats": lambda numbers: torch.from_numpy(numbers).bfloat16(),
    "long": lambda numbers: numbers.astype("g"),
    "one column": lambda numbers: numbers[:, None],
}
NO_LABELS = {name: NOT_WHOLE[name] for name in NOT_WHOLE.keys() - {"words", "times"}} | {
    "None": lambda numbers: None,
    "words and None": lambda numbers: ["a", None] * (len(numbers) // 2),
    "words and NaN": lambda numbers: np.array(["a", np.nan] * (len(numbers) // 2), object),
    "missing words": lambda numbers: pd.Series(["a", None] * (len(numbers) // 2)),
    "not a time": lambda numbers: np.array(["2020-01-01", "NaT"] * (len(numbers) // 2), "M8[D]"),
    "no columns": lambda numbers: np.ones((len(numbers), 0)),
    "no columns in a tensor": lambda numbers: torch.ones(len(numbers), 0),
    "sparse": lambda numbers: scipy.sparse.csr_array(np.stack([numbers, numbers], 1)),
    "dictionary": lambda numbers: {"a": 1},
    "bytes": lambda numbers: np.array([b"a", b"b", b"c"])[numbers],
    "dates": lambda numbers: [datetime.date(2020, 1, 1 + number) for number in numbers.tolist()],
}

BANK = torch.nn.functional.normalize(X, dim=1)
IMAGES = np.random.default_rng(1).integers(0, 100, (12, 9, 9)).astype(np.float32)
EVERYTHING = NO_NUMBERS | NOT_FINITE | NO_ROWS


@cache
def patch_features() -> PatchFeatures:
    return PatchFeatures(5, 3, device="cpu").fit(IMAGES)


def batches(features=X, labels=CLASSES) -> list:
    return [(features, labels)]


def filled(embeddings=X, index=None) -> torch.Tensor:
    bank = MemoryBank(CLASSES, 3, momentum=0.5)
    if index is None:
        bank.fill(embeddings)
    else:
        bank.update(index, embeddings)
    return bank.embeddings()


def cleared(index) -> torch.Tensor:
    bank = MemoryBank(CLASSES, 3)
    bank.clear(index)
    return bank.embeddings()


def predicted(features=X, bank=BANK, labels=CLASSES, exclude=None):
    return knn_predict(features, bank, labels, k=4, top=3, exclude=exclude)


def loss(features=X, labels=CLASSES, bank=BANK, bank_labels=CLASSES, exclude=None):
    return nca_loss(features, labels, bank, bank_labels, exclude)


def accuracies(features=X, labels=CLASSES, bank=BANK, bank_labels=CLASSES):
    found = knn_accuracy(features, labels, bank, bank_labels, k=4)
    return torch.tensor(list(found.values()))


def evaluated(queries):
    found = knn_evaluate(torch.nn.Identity(), queries, batches(), k=4)
    return torch.tensor(list(found.values()))


def log_probabilities(queries=X, centers=X + 1, labels=CLASSES, exclude=None):
    return class_log_probabilities(queries, centers, labels, 3, KERNEL, exclude)


ROW_ENTRIES = {  # public name and argument: what takes rows [12, 3], what it refuses
    "attend queries": (lambda rows: attend(rows, X + 1, X, KERNEL), NO_NUMBERS),
    "attend centers": (lambda rows: attend(X, rows, X, KERNEL), NO_NUMBERS | NO_ROWS),
    "attend values": (lambda rows: attend(X, X + 1, rows, KERNEL), NO_NUMBERS),
    "nearest queries": (lambda rows: nearest(rows, X + 1, 2, KERNEL)[0], NO_NUMBERS),
    "nearest centers": (lambda rows: nearest(X, rows, 2, KERNEL)[0], NO_NUMBERS | NO_ROWS),
    "class_log_probabilities queries": (log_probabilities, NO_NUMBERS),
    "class_log_probabilities centers": (
        lambda rows: log_probabilities(centers=rows),
        NO_NUMBERS | NO_ROWS,
    ),
    "knn_predict features": (predicted, NO_NUMBERS | NOT_FINITE),
    "knn_predict bank": (lambda rows: predicted(bank=rows), EVERYTHING),
    "knn_accuracy features": (accuracies, NO_NUMBERS | NOT_FINITE),
    "knn_accuracy bank": (lambda rows: accuracies(bank=rows), EVERYTHING),
    "nca_loss features": (loss, NO_NUMBERS),
    "nca_loss bank": (lambda rows: loss(bank=rows), EVERYTHING),
    "MemoryBank embeddings": (filled, EVERYTHING),
    "MemoryBank features": (lambda rows: filled(rows, range(12)), NO_NUMBERS),
}
WHOLE_ENTRIES = {  # what takes whole numbers [12] of three classes, or of samples
    "class_log_probabilities labels": (
        lambda labels: log_probabilities(labels=labels),
        NOT_WHOLE | OUTSIDE,
    ),
    "class_log_probabilities exclude": (
        lambda rows: log_probabilities(exclude=rows),
        NOT_WHOLE | OUTSIDE,
    ),
    "attend exclude": (
        lambda rows: attend(X, X + 1, X, KERNEL, exclude=rows),
        NOT_WHOLE | OUTSIDE,
    ),
    "nearest exclude": (
        lambda rows: nearest(X, X + 1, 2, KERNEL, exclude=rows)[0],
        NOT_WHOLE | OUTSIDE,
    ),
    "Labels labels": (
        lambda labels: attend(X[:, :1], X[:, :1], Labels(labels, 3), KERNEL),
        NOT_WHOLE | OUTSIDE,
    ),
    "knn_predict bank_labels": (lambda labels: predicted(labels=labels), NOT_WHOLE),
    "knn_predict exclude": (lambda rows: predicted(exclude=rows), NOT_WHOLE | OUTSIDE),
    "knn_accuracy labels": (lambda labels: accuracies(labels=labels), NOT_WHOLE),
    "knn_accuracy bank_labels": (lambda labels: accuracies(bank_labels=labels), NOT_WHOLE),
    "nca_loss labels": (lambda labels: loss(labels=labels), NOT_WHOLE | OUTSIDE),
    "nca_loss bank_labels": (lambda labels: loss(bank_labels=labels), NOT_WHOLE),
    "nca_loss exclude": (lambda rows: loss(exclude=rows), NOT_WHOLE | OUTSIDE),
    "MemoryBank labels": (lambda labels: MemoryBank(labels, 3).labels, NO_INTEGERS),
    "MemoryBank index": (lambda index: filled(X, index), NO_INTEGERS | OUTSIDE),
    "MemoryBank clear: index": (cleared, NO_INTEGERS | OUTSIDE),
}
PICTURE_ENTRIES = {
    "deskew images": deskew,
    "blur images": lambda images: blur(images, 0.5),
    "mirrored_copies images": mirrored_copies,
    "shifted_copies images": lambda images: shifted_copies(images, CLASSES)[0],
    "pixel_samples image": lambda image: pixel_samples(image)[1],
    "PatchFeatures X": lambda images: patch_features().transform(images),
}
BATCH_ENTRIES = {
    "embed batches": lambda rows: embed(torch.nn.Identity(), batches(rows))[0],
    "knn_evaluate batches": lambda rows: evaluated(batches(rows)),
}

QUICK = {"device": "cpu"}
SILENT = QUICK | {"progress": False}
NEIGHBORS = {"n_neighbors": 2, "weights": "uniform", "scaling": "none", **QUICK}
ESTIMATORS = {
    "DynamicClassifier": lambda: nnlib.DynamicClassifier("euclidean", rule="published", **SILENT),
    "DynamicRegressor": lambda: nnlib.DynamicRegressor(rule="published", **SILENT),
    "PrototypeClassifier": lambda: nnlib.PrototypeClassifier(3, epochs=1, **SILENT),
    "NCATransformer": lambda: nnlib.NCATransformer("linear", dim=2, epochs=1, **SILENT),
    "DeepClassifier": lambda: nnlib.DeepClassifier(2, kernel="euclidean", **SILENT),
    "StackedClassifier": lambda: nnlib.StackedClassifier(1, folds=2, **SILENT),
    "NeighborsClassifier": lambda: nnlib.NeighborsClassifier(**NEIGHBORS),
    "NeighborsRegressor": lambda: nnlib.NeighborsRegressor(**NEIGHBORS),
}
REGRESSORS = [name for name in ESTIMATORS if name.endswith("Regressor")]


def answer(model, rows=X) -> np.ndarray:
    methods = ("predict_proba", "transform", "predict")
    ask = next(getattr(model, name) for name in methods if hasattr(model, name))
    return np.asarray(ask(rows), np.float32)


def targets(name: str):
    return ROWS[:, 0] if name in REGRESSORS else CLASSES


def test_every_public_name_is_here():
    public = {name for face in FACES for name in import_module(face).__all__}
    entries = ROW_ENTRIES | WHOLE_ENTRIES | PICTURE_ENTRIES | BATCH_ENTRIES
    here = {name.split()[0] for name in entries} | ESTIMATORS.keys() | WITHOUT_ARRAYS
    assert public - here == set()
    assert here - public == set()


def wrong_answers(call, inputs: dict, base, expected) -> dict:
    """Each kind of input whose answer is not the expected one, and what came instead."""
    wrong = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names of columns, labels in a column
        for name, turn in inputs.items():
            try:
                found = np.asarray(call(turn(base)), np.float32)
            except Exception as error:
                wrong[name] = repr(error)[:300]
                continue
            if found.shape != expected.shape or not np.allclose(found, expected, atol=1e-4):
                wrong[name] = f"another answer: {found.ravel()[:4]}"
    return wrong


def not_refused(call, inputs: dict, base, words: str) -> dict:
    """Each kind of input that isn't refused in words that name it, and what came instead."""
    wrong = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, turn in inputs.items():
            try:
                wrong[name] = f"an answer: {call(turn(base))!r}"[:200]
            except (ValueError, TypeError) as error:
                if not re.search(words, str(error)):
                    wrong[name] = repr(error)[:300]
            except Exception as error:
                wrong[name] = repr(error)[:300]
    return wrong


def detached(call):
    return lambda value: torch.as_tensor(call(value)).detach().float()


@pytest.mark.parametrize("name", ROW_ENTRIES)
def test_rows_of_any_kind(name):
    call, refused = ROW_ENTRIES[name]
    assert wrong_answers(detached(call), NUMBERS, ROWS, detached(call)(X).numpy()) == {}
    assert not_refused(call, refused, ROWS, rf"\b{name.split()[-1]}\b") == {}


@pytest.mark.parametrize("name", WHOLE_ENTRIES)
def test_whole_numbers_of_any_kind(name):
    call, refused = WHOLE_ENTRIES[name]
    expected = detached(call)(torch.from_numpy(CLASSES)).numpy()
    assert wrong_answers(detached(call), WHOLE, CLASSES, expected) == {}
    assert (
        not_refused(call, refused, CLASSES, rf"\b{name.split()[-1]}\b|values has shape .11") == {}
    )


@pytest.mark.parametrize("name", PICTURE_ENTRIES)
def test_pictures_of_any_kind(name):
    call = detached(PICTURE_ENTRIES[name])
    flat = {"frame", "nullable frame", "mixed frame", "sparse frame", "csr", "csc", "coo"}
    inputs = {kind: NUMBERS[kind] for kind in NUMBERS.keys() - flat - {"decimals", "backwards"}}
    for kind in ("a view", "torch sparse rows"):
        inputs.pop(kind)
    assert wrong_answers(call, inputs, IMAGES, call(torch.from_numpy(IMAGES)).numpy()) == {}
    kinds = (
        "None",
        "a word",
        "ragged",
        "dictionary",
        "times",
        "complex",
        "without data",
        "one row",
    )
    refused = {kind: NO_NUMBERS[kind] for kind in (*kinds, "a number")}
    assert not_refused(call, refused, IMAGES, rf"\b{name.split()[-1]}\b") == {}


@pytest.mark.parametrize("name", BATCH_ENTRIES)
def test_batches_of_any_kind(name):
    call = BATCH_ENTRIES[name]
    assert wrong_answers(detached(call), NUMBERS, ROWS, detached(call)(X).numpy()) == {}
    refused = {kind: NO_NUMBERS[kind] for kind in ("None", "words", "ragged", "times", "complex")}
    assert not_refused(call, refused, ROWS, r"\bbatches\b") == {}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_samples_of_any_kind(name):
    model = ESTIMATORS[name]().fit(X, targets(name))
    expected = answer(model)
    refused = {kind: EVERYTHING[kind] for kind in EVERYTHING.keys() - {"one dimension more"}}

    def refit(rows):
        return answer(copy.deepcopy(model).fit(rows, targets(name)))

    small = COMPACT if name == "NCATransformer" else set()
    inputs = {kind: NUMBERS[kind] for kind in NUMBERS.keys() - small}
    assert wrong_answers(refit, inputs, ROWS, expected) == {}
    assert wrong_answers(lambda rows: answer(model, rows), NUMBERS, ROWS, expected) == {}
    calls = [lambda rows: model.fit(rows, targets(name)), lambda rows: answer(model, rows)]
    if hasattr(model, "partial_fit"):
        calls.append(lambda rows: model.partial_fit(rows, targets(name)))
    if hasattr(model, "kneighbors"):
        some = {kind: refused[kind] for kind in refused.keys() - {"None"}}
        assert not_refused(lambda rows: model.kneighbors(rows, 1), some, ROWS, r"\bX\b") == {}
    for call in calls:
        assert not_refused(call, refused, ROWS, r"\bX\b") == {}
        assert np.array_equal(answer(model), expected)
    wider = np.concatenate([ROWS, ROWS], 1)
    assert not_refused(calls[1], {"wider": lambda rows: rows}, wider, r"\bX\b") == {}


@pytest.mark.parametrize("name", sorted(ESTIMATORS.keys() - set(REGRESSORS)))
def test_labels_of_any_kind(name):
    model = ESTIMATORS[name]().fit(X, CLASSES)
    expected = answer(model)
    inputs = LABELS

    def refit(y):
        return answer(copy.deepcopy(model).fit(X, y))

    assert wrong_answers(refit, inputs, CLASSES, expected) == {}
    assert not_refused(lambda y: model.fit(X, y), NO_LABELS, CLASSES, r"\by\b|samples|label") == {}
    if hasattr(model, "partial_fit"):
        unknown = NO_LABELS | {"words": LABELS["words"], "times": LABELS["times"]} | OUTSIDE
        found = not_refused(
            lambda y: model.partial_fit(X, y), unknown, CLASSES, r"\by\b|samples|label"
        )
        assert found == {}
    assert np.array_equal(answer(model), expected)
    assert hasattr(model, "score") is hasattr(model, "predict")
    if hasattr(model, "score"):
        right = {kind: LABELS[kind] for kind in WHOLE.keys() - {"list of tensors"}}
        found = wrong_answers(
            lambda y: model.score(X, y), right, CLASSES, np.array(model.score(X, CLASSES))
        )
        assert found == {}


@pytest.mark.parametrize("name", REGRESSORS)
def test_targets_of_any_kind(name):
    model = ESTIMATORS[name]().fit(X, ROWS)
    expected = answer(model)

    def refit(y):
        return answer(copy.deepcopy(model).fit(X, y))

    assert wrong_answers(refit, NUMBERS, ROWS, expected) == {}
    kinds = EVERYTHING.keys() - {"one row", "one dimension more", "an empty list"}
    refused = {kind: EVERYTHING[kind] for kind in kinds} | {"one too few": lambda rows: rows[1:]}
    for fit in (model.fit, getattr(model, "partial_fit", model.fit)):
        assert not_refused(lambda y, fit=fit: fit(X, y), refused, ROWS, r"\by\b|samples") == {}
        assert np.array_equal(answer(model), expected)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", [name for name in ROW_ENTRIES if "queries" in name])
def test_a_query_that_is_no_number_has_no_answer_that_is_one(name, value):
    call = ROW_ENTRIES[name][0]
    rows = replaced(ROWS, value)
    with contextlib.suppress(ValueError):
        found = torch.as_tensor(call(rows))
        kept = np.arange(12) != 1
        assert not found[1].isfinite().any()
        assert torch.allclose(found[kept], torch.as_tensor(call(ROWS))[kept])
