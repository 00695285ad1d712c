"""Pictures for training: files, decoded when they are asked for, or sets in memory.

A data set hands out whole batches. Each picture is asked for with the seed of its augmentation, or None for none, so
that what is drawn depends neither on the number of workers nor on when a run was interrupted.

Which pictures are learned from, chosen on and tested on: of a set, or of a tree of class folders as ImageNet's.
"""

import random
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor
from torch.utils.data import DataLoader

from nnlib._common.runtime import make_generator
from nnlib._common.validation import check_number
from nnlib.datasets import CLASSES, Dataset, load
from nnlib.errors import DataError

SHIFT = 8  # a small picture is moved by up to 1/8 of its side

Asked = Sequence[
    tuple[int, int | None]
]  # numbers of pictures, each with the seed of its augmentation


class Batch(NamedTuple):
    """Pictures with their labels and numbers; by number, the names of those that can't be read and are left out."""

    images: UInt8[Tensor, "B C H W"]
    labels: Int64[Tensor, " B"]
    index: Int64[Tensor, " B"]
    unread: dict[int, str]


class Pictures:
    """Some pictures of a source, numbered from 0. size: the side of what is handed out; channels: 1 or 3."""

    def __init__(
        self,
        labels: Int64[Tensor, " N"],
        classes: Sequence[str],
        size: int,
        channels: int,
        flip: bool,
    ):
        self.labels, self.classes = labels, tuple(classes)
        self.size, self.channels, self.flip = size, channels, flip
        self.files: Sequence[Path] = [Path()] * len(labels)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, asked: Asked) -> Batch:
        raise NotImplementedError

    def subset(self, numbers: Int64[Tensor, " M"]) -> "Pictures":
        """Those pictures, numbered anew."""
        raise NotImplementedError


class SetPictures(Pictures):
    """A set in memory: images uint8 [N, H, W] or [N, H, W, 3]; moved a little and mirrored where they are augmented."""

    def __init__(self, images, labels, classes, flip: bool):
        super().__init__(labels, classes, images.shape[1], 1 if images.ndim == 3 else 3, flip)
        self.images = images

    def __getitems__(self, asked):
        numbers = torch.tensor([number for number, _ in asked], dtype=torch.int64)
        images = self.images[numbers]
        images = images[:, None] if images.ndim == 3 else images.movedim(3, 1)
        if len(asked) and asked[0][1] is not None:
            images = moved(images, self.flip, asked[0][1])
        return Batch(images.contiguous(), self.labels[numbers], numbers, {})

    def subset(self, numbers):
        return SetPictures(self.images[numbers], self.labels[numbers], self.classes, self.flip)


class FolderPictures(Pictures):
    """Files of pictures, as RGB: a random part of at least `least` of the area where augmented, else the middle."""

    def __init__(
        self,
        files: Sequence[Path],
        labels,
        classes,
        size: int,
        flip: bool = True,
        least: float = 0.08,
    ):
        super().__init__(labels, classes, size, 3, flip)
        self.files, self.least = files, least

    def __getitems__(self, asked):
        found, numbers, unread = [], [], {}
        for number, seed in asked:
            try:
                found.append(self._read(self.files[number], seed))
                numbers.append(number)
            except Exception as error:  # a broken file can fail in any way that its decoder knows
                unread[number] = f"{self.files[number]} ({type(error).__name__}: {error})"
        images = np.stack(found) if found else np.empty((0, self.size, self.size, 3), np.uint8)
        index = torch.tensor(numbers, dtype=torch.int64)
        return Batch(
            torch.from_numpy(images).movedim(3, 1).contiguous(), self.labels[index], index, unread
        )

    def _read(self, file: Path, seed: int | None) -> np.ndarray:
        from PIL import Image, ImageOps

        with warnings.catch_warnings(action="ignore"), Image.open(file) as image:
            if image.mode[0] in "IF":
                raise ValueError(f"mode {image.mode}: give 8 bits a channel")
            image.draft(
                "RGB", (2 * self.size, 2 * self.size)
            )  # decodes a large JPEG at a fraction of its size
            image = ImageOps.exif_transpose(image).convert("RGB")
            draw = None if seed is None else random.Random(seed)
            box = middle(*image.size) if draw is None else part(*image.size, draw, self.least)
            pixels = np.asarray(
                image.resize((self.size, self.size), Image.Resampling.BILINEAR, box)
            )
        return pixels[:, ::-1] if draw and self.flip and draw.random() < 0.5 else pixels

    def subset(self, numbers):
        files = [self.files[number] for number in numbers.tolist()]
        return FolderPictures(
            files, self.labels[numbers], self.classes, self.size, self.flip, self.least
        )


