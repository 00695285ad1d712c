"""Closed-form projections: against singular values and against refits without each sample, in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from sklearn.utils.estimator_checks import parametrize_with_checks

from nnlib.models import ModelError
from nnlib.projections import PrincipalComponents, RidgeProjection

APART = "fit_transform answers each training sample by the fit without it, as TargetEncoder's does by its folds"
EXPECTED = {name: APART for name in ("check_transformer_general", "check_transformer_data_not_an_array")}


@parametrize_with_checks(
    [PrincipalComponents(1), RidgeProjection()],
    expected_failed_checks=lambda model: EXPECTED if isinstance(model, RidgeProjection) else {},
)
def test_scikit_learn_conventions(estimator, check):
    check(estimator)


@settings(max_examples=20, deadline=None)
@given(st.integers(4, 40), st.integers(2, 9), st.integers(0, 9))
def test_components_are_those_of_the_singular_values(samples, features, seed):
    x = torch.randn(samples, features, generator=torch.Generator().manual_seed(seed)) * torch.arange(1, features + 1)
    dim = min(samples - 1, features) - 1 or 1
    model = PrincipalComponents(dim).fit(x)
    rows = x.double() - x.double().mean(0)
    values, axes = torch.linalg.svd(rows, full_matrices=False)[1:]
    assert model.share_ == pytest.approx(float(values[:dim].square().sum() / values.square().sum()), rel=1e-4)
    found = model.axes_.double()
    torch.testing.assert_close(found @ found.T, axes[:dim].T @ axes[:dim], atol=1e-3, rtol=0)
    torch.testing.assert_close(model.transform(x).double(), rows @ found, atol=1e-3, rtol=1e-4)


def test_as_many_axes_as_there_can_be_up_to_64():
    x = torch.randn(90, 80, generator=torch.Generator().manual_seed(0))
    found = [PrincipalComponents().fit(rows).transform(rows).shape[1] for rows in (x, x[:30], x[:, :5])]
    assert found == [64, 30, 5]


def test_whitened_components_vary_alike_but_for_noise():
    x = torch.randn(4000, 3) @ torch.diag(torch.tensor([9.0, 1.0, 1e-4]))
    deviations = PrincipalComponents(3, whiten=True).fit(x).transform(x).std(0)
    assert deviations[:2].tolist() == pytest.approx([1, 1], abs=0.05)
    assert deviations[2] < 0.01


@settings(max_examples=20, deadline=None)
@given(st.integers(5, 30), st.integers(1, 40), st.sampled_from([1e-3, 0.1, 10.0]), st.integers(0, 9))
def test_a_training_guess_is_that_of_the_fit_without_the_sample(samples, features, ridge, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, features, generator=generator)
    y = torch.arange(samples) % 3
    model = RidgeProjection(ridge)
    left_out = model.fit_transform(x, y)
    truth = torch.nn.functional.one_hot(y).double()
    alpha = ridge * float((x - x.mean(0)).double().square().mean()) * samples
    even, mean = x.double() - x.double().mean(0), truth.mean(0)  # the means are those of all samples
    for sample in (0, samples - 1):
        kept = torch.arange(samples) != sample
        oracle = Ridge(alpha=alpha, fit_intercept=False).fit(even[kept], (truth - mean)[kept])
        guess = oracle.predict(even[sample : sample + 1])[0] + mean.numpy()
        np.testing.assert_allclose(left_out[sample], guess, atol=2e-3)
    whole = Ridge(alpha=alpha).fit(x.double(), truth)
    np.testing.assert_allclose(model.transform(x), whole.predict(x.double()), atol=2e-3)


def test_the_ridge_is_the_one_that_guesses_best_for_samples_left_out():
    x, y = torch.randn(80, 60), torch.arange(80) % 2
    x[:, 0] += 2 * y
    model = RidgeProjection()
    left_out = model.fit_transform(x, y)
    error = float((left_out - torch.nn.functional.one_hot(y)).square().mean())
    assert min(model.errors_.values()) == pytest.approx(error) == pytest.approx(model.errors_[model.ridge_])
    in_sample = float((model.transform(x) - torch.nn.functional.one_hot(y)).square().mean())
    assert in_sample < error  # what a layer would learn from, were it fed its own training guesses


def test_guesses_that_say_nothing_do_not_tell_the_label_either():
    x, y = torch.randn(150, 4, generator=torch.Generator().manual_seed(0)), torch.arange(150) % 3
    x[0] = 1e4  # beside which the others hardly vary
    left_out = RidgeProjection(1.0).fit_transform(x, y)
    assert float((left_out.argmin(1) == y).float().mean()) < 0.6


def test_new_samples_are_guessed_as_well_as_those_left_out():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6000, 400, generator=generator)
    y = (x[:, :5].sum(1) + torch.randn(6000, generator=generator) > 0).long()
    model = RidgeProjection(1e-3)
    left_out = (model.fit_transform(x[:1500], y[:1500]).argmax(1) == y[:1500]).float().mean()
    in_sample, fresh = (
        (model.transform(x[part]).argmax(1) == y[part]).float().mean() for part in (slice(1500), slice(1500, None))
    )
    assert abs(left_out - fresh) < 0.04 < in_sample - fresh


def test_pictures_arrays_and_labels_of_any_kind():
    x, y = np.random.default_rng(0).integers(0, 255, (30, 4)).astype(np.uint8), np.array(["a", "b", "c"] * 10)
    model = RidgeProjection().fit(x, y)
    assert model.classes_.tolist() == ["a", "b", "c"]
    assert isinstance(model.transform(x), np.ndarray)
    tensor = torch.from_numpy(x).view(30, 2, 2)
    assert torch.is_tensor(model.transform(tensor))
    np.testing.assert_allclose(model.transform(tensor), model.transform(x), atol=1e-6)


@pytest.mark.parametrize("model", [PrincipalComponents(3, whiten=True), RidgeProjection()])
def test_save_and_load(model, tmp_path):
    x, y = torch.randn(30, 5), torch.arange(30) % 3
    model.fit(x, y).save(tmp_path / "model.safetensors")
    again = type(model).load(tmp_path / "model.safetensors")
    assert torch.equal(again.transform(x), model.transform(x)) and again.get_params() == model.get_params()
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(ModelError, match="can't be read"):
        type(model).load(tmp_path / "model.safetensors")


def test_features_that_never_vary():
    x, y = torch.full((6, 3), 7.0), torch.arange(6) % 2
    assert RidgeProjection().fit_transform(x, y).isfinite().all()
    assert PrincipalComponents(2, whiten=True).fit(x).transform(x).abs().max() == 0


@pytest.mark.parametrize(
    ("model", "word"),
    [
        (PrincipalComponents(5), "dim=5"),
        (PrincipalComponents(0), "dim=0"),
        (PrincipalComponents(2, floor=-1.0), "floor"),
        (RidgeProjection(0.0), "ridge=0.0"),
    ],
)
def test_settings_without_sense_are_named(model, word):
    with pytest.raises(ValueError, match=word):
        model.fit(torch.randn(9, 4), torch.arange(9) % 2)
