"""The dynamic estimators: the published rule against a plain loop, and what users expect."""

import pickle

import numpy as np
import oracle
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import (
    check_classifiers_one_label,
    check_dict_unchanged,
    check_estimators_unfitted,
    check_f_contiguous_array_estimator,
    check_get_params_invariance,
    parametrize_with_checks,
)
from torch.utils.data import DataLoader, TensorDataset

from nnlib.attention.kernels import (
    CosineInverseDistance,
    InfluenceCone,
    InverseDistance,
    UniformKNN,
)
from nnlib.datasets import load
from nnlib.errors import ModelError
from nnlib.neighbors.classifier import DynamicClassifier
from nnlib.neighbors.condensing import rule as condense_module
from nnlib.neighbors.prototypes import PrototypeClassifier
from nnlib.neighbors.regressor import DynamicRegressor
from tests.published import PublishedClassifier, PublishedRegressor

# Checks that can't hold, each with its reason.
EXPECTED = {
    "check_no_attributes_set_in_init": "a torch module keeps its flag `training` from the start"
}


QUICK_CHECKS = (
    check_dict_unchanged,
    check_estimators_unfitted,
    check_f_contiguous_array_estimator,
    check_get_params_invariance,
    check_classifiers_one_label,
)


@pytest.mark.parametrize("check", QUICK_CHECKS, ids=lambda check: check.__name__)
def test_quick_scikit_learn_checks(check):
    check("DynamicClassifier", PublishedClassifier(progress=False))


