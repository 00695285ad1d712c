"""Image sets, photos and texts: shipped, from the data folder, or downloaded once."""

import gzip
import os
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from nnlib._common.files import atomic_write
from nnlib._common.runtime import torch_defaults
from nnlib.errors import DataError

__all__ = ["Dataset", "data_folder", "load", "load_photo", "load_text"]

DATA = Path(__file__).resolve().parents[1] / "data"
SHIPPED = DATA if (DATA / "mnist").is_dir() and (DATA / "README.md").is_file() else None
ARRAYS = ["train_images", "train_labels", "test_images", "test_labels"]
IDX_NAMES = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
IDX_FILES = [f"{name}-ubyte.gz" for name in IDX_NAMES]
CIFAR_100 = """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge
    bus butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch
    crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo
    keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse
    mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy
    porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail
    snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger
    tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm"""
CLOTHES = "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot"
CLASSES = {
    "mnist": tuple("0123456789"),
    "fashion_mnist": tuple(CLOTHES.split(",")),
    "cifar10": tuple("airplane automobile bird cat deer dog frog horse ship truck".split()),
    "cifar100": tuple(CIFAR_100.split()),
}


class Dataset(NamedTuple):
    """Both halves of a set in canonical order: images 0..255, [N, H, W] where grey, and classes."""

    train_images: UInt8[Tensor, "N H W *C"]
    train_labels: Int64[Tensor, "N"]
    test_images: UInt8[Tensor, "M H W *C"]
    test_labels: Int64[Tensor, "M"]
    classes: tuple[str, ...]


@torch_defaults()
def load(name: str, folder: str | Path | None = None) -> Dataset:
    """Load "mnist" (shipped), "fashion_mnist", "cifar10" or "cifar100", downloaded once if missing.

    Parameters
    ----------
    name : str
    folder : holds NAME.npz or the files as published (default: `data_folder()`)

    Raises
    ------
    DataError : the set is missing and can't be downloaded, or a file is broken

    References
    ----------
    LeCun, Cortes, Burges (MNIST); Xiao et al. 2017 (Fashion-MNIST); Krizhevsky 2009 (CIFAR).

    Examples
    --------
    >>> load("mnist").train_images.shape
    torch.Size([60000, 28, 28])
    """
    if name not in tuple(CLASSES):
        raise ValueError(f"name={name!r} is not a known set: give one of {', '.join(CLASSES)}")
    folder = data_folder(folder)
    npz = folder / f"{name}.npz"
    if npz.exists():
        with _reading(npz), np.load(npz, allow_pickle=False) as file:
            return _to_dataset(name, [file[key] for key in ARRAYS])
    for path in (folder / name, (SHIPPED or folder) / name):
        if path.exists():
            arrays = [_read_idx(path / file) for file in IDX_FILES]
            with _reading(path):
                return _to_dataset(name, arrays)
    return _load_published(name, folder)


