"""Pictures in whole batches; what augmentation draws for each follows from its seed alone."""

import copy
import random
import warnings
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor
from torch.utils.data import DataLoader

from nnlib._common.runtime import make_generator, torch_defaults
from nnlib._common.validation import check_number
from nnlib.datasets import CLASSES, load
from nnlib.errors import DataError
from nnlib.features import center_box, random_box
from nnlib.nca import distributed

SUFFIXES = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"}
TEST_FOLDERS = ("val", "test", "validation", "valid")
NOT_MIRRORED = ("mnist",)  # sets whose pictures mean something else in a mirror
Requests = Sequence[tuple[int, int | None]]  # numbers of pictures, with seeds of augmentation


class Batch(NamedTuple):
    """Pictures with labels and numbers; unreadable ones are left out, named by their numbers."""

    images: UInt8[Tensor, "B C H W"]
    labels: Int64[Tensor, " B"]
    index: Int64[Tensor, " B"]
    unread: dict[int, str]


class Pictures:
    """Some pictures, numbered from 0; those of a kind read batches in `__getitems__`.

    Parameters
    ----------
    labels, classes : int64 [N], and the names of the classes
    size, channels : side of what is handed out in pixels; 1 or 3
    flip : whether augmentation mirrors half of them

    Examples
    --------
    >>> pictures = open_pictures("mnist").test
    >>> [len(batch.images) for batch in pictures.in_batches(4, rows=slice(0, 6))]
    [4, 2]
    """

    def __init__(self, labels, classes, size, channels, flip):
        self.labels = labels
        self.classes = tuple(classes)
        self.size = size
        self.channels = channels
        self.flip = flip
        self.files: Sequence[Path] = [Path()] * len(labels)

    def __len__(self) -> int:
        return len(self.labels)

    def hold_out(self, fraction: float, seed: int) -> tuple["Pictures", "Pictures"]:
        """Return the pictures but for a drawn fraction of each class, and these."""
        chosen = held_out(self.labels, fraction, seed)
        return self.subset((~chosen).nonzero()[:, 0]), self.subset(chosen.nonzero()[:, 0])

    def subset(self, numbers: Int64[Tensor, " M"]) -> "Pictures":
        """Return those pictures, numbered anew."""
        part = copy.copy(self)
        part.labels = self.labels[numbers]
        part.files = [self.files[number] for number in numbers.tolist()]
        return part

    def draw(self, wanted, seed: int | None) -> list[int]:
        """Return the numbers of so many drawn pictures of each class."""
        return draw_per_class(self.labels, wanted, seed).nonzero()[:, 0].tolist()

    @torch_defaults()
    def in_batches(self, batch_size=256, rows=slice(None), workers=0) -> Iterator[Batch]:
        """Hand out a range of the pictures in order, not augmented; an empty one as one batch."""
        parts = torch.arange(len(self))[rows].split(batch_size)
        requests = [[(number, None) for number in part.tolist()] for part in parts]
        return load_batches(self, requests, workers)


class SetPictures(Pictures):
    """Images uint8 [N, H, W] or [N, H, W, 3] in memory, shifted a little where augmented."""

    def __init__(self, images, labels, classes, flip: bool = True):
        super().__init__(labels, classes, images.shape[1], 1 if images.ndim == 3 else 3, flip)
        self.images = images

    @torch_defaults()
    def __getitems__(self, requests: Requests) -> Batch:
        numbers = torch.tensor([number for number, _ in requests], dtype=torch.int64)
        images = self.images[numbers].view(-1, self.size, self.size, self.channels).movedim(3, 1)
        if requests and requests[0][1] is not None:
            images = shift_and_flip(images, self.flip, requests[0][1])
        return Batch(images.contiguous(), self.labels[numbers], numbers, {})

    def subset(self, numbers):
        part = super().subset(numbers)
        part.images = self.images[numbers]
        return part


