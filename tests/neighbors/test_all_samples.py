"""Estimators in which all samples vote, and what they choose by leaving out, by plain loops."""

import math

import numpy as np
import oracle
import pytest
import torch
from sklearn.base import clone
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.utils.estimator_checks import (
    check_classifiers_one_label,
    check_dict_unchanged,
    check_estimators_unfitted,
    check_get_params_invariance,
    check_methods_subset_invariance,
    check_regressors_int,
    parametrize_with_checks,
)

from nnlib.attention import CosineInverseDistance, InverseDistance, UniformKNN
from nnlib.errors import ModelError
from nnlib.neighbors import NeighborsClassifier, NeighborsRegressor, tuning

EXPECTED = {
    "check_no_attributes_set_in_init": "a torch module keeps its flag `training` from the start"
}


@pytest.mark.slow
@parametrize_with_checks(
    [NeighborsClassifier(), NeighborsRegressor()], expected_failed_checks=lambda _: EXPECTED
)
def test_scikit_learn_estimator(estimator, check):
    check(estimator)


@pytest.mark.parametrize(
    "check",
    [check_dict_unchanged, check_estimators_unfitted, check_get_params_invariance],
    ids=lambda check: check.__name__,
)
def test_quick_scikit_learn_checks(check):
    check("NeighborsClassifier", NeighborsClassifier())
    check("NeighborsRegressor", NeighborsRegressor())


def test_quick_checks_of_one_kind():
    check_classifiers_one_label("NeighborsClassifier", NeighborsClassifier())
    check_methods_subset_invariance("NeighborsClassifier", NeighborsClassifier())
    check_regressors_int("NeighborsRegressor", NeighborsRegressor())


# The choices, by a plain loop in float64


def plain_class_losses(probabilities, own):
    """Log loss after the shrink that suits best, and two for each wrong class."""
    even = 1 / own.shape[1]
    right = (probabilities * own).sum(1)
    logs = [-((1 - s) * right + s * even).log() for s in tuning.SHRINKS]
    wrong = probabilities.argmax(1) != own.argmax(1)
    return min(logs, key=lambda each: each.mean().item()) + 2.0 * wrong


def plain_squared_errors(predicted, own):
    return (predicted - own).square().sum(1)


def standard_error(difference):
    return difference.std(correction=0) / math.sqrt(len(difference))


def plain_choice(x, values, losses):
    """The number of neighbors, or (exponent, epsilon), by which left-out samples are predicted."""
    x = x.double()
    values = values.double()
    everyone = torch.arange(len(x))
    distance = oracle.euclidean(x, x).fill_diagonal_(math.inf)
    order = distance.argsort(1)
    tried = {k: losses(values[order[:, :k]].mean(1), values) for k in tuning.COUNTS if k < len(x)}
    best = min(tried, key=lambda k: tried[k].mean())
    as_good = []
    for k, each in tried.items():
        behind = each - tried[best]
        if behind.mean() <= standard_error(behind):
            as_good.append(k)
    chosen = max(as_good)
    lowest = tried[chosen]
    tenth = distance.sort(1).values[:, min(10, max(tuning.COUNTS), len(x) - 1) - 1]
    for exponent in (-8.0, -32.0):
        for part in (0.1, 0.3, 1.0):
            epsilon = part * tenth.quantile(0.5, interpolation="lower").item()
            how = {"exponent": exponent, "epsilon": epsilon}
            weights = oracle.weights(x, x, "euclidean", everyone, **how)
            found = losses(weights @ values, values)
            ahead = lowest - found
            if ahead.mean() > standard_error(ahead):
                chosen = (exponent, epsilon)
                lowest = found
    return chosen


