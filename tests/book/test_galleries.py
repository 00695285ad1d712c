"""Small folders of pictures, features of some classes, and how many neighbors share a vote."""

import numpy as np
import pytest
import torch
from PIL import Image

from nnbook.plotting import (
    Features,
    all_pixels,
    copy_classes,
    effective_neighbors,
    extract_features,
    flatten_pixels,
    write_tree,
)
from nnlib.errors import DataError
from nnlib.training import open_pictures


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Classes of 20, 8 and 3 pictures, one of them broken."""
    root = tmp_path_factory.mktemp("photos")
    for at, (name, count) in enumerate({"many": 20, "some": 8, "rare": 3}.items()):
        (root / name).mkdir()
        for number in range(count):
            shade = np.full((30, 50, 3), 80 * at + number, np.uint8)
            Image.fromarray(shade).save(root / name / f"{number}.jpg")
    (root / "many" / "7.jpg").write_bytes(b"nothing")
    return root


def test_a_small_copy_keeps_every_class_and_names_what_is_broken(folder, tmp_path):
    unread = write_tree(str(folder), tmp_path / "all", 0, 0, 10, 0)
    assert len(unread) == 1 and unread[0].startswith(str(folder / "many" / "7.jpg"))
    write_tree(str(folder), tmp_path / "few", 8, 2, 10, 0)
    few, whole = (open_pictures(tmp_path / name, 10, 0.0) for name in ("few", "all"))
    assert few.gallery.classes == whole.gallery.classes == ("many", "rare", "some")
    assert (torch.bincount(few.gallery.labels) >= 2).all() and len(few.gallery) < len(whole.gallery)
    assert len(whole.gallery) + len(whole.test) == 30
    with Image.open(few.gallery.files[0]) as image:
        assert image.size == (33, 20)  # the shorter side twice as long as asked for


def test_a_set_is_written_out_as_it_is(tmp_path):
    assert write_tree("mnist", tmp_path / "tree", 60, 30, 28, 0) == []
    found = open_pictures(tmp_path / "tree", 28, 0.0)
    assert found.gallery.classes == tuple("0123456789") and abs(len(found.gallery) - 60) <= 5
    part = copy_classes(tmp_path / "tree", ["3", "5"], tmp_path / "part")
    assert open_pictures(part, 28, 0.0).gallery.classes == ("3", "5")
    assert all_pixels(found.test).shape == (len(found.test), 28, 28, 3)


def test_what_cannot_be_copied_is_named(folder, tmp_path):
    for change, word in (
        ((-1, 0, 10), "n_train=-1"),
        ((0, -1, 10), "n_test=-1"),
        ((0, 0, 3), "image_size=3"),
    ):
        with pytest.raises(ValueError, match=word):
            write_tree(str(folder), tmp_path / "none", *change, 0)
    with pytest.raises(DataError, match="no folder"):
        write_tree(str(tmp_path / "missing"), tmp_path / "none", 0, 0, 10, 0)


def test_features_of_some_classes_and_shots():
    g = torch.Generator().manual_seed(0)
    labels, asked = torch.randint(4, (50,), generator=g), torch.randint(4, (20,), generator=g)
    found = Features(
        torch.randn(50, 6, generator=g), labels, torch.randn(20, 6, generator=g), asked
    )
    some = found.select([1, 3], shots=2)
    assert torch.bincount(some.gallery_labels).tolist() == [0, 2, 0, 2]
    for label in (1, 3):
        first = found.gallery[labels == label][:2]
        assert torch.equal(some.gallery[some.gallery_labels == label], first)
    assert set(some.query_labels.tolist()) == {1, 3} and len(some.queries) == int(
        ((asked == 1) | (asked == 3)).sum()
    )
    right = (found.predict(5) == asked).sum().item()
    assert found.accuracy(5)["knn_top1"] == right / 20


def test_a_vote_reaches_all_that_are_alike_and_one_that_is_alone():
    rows, labels = torch.eye(8), torch.zeros(8, dtype=torch.int64)
    assert effective_neighbors(Features(rows, labels, rows, labels), 0.01) == pytest.approx(
        1, abs=1e-3
    )
    alike = torch.ones(8, 8)
    assert effective_neighbors(Features(alike, labels, alike, labels), 0.01) == pytest.approx(
        8, rel=1e-4
    )


def test_features_are_on_the_cpu_and_in_the_pictures_order(folder):
    pictures = open_pictures(folder, 10, 0.0)
    found = extract_features(flatten_pixels, pictures.test, pictures.test)
    wanted = torch.nn.functional.normalize(
        all_pixels(pictures.test).movedim(3, 1).flatten(1).float(), dim=1
    )
    assert torch.allclose(found.gallery, wanted, atol=1e-6) and found.queries.device.type == "cpu"
