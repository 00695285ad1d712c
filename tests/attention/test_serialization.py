"""Kernels and models under the names of today and of the format before."""

import copy
import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import safe_open, save_file

from nnlib import (
    DeepClassifier,
    DynamicClassifier,
    DynamicRegressor,
    NCATransformer,
    NeighborsClassifier,
    NeighborsRegressor,
    PrototypeClassifier,
    StackedClassifier,
    attend,
)
from nnlib._common.serialization import from_json, to_json
from nnlib.attention import CosineInverseDistance, InverseDistance, Kernel, UniformKNN
from nnlib.errors import ModelError
from nnlib.features import PatchFeatures

X = torch.tensor([[0.0, 0.0], [1.0, 0.0], [5.0, 5.0], [6.0, 5.0]])
CLASSES = {"array": ["far", "near"], "type": "<U4"}


def old_file(path, kind, settings, attributes, tensors):
    """Write a file as nnlib.1 did."""
    attributes = {"n_features_in_": 2, "classes_": CLASSES} | attributes
    told = json.dumps({"settings": settings, "attributes": attributes})
    save_file(tensors, path, {"format": "nnlib.1", "class": kind, "told": told})


@pytest.mark.parametrize("kernel", [UniformKNN(2, InverseDistance(-2.0)), CosineInverseDistance()])
def test_a_kernel_comes_back_from_json(kernel):
    assert from_json(json.loads(json.dumps(to_json(kernel)))) == kernel


def test_a_kernel_of_ones_own_is_found_by_its_name():
    class Own(InverseDistance):
        pass

    assert type(from_json(to_json(Own(-3.0)))) is Own


@pytest.mark.parametrize("name", ["Nothing", "Registered", "eval"])
def test_no_other_class_is_made_from_a_file(name):
    with pytest.raises(ValueError, match=name):
        from_json({"kernel": name, "fields": {}})


def test_a_classifier_of_the_format_before_is_read_by_todays_names(tmp_path):
    base = {"kernel": "InverseDistance", "fields": {"exponent": -2.0, "epsilon": 0.0}}
    kernel = {"kernel": "KNearest", "fields": {"count": 2, "by": base}}
    settings = {"kernel": kernel, "condensing": "batches", "device": "cpu"}
    tensors = {"centers": X, "values": torch.tensor([1, 1, 0, 0])}
    old_file(tmp_path / "old", "DynamicClassifier", settings, {}, tensors)
    model = DynamicClassifier.load(tmp_path / "old", "cpu")
    assert model.kernel == UniformKNN(2, InverseDistance(-2.0, 0.0))
    assert model.predict(X.numpy()).tolist() == ["near", "near", "far", "far"]
    assert np.array_equal(model.predict_proba(X.numpy())[0], [0, 1])
    model.save(tmp_path / "new")
    with safe_open(tmp_path / "new", "pt") as file:
        assert file.metadata()["format"] == "nnlib.2" and "UniformKNN" in str(file.metadata())
    assert DynamicClassifier.load(tmp_path / "new", "cpu").kernel == model.kernel


def test_a_renamed_class_is_read_and_another_is_not(tmp_path):
    tensors = {"centers": X[1:3], "values": torch.eye(2).flip(0)}
    settings = {"count": 2, "kernel": "euclidean", "epochs": 0}
    old_file(tmp_path / "old", "LearnedCenters", settings, {"sharpness_": 1.0}, tensors)
    model = PrototypeClassifier.load(tmp_path / "old", "cpu")
    assert model.n_prototypes == 2
    assert model.predict(X.numpy()).tolist() == ["near", "near", "far", "far"]
    with pytest.raises(ModelError, match="the class 'LearnedCenters', not 'DynamicClassifier'"):
        DynamicClassifier.load(tmp_path / "old")


def test_a_kernel_without_weights_says_so():
    with pytest.raises(NotImplementedError):
        Kernel().relative_weights(X, X[:, 0])


def kernel_of_contributing() -> type[Kernel]:
    text = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    block = re.search(r"## Add a kernel.*?```python\n(.*?)```", text, re.DOTALL).group(1)
    names = {"__name__": __name__}
    exec(block, names)  # noqa: S102
    return names["Exponential"]