def noisy(kind, seed):
    """Samples, and one-hot labels or targets, of little or much noise."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(150, 3, generator=generator)
    noise = torch.randn(150, generator=generator)
    if kind == "smooth":
        return x, torch.sin(2 * x[:, :1])
    if kind == "noisy":
        return x, x[:, :1] + 3 * noise[:, None]
    factor = 0.1 if kind == "separated" else 2.0
    return x, torch.nn.functional.one_hot((x[:, 0] + factor * noise > 0).long(), 2).float()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["smooth", "noisy", "separated", "overlapping"])
def test_the_kernel_is_the_one_that_predicts_left_out_samples_best(kind, seed):
    x, values = noisy(kind, seed)
    of_classes = values.shape[1] == 2
    losses = tuning.class_losses if of_classes else tuning.squared_errors
    plain = plain_class_losses if of_classes else plain_squared_errors
    _, kernel = tuning.tune(x, values, losses, seed=0, scaling="none")
    chosen = plain_choice(x, values, plain)
    if isinstance(chosen, int):
        assert kernel == UniformKNN(chosen, InverseDistance())
    else:
        assert kernel.exponent == chosen[0]
        assert kernel.epsilon == pytest.approx(chosen[1], rel=1e-4)


def test_noise_calls_for_more_neighbors():
    chosen = {}
    for kind in ("smooth", "noisy"):
        x, values = noisy(kind, 0)
        base = InverseDistance()
        how = {"seed": 0, "scaling": "none", "base": base}
        chosen[kind] = tuning.tune(x, values, tuning.squared_errors, **how)[1].k
    assert chosen["smooth"] <= 10 < 30 <= chosen["noisy"]


@pytest.mark.parametrize("references", [1000, 40])
def test_leave_one_out_is_the_plain_loop(references, monkeypatch):
    monkeypatch.setattr(tuning, "REFERENCES", references)
    x, values = noisy("overlapping", 0)
    step = -(-len(x) // references)
    for kernel, name, how in (
        (InverseDistance(-8.0, 0.3), "euclidean", {"exponent": -8.0, "epsilon": 0.3}),
        (UniformKNN(7), "k_nearest", {"count": 7}),
    ):
        rows = torch.arange(len(x))
        left_out = torch.where(rows % step == 0, rows // step, -1)
        weights = oracle.weights(x, x[::step], name, left_out, **how)
        expected = weights @ values[::step].double()
        ours = tuning.leave_one_out(x, values, kernel)
        assert torch.allclose(ours.double(), expected, atol=1e-5)


def test_a_column_of_noise_counts_less():
    draw = np.random.RandomState(0)
    x = np.c_[draw.randn(200, 1), 100 * draw.randn(200, 3)]
    model = NeighborsRegressor().fit(x, np.sin(2 * x[:, 0]))
    spread = model.column_weights_.numpy() * x.std(0)
    assert spread[0] > 5 * spread[1:].max()
    assert model.score(x, np.sin(2 * x[:, 0])) > 0.95


# What is asked for by settings


def sample(samples=40):
    draw = np.random.RandomState(1)
    x = draw.randn(samples, 3)
    return x, (x[:, 0] > 0).astype(int), x[:, 0] + 0.1 * draw.randn(samples)


def test_uniform_votes_are_scikit_learns():
    x, y, target = sample()
    queries = np.random.RandomState(2).randn(50, 3)
    ours = NeighborsRegressor(7, scaling="none").fit(x, target).predict(queries)
    np.testing.assert_allclose(
        ours, KNeighborsRegressor(7).fit(x, target).predict(queries), rtol=1e-5
    )
    classifier = NeighborsClassifier(7, scaling="none").fit(x, y)
    rival = KNeighborsClassifier(7).fit(x, y)
    assert np.array_equal(classifier.predict(queries), rival.predict(queries))
    shrunk = (1 - classifier.shrinkage_) * rival.predict_proba(queries) + classifier.shrinkage_ / 2
    np.testing.assert_allclose(classifier.predict_proba(queries), shrunk, atol=1e-5)


@pytest.mark.parametrize(
    "weights, expected",
    [
        ("uniform", UniformKNN),
        ("distance", InverseDistance),
        (CosineInverseDistance(), UniformKNN),
        (InverseDistance(-2.0), UniformKNN),
    ],
)
def test_weights_by_name_or_kernel(weights, expected):
    x, y, target = sample()
    for model, own in ((NeighborsClassifier, y), (NeighborsRegressor, target)):
        kernel = model(weights=weights).fit(x, own).kernel_
        assert isinstance(kernel, expected)
        if not isinstance(weights, str):
            assert kernel.base == weights


def test_opposite_samples_are_told_apart_by_default():
    x = np.random.RandomState(0).randn(49, 2)
    y = (x[:, 0] > 0).astype(int)
    model = NeighborsClassifier().fit(x, y)
    assert model.score(x, y) >= 0.9
    assert (model.predict(-x) != model.predict(x)).mean() >= 0.8


@pytest.mark.parametrize(
    "how, named",
    [
        ({"n_neighbors": 0}, "n_neighbors"),
        ({"n_neighbors": 2.5}, "n_neighbors"),
        ({"n_neighbors": 3, "weights": "distance"}, "n_neighbors"),
        ({"weights": "even"}, "weights"),
        ({"scaling": "standard"}, "scaling"),
        ({"random_state": "today"}, "random_state"),
    ],
)
def test_settings_without_sense_are_named(how, named):
    x, y, target = sample()
    for model, own in ((NeighborsClassifier, y), (NeighborsRegressor, target)):
        with pytest.raises((ValueError, TypeError), match=named):
            model(**how).fit(x, own)


def test_more_neighbors_than_samples_are_all_of_them():
    x, _, target = sample(6)
    model = NeighborsRegressor(100, scaling="none").fit(x, target)
    np.testing.assert_allclose(model.predict(x), target.mean(), rtol=1e-5)


def test_a_fit_depends_on_its_random_state_alone():
    x, _, target = sample(80)
    torch.manual_seed(1)
    one = NeighborsRegressor(random_state=3).fit(x, target)
    torch.manual_seed(2)
    torch.rand(5)
    two = clone(one).fit(x, target)
    assert one.kernel_ == two.kernel_
    assert np.array_equal(one.predict(x), two.predict(x))


def test_a_refused_fit_leaves_the_model_as_it_was():
    x, y, _ = sample()
    model = NeighborsClassifier(3).fit(x, y)
    before = model.predict_proba(x)
    bad = x[:, :2].copy()
    bad[0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        model.fit(bad, y)
    assert np.array_equal(model.predict_proba(x), before)


def test_neighbors_of_samples_are_found_in_scaled_columns():
    x, y, _ = sample()
    wide = x * [1, 1e4, 1]
    model = NeighborsClassifier(3, scaling="deviation").fit(wide, y)
    _, index = model.kneighbors(wide, 1)
    assert np.array_equal(index[:, 0], np.arange(len(x)))
    distances, others = model.kneighbors(n_neighbors=2)
    assert not (others == np.arange(len(x))[:, None]).any() and (distances > 0).all()


def test_labels_of_any_kind():
    x, y, _ = sample()
    words = np.array(["yes", "no"])[y]
    model = NeighborsClassifier(3).fit(x, words)
    assert set(model.predict(x)) <= {"yes", "no"} and model.score(x, words) > 0.8
    negative = NeighborsClassifier(3).fit(x, 2 * y - 1)
    assert np.array_equal(negative.predict(x) > 0, model.predict(x) == "no")


def test_a_file_of_the_other_estimator_is_refused(tmp_path):
    x, y, _ = sample()
    NeighborsClassifier(3).fit(x, y).save(tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="NeighborsClassifier"):
        NeighborsRegressor.load(tmp_path / "model.safetensors")


def test_few_of_many_samples_choose(monkeypatch):
    monkeypatch.setattr(tuning, "KERNEL_SAMPLES", 30)
    monkeypatch.setattr(tuning, "COLUMNS_SAMPLES", 45)
    x, _, target = sample(400)
    model = NeighborsRegressor().fit(x, target)
    assert model.num_neighbors == 400
    assert model.score(x, target) > 0.8