@pytest.mark.slow
@parametrize_with_checks(
    [DynamicClassifier(), DynamicRegressor()], expected_failed_checks=lambda _: EXPECTED
)
def test_scikit_learn_estimator(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def digits():
    data = load("mnist")
    return (
        data.train_images[:3000],
        data.train_labels[:3000],
        data.test_images[:500],
        data.test_labels[:500],
    )


def blobs(samples=300, features=5, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, classes, (samples,), generator=generator)
    return torch.randn(samples, features, generator=generator) + y[:, None], y


@pytest.mark.parametrize("kernel", ["cosine", "euclidean", "euclidian_pyramid", "influence_cone"])
def test_same_centers_in_the_same_order_as_the_plain_loop(kernel, digits):
    x, y = digits[0][:700].flatten(1).float() / 255, digits[1][:700]
    model = PublishedClassifier(kernel, random_state=5).fit(x, y)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(5))
    wanted = oracle.condense(x, y, 10, kernel, order.split(64))
    assert torch.equal(model.indices_, wanted)
    assert torch.equal(model.centers_, x[wanted]) and torch.equal(model.values_, y[wanted])


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    batch_size=st.integers(1, 40),
    target=st.floats(0.05, 1),
    rounds=st.integers(1, 5),
    most=st.integers(1, 90),
    kernel=st.sampled_from(["cosine", "euclidean", "influence_cone", "nearest"]),
    block=st.sampled_from([1, 30, 100]),
)
def test_any_setting_follows_the_rule(seed, batch_size, target, rounds, most, kernel, block):
    x, y = blobs(150, 4, seed=seed)
    how = {
        "batch_size": batch_size,
        "target_accuracy": target,
        "max_count": rounds,
        "max_neighbors": most,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(condense_module, "BLOCK_ROWS", block)
        one = PublishedClassifier("euclidean", predictor="nearest", shuffle=False, **how)
        model = (
            one if kernel == "nearest" else PublishedClassifier(kernel, shuffle=False, **how)
        ).fit(x, y)
    kernel, count = ("k_nearest", {"count": 1}) if kernel == "nearest" else (kernel, {})
    batches = torch.arange(150).split(batch_size)
    rule = {"target_accuracy": target, "max_count": rounds, "max_neighbors": most}
    wanted = oracle.condense(x, y, 3, kernel, batches, **rule, **count)
    assert torch.equal(model.indices_, wanted)
    assert model.num_neighbors <= most + 2 * batch_size


def test_regressor_follows_the_published_loop():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(600, 2, generator=generator) * 20
    y = torch.stack([x[:, 0].sin(), x[:, 1].cos(), x.sum(1).sin()], 1)
    model = PublishedRegressor("influence_cone", tolerance=0.2, batch_size=64, shuffle=False).fit(
        x, y
    )
    chosen = list(range(64))
    for batch in torch.arange(600).split(64)[1:]:
        quality = 0.0
        while quality < 1 - 0.8:
            mean = (
                oracle.weights(x[batch], x[chosen], "influence_cone", factor=4.0)
                @ y[chosen].double()
            )
            wrong = (mean - y[batch]).square().sum(1).sqrt() >= 0.2
            if not wrong.any():
                break
            chosen += batch[wrong].tolist()
            mean = (
                oracle.weights(x[batch], x[chosen], "influence_cone", factor=4.0)
                @ y[chosen].double()
            )
            quality = float(1 - (mean - y[batch]).abs().mean())
    assert model.indices_.tolist() == chosen
    assert model.score(x, y) > 0.95
    assert model.predict(x[:7]).shape == (7, 3) and model.fit(x, y[:, 0]).predict(x[:7]).shape == (
        7,
    )


def test_published_accuracy_in_miniature(digits):
    x, y, test_x, test_y = digits
    model = PublishedClassifier().fit(x, y)
    assert 250 < model.num_neighbors < 900
    assert model.score(test_x, test_y) > 0.87 and model.score(x, y) > 0.97


def test_nearest_predictor_takes_the_class_of_the_largest_weight(digits):
    x, y, test_x, _ = digits
    model = PublishedClassifier("euclidean", predictor="nearest").fit(x, y)
    index = model.kneighbors(test_x, 1, return_distance=False)[:, 0]
    assert torch.equal(model.predict(test_x), model.values_[index])
    assert set(np.unique(model.predict_proba(test_x))) == {0.0, 1.0}


def test_what_goes_in_comes_out():
    x, y = blobs()
    words = np.array(["ant", "bee", "cat"])[y.numpy()]
    for given_x, given_y, kind in (
        (x, y, torch.Tensor),
        (x.numpy(), y.numpy(), np.ndarray),
        (x, words, np.ndarray),
    ):
        model = PublishedClassifier().fit(given_x, given_y)
        assert isinstance(model.predict(given_x), kind)
        assert model.score(given_x, given_y) > 0.8
    assert set(model.predict(x)) <= {"ant", "bee", "cat"}


def test_types_are_kept_and_agree(digits):
    x, y, test_x, _ = digits
    whole, scaled = PublishedClassifier().fit(x, y), PublishedClassifier().fit(x.float() / 255, y)
    assert whole.centers_.dtype == torch.uint8 and scaled.centers_.dtype == torch.float32
    assert torch.equal(whole.indices_, scaled.indices_)
    wide = PublishedClassifier().fit(x.flatten(1).numpy().astype(np.float64), y.numpy())
    assert wide.centers_.dtype == torch.float32 and torch.equal(whole.indices_, wide.indices_)
    assert np.allclose(
        whole.predict_proba(test_x), wide.predict_proba(test_x.flatten(1).numpy()), atol=1e-5
    )


def test_partial_fit_goes_on_where_fit_stopped():
    x, y = blobs(640, 8)
    whole = PublishedClassifier(shuffle=False).fit(x, y)
    parts = PublishedClassifier(shuffle=False)
    for start in range(0, 640, 64):
        parts.partial_fit(x[start : start + 64], y[start : start + 64], classes=[0, 1, 2])
    assert torch.equal(whole.centers_, parts.centers_) and torch.equal(whole.values_, parts.values_)


def test_growing_leaves_what_was_there_and_is_not_reallocated_every_time():
    x, y = blobs(6400, 8, classes=6)
    model = PublishedClassifier(shuffle=False).partial_fit(x[:64], y[:64], classes=range(6))
    places, before = set(), model.centers_
    kept = before.clone()
    for start in range(64, 6400, 64):
        model.partial_fit(x[start : start + 64], y[start : start + 64])
        places.add(model.centers_.data_ptr())
    assert torch.equal(before, kept) and model.num_neighbors > 1000
    assert len(places) < 12
    assert len(pickle.dumps(model)) < 2 * model.centers_.nbytes


def test_centers_are_kept_in_a_type_that_holds_what_comes_later():
    x = torch.randint(0, 9, (200, 6), dtype=torch.uint8)
    y = (x[:, 0] > 4).long()
    model = PublishedClassifier("euclidean").fit(x, y)
    before = model.centers_.float()
    model.partial_fit(x[:50] + 0.5, 1 - y[:50])
    assert torch.equal(model.centers_[: len(before)], before)
    assert (model.centers_[len(before) :] % 1 == 0.5).all() and model.num_neighbors > len(before)
    with pytest.raises(ValueError, match="float32 after torch.uint8"):
        PublishedClassifier(batch_size=8).fit(iter([(x, y), (x * 1.5, y)] * 6), classes=[0, 1])


def test_a_stream_gives_the_same_centers():
    x, y = blobs(1000, 8)
    whole = PublishedClassifier(shuffle=False).fit(x, y)
    for size in (64, 50, 1000):
        loader = DataLoader(TensorDataset(x, y), batch_size=size)
        assert torch.equal(
            PublishedClassifier().fit(loader, classes=[0, 1, 2]).centers_, whole.centers_
        )
    halves = PublishedClassifier().fit(
        DataLoader(TensorDataset(x[:512], y[:512]), batch_size=64), classes=[0, 1, 2]
    )
    halves.partial_fit(DataLoader(TensorDataset(x[512:], y[512:]), batch_size=64))
    assert torch.equal(halves.centers_, whole.centers_)
    with pytest.raises(ValueError, match="classes=None"):
        PublishedClassifier().fit(DataLoader(TensorDataset(x, y)))


def test_a_stream_of_words_and_where_streams_do_not_go():
    x, y = blobs(200)
    words = np.array(["ant", "bee", "cat"])[y.numpy()]
    batches = [(x[i : i + 50], list(words[i : i + 50])) for i in range(0, 200, 50)]
    model = PublishedClassifier().fit(iter(batches), classes=["ant", "bee", "cat"])
    assert np.array_equal(
        model.predict(x.numpy()), PublishedClassifier(shuffle=False).fit(x, words).predict(x)
    )
    with pytest.raises(ValueError, match="stream of batches"):
        model.predict(DataLoader(TensorDataset(x)))
    with pytest.raises(ValueError, match="(?i)inconsistent"):
        model.score(x, words[:1])


def test_samples_that_contradict_each_other_are_not_added_forever():
    x = torch.ones(20, 3)
    model = PublishedRegressor(max_neighbors=3000, batch_size=10).fit(x, torch.arange(20.0) % 2)
    assert model.num_neighbors < 100


def test_stream_of_values():
    x, y = blobs(600, 3)
    loader = DataLoader(TensorDataset(x, x.sum(1)), batch_size=100)
    whole = PublishedRegressor(shuffle=False).fit(x, x.sum(1))
    assert torch.equal(PublishedRegressor().fit(loader).centers_, whole.centers_)


def test_seed_and_order():
    x, y = blobs(900)

    def fit(**how):
        return PublishedClassifier(**how).fit(x, y).indices_.tolist()

    assert fit(random_state=1) == fit(random_state=1) != fit(random_state=2)
    assert fit(shuffle=False)[:64] == list(range(64))
    assert fit(random_state=None) != fit(random_state=None)


def test_citizen_of_scikit_learn():
    x, y = (part.numpy() for part in blobs(400))
    pipeline = make_pipeline(StandardScaler(), PublishedClassifier("euclidean"))
    search = GridSearchCV(pipeline, {"dynamicclassifier__exponent": [-2.0, -6.0]}, cv=2).fit(x, y)
    assert search.best_score_ > 0.6
    cone = PublishedClassifier(InfluenceCone(3.0), batch_size=32)
    copy = clone(cone)
    assert copy.get_params() == cone.get_params() and not copy.__sklearn_is_fitted__()


def test_kneighbors_agree_with_scikit_learn():
    x, y = blobs(500)
    model = PublishedClassifier("euclidean").fit(x, y)
    wanted = NearestNeighbors(n_neighbors=4).fit(model.centers_.numpy()).kneighbors(x[:50].numpy())
    distance, index = model.kneighbors(x[:50], 4)
    assert np.allclose(distance, wanted[0], atol=1e-6) and np.array_equal(index, wanted[1])
    _, own = model.kneighbors(n_neighbors=1)
    assert (own[:, 0] != np.arange(model.num_neighbors)).all()


def test_torch_module():
    x, y = blobs()
    model = PublishedClassifier().fit(x, y)
    assert set(dict(model.named_buffers())) == {"centers_", "values_"}
    point = x[:4].clone().requires_grad_()
    model(point)[:, 0].sum().backward()
    assert point.grad.isfinite().all() and point.grad.abs().sum() > 0
    assert torch.allclose(model(x).exp().sum(1), torch.ones(len(x)), atol=1e-5)


@pytest.mark.parametrize(
    "model",
    [
        PublishedClassifier("influence_cone", epsilon=1e-5),
        PublishedClassifier(UniformKNN(3, CosineInverseDistance(-2.0, signed=True))),
        PublishedClassifier(InverseDistance(-3.0), predictor="nearest"),
    ],
)
def test_save_and_load(model, tmp_path):
    x, y = blobs()
    words = np.array(["ant", "bee", "cat"])[y.numpy()]
    model = clone(model).fit(x.numpy(), words)
    model.save(tmp_path / "model.safetensors")
    again = DynamicClassifier.load(tmp_path / "model.safetensors")
    assert again.get_params() == model.get_params()
    assert np.array_equal(again.predict_proba(x.numpy()), model.predict_proba(x.numpy()))
    assert list(again.predict(x.numpy())) == list(model.predict(x.numpy()))
    again.partial_fit(x.numpy(), words)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_save_and_load_a_regressor(tmp_path):
    x, _ = blobs()
    model = PublishedRegressor("influence_cone").fit(x, x[:, 0])
    model.save(tmp_path / "m.safetensors")
    assert torch.equal(
        DynamicRegressor.load(tmp_path / "m.safetensors").predict(x), model.predict(x)
    )


def saved(folder):
    x, y = blobs()
    PublishedClassifier().fit(x, y).save(folder / "good.safetensors")
    return folder / "good.safetensors"


def test_a_truncated_model_is_refused(tmp_path):
    whole = saved(tmp_path).read_bytes()
    for length in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut").write_bytes(whole[:length])
        with pytest.raises(ModelError, match="cut"):
            DynamicClassifier.load(tmp_path / "cut")


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other"},
        {"class": "DynamicRegressor"},
        {"metadata": "{}"},
        {"metadata": "not json"},
        {"metadata": '{"settings": {"kernel": {"kernel": "math", "fields": {}}}}'},
        {"metadata": '{"settings": {"surprise": 1}, "attributes": {}}'},
    ],
)
def test_a_foreign_model_is_refused(change, tmp_path):
    from safetensors import safe_open

    path = saved(tmp_path)
    with safe_open(path, "pt") as file:
        header = file.metadata()
    save_file(load_file(path), tmp_path / "changed", header | change)
    with pytest.raises(ModelError, match="changed"):
        DynamicClassifier.load(tmp_path / "changed")
    with pytest.raises(ModelError, match="nowhere"):
        DynamicClassifier.load(tmp_path / "nowhere")


