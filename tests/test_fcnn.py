"""Condensing that doesn't depend on the order of the data, and passes over it: against plain loops in float64."""

import json

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader, TensorDataset

from nnlib import fcnn as fcnn_module
from nnlib.kernels import CosineInverseDistance, InfluenceCone, KNearest
from nnlib.neighbors import DynamicClassifier, DynamicRegressor

KINDS = {
    "euclidean": ("euclidean", oracle.euclidean, {}),
    "cosine": ("cosine", lambda x, c: 1 - oracle.cosine(x, c).abs(), {}),
    "influence_cone": ("influence_cone", oracle.euclidean, {}),
    "nearest": ("k_nearest", oracle.euclidean, {"count": 1}),
}


def drawn(samples, features=4, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, classes, (samples,), generator=generator)
    return torch.randn(samples, features, generator=generator) + y[:, None], y


def model_of(kind, **how):
    if kind == "nearest":
        return DynamicClassifier("euclidean", predictor="nearest", condensing="fcnn", **how)
    return DynamicClassifier(kind, condensing="fcnn", **how)


def naive(x, y, classes, kind, most=10**6):
    """FCNN by the book, in float64, and how many centers there were after each round."""
    (kernel_type, measure, how), x = KINDS[kind], x.double()
    means = torch.stack([x[y == label].mean(0) for label in y.unique()])
    far = measure(x, means)
    chosen = [
        min((y == label).nonzero()[:, 0].tolist(), key=lambda i, k=k: far[i, k]) for k, label in enumerate(y.unique())
    ]
    growth = [len(chosen)]
    while True:
        share = oracle.weights(x, x[chosen], kernel_type, **how)
        votes = torch.zeros(len(x), classes, dtype=torch.float64).index_add_(1, y[chosen], share)
        near, owner = measure(x, x[chosen]).min(1)
        cells = {}
        for i in (votes.argmax(1) != y).nonzero()[:, 0].tolist():
            if i not in chosen and not (kind == "nearest" and near[i] == 0):
                cells.setdefault(int(owner[i]), []).append(i)
        room = min(most - len(chosen), 10**6 if kind == "nearest" else 1 + len(chosen) // 32)
        largest = sorted(cells, key=lambda j: (-len(cells[j]), j))[: max(0, room)]
        if not largest:
            return chosen, growth
        chosen += [min(cells[j], key=lambda i: near[i]) for j in sorted(largest)]
        growth.append(len(chosen))


@pytest.mark.parametrize("kind", KINDS)
def test_same_centers_in_the_same_order_as_the_plain_loop(kind, monkeypatch):
    monkeypatch.setattr("nnlib.fcnn.STEP", 32)  # so that a few centers already have rounds of several
    x, y = drawn(220, seed=3)
    chosen, growth = naive(x, y, 3, kind)
    model = model_of(kind).fit(x, y)
    assert model.indices_.tolist() == chosen and model.growth_.tolist() == growth and len(growth) > 3
    assert torch.equal(model.centers_, x[chosen]) and torch.equal(model.values_, y[chosen])
    monkeypatch.setattr(fcnn_module, "KEPT_NUMBERS", 0)  # the votes counted anew each round
    monkeypatch.setattr(fcnn_module, "ROWS", 50)
    assert model_of(kind).fit(x, y).indices_.tolist() == chosen


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    samples=st.integers(5, 120),
    kind=st.sampled_from([*KINDS]),
    most=st.sampled_from([1, 4, 20, 1000]),
    whole=st.booleans(),
)
def test_the_order_of_the_samples_does_not_matter(seed, samples, kind, most, whole):
    x, y = drawn(samples, seed=seed)
    if whole:  # on a lattice, where many are equally near
        x = (x * 2).round()
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(seed))
    one, other = (model_of(kind, max_neighbors=most).fit(x[i], y[i]) for i in (torch.arange(samples), order))
    assert torch.equal(one.centers_, other.centers_) and torch.equal(one.values_, other.values_)
    assert torch.equal(x[order][other.indices_], one.centers_) and torch.equal(one.growth_, other.growth_)
    assert one.num_neighbors <= max(most, len(one.classes_))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), samples=st.integers(5, 200), features=st.integers(1, 12), cosine=st.booleans())
