"""Tables as users have them: offsets, units, noise, columns that say nothing, and odd shapes."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import datasets
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.preprocessing import StandardScaler
from torch.utils.data import DataLoader, TensorDataset

from nnlib.attention import InverseDistance, UniformKNN
from nnlib.neighbors import (
    DynamicClassifier,
    DynamicRegressor,
    NeighborsClassifier,
    NeighborsRegressor,
    PrototypeClassifier,
)

CLASSIFIERS = {
    "neighbors": NeighborsClassifier,
    "dynamic": DynamicClassifier,
    "prototypes": lambda **how: PrototypeClassifier(progress=False, **how),
}
REGRESSORS = {
    "neighbors": NeighborsRegressor,
    "dynamic": DynamicRegressor,
    "published": lambda **how: DynamicRegressor(rule="published", **how),
}
SCALED = ("neighbors", "dynamic")  # estimators with a setting `scaling`

classifiers = pytest.mark.parametrize("name", CLASSIFIERS)
regressors = pytest.mark.parametrize("name", REGRESSORS)
scaled = pytest.mark.parametrize("name", SCALED)


def table(samples=45, columns=4, seed=0):
    """X, labels by two columns, and a target: too few samples to learn columns, so quick."""
    draw = np.random.RandomState(seed)
    x = draw.randn(samples, columns)
    return x, (x[:, 0] > 0) + (x[:, 1] > 0.5), np.sin(x[:, 0]) + 0.1 * x[:, 1]


# Digits: offsets that float32 can't hold

OFFSETS = (0.0, 1e5, 1e6, 1e7, 1e8, 1.7e9)


@regressors
@pytest.mark.parametrize("offset", OFFSETS)
def test_targets_may_be_far_from_zero(name, offset):
    x = np.linspace(0, 6, 49)[:, None]
    between = np.linspace(0.5, 5.5, 30)[:, None]
    model = REGRESSORS[name]().fit(x, np.sin(x[:, 0]) + offset)
    near_zero = REGRESSORS[name]().fit(x, np.sin(x[:, 0]))
    assert model.score(between, np.sin(between[:, 0]) + offset) > 0.999
    np.testing.assert_allclose(model.predict(x) - offset, near_zero.predict(x), atol=2e-3)


def seconds():
    """Bursts of ten samples, a minute apart, since 1970; every other burst is of class 1."""
    starts = 1_700_000_000 + 3600 * np.arange(4)
    times = (starts[:, None] + 60 * np.arange(10)).reshape(-1, 1)
    return times, np.repeat([0, 1, 0, 1], 10)


@classifiers
@pytest.mark.parametrize("dtype", [np.float64, np.int64])
def test_columns_may_be_seconds_since_1970(name, dtype):
    times, y = seconds()
    model = CLASSIFIERS[name]().fit(times.astype(dtype), y)
    assert model.score((times + 5).astype(dtype), y) == 1.0


def test_the_published_rule_keeps_the_digits_of_columns():
    times, y = seconds()
    model = DynamicClassifier("euclidean", rule="published").fit(times, y)
    assert model.score(times + 5, y) == 1.0


@scaled
def test_an_offset_moves_nothing_where_columns_are_scaled(name):
    x, y, _ = table()
    moved = x + [0, 1e6, 1e9, -1e3]
    here = CLASSIFIERS[name](scaling="deviation").fit(x, y).predict_proba(x)
    there = CLASSIFIERS[name](scaling="deviation").fit(moved, y).predict_proba(moved)
    np.testing.assert_allclose(here, there, atol=1e-3)


# Noise is not learned


@pytest.fixture(scope="module")
def groups():
    """Samples of four groups, in which class 1 has probability .1, .3, .7 and .9."""
    draw = np.random.RandomState(0)
    group = draw.randint(0, 4, 4000)
    y = (draw.rand(4000) < np.array([0.1, 0.3, 0.7, 0.9])[group]).astype(int)
    return (group + 0.1 * draw.randn(4000))[:, None], y, group


def follows_the_groups(model, groups):
    """Assert that each group's mean probability is its frequency, and the accuracy k-NN's."""
    x, y, group = groups
    model.fit(x[:2000], y[:2000])
    probability = model.predict_proba(x[2000:])[:, 1]
    for each in range(4):
        frequency = y[:2000][group[:2000] == each].mean()
        assert probability[group[2000:] == each].mean() == pytest.approx(frequency, abs=0.05)
    rival = KNeighborsClassifier(101).fit(x[:2000], y[:2000])
    assert model.score(x[2000:], y[2000:]) >= rival.score(x[2000:], y[2000:]) - 0.01


@scaled
def test_probabilities_are_the_groups_frequencies(name, groups):
    follows_the_groups(CLASSIFIERS[name](scaling="none"), groups)


@pytest.mark.slow
@classifiers
def test_probabilities_are_the_groups_frequencies_by_default(name, groups):
    follows_the_groups(CLASSIFIERS[name](), groups)


@pytest.mark.parametrize("passes", [1, 3])
def test_no_sample_joins_twice(passes, groups):
    x, y, _ = groups
    model = DynamicClassifier(passes=passes, scaling="none").fit(x[:500], y[:500])
    assert len(model.indices_) == len(model.indices_.unique()) == model.num_neighbors
    noisy = x[:500, 0] + np.random.RandomState(1).randn(500)
    model = DynamicRegressor(passes=passes, scaling="none").fit(x[:500], noisy)
    assert len(model.indices_) == len(model.indices_.unique()) == model.num_neighbors


def test_nine_nearest_centers_are_as_good_as_nine_nearest_samples():
    x, y = datasets.make_friedman1(500, noise=1.0, random_state=0)
    model = DynamicRegressor(UniformKNN(9), scaling="none").fit(x[:400], y[:400])
    rival = KNeighborsRegressor(9).fit(x[:400], y[:400])
    assert model.score(x[400:], y[400:]) >= rival.score(x[400:], y[400:]) - 0.02
    assert model.num_neighbors <= 400


@classifiers
def test_overlapping_moons(name):
    x, y = datasets.make_moons(800, noise=0.3, random_state=1)
    assert CLASSIFIERS[name]().fit(x[:400], y[:400]).score(x[400:], y[400:]) >= 0.88


# Units


@classifiers
def test_raw_columns_of_very_different_units(name):
    x, y = datasets.load_wine(return_X_y=True)
    train, test, own, others = train_test_split(x, y, stratify=y, random_state=0)
    assert CLASSIFIERS[name]().fit(train, own).score(test, others) >= 0.93


@scaled
def test_scaling_by_deviation_is_standardising_by_hand(name):
    x, y, target = table()
    x = x * [1, 100, 0.01, 5] + [0, 3, 1000, 0]
    by_hand = StandardScaler().fit_transform(x)
    ours = CLASSIFIERS[name](scaling="deviation").fit(x, y).predict_proba(x)
    plain = CLASSIFIERS[name](scaling="none").fit(by_hand, y).predict_proba(by_hand)
    np.testing.assert_allclose(ours, plain, atol=1e-4)
    ours = REGRESSORS[name](scaling="deviation").fit(x, target).predict(x)
    plain = REGRESSORS[name](scaling="none").fit(by_hand, target).predict(by_hand)
    np.testing.assert_allclose(ours, plain, atol=1e-4)


powers = st.lists(st.integers(-20, 20), min_size=4, max_size=4)
offsets = st.lists(st.floats(-100, 100), min_size=4, max_size=4)


@scaled
@settings(max_examples=8, deadline=None)
@given(powers=powers, offsets=offsets, seed=st.integers(0, 20))
def test_columns_in_other_units_predict_the_same(name, powers, offsets, seed):
    x, _, target = table(seed=seed)
    other = (x + offsets) * 2.0 ** np.array(powers)
    here = REGRESSORS[name](scaling="deviation").fit(x, target).predict(x)
    there = REGRESSORS[name](scaling="deviation").fit(other, target).predict(other)
    np.testing.assert_allclose(here, there, atol=1e-3)


@scaled
@settings(max_examples=8, deadline=None)
@given(power=st.integers(-60, 60), offsets=offsets, seed=st.integers(0, 20))
def test_one_unit_for_all_columns_changes_nothing(name, power, offsets, seed):
    x, _, target = table(seed=seed)
    other = (x + offsets) * 2.0**power
    here = REGRESSORS[name]().fit(x, target).predict(x)
    there = REGRESSORS[name]().fit(other, target).predict(other)
    np.testing.assert_allclose(here, there, atol=1e-3)


@pytest.mark.parametrize("power", [-60, 60])
def test_as_few_centers_do_in_any_unit(power):
    draw = np.random.RandomState(0)
    x = draw.uniform(-1, 1, (300, 1))
    y = np.sin(3 * x[:, 0]) + 0.3 * draw.randn(300)
    here = DynamicRegressor(scaling="none").fit(x, y)
    there = DynamicRegressor(scaling="none").fit(x * 2.0**power, y)
    assert here.num_neighbors == there.num_neighbors < 300


def test_a_unit_that_costs_nothing_is_no_reason_to_warn(recwarn):
    x, y, target = table()
    for name in SCALED:
        CLASSIFIERS[name]().fit(1e-9 * x, y)
        REGRESSORS[name]().fit(1e-9 * x, target)
    assert not [str(each.message) for each in recwarn]


@scaled
def test_targets_in_another_unit_are_predicted_in_it(name):
    x, _, target = table()
    here = REGRESSORS[name]().fit(x, target).predict(x)
    for unit in (2.0**-30, 2.0**30):
        there = REGRESSORS[name]().fit(x, unit * target).predict(x)
        np.testing.assert_allclose(there / unit, here, atol=1e-3)


# Odd tables

draw = np.random.RandomState(3)
ODD = {
    "a column that is constant": (np.c_[table()[0], np.full(45, 7.0)], table()[1]),
    "columns that are all constant": (np.ones((30, 2)), np.arange(30) % 2),
    "a constant column far from zero": (np.c_[table()[0], np.full(45, 1.7e9)], table()[1]),
    "one sample": (np.array([[1.0, 2.0]]), np.array([1])),
    "two samples": (np.array([[1.0, 2.0], [3.0, 1.0]]), np.array([0, 1])),
    "three samples": (draw.randn(3, 2), np.array([0, 1, 1])),
    "one class": (table()[0], np.zeros(45, int)),
    "one row many times": (np.ones((20, 3)), np.arange(20) % 2),
    "two rows many times": (np.repeat([[0.0, 1.0], [1.0, 0.0]], 20, 0), np.repeat([0, 1], 20)),
    "more columns than samples": (draw.randn(5, 300), np.array([0, 1, 0, 1, 1])),
    "integers": ((10 * table()[0]).astype(int), table()[1]),
    "true and false": (table()[0] > 0, table()[1]),
    "pixels": ((20 * table()[0] + 100).clip(0, 255).astype(np.uint8), table()[1]),
    "tiny numbers": (1e-30 * table()[0], table()[1]),
    "huge numbers": (1e30 * table()[0], table()[1]),
}
odd = pytest.mark.parametrize("kind", ODD)


@classifiers
@odd
@pytest.mark.filterwarnings("ignore")
def test_odd_tables_are_classified(name, kind):
    x, y = ODD[kind]
    model = CLASSIFIERS[name]().fit(x, y)
    probability = model.predict_proba(x)
    assert probability.shape == (len(x), len(np.unique(y)))
    np.testing.assert_allclose(probability.sum(1), 1, atol=1e-5)
    most_frequent = np.bincount(y).max() / len(y)
    if len(x) >= 20:
        assert model.score(x, y) >= most_frequent


@regressors
@odd
@pytest.mark.filterwarnings("ignore")
def test_odd_tables_are_regressed(name, kind):
    x, y = ODD[kind]
    predicted = REGRESSORS[name]().fit(x, y).predict(x)
    assert predicted.shape == y.shape
    assert np.isfinite(predicted).all()
    assert predicted.min() >= y.min() - 1e-5 and predicted.max() <= y.max() + 1e-5
    if len(x) >= 20:
        assert np.square(predicted - y).mean() <= y.var() + 0.01


@scaled
def test_a_constant_column_changes_nothing(name):
    x, y, _ = table()
    wide = np.c_[x, np.full(len(x), 3.0)]
    without = CLASSIFIERS[name]().fit(x, y).predict_proba(x)
    with_it = CLASSIFIERS[name]().fit(wide, y).predict_proba(wide)
    np.testing.assert_allclose(with_it, without, atol=0.02)


@regressors
def test_several_targets(name):
    x, _, target = table()
    both = np.stack([target, 1e3 - 2 * target], 1)
    model = REGRESSORS[name]().fit(x, both)
    predicted = model.predict(x)
    assert predicted.shape == both.shape and model.predict(x[:1]).shape == (1, 2)
    np.testing.assert_allclose(predicted[:, 1], 1e3 - 2 * predicted[:, 0], atol=0.01)


# Files, streams, gradients

ALL = {
    **{f"{name} classifier": (make, 1) for name, make in CLASSIFIERS.items()},
    **{f"{name} regressor": (make, 2) for name, make in REGRESSORS.items()},
}
every = pytest.mark.parametrize("name", ALL)


def fitted(name, **settings):
    """A model fitted on columns far from zero and of different units, and its X."""
    make, part = ALL[name]
    data = table()
    x = data[0] * [1, 100, 1, 1] + [0, 0, 1e9, 0]
    return make(**settings).fit(x, data[part]), x


def outputs(model, x):
    return model.predict_proba(x) if hasattr(model, "classes_") else model.predict(x)


@every
def test_a_file_and_a_pickle_predict_the_same(name, tmp_path):
    model, x = fitted(name)
    model.save(tmp_path / "model.safetensors")
    for copy in (
        type(model).load(tmp_path / "model.safetensors"),
        pickle.loads(pickle.dumps(model)),
    ):
        assert np.array_equal(outputs(copy, x), outputs(model, x))


@every
def test_a_model_in_double_predicts_the_same(name):
    model, x = fitted(name)
    expected = outputs(model, x)
    model.double()
    assert model.centers_.dtype == torch.float64
    np.testing.assert_allclose(outputs(model, x), expected, atol=1e-4)
    assert model(torch.from_numpy(x)).dtype == torch.float64


SMOOTH = InverseDistance(-4.0, 0.5)  # whose slope says something everywhere
DIFFERENTIABLE = {"neighbors": {"weights": "distance"}, "dynamic": {"kernel": SMOOTH}}


@every
def test_gradients_reach_the_input_in_its_own_unit(name):
    make, part = ALL[name]
    data = table()
    x = data[0] * [1, 100, 1, 1]
    between = torch.from_numpy((x[:4] + x[4:8]) / 2).requires_grad_()
    how = DIFFERENTIABLE.get(name.split()[0], {"kernel": SMOOTH})
    model = make(**how).fit(x, data[part]).double()
    model(between)[:, 0].sum().backward()
    with torch.no_grad():
        for column, step in enumerate((1e-3, 1e-1, 1e-3, 1e-3)):
            move = step * torch.eye(4, dtype=torch.float64)[column]
            change = (model(between + move) - model(between - move))[:, 0] / (2 * step)
            assert torch.allclose(between.grad[:, column], change, rtol=0.02, atol=1e-3)


@pytest.mark.parametrize("first", ["fit", "partial_fit", "stream"])
def test_batches_before_and_after_a_fit(first):
    x, y, target = table(45)
    more, labels, values = table(200, seed=1)
    classifier = DynamicClassifier(progress=False)
    regressor = DynamicRegressor(progress=False)
    if first == "fit":
        classifier.fit(x, y)
        regressor.fit(x, target)
    elif first == "partial_fit":
        classifier.partial_fit(x, y, classes=[0, 1, 2])
        regressor.partial_fit(x, target)
    else:
        tensors = (torch.from_numpy(part) for part in (x, y, target))
        x, y, target = tensors
        classifier.fit(DataLoader(TensorDataset(x, y), 10), classes=[0, 1, 2])
        regressor.fit(DataLoader(TensorDataset(x, target), 10))
    before = classifier.num_neighbors
    classifier.partial_fit(more, labels)
    regressor.partial_fit(more, values)
    assert classifier.num_neighbors > before
    assert classifier.score(more, labels) >= 0.9
    assert regressor.score(more, values) >= 0.9