def test_tensors_that_do_not_belong_together_are_refused(tmp_path):
    from safetensors import safe_open

    path = saved(tmp_path)
    with safe_open(path, "pt") as file:
        header = file.metadata()
    tensors = load_file(path)
    save_file(tensors | {"values": tensors["values"][1:].contiguous()}, tmp_path / "short", header)
    with pytest.raises(ModelError, match="belong together"):
        DynamicClassifier.load(tmp_path / "short")


def test_a_save_that_fails_leaves_nothing(tmp_path):
    x, y = blobs()
    model = PublishedClassifier().fit(x, y)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="can't be written"):
        model.save(tmp_path / "file" / "model.safetensors")
    with pytest.raises(OSError):
        model.save(tmp_path)  # a folder
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    with pytest.raises(NotFittedError, match="call fit"):
        PublishedClassifier().save(tmp_path / "none.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", [torch.tensor, np.array])
def test_not_finite_is_refused_and_the_model_stays(value, kind):
    x, y = (part.tolist() for part in blobs(40))
    model = PublishedClassifier().fit(kind(x), kind(y))
    before = model.centers_.clone()
    x[17][2] = value
    with pytest.raises(ValueError, match="(?i)NaN|infinity"):
        model.partial_fit(kind(x), kind(y))
    with pytest.raises(ValueError, match="(?i)NaN|infinity"):
        model.predict(kind(x))
    with pytest.raises(ValueError, match="(?i)NaN|infinity"):
        PublishedRegressor().fit(kind(x)[:10], kind([value] * 10))
    assert torch.equal(model.centers_, before)


