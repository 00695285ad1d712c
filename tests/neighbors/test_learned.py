"""Prototypes and learned metrics, against float64 and against their starting points."""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import oracle
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from nnlib.attention.blockwise import Labels
from nnlib.attention.dispatch import attend
from nnlib.attention.kernels import (
    CosineInverseDistance,
    CosineSoftmax,
    EuclideanPyramid,
    InfluenceCone,
    InverseDistance,
    UniformKNN,
)
from nnlib.errors import ModelError
from nnlib.neighbors.metric_learning import NCATransformer
from nnlib.neighbors.prototypes import PrototypeClassifier

QUICK = {"epochs": 3, "device": "cpu", "progress": False}
EXPECTED = {
    "check_no_attributes_set_in_init": "a torch module keeps its flag `training` from the start"
}
ONE = torch.tensor(1.0)
CHECKED = [
    PrototypeClassifier(20, **QUICK),
    NCATransformer("network", proxies=12, width=16, dim=4, **QUICK),
]


@pytest.mark.slow
@parametrize_with_checks(CHECKED, expected_failed_checks=lambda _: EXPECTED)
def test_scikit_learn_estimator(estimator, check):
    check(estimator)


def ring(samples=1200, seed=0):
    """Two classes, one inside the other, and features that mean nothing beside those two."""
    generator = torch.Generator().manual_seed(seed)
    angle, y = 2 * math.pi * torch.rand(samples, generator=generator), torch.arange(samples) % 2
    radius = 1 + y + 0.25 * torch.randn(samples, generator=generator)
    plane = radius[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
    return torch.cat([plane, 0.5 * torch.randn(samples, 4, generator=generator)], 1), y


@pytest.mark.parametrize(
    "kernel",
    [InverseDistance(-2.0), CosineInverseDistance(-1.0), CosineSoftmax(0.2)],
    ids=lambda k: type(k).__name__,
)
@pytest.mark.parametrize("labelled", [False, True])
def test_the_gradient_of_sharpness(kernel, labelled):
    generator = torch.Generator().manual_seed(0)
    x, c, v = (
        torch.randn(n, 5, generator=generator, dtype=torch.float64, requires_grad=True)
        for n in (7, 13, 13)
    )
    sharpness = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    source = Labels(torch.arange(13) % 3, 3) if labelled else v

    def average(x, c, sharpness):
        return attend(x, c, source, kernel, sharpness=sharpness, exclude=torch.arange(7))

    assert torch.autograd.gradcheck(average, (x, c, sharpness))
    assert torch.autograd.gradcheck(
        lambda sharpness: average(x.detach(), c.detach(), sharpness), (sharpness,)
    )
    alone = attend(x, c, source, kernel.sharpened(1.3), exclude=torch.arange(7))
    torch.testing.assert_close(average(x, c, sharpness), alone)


@pytest.mark.parametrize(
    "sharpness", [torch.tensor(0.0), torch.tensor(-1.0), torch.tensor(math.nan)]
)
def test_sharpness_without_sense_is_refused(sharpness):
    with pytest.raises(ValueError, match="sharpness="):
        attend(
            torch.ones(2, 3),
            torch.ones(4, 3),
            torch.ones(4, 1),
            InverseDistance(),
            sharpness=sharpness,
        )


@pytest.mark.parametrize("backend", ["search", "fused"])
def test_sharpness_is_for_blocks(backend):
    with pytest.raises(ValueError, match="backend="):
        attend(
            torch.ones(2, 3),
            torch.ones(4, 3),
            torch.ones(4, 1),
            InverseDistance(),
            None,
            backend,
            sharpness=ONE,
        )


@pytest.mark.parametrize("kernel", [InfluenceCone(), EuclideanPyramid(), UniformKNN(2)])
def test_a_kernel_without_sharpness_says_so(kernel):
    with pytest.raises(ValueError, match="sharpness"):
        attend(
            torch.ones(2, 3),
            torch.ones(4, 3),
            torch.ones(4, 1),
            kernel,
            sharpness=torch.tensor(2.0),
        )


@pytest.mark.parametrize(
    "kernel",
    [
        "euclidean",
        *(
            pytest.param(kernel, marks=pytest.mark.slow)
            for kernel in ("cosine", "influence_cone", "euclidian_pyramid", CosineSoftmax(0.1))
        ),
    ],
    ids=str,
)
def test_learning_lowers_the_loss_under_any_kernel(kernel):
    x, y = ring()
    few = PrototypeClassifier(12, kernel, epochs=1, lr=1e-9, progress=False).fit(x, y)
    many = PrototypeClassifier(12, kernel, epochs=20, progress=False).fit(x, y)
    assert many.losses_[-1] < few.losses_[0]
    assert many.num_neighbors == 12
    torch.testing.assert_close(many.values_.sum(1), torch.ones(12))


@pytest.mark.slow
def test_learned_centers_beat_the_clusters_they_set_out_from():
    (x, y), (test, test_y) = ring(), ring(seed=1)
    start = PrototypeClassifier(6, "euclidean", epochs=0, progress=False).fit(x, y)
    moved = PrototypeClassifier(6, "euclidean", epochs=30, progress=False).fit(x, y)
    assert moved.score(test, test_y) > start.score(test, test_y) + 0.02


@pytest.mark.parametrize(("samples", "centers"), [(20, 4), (200, 10), (7000, 300)])
def test_as_many_centers_as_there_are_samples_for(samples, centers):
    model = PrototypeClassifier(epochs=0, device="cpu", progress=False).fit(*ring(samples))
    assert model.num_neighbors == centers


def test_predictions_are_the_equation_over_what_was_learned():
    x, y = ring()
    model = PrototypeClassifier(10, CosineSoftmax(0.3), epochs=3, progress=False).fit(x, y)
    settings = {"temperature": 0.3 / model.sharpness_}
    share = oracle.weights(x, model.centers_, "cosine_softmax", **settings) @ model.values_.double()
    torch.testing.assert_close(model.predict_proba(x).double(), share, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model(x).exp().double(), share, atol=1e-5, rtol=1e-5)
    assert model.sharpness_ != 1


def test_the_same_seed_learns_the_same_and_words_are_labels_too():
    x, y = ring(400)
    words = np.array(["inner", "outer"])[y]
    models = [PrototypeClassifier(8, random_state=3, **QUICK).fit(x, y) for _ in range(2)]
    assert torch.equal(models[0].centers_, models[1].centers_)
    named = PrototypeClassifier(8, random_state=3, **QUICK).fit(x.numpy(), words)
    assert named.score(x.numpy(), words) == models[0].score(x, y)


@pytest.mark.parametrize("epochs", range(1, 8))
def test_a_few_steps_are_enough_to_learn(epochs):
    x, y = ring(40)
    metric = NCATransformer("linear", dim=3, proxies=4, epochs=epochs, progress=False).fit(x, y)
    assert len(metric.losses_) == epochs and metric.transform(x).isfinite().all()


def test_saved_and_loaded(tmp_path):
    x, y = ring(300)
    model = PrototypeClassifier(8, **QUICK).fit(x, y)
    model.save(tmp_path / "centers.safetensors")
    again = PrototypeClassifier.load(tmp_path / "centers.safetensors", device="cpu")
    assert torch.equal(again.predict_proba(x), model.predict_proba(x))
    assert again.get_params() == model.get_params()
    with pytest.raises(ModelError, match="PrototypeClassifier"):
        (tmp_path / "none.safetensors").write_bytes(b"none")
        PrototypeClassifier.load(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    "settings",
    [
        {"n_prototypes": 1},
        {"n_prototypes": 2.5},
        {"epochs": -1},
        {"lr": 0},
        {"lr": math.inf},
        {"kernel": UniformKNN(3)},
        {"kernel": "x"},
    ],
    ids=str,
)
def test_settings_without_sense_are_refused(settings):
    x, y = ring(50)
    with pytest.raises(ValueError, match=next(iter(settings))):
        PrototypeClassifier(**{"n_prototypes": 4} | QUICK | settings).fit(x, y)


def sectors(seed):
    """Four classes, by the quadrant of a plane, and six features of larger noise."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1500, 8, generator=generator) * torch.tensor([1.0] * 2 + [1.5] * 6)
    return x, 2 * (x[:, 0] > 0).long() + (x[:, 1] > 0)


@pytest.mark.parametrize(("shape", "points"), [("linear", 0.2), ("network", 0.1)])
def test_a_metric_finds_the_features_that_matter(shape, points):
    (x, y), (test, test_y) = sectors(0), sectors(1)
    plain = attend(test, x, Labels(y, 4), UniformKNN(5)).argmax(1)
    settings = {
        "width": 64,
        "proxies": 20,
        "dropout": 0.0,
        "drop_inputs": 0.0,
        "batch_size": 100,
        "lr": 0.01,
    }
    metric = NCATransformer(shape, dim=4, epochs=20, progress=False, **settings).fit(x, y)
    near = attend(metric.transform(test), metric.transform(x), Labels(y, 4), UniformKNN(5)).argmax(
        1
    )
    assert (near == test_y).float().mean() > (plain == test_y).float().mean() + points


def test_learning_is_half_from_where_rows_were_moved_against_the_metric():
    x, y = ring(40)
    settings = {"drop_inputs": 0.0, "batch_size": 40, "lr": 1e-12, "epochs": 1, "progress": False}

    def loss(metric, rows):
        """Of all rows against the proxies, in float64."""
        weight, bias = (part.double() for part in metric.map_[2].parameters())
        z = torch.nn.functional.normalize(rows @ weight.T + bias, dim=1)
        score = z @ metric.proxies_.double().T / metric.temperature
        other = y[:, None] != torch.arange(6) % 2
        return -score.softmax(1).masked_fill(other, 0).sum(1).log().mean()

    plain, moved = (
        NCATransformer("linear", dim=3, proxies=6, adversarial=length, **settings).fit(x, y)
        for length in (0.0, 0.1)
    )
    rows = moved.map_[0](x).double().requires_grad_()
    before = loss(moved, rows)
    (uphill,) = torch.autograd.grad(before, rows)
    step = 0.1 * math.sqrt(x.shape[1]) * uphill / uphill.norm(dim=1, keepdim=True)
    after = loss(moved, rows + step)
    assert after > before + 0.01
    assert plain.losses_[0] == pytest.approx(float(before.detach()), rel=1e-4)
    assert moved.losses_[0] == pytest.approx(float((before + after).detach()) / 2, rel=1e-4)


def test_a_linear_map_tells_the_class_in_the_middle_of_a_line():
    y = torch.arange(300) % 3
    noise = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    x = (y[:, None] - 1) * torch.tensor([1.0, 2.0]) + 0.1 * noise
    metric = NCATransformer("linear", dim=3, proxies=6, drop_inputs=0.0, lr=0.01, progress=False)
    z = metric.fit(x, y).transform(x)
    near = attend(z, z, Labels(y, 3), UniformKNN(3), exclude=torch.arange(300)).argmax(1)
    assert (near == y).float().mean() > 0.97


@pytest.mark.parametrize("scale", [1e-20, 1e20, 1e30])
def test_the_unit_of_the_data_does_not_matter(scale):
    x, y = ring(200)
    metrics = [
        NCATransformer("network", width=8, proxies=4, **QUICK).fit(rows, y)
        for rows in (x, x * scale)
    ]
    torch.testing.assert_close(
        metrics[1].transform(x * scale), metrics[0].transform(x), atol=1e-3, rtol=0
    )
    centers = [PrototypeClassifier(6, "cosine", **QUICK).fit(rows, y) for rows in (x, x * scale)]
    assert centers[1].score(x * scale, y) == pytest.approx(centers[0].score(x, y), abs=0.05)


@pytest.mark.slow
def test_one_sample_far_out_does_not_spoil_the_others():
    x, y = ring()
    far, label = torch.cat([x, torch.full((1, x.shape[1]), 1e5)]), torch.cat([y, y[:1]])
    fits = [
        PrototypeClassifier(6, device="cpu", progress=False).fit(*data)
        for data in ((x, y), (far, label))
    ]
    assert fits[1].score(x, y) > fits[0].score(x, y) - 0.05


@pytest.mark.parametrize("lr", [100.0, 1e3])
def test_steps_that_are_too_long_leave_a_kernel_that_holds(lr):
    for kernel in ("euclidean", "cosine_softmax"):
        model = PrototypeClassifier(6, kernel, lr=lr, epochs=3, device="cpu", progress=False).fit(
            *ring()
        )
        assert model.predict_proba(ring()[0]).isfinite().all()


def test_a_loss_that_is_no_number_is_laid_to_the_rate():
    with pytest.raises(ValueError, match="lr is too large"):
        NCATransformer(width=8, dim=2, lr=1e30, **QUICK).fit(*ring())


def test_proxies_are_as_many_as_classes_at_least():
    x = torch.randn(602, 4, generator=torch.Generator().manual_seed(0))
    model = NCATransformer(width=8, dim=4, **QUICK).fit(x, torch.arange(602) // 2)
    assert len(model.proxies_) == 301
    assert (
        len(NCATransformer(width=8, dim=4, **QUICK).fit(x, torch.arange(602) % 2).proxies_) == 300
    )


def test_equal_samples_of_a_class_are_no_cause_for_warnings(recwarn):
    model = PrototypeClassifier(8, **QUICK).fit(torch.eye(2).repeat(10, 1), torch.arange(20) % 2)
    assert model.num_neighbors == 8 and not recwarn.list


def test_each_column_has_a_unit_of_its_own():
    x, y = ring(200)
    units = 10.0 ** torch.arange(-9, 9, 3)
    settings = QUICK | {"width": 8, "proxies": 4}
    fits = [NCATransformer(**settings).fit(rows, y) for rows in (x, x * units)]
    torch.testing.assert_close(
        fits[1].transform(x * units), fits[0].transform(x), atol=1e-3, rtol=0
    )
    assert fits[0].map_[0].deviation.shape == (6,)


@pytest.mark.parametrize(
    ("dtype", "scaling"), [(torch.uint8, "auto"), (torch.bfloat16, "common")], ids=str
)
def test_columns_of_pictures_share_one_deviation(dtype, scaling):
    x, y = ring(200)
    x = (x * torch.arange(1, 7) * 9 + 128).clamp(0, 255).to(dtype)
    metric = NCATransformer("linear", scaling=scaling, **QUICK).fit(x, y)
    wide = x.double() - x.double().mean(0)
    wanted = (wide / wide.square().mean().sqrt()).float()
    torch.testing.assert_close(metric.map_[0](x), wanted)


@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16, torch.float64], ids=str)
def test_the_same_numbers_in_another_type_give_the_same_metric(dtype):
    x, y = ring(200)
    x = (20 * x).round()
    wanted = NCATransformer("linear", **QUICK).fit(x, y).transform(x)
    found = NCATransformer("linear", **QUICK).fit(x.to(dtype), y).transform(x.to(dtype))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("kind", [torch.int64, torch.float64], ids=str)
def test_seconds_since_1970_are_told_apart(kind):
    y = torch.arange(400) % 2
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-9, 9, (400, 3), generator=generator)
    x[:, 1] += 60 * y
    late = (x + 1_700_000_000).to(kind)
    settings = QUICK | {"width": 8, "epochs": 9}
    metric = NCATransformer(**settings).fit(late, y)
    early = NCATransformer(**settings).fit(x.to(kind), y)
    torch.testing.assert_close(metric.transform(late), early.transform(x.to(kind)))
    z = metric.transform(late)
    voted = attend(z, z, Labels(y, 2), UniformKNN(9), exclude=torch.arange(400))
    assert (voted.argmax(1) == y).all()


def test_a_constant_column_says_nothing():
    x, y = ring(100)
    constant = torch.cat([x.double(), torch.full((100, 2), 0.1) * torch.tensor([1e9, 1.0])], 1)
    rows = NCATransformer("linear", **QUICK).fit(constant, y).map_[0](constant)
    assert rows.abs().max() < 6 and not rows[:, 6:].any()


def in_four_threads(fit):
    """What six calls at the same time give."""
    with ThreadPoolExecutor(4) as threads:
        return list(threads.map(lambda _: fit(), range(6)))


@pytest.mark.parametrize("matmul_dtype", ["float32", "bfloat16"])
def test_fits_in_several_threads_do_not_disturb_each_other(matmul_dtype):
    x, y = ring(150)
    settings = QUICK | {"width": 16, "dim": 4, "matmul_dtype": matmul_dtype}

    def fit():
        return NCATransformer(**settings).fit(x, y).transform(x)

    alone = fit()
    assert all(torch.equal(rows, alone) for rows in in_four_threads(fit))


def test_a_metric_is_a_layer_of_a_network():
    x, y = ring(60)
    metric = NCATransformer(width=8, dim=3, **QUICK).fit(x, y)
    torch.nn.Sequential(metric, torch.nn.Linear(3, 1)).train()
    assert torch.equal(metric(x), metric.transform(x))
    metric.double()
    point = x[:4].double().requires_grad_()
    assert torch.autograd.gradcheck(metric, point) and torch.autograd.gradgradcheck(metric, point)
    slopes = torch.func.vmap(torch.func.jacrev(lambda row: metric(row[None])[0]))(point)
    (wanted,) = torch.autograd.grad(metric(point)[:, 0].sum(), point)
    torch.testing.assert_close(slopes[:, 0], wanted)


@pytest.mark.parametrize("bad", [torch.ones(3), np.ones((2, 5)), "abc", torch.ones(2, 2, 2)])
def test_what_a_metric_can_not_encode_is_named(bad):
    metric = NCATransformer("linear", **QUICK).fit(*ring(20))
    with pytest.raises((ValueError, TypeError), match="^x "):
        metric(bad)
    assert metric(np.ones((2, 2, 3))).shape == (2, 64)


def test_a_file_of_one_deviation_is_read(tmp_path):
    x, y = ring(100)
    metric = NCATransformer("linear", scaling="common", **QUICK).fit(x, y)
    metric.save(tmp_path / "now")
    with safe_open(tmp_path / "now", "pt") as file:
        header = file.metadata()
    tensors = load_file(tmp_path / "now")
    tensors["map.0.mean"] = tensors["map.0.mean"].float()
    save_file(tensors, tmp_path / "before", header)
    again = NCATransformer.load(tmp_path / "before", "cpu")
    torch.testing.assert_close(again.transform(x), metric.transform(x))


def test_learning_leaves_the_random_numbers_of_others_alone():
    x, y = ring(100)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    NCATransformer("network", width=8, proxies=4, epochs=1, progress=False).fit(x, y)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    "settings",
    [
        {"map": "residual"},
        {"scaling": "pixels"},
        {"dim": 0},
        {"proxies": 1},
        {"proxies": 0},
        {"temperature": 0},
        {"matmul_dtype": "int8"},
        {"adversarial": 1.0},
        {"adversarial": -0.1},
        {"dropout": 1.0},
        {"drop_inputs": "much"},
        {"lr": math.inf},
        {"temperature": None},
    ],
    ids=str,
)
def test_metrics_without_sense_are_refused(settings):
    x, y = ring(50)
    with pytest.raises(ValueError, match=next(iter(settings))):
        NCATransformer(**QUICK | settings).fit(x, y)


def test_what_it_says_does_not_depend_on_the_mode():
    x, y = ring(100)
    metric = NCATransformer("network", width=8, proxies=4, **QUICK).fit(x, y)
    before = metric.transform(x)
    metric.train()
    assert torch.equal(metric.transform(x), before)


def test_a_metric_that_is_not_fitted_says_so():
    with pytest.raises(NotFittedError):
        NCATransformer().transform(torch.ones(2, 3))


@pytest.mark.slow
def test_they_go_in_a_pipeline():
    x, y = ring()
    some = QUICK | {"epochs": 20}
    chain = make_pipeline(
        NCATransformer("network", width=32, dim=4, proxies=10, scaling="common", **some),
        PrototypeClassifier(6, **some),
    )
    assert clone(chain).fit(x.numpy(), y.numpy()).score(x.numpy(), y.numpy()) > 0.8


@pytest.mark.parametrize("shape", ["linear", "network"])
def test_a_metric_is_saved_and_loaded(shape, tmp_path):
    x, y = ring(300)
    model = NCATransformer(shape, dim=4, proxies=6, width=16, **QUICK).fit(x, y)
    model.save(tmp_path / "metric.safetensors")
    again = NCATransformer.load(tmp_path / "metric.safetensors", "cpu")
    assert torch.equal(again.transform(x), model.transform(x)) and torch.equal(
        again.proxies_, model.proxies_
    )
    assert again.get_params() == model.get_params() and again.classes_.tolist() == [0, 1]
    assert not any(part.requires_grad for part in again.parameters()) and not again.map_.training
    with pytest.raises(ModelError, match="the class 'NCATransformer'"):
        PrototypeClassifier.load(tmp_path / "metric.safetensors")


def test_a_metric_whose_file_does_not_fit_together_is_refused(tmp_path):
    path = tmp_path / "metric.safetensors"
    model = NCATransformer("linear", dim=4, proxies=6, **QUICK).fit(*ring(100))
    model.dim = 10**12
    model.save(path)
    with pytest.raises(ModelError, match="can't be read as a NCATransformer"):
        NCATransformer.load(path)
    with pytest.raises(NotFittedError):
        NCATransformer().save(path)
