"""Pictures: trees and files of every kind, broken ones, and augmentation by the seed alone."""

import random
import re
import shutil
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nnlib.errors import DataError
from nnlib.training.image_data import (
    SetPictures,
    center_box,
    held_out,
    load_batches,
    open_pictures,
    random_box,
    shift_and_flip,
)

CALM = settings(max_examples=60, deadline=None)


def pixels(seed=0, height=12, width=12):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def put(file, seed=0, **how):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(seed)).save(file, **how)
    return file


def tree(root, *folders, count=5):
    """Pictures 0.png, 1.png, ... in each of the folders."""
    for at, folder in enumerate(folders):
        for number in range(count):
            put(root / folder / f"{number}.png", 100 * at + number)
    return root


def whole(pictures):
    """All of them as they are tested, in one batch."""
    return next(pictures.in_batches(len(pictures)))


def names(pictures):
    return ["/".join(file.parts[-2:]) for file in pictures.files]


# ---- trees


@pytest.mark.parametrize("test", ["val", "test", "validation", "valid"])
def test_a_tree_as_imagenets(tmp_path, test):
    tree(tmp_path, "train/b", "train/a", "train/c", f"{test}/c", f"{test}/a")
    found = open_pictures(tmp_path, 8, 0.2)
    assert found.gallery.classes == found.test.classes == ("a", "b", "c")
    assert names(found.test) == [f"{name}/{n}.png" for name in "ac" for n in range(5)]
    assert found.test.labels.tolist() == [0] * 5 + [
        2
    ] * 5 and found.gallery.labels.bincount().tolist() == [5, 5, 5]
    assert sorted(names(found.train) + names(found.validation)) == names(found.gallery)
    assert len(found.validation) == 3 and found.gallery.channels == 3
    batch = whole(found.test)
    assert batch.images.shape == (10, 3, 8, 8) and batch.images.dtype == torch.uint8
    assert torch.equal(batch.labels, found.test.labels) and batch.index.tolist() == list(range(10))


@pytest.mark.parametrize("inner", ["", "train"])
def test_without_test_pictures_a_fifth_is_put_aside(tmp_path, inner):
    tree(tmp_path / inner, "a", "b", count=10)
    tree(tmp_path / inner, "few", count=3)
    tree(tmp_path / inner, "two", count=2)
    found = open_pictures(tmp_path, 8, 0)
    assert found.test.labels.bincount(minlength=4).tolist() == [2, 2, 1, 0]
    assert found.gallery.labels.bincount().tolist() == [8, 8, 2, 2] and len(found.validation) == 0
    assert not set(names(found.test)) & set(names(found.gallery))
    assert names(open_pictures(tmp_path, 8, 0).test) == names(found.test)
    assert names(open_pictures(tmp_path, 8, 0, seed=1).test) != names(found.test)


def test_files_are_found_in_the_order_of_their_names(tmp_path):
    for name in (
        "z/10.png",
        "z/9.PNG",
        "b/UP.JPG",
        "b/a.jpeg",
        "b/deep/er/x.bmp",
        "b/notes.txt",
        "b/._UP.JPG",
    ):
        put(tmp_path / name, format="png")
    put(tmp_path / ".ipynb_checkpoints/9-checkpoint.png")
    (tmp_path / "empty").mkdir()
    put(tmp_path / "loose.png")
    found = open_pictures(tmp_path, 8, 0)
    assert found.gallery.classes == ("b", "z")
    both = sorted(names(found.gallery) + names(found.test))
    assert both == sorted(["b/UP.JPG", "b/a.jpeg", "er/x.bmp", "z/10.png", "z/9.PNG"])
    put(tmp_path / "val/z/1.png")
    tree(tmp_path, "train/b", "train/z", count=2)
    assert names(open_pictures(tmp_path, 8, 0).gallery) == [
        "b/0.png",
        "b/1.png",
        "z/0.png",
        "z/1.png",
    ]


