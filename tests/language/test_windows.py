"""The published language model: windows of codes against a plain float64 vote, input and files."""

import math

import numpy as np
import oracle
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from nnlib._common import serialization
from nnlib.datasets import load_text
from nnlib.errors import ModelError
from nnlib.language import window_model
from nnlib.language.window_model import WindowModel
from nnlib.neighbors.stacking import DeepClassifier

ALICE = load_text("alice").replace("\r\n", "\n")
TRAIN, TEST = ALICE[:4000], ALICE[4000:5500]


@pytest.fixture(scope="module")
def model():
    return WindowModel(progress=False).fit(TRAIN)


def naive(model, text):
    """Probabilities [N, 128] of the windows of a text in float64, and the codes that follow."""
    codes, width = [min(ord(c), 127) for c in text], model.num_features
    x = torch.tensor([codes[i : i + width] for i in range(len(codes) - width)])
    layer = model.stack_.layers_[0]
    p = torch.zeros(len(x), 128, dtype=torch.float64)
    labels = torch.from_numpy(model.stack_.classes_)[layer.values_]
    return p.index_add_(1, labels, oracle.weights(x, layer.centers_, "euclidean")), torch.tensor(
        codes[width:]
    )


def test_windows_are_the_codes_before_a_character(model):
    layer = model.stack_.layers_[0]
    start = layer.indices_
    assert layer.centers_.tolist() == [[ord(c) for c in TRAIN[i : i + 10]] for i in start]
    assert model.stack_.classes_[layer.values_].tolist() == [ord(TRAIN[i + 10]) for i in start]


def test_accuracy_bits_and_probabilities_are_the_naive_ones(model):
    p, codes = naive(model, TEST)
    assert model.accuracy(TEST) == pytest.approx(
        (p.argmax(1) == codes).double().mean().item(), abs=1e-9
    )
    mixed = (1 - 128 * 2**-20) * p[torch.arange(len(codes)), codes] + 2**-20
    assert model.bits_per_character(TEST) == pytest.approx(-mixed.log2().mean().item(), abs=1e-4)
    predicted = model.predict_proba(TEST[:10])
    assert (
        predicted.shape == (128,)
        and predicted.dtype == np.float64
        and abs(predicted.sum() - 1) < 1e-12
    )
    assert np.allclose(predicted, p[0].numpy(), atol=1e-5)


def test_long_texts_are_taken_in_batches(model, monkeypatch):
    whole = model.accuracy(TEST), model.bits_per_character(TEST)
    monkeypatch.setattr(window_model, "BATCH", 400)
    assert (model.accuracy(TEST), model.bits_per_character(TEST)) == pytest.approx(whole, abs=1e-6)


def test_layers_and_settings_reach_the_stack():
    model = WindowModel(
        6, 2, 3, exponent=-6.0, batch_size=50, max_neighbors=300, random_state=1, progress=False
    ).fit(TRAIN)
    assert len(model.stack_.layers_) == 2 and model.stack_.n_features_in_ == 6
    assert model.stack_.layers_[1].n_features_in_ == 3 * len(model.stack_.classes_)
    layer = model.stack_.layers_[0]
    assert (
        layer.kernel == "euclidean" and layer.exponent == -6.0 and 300 < layer.num_neighbors <= 350
    )
    assert model.layer_accuracies(TEST)[-1] == model.accuracy(TEST)
    assert clone(model).get_params() == model.get_params()


def test_characters_that_are_not_ascii_are_code_127():
    model = WindowModel(2, progress=False).fit("aé" * 40)
    assert model.stack_.classes_.tolist() == [97, 127]
    assert (
        model.predict_proba("éa").argmax() == 127
        and model.predict_proba("\U0001f600a").argmax() == 127
    )
    assert model.accuracy("aüaßa\ud800a") == 1.0
    assert model.generate("aé", 4, temperature=0) == "a\x7fa\x7f"


def test_characters_that_training_never_saw_cost_twenty_bits():
    model = WindowModel(3, progress=False).fit("a" * 50)
    assert model.predict_proba("aaa").tolist() == np.eye(128)[97].tolist()
    assert model.accuracy("aaab") == 0 and model.bits_per_character("aaab") == pytest.approx(20)
    assert model.bits_per_character("aaaa") == pytest.approx(-math.log2(1 - 127 * 2**-20))


def test_short_contexts_are_padded_with_spaces_and_long_ones_cut(model):
    assert np.array_equal(model.predict_proba("Ali"), model.predict_proba("       Ali"))
    assert np.array_equal(model.predict_proba(""), model.predict_proba(" " * 10))
    assert np.array_equal(model.predict_proba(TEST[:50]), model.predict_proba(TEST[40:50]))


def test_generation_draws_from_the_probabilities(model):
    first = np.array([ord(model.generate("Alice", 1, seed=seed)) for seed in range(100)])
    wanted = model.predict_proba("Alice")
    assert abs((first == wanted.argmax()).mean() - wanted.max()) < 4 * 0.5 / 100**0.5
    assert wanted[first].min() > 0


def test_generation_is_repeatable_and_goes_on_where_it_was(model):
    text = model.generate("Alice was ", 30, seed=3)
    assert len(text) == 30 and text == model.generate("Alice was ", 30, seed=3) != model.generate(
        "Alice was ", 30
    )
    likely = model.generate("Alice was ", 12, temperature=0)
    for i, character in enumerate(likely):
        assert ord(character) == model.predict_proba(("Alice was " + likely)[: 10 + i]).argmax()
    assert model.generate("Alice was ", 12, temperature=1e-300) == likely
    assert model.generate("Alice was ", 0) == ""


