"""Image sets, photos and texts as tensors and strings: shipped, from the data folder, or fetched into it once."""

import gzip
import math
import os
import pickle
import tarfile
import zipfile
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from nnlib._common.files import atomic_write

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = (
    ROOT / "data"
    if (ROOT / "data/README.md").is_file() and (ROOT / "pyproject.toml").is_file()
    else None
)
LIMIT = 400_000_000  # bytes: twice and more what the largest of these sets takes
ARRAYS = ["train_images", "train_labels", "test_images", "test_labels"]
IDX = [
    f"{half}-{kind}-ubyte.gz"
    for half in ("train", "t10k")
    for kind in ("images-idx3", "labels-idx1")
]
CIFAR = {  # the archive, its members (training batches, test batch, names), and what its keys for labels begin with
    "cifar10": (
        "cifar-10-python.tar.gz",
        [*map("data_batch_{}".format, "12345"), "test_batch", "batches.meta"],
        b"",
    ),
    "cifar100": ("cifar-100-python.tar.gz", ["train", "test", "meta"], b"fine_"),
}
CLASSES = {
    "mnist": tuple("0123456789"),
    "fashion_mnist": tuple("T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot".split(",")),
    "cifar10": tuple("airplane automobile bird cat deer dog frog horse ship truck".split()),
    "cifar100": tuple("""apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
        butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup
        dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion
        lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear
        pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark
        shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone
        television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm""".split()),
}  # fmt: skip


class DataError(OSError):
    """A set, photo or text that is missing, can't be fetched, or isn't what its name promises."""


class Dataset(NamedTuple):
    """Both halves of a set in canonical order: images 0..255, [N, H, W] where grey; labels index `classes`."""

    train_images: UInt8[Tensor, "N H W *C"]
    train_labels: Int64[Tensor, "N"]
    test_images: UInt8[Tensor, "M H W *C"]
    test_labels: Int64[Tensor, "M"]
    classes: tuple[str, ...]


def load(name: str, folder: str | Path | None = None) -> Dataset:
    """Load "mnist", "fashion_mnist", "cifar10" or "cifar100".

    Images are uint8 [N, H, W] (grey) or [N, H, W, 3] in 0..255, labels int64 [N]. Read from `folder` (`data_folder()`
    by default) as NAME.npz or as its authors publish it; MNIST is shipped. What isn't there is fetched into it, once.
    Raises ValueError for another name, DataError where a set is missing and can't be fetched, or a file is broken.
    Sources: LeCun, Cortes and Burges (MNIST), Xiao, Rasul and Vollgraf (Fashion-MNIST), Krizhevsky 2009 (CIFAR).
    """
    if name not in tuple(CLASSES):
        raise ValueError(
            f"name={name!r} is no set that is known here: give one of {', '.join(CLASSES)}"
        )
    folder = data_folder(folder)
    return (
        _found(name, folder)
        or (name == "mnist" and SHIPPED and _found(name, SHIPPED))
        or _fetched(name, folder)
    )