def test_what_is_no_tree_is_named(tmp_path):
    def refused(word):
        with pytest.raises(DataError, match=word) as caught:
            open_pictures(tmp_path / "x", 8)
        assert repr(str(tmp_path / "x"))[1:-1] in str(caught.value)

    refused("is no folder")
    (tmp_path / "x").mkdir()
    refused("no pictures in folders")
    tree(tmp_path / "x", "only")
    refused("'only' alone")
    tree(tmp_path / "x", "other")
    open_pictures(tmp_path / "x", 8)
    shutil.rmtree(tmp_path / "x")
    tree(tmp_path / "x", "train/a", "train/b", "val/a", "val/new")
    refused("class 'new' that the training folder lacks")
    shutil.rmtree(tmp_path / "x/val")
    (tmp_path / "x/val").mkdir()
    refused("no pictures in folders")
    shutil.rmtree(tmp_path / "x")
    tree(tmp_path / "x", "a", "b", count=2)
    refused("no class of 3 pictures")
    for share in (-0.1, 1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="validation="):
            open_pictures(tmp_path, 8, share)


# ---- files


def odd(folder):
    """Files of every kind that can be read, which show red on the left, black on the right."""
    red = np.zeros((10, 10, 3), np.uint8)
    red[:, :5, 0] = 255
    image, turned = Image.fromarray(red), Image.fromarray(red.transpose(1, 0, 2).copy())
    exif = Image.Exif()
    exif[0x0112] = 6  # shown a quarter turned to the right: what lies below comes to the left
    turned.transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(
        folder / "turned.jpg", quality=100, exif=exif
    )
    image.save(folder / "plain.JPG", quality=100)
    image.convert("CMYK").save(folder / "cmyk.jpg", quality=100)
    image.quantize(4).save(folder / "palette.png")
    image.quantize(4).save(folder / "see-through.png", transparency=b"\\x00\\xff")
    image.convert("RGBA").save(folder / "alpha.png")
    image.save(folder / "lossless.webp", lossless=True)
    image.save(folder / "plain.tiff")
    image.save(folder / "plain.ppm")


def test_files_of_every_kind_show_the_same(tmp_path):
    tree(tmp_path, "val/b", "train/a", "train/b", count=2)
    (tmp_path / "val/a").mkdir()
    odd(tmp_path / "val/a")
    pictures = open_pictures(tmp_path, 8, 0).test
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batch = whole(pictures)
    assert not batch.unread and len(batch.images) == 11
    for image, name in zip(batch.images[:9].float(), names(pictures), strict=False):
        assert (
            image[0, :, :2].min() > 200 and image[0, :, -2:].max() < 60 and image[1:].max() < 60
        ), name


def test_grey_and_two_coloured_files_are_spread_over_three_channels(tmp_path):
    tree(tmp_path, "train/a", "train/b", count=2)
    (tmp_path / "val/a").mkdir(parents=True)
    shade = Image.fromarray(pixels()[:, :, 0])
    for name, mode in (("grey", "L"), ("black", "1"), ("both", "LA")):
        shade.convert(mode).save(tmp_path / f"val/a/{name}.png")
    batch = whole(open_pictures(tmp_path, 8, 0).test)
    assert batch.images.shape == (3, 3, 8, 8) and not batch.unread
    assert (batch.images == batch.images[:, :1]).all() and batch.images.float().std() > 10


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (3, 500)])
def test_thin_pictures(tmp_path, shape):
    tree(tmp_path, "a", "b", count=2)
    for name in "ab":
        Image.fromarray(pixels(0, *shape)).save(tmp_path / name / "thin.png")
    pictures = open_pictures(tmp_path, 8, 0).gallery
    seeds = [[(number, seed) for number in range(len(pictures)) for seed in range(30)]]
    assert not next(load_batches(pictures, seeds)).unread and not whole(pictures).unread


