"""The search for the centers that matter, against a naive oracle and against all distances."""

import inspect

import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nnlib.attention import dispatch as attend_module
from nnlib.attention import kdtree
from nnlib.attention.blockwise import Labels
from nnlib.attention.dispatch import attend, nearest
from nnlib.attention.kernels import (
    CosineSoftmax,
    EuclideanPyramid,
    InfluenceCone,
    InverseDistance,
    UniformKNN,
)
from nnlib.datasets import load_photo
from nnlib.neighbors.condensing import rule as condense_module
from tests.published import PublishedClassifier, PublishedRegressor


def pixels(features, seed):
    side = round(600 ** (1 / features)) + 1
    grid = torch.cartesian_prod(*[torch.arange(float(side))] * features).reshape(-1, features)
    return grid[torch.randperm(len(grid), generator=seed)]


def dense_beside_empty(features, seed):
    rows = torch.rand(600, features, generator=seed)
    rows[::2] *= 1e-3
    return rows


DATA = {
    "even": lambda features, seed: torch.rand(600, features, generator=seed),
    "pixels": pixels,
    "dense beside empty": dense_beside_empty,
    "on a line": lambda features, seed: (
        torch.rand(600, 1, generator=seed) * torch.arange(1.0, features + 1)
    ),
    "on an axis": lambda features, seed: (
        torch.rand(600, features, generator=seed) * (torch.arange(features) == 0)
    ),
    "on a circle": lambda features, seed: torch.nn.functional.normalize(
        torch.randn(600, features, generator=seed)
    ),
    "duplicates": lambda features, seed: torch.rand(30, features, generator=seed)[
        torch.arange(600) % 30
    ],
    "all the same": lambda features, seed: torch.ones(600, features),
    "1,000 from the origin": lambda features, seed: (
        torch.randn(600, features, generator=seed) + 1000
    ),
    "scale 1e-20": lambda features, seed: 1e-20 * torch.randn(600, features, generator=seed),
    "scale 1e20": lambda features, seed: 1e20 * torch.randn(600, features, generator=seed),
    "long and thin": lambda features, seed: (
        torch.randn(600, features, generator=seed) * 10.0 ** torch.arange(features)
    ),
    "one center": lambda features, seed: torch.randn(201, features, generator=seed),
    "one query": lambda features, seed: torch.randn(401, features, generator=seed),
}


@pytest.fixture
def seed():
    return torch.Generator().manual_seed(0)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(kdtree, "PAIRS", 1 << 10)


def split(data, name):
    queries = {"one query": 1}.get(name, 200)
    return data[:queries], data[queries:]


@pytest.mark.parametrize("excluded", [False, True])
@pytest.mark.parametrize("features", [1, 2, 3])
@pytest.mark.parametrize("name", DATA)
def test_cones_are_exact(name, features, excluded, seed):
    x, c = split(DATA[name](features, seed), name)
    v = torch.randn(len(c), 4, generator=seed)
    exclude = (
        torch.randint(-1, len(c), (len(x),), generator=seed) if excluded and len(c) > 1 else None
    )
    labels = torch.randint(0, 5, (len(c),), generator=seed)
    for factor in (1.1, 4.0):
        weights = oracle.weights(x, c, "influence_cone", exclude, factor=factor)
        found = attend(x, c, v, InfluenceCone(factor), exclude, backend="search")
        assert (
            found.dtype == torch.float32
            and (found - weights @ v.double()).abs().max() <= 1e-5 * v.abs().max()
        )
        shares = attend(x, c, Labels(labels, 5), InfluenceCone(factor), exclude, backend="search")
        assert (
            shares - weights @ torch.nn.functional.one_hot(labels, 5).double()
        ).abs().max() <= 1e-5


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    features=st.integers(1, 3),
    queries=st.integers(1, 70),
    centers=st.integers(1, 300),
    scale=st.floats(-20, 20),
    factor=st.floats(1.1, 50),
    whole=st.booleans(),
    wide=st.booleans(),
)
def test_cones_of_any_shape_and_scale(seed, features, queries, centers, scale, factor, whole, wide):
    generator = torch.Generator().manual_seed(seed)
    x, c = (torch.randn(n, features, generator=generator) * 3 for n in (queries, centers))
    x, c = (part.round() if whole else part * 10**scale for part in (x, c))
    v = torch.randn(centers, 3, generator=generator)
    x, c = (part.to(torch.float64 if wide else torch.float32) for part in (x, c))
    wanted = oracle.weights(x, c, "influence_cone", factor=factor) @ v.double()
    found = attend(x, c, v, InfluenceCone(factor), backend="search")
    assert (
        found.dtype == x.dtype
        and (found - wanted).abs().max() <= (1e-12 if wide else 1e-5) * v.abs().max()
    )


