"""What a run leaves: written whole or not at all, read without running what a file holds."""

import csv
import json
import warnings
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nnlib._common.files import atomic_write
from nnlib.errors import ModelError
from nnlib.training.encoders import Embedding
from nnlib.training.snca_checkpoint import load_snca

FORMAT = "nnlib.training.1"
LAST = "last.pt"
LOG = "log.csv"
WEIGHTS = "weights.safetensors"
FEATURES = "features.safetensors"


class Trained(NamedTuple):
    """A network, and the unit features [N, D] of its training pictures, with labels and files."""

    network: Embedding
    features: Float[Tensor, "N D"]
    labels: Int64[Tensor, " N"]
    classes: tuple[str, ...]
    files: tuple[str, ...]


def prepare_folder(folder: Path, resume: str | None) -> None:
    """Make a run's folder, without what a killed run was just writing; None only tests."""
    last = folder / LAST
    if last.exists() and resume not in (None, "auto"):
        own = (folder.resolve(), last.resolve())
        if not resume or Path(resume).resolve() not in own:
            advice = "give resume='auto' to go on with it, or another out"
            raise ValueError(f"out={str(folder)!r} has a run in it: {advice}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = f"out={str(folder)!r} can't be made a folder ({error.strerror})"
        raise OSError(f"{problem}: give another") from None
    for part in folder.glob(".*.part"):
        part.unlink(missing_ok=True)


def write_checkpoint(folder: Path, state: dict) -> None:
    """Write the history of a run to the folder's log.csv, then its state to last.pt."""
    history = state["history"]
    if history:
        with atomic_write(folder / LOG) as part, part.open("w", newline="") as file:
            table = csv.DictWriter(file, history[0])
            table.writeheader()
            table.writerows(history)
    with atomic_write(folder / LAST) as part:
        torch.save({"format": FORMAT} | state, part)


def read_any(path: Path) -> dict:
    """Return the state of a run, or other "best_weights", perhaps with their "arch" and "bank"."""
    last = path / LAST if path.is_dir() else path
    if path.suffix == ".safetensors" or not (last.is_file() or path == last):
        return {"best_weights": read_network(path).state_dict()}
    if not last.is_file():
        raise ModelError(f"path={str(last)!r} is no file: give a checkpoint ({LAST}) or its folder")
    try:
        with warnings.catch_warnings(action="ignore"):  # on pickles that torch then refuses
            state = torch.load(last, map_location="cpu", weights_only=True)
        version = state["format"]
    except Exception:  # not ours: perhaps the published form, a pickle to be read with care
        state = load_snca(last)
        weights = {f"backbone.{name}": weight for name, weight in state["weights"].items()}
        return state | {"best_weights": weights}
    if version != FORMAT:
        problem = f"has the format {version!r}, not {FORMAT!r}"
        raise ModelError(f"path={str(last)!r} {problem}: read it by the version that wrote it")
    if "best_weights" not in state:  # once they were in a file of their own
        best = last.with_name("best.pt")
        state["best_weights"] = torch.load(best, weights_only=True) if best.is_file() else None
        state["best"] = state["best"] if best.is_file() else -1.0
    return state


def write_trained(folder: Path, trained: Trained) -> None:
    """Write the network to weights.safetensors, and the rest to features.safetensors."""
    network = trained.network
    settings = {name: getattr(network, name) for name in ("arch", "low_dim", "channels", "size")}
    weights = {name: tensor.contiguous().cpu() for name, tensor in network.state_dict().items()}
    with atomic_write(folder / WEIGHTS) as part:
        save_file(weights, part, {"format": FORMAT, "network": json.dumps(settings)})
    rows = {"features": trained.features, "labels": trained.labels}
    names = {"classes": json.dumps(trained.classes), "files": json.dumps(trained.files)}
    with atomic_write(folder / FEATURES) as part:
        save_file(rows, part, {"format": FORMAT} | names)


def read_network(path: str | Path) -> Embedding:
    """Return the network in a weights.safetensors, or in the folder that has one."""
    path = Path(path) / WEIGHTS if Path(path).is_dir() else Path(path)
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise ValueError(f"its format is {header.get('format')!r}, not {FORMAT!r}")
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        network = Embedding(**json.loads(header["network"]))
        network.load_state_dict(weights)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        wanted = f"give what a training left, its folder or {WEIGHTS}"
        raise ModelError(f"path={str(path)!r} can't be read ({cause}): {wanted}") from None
    return network.eval()
