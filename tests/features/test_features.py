"""What pixels give before labels: against plain loops in float64, and by what each promises."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nnlib.datasets import load
from nnlib.features.augment import blur, deskew, mirrored_copies, shifted_copies
from nnlib.features.patches import PatchFeatures


@pytest.fixture(scope="module")
def digits():
    return load("mnist").train_images[:200]


def moments(image):
    """Mean row, mean column, and their covariance over the rows' variance, in float64."""
    ink = image.double() / image.double().sum()
    rows, columns = (torch.arange(n, dtype=torch.float64) for n in image.shape)
    down, right = ink.sum(1) @ rows, ink.sum(0) @ columns
    both = (ink * (rows - down)[:, None] * (columns - right)).sum()
    return down, right, both / (ink.sum(1) @ (rows - down).square())


def test_deskewed_digits_are_upright_and_in_the_middle(digits):
    before, after = ([moments(image) for image in images] for images in (digits, deskew(digits)))
    assert np.mean([abs(slant) for *_, slant in before]) > 0.2
    assert np.mean([abs(slant) for *_, slant in after]) < 0.02
    assert max(abs(down - 13.5) + abs(right - 13.5) for down, right, _ in after) < 0.3


def test_an_empty_picture_stays_empty():
    assert torch.equal(deskew(torch.zeros(2, 9, 7, dtype=torch.uint8)), torch.zeros(2, 9, 7))
    assert deskew(torch.zeros(0, 9, 7)).shape == (0, 9, 7)


def test_blur_is_a_gaussian():
    image = torch.zeros(1, 15, 15)
    image[0, 7, 7] = 1
    place = torch.arange(15, dtype=torch.float64) - 7
    bell = torch.exp(-(place**2) / 2 / 0.8**2)
    expected = bell[:, None] * bell / bell.sum() ** 2
    torch.testing.assert_close(blur(image, 0.8)[0].double(), expected, atol=3e-3, rtol=0)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 3), st.booleans())
def test_shifted_copies_hold_what_stayed_inside(pixels, colour):
    images = torch.rand(2, 8, 9, *([3] if colour else []))
    found, labels = shifted_copies(images, torch.tensor([4, 7]), pixels)
    assert len(found) == 2 * (2 * pixels + 1) ** 2 == len(labels)
    assert torch.equal(found[:2], images)
    assert labels.tolist() == [4, 7] * (2 * pixels + 1) ** 2
    framed = torch.nn.functional.pad(images, [0, 0] * colour + [pixels] * 4)
    cuts = {
        tuple(framed[0, i : i + 8, j : j + 9].flatten().tolist())
        for i in range(2 * pixels + 1)
        for j in range(2 * pixels + 1)
    }
    assert {tuple(image.flatten().tolist()) for image in found[::2]} == cuts


def test_so_many_copies_are_moved_each_by_a_shift_of_its_own():
    images, labels = torch.rand(300, 6, 7), torch.arange(300)
    found, owner = shifted_copies(images, labels, 1, copies=3, seed=4)
    assert torch.equal(found[:300], images) and torch.equal(owner, labels.repeat(3))
    assert torch.equal(found, shifted_copies(images, labels, 1, copies=3, seed=4)[0])
    every, source = shifted_copies(images, labels, 1)
    assert torch.equal(source, labels.repeat(9))
    moved = [{bytes(every[300 * n + i].numpy()): n for n in range(9)} for i in range(300)]
    shifts = torch.tensor([moved[i % 300][bytes(image.numpy())] for i, image in enumerate(found)])
    assert shifts[300:].min() == 1 and shifts.bincount(minlength=9)[1:].min() > 40  # of 75 each
    assert torch.equal(shifted_copies(images, labels, copies=1)[0], images)


def test_words_are_labels_of_copies_too(digits):
    labels = shifted_copies(digits[:3], np.array(["one", "two", "six"]), copies=2)[1]
    assert labels.tolist() == ["one", "two", "six"] * 2