@pytest.mark.parametrize("unit", [1.0, 1e-6, 1e5])
def test_the_kernel_that_contributing_shows_is_right_in_any_unit(unit):
    kernel = kernel_of_contributing()(0.5 * unit)
    generator = torch.Generator().manual_seed(0)
    sizes = (7, 20), (40, 20), (40, 3)
    x, c, v = (torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes)
    leaves = [(part * unit).requires_grad_() for part in (x, c)]
    plain = [(part * unit).requires_grad_() for part in (x, c)]
    found = attend(*leaves, v, kernel)
    expected = (-torch.cdist(*plain) / kernel.length).softmax(1) @ v
    assert torch.allclose(found, expected, atol=1e-9)
    found.square().sum().backward()
    expected.square().sum().backward()
    for leaf, other in zip(leaves, plain, strict=True):
        assert torch.allclose(leaf.grad * unit, other.grad * unit, atol=1e-7)
    hessian = torch.autograd.functional.hessian
    found = hessian(lambda x: attend(x, leaves[1], v, kernel).sum(), leaves[0].detach())
    expected = hessian(
        lambda x: (-torch.cdist(x, plain[1]) / kernel.length).softmax(1).matmul(v).sum(),
        plain[0].detach(),
    )
    assert expected.any() and torch.allclose(found * unit**2, expected * unit**2, atol=1e-7)


def test_a_kernel_whose_settings_would_be_lost_is_not_saved(tmp_path):
    class Undecorated(InverseDistance):
        def __init__(self, power):
            super().__init__(-power)

    model = DynamicClassifier(Undecorated(2.0), device="cpu", progress=False).fit(X, [0, 0, 1, 1])
    with pytest.raises(TypeError, match="Undecorated can't be saved: decorate it"):
        model.save(tmp_path / "model")
    assert not list(tmp_path.iterdir())


QUICK = {"device": "cpu", "progress": False}
BLOBS = X.repeat(10, 1) + torch.arange(40)[:, None] / 100
NAMES = ["near", "near", "far", "far"] * 10
IMAGES = 255 * torch.rand(20, 9, 9, generator=torch.Generator().manual_seed(0))
FITTED = {
    "classifier": lambda: DynamicClassifier("euclidean", **QUICK).fit(BLOBS, NAMES),
    "regressor": lambda: DynamicRegressor(**QUICK).fit(BLOBS, BLOBS),
    "neighbors": lambda: NeighborsClassifier(device="cpu").fit(BLOBS, NAMES),
    "neighbors regressor": lambda: NeighborsRegressor(device="cpu").fit(BLOBS, BLOBS),
    "far regressor": lambda: DynamicRegressor(**QUICK).fit(BLOBS + 1e7, BLOBS + 1e8),
    "prototypes": lambda: PrototypeClassifier(epochs=2, **QUICK).fit(BLOBS, NAMES),
    "metric": lambda: NCATransformer("network", width=8, epochs=2, **QUICK).fit(BLOBS, NAMES),
    "deep": lambda: DeepClassifier(2, kernel="euclidean", **QUICK).fit(BLOBS, NAMES),
    "stacked": lambda: StackedClassifier(2, folds=2, **QUICK).fit(BLOBS, NAMES),
    "patches": lambda: PatchFeatures(count=5, size=3, device="cpu").fit(IMAGES),
}


def answer(model) -> torch.Tensor:
    """What a model makes of new samples."""
    if isinstance(model, PatchFeatures):
        return model.transform(IMAGES)
    methods = ("predict_proba", "transform", "predict")
    ask = next(getattr(model, name) for name in methods if hasattr(model, name))
    return ask(BLOBS + 0.3)


def reloaded(model, folder):
    model.save(folder / "model")
    return type(model).load(folder / "model", "cpu")


@pytest.mark.parametrize("name", FITTED)
def test_a_fitted_model_is_copied_pickled_and_saved_alike(name, tmp_path):
    model = FITTED[name]()
    expected = answer(model)
    for other in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        reloaded(model, tmp_path),
    ):
        assert torch.equal(answer(other), expected)
        assert torch.equal(answer(reloaded(other, tmp_path)), expected)


@pytest.mark.parametrize("name", sorted(set(FITTED) - {"patches"}))
def test_a_state_dict_makes_a_fresh_model_a_fitted_one(name, tmp_path):
    model = FITTED[name]()
    expected = answer(model)
    torch.save(torch.nn.ModuleDict({"inner": model}).state_dict(), tmp_path / "state")
    state = torch.load(tmp_path / "state", weights_only=True)
    fresh = type(model)(**model.get_params(deep=False))
    other = type(model)(**model.get_params(deep=False))
    other.fit(BLOBS[:12, :1], BLOBS[:12] if "regressor" in name else NAMES[:8] + ["third"] * 4)
    for target in (fresh, other):
        torch.nn.ModuleDict({"inner": target}).load_state_dict(state)
        assert torch.equal(answer(target), expected)
        for part in target.state_dict()["_extra_state"]["tensors"].values():
            part.zero_()  # which the model that it came from doesn't share
        assert torch.equal(answer(model), expected)