class FolderPictures(Pictures):
    """Files as RGB: a random box of `least` of the area or more where augmented, or the middle."""

    def __init__(self, files, labels, classes, size, flip=True, least=0.08):
        super().__init__(labels, classes, size, 3, flip)
        self.files = files
        self.least = least

    @torch_defaults()
    def __getitems__(self, requests: Requests) -> Batch:
        images = [np.empty((0, self.size, self.size, 3), np.uint8)]
        numbers = []
        unread = {}
        for number, seed in requests:
            try:
                images.append(self._read(self.files[number], seed)[None])
                numbers.append(number)
            except Exception as error:  # a broken file fails in any way that its decoder knows
                unread[number] = f"{self.files[number]} ({type(error).__name__}: {error})"
        stacked = torch.from_numpy(np.concatenate(images))
        index = torch.tensor(numbers, dtype=torch.int64)
        return Batch(stacked.movedim(3, 1).contiguous(), self.labels[index], index, unread)

    def _read(self, file: Path, seed: int | None) -> np.ndarray:
        from PIL import Image, ImageOps

        with warnings.catch_warnings(action="ignore"), Image.open(file) as image:
            if image.mode[0] in "IF":
                raise ValueError(f"mode {image.mode}: give 8 bits a channel")
            image.draft("RGB", (2 * self.size, 2 * self.size))  # large JPEGs decode faster
            image = ImageOps.exif_transpose(image).convert("RGB")
            box = center_box(*image.size)
            mirrored = False
            if seed is not None:
                generator = random.Random(seed)
                box = random_box(*image.size, generator, self.least)
                mirrored = self.flip and generator.random() < 0.5
            side = (self.size, self.size)
            pixels = np.asarray(image.resize(side, Image.Resampling.BILINEAR, box))
        return pixels[:, ::-1] if mirrored else pixels