def test_many_small_weights_are_not_lost(seed):
    c, v = torch.rand(20_000, 1, generator=seed), torch.rand(20_000, 2, generator=seed)
    x = torch.tensor([[-0.5], [1.7], [0.5]])  # all centers within reach, and a handful
    wanted = oracle.weights(x, c, "influence_cone", factor=4.0) @ v.double()
    assert (attend(x, c, v, InfluenceCone(4.0), backend="search") - wanted).abs().max() <= 1e-6


def test_nothing_left_and_nothing_asked():
    one = torch.ones(1, 2)
    for kernel in (InfluenceCone(), UniformKNN(3)):
        assert attend(one, one, one, kernel, torch.tensor([0]), "search").tolist() == [[0.0, 0.0]]
        assert attend(one[:0], one, one, kernel, backend="search").shape == (0, 2)
    distance, index = nearest(one, one, 3, InfluenceCone(), torch.tensor([0]), "search")
    assert distance.isinf().all() and index.tolist() == [[-1, -1, -1]]
    distance, index = nearest(one + 1, one, 2, InverseDistance(), backend="search")
    assert distance[0].tolist() == [pytest.approx(2**0.5), torch.inf] and index.tolist() == [
        [0, -1]
    ]


@pytest.mark.parametrize("excluded", [False, True])
@pytest.mark.parametrize("features", [1, 2, 3])
@pytest.mark.parametrize(
    "name", ["even", "dense beside empty", "1,000 from the origin", "scale 1e-20", "scale 1e20"]
)
def test_nearest_and_their_mean_agree_with_sorting(name, features, excluded, seed):
    x, c = split(DATA[name](features, seed), name)
    v = torch.randn(len(c), 4, generator=seed)
    exclude = torch.randint(-1, len(c), (len(x),), generator=seed) if excluded else None
    wanted = oracle.euclidean(x.double(), c.double())
    if excluded:
        wanted[torch.arange(len(x))[exclude >= 0], exclude[exclude >= 0]] = torch.inf
    distance, index = nearest(x, c, 5, InverseDistance(), exclude, "search")
    assert torch.allclose(distance.double(), wanted.sort(1).values[:, :5], rtol=1e-6, atol=0)
    assert torch.equal(wanted.gather(1, index), wanted.sort(1).values[:, :5])
    mean = attend(x, c, v, UniformKNN(5, InfluenceCone()), exclude, "search")
    assert torch.allclose(mean, v[index].mean(1), atol=1e-6)


def test_auto_searches_where_that_is_exact_and_quicker(seed, monkeypatch):
    called = []
    for name in ("tree_average", "tree_nearest"):
        real = getattr(attend_module, name)
        monkeypatch.setattr(
            attend_module, name, lambda *given, real=real: called.append(1) or real(*given)
        )
    c, v, x = (torch.rand(n, 2, generator=seed) for n in (3000, 3000, 300))

    def searches(*given, **how):
        called.clear()
        attend(*given, **how)
        return bool(called)

    assert searches(x, c, v, InfluenceCone()) and searches(x, c, v, UniformKNN())
    assert not searches(x, c, v, InverseDistance())
    assert not searches(x, c, v, UniformKNN(3, EuclideanPyramid())) and not searches(
        x, c, v, CosineSoftmax()
    )
    assert not searches(x, c, v, UniformKNN(1000))
    assert not searches(x[:5], c, v, InfluenceCone()) and not searches(
        x, c[:5], v[:5], InfluenceCone()
    )
    assert not searches(x, c, v, InfluenceCone(), backend="blocks")
    assert not searches(x.repeat(1, 2), c.repeat(1, 2), v, InfluenceCone())
    assert not searches(x.log() / 0, c, v, InfluenceCone())
    assert not searches(x, c.clone().requires_grad_(), v, InfluenceCone())
    with torch.no_grad():
        assert searches(x, c.clone().requires_grad_(), v, InfluenceCone())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"kernel": CosineSoftmax()}, "CosineSoftmax.*give InfluenceCone"),
        ({"kernel": UniformKNN(2, EuclideanPyramid())}, "EuclideanPyramid"),
        ({"kernel": InverseDistance()}, "InverseDistance.*give InfluenceCone"),
        ({"queries": torch.ones(3, 4), "centers": torch.ones(6, 4)}, "at most 3 on cpu"),
        ({"centers": torch.ones(6, 2, requires_grad=True)}, "no gradients"),
        ({"queries": torch.full((3, 2), torch.nan)}, "NaN"),
    ],
)
def test_what_can_not_be_searched_is_named(change, named):
    good = {"queries": torch.ones(3, 2), "centers": torch.ones(6, 2), "values": torch.ones(6, 2)}
    good |= {"kernel": InfluenceCone(), "backend": "search"}
    with pytest.raises(ValueError, match=named):
        inspect.unwrap(attend)(**(good | change))


