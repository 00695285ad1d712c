"""Small trees of pictures for a chapter to train on: a set's written out, or a folder's made small."""

import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageOps

from nnlib._common.validation import check_int
from nnlib.training import Pictures, draw_per_class, open_pictures


def grown(source: str, folder: Path, n_train: int, n_test: int, side: int, seed: int) -> list[str]:
    """Write about so many pictures of a set or of a folder, 0 for all, as train/CLASS/*.png and val/CLASS/*.png.

    Those of a folder are brought to about twice `side`. Returns the names of those that can't be read. Raises DataError
    where a folder isn't one of pictures in classes, ValueError for numbers that can't be used.
    """
    counts = check_int("n_train", n_train, 0), check_int("n_test", n_test, 0)
    whole = open_pictures(source, check_int("image_size", side, 8), validation=0, seed=seed)
    unread = []
    for half, pictures, count in zip(
        ("train", "val"), (whole.gallery, whole.test), counts, strict=True
    ):
        for number in _some(pictures.labels, count, seed):
            path = folder / half / pictures.classes[pictures.labels[number]] / f"{number:06d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                _picture(pictures, number, 2 * side).save(path)
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
    return pictures.__getitems__(
        [(number, None) for number in range(len(pictures))]
    ).images.movedim(1, 3)


def _some(labels: torch.Tensor, count: int, seed: int) -> list[int]:
    """Numbers of about `count` pictures: of each class its share, and 2 where it has them; all where count is 0."""
    counts = torch.bincount(labels)
    wanted = (counts * (count / len(labels) if count else 1)).round().long()
    return (
        draw_per_class(labels, wanted.maximum(counts.clamp(max=2)).minimum(counts), seed)
        .nonzero()[:, 0]
        .tolist()
    )


def _picture(pictures: Pictures, number: int, side: int) -> Image.Image:
    if hasattr(pictures, "images"):
        return Image.fromarray(pictures.images[number].numpy())
    return _shrunk(pictures.files[number], side)


def _shrunk(file: Path, side: int) -> Image.Image:
    with warnings.catch_warnings(), Image.open(file) as image:
        warnings.simplefilter("ignore")
        image.draft("RGB", (side, side))
        image = ImageOps.exif_transpose(image).convert("RGB")
        scale = min(1.0, side / min(image.size))
        return image.resize(
            [max(1, round(length * scale)) for length in image.size], Image.Resampling.LANCZOS
        )
