"""Sets are read right from every form; whatever is broken, foreign or missing is named."""

import gzip
import hashlib
import http.server
import io
import pickle
import struct
import tarfile
import threading
import urllib.error
import urllib.request
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import datasets

from nnlib import datasets as library
from nnlib.datasets import load, load_photo, load_text
from nnlib.errors import DataError

DATA = Path(__file__).resolve().parents[2] / "data"
URLOPEN = urllib.request.urlopen
CIFAR_100 = "cifar-100-python.tar.gz"
pytestmark = pytest.mark.filterwarnings(
    "error::UserWarning"
)  # torch gives one for memory that is not its own


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """No variable of the user's and no network reaches a test."""

    def no_network(*_, **__):
        raise urllib.error.URLError("no network in tests")

    monkeypatch.delenv("NNLIB_DATA", raising=False)
    monkeypatch.setattr(urllib.request, "urlopen", no_network)


def arrays(shape=(4, 4, 3), train=6, test=3, classes=10, seed=0):
    random = np.random.default_rng(seed)
    made = {}
    for half, count in (("train", train), ("test", test)):
        made[f"{half}_images"] = random.integers(0, 256, (count, *shape), dtype=np.uint8)
        made[f"{half}_labels"] = random.integers(0, classes, count)
    return made


def save(path, **changed):
    """An npz of small arrays, some of them changed, or left out where None."""
    made = arrays() | changed
    np.savez(path, **{key: array for key, array in made.items() if array is not None})
    return path


def same(dataset, made):
    return all(np.array_equal(getattr(dataset, key).numpy(), array) for key, array in made.items())


def idx(array):
    """An array in LeCun's format, gzipped."""
    return gzip.compress(
        struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape) + array.tobytes()
    )


def save_idx(folder, made, **changed):
    folder.mkdir(parents=True)
    for file, (key, array) in zip(library.IDX_FILES, made.items(), strict=True):
        (folder / file).write_bytes(changed.get(key, idx(array.astype(np.uint8))))


def batch(made, half, key):
    rows = made[f"{half}_images"].transpose(0, 3, 1, 2).reshape(-1, 3072)
    return {"data": rows, key: made[f"{half}_labels"].tolist()}


def cifar100(made):
    train = batch(made, "train", "fine_labels")
    meta = {"fine_label_names": list(library.CLASSES["cifar100"])}
    return {"meta": meta, "test": batch(made, "test", "fine_labels"), "train": train}


