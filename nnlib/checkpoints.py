"""What a training leaves: a checkpoint to go on from, and a network with the features of all its training pictures.

Both are written whole or not at all, and read without running anything that a file holds.
"""

import json
import warnings
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nnlib.files import written_whole
from nnlib.models import ModelError
from nnlib.networks import Embedding
from nnlib.published import Published, read_published

FORMAT = "nnlib.training.1"
LAST, WEIGHTS, FEATURES = "last.pt", "weights.safetensors", "features.safetensors"


class Trained(NamedTuple):
    """A network, and the unit features [N, D] of its training pictures, with labels [N] and files."""

    network: Embedding
    features: Float[Tensor, "N D"]
    labels: Int64[Tensor, " N"]
    classes: tuple[str, ...]
    files: tuple[str, ...]


def write_checkpoint(folder: Path, state: dict) -> None:
    """Write tensors, numbers, texts and containers of them to the folder's last.pt."""
    with written_whole(folder / LAST) as part:
        torch.save({"format": FORMAT} | state, part)


def read_checkpoint(path: str | Path) -> dict | Published:
    """What `write_checkpoint` wrote, from its file or folder, or a checkpoint as the scalable-NCA work published it.

    Raises ModelError, naming the file, for one that is missing, truncated or foreign; nothing in it is run.
    """
    path = Path(path) / LAST if Path(path).is_dir() else Path(path)
    if not path.is_file():
        raise ModelError(f"path={str(path)!r} is no file: give a checkpoint ({LAST}), or the folder that has one")
    try:
        with warnings.catch_warnings(action="ignore"):  # torch's remarks on pickles that it then refuses
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # not what we wrote: perhaps the published form, which is a pickle that has to be read with care
        return read_published(path)
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        return read_published(path)
    return found


def write_trained(folder: str | Path, trained: Trained) -> None:
    """Write weights.safetensors, the network, and features.safetensors, those of all its training pictures."""
    network, folder = trained.network, Path(folder)
    made = {"arch": network.arch, "low_dim": network.low_dim, "channels": network.channels, "size": network.size}
    weights = {name: tensor.contiguous().cpu() for name, tensor in network.state_dict().items()}
    with written_whole(folder / WEIGHTS) as part:
        save_file(weights, part, {"format": FORMAT, "network": json.dumps(made)})
    rows = {"features": trained.features.contiguous().cpu(), "labels": trained.labels.contiguous().cpu()}
    names = {"classes": json.dumps(trained.classes), "files": json.dumps(trained.files)}
    with written_whole(folder / FEATURES) as part:
        save_file(rows, part, {"format": FORMAT} | names)


def read_network(path: str | Path) -> Embedding:
    """The network in a weights.safetensors, or in the folder that has one. Raises ModelError for another file."""
    tensors, header = _opened(path, WEIGHTS)
    try:
        network = Embedding(**json.loads(header["network"]))
        network.load_state_dict(tensors)
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise _foreign(path, error) from None
    return network.eval()


def read_trained(folder: str | Path) -> Trained:
    """What `write_trained` wrote. Raises ModelError for another folder."""
    tensors, header = _opened(folder, FEATURES)
    try:
        names = (tuple(json.loads(header[name])) for name in ("classes", "files"))
        return Trained(read_network(folder), tensors["features"], tensors["labels"], *names)
    except (ValueError, KeyError, TypeError) as error:
        raise _foreign(folder, error) from None


def _opened(path: str | Path, name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    path = Path(path) / name if Path(path).is_dir() else Path(path)
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise ValueError(f"its format is {header.get('format')!r}, not {FORMAT!r}")
            return {key: file.get_tensor(key) for key in file.keys()}, header  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise _foreign(path, error) from None


def _foreign(path, error: Exception) -> ModelError:
    cause = " ".join(f"{type(error).__name__}: {error}".split())
    return ModelError(f"path={str(path)!r} can't be read ({cause}): give what a training left, its folder or {WEIGHTS}")
