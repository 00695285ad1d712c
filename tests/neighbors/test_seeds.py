"""Seeds of any kind: numpy's, none at all, and what is none."""

import numpy as np
import pytest
import torch

from nnlib._common.runtime import check_seed, make_generator
from nnlib.features.augment import shifted_copies
from nnlib.features.patches import PatchFeatures
from nnlib.neighbors.classifier import DynamicClassifier
from nnlib.neighbors.metric_learning import NCATransformer
from nnlib.neighbors.prototypes import PrototypeClassifier
from nnlib.neighbors.regressor import DynamicRegressor
from nnlib.neighbors.stacking import StackedClassifier

QUICK = {"epochs": 2, "device": "cpu", "progress": False}
PUBLISHED = {"rule": "published", "progress": False}
SEEDED = [
    DynamicClassifier("euclidean", **PUBLISHED),
    DynamicRegressor(**PUBLISHED),
    PrototypeClassifier(4, scaling="none", **QUICK),
    NCATransformer(width=8, dim=2, proxies=4, **QUICK),
    PatchFeatures(3, size=2, device="cpu"),
    StackedClassifier(2, DynamicClassifier("euclidean", **PUBLISHED), progress=False),
]


@pytest.fixture(params=SEEDED, ids=lambda model: type(model).__name__)
def model(request):
    return request.param


def _fitted(model, seed):
    generator = torch.Generator().manual_seed(0)
    x = 100 * torch.rand(60, 4, 4, generator=generator)
    answer = "transform" if hasattr(model, "transform") else "predict"
    return getattr(model.set_params(random_state=seed).fit(x, torch.arange(60) % 2), answer)(x)


def test_a_seed_of_numpy_is_as_good_and_is_saved(model, tmp_path):
    wanted = _fitted(model, 3)
    assert torch.equal(_fitted(model, np.int64(3)), wanted) and torch.equal(
        _fitted(model, np.uint8(3)), wanted
    )
    model.save(tmp_path / "model")
    assert type(model).load(tmp_path / "model", "cpu").random_state == 3


@pytest.mark.parametrize("kind", [np.random.RandomState, np.random.default_rng])
def test_a_generator_of_numpy_is_drawn_from(model, kind):
    generator = kind(0)
    first = _fitted(model, generator)
    assert torch.equal(_fitted(model, kind(0)), first)
    assert generator.random() != kind(0).random()


def test_no_seed_will_do(model):
    assert len(_fitted(model, None)) == 60


def test_no_seed_is_another_each_time():
    assert len({check_seed(None) for _ in range(5)}) == 5
    x, y = torch.rand(400, 3), torch.arange(400) % 2
    firsts = [
        DynamicClassifier("euclidean", random_state=None, **PUBLISHED).fit(x, y).indices_[:64]
        for _ in range(2)
    ]
    assert not torch.equal(*firsts)  # the first batch, of 64 drawn from 400


@pytest.mark.parametrize("seed", ["a", -1, 1.5, 2**32, float("nan")])
def test_what_is_no_seed_is_refused(model, seed):
    with pytest.raises(ValueError, match=f"random_state={seed!r} can't be used"):
        _fitted(model, seed)


def test_copies_are_drawn_by_any_seed():
    x, y = torch.arange(48).view(3, 4, 4), torch.arange(3)
    assert torch.equal(
        shifted_copies(x, y, copies=3, seed=np.int32(2))[0],
        shifted_copies(x, y, copies=3, seed=2)[0],
    )
    assert len(shifted_copies(x, y, copies=3, seed=None)[0]) == 9


def test_the_largest_seed_draws():
    assert make_generator(2**32 - 1).initial_seed() == 2**32 - 1