def save_tar(path, members, folder="cifar-100-python"):
    with tarfile.open(
        path, "w:gz", compresslevel=0
    ) as archive:  # nothing squeezed: a test finds its pixels again
        for name, content in ({"file.txt~": b""} | members).items():
            entry = tarfile.TarInfo(f"{folder}/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


# ---- what is shipped


def test_mnist_is_the_real_one():
    mnist = load("mnist")
    assert mnist.train_images.shape == (60_000, 28, 28) and mnist.test_images.shape == (
        10_000,
        28,
        28,
    )
    assert mnist.train_images.dtype == torch.uint8 and mnist.train_labels.dtype == torch.int64
    assert mnist.train_labels.bincount().tolist() == [
        5923,
        6742,
        5958,
        6131,
        5842,
        5421,
        5918,
        6265,
        5851,
        5949,
    ]
    assert mnist.test_labels.bincount().tolist() == [
        980,
        1135,
        1032,
        1010,
        982,
        892,
        958,
        1028,
        974,
        1009,
    ]
    assert mnist.train_labels[:10].tolist() == [
        5,
        0,
        4,
        1,
        9,
        2,
        1,
        3,
        1,
        4,
    ] and mnist.classes == tuple("0123456789")
    # the published MD5 sums of the unpacked files, computed from the tensors
    heads = [(0x803, 60_000, 28, 28), (0x801, 60_000), (0x803, 10_000, 28, 28), (0x801, 10_000)]
    raw = [struct.pack(f">{len(head)}I", *head) for head in heads]
    sums = [
        hashlib.md5(a + t.to(torch.uint8).numpy().tobytes()).hexdigest()
        for a, t in zip(raw, mnist, strict=False)
    ]
    assert sums == [
        "6bbc9ace898e44ae57da46a324031adb",
        "a25bea736e30d166cdddb491f175f624",
        "2646ac647ad5339dbf082846283269ea",
        "27ae3e4e09519cfbb04c329615203637",
    ]
    readme = (DATA / "README.md").read_text()
    assert all(md5 in readme for md5 in sums)


PHOTOS = {"astronaut": (512, 512), "chelsea": (300, 451), "tmshre_500": (500, 500)}


@pytest.mark.parametrize("name, shape", PHOTOS.items())
def test_photos(name, shape):
    image = load_photo(name)
    assert image.shape == (*shape, 3) and image.dtype == torch.uint8 and image.float().std() > 30
    assert torch.equal(load_photo(DATA / "photos" / f"{name}.png"), image)


def test_photos_of_other_kinds(tmp_path):
    from PIL import Image

    path = tmp_path / "turned.png"
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    Image.fromarray(pixels).save(path, exif=exif)
    assert torch.equal(
        load_photo(path),
        torch.from_numpy(np.rot90(pixels, -1).copy())[:, :, None].expand(-1, -1, 3),
    )
    Image.fromarray(pixels.astype(np.uint16) * 256).save(path)
    with pytest.raises(DataError, match="turned.png .*pixels are of mode I;16, not 8 bits"):
        load_photo(path)
    path.write_bytes((DATA / "photos/chelsea.png").read_bytes()[:20_000])
    with pytest.raises(DataError, match="turned.png can't be read"):
        load_photo(path)


def test_texts(tmp_path):
    for name, size in (("alice", 152_089), ("persuasion", 466_854)):
        assert (
            load_text(name).encode() == (DATA / f"texts/{name}.txt").read_bytes()
            and len(load_text(name)) == size
        )
    (tmp_path / "greek.txt").write_bytes("ποταμοῖσι\r\n".encode())
    assert load_text(tmp_path / "greek.txt") == "ποταμοῖσι\r\n"
    (tmp_path / "latin.txt").write_bytes("façade".encode("latin1"))
    with pytest.raises(DataError, match="latin.txt can't be read.*utf-8"):
        load_text(tmp_path / "latin.txt")


def test_what_is_shipped_is_listed():
    with pytest.raises(
        DataError, match="name='lena' is no photo: give one of astronaut, chelsea, tmshre_500, or"
    ):
        load_photo("lena")
    with pytest.raises(
        DataError, match="name='hamlet' is no text: give one of alice, persuasion, or"
    ):
        load_text("hamlet")
    with pytest.raises(ValueError, match="name='svhn' .*mnist, fashion_mnist, cifar10, cifar100"):
        load("svhn")


# ---- folders


def test_folder_given_then_variable_then_repository_then_cache(tmp_path, monkeypatch):
    assert library.data_folder() == DATA
    monkeypatch.setattr(library, "SHIPPED", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert library.data_folder() == tmp_path / "cache/nnlib"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert library.data_folder() == Path.home() / ".cache/nnlib"
    monkeypatch.setenv("NNLIB_DATA", str(tmp_path))
    assert (
        library.data_folder() == tmp_path
        and library.data_folder("~/there") == Path.home() / "there"
    )


def test_variable_is_respected_and_mnist_comes_along(tmp_path, monkeypatch):
    monkeypatch.setenv("NNLIB_DATA", str(tmp_path))
    assert len(load("mnist").train_labels) == 60_000
    made = arrays(shape=(5, 5))
    np.savez(tmp_path / "mnist.npz", **made)
    assert same(load("mnist"), made)
    assert len(load("mnist", DATA).train_labels) == 60_000


def test_a_file_is_no_folder(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(DataError, match="file' is a file: give a folder"):
        load("mnist", file)
    monkeypatch.setenv("NNLIB_DATA", str(file))
    with pytest.raises(DataError, match="file' is a file: give a folder"):
        load("cifar10")
    with pytest.raises(DataError, match="could not|can't be read"):
        load("cifar10", file / "below")


# ---- npz


@pytest.mark.parametrize(
    "name, shape", [("mnist", (7, 5)), ("fashion_mnist", (7, 5)), ("cifar10", (7, 5, 3))]
)
def test_npz_round_trip(tmp_path, name, shape):
    made = arrays(shape)
    np.savez_compressed(tmp_path / f"{name}.npz", **made)
    dataset = load(name, tmp_path)
    assert same(dataset, made) and len(dataset.classes) == 10
    assert [tensor.dtype for tensor in dataset[:4]] == [torch.uint8, torch.int64] * 2
    dataset.train_images.zero_()


def test_npz_in_other_layouts(tmp_path):
    made = arrays()
    labels = made["train_labels"].astype(">i2")
    save(
        tmp_path / "cifar10.npz",
        train_images=np.asfortranarray(made["train_images"]),
        train_labels=labels,
    )
    assert same(load("cifar10", tmp_path), made)


IMAGES, LABELS = arrays()["train_images"], arrays()["train_labels"]
FITS = r"uint8 \('N', 4, 4, 3\) with labels 0\.\.9"
WRONG = {
    "missing": ("test_labels", dict(test_labels=None)),
    "float images": (rf"images float64 \(6, 4, 4, 3\) .*{FITS}", dict(train_images=IMAGES / 255)),
    "signed images": (f"images int8 .*{FITS}", dict(train_images=IMAGES.astype(np.int8))),
    "grey images": (rf"images uint8 \(6, 4, 4\) .*{FITS}", dict(train_images=IMAGES[..., 0])),
    "flat images": (r"images uint8 \(6, 48\)", dict(train_images=IMAGES.reshape(6, -1))),
    "no dimension": (r"images uint8 \(\)", dict(train_images=np.uint8(3))),
    "no images": ("zero-size", dict(train_images=IMAGES[:0], train_labels=LABELS[:0])),
    "two sizes": (
        r"images uint8 \(3, 5, 4, 3\)",
        dict(test_images=np.zeros((3, 5, 4, 3), np.uint8)),
    ),
    "float labels": ("labels float64", dict(train_labels=LABELS / 1)),
    "one-hot labels": (
        r"labels int64 \(6, 10\)",
        dict(train_labels=np.eye(10, dtype=int)[LABELS]),
    ),
    "fewer labels": (r"labels int64 \(5,\)", dict(train_labels=LABELS[:5])),
    "high label": (r"labels 0\.\.9", dict(train_labels=LABELS * 0 + 10)),
    "low label": (r"labels 0\.\.9", dict(train_labels=LABELS * 0 - 1)),
    "huge label": (r"labels 0\.\.9", dict(train_labels=LABELS.astype(np.uint64) + 2**63)),
    "objects": ("allow_pickle=False", dict(train_labels=np.array([None] * 6))),
}


@pytest.mark.parametrize("case", WRONG)
def test_npz_with_wrong_arrays(tmp_path, case):
    message, changed = WRONG[case]
    save(tmp_path / "cifar10.npz", **changed)
    with pytest.raises(DataError, match=rf"cifar10.npz .*{message}.*: put the right file there"):
        load("cifar10", tmp_path)


@pytest.mark.parametrize("kind", ["empty", "text", "npy", "truncated", "flipped", "folder"])
def test_npz_that_is_none(tmp_path, kind):
    path = tmp_path / "cifar10.npz"
    whole = bytearray(save(path).read_bytes())
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "npy":
        with path.open("wb") as file:
            np.save(file, IMAGES)
    else:
        flipped = whole.copy()
        flipped[200] ^= 1  # a pixel: only the checksum can tell
        path.write_bytes(
            {"empty": b"", "text": b"404: Not found", "truncated": whole[:-60], "flipped": flipped}[
                kind
            ]
        )
    with pytest.raises(DataError, match="cifar10.npz can't be read"):
        load("cifar10", tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["cifar10.npz"]


# ---- IDX


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_idx_in_the_data_folder(tmp_path, name):
    made = arrays(shape=(5, 4))
    save_idx(tmp_path / name, made)
    assert same(load(name, tmp_path), made)


def test_idx_that_is_broken(tmp_path):
    made = arrays(shape=(5, 4))
    images = made["train_images"]
    whole, raw = idx(images), gzip.decompress(idx(images))
    cases = {
        "EOFError": whole[:-12],
        "CRC": whole[:-8] + b"\0\0\0\0" + whole[-4:],
        "BadGzipFile": b"version https://git-lfs.github.com/spec/v1",
        "no IDX file": gzip.compress(b"\0\0\x0d" + raw[3:]),
        "size 119": gzip.compress(raw[:-1]),
        "size 121": gzip.compress(raw + b"\0"),
        "can't be read": gzip.compress(raw[:3]),
        "size 0": gzip.compress(struct.pack(">4I", 0x803, 60_000, 10_000, 1_000)),
    }
    for number, (message, content) in enumerate(cases.items()):
        save_idx(tmp_path / f"{number}/mnist", made, train_images=content)
        with pytest.raises(DataError, match=f"train-images-idx3-ubyte.gz .*{message}"):
            load("mnist", tmp_path / str(number))


def test_idx_that_does_not_fit(tmp_path):
    made = arrays(shape=(5, 4))
    save_idx(tmp_path / "a/mnist", made | {"test_labels": made["test_labels"][:2]})
    with pytest.raises(DataError, match=r"mnist can't be read .*labels uint8 \(2,\)"):
        load("mnist", tmp_path / "a")
    save_idx(tmp_path / "b/mnist", made | {"test_labels": np.array([1, 2, 10])})
    with pytest.raises(DataError, match=r"mnist can't be read .*labels 0\.\.9"):
        load("mnist", tmp_path / "b")
    (tmp_path / "b/mnist" / library.IDX_FILES[3]).unlink()
    with pytest.raises(DataError, match="t10k-labels-idx1-ubyte.gz can't be read"):
        load("mnist", tmp_path / "b")


# ---- CIFAR's archives


def publish(monkeypatch, reader, path, members):
    """Let torchvision take the archive at `path` for the published one."""

    def md5(content):
        return hashlib.md5(content).hexdigest()

    monkeypatch.setattr(reader, "tgz_md5", md5(path.read_bytes()))
    for files in ("train_list", "test_list"):
        names = [name for name, _ in getattr(reader, files)]
        monkeypatch.setattr(reader, files, [(name, md5(members[name])) for name in names])
    meta = reader.meta | {"md5": md5(members[reader.meta["filename"]])}
    monkeypatch.setattr(reader, "meta", meta)


def pickled(members, protocol=2):
    return {name: pickle.dumps(value, protocol=protocol) for name, value in members.items()}


def test_cifar100_archive(tmp_path, monkeypatch):
    made = arrays(shape=(32, 32, 3), classes=100)
    members = pickled(cifar100(made))
    publish(monkeypatch, datasets.CIFAR100, save_tar(tmp_path / CIFAR_100, members), members)
    dataset = load("cifar100", tmp_path)
    assert same(dataset, made) and dataset.classes == library.CLASSES["cifar100"]
    assert len(set(dataset.classes)) == 100 and list(dataset.classes) == sorted(dataset.classes)
    assert [path.name for path in tmp_path.iterdir()] == [CIFAR_100]


def test_cifar10_archive_in_batch_order(tmp_path, monkeypatch):
    made = arrays(shape=(32, 32, 3), train=10)
    members = {"batches.meta": {"label_names": list(library.CLASSES["cifar10"])}}
    members |= {"test_batch": batch(made, "test", "labels")}
    for number in (4, 3, 2, 5, 1):
        part = {
            key: made[key][2 * number - 2 : 2 * number] for key in ("train_images", "train_labels")
        }
        members[f"data_batch_{number}"] = batch(part, "train", "labels")
    members = pickled(members)
    path = save_tar(tmp_path / "cifar-10-python.tar.gz", members, "cifar-10-batches-py")
    publish(monkeypatch, datasets.CIFAR10, path, members)
    assert same(load("cifar10", tmp_path), made)


class Call:
    """Is pickled as the call of a function."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


def test_an_archive_that_is_not_the_published_one_is_not_unpickled(tmp_path):
    mark = tmp_path / "mark"
    foreign = pickle.dumps({"data": Call(Path.touch, mark)})
    members = pickled(cifar100(arrays(shape=(32, 32, 3)))) | {"train": foreign}
    path = save_tar(tmp_path / CIFAR_100, members)
    whole = path.read_bytes()
    for content in (whole, whole[: len(whole) // 2], b"404: Not found", b""):
        path.write_bytes(content)
        with pytest.raises(DataError, match=f"{CIFAR_100} has another MD5 sum than eb9058c3a382"):
            load("cifar100", tmp_path)
        assert not mark.exists() and path.read_bytes() == content
    pickle.loads(foreign)
    assert mark.exists()  # it would have


# ---- downloading


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "cifar100"])
def test_without_network_one_clear_error(tmp_path, monkeypatch, name):
    monkeypatch.setattr(library, "SHIPPED", None)
    folder = tmp_path / "not/yet"
    with pytest.raises(
        DataError, match="no network in tests.*: connect once, or put there.*NNLIB_DATA"
    ) as caught:
        load(name, folder)
    for part in (repr(name), str(folder), f"{name}.npz", *library.ARRAYS):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value) and caught.value.__suppress_context__
    assert not folder.exists()


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A folder of files, and the address under which this machine serves it to itself."""
    monkeypatch.setattr(urllib.request, "urlopen", URLOPEN)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(library, "SHIPPED", None)
    folder = tmp_path / "served"
    folder.mkdir()
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{running.server_port}/"
        running.shutdown()


def test_cifar100_is_downloaded_once_and_kept(tmp_path, monkeypatch, server):
    folder, address = server
    made = arrays(shape=(32, 32, 3), classes=100)
    members = pickled(cifar100(made))
    path = save_tar(folder / CIFAR_100, members)
    monkeypatch.setattr(datasets.CIFAR100, "url", address + CIFAR_100)
    kept = tmp_path / "kept"
    with pytest.raises(DataError, match="or downloaded into it .*corrupted"):
        load("cifar100", kept)
    assert not kept.exists()
    publish(monkeypatch, datasets.CIFAR100, path, members)
    assert same(load("cifar100", kept), made)
    assert [entry.name for entry in kept.iterdir()] == ["cifar100.npz"]
    path.unlink()
    assert same(load("cifar100", kept), made)


def test_mnist_is_downloaded_where_it_is_not_shipped(tmp_path, monkeypatch, server):
    folder, address = server
    made = arrays(shape=(28, 28))
    save_idx(folder / "mnist", made)
    sums = [
        (file, hashlib.md5((folder / "mnist" / file).read_bytes()).hexdigest())
        for file in library.IDX_FILES
    ]
    monkeypatch.setattr(datasets.MNIST, "mirrors", [address + "gone/", address + "mnist/"])
    monkeypatch.setattr(datasets.MNIST, "resources", sums)
    kept = tmp_path / "kept"
    assert same(load("mnist", kept), made)
    assert [entry.name for entry in kept.iterdir()] == ["mnist.npz"]


def test_nothing_half_written_where_there_is_no_room(tmp_path, monkeypatch, server):
    folder, address = server
    save_idx(folder / "mnist", arrays(shape=(28, 28)))
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [address + "mnist/"])
    monkeypatch.setattr(
        datasets.FashionMNIST, "resources", [(file, None) for file in library.IDX_FILES]
    )

    def full(file, **_):
        file.write(b"the first bytes")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(DataError, match="or downloaded into it .*No space left"):
        load("fashion_mnist", tmp_path / "kept")
    assert list((tmp_path / "kept").iterdir()) == []