def test_the_nearest_center_is_right_of_all_samples(seed, samples, features, cosine):
    x, y = drawn(samples, features, seed=seed)
    kernel = CosineInverseDistance(signed=True) if cosine and features > 1 else "euclidean"
    model = DynamicClassifier(kernel, predictor="nearest", condensing="fcnn").fit(x, y)
    assert model.score(x, y) == 1
    assert len(set(model.indices_.tolist())) == model.num_neighbors


@pytest.mark.parametrize("kind", KINDS)
def test_samples_that_contradict_each_other_come_to_an_end(kind):
    x, y = drawn(60)
    x, y = torch.cat([x, x, x]), torch.cat([y, (y + 1) % 3, y])
    model = model_of(kind).fit(x, y)
    assert len(set(model.indices_.tolist())) == model.num_neighbors
    if kind == "nearest":  # one for each place at most, and everything right but what lies on another class's center
        assert model.num_neighbors <= 60
        near, index = model.kneighbors(x, 1)
        wrong = model.predict(x) != y
        assert (near[wrong] == 0).all() and (model.values_[index[~wrong, 0]] == y[~wrong]).all()


def test_going_on_from_centers_that_are_there():
    x, y = drawn(300)
    model = DynamicClassifier("euclidean", predictor="nearest", condensing="fcnn").fit(x[:100], y[:100])
    before = model.centers_.clone()
    model.partial_fit(x[100:], y[100:])
    assert torch.equal(model.centers_[: len(before)], before) and model.indices_ is None
    assert model.score(x[100:], y[100:]) == 1 and model.growth_[0] == len(before)
    assert model.num_neighbors > len(before)


def test_kinds_of_input_and_kernels_with_it():
    x, y = drawn(150)
    words = np.array(["ant", "bee", "cat"])[y.numpy()]
    whole = (x * 20).round().clamp(-100, 100) + 100
    a = DynamicClassifier(condensing="fcnn").fit(whole.numpy(), words)
    b = DynamicClassifier(condensing="fcnn").fit(whole.to(torch.uint8), y)
    assert torch.equal(a.indices_, b.indices_) and b.centers_.dtype == torch.uint8
    for kernel in (KNearest(3), InfluenceCone(3.0), "euclidian_pyramid"):
        model = DynamicClassifier(kernel, condensing="fcnn").fit(x, y)
        others = torch.ones(150, dtype=torch.bool)
        others[model.indices_] = False
        assert torch.equal(model.predict(x)[others], y[others])
    one = DynamicClassifier(condensing="fcnn").fit(x, torch.zeros(150, dtype=torch.int64))
    assert one.num_neighbors == 1


def hart(x, y, chosen):
    """P. Hart's condensed nearest neighbor rule: the samples that the ones before get wrong, until none is."""
    x = x.double()
    while True:
        before = len(chosen)
        for i in range(len(x)):
            if y[chosen[int((x[chosen] - x[i]).square().sum(1).argmin())]] != y[i]:
                chosen.append(i)
        if len(chosen) == before:
            return chosen


def test_passes_one_by_one_are_the_condensed_nearest_neighbor_rule():
    x, y = drawn(200, seed=2)
    how = {"predictor": "nearest", "batch_size": 1, "max_count": 1, "shuffle": False}
    model = DynamicClassifier("euclidean", **how, passes=50).fit(x, y)
    assert model.indices_.tolist() == hart(x, y, [0])
    assert model.score(x, y) == 1 > DynamicClassifier("euclidean", **how).fit(x, y).score(x, y)
    assert len(model.growth_) % 200 == 0 and 400 < len(model.growth_) < 10_000
    assert model.growth_[-1] == model.growth_[-200] == model.num_neighbors


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("kernel", ["cosine", "influence_cone"])
def test_later_passes_go_on_where_the_first_stopped(kernel, shuffle):
    x, y = drawn(900)
    one, two = (DynamicClassifier(kernel, shuffle=shuffle, passes=passes).fit(x, y) for passes in (1, 2))
    first = len(one.growth_)
    assert torch.equal(two.indices_[: one.num_neighbors], one.indices_)
    assert torch.equal(two.growth_[:first], one.growth_) and len(two.growth_) == 2 * first
    generator = torch.Generator().manual_seed(0)
    orders = [torch.randperm(900, generator=generator) if shuffle else torch.arange(900) for _ in range(2)]
    more = DynamicClassifier(kernel, shuffle=False).fit(x[orders[0]], y[orders[0]])
    more.partial_fit(x[orders[1]], y[orders[1]])
    assert torch.equal(two.centers_, more.centers_) and two.num_neighbors > one.num_neighbors