def broken(folder):
    """Files that can't be read, of all kinds."""
    good = put(folder / "good.jpg", quality=95).read_bytes()
    (folder / "cut.jpg").write_bytes(good[: len(good) // 2])
    (folder / "corrupt.jpg").write_bytes(good[:2] + bytes(200) + good[202:])
    (folder / "empty.jpg").touch()
    (folder / "text.jpg").write_text("no picture")
    (folder / "folder.jpg").mkdir()
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    Image.fromarray(np.full((9, 9), 40_000, np.uint16)).save(folder / "sixteen.png")
    return {
        "cut.jpg",
        "corrupt.jpg",
        "empty.jpg",
        "text.jpg",
        "folder.jpg",
        "gone.png",
        "sixteen.png",
    }


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_files_are_left_out_by_name(tmp_path, workers):
    tree(tmp_path, "train/a", "train/b", "val/b", count=2)
    bad = broken(tmp_path / "val/a")
    pictures = open_pictures(tmp_path, 8, 0).test
    assert len(pictures) == 10
    for seed in (None, 3):
        found = list(
            load_batches(
                pictures,
                [[(n, seed) for n in range(5)], [(n, seed) for n in range(5, 10)]],
                workers,
            )
        )
        unread = {number: name for batch in found for number, name in batch.unread.items()}
        assert {pictures.files[number].name for number in unread} == bad
        assert all(
            re.match(re.escape(str(pictures.files[n])) + r" \(\w+: ", name)
            for n, name in unread.items()
        )
        index = torch.cat([batch.index for batch in found])
        assert [pictures.files[n].name for n in index] == ["good.jpg", "0.png", "1.png"]
        assert torch.equal(torch.cat([batch.labels for batch in found]), pictures.labels[index])
        assert len(torch.cat([batch.images for batch in found])) == 3


def test_a_batch_of_nothing(tmp_path):
    pictures = open_pictures(tree(tmp_path, "a", "b"), 8, 0).gallery
    none = slice(3, 3)
    assert [batch.images.shape for batch in pictures.in_batches(4, none)] == [(0, 3, 8, 8)]
    images = SetPictures(torch.zeros(3, 8, 8, dtype=torch.uint8), torch.arange(3), "abc", True)
    assert [batch.images.shape for batch in images.in_batches(4, none)] == [(0, 1, 8, 8)]
    assert [len(batch.images) for batch in pictures.in_batches(3, slice(0, 7))] == [3, 3, 1]


# ---- augmentation


def test_what_is_drawn_follows_from_the_seed_alone(tmp_path):
    pictures = open_pictures(tree(tmp_path, "a", "b", count=9), 8, 0).gallery
    asked = [
        [(number, 1000 + number) for number in numbers]
        for numbers in ((3, 1, 4), (5, 9, 2), (6, 0))
    ]
    here, there = (list(load_batches(pictures, asked, workers)) for workers in (0, 2))
    for one, two in zip(here, there, strict=True):
        assert torch.equal(one.images, two.images) and torch.equal(one.index, two.index)
    alone = next(load_batches(pictures, [[(9, 1009)]])).images
    assert torch.equal(alone[0], here[1].images[1])
    other = next(load_batches(pictures, [[(9, 1010)]])).images
    assert not torch.equal(alone, other)


def test_a_mirror_only_where_it_is_as_good(tmp_path):
    tree(tmp_path, "a", "b")
    for flip, both in ((None, True), (True, True), (False, False)):
        pictures = open_pictures(tmp_path, 12, 0, flip, least=1.0).gallery
        found = next(load_batches(pictures, [[(0, seed) for seed in range(40)]])).images.float()
        plain, mirrored = (
            (found - found[0]).abs().mean((1, 2, 3)),
            (found - found[0].flip(2)).abs().mean((1, 2, 3)),
        )
        assert (mirrored < plain).any() == both


def naive_moved(images, flip, seed):
    generator, side = torch.Generator().manual_seed(seed), images.shape[2]
    most = side // 8
    down, right = torch.randint(-most, most + 1, (2, len(images), 1), generator=generator)
    mirrored = (
        torch.rand(len(images), 1, generator=generator) < 0.5
        if flip
        else torch.zeros(len(images), 1)
    )
    found = torch.empty_like(images)
    for at in range(len(images)):
        for row in range(side):
            for column in range(side):
                to = side - 1 - column if mirrored[at] else column
                source = (
                    min(max(row + int(down[at]), 0), side - 1),
                    min(max(column + int(right[at]), 0), side - 1),
                )
                found[at, :, row, to] = images[at, :, source[0], source[1]]
    return found


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("channels", "side"), [(1, 8), (3, 17)])
def test_moved_agrees_with_a_loop(channels, side, flip):
    images = torch.randint(0, 256, (6, channels, side, side), dtype=torch.uint8)
    for seed in range(3):
        assert torch.equal(shift_and_flip(images, flip, seed), naive_moved(images, flip, seed))


def test_sets_are_handed_out_as_they_are_or_moved():
    images = torch.randint(0, 256, (20, 16, 16, 3), dtype=torch.uint8)
    pictures = SetPictures(images, torch.arange(20), [str(n) for n in range(20)], True)
    asked = [[(n, None) for n in (4, 2)], [(n, 7 + n) for n in (4, 2, 9)]]
    plain, drawn = load_batches(pictures, asked)
    assert torch.equal(plain.images, images[[4, 2]].movedim(3, 1)) and plain.index.tolist() == [
        4,
        2,
    ]
    assert torch.equal(drawn.images, shift_and_flip(images[[4, 2, 9]].movedim(3, 1), True, 11))
    again = list(load_batches(pictures, asked, 2))[1]
    assert torch.equal(again.images, drawn.images) and again.labels.tolist() == [4, 2, 9]
    half = pictures.subset(torch.tensor([5, 0]))
    assert torch.equal(
        whole(half).images, images[[5, 0]].movedim(3, 1)
    ) and half.labels.tolist() == [5, 0]


# ---- hypothesis

LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=60).map(torch.tensor)