def data_folder(folder: str | Path | None = None) -> Path:
    """Say where sets are kept: `folder`, else NNLIB_DATA, else the repository's data/, else the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "nnlib")
    path = Path(folder or os.environ.get("NNLIB_DATA") or SHIPPED or cache).expanduser()
    if path.exists() and not path.is_dir():
        raise DataError(f"folder={str(path)!r} is a file: give a folder, here or in NNLIB_DATA")
    return path


def load_photo(name: str | Path, as_it_is: bool = False) -> UInt8[Tensor, "H W *C"]:
    """Open a shipped photo ("astronaut", "chelsea", "tmshre_500"), or any picture by its path: uint8 [H, W, 3].

    It is turned upright and loses its transparency; `as_it_is`, a grey one stays [H, W] and a transparent one
    [H, W, 4]. Raises DataError where it is missing or can't be read.
    """
    from PIL import Image, ImageOps

    path = _named("photo", name)
    with _reading(path), Image.open(path) as image:
        _require(
            image.mode[0] not in "IF", path, f"has pixels of mode {image.mode}", "8 bits a channel"
        )
        clear = as_it_is and (image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info)
        mode = "RGBA" if clear else "L" if as_it_is and image.mode in ("1", "L") else "RGB"
        return torch.from_numpy(np.array(ImageOps.exif_transpose(image).convert(mode)))


def load_text(name: str | Path) -> str:
    """Read a shipped text ("alice", "persuasion") or any UTF-8 file by its path, line ends kept. Raises DataError."""
    path = _named("text", name)
    with _reading(path):
        return path.read_bytes().decode("utf-8")


def _named(kind: str, name: str | Path) -> Path:
    known = {
        path.stem: path for path in sorted(((SHIPPED or data_folder()) / f"{kind}s").glob("*.*"))
    }
    path = known.get(str(name), Path(name).expanduser())
    if not path.is_file():
        raise DataError(
            f"name={str(name)!r} is no {kind}: give one of {', '.join(known)}, or the path of a file"
        )
    return path


@contextmanager
def _reading(path: Path):
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # a foreign file can fail in any way that its reader knows
        _require(
            False,
            path,
            f"can't be read ({type(error).__name__}: {error})",
            "a whole file of its kind",
        )


def _require(holds: bool, path: Path, found: str, wanted: str) -> None:
    if not holds:
        raise DataError(
            f"{path} {found}, not {wanted}: put the right file there, or move this one away"
        ) from None


def _found(name: str, folder: Path) -> Dataset | None:
    """The set where it lies in `folder`: NAME.npz, or as its authors publish it."""
    npz, idx = folder / f"{name}.npz", [folder / name / file for file in IDX]
    if npz.exists():
        return _checked(name, npz, _npz(npz))
    if name in CIFAR and (archive := folder / CIFAR[name][0]).exists():
        return _checked(name, archive, *_cifar(archive, *CIFAR[name][1:]))
    if name not in CIFAR and any(path.exists() for path in idx):
        return _checked(name, folder / name, [*map(_idx, idx, (3, 1, 3, 1))])


def _checked(
    name: str, path: Path, arrays: list[np.ndarray], classes: tuple[str, ...] = ()
) -> Dataset:
    """Tensors of the four arrays found at `path`, once they fit each other and the set."""
    classes, colours = classes or CLASSES[name], (3,) if name in CIFAR else ()
    size = (*arrays[0].shape[1:3], *colours)
    for half, images, labels in (("train", *arrays[:2]), ("test", *arrays[2:])):
        fits = (
            images.dtype == np.uint8
            and images.ndim == 3 + len(colours)
            and images.shape[1:] == size
            and images.size
        )
        wanted = f"uint8 [N, H, W{', 3' * len(colours)}] of one size, some in each half"
        _require(fits, path, f"has {half}_images of {images.dtype} {list(images.shape)}", wanted)
        fits = labels.dtype.kind in "iu" and labels.shape == images.shape[:1]
        _require(
            fits,
            path,
            f"has {half}_labels of {labels.dtype} {list(labels.shape)}",
            f"int64 [{len(images)}]",
        )
        low, high = labels.min(), labels.max()
        _require(
            0 <= low and high < len(classes),
            path,
            f"has {half}_labels {low}..{high}",
            f"0..{len(classes) - 1}",
        )
    owned = map(np.require, arrays, ("u1", "i8") * 2, [["C", "W"]] * 4)
    return Dataset(*map(torch.from_numpy, owned), classes)


def _npz(path: Path) -> list[np.ndarray]:
    with _reading(path), zipfile.ZipFile(path) as file:
        _require(
            sum(entry.file_size for entry in file.infolist()) <= LIMIT,
            path,
            "is huge",
            f"{LIMIT} bytes at most",
        )
        return [
            np.lib.format.read_array(file.open(f"{key}.npy"), allow_pickle=False) for key in ARRAYS
        ]


def _idx(path: Path, dimensions: int) -> np.ndarray:
    with _reading(path), gzip.open(path) as file:
        magic, *shape = np.frombuffer(file.read(4 + 4 * dimensions), ">u4").tolist()
        _require(
            magic == 0x0800 + dimensions,
            path,
            f"has the magic number {magic}",
            f"IDX's {0x0800 + dimensions}",
        )
        size = math.prod(shape)
        _require(size <= LIMIT, path, f"claims {size} bytes", f"at most {LIMIT}")
        raw = file.read(
            size + 1
        )  # one more than there should be, so that the end is met and its checksum compared
        _require(
            len(raw) == size,
            path,
            f"has {len(raw)} bytes or more after its head",
            f"{size} for shape {shape}",
        )
    return np.frombuffer(raw, np.uint8).reshape(shape)


def _cifar(
    path: Path, members: list[str], prefix: bytes
) -> tuple[list[np.ndarray], tuple[str, ...]]:
    found, arrays = {}, []
    with _reading(path), tarfile.open(path, "r:gz") as archive:
        for entry in archive:
            if entry.isfile() and (key := entry.name.split("/")[-1]) in members:
                _require(
                    entry.size <= LIMIT,
                    path,
                    f"has a {key} of {entry.size} bytes",
                    f"at most {LIMIT}",
                )
                found[key] = _PlainUnpickler(archive.extractfile(entry), encoding="bytes").load()
        _require(
            found.keys() >= {*members},
            path,
            f"has only {', '.join(found)}",
            f"all of {', '.join(members)}",
        )
        archive.fileobj.read(LIMIT)  # a tar ends before its gzip does, whose checksum comes last
        *train, test, meta = [found[key] for key in members]
        for batches in (train, [test]):
            pixels = np.concatenate([batch[b"data"].array for batch in batches])
            arrays += [pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)]
            arrays += [np.concatenate([np.array(batch[prefix + b"labels"]) for batch in batches])]
        return arrays, tuple(
            n if isinstance(n, str) else n.decode() for n in meta[prefix + b"label_names"]
        )


class _PlainUnpickler(pickle.Unpickler):
    """Reads plain containers and bytes in the shape of an array: a pickle may name functions to call, and gets none."""

    def find_class(self, module, name):
        """An inert stand-in for what such a file has to name; raises UnpicklingError for all else."""
        if module.split(".")[0] == "numpy" and name in ("_reconstruct", "ndarray", "dtype"):
            return lambda *_: _Pixels()
        if (module, name) == ("_codecs", "encode"):
            return lambda characters, _: characters.encode("latin1")
        raise pickle.UnpicklingError(
            f"it asks for {module}.{name}, which is no part of such a file"
        )


class _Pixels:
    def __setstate__(self, state):
        if isinstance(
            state[-1], bytes
        ):  # an array's state ends in its bytes, a dtype's in a number
            _, shape, _, by_columns, raw = state
            self.array = np.frombuffer(raw, np.uint8).reshape(
                shape, order="F" if by_columns else "C"
            )


def _fetched(name: str, folder: Path) -> Dataset:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f"{name}.part-", dir=folder) as box:
            _download(name, Path(box))
            dataset = _found(name, Path(box))
        with atomic_write(folder / f"{name}.npz") as part, open(part, "wb") as file:
            np.savez(file, **{key: getattr(dataset, key).numpy() for key in ARRAYS})
        return dataset
    except (
        Exception
    ) as error:  # no network, no torchvision, no room: each of them is answered alike
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        published = CIFAR[name][0] if name in CIFAR else f"{name}/ ({', '.join(IDX)})"
        raise DataError(
            f"name={name!r} is not in {folder} and could not be fetched into it ({cause}): connect once, or put there "
            f"{name}.npz ({', '.join(ARRAYS)}) or {published}, or set NNLIB_DATA to the folder that has it"
        ) from None


def _download(name: str, box: Path) -> None:
    from torchvision import datasets  # it knows each file's address and checksum

    if name in CIFAR:
        source = getattr(datasets, name.upper())
        datasets.utils.download_url(source.url, box, CIFAR[name][0], source.tgz_md5)
    else:
        kind = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}[name]
        getattr(datasets, kind)(box, download=True)
        (box / kind / "raw").rename(box / name)