def test_an_unfitted_state_dict_fits_an_unfitted_model():
    DynamicClassifier().load_state_dict(DynamicClassifier().state_dict())


@pytest.mark.parametrize("unit", ["D", "m", "ns"])
def test_labels_that_are_times_are_saved(unit, tmp_path):
    y = np.array(["2020-01-01", "2021-05-05"], f"datetime64[{unit}]").repeat(2)
    model = DynamicClassifier("euclidean", **QUICK).fit(X, y)
    found = reloaded(model, tmp_path)
    assert found.classes_.dtype == y.dtype and np.array_equal(found.predict(X.numpy()), y)


@pytest.mark.parametrize(
    ("setting", "value", "saved"),
    [
        ("device", torch.device("cpu"), "cpu"),
        ("max_count", np.int64(7), 7),
        ("target_accuracy", np.float32(0.5), 0.5),
        ("shuffle", np.bool_(False), False),
        ("random_state", np.random.RandomState(3), None),
        ("random_state", np.random.default_rng(3), None),
        ("kernel", InverseDistance(np.float64(-3.0)), InverseDistance(-3.0)),
    ],
)
def test_settings_of_other_types_are_saved(setting, value, saved, tmp_path):
    model = DynamicClassifier(**{"progress": False, setting: value}).fit(X, [0, 0, 1, 1])
    assert getattr(reloaded(model, tmp_path), setting) == saved


def test_a_setting_that_no_file_holds_is_named(tmp_path):
    model = DynamicClassifier(**QUICK).fit(X, [0, 0, 1, 1])
    model.device = {"cpu": 1}
    with pytest.raises(TypeError, match=r"device=\{'cpu': 1\} can't be saved: give numbers, words"):
        model.save(tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_is_named_and_not_made(tmp_path):
    model = DynamicClassifier(**QUICK).fit(X, [0, 0, 1, 1])
    with pytest.raises(OSError, match="missing' is no folder.*: make it first"):
        model.save(tmp_path / "missing" / "model")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_file_with_numbers_that_are_none_is_refused(bad, tmp_path):
    model = DynamicClassifier(**QUICK).fit(X, [0, 0, 1, 1])
    model.centers_[1, 0] = bad
    model.save(tmp_path / "model")
    with pytest.raises(ModelError, match="NaN or infinity in the tensor 'centers'"):
        DynamicClassifier.load(tmp_path / "model")


OWN = """
from dataclasses import dataclass
from nnlib.attention import InverseDistance

@dataclass(frozen=True)
class UniformKNN(InverseDistance):  # a name that the library has, too
    length: float = 2.0
"""
READ = """
import sys
from nnlib import DynamicClassifier
from nnlib.errors import ModelError
try:
    DynamicClassifier.load("model")
except ModelError as error:
    assert "class 'own_kernels:UniformKNN' is unknown: import the module" in str(error), error
assert "own_kernels" not in sys.modules
import own_kernels
assert DynamicClassifier.load("model").kernel == own_kernels.UniformKNN(length=3.0)
"""


def test_a_kernel_of_ones_own_is_read_once_its_module_is_imported(tmp_path, monkeypatch):
    (tmp_path / "own_kernels.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    import own_kernels

    model = DynamicClassifier(own_kernels.UniformKNN(length=3.0), **QUICK).fit(X, [0, 0, 1, 1])
    model.save(tmp_path / "model")
    paths = [str(tmp_path), str(Path(__file__).parents[2])]
    monkeypatch.setenv("PYTHONPATH", ":".join(paths))
    subprocess.run([sys.executable, "-c", READ], cwd=tmp_path, check=True)
    knn = UniformKNN(2, InverseDistance())
    assert from_json(to_json(knn)) == knn


def test_a_fit_that_fails_leaves_the_model_as_it_was():
    for name, make in FITTED.items():
        model = make()
        expected = answer(model)
        held = dict(vars(model))
        calls = [model.fit]
        calls += [model.partial_fit] if hasattr(model, "partial_fit") else []
        for call in calls:
            for bad in ([["a"]], BLOBS[:, :1] * torch.nan, torch.ones(40, 7)):
                with pytest.raises((ValueError, TypeError)):
                    call(bad, ["other", "labels", "than these"])
        assert vars(model).keys() == held.keys(), name
        assert torch.equal(answer(model), expected)
