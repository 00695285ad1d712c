"""Stacks on outputs for samples left out, against a plain loop over the folds."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sklearn.base import clone
from sklearn.model_selection import StratifiedKFold
from sklearn.utils.estimator_checks import parametrize_with_checks

from nnlib.errors import ModelError
from nnlib.neighbors.classifier import DynamicClassifier
from nnlib.neighbors.prototypes import PrototypeClassifier
from nnlib.neighbors.regressor import DynamicRegressor
from nnlib.neighbors.stacking import StackedClassifier

QUICK = {"epochs": 3, "device": "cpu", "progress": False}
EXPECTED = {
    "check_no_attributes_set_in_init": "a torch module keeps its flag `training` from the start"
}
FIRST = DynamicClassifier("euclidean", rule="published", progress=False)  # misled on purpose
LATER = PrototypeClassifier(6, "cosine_softmax", scaling="none", **QUICK)


@pytest.mark.slow
@parametrize_with_checks(
    [StackedClassifier(2, FIRST, LATER, folds=2, device="cpu")],
    expected_failed_checks=lambda _: EXPECTED,
)
def test_scikit_learn_estimator(estimator, check):
    check(estimator)


def mixed(samples, seed=0):
    """Two tight classes and a wide one, whose samples lie nearer to the tight ones."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(samples) % 3
    x = torch.tensor([0.7, 0.7, 1.4])[y][:, None] * torch.randn(samples, 60, generator=generator)
    x[:, :3] += torch.nn.functional.one_hot(y, 3)
    return x, y


@pytest.fixture(scope="module")
def model():
    settings = {"folds": 4, "random_state": 5, "progress": False}
    return StackedClassifier(3, FIRST, LATER, **settings).fit(*mixed(900))


def test_the_second_layer_learns_from_samples_left_out(model):
    x, y = mixed(900)
    train, held = model._split(y.numpy(), 5)
    assert y[held].bincount().tolist() == [30, 30, 30]
    assert sorted([*train, *held]) == list(range(900))
    held_x, held_y = x[held], y[held]
    x, y = x[train], y[train]
    probabilities = torch.zeros(len(x), 3)
    folds = StratifiedKFold(4, shuffle=True, random_state=5)
    for rows, out in folds.split(x, y):
        fold = clone(FIRST).fit(x[rows], y[rows])
        probabilities[out] = fold.predict_proba(x[out])
    first = clone(FIRST).fit(x, y)
    second = clone(LATER).fit(probabilities, y)
    assert torch.equal(model.layers_[0].centers_, first.centers_)
    torch.testing.assert_close(model.layers_[1].centers_, second.centers_)
    passed = first.predict_proba(held_x)
    assert model.validation_scores_[:2] == pytest.approx(
        [first.score(held_x, held_y), second.score(passed, held_y)]
    )


def test_a_second_layer_helps_where_neighbors_mislead(model):
    more, labels = mixed(3000, 1)
    first, *later = model.layer_scores(more, labels)
    assert later[-1] > first + 0.1 and later[-1] == model.score(more, labels)
    assert len(model.layers_) < 3  # a third layer had nothing to add


def test_a_layer_that_does_not_help_is_refused():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(300, 4, generator=generator), torch.arange(300) % 2
    x[:, 0] += 9 * y  # nothing is left to mend
    model = StackedClassifier(5, FIRST, LATER, progress=False).fit(x, y)
    assert len(model.layers_) == 1 and len(model.validation_scores_) == 2
    assert torch.equal(model.predict_proba(x), model.layers_[0].predict_proba(x))


def test_a_class_with_one_sample_and_labels_of_any_kind():
    x, y = mixed(60)
    words = np.array(["ant", "bee", "cat"])[y.numpy()]
    for lone in range(5):
        labels = np.where(np.arange(60) == lone, "dodo", words)
        model = StackedClassifier(2, FIRST, LATER, folds=3, progress=False).fit(x.numpy(), labels)
        assert model.classes_.tolist() == ["ant", "bee", "cat", "dodo"]
        assert model.predict_proba(x.numpy()).shape == (60, 4) and set(
            model.predict(x.numpy())
        ) <= set(labels)


def test_stacks_in_several_threads_do_not_disturb_each_other():
    x, y = mixed(90)

    def fit():
        stack = StackedClassifier(2, FIRST, LATER, folds=2, progress=False).fit(x, y)
        return stack.layers_[0].centers_, stack.predict_proba(x)

    centers, alone = fit()
    with ThreadPoolExecutor(4) as threads:
        for other, probabilities in threads.map(lambda _: fit(), range(6)):
            assert torch.equal(other, centers) and torch.equal(probabilities, alone)


def test_a_class_of_which_nothing_can_be_held_out_is_no_stack():
    x = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="no class of three samples"):
        StackedClassifier(folds=2, device="cpu").fit(x, torch.arange(10) // 2)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_stack(model):
    again = clone(model).fit(*mixed(900))
    more, _ = mixed(50, 3)
    assert again.validation_scores_ == model.validation_scores_ and torch.equal(
        again.predict_proba(more), model.predict_proba(more)
    )


def test_it_can_be_differentiated(model):
    x = mixed(8, 2)[0].requires_grad_()
    model(x)[:, 0].sum().backward()
    assert x.grad.isfinite().all() and x.grad.abs().sum() > 0
    assert set(model.state_dict()) >= {"layers_.1.centers_"} and not any(
        "first" in name for name in model.state_dict()
    )
    assert torch.allclose(model(x).exp(), model.predict_proba(x), atol=1e-6)


def test_save_and_load(model, tmp_path):
    more, labels = mixed(200, 1)
    model.save(tmp_path / "stack")
    again = StackedClassifier.load(tmp_path / "stack")
    assert torch.equal(again.predict_proba(more), model.predict_proba(more))
    assert [type(layer) for layer in again.layers_] == [type(layer) for layer in model.layers_]
    assert again.folds == 4 and again.random_state == 5
    assert again.first.get_params() == model.first.get_params()
    assert again.later.get_params() == model.later.get_params()
    with safe_open(tmp_path / "stack", "pt") as file:
        header = file.metadata()
    header["metadata"] = header["metadata"].replace("PrototypeClassifier", "Anything")
    save_file(load_file(tmp_path / "stack"), tmp_path / "changed", header)
    with pytest.raises(ModelError, match="class 'Anything'"):
        StackedClassifier.load(tmp_path / "changed")


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"num_layers": 0}, "num_layers=0"),
        ({"folds": 1}, "folds=1"),
        ({"folds": 31}, "n_samples=60 .*fewer folds"),
        ({"validation": 0.0}, "validation=0.0"),
        ({"first": DynamicRegressor()}, "first=DynamicRegressor.*give a DynamicClassifier"),
        ({"later": "cosine"}, "later='cosine' can't be used"),
    ],
)
def test_settings_without_sense_are_named(settings, word):
    with pytest.raises(ValueError, match=word):
        StackedClassifier(**settings).fit(*mixed(60))
