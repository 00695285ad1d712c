"""Which pictures are learned from, chosen on and tested on: of a set, or of a tree of class folders as ImageNet's."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from nnlib.checks import require_number
from nnlib.data import CLASSES, DataError, Dataset, load
from nnlib.pictures import FolderPictures, Pictures, SetPictures
from nnlib.seeds import generator_of

TYPES = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"}
TESTS = ("val", "test", "validation", "valid")  # the folder beside train/ that is tested on
UNFLIPPED = ("mnist",)  # sets that mean something else in a mirror


class Splits(NamedTuple):
    """All training pictures (the gallery), those learned from, those chosen on, and those tested on once."""

    gallery: Pictures
    train: Pictures
    validation: Pictures
    test: Pictures


def open_pictures(
    data: str | Path,
    size: int = 224,
    validation: float = 0.05,
    flip: bool | None = None,
    least: float = 0.08,
    seed: int = 0,
) -> Splits:
    """The pictures of a set of nnlib.data by its name, or of a folder with train/CLASS/*.jpg and val/CLASS/*.jpg.

    A folder of CLASS/*.jpg alone has a fifth of each class put aside to test on. size: the side that files are brought
    to. validation: the share of each class of the training pictures that is chosen on. flip: whether mirrored pictures
    are as good, True but for digits. least: the smallest share of a file's area that is trained on.
    Raises DataError for a folder with fewer than two classes or no pictures, ValueError for settings that don't fit.
    """
    require_number("validation", validation, "[0, 1)", "a share in [0, 1)")
    if str(data) in CLASSES:
        whole = load(str(data))
        gallery, test = _halves(whole, str(data) not in UNFLIPPED if flip is None else flip)
    else:
        gallery, test = _folders(Path(data).expanduser(), size, flip is not False, least, seed)
    chosen_on = held_out(gallery.labels, validation, seed)
    parts = (gallery.subset(chosen.nonzero()[:, 0]) for chosen in (~chosen_on, chosen_on))
    return Splits(gallery, *parts, test)


def held_out(labels: Int64[Tensor, " N"], share: float, seed: int | None) -> Bool[Tensor, " N"]:
    """True for that share of each class, drawn by the seed; at least one, and 2 are left, of classes of 3 and more."""
    counts = torch.bincount(labels)
    wanted = (counts * share).round().long()
    if share:
        wanted = torch.where(counts >= 3, wanted.clamp(min=1).minimum(counts - 2), 0)
    return drawn(labels, wanted, seed)


def drawn(labels: Int64[Tensor, " N"], wanted: Int64[Tensor, " C"], seed: int | None) -> Bool[Tensor, " N"]:
    """True for so many of each class as are wanted, drawn by the seed."""
    order = torch.randperm(len(labels), generator=generator_of(seed))
    order = order[labels[order].argsort(stable=True)]
    counts = torch.bincount(labels)
    rank = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[order]]
    return torch.zeros(len(labels), dtype=torch.bool).index_fill_(0, order[rank < wanted[labels[order]]], True)


def _halves(whole: Dataset, flip: bool) -> tuple[SetPictures, SetPictures]:
    halves = ((whole.train_images, whole.train_labels), (whole.test_images, whole.test_labels))
    return tuple(SetPictures(*half, whole.classes, flip) for half in halves)


def _folders(root: Path, size: int, flip: bool, least: float, seed: int) -> tuple[Pictures, Pictures]:
    if not root.is_dir():
        known = ", ".join(CLASSES)
        raise DataError(f"data={str(root)!r} is no folder: give one that has CLASS/*.jpg for each class, or {known}")
    train = root / "train" if (root / "train").is_dir() else root
    files, labels, classes = _tree(train)
    all_of_it = FolderPictures(files, labels, classes, size, flip, least)
    test = next((root / name for name in TESTS if train != root and (root / name).is_dir()), None)
    if test is None:
        aside = held_out(labels, 0.2, seed + 1)
        if not aside.any():
            raise DataError(f"data={str(root)!r} has no val/, and no class of 3 pictures to put one aside: give either")
        return all_of_it.subset((~aside).nonzero()[:, 0]), all_of_it.subset(aside.nonzero()[:, 0])
    files, labels, _ = _tree(test, classes)
    return all_of_it, FolderPictures(files, labels, classes, size, flip, least)


def _tree(root: Path, classes: Sequence[str] = ()) -> tuple[list[Path], Int64[Tensor, " N"], list[str]]:
    """Files, labels and classes of a tree, in the order of their names; its classes have to be among those given."""
    found = {folder.name: _files(folder) for folder in sorted(root.iterdir()) if folder.is_dir()}
    found = {name: files for name, files in found.items() if files and name[0] != "."}  # as in .ipynb_checkpoints
    if unknown := [name for name in found if classes and name not in classes]:
        raise DataError(f"data={str(root)!r} has a class {unknown[0]!r} that the training folder lacks: take it away")
    if len(found) < (1 if classes else 2):
        have = f"pictures of {next(iter(found))!r} alone" if found else "no pictures in folders"
        raise DataError(f"data={str(root)!r} has {have}: give two classes or more, CLASS/*.jpg (png, webp, ...) each")
    names = list(classes) or list(found)
    labels = [names.index(name) for name, files in found.items() for _ in files]
    return [file for files in found.values() for file in files], torch.tensor(labels), names


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in TYPES and not file.name.startswith("."))