def data_folder(folder: str | Path | None = None) -> Path:
    """Return `folder`, else NNLIB_DATA, else the repository's data/, else the user's cache.

    Parameters
    ----------
    folder : what to prefer to all of them

    Raises
    ------
    DataError : it is a file

    Examples
    --------
    >>> data_folder("/tmp").name
    'tmp'
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "nnlib")
    path = Path(folder or os.environ.get("NNLIB_DATA") or SHIPPED or cache).expanduser()
    if path.exists() and not path.is_dir():
        raise DataError(f"folder={str(path)!r} is a file: give a folder, here or in NNLIB_DATA")
    return path


@torch_defaults()
def load_photo(name: str | Path, as_it_is: bool = False) -> UInt8[Tensor, "H W *C"]:
    """Open "astronaut", "chelsea", "tmshre_500" or any picture by its path: upright, [H, W, 3].

    Parameters
    ----------
    name : of a shipped photo, or a file's path
    as_it_is : keep a grey picture [H, W] and a transparent one [H, W, 4]

    Raises
    ------
    DataError : there is no such file, or it can't be read as a picture of 8 bits a channel

    Examples
    --------
    >>> load_photo("chelsea").shape
    torch.Size([300, 451, 3])
    """
    from PIL import Image, ImageOps

    path = _resolve("photo", name)
    with _reading(path), Image.open(path) as image:
        if image.mode[0] in "IF":
            raise ValueError(f"its pixels are of mode {image.mode}, not 8 bits a channel")
        mode = "RGB"
        if as_it_is and (image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info):
            mode = "RGBA"
        elif as_it_is and image.mode in ("1", "L"):
            mode = "L"
        return torch.from_numpy(np.array(ImageOps.exif_transpose(image).convert(mode)))


def load_text(name: str | Path) -> str:
    """Read "alice", "persuasion" or any UTF-8 file by its path, line ends kept.

    Parameters
    ----------
    name : of a shipped text, or a file's path

    Raises
    ------
    DataError : there is no such file, or it isn't UTF-8

    Examples
    --------
    >>> load_text("alice").split()[:3]
    ["ALICE'S", 'ADVENTURES', 'IN']
    """
    path = _resolve("text", name)
    with _reading(path):
        return path.read_bytes().decode("utf-8")


def _resolve(kind: str, name: str | Path) -> Path:
    folder = (SHIPPED or data_folder()) / f"{kind}s"
    known = {path.stem: path for path in sorted(folder.glob("*.*"))}
    path = known.get(str(name), Path(name).expanduser())
    if not path.is_file():
        names = ", ".join(known)
        raise DataError(f"name={str(name)!r} is no {kind}: give one of {names}, or a file's path")
    return path


@contextmanager
def _reading(path: Path):
    try:
        yield
    except Exception as error:  # a foreign file can fail in any way that its reader knows
        problem = f"{path} can't be read ({type(error).__name__}: {error})"
        raise DataError(f"{problem}: put the right file there, or move this one away") from None


def _read_idx(path: Path) -> np.ndarray:
    with _reading(path), gzip.open(path) as file:  # torchvision reads unpacked files only
        data = file.read()
        if data[:3] != b"\0\0\x08":
            raise ValueError("it is no IDX file of bytes")
        shape = np.frombuffer(data, ">u4", data[3], offset=4)
        return np.frombuffer(data, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)


def _to_dataset(name: str, arrays: list[np.ndarray]) -> Dataset:
    size = (*arrays[0].shape[1:3], 3) if name.startswith("cifar") else arrays[0].shape[1:3]
    last = len(CLASSES[name]) - 1
    for images, labels in (arrays[:2], arrays[2:]):
        fits = images.dtype == np.uint8 and images.shape == (len(labels), *size)
        fits = fits and images.ndim > 2 and labels.dtype.kind in "iu" and labels.ndim == 1
        if not fits or labels.min() < 0 or labels.max() > last:
            found = f"{images.dtype} {images.shape} with labels {labels.dtype} {labels.shape}"
            wanted = f"uint8 {('N', *size)} with labels 0..{last}"
            raise ValueError(f"images {found} don't fit {wanted}")
    kinds = ("u1", "i8", "u1", "i8")
    owned = [array.astype(kind, order="C") for array, kind in zip(arrays, kinds, strict=True)]
    return Dataset(*map(torch.from_numpy, owned), CLASSES[name])


def _load_published(name: str, folder: Path) -> Dataset:
    """Load a CIFAR archive in the folder, or download any set and keep it as NAME.npz."""
    archive = folder / f"{name.replace('cifar', 'cifar-')}-python.tar.gz"
    try:
        from torchvision import datasets

        readers = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}
        reader = getattr(datasets, readers.get(name, name.upper()))
        with TemporaryDirectory() as root:
            if archive.exists():  # holds pickles, which are safe in the published file alone
                if not datasets.utils.check_integrity(archive, reader.tgz_md5):
                    raise ValueError(f"{archive} has another MD5 sum than {reader.tgz_md5}")
                Path(root, archive.name).symlink_to(archive.resolve())
            halves = [reader(root, train, download=True) for train in (True, False)]
        arrays = [np.asarray(part) for half in halves for part in (half.data, half.targets)]
        if not archive.exists():
            with atomic_write(folder / f"{name}.npz") as part, open(part, "wb") as file:
                np.savez(file, **dict(zip(ARRAYS, arrays, strict=True)))
        return _to_dataset(name, arrays)
    except Exception as error:  # no network, no torchvision, no space: all are answered alike
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(
            f"name={name!r} can't be read from {folder} or downloaded into it ({cause}): "
            f"connect once, or put there {name}.npz ({', '.join(ARRAYS)}) or the files as "
            "published, or set NNLIB_DATA to the folder that has them"
        ) from None
