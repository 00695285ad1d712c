"""Kernels and models under the names of today and of the format before."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import safe_open, save_file

from nnlib import DynamicClassifier, PrototypeClassifier, attend
from nnlib._common.serialization import from_json, to_json
from nnlib.attention import CosineInverseDistance, InverseDistance, Kernel, UniformKNN
from nnlib.errors import ModelError

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


def test_a_kernel_whose_settings_would_be_lost_is_not_saved(tmp_path):
    class Undecorated(InverseDistance):
        def __init__(self, power):
            super().__init__(-power)

    model = DynamicClassifier(Undecorated(2.0), device="cpu", progress=False).fit(X, [0, 0, 1, 1])
    with pytest.raises(TypeError, match="Undecorated can't be saved: decorate it"):
        model.save(tmp_path / "model")
    assert not list(tmp_path.iterdir())