@pytest.mark.parametrize(
    "kernel", ["euclidean", CosineInverseDistance(signed=True), "cosine"], ids=str
)
@pytest.mark.parametrize("stream", [False, True])
def test_who_would_take_opposite_samples_for_one_is_warned(kernel, stream, recwarn):
    x, y = blobs(60)
    loader = DataLoader(TensorDataset(x, y), batch_size=20)
    model = PublishedClassifier(kernel)
    model.fit(loader, classes=range(3)) if stream else model.fit(x, y)
    PublishedClassifier(kernel).fit(x.abs(), y)
    warned = [
        str(warning.message)
        for warning in recwarn.list
        if "takes x and -x for one" in str(warning.message)
    ]
    assert len(warned) == (kernel == "cosine")


@pytest.mark.parametrize(
    "model", [PublishedClassifier("euclidean"), PrototypeClassifier(6, epochs=1, device="cpu")]
)
@pytest.mark.parametrize(
    ("unit", "epsilon", "warned"), [(1.0, 1e-6, 0), (1e-6, 1e-6, 1), (1e-6, 1e-12, 0)]
)
def test_who_would_lose_distances_to_epsilon_is_warned(model, unit, epsilon, warned, recwarn):
    x, y = blobs(60)
    model.set_params(epsilon=epsilon, progress=False).fit(x * unit, y)
    assert ["epsilon=1e-06 blots out" in str(warning.message) for warning in recwarn.list] == [
        True
    ] * warned
    model.fit(torch.ones(60, 5), y)  # which tell nothing in any unit
    assert len(recwarn.list) == warned


