"""Encoders that the scalable-NCA work published, read from its checkpoints without running what they hold.

Such a checkpoint is a pickle with a whole module in it: torch.load refuses the file, or calls whatever it names. Here
it yields numbers, text, containers and tensors; in the place of any other class or function stands an inert one.
"""

import io
import math
import pickle
import struct
import zipfile
from collections import namedtuple
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from nnlib.errors import ModelError

ARCHES = ("resnet18", "resnet34", "resnet50")
HEAD = [
    0x1950A86A20F9469CFC6C,
    1001,
]  # torch.save's older form begins with its mark and its version
DTYPES = dict(DoubleStorage=torch.float64, FloatStorage=torch.float32, HalfStorage=torch.float16)
DTYPES |= dict(LongStorage=torch.int64, IntStorage=torch.int32, ByteStorage=torch.uint8)


class Published(NamedTuple):
    """A published encoder: its weights under torchvision's names, the bank [N, D], its best top-1 on ImageNet."""

    arch: str
    epoch: int
    weights: dict[str, Tensor]
    bank: Tensor | None
    best_top1: float | None


def load_snca(path: str | Path) -> Published:
    """Read snca_resnet18.pth.tar, or one of its kin, onto the CPU.

    bank: the training images' embeddings [N, D] in their order, None where the file has no `lemniscate`.
    Raises ModelError, naming the file and what is wrong with it, for one that is missing, truncated or foreign.
    Source: Wu, Efros & Yu, "Improving Generalization via Scalable Neighborhood Component Analysis", ECCV 2018.
    """
    try:
        with open(path, "rb") as file:
            read = _from_zip if file.peek(4)[:4] == b"PK\x03\x04" else _from_pickles
            return _published(*read(file, Path(path).stat().st_size))
    except Exception as error:  # a foreign file can fail in any way that its reader knows
        cause = " ".join(f"{type(error).__name__}: {error}".split()).strip(": ")
        wanted = (
            "give a whole file as scalable NCA published it, a dict with arch, epoch and state_dict"
        )
        raise ModelError(
            f"path={str(path)!r} can't be read as a published checkpoint ({cause}): {wanted}"
        ) from None


def _require(holds: bool, found: str) -> None:
    if not holds:
        raise pickle.UnpicklingError(found)


def _published(found, storages: dict[str, Tensor]) -> Published:
    _require(isinstance(found, dict), "it holds no dict")
    arch, epoch, state, lemniscate, best = map(
        found.get, ("arch", "epoch", "state_dict", "lemniscate", "best_prec1")
    )
    _require(isinstance(state, dict) and len(state) > 0, "it has no state_dict")
    told = repr(arch[:40]) if isinstance(arch, str) else f"of type {type(arch).__name__}"
    _require(
        isinstance(arch, str) and arch in ARCHES,
        f"its arch is {told}, not one of {', '.join(ARCHES)}",
    )
    _require(type(epoch) is int and epoch >= 0, "its epoch is no whole number")
    weights = {
        name.removeprefix("module."): _tensor(value, storages, name)
        for name, value in state.items()
    }
    _require(len(weights) == len(state), "it names a weight both with and without 'module.'")
    best = _tensor(best, storages, "best_prec1") if isinstance(best, _Claim) else best
    best = float(best) if isinstance(best, float | int | Tensor) else None
    return Published(
        arch,
        epoch,
        weights,
        None if lemniscate is None else _bank(lemniscate, weights, storages),
        best,
    )


def _bank(lemniscate, weights: dict[str, Tensor], storages: dict[str, Tensor]) -> Tensor:
    kept = getattr(lemniscate, "state", None)
    buffers = kept.get("_buffers") if isinstance(kept, dict) else None
    bank = _tensor(
        buffers.get("memory") if isinstance(buffers, dict) else None,
        storages,
        "the lemniscate's memory",
    )
    width = len(weights["fc.weight"]) if "fc.weight" in weights else "D"
    fits = bank.ndim == 2 and bank.is_floating_point() and width in ("D", bank.shape[1])
    _require(fits, f"its bank is of {bank.dtype} {list(bank.shape)}, not of floats [N, {width}]")
    return bank


def _tensor(claim, storages: dict[str, Tensor], name: str) -> Tensor:
    _require(isinstance(claim, _Claim), f"{name!r:.60} is no tensor of a known type")
    return storages[claim.key].as_strided(claim.size, claim.stride, claim.offset)


def _from_pickles(file, size: int):
    """The older form: pickles one after the other, then each storage's length and bytes."""
    heads = [
        _Reader(file).load() for _ in range(3)
    ]  # the third sizes C's types, and storages don't depend on it
    _require(heads[:2] == HEAD, "it doesn't begin as torch.save's files do")
    reader, storages = _Reader(file), {}
    found, keys = reader.load(), _Reader(file).load()
    _require(
        sorted(keys) == sorted(reader.claims), "it lists other storages than its tensors lie in"
    )
    for key in keys:
        _require(
            file.read(8) == struct.pack("<q", reader.claims[key].numel),
            "it ends early, or not as told",
        )
        storages[key] = _filled(reader.claims[key], file, size - file.tell())
    return found, storages


