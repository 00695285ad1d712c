"""Small trees of pictures for a chapter to train on: the shipped digits written out, or a folder's, made small."""

import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageOps

from nnlib.data import load
from nnlib.pictures import Pictures, held_out, open_pictures


def digits(folder: Path, n_train: int, n_test: int, seed: int) -> list[str]:
    """Write so many of the shipped digits as folder/train/DIGIT/*.png and folder/val/DIGIT/*.png."""
    data = load("mnist")
    halves = (
        ("train", data.train_images, data.train_labels, n_train),
        ("val", data.test_images, data.test_labels, n_test),
    )
    for half, images, labels, count in halves:
        for number in _some(labels, count, seed):
            path = folder / half / data.classes[labels[number]] / f"{number:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[number].numpy()).save(path)
    return []


def small_copy(source: str, folder: Path, n_train: int, n_test: int, side: int, seed: int) -> list[str]:
    """Copy so many pictures of a folder, brought to about twice `side`, as train/CLASS/ and val/CLASS/.

    Returns the names of those that can't be read. Raises DataError where the folder isn't one of pictures in classes.
    """
    whole, unread = open_pictures(source, side, validation=0, seed=seed), []
    for half, pictures, count in (("train", whole.gallery, n_train), ("val", whole.test, n_test)):
        for number in _some(pictures.labels, count, seed):
            path = folder / half / pictures.classes[pictures.labels[number]] / f"{number:06d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                _shrunk(pictures.files[number], 2 * side).save(path)
            except Exception as error:  # a broken file can fail in any way that its decoder knows
                unread.append(f"{pictures.files[number]} ({type(error).__name__}: {error})")
    return unread


def only(tree: Path, classes: Sequence[str], folder: Path) -> Path:
    """A copy of some classes of a tree."""
    for half in ("train", "val"):
        for name in classes:
            if (tree / half / name).is_dir():
                shutil.copytree(tree / half / name, folder / half / name)
    return folder


def pixels(pictures: Pictures) -> torch.Tensor:
    """All pictures as they are tested, uint8 [N, H, W, 3]."""
    return pictures.__getitems__([(number, None) for number in range(len(pictures))]).images.movedim(1, 3)


def _some(labels: torch.Tensor, count: int, seed: int) -> list[int]:
    """Numbers of `count` pictures, as many of each class as it has a share of; all of them where count is 0."""
    if count == 0 or count >= len(labels):
        return list(range(len(labels)))
    return held_out(labels, count / len(labels), seed).nonzero()[:, 0].tolist()


def _shrunk(file: Path, side: int) -> Image.Image:
    with warnings.catch_warnings(), Image.open(file) as image:
        warnings.simplefilter("ignore")
        image.draft("RGB", (side, side))
        image = ImageOps.exif_transpose(image).convert("RGB")
        scale = min(1.0, side / min(image.size))
        return image.resize([max(1, round(length * scale)) for length in image.size], Image.Resampling.LANCZOS)