def moved(images: UInt8[Tensor, "B C H W"], flip: bool, seed: int) -> UInt8[Tensor, "B C H W"]:
    """Each picture moved by up to an eighth of its side, its edge repeated, and mirrored half of the time."""
    generator = torch.Generator().manual_seed(seed)
    side, most = images.shape[2], images.shape[2] // SHIFT
    down, right = torch.randint(-most, most + 1, (2, len(images), 1), generator=generator)
    places = torch.arange(side)
    rows, columns = (places + down).clamp(0, side - 1), (places + right).clamp(0, side - 1)
    if flip:
        mirrored = torch.rand(len(images), 1, generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    return images[
        torch.arange(len(images))[:, None, None], :, rows[:, :, None], columns[:, None, :]
    ].movedim(3, 1)


def middle(width: int, height: int) -> tuple[float, ...]:
    """The box that is tested on: 224/256 of the shorter side, about the middle."""
    side = min(width, height) * 224 / 256
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def part(width: int, height: int, draw: random.Random, least: float) -> tuple[float, ...]:
    """A random box: from `least` of the area to all of it, its sides from 3:4 to 4:3."""
    for _ in range(10):
        area, ratio = (
            width * height * draw.uniform(least, 1),
            np.exp(draw.uniform(*np.log([3 / 4, 4 / 3]))),
        )
        w, h = (area * ratio) ** 0.5, (area / ratio) ** 0.5
        if w <= width and h <= height:
            left, top = draw.uniform(0, width - w), draw.uniform(0, height - h)
            return left, top, left + w, top + h
    return middle(width, height)


def batches(pictures: Pictures, asked: Iterable[Asked], workers: int = 0) -> Iterator[Batch]:
    """The batches asked for, in that order, read ahead by so many processes."""
    ahead = {"prefetch_factor": 4} if workers else {}
    return iter(
        DataLoader(
            pictures, batch_sampler=asked, collate_fn=_as_it_is, num_workers=workers, **ahead
        )
    )


def in_order(pictures: Pictures, rows: slice, batch_size: int) -> list[Asked]:
    """What to ask for to get those pictures as they are tested."""
    numbers = range(len(pictures))[rows]
    starts = range(0, max(1, len(numbers)), batch_size)  # a process without any has one empty batch
    return [[(n, None) for n in numbers[start : start + batch_size]] for start in starts]


def _as_it_is(batch: Batch) -> Batch:
    return batch


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
    """The pictures of a set of nnlib.datasets by its name, or of a folder with train/CLASS/*.jpg and val/CLASS/*.jpg.

    A folder of CLASS/*.jpg alone has a fifth of each class put aside to test on. size: the side that files are brought
    to. validation: the share of each class of the training pictures that is chosen on. flip: whether mirrored pictures
    are as good, True but for digits. least: the smallest share of a file's area that is trained on.
    Raises DataError for a folder with fewer than two classes or no pictures, ValueError for settings that don't fit.
    """
    check_number("validation", validation, "[0, 1)", "a share in [0, 1)")
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


def drawn(
    labels: Int64[Tensor, " N"], wanted: Int64[Tensor, " C"], seed: int | None
) -> Bool[Tensor, " N"]:
    """True for so many of each class as are wanted, drawn by the seed."""
    order = torch.randperm(len(labels), generator=make_generator(seed))
    order = order[labels[order].argsort(stable=True)]
    counts = torch.bincount(labels)
    rank = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[order]]
    return torch.zeros(len(labels), dtype=torch.bool).index_fill_(
        0, order[rank < wanted[labels[order]]], True
    )


def _halves(whole: Dataset, flip: bool) -> tuple[SetPictures, SetPictures]:
    halves = ((whole.train_images, whole.train_labels), (whole.test_images, whole.test_labels))
    return tuple(SetPictures(*half, whole.classes, flip) for half in halves)


def _folders(
    root: Path, size: int, flip: bool, least: float, seed: int
) -> tuple[Pictures, Pictures]:
    if not root.is_dir():
        known = ", ".join(CLASSES)
        raise DataError(
            f"data={str(root)!r} is no folder: give one that has CLASS/*.jpg for each class, or {known}"
        )
    train = root / "train" if (root / "train").is_dir() else root
    files, labels, classes = _tree(train)
    all_of_it = FolderPictures(files, labels, classes, size, flip, least)
    test = next((root / name for name in TESTS if train != root and (root / name).is_dir()), None)
    if test is None:
        aside = held_out(labels, 0.2, seed + 1)
        if not aside.any():
            raise DataError(
                f"data={str(root)!r} has no val/, and no class of 3 pictures to put one aside: give either"
            )
        return all_of_it.subset((~aside).nonzero()[:, 0]), all_of_it.subset(aside.nonzero()[:, 0])
    files, labels, _ = _tree(test, classes)
    return all_of_it, FolderPictures(files, labels, classes, size, flip, least)


def _tree(
    root: Path, classes: Sequence[str] = ()
) -> tuple[list[Path], Int64[Tensor, " N"], list[str]]:
    """Files, labels and classes of a tree, in the order of their names; its classes have to be among those given."""
    found = {folder.name: _files(folder) for folder in sorted(root.iterdir()) if folder.is_dir()}
    found = {
        name: files for name, files in found.items() if files and name[0] != "."
    }  # as in .ipynb_checkpoints
    if unknown := [name for name in found if classes and name not in classes]:
        raise DataError(
            f"data={str(root)!r} has a class {unknown[0]!r} that the training folder lacks: take it away"
        )
    if len(found) < (1 if classes else 2):
        have = f"pictures of {next(iter(found))!r} alone" if found else "no pictures in folders"
        raise DataError(
            f"data={str(root)!r} has {have}: give two classes or more, CLASS/*.jpg (png, webp, ...) each"
        )
    names = list(classes) or list(found)
    labels = [names.index(name) for name, files in found.items() for _ in files]
    return [file for files in found.values() for file in files], torch.tensor(labels), names


def _files(folder: Path) -> list[Path]:
    return sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in TYPES and not file.name.startswith(".")
    )