@pytest.mark.parametrize("model", [PublishedClassifier("euclidean"), PublishedRegressor()])
def test_a_streams_batches_are_held_to_the_first(model):
    x, y = blobs(60)
    more = {"classes": [0, 1, 2]} if isinstance(model, DynamicClassifier) else {}
    with pytest.raises(ValueError, match="20 samples, and y 21"):
        model.fit(iter([(x[:20], y[:20]), (x[20:40], y[20:41])]), **more)
    with pytest.raises(ValueError, match="4 features"):
        model.fit(iter([(x[:20], y[:20]), (x[20:, :4], y[20:])]), **more)
    rows = [(x[i : i + 20].numpy(), y[i : i + 20].numpy()) for i in (0, 20, 40)]
    frames = [(pd.DataFrame(part), labels.tolist()) for part, labels in rows]
    fits = [clone(model).fit(iter(batches), **more).centers_ for batches in (rows, frames)]
    assert torch.equal(*fits)


@pytest.mark.parametrize("labels", [["a", None], ["a", 1], ["a", float("nan")]])
def test_labels_without_an_order_are_refused(labels):
    with pytest.raises(ValueError, match="y holds labels that have no order"):
        PublishedClassifier("euclidean").fit(blobs(60)[0], np.array(labels * 30, dtype=object))


@pytest.mark.parametrize("far", [0.0, 1e4, 1e8, 1.7e9])
def test_a_column_far_from_zero_loses_no_digits(far):
    x, y = blobs(60)
    rows = x.double().numpy()
    model = PublishedClassifier("euclidean").fit(rows + far * np.eye(5)[4], y)
    wanted = PublishedClassifier("euclidean").fit(rows, y)
    assert torch.equal(model.indices_, wanted.indices_)
    shifted = model.kneighbors(rows + far * np.eye(5)[4])[0]
    np.testing.assert_allclose(shifted, wanted.kneighbors(rows)[0], atol=1e-5)


def test_a_refused_batch_of_targets_leaves_the_regressor_as_it_was():
    x = blobs(60)[0]
    model = PublishedRegressor(progress=False).fit(x, x[:, 0])
    wanted, loader = model.predict(x), DataLoader(TensorDataset(x, x[:, :2]), batch_size=20)
    for refused in (lambda: model.partial_fit(x, x[:, :2]), lambda: model.partial_fit(loader)):
        with pytest.raises(ValueError, match="y has shape"):
            refused()
    assert torch.equal(model.predict(x), wanted)
    batches = iter([(x, x[:, :2]), (x, x[:, :3])])
    with pytest.raises(ValueError, match=r"give targets \[N, \*\[2\]\]"):
        PublishedRegressor(progress=False).fit(batches)