@CALM
@given(LABELS, st.floats(0, 0.99), st.integers(0, 5))
def test_what_is_held_out_is_a_share_of_each_class(labels, share, seed):
    aside = held_out(labels, share, seed)
    counts = labels.bincount().tolist()
    for label, count in enumerate(counts):
        taken = int(aside[labels == label].sum())
        if share == 0 or count < 3:
            assert taken == 0
        else:
            assert (
                taken == min(max(1, round(count * share)), count - 2)
                or abs(taken - count * share) <= 0.5 + 1e-3
            )
            assert 1 <= taken <= count - 2
    assert torch.equal(aside, held_out(labels, share, seed))


@CALM
@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(0, 10_000), st.floats(1e-4, 1))
def test_boxes_lie_inside(width, height, seed, least):
    for box in (center_box(width, height), random_box(width, height, random.Random(seed), least)):
        left, top, right, bottom = (float(np.float32(edge)) for edge in box)  # as Pillow takes them
        assert 0 <= left < right <= width and 0 <= top < bottom <= height


@CALM
@given(st.integers(8, 300), st.integers(8, 300), st.integers(0, 10_000), st.floats(0.01, 1))
def test_a_random_part_is_large_enough_and_nearly_square(width, height, seed, least):
    left, top, right, bottom = random_box(width, height, random.Random(seed), least)
    if (left, top, right, bottom) != center_box(
        width, height
    ):  # which is taken where ten others don't fit
        assert (right - left) * (bottom - top) >= least * width * height * (1 - 1e-9)
        assert 3 / 4 - 1e-9 <= (right - left) / (bottom - top) <= 4 / 3 + 1e-9
