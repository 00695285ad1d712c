"""Encoders that the scalable-NCA work published, read without running what their files hold.

Each is a pickle of a whole module: here all classes and functions but tensors' own become inert.
"""

import pickle
import tarfile
import warnings
from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor

from nnlib.errors import ModelError

KNOWN = ("resnet18", "resnet34", "resnet50")


def load_snca(path: str | Path) -> dict:
    """Read snca_resnet18.pth.tar, or one of its kin: its "arch", "weights" and "bank".

    The bank holds the training images' embeddings [N, D] in their order, None without a
    `lemniscate`. Raises ModelError for a file that is missing, truncated or foreign.
    """
    try:
        _refuse_programs(path)
        with warnings.catch_warnings(action="ignore"):  # the source of the module has changed
            state = torch.load(
                path, "cpu", pickle_module=_RestrictedPickle, weights_only=False, encoding="latin1"
            )
        return _parse(state)
    except Exception as error:  # a foreign file can fail in any way that its reader knows
        cause = " ".join(f"{type(error).__name__}: {error}".split()).strip(": ")
        problem = f"path={str(path)!r} can't be read as a published checkpoint ({cause})"
        raise ModelError(f"{problem}: give a whole file as scalable NCA published it") from None


def _refuse_programs(path: str | Path) -> None:
    """Refuse TorchScript, which torch.load would run; asks the reader that torch.load asks."""
    _check(not tarfile.is_tarfile(path), "it is a tar archive, which torch.load would unpack")
    with open(path, "rb") as file:
        begins = file.read(4)
    if begins == b"PK\x03\x04":
        records = torch._C.PyTorchFileReader(str(path)).get_all_records()
        _check("constants.pkl" not in records, "it is a TorchScript archive, which is a program")


def _check(holds, problem: str) -> None:
    if not holds:
        raise pickle.UnpicklingError(problem)


def _parse(state) -> dict:
    _check(isinstance(state, dict), "it holds no dict")
    arch = state.get("arch")
    _check(arch in KNOWN, f"its arch is {arch!r:.40}, not one of {', '.join(KNOWN)}")
    tensors = state.get("state_dict")
    _check(isinstance(tensors, dict) and tensors, "it has no state_dict")
    for name, tensor in tensors.items():
        _check(isinstance(tensor, Tensor), f"{name!r:.60} is no tensor of a known type")
    weights = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    _check(len(weights) == len(tensors), "it names a weight both with and without 'module.'")
    lemniscate = state.get("lemniscate")
    bank = None if lemniscate is None else _find_bank(lemniscate, weights)
    return {"arch": arch, "weights": weights, "bank": bank}


def _find_bank(lemniscate, weights) -> Tensor:
    bank = getattr(lemniscate, "state", {}).get("_buffers", {}).get("memory")
    _check(isinstance(bank, Tensor), "the lemniscate's memory is no tensor")
    width = len(weights["fc.weight"]) if "fc.weight" in weights else "D"
    fits = bank.ndim == 2 and bank.is_floating_point() and width in ("D", bank.shape[1])
    _check(fits, f"its bank is of {bank.dtype} {list(bank.shape)}, not of floats [N, {width}]")
    return bank


class _Inert:
    """Stands for any class, function and object: keeps its state, and does nothing."""

    dump_patches = False  # torch.load asks a module's class for it

    def __init__(self, *_, **__):
        pass

    def __setstate__(self, state):
        self.state = state

    append = extend = add = __setitem__ = __init__


class _RestrictedPickle:
    """What torch.load takes for the pickle module."""

    class Unpickler(pickle._Unpickler):  # C's makes room for as many notes as a file claims
        def find_class(self, module, name):
            """Return a new object each time, for a pickle can change what it finds."""
            if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
                return lambda *args: torch._utils._rebuild_tensor(*args[:4])
            return OrderedDict if (module, name) == ("collections", "OrderedDict") else _Inert

    @classmethod
    def load(cls, file, **options):
        return cls.Unpickler(file, **options).load()
