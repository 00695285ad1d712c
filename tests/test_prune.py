"""Pruning: what each center is worth against a plain count in float64, and what is promised of the whole."""

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import NotFittedError
from torch.utils.data import DataLoader, TensorDataset

from nnlib import prune as prune_module
from nnlib.kernels import CosineSoftmax, InfluenceCone, KNearest
from nnlib.neighbors import DynamicClassifier
from nnlib.prune import _Worth
from nnlib.stream import Labels

KINDS = {
    "euclidean": ("euclidean", {}),
    "cosine": ("cosine", {}),
    "influence_cone": ("influence_cone", {}),
    "nearest": ("k_nearest", {"count": 1}),
}


def drawn(samples, features=4, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, classes, (samples,), generator=generator)
    return torch.randn(samples, features, generator=generator) + y[:, None], y


def model_of(kind, **how):
    return (
        DynamicClassifier("euclidean", predictor="nearest", **how)
        if kind == "nearest"
        else DynamicClassifier(kind, **how)
    )


def naive_wrong(x, y, centers, labels, kind, classes=3):
    """How many samples the centers get wrong, in float64."""
    kernel_type, how = KINDS[kind]
    share = oracle.weights(x, centers, kernel_type, **how)
    votes = torch.zeros(len(x), classes, dtype=torch.float64).index_add_(1, labels, share)
    return int((votes.argmax(1) != y).sum())


def naive_harm(x, y, centers, labels, kind):
    """How many more samples are wrong without each center."""
    wrong = naive_wrong(x, y, centers, labels, kind)
    others = [torch.arange(len(centers)) != j for j in range(len(centers))]
    return [naive_wrong(x, y, centers[keep], labels[keep], kind) - wrong for keep in others]


def right_of(model, x, y):
    return int((model.predict(x) == y).sum())


@pytest.mark.parametrize("block", [1 << 24, 600])
@pytest.mark.parametrize("kind", KINDS)
def test_a_center_is_worth_what_goes_wrong_without_it(kind, block, monkeypatch):
    monkeypatch.setattr(prune_module, "BLOCK_BYTES", block)
    monkeypatch.setattr(prune_module, "COLUMNS", 7)
    (x, y), (c, labels) = drawn(300, seed=1), drawn(40, seed=2)
    x[:20], y[:10] = c[:20], labels[:10]  # on a center, where its weight outdoes all others
    worth = _Worth(c, Labels(labels, 3), model_of(kind)._kernel(), x, torch.tensor([], dtype=torch.int64))
    right = worth.meet(x, y, None)
    assert len(y) - int(right.sum()) == naive_wrong(x, y, c, labels, kind)
    wanted = naive_harm(x, y, c, labels, kind)
    assert worth.harm.tolist() == wanted and min(wanted) < 0 < max(wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_dropped_centers_have_no_vote_and_are_missed(kind):
    (x, y), (c, labels) = drawn(300, seed=1), drawn(40, seed=2)
    dropped = torch.arange(0, 40, 2)
    left = torch.ones(40, dtype=torch.bool)
    left[dropped] = False
    kernel, none = model_of(kind)._kernel(), dropped[:0]
    before = _Worth(c, Labels(labels, 3), kernel, x, none).meet(x, y, None)
    worth = _Worth(c, Labels(labels, 3), kernel, x, dropped)
    right = worth.meet(x, y, before)
    assert len(y) - int(right.sum()) == naive_wrong(x, y, c[left], labels[left], kind)
    assert worth.harm[left].tolist() == naive_harm(x, y, c[left], labels[left], kind)
    wanted = torch.zeros(40)
    for i in (before & ~right).nonzero()[:, 0].tolist():
        mine = [j for j in dropped.tolist() if labels[j] == y[i]]
        if mine:
            wanted[min(mine, key=lambda j, i=i: float((x[i] - c[j]).norm()))] += 1
    assert wanted.sum() > 0
    if kind != "cosine":  # which measures by another distance
        assert torch.equal(worth.blame, wanted)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    samples=st.integers(5, 150),
    kind=st.sampled_from([*KINDS]),
    tolerance=st.sampled_from([0.0, 0.01, 0.1, 0.5, 0.99]),
    rounds=st.sampled_from([1, 2, 7, 100]),
    own=st.booleans(),
)
def test_accuracy_is_kept_within_the_tolerance(seed, samples, kind, tolerance, rounds, own):
    learned, labels = drawn(samples, seed=seed)
    model = model_of(kind).fit(learned, labels, classes=[0, 1, 2])
    x, y = (learned, labels) if own else drawn(samples, seed=seed + 1)
    before, many = right_of(model, x, y), model.num_neighbors
    assert model.prune(x, y, tolerance, rounds) is model
    assert right_of(model, x, y) >= before - tolerance * samples
    assert 1 <= model.num_neighbors <= many
    assert torch.equal(learned[model.indices_], model.centers_) and torch.equal(labels[model.indices_], model.values_)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tolerance", [0.0, 0.03])