def _from_zip(file, size: int):
    """The form since torch 1.6: an archive of a pickle and a file for each storage, none of them compressed."""
    with zipfile.ZipFile(file) as archive:
        sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
        _require(
            sum(sizes.values()) <= size,
            "it unpacks to more than it is, which torch.save's files don't",
        )
        root = next(
            (name for name in sizes if name.endswith("/data.pkl")), "/data.pkl"
        ).removesuffix("data.pkl")
        _require(
            f"{root}constants.pkl" not in sizes, "it is a TorchScript archive, which is a program"
        )
        little = all(
            archive.read(name) == b"little" for name in sizes if name == f"{root}byteorder"
        )
        _require(little, "its numbers are big-endian")
        reader = _Reader(io.BytesIO(archive.read(f"{root}data.pkl")))
        found, files = reader.load(), {key: f"{root}data/{key}" for key in reader.claims}
        return found, {
            key: _filled(reader.claims[key], archive.open(name), sizes[name])
            for key, name in files.items()
        }


_Claim = namedtuple(
    "_Claim", "key dtype numel offset size stride"
)  # a tensor or a storage, before it has bytes


def _part(storage, offset, size, stride, *_) -> _Claim:
    """A tensor within its storage: torch would lengthen the storage for a larger one, or read beyond it."""
    whole = (
        all(type(number) is int and number >= 0 for number in (offset, *size, *stride))
        and len(size) <= 8
    )
    _require(whole and isinstance(storage, _Claim), "it has a tensor without a storage or a size")
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    _require(
        max(last + 1, math.prod(size)) <= storage.numel, "it has a tensor larger than its storage"
    )
    return storage._replace(offset=offset, size=size, stride=stride)


def _filled(claim: _Claim, file, room: int) -> Tensor:
    length = claim.numel * claim.dtype.itemsize
    _require(length <= room, f"it claims {claim.numel} numbers where it has {room} bytes")
    raw = torch.empty(length, dtype=torch.uint8)
    _require(file.readinto(raw.numpy()) == length, "it ends early")
    return raw.view(claim.dtype)


class _Inert(dict):
    """Stands for any class, function and object: keeps what it is given, and does nothing."""

    def __init__(self, told=(), *_, **__):
        for pair in told if type(told) is list else ():  # an OrderedDict, as Python 2 wrote it
            if type(pair) is list and len(pair) == 2:
                self[pair[0]] = pair[1]

    def __setitem__(
        self, key, value
    ):  # the hash of a tuple in a tuple in a tuple can exhaust the stack
        _require(
            type(key) in (str, int), "it has a dict whose keys are neither text nor whole numbers"
        )
        super().__setitem__(key, value)

    def __setstate__(self, state):
        self.state = state

    append = extend = add = lambda *_: None


class _Reader(pickle._Unpickler):
    """Imports and calls nothing that a pickle names. Not C's, which makes room for as many notes as a file says."""

    dispatch = pickle._Unpickler.dispatch.copy()
    dispatch |= {
        code[0]: lambda self: self.append(_Inert())
        for code in (pickle.EMPTY_DICT, pickle.EMPTY_SET)
    }
    for code in (
        pickle.EXT1,
        pickle.EXT2,
        pickle.EXT4,
        pickle.BYTEARRAY8,
        pickle.DICT,
        pickle.FROZENSET,
    ):
        # they find objects without find_class, claim memory, or hash what they hold
        dispatch[code[0]] = lambda _: _require(False, "it takes a step that no checkpoint needs")

    def __init__(self, file):
        super().__init__(file, encoding="latin1")
        self.claims = {}

    def find_class(self, module, name):
        if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            return lambda *told: _part(
                *told
            )  # a new one each time, for a pickle can change what it is given
        return DTYPES.get(name, _Inert) if module in ("torch", "torch.cuda") else _Inert

    def persistent_load(self, found):
        """A claim of a storage, by its type, key and length; nothing is allocated for it yet."""
        kind, *told = found
        if (
            kind == "module"
        ):  # a class with its source, which torch would compare with the one at hand
            return told[0]
        dtype, key, _, numel, *view = told
        plain = (
            isinstance(dtype, torch.dtype)
            and type(key) is str
            and type(numel) is int
            and numel >= 0
        )
        _require(
            kind == "storage" and plain and not any(view),
            "it has a storage of a kind not known here",
        )
        claim = _Claim(key, dtype, numel, 0, (numel,), (1,))
        _require(self.claims.setdefault(key, claim) == claim, "it tells two things of one storage")
        return claim