def shift_and_flip(images: UInt8[Tensor, "B C H W"], flip: bool, seed: int) -> Tensor:
    """Shift each by up to an eighth of its side, the edge repeated, and mirror half of them."""
    generator = torch.Generator().manual_seed(seed)
    side = images.shape[2]
    most = side // 8
    down, right = torch.randint(-most, most + 1, (2, len(images), 1), generator=generator)
    pixels = torch.arange(side)
    rows = (pixels + down).clamp(0, side - 1)
    columns = (pixels + right).clamp(0, side - 1)
    if flip:
        mirrored = torch.rand(len(images), 1, generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    number = torch.arange(len(images))[:, None, None]
    return images[number, :, rows[:, :, None], columns[:, None, :]].movedim(3, 1)


def load_batches(pictures, requests: Iterable, workers=0) -> Iterator[Batch]:
    """Hand out the requested batches in order, read ahead by so many processes."""
    ahead = {"prefetch_factor": 4, "num_workers": workers} if workers else {}
    ahead["generator"] = torch.Generator()  # or the global one would be moved
    return iter(DataLoader(pictures, batch_sampler=requests, collate_fn=Batch._make, **ahead))


def epoch_batches(pictures, steps, epoch, step, settings) -> Iterator[Batch]:
    """Hand out this process's part of an epoch's batches, from a step on, augmented."""
    seed = settings.seed
    generator = torch.Generator().manual_seed(derive_seed(seed, epoch))
    order = torch.randperm(len(pictures), generator=generator)
    batches = order.split(settings.batch_size)
    batches = batches[step * settings.iter_size : steps * settings.iter_size]
    own = distributed.shard_bounds(settings.batch_size)
    requests = (
        [(number, derive_seed(seed, epoch, number)) for number in batch[own].tolist()]
        for batch in batches
    )
    return load_batches(pictures, requests, settings.workers)


def derive_seed(*numbers: int) -> int:
    """Return a seed out of some numbers."""
    return int.from_bytes(blake2b(repr(numbers).encode(), digest_size=7).digest())


class Splits(NamedTuple):
    """All training pictures, those learned from and chosen on, and those tested on once."""

    gallery: Pictures
    train: Pictures
    validation: Pictures
    test: Pictures


@torch_defaults()
def open_pictures(data, size=224, validation=0.05, flip=None, least=0.08, seed=0) -> Splits:
    """Open a set of nnlib.datasets by its name, or a folder of pictures in folders of classes.

    Parameters
    ----------
    data : name of a set; a folder of train/CLASS/*.jpg and val/CLASS/*.jpg; or one of CLASS/*.jpg,
        of which a fifth of each class is put aside to test on
    size, least : side that files are brought to; least fraction of their area to train on
    validation : fraction of each class of the training pictures to choose on
    flip : whether mirrored pictures are as good, by default True but for digits
    seed : draws what is put aside

    Examples
    --------
    >>> [len(pictures) for pictures in open_pictures("mnist")]
    [60000, 57000, 3000, 10000]
    """
    check_number("validation", validation, "[0, 1)")
    if str(data) in CLASSES:
        whole = load(str(data))
        rest = (whole.classes, str(data) not in NOT_MIRRORED if flip is None else flip)
        gallery = SetPictures(whole.train_images, whole.train_labels, *rest)
        test = SetPictures(whole.test_images, whole.test_labels, *rest)
    else:
        gallery, test = _open_folder(Path(data).expanduser(), size, flip is not False, least, seed)
    return Splits(gallery, *gallery.hold_out(validation, seed), test)


def held_out(labels: Int64[Tensor, " N"], fraction: float, seed: int | None) -> Bool[Tensor, " N"]:
    """Return True for that fraction of each class: 1 at least and 2 left, of 3 pictures or more."""
    counts = torch.bincount(labels)
    wanted = (counts * fraction).round().long()
    if fraction:
        wanted = torch.where(counts >= 3, wanted.clamp(min=1).minimum(counts - 2), 0)
    return draw_per_class(labels, wanted, seed)


@torch_defaults()
def draw_per_class(labels, wanted, seed: int | None) -> Bool[Tensor, " N"]:
    """Return True [N] for so many drawn samples of each class."""
    order = torch.randperm(len(labels), generator=make_generator(seed))
    by_class = order[labels[order].argsort(stable=True)].split(torch.bincount(labels).tolist())
    drawn = torch.cat([own[:count] for own, count in zip(by_class, wanted.tolist(), strict=True)])
    return torch.zeros(len(labels), dtype=torch.bool).index_fill_(0, drawn, True)


def _open_folder(root: Path, size, flip, least, seed):
    if not root.is_dir():
        wanted = f"give one that has CLASS/*.jpg for each class, or {', '.join(CLASSES)}"
        raise DataError(f"data={str(root)!r} is no folder: {wanted}")
    train = root / "train" if (root / "train").is_dir() else root
    pictures = FolderPictures(*_list_tree(train), size, flip, least)
    tests = [root / name for name in TEST_FOLDERS if train != root and (root / name).is_dir()]
    if tests:
        files = _list_tree(tests[0], pictures.classes)
        return pictures, FolderPictures(*files, size, flip, least)
    halves = pictures.hold_out(0.2, seed + 1)
    if not len(halves[1]):
        raise DataError(f"data={str(root)!r} has no val/, and no class of 3 pictures: give either")
    return halves


def _list_tree(root: Path, classes=()):
    """Return files, labels and classes by name; the classes have to be among those given."""
    files = [
        file
        for folder in sorted(root.iterdir())
        if folder.is_dir() and folder.name[0] != "."
        for file in sorted(folder.rglob("*"))
        if file.suffix.lower() in SUFFIXES and file.name[0] != "."
    ]
    names = [file.parts[len(root.parts)] for file in files]
    found = list(dict.fromkeys(names))
    unknown = [name for name in found if classes and name not in classes]
    if unknown:
        problem = f"has a class {unknown[0]!r} that the training folder lacks"
        raise DataError(f"data={str(root)!r} {problem}")
    if len(found) < (1 if classes else 2):
        has = f"pictures of {found[0]!r} alone" if found else "no pictures in folders"
        raise DataError(f"data={str(root)!r} has {has}: give two classes or more of CLASS/*.jpg")
    classes = classes or found
    return files, torch.tensor([classes.index(name) for name in names]), classes
