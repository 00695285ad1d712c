"""Layers of dynamic classifiers: the passing forward against a naive float64 stack, and saving."""

import json

import numpy as np
import oracle
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch.utils.data import DataLoader, TensorDataset

from nnlib._common import serialization
from nnlib.errors import ModelError
from nnlib.neighbors.classifier import DynamicClassifier
from nnlib.neighbors.stacking import DeepClassifier

# Checks that can't hold, each with its reason.
EXPECTED = {
    "check_no_attributes_set_in_init": "a torch module keeps its flag `training` from the start"
}


@pytest.mark.slow
@parametrize_with_checks([DeepClassifier(2)], expected_failed_checks=lambda _: EXPECTED)
def test_scikit_learn_estimator(estimator, check):
    check(estimator)


def blobs(samples=400, features=5, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, classes, (samples,), generator=generator)
    return torch.randn(samples, features, generator=generator) + y[:, None], y


@pytest.fixture(scope="module")
def model():
    return DeepClassifier(3, 2, "euclidean", batch_size=32).fit(*blobs())


def naive(model, x, kernel):
    """The stack's probabilities in float64, by groups of centers of nearly equal size."""
    x, outputs = x.double(), []
    for layer in model.layers_:
        centers, labels = layer.centers_.double(), layer.values_
        outputs.append(vote(x, centers, labels, kernel))
        quotient, rest = divmod(len(centers), model.splits_)
        parts, start = [], 0
        for group in range(model.splits_):
            stop = start + quotient + (group < rest)
            parts.append(vote(x, centers[start:stop], labels[start:stop], kernel))
            start = stop
        x = torch.cat(parts, 1)
    return outputs


def vote(x, centers, labels, kernel):
    share = torch.zeros(len(x), 3, dtype=torch.float64)
    return share.index_add_(1, labels, oracle.weights(x, centers, kernel))


@pytest.mark.parametrize("splits", [1, 2, 5])
@pytest.mark.parametrize("kernel", ["cosine", "euclidean", "euclidian_pyramid", "influence_cone"])
def test_a_fitted_stack_passes_forward_as_the_naive_one(kernel, splits):
    (x, y), (more, labels) = blobs(250), blobs(100, seed=1)
    model = DeepClassifier(3, splits, kernel, batch_size=32).fit(x, y)
    wanted = naive(model, more, kernel)
    assert [layer.n_features_in_ for layer in model.layers_] == [5, 3 * splits, 3 * splits]
    scores = [(share.argmax(1) == labels).double().mean().item() for share in wanted]
    assert model.layer_scores(more, labels) == pytest.approx(scores, abs=2 / len(more))
    assert model.layer_scores(more, labels)[-1] == model.score(more, labels)
    exact = model.double()(
        more.double()
    ).exp()  # in float32 each layer sharpens the rounding of the one before
    assert torch.allclose(exact, wanted[-1], atol=1e-6)


def test_each_layer_is_fitted_on_the_outputs_of_the_one_before():
    x, y = blobs()
    model = DeepClassifier(3, random_state=3).fit(x, y)
    for layer in model.layers_:
        alone = DynamicClassifier(rule="published", random_state=3).fit(x, y)
        assert torch.equal(layer.indices_, alone.indices_) and torch.equal(
            layer.centers_, alone.centers_
        )
        x = alone.predict_proba(x)
    assert model.num_neighbors == sum(layer.num_neighbors for layer in model.layers_)


@pytest.mark.parametrize(
    "kind", [lambda x: x, lambda x: x.numpy(), lambda x: (9 * x).to(torch.uint8)]
)
def test_one_layer_is_the_dynamic_classifier(kind):
    x, y = blobs()
    how = {"kernel": "euclidean", "batch_size": 16, "max_count": 2, "random_state": 4}
    deep, plain = (
        DeepClassifier(1, 7, **how).fit(kind(x), y),
        DynamicClassifier(rule="published", **how).fit(kind(x), y),
    )
    assert torch.equal(deep.layers_[0].centers_, plain.centers_)
    for method in ("predict", "predict_proba", "predict_log_proba"):
        ours, theirs = getattr(deep, method)(kind(x)), getattr(plain, method)(kind(x))
        assert type(ours) is type(theirs) and np.array_equal(ours, theirs)
    assert deep.score(kind(x), y) == plain.score(kind(x), y) == deep.layer_scores(kind(x), y)[0]