def test_temperature_is_a_power(model, monkeypatch):
    p = np.zeros(128)
    p[97:99] = 0.8, 0.2
    monkeypatch.setattr(model, "predict_proba", lambda context: p, raising=False)
    hot = model.generate("", 4000, temperature=2.0)
    assert hot.count("a") / 4000 == pytest.approx(2 / 3, abs=0.03) and set(hot) == {"a", "b"}


def test_save_and_load(tmp_path):
    model = WindowModel(5, 2, 2, max_neighbors=500, progress=False).fit(TRAIN)
    for _ in range(2):  # a model replaces a model
        model.save(tmp_path / "m")
    again = WindowModel.load(tmp_path / "m")
    assert again.get_params() == model.get_params()
    assert np.array_equal(again.predict_proba("Alice"), model.predict_proba("Alice"))
    assert again.generate("Alice", 20) == model.generate("Alice", 20)
    assert [file.name for file in tmp_path.iterdir()] == ["m"]


def test_a_write_that_fails_leaves_what_was_there(model, tmp_path, monkeypatch):
    model.save(tmp_path / "m")
    monkeypatch.setattr(
        serialization, "save_file", lambda *_: (_ for _ in ()).throw(OSError("full"))
    )
    with pytest.raises(OSError, match="full"):
        model.save(tmp_path / "m")
    assert [file.name for file in tmp_path.iterdir()] == ["m"]
    assert WindowModel.load(tmp_path / "m").stack_.num_neighbors == model.stack_.num_neighbors


def test_foreign_and_broken_files_are_refused(model, tmp_path):
    path = tmp_path / "m"
    with pytest.raises(ModelError, match="m' can't be read as a WindowModel"):
        WindowModel.load(path)
    model.stack_.save(path)
    with pytest.raises(ModelError, match="the class 'DeepClassifier', not 'WindowModel'"):
        WindowModel.load(path)
    model.save(path)
    with pytest.raises(ModelError, match="the class 'WindowModel', not 'DeepClassifier'"):
        DeepClassifier.load(path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ModelError, match="m' can't be read as a WindowModel"):
        WindowModel.load(path)


def test_a_folder_of_the_old_format_is_refused_with_the_version_that_reads_it(tmp_path):
    (tmp_path / "old/stack").mkdir(parents=True)
    (tmp_path / "old/windows.json").write_text('{"format": "nnlib.1", "class": "WindowModel"}')
    with pytest.raises(ModelError, match="old' is a folder.* which nnlib 0.1 reads"):
        WindowModel.load(tmp_path / "old")


@pytest.mark.parametrize("classes", [[1, 128], [-1, 5], ["a", "b"], [0.5, 1.5]])
def test_a_foreign_stack_is_refused(classes, tmp_path):
    x = torch.randn(40, 10)
    labels = np.array([str(c) if isinstance(c, float) else c for c in classes])[np.arange(40) % 2]
    model = WindowModel()
    model.stack_ = DeepClassifier(1, kernel="euclidean").fit(x, labels)
    model.save(tmp_path / "m")
    with pytest.raises(ModelError, match="other classes than character codes"):
        WindowModel.load(tmp_path / "m")


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda m: m.fit(""), "text has 0 characters: give more than num_features=10"),
        (lambda m: m.fit("a" * 10), "text has 10 characters"),
        (lambda m: m.fit(None), "text is NoneType: give a str"),
        (lambda m: m.fit(b"bytes, and more than ten of them"), "text is bytes"),
        (lambda m: WindowModel(0).fit(TRAIN), "num_features=0"),
        (lambda m: WindowModel(2.5).fit(TRAIN), "num_features=2.5"),
        (lambda m: WindowModel(num_layers=0).fit(TRAIN), "num_layers=0"),
        (lambda m: WindowModel(exponent=4).fit(TRAIN), "exponent=4"),
        (lambda m: m.accuracy(""), "text has 0 characters"),
        (lambda m: m.accuracy(3), "text is int"),
        (lambda m: m.bits_per_character("Alice"), "text has 5 characters"),
        (lambda m: m.layer_accuracies(["a"] * 20), "text is list"),
        (lambda m: m.predict_proba(None), "context is NoneType"),
        (lambda m: m.generate(None), "prompt is NoneType"),
        (lambda m: m.generate(5, 0), "prompt is int"),
        (lambda m: m.generate("a", -1), "length=-1 can't be used: give a whole number, 0 or more"),
        (lambda m: m.generate("a", 2.5), "length=2.5"),
        (lambda m: m.generate("a", 5, temperature=-0.1), "temperature=-0.1"),
        (lambda m: m.generate("a", 5, temperature=float("nan")), "temperature=nan"),
        (lambda m: m.generate("a", 5, temperature=float("inf")), "temperature=inf"),
        (lambda m: m.generate("a", 5, temperature="hot"), "temperature='hot'"),
    ],
)
def test_bad_input_is_named(call, named, model):
    before = model.stack_
    with pytest.raises(ValueError, match=named):
        call(model)
    assert model.stack_ is before


def test_before_fit(tmp_path):
    for call in (
        lambda m: m.accuracy(TEST),
        lambda m: m.predict_proba("Alice"),
        lambda m: m.generate("Alice"),
        lambda m: m.save(tmp_path / "m"),
    ):
        with pytest.raises(NotFittedError, match="not fitted yet"):
            call(WindowModel())