def test_wrong_shapes_are_refused():
    for made in (deskew, blur):
        for shape in ((2, 3), (2, 8, 8, 3)):  # colours would run into each other
            with pytest.raises(ValueError, match="images has shape"):
                made(torch.zeros(shape))
    labels = torch.zeros(2, dtype=torch.int64)
    for made in (mirrored_copies, lambda images: shifted_copies(images, labels)):
        with pytest.raises(ValueError, match="images has shape"):
            made(torch.zeros(2, 9))
    for sigma in (0, 1.0):  # a blur reaches three deviations, and no farther than a picture goes
        with pytest.raises(ValueError, match="sigma="):
            blur(torch.zeros(2, 3, 3), sigma)
    torch.testing.assert_close(blur(torch.ones(2, 4, 5), 1.0), torch.ones(2, 4, 5))


def naive_patches(model, image):
    """Pooled responses of one picture, patch by patch in float64."""
    image = np.atleast_3d(np.asarray(image, dtype=np.float64)).transpose(2, 0, 1)
    side, size = image.shape[1] - model.size + 1, model.size
    whitening, filters = model.whitening_.double().numpy(), model.filters_.double().numpy()
    found = np.empty((side, side, len(filters)))
    for i in range(side):
        for j in range(side):
            patch = image[:, i : i + size, j : j + size].ravel()
            patch = patch - patch.mean()
            patch = patch / math.sqrt(patch.var() * patch.size / (patch.size - 1) + model.softening)
            found[i, j] = filters @ (whitening @ (patch - model.mean_.double().numpy()))
    parts = [
        np.maximum(sign * part - model.threshold, 0).sum((0, 1))
        for strip in np.array_split(found, model.pool, 0)
        for part in np.array_split(strip, model.pool, 1)
        for sign in (1, -1)
    ]
    return np.concatenate(parts) * model.pool**2 / side**2


@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("pool", [1, 2, 3])
def test_patch_features_are_those_of_a_plain_loop(colour, pool):
    images = torch.randint(0, 256, (30, 12, 12) + (3,) * colour, dtype=torch.uint8)
    model = PatchFeatures(7, size=4, pool=pool, threshold=0.3, device="cpu").fit(images)
    expected = np.stack([naive_patches(model, image) for image in images[:3]])
    np.testing.assert_allclose(model.transform(images[:3]).numpy(), expected, atol=1e-4)
    coarse = PatchFeatures(
        7, size=4, pool=pool, threshold=0.3, matmul_dtype="bfloat16", device="cpu"
    ).fit(images)
    np.testing.assert_allclose(coarse.transform(images[:3]).numpy(), expected, atol=0.05)


def test_the_patches_are_white(digits):
    model = PatchFeatures(20, device="cpu").fit(digits)
    spread = torch.cov(model._whiten(digits).flatten(0, 2)[::7].T)
    assert spread.diagonal().max() < 1.2
    assert (spread - spread.diag().diag()).abs().max() < 0.2


def test_a_mirror_image_has_the_same_features_where_asked(digits):
    model = PatchFeatures(10, mirror=True, device="cpu").fit(digits)
    torch.testing.assert_close(
        model.transform(digits[:5]), model.transform(mirrored_copies(digits[:5]))
    )
    plain = PatchFeatures(10, device="cpu").fit(digits)
    assert not torch.allclose(
        plain.transform(digits[:5]), plain.transform(mirrored_copies(digits[:5])), atol=0.01
    )


def test_features_know_nothing_of_other_pictures(digits):
    model = PatchFeatures(10, device="cpu").fit(digits)
    torch.testing.assert_close(model.transform(digits)[17], model.transform(digits[17:18])[0])


def test_pictures_whose_contrast_the_softening_would_blot_out_are_refused(digits):
    with pytest.raises(ValueError, match="0..255, or less softening"):
        PatchFeatures(5, device="cpu").fit(digits / 255)
    with pytest.raises(ValueError, match="0..255, or less softening"):
        PatchFeatures(5, device="cpu").fit(
            (digits > 127).float()
        )  # as much contrast as there can be in 0..1
    softer = PatchFeatures(5, softening=10 / 255**2, device="cpu").fit(digits / 255)
    model = PatchFeatures(5, device="cpu").fit(digits)
    torch.testing.assert_close(
        softer.transform(digits[:9] / 255), model.transform(digits[:9]), atol=1e-3, rtol=1e-3
    )
    assert (
        PatchFeatures(5, device="cpu")
        .fit(torch.zeros(9, 9, 9))
        .transform(torch.zeros(2, 9, 9))
        .isfinite()
        .all()
    )