def test_no_center_is_left_that_could_go(kind, tolerance):
    x, y = drawn(200, seed=4)
    model = model_of(kind).fit(x, y)
    allowed, many = int(200 - right_of(model, x, y) + tolerance * 200), model.num_neighbors
    model.prune(x, y, tolerance, rounds=10_000)
    assert torch.equal(x[model.indices_], model.centers_) and torch.equal(y[model.indices_], model.values_)
    wrong = naive_wrong(x, y, model.centers_, model.values_, kind)
    assert wrong <= allowed and model.num_neighbors < 0.8 * many
    assert min(naive_harm(x, y, model.centers_, model.values_, kind)) > allowed - wrong


@pytest.mark.parametrize("kind", KINDS)
def test_far_fewer_centers_where_one_a_class_would_do(kind):
    x, y = drawn(300)
    x = x / 100 + torch.eye(4)[y]
    assert model_of(kind).fit(x, y).prune(x, y).num_neighbors == 3
    alone = model_of(kind).fit(x, torch.zeros_like(y))
    assert alone.prune(x, torch.zeros_like(y)).num_neighbors == 1  # never none
    assert alone.prune(x, torch.zeros_like(y), rounds=1).num_neighbors == 1


def test_what_a_pruned_model_can_do(tmp_path):
    x, y = drawn(400)
    words = np.array(["ant", "bee", "cat"])[y.numpy()]
    model = DynamicClassifier(passes=5).fit(x.numpy(), words)
    growth = model.growth_.clone()
    model.prune(x.numpy(), words)
    assert torch.equal(model.growth_, growth) and model.num_neighbors < growth[-1]
    model.save(tmp_path / "m")
    again = DynamicClassifier.load(tmp_path / "m")
    assert list(again.predict(x.numpy())) == list(model.predict(x.numpy()))
    few = again.prune(x.numpy(), words, 0.1).num_neighbors  # read from a file, it has no numbers of samples
    assert few < model.num_neighbors and again.indices_ is None
    before = again.centers_.clone()
    again.partial_fit(x.numpy(), words)
    assert torch.equal(again.centers_[:few], before) and again.num_neighbors > few
    streamed = DynamicClassifier().fit(DataLoader(TensorDataset(x, y), 64), classes=[0, 1, 2])
    streamed.partial_fit(x, y).prune(x, y).partial_fit(x, y).prune(x, y)
    assert streamed.indices_ is None and streamed.score(x, y) > 0.9


def test_a_softmax_and_pixels_in_whole_numbers():
    x, y = drawn(300)
    x = ((x - x.min()) * 20).to(torch.uint8)
    model = DynamicClassifier(CosineSoftmax(0.01)).fit(x, y)
    before, many = model.score(x, y), model.num_neighbors
    model.prune(x, y)
    assert model.score(x, y) >= before and model.num_neighbors < many and model.centers_.dtype == torch.uint8


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda m, x, y: m.prune(x, y, -0.1), "tolerance=-0.1"),
        (lambda m, x, y: m.prune(x, y, 1), "tolerance=1"),
        (lambda m, x, y: m.prune(x, y, rounds=0), "rounds=0"),
        (lambda m, x, y: m.prune(x, y + 5), "outside the classes"),
        (lambda m, x, y: m.prune(x, y[:-1]), "(?i)inconsistent"),
        (lambda m, x, y: m.prune(x[:, :3], y), "features"),
        (lambda m, x, y: m.prune(x * torch.inf, y), "NaN"),
        (lambda m, x, y: m.prune(DataLoader(TensorDataset(x, y)), y), "stream of batches"),
        (lambda m, x, y: DynamicClassifier(KNearest(3)).fit(x, y).prune(x, y), "count=1"),
    ],
)
def test_bad_input_is_named_and_the_model_stays(call, named):
    x, y = drawn(60)
    model = DynamicClassifier(InfluenceCone()).fit(x, y)
    before = model.centers_.clone()
    with pytest.raises(ValueError, match=named):
        call(model, x, y)
    assert torch.equal(model.centers_, before)
    with pytest.raises(NotFittedError):
        DynamicClassifier().prune(x, y)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_gpu_as_on_a_processor(kind):
    x, y = drawn(500, 6)
    model = model_of(kind).fit(x, y).cpu()
    here = model.prune(x, y).indices_
    there = model_of(kind, device="cpu").fit(x, y).cuda()
    before = right_of(there, x, y)
    there.prune(x, y)  # samples that lie elsewhere than the centers
    assert there.centers_.is_cuda and right_of(there, x, y) >= before
    assert abs(there.num_neighbors - len(here)) <= 3
