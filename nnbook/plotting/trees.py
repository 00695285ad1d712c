"""Small folders of pictures for a chapter to train on: written from a data set or a folder."""

import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor

from nnlib._common.validation import check_int
from nnlib.training import Pictures, open_pictures


def write_tree(
    source: str, folder: Path, n_train: int, n_test: int, side: int, seed: int
) -> list[str]:
    """Write about so many pictures of a data set or a folder, 0 for all, each class in proportion.

    They become train/CLASS/*.png and val/CLASS/*.png, a folder's about twice `side` large. Returns
    those that can't be read. Raises DataError where there is no such source, ValueError for counts.
    """
    counts = [check_int("n_train", n_train, 0), check_int("n_test", n_test, 0)]
    splits = open_pictures(source, check_int("image_size", side, 8), validation=0, seed=seed)
    halves = {"train": splits.gallery, "val": splits.test}
    unread = []
    for (half, pictures), count in zip(halves.items(), counts, strict=True):
        per_class = torch.bincount(pictures.labels)
        fraction = count / len(pictures) if count else 1
        wanted = (per_class * fraction).round().long().maximum(per_class.clamp(max=2))
        for number in pictures.draw(wanted.minimum(per_class), seed):
            path = folder / half / pictures.classes[pictures.labels[number]] / f"{number:06d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                _image(pictures, number, 2 * side).save(path)
            except Exception as error:  # a broken file fails in any way that its decoder knows
                unread.append(f"{pictures.files[number]} ({type(error).__name__}: {error})")
    return unread


def _image(pictures: Pictures, number: int, side: int) -> Image.Image:
    if hasattr(pictures, "images"):  # a set in memory
        return Image.fromarray(pictures.images[number].numpy())
    with warnings.catch_warnings(action="ignore"), Image.open(pictures.files[number]) as image:
        image.draft("RGB", (side, side))
        image = ImageOps.exif_transpose(image).convert("RGB")
        scale = min(1.0, side / min(image.size))
        size = [max(1, round(length * scale)) for length in image.size]
        return image.resize(size, Image.Resampling.LANCZOS)


def copy_classes(tree: Path, classes: Sequence[str], folder: Path) -> Path:
    """Copy some classes of a tree of pictures; return where."""
    for path in tree.glob("*/*"):
        if path.name in classes:
            shutil.copytree(path, folder / path.parent.name / path.name)
    return folder


def all_pixels(pictures: Pictures) -> Tensor:
    """Return all pictures as they are tested, uint8 [N, H, W, 3]."""
    return torch.cat([batch.images for batch in pictures.in_batches()]).movedim(1, 3)