def test_compact_features_of_arrays_are_ones_that_numpy_has(digits):
    model = PatchFeatures(5, compact=True, device="cpu").fit(digits.numpy())
    found = model.transform(digits[:3].numpy())
    assert found.dtype == np.float32 and np.array_equal(
        found, model.transform(digits[:3]).float().numpy()
    )


@pytest.mark.parametrize(
    "settings", [{"softening": -1}, {"floor": 0.0}, {"threshold": math.nan}], ids=str
)
def test_patches_without_sense_are_refused(settings, digits):
    with pytest.raises(ValueError, match=next(iter(settings))):
        PatchFeatures(5, **settings).fit(digits)


def test_numbers_that_are_none_are_refused(digits):
    spoilt = digits.float()
    spoilt[7, 3, 3] = math.nan
    with pytest.raises(ValueError, match="first in row 7"):
        PatchFeatures(5).fit(spoilt)


def test_arrays_are_taken_as_tensors_are(digits):
    some = digits[:4]
    for made in (deskew, blur, mirrored_copies):
        assert torch.equal(made(some.numpy()), made(some))
        assert torch.equal(
            made(some.numpy()[:, ::-1]), made(some.flip(1))
        )  # strides that torch doesn't have
    moved, labels = shifted_copies(some.numpy(), np.arange(4))
    assert len(moved) == len(labels) == 36 and torch.equal(
        moved, shifted_copies(some, torch.arange(4))[0]
    )
    with pytest.raises(ValueError, match="(?i)inconsistent"):
        shifted_copies(some, torch.arange(3))
    with pytest.raises(ValueError, match="pixels=-1"):
        shifted_copies(some, torch.arange(4), -1)


@pytest.mark.parametrize(
    "given", [torch.zeros(3, 28), torch.zeros(0, 28, 28), torch.zeros(4, 5, 5)]
)
def test_what_are_no_pictures_is_refused(given):
    with pytest.raises(ValueError, match="X has shape"):
        PatchFeatures(5).fit(given)


def test_features_of_single_pixels_need_colours():
    grey = 100 * torch.rand(9, 5, 5)
    with pytest.raises(ValueError, match="size=1 of grey images"):
        PatchFeatures(2, size=1, device="cpu").fit(grey)
    colour = torch.stack([grey, grey.flip(1), grey.flip(2)], 3)
    assert PatchFeatures(2, size=1, device="cpu").fit(colour).transform(colour).isfinite().all()


def test_pictures_of_strides_that_torch_does_not_have(digits):
    model = PatchFeatures(5, device="cpu").fit(digits.numpy()[:, :, ::-1])
    assert torch.equal(
        torch.from_numpy(model.transform(digits.numpy()[:9, ::-1])),
        model.transform(digits[:9].flip(1)),
    )


def test_other_shapes_and_settings_are_refused(digits):
    with pytest.raises(ValueError, match="as it was fitted on"):
        PatchFeatures(5, device="cpu").fit(digits).transform(torch.zeros(2, 20, 20))
    with pytest.raises(ValueError, match="count="):
        PatchFeatures(0).fit(digits)
    with pytest.raises(ValueError, match="matmul_dtype="):
        PatchFeatures(5, matmul_dtype="int8").fit(digits)


def test_patch_features_are_saved_and_loaded(digits, tmp_path):
    model = PatchFeatures(20, mirror=True).fit(digits)
    model.save(tmp_path / "patches.safetensors")
    again = PatchFeatures.load(tmp_path / "patches.safetensors")
    assert torch.equal(again.transform(digits), model.transform(digits))
    with pytest.raises(ValueError, match=r"give \(28, 28\), as it was fitted on"):
        again.transform(digits[:, 1:])