def test_a_group_without_a_class_gives_it_no_weight():
    x, y = blobs(300)
    order = y.argsort()
    model = DeepClassifier(2, 3, batch_size=300, shuffle=False).fit(x[order], y[order])
    first, second = model.layers_
    assert first.num_neighbors == 300 and not first.values_[:50].any()
    assert (second.centers_.isfinite()).all() and (second.centers_[:, :3] == 0).any()
    assert torch.allclose(
        second.centers_.unflatten(1, (3, 3)).sum(2), torch.ones(300, 3), atol=1e-5
    )
    assert model.predict_log_proba(x).isfinite().all() and model(x * 1e-20).isfinite().all()


def test_what_goes_in_comes_out():
    x, y = blobs()
    words = np.array(["ant", "bee", "cat"])[y.numpy()]
    model = DeepClassifier(2, 2).fit(x.numpy(), words)
    assert list(model.classes_) == ["ant", "bee", "cat"] and model.score(x, words) > 0.8
    assert set(model.predict(x)) <= {"ant", "bee", "cat"} and isinstance(
        model.predict_proba(x.numpy()), np.ndarray
    )
    numbered = DeepClassifier(2, 2).fit(x, y)
    assert isinstance(numbered.predict(x), torch.Tensor) and isinstance(
        numbered.predict(x.numpy()), np.ndarray
    )


def test_settings_are_each_layers_own_from_the_next_fit_on(model):
    copy = clone(model)
    assert (
        copy.get_params() == model.get_params()
        and not copy.__sklearn_is_fitted__()
        and copy.num_neighbors == 0
    )
    x, _ = blobs()
    model = copy.fit(*blobs())
    before = model.predict_proba(x)
    model.set_params(splits=3, exponent=-8.0)
    assert torch.equal(model.predict_proba(x), before)
    assert model.fit(*blobs()).layers_[1].n_features_in_ == 9 and model.layers_[2].exponent == -8.0


def test_torch_module(model):
    assert {name for name, _ in model.named_buffers()} >= {
        "layers_.0.centers_",
        "layers_.2.values_",
    }
    x, _ = blobs(8, seed=2)
    point = x.clone().requires_grad_()
    model(point)[:, 0].sum().backward()
    assert point.grad.isfinite().all() and point.grad.abs().sum() > 0
    assert torch.allclose(model(x).exp(), model.predict_proba(x), atol=1e-6)


def test_save_and_load(model, tmp_path):
    x, y = blobs(seed=1)
    path = tmp_path / "deep.safetensors"
    model.save(path)
    again = DeepClassifier.load(path)
    assert again.get_params() == model.get_params()
    assert np.array_equal(again.classes_, model.classes_)
    assert torch.equal(again.predict_proba(x), model.predict_proba(x))
    assert again.layer_scores(x, y) == model.layer_scores(x, y)
    assert [file.name for file in tmp_path.iterdir()] == ["deep.safetensors"]


def test_tensors_are_named_by_their_layer(model, tmp_path):
    model.save(tmp_path / "deep")
    tensors = load_file(tmp_path / "deep")
    layers = range(1, 4)
    names = {f"layer_{number}.{name}" for number in layers for name in ("centers", "values")}
    assert tensors.keys() == names
    assert torch.equal(tensors["layer_2.centers"], model.layers_[1].centers_)


def test_a_model_replaces_a_larger_one(model, tmp_path):
    model.save(tmp_path / "deep")
    small = DeepClassifier(1).fit(*blobs())
    small.save(tmp_path / "deep")
    assert DeepClassifier.load(tmp_path / "deep").num_neighbors == small.num_neighbors


def test_a_write_that_fails_leaves_what_was_there(model, tmp_path, monkeypatch):
    before = DeepClassifier(2, random_state=9).fit(*blobs())
    before.save(tmp_path / "deep")

    def failing(tensors, path, header):
        raise OSError("the disk is full")

    monkeypatch.setattr(serialization, "save_file", failing)
    with pytest.raises(OSError, match="disk is full"):
        model.save(tmp_path / "deep")
    assert [file.name for file in tmp_path.iterdir()] == ["deep"]
    x, _ = blobs()
    again = DeepClassifier.load(tmp_path / "deep")
    assert torch.equal(again.predict_proba(x), before.predict_proba(x))


def test_a_folder_of_the_format_before_is_refused_by_its_version(tmp_path):
    (tmp_path / "deep").mkdir()
    header = {"format": "nnlib.1", "class": "DeepClassifier", "settings": {"num_layers": 1}}
    (tmp_path / "deep" / "stack.json").write_text(json.dumps(header))
    with pytest.raises(ModelError, match="deep' is a folder.*nnlib.1, which nnlib 0.1 reads"):
        DeepClassifier.load(tmp_path / "deep")