def both_ways(fit):
    """What a fit finds with all distances, and by searching as early as can be."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(condense_module, "is_worthwhile", lambda *sizes: False)
        dense = fit()
        patch.setattr(
            condense_module, "is_worthwhile", lambda queries, centers, width=1: centers > 0
        )
        patch.setattr(condense_module, "SEARCH_ROWS", 300)
        return dense, fit()


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 1000),
    features=st.integers(1, 3),
    name=st.sampled_from(list(DATA)[:-2]),
    factor=st.sampled_from([1.5, 4.0, 20.0]),
    batch_size=st.integers(8, 200),
    target=st.sampled_from([0.05, 0.8, 1.0]),
)
def test_a_regressor_keeps_the_same_centers_in_the_same_order(
    seed, features, name, factor, batch_size, target
):
    generator = torch.Generator().manual_seed(seed)
    x = DATA[name](features, generator)
    y = torch.stack(
        [(x / x.abs().max() * 9).sum(1).sin(), torch.randn(len(x), generator=generator) / 8], 1
    )
    how = {
        "tolerance": 0.1,
        "batch_size": batch_size,
        "target_accuracy": target,
        "max_neighbors": 2000,
    }

    def fit():
        return PublishedRegressor(InfluenceCone(factor), progress=False, **how).fit(x, y)

    dense, found = both_ways(fit)
    assert torch.equal(dense.indices_, found.indices_) and torch.equal(dense.growth_, found.growth_)


def test_batches_too_large_to_measure_among_themselves_are_not_searched(seed, monkeypatch):
    x = torch.rand(3000, 2, generator=seed)
    wanted = PublishedRegressor("influence_cone", batch_size=1000).fit(x, x[:, 0])
    monkeypatch.setattr(condense_module, "SEARCH_ROWS", 999)
    monkeypatch.setattr(condense_module, "GridVotes", None)
    assert torch.equal(
        PublishedRegressor("influence_cone", batch_size=1000).fit(x, x[:, 0]).indices_,
        wanted.indices_,
    )


def test_centers_that_are_learned_elsewhere_are_searched_without_gradients(seed):
    x, c, v = (torch.rand(n, 2, generator=seed) for n in (300, 2000, 2000))
    with torch.no_grad():
        wanted = attend(x, c, v, InfluenceCone())
        assert torch.equal(
            attend(x, c.requires_grad_(), v.requires_grad_(), InfluenceCone()), wanted
        )
    assert nearest(x.requires_grad_(), c, 2, InfluenceCone())[1].shape == (300, 2)


def test_a_classifier_keeps_the_same_centers_in_the_same_order(seed):
    x = torch.randn(900, 3, generator=seed)
    y = (x.norm(dim=1) * 2).long() % 3
    dense, found = both_ways(lambda: PublishedClassifier("influence_cone", batch_size=32).fit(x, y))
    assert torch.equal(dense.indices_, found.indices_)
    assert torch.equal(dense.predict(x), found.predict(x))


def test_a_picture_keeps_the_same_centers_in_the_same_order():
    picture = load_photo("astronaut")[60:140, 180:290]
    x = torch.cartesian_prod(*(torch.arange(float(size)) for size in picture.shape[:2]))
    y = picture.flatten(0, 1) / 255

    def fit():
        return PublishedRegressor("influence_cone", tolerance=0.2, progress=False).fit(x, y)

    dense, found = both_ways(fit)
    assert torch.equal(dense.indices_, found.indices_) and torch.equal(
        dense.indices_, fit().indices_
    )
    blocks = attend(x, found.centers_, found.values_, InfluenceCone(4.0), backend="blocks")
    assert (found.predict(x) - blocks).abs().max() <= 1e-5