def test_passes_end_with_too_many_centers_or_with_nothing_new():
    x, y = drawn(900)
    few = DynamicClassifier(passes=5, max_neighbors=100).fit(x, y)
    assert 100 < few.num_neighbors < 100 + 3 * 64
    assert torch.equal(few.indices_, DynamicClassifier(max_neighbors=100).fit(x, y).indices_)
    apart = x + 100 * torch.nn.functional.one_hot(y, 4)
    assert len(DynamicClassifier("euclidean", passes=50).fit(apart, y).growth_) <= 3 * 15


def test_passes_end_where_only_samples_that_contradict_each_other_are_wrong():
    x, y = torch.arange(200.0)[:, None] % 5 + 1, torch.arange(200) // 5 % 2  # five places, each of both classes
    fits = [DynamicClassifier("euclidean", passes=passes).fit(x, y) for passes in (50, 100)]
    assert torch.equal(fits[0].indices_, fits[1].indices_) and len(fits[0].growth_) < 50 * 4


def test_passes_over_streams_and_of_a_regressor():
    x, y = drawn(640)
    loader = DataLoader(TensorDataset(x, y), batch_size=64)
    stream = DynamicClassifier(passes=3).fit(loader, classes=[0, 1, 2])
    assert torch.equal(stream.centers_, DynamicClassifier(passes=3, shuffle=False).fit(x, y).centers_)
    one, two = (DynamicRegressor(passes=passes).fit(x, x.sum(1)) for passes in (1, 2))
    assert torch.equal(two.indices_[: one.num_neighbors], one.indices_) and two.num_neighbors > one.num_neighbors
    assert two.score(x, x.sum(1)) > one.score(x, x.sum(1))
    with pytest.raises(ValueError, match="passes=3 over an iterator"):
        DynamicClassifier(passes=3).fit(iter(loader), classes=[0, 1, 2])


def test_saved_with_the_settings_and_read_without_them(tmp_path):
    x, y = drawn(200)
    model = DynamicClassifier(condensing="fcnn", passes=4).fit(x, y)
    model.save(tmp_path / "m")
    again = DynamicClassifier.load(tmp_path / "m")
    assert (again.condensing, again.passes) == ("fcnn", 4) and torch.equal(again.predict(x), model.predict(x))
    with safe_open(tmp_path / "m", "pt") as file:
        header = file.metadata()
    told = json.loads(header["told"])
    del told["settings"]["condensing"], told["settings"]["passes"]
    save_file(load_file(tmp_path / "m"), tmp_path / "older", header | {"told": json.dumps(told)})
    older = DynamicClassifier.load(tmp_path / "older")
    assert (older.condensing, older.passes) == ("batches", 1) and torch.equal(older.predict(x), model.predict(x))


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda x, y: DynamicClassifier(condensing="slow").fit(x, y), "condensing='slow'"),
        (lambda x, y: DynamicClassifier(passes=0).fit(x, y), "passes=0"),
        (lambda x, y: DynamicRegressor(passes=1.5).fit(x, y), "passes=1.5"),
        (lambda x, y: DynamicClassifier(condensing="fcnn").fit(iter([(x, y)]), classes=[0, 1, 2]), "over a stream"),
        (lambda x, y: DynamicClassifier(condensing="fcnn").fit(x * torch.nan, y), "NaN"),
    ],
)
def test_bad_input_is_named(call, named):
    with pytest.raises(ValueError, match=named):
        call(*drawn(30))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_gpu_as_on_a_processor(kind):
    x, y = drawn(500, 6)
    there, here = (model_of(kind, device=device).fit(x, y) for device in ("cuda", "cpu"))
    assert there.centers_.is_cuda and there.indices_.tolist() == here.indices_.tolist()