def test_arrays_of_pictures_are_flattened_as_tensors_are():
    x, y = blobs(60)
    model = PublishedClassifier("euclidean", progress=False).fit(x.view(60, 5, 1).numpy(), y)
    assert model.n_features_in_ == 5 and np.array_equal(
        model.predict(x.view(60, 1, 5).numpy()), model.predict(x)
    )
    with pytest.raises(ValueError, match="minimum of 1"):
        model.predict(np.zeros((0, 5, 1)))


@pytest.mark.parametrize(("features", "exponent"), [(2, -4.0), (7, -7.0), (40, -16.0)])
def test_many_features_let_a_regressors_weights_fall_steeply(features, exponent):
    x = torch.rand(50, features, generator=torch.Generator().manual_seed(0))
    given, left = (
        PublishedRegressor(exponent=how, progress=False).fit(x, x[:, 0]) for how in (exponent, None)
    )
    assert torch.equal(given.predict(x), left.predict(x)) and torch.equal(
        given.centers_, left.centers_
    )


def test_a_number_too_large_for_float32_is_refused():
    with pytest.raises(ValueError, match="float32"):
        PublishedClassifier().fit(np.array([[1.0], [1e300]]), [0, 1])


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda m, x, y: m.partial_fit(x, y + 5), "outside the classes"),
        (lambda m, x, y: m.partial_fit(x, y, classes=[0, 1, 7]), "classes="),
        (lambda m, x, y: m.predict(x[:, :3]), "features"),
        (lambda m, x, y: m.predict(x.numpy()[:, :3]), "features"),
        (lambda m, x, y: m.fit(x[:0], y[:0]), "shape"),
        (lambda m, x, y: m.fit(x[:, :0], y), "shape"),
        (lambda m, x, y: m.fit(x[:, 0], y), "shape"),
        (lambda m, x, y: m.fit(x, y[:-1]), "60 samples, and y 59"),
        (lambda m, x, y: m.fit(x, y.double() + 0.5), "(?i)continuous"),
        (lambda m, x, y: m.fit(x), "requires y"),
        (lambda m, x, y: m.fit(iter([]), classes=[0, 1]), "no batches"),
        (lambda m, x, y: m.kneighbors(x, 10_000), "n_neighbors=10000"),
        (lambda m, x, y: m.kneighbors(x, "a"), "n_neighbors='a'"),
        (lambda m, x, y: PublishedClassifier().partial_fit(x, y), "classes"),
        (lambda m, x, y: PublishedClassifier("manhattan").fit(x, y), "kernel='manhattan'"),
        (lambda m, x, y: PublishedClassifier(exponent=4).fit(x, y), "exponent=4"),
        (
            lambda m, x, y: PublishedClassifier(target_accuracy="0.9").fit(x, y),
            "target_accuracy='0.9'",
        ),
        (lambda m, x, y: PublishedClassifier(epsilon=-1).fit(x, y), "epsilon=-1"),
        (
            lambda m, x, y: PublishedClassifier("influence_cone", influence_cone_factor=1).fit(
                x, y
            ),
            "factor=1",
        ),
        (lambda m, x, y: PublishedClassifier("euclidian_pyramid", scales=0).fit(x, y), "scales=0"),
        (lambda m, x, y: PublishedClassifier(batch_size=0).fit(x, y), "batch_size=0"),
        (lambda m, x, y: PublishedClassifier(max_count=0.5).fit(x, y), "max_count=0.5"),
        (lambda m, x, y: PublishedClassifier(max_neighbors=0).fit(x, y), "max_neighbors=0"),
        (lambda m, x, y: PublishedClassifier(target_accuracy=2).fit(x, y), "target_accuracy=2"),
        (lambda m, x, y: PublishedClassifier(predictor="vote").fit(x, y), "predictor='vote'"),
        (lambda m, x, y: PublishedClassifier(device="quantum").fit(x, y), "device='quantum'"),
        (lambda m, x, y: PublishedRegressor(tolerance=0).fit(x, y), "tolerance=0"),
    ],
)
def test_bad_input_is_named(call, named):
    x, y = blobs(60)
    with pytest.raises(ValueError, match=named):
        call(PublishedClassifier().fit(x, y), x, y)


@pytest.mark.parametrize("method", ["predict", "predict_proba", "kneighbors"])
def test_before_fit(method):
    with pytest.raises(NotFittedError, match="not fitted yet"):
        getattr(PublishedClassifier(), method)(torch.ones(2, 3))
