"""What every saved estimator keeps, and what a file of one is like."""

import stat

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.exceptions import NotFittedError

from nnlib.neighbors.classifier import DynamicClassifier
from nnlib.neighbors.metric_learning import NCATransformer
from nnlib.neighbors.prototypes import PrototypeClassifier
from nnlib.neighbors.regressor import DynamicRegressor
from nnlib.neighbors.stacking import StackedClassifier

QUICK = {"epochs": 2, "device": "cpu", "progress": False}
COLUMNS = ["length", "width", "depth"]
ALL = [
    DynamicClassifier("euclidean", progress=False),
    DynamicRegressor(progress=False),
    PrototypeClassifier(4, **QUICK),
    NCATransformer(width=8, dim=2, proxies=4, **QUICK),
    StackedClassifier(3, progress=False),
]


@pytest.fixture
def frame():
    """A table whose two kinds of rows lie apart."""
    rows = np.random.default_rng(0).normal(size=(60, 3)) + np.arange(60)[:, None] % 2 * 3
    return pd.DataFrame(rows, columns=COLUMNS), np.arange(60) % 2


@pytest.mark.parametrize("model", ALL, ids=lambda model: type(model).__name__)
def test_columns_names_are_kept_and_held_to(model, frame, tmp_path):
    x, y = frame
    path = tmp_path / "model"
    with pytest.raises(NotFittedError):
        model.__class__().save(path)
    model.fit(x, y).save(path)
    again = type(model).load(path, "cpu")
    assert again.feature_names_in_.tolist() == COLUMNS
    assert again.get_params(deep=False).keys() == model.get_params(deep=False).keys()
    answer = "transform" if hasattr(model, "transform") else "predict"
    assert np.array_equal(getattr(again, answer)(x), getattr(model, answer)(x))
    with pytest.raises(ValueError, match="feature names should match"):
        getattr(again, answer)(x[COLUMNS[::-1]])


@pytest.mark.parametrize("model", ALL[3:4], ids=lambda model: type(model).__name__)
def test_what_transforms_names_its_columns(model, frame):
    model.set_output(transform="pandas").fit(*frame)
    found = model.transform(frame[0])
    assert isinstance(found, pd.DataFrame) and list(found) == list(model.get_feature_names_out())
    assert list(found)[0] == f"{type(model).__name__.lower()}0"


def test_a_stack_remembers_how_many_layers_it_might_have(frame, tmp_path):
    model = StackedClassifier(3, progress=False).fit(*frame)
    model.save(tmp_path / "stack")
    again = StackedClassifier.load(tmp_path / "stack", "cpu")
    assert again.num_layers == 3 and len(again.layers_) == len(model.layers_)
    assert again.first is None and again.later is None and again.progress is False


def test_others_may_read_a_file_as_any_new_one(frame, tmp_path):
    ALL[0].fit(*frame).save(tmp_path / "model")
    (tmp_path / "any").touch()
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("model", "any")]
    assert modes[0] == modes[1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_missing_is_what_is_named(frame, tmp_path):
    ALL[0].fit(*frame).save(tmp_path / "model")
    with pytest.raises(ValueError, match="device='cuda'"):
        DynamicClassifier.load(tmp_path / "model", "cuda")