def change_metadata(**changes):
    def change(path, header):
        metadata = json.loads(header["metadata"])
        for name, value in changes.items():
            metadata["attributes" if name == "splits_" else "settings"][name] = value
        header["metadata"] = json.dumps(metadata)

    return change


def change_layers(*numbers):
    def change(path, header):
        metadata = json.loads(header["metadata"])
        layers = [metadata["submodels"][f"layer_{number}"] for number in numbers]
        metadata["submodels"] = {f"layer_{n}": layer for n, layer in enumerate(layers, 1)}
        header["metadata"] = json.dumps(metadata)

    return change


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda path, header: header.update(format="other"), "the format 'other'"),
        (lambda path, header: header.update({"class": "Other"}), "the class 'Other'"),
        (lambda path, header: header.update(metadata="{"), "can't be read as a DeepClassifier"),
        (change_metadata(surprise=1), "surprise"),
        (change_metadata(splits_=3), "a layer gives 9 features and the next takes 6"),
        (change_layers(1, 1, 3), "belong together|next takes 5"),
        (change_layers(), "can't be read as a DeepClassifier"),
    ],
)
def test_a_changed_file_is_refused(change, named, model, tmp_path):
    model.save(tmp_path / "deep")
    with safe_open(tmp_path / "deep", "pt") as file:
        header = file.metadata()
    change(tmp_path / "deep", header)
    save_file(load_file(tmp_path / "deep"), tmp_path / "changed", header)
    with pytest.raises(ModelError, match=named):
        DeepClassifier.load(tmp_path / "changed")


def test_a_missing_or_truncated_file_is_refused(model, tmp_path):
    with pytest.raises(ModelError, match="nowhere"):
        DeepClassifier.load(tmp_path / "nowhere")
    model.save(tmp_path / "deep")
    (tmp_path / "cut").write_bytes((tmp_path / "deep").read_bytes()[:-5])
    with pytest.raises(ModelError, match="cut"):
        DeepClassifier.load(tmp_path / "cut")


def test_layers_of_other_classes_are_refused(model):
    x, y = blobs()
    other = DeepClassifier(3, 2).fit(x, y + 1)
    layers = [*model.layers_[:2], other.layers_[2]]
    with pytest.raises(ValueError, match="their classes differ"):
        DeepClassifier()._set_layers(layers, 2)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda m, x, y: DeepClassifier(0).fit(x, y), "num_layers=0"),
        (lambda m, x, y: DeepClassifier(1.5).fit(x, y), "num_layers=1.5"),
        (lambda m, x, y: DeepClassifier(splits=0).fit(x, y), "splits=0"),
        (lambda m, x, y: DeepClassifier(splits="2").fit(x, y), "splits='2'"),
        (
            lambda m, x, y: DeepClassifier(2, 500).fit(x, y),
            "splits=500 can't be used: give at most a layer's [0-9]+ centers",
        ),
        (lambda m, x, y: DeepClassifier(exponent=4).fit(x, y), "exponent=4"),
        (lambda m, x, y: DeepClassifier(batch_size=0).fit(x, y), "batch_size=0"),
        (lambda m, x, y: m.fit(x, y[:-1]), "X has 60 samples,? and y 59"),
        (lambda m, x, y: m.fit(x), "requires y"),
        (lambda m, x, y: m.fit(x * float("nan"), y), "X holds NaN"),
        (lambda m, x, y: m.fit(DataLoader(TensorDataset(x, y))), "stream of batches"),
        (lambda m, x, y: m.predict(x[:, :3]), "X has 3 features"),
        (lambda m, x, y: m.predict(x[:0]), "shape"),
        (lambda m, x, y: m.layer_scores(x, y[:-1]), "(?i)inconsistent"),
        (lambda m, x, y: m.score(x, y[:-1]), "(?i)inconsistent"),
    ],
)
def test_bad_input_is_named(call, named, model):
    with pytest.raises(ValueError, match=named):
        call(model, *blobs(60))


def test_before_fit(tmp_path):
    x, y = blobs(10)
    for call in (
        lambda m: m.predict(x),
        lambda m: m(x),
        lambda m: m.layer_scores(x, y),
        lambda m: m.save(tmp_path / "m"),
    ):
        with pytest.raises(NotFittedError, match="not fitted yet"):
            call(DeepClassifier())
    assert not list(tmp_path.iterdir())
