"""What a training leaves: a checkpoint to go on from, and a network with the features of all its training pictures.

Both are written whole or not at all, and read without running anything that a file holds.

How a training run is kept and gone on with: its last state, its best weights, its log.
"""

import json
import shutil
import warnings
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from pickle import UnpicklingError
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nnlib._common.files import atomic_write
from nnlib.errors import ModelError
from nnlib.nca.distributed import broadcast, rank, world_size
from nnlib.training.processes import all_gather_names as all_gather_objects
from nnlib.training.config import TrainingConfig
from nnlib.training.encoders import Embedding
from nnlib.training.snca_checkpoint import Published, load_snca

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
    with atomic_write(folder / LAST) as part:
        torch.save({"format": FORMAT} | state, part)


def read_checkpoint(path: str | Path) -> dict | Published:
    """What `write_checkpoint` wrote, from its file or folder, or a checkpoint as the scalable-NCA work published it.

    Raises ModelError, naming the file, for one that is missing, truncated or foreign; nothing in it is run.
    """
    path = Path(path) / LAST if Path(path).is_dir() else Path(path)
    if not path.is_file():
        raise ModelError(
            f"path={str(path)!r} is no file: give a checkpoint ({LAST}), or the folder that has one"
        )
    try:
        with warnings.catch_warnings(
            action="ignore"
        ):  # torch's remarks on pickles that it then refuses
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # not what we wrote: perhaps the published form, which is a pickle that has to be read with care
        return load_snca(path)
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        return load_snca(path)
    return found


def write_trained(folder: str | Path, trained: Trained) -> None:
    """Write weights.safetensors, the network, and features.safetensors, those of all its training pictures."""
    network, folder = trained.network, Path(folder)
    made = {
        "arch": network.arch,
        "low_dim": network.low_dim,
        "channels": network.channels,
        "size": network.size,
    }
    weights = {name: tensor.contiguous().cpu() for name, tensor in network.state_dict().items()}
    with atomic_write(folder / WEIGHTS) as part:
        save_file(weights, part, {"format": FORMAT, "network": json.dumps(made)})
    rows = {
        "features": trained.features.contiguous().cpu(),
        "labels": trained.labels.contiguous().cpu(),
    }
    names = {"classes": json.dumps(trained.classes), "files": json.dumps(trained.files)}
    with atomic_write(folder / FEATURES) as part:
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
    return ModelError(
        f"path={str(path)!r} can't be read ({cause}): give what a training left, its folder or {WEIGHTS}"
    )


BEST, LOG = "best.pt", "log.csv"
SAME = (
    "arch",
    "low_dim",
    "loss",
    "size",
    "seed",
    "batch_size",
    "iter_size",
    "epochs",
)  # or it would be another run


def require_steps(settings: TrainingConfig, pictures: int) -> int:
    """Steps in an epoch; the few pictures that are left after whole ones are others each time."""
    steps, wanted = (
        pictures // (settings.batch_size * settings.iter_size),
        settings.batch_size * settings.iter_size,
    )
    if steps == 0:
        raise ValueError(
            f"batch_size x iter_size is {wanted}, for {pictures} pictures to train on: give that at most"
        )
    if settings.batch_size < 2 * world_size():
        raise ValueError(
            f"batch_size={settings.batch_size} for {world_size()} processes: give 2 pictures for each at least"
        )
    return steps


def prepare(folder: Path) -> None:
    """Make the run's folder, without what a killed run was just writing."""
    if rank() > 0:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"out={str(folder)!r} can't be made a folder ({error.strerror}): give another"
        ) from None
    for part in folder.glob(".*.part"):
        part.unlink(missing_ok=True)


def begin(run) -> None:
    """Raise ValueError where training would write over another run; take over the best weights of the one resumed."""
    given, last = run.settings.resume, run.folder / LAST
    own = given == "auto" or Path(given).resolve() in (run.folder.resolve(), last.resolve())
    if last.exists() and not (given and own):
        raise ValueError(
            f"out={str(run.folder)!r} has a run in it: give resume='auto' to go on with it, or another out"
        )
    if not run.best_at.is_file():
        run.best = -1.0
    elif run.best_at.resolve() != (run.folder / BEST).resolve() and rank() == 0:
        with atomic_write(run.folder / BEST) as part:
            shutil.copyfile(run.best_at, part)
    run.best_at = run.folder / BEST


def save(run) -> None:
    """Write the run's state and its log; over a sharded bank all processes call it at once."""
    bank = None if run.objective.bank is None else run.objective.bank.embeddings()
    met = {
        "sums": run.total(),
        "lost": run.all_lost().tolist(),
        "unread": all_gather_objects(run.unread),
    }
    if rank() > 0:
        return
    where = {"epoch": run.epoch, "step": run.step, "best": run.best} | met
    kept = {
        "learner": run.learner.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "bank": bank,
    }
    told = {
        "history": run.history,
        "settings": asdict(run.settings),
        "labels": run.pictures.train.labels,
    }
    if (
        run.history
    ):  # first, for a run that is killed in between writes it again, and one at its end wouldn't
        lines = [
            ",".join(run.history[0]),
            *(",".join(map(str, row.values())) for row in run.history),
        ]
        with atomic_write(run.folder / LOG) as part:
            part.write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_checkpoint(run.folder, where | kept | told)


def keep_best(run, figure: float) -> None:
    """Keep the weights where no figure was better so far: of equal ones, those that learned longest."""
    if figure >= run.best:
        run.best = figure
        if rank() == 0:
            with atomic_write(run.best_at) as part:
                torch.save(run.learner.network.state_dict(), part)


def take_best(run) -> None:
    """Go back to the best epoch's weights, where this run has epochs."""
    broadcast([])  # the first may be writing them yet
    if run.history and run.best_at.is_file():
        weights = torch.load(run.best_at, map_location=run.device, weights_only=True)
        run.learner.network.load_state_dict(weights)


def resume(run) -> None:
    """Start where settings.resume says: "auto" is the run's own folder, "" anew."""
    given = run.settings.resume
    path = run.folder if given == "auto" else Path(given)
    if not given or (given == "auto" and not (path / LAST).exists()):
        return
    network = path.suffix == ".safetensors" or (path.is_dir() and not (path / LAST).exists())
    try:
        found = read_network(path).state_dict() if network else read_checkpoint(path)
    except ModelError as error:
        raise ModelError(f"resume={given!r}: {error}") from None
    if network:
        _load(run, found, path)
    elif run.only_tests and not isinstance(found, Published):
        with _fitting(path):
            _load(run, _best_of(run, found, path), path)
    elif isinstance(found, Published):
        _start_from(run, found, path)
    else:
        _go_on(run, found, path)


def _best_of(run, found: dict, path: Path) -> dict[str, Tensor]:
    """The best epoch's weights of the network, those of the last where none are beside the checkpoint."""
    best = (path if path.is_dir() else path.parent) / BEST
    if best.is_file():
        return torch.load(best, map_location=run.device, weights_only=True)
    learner, name = found["learner"], "network."
    return {
        key.removeprefix(name): weight for key, weight in learner.items() if key.startswith(name)
    }


def _go_on(run, found: dict, path: Path) -> None:
    with _fitting(path):
        _require_same(run, found, path)
        _take(run, found)
    run.best_at = (path if path.is_dir() else path.parent) / BEST


@contextmanager
def _fitting(path: Path):
    """Say that a checkpoint doesn't fit, whatever it lacks."""
    try:
        yield
    except ModelError:
        raise
    except (
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
        RuntimeError,
        EOFError,
        UnpicklingError,
    ) as error:
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        raise ModelError(
            f"resume={str(path)!r} doesn't fit ({cause:.200}): give what a training left"
        ) from None


def _require_same(run, found: dict, path: Path) -> None:
    for name in SAME:
        was, given = found["settings"].get(name), getattr(run.settings, name)
        if was != given:
            raise ModelError(
                f"resume={str(path)!r} was trained with {name}={was!r}, not {given!r}: give the same"
            )
    if not torch.equal(found["labels"], run.pictures.train.labels):
        raise ModelError(
            f"resume={str(path)!r} was trained on other pictures than {run.settings.data!r}: give the same"
        )


def _take(run, found: dict) -> None:
    run.learner.load_state_dict(found["learner"])
    run.optimizer.load_state_dict(found["optimizer"])
    if found["bank"] is not None:
        run.objective.bank.fill(found["bank"])
    run.epoch, run.step, run.best, run.history = (
        found[name] for name in ("epoch", "step", "best", "history")
    )
    run.sums = found["sums"] if rank() == 0 else [0.0, 0]  # they are of all processes
    run.unread, run.lost = dict.fromkeys(found["unread"]), set(found["lost"])


def _start_from(run, found: Published, path: Path) -> None:
    if found.arch != run.settings.arch:
        wanted = f"not {run.settings.arch}: give arch={found.arch!r}"
        raise ModelError(f"resume={str(path)!r} has the architecture {found.arch}, {wanted}")
    _load(run, {f"backbone.{name}": tensor for name, tensor in found.weights.items()}, path)
    bank = run.objective.bank
    if bank is not None and found.bank is not None and found.bank.shape == (len(bank), bank.dim):
        bank.fill(found.bank)


def _load(run, weights: dict[str, Tensor], path: Path) -> None:
    try:
        run.learner.network.load_state_dict(weights)
    except RuntimeError as error:
        cause = str(error).splitlines()[-1].strip()
        wanted = "give the arch, low_dim and size that it was trained with"
        raise ModelError(
            f"resume={str(path)!r} has weights of another network ({cause}): {wanted}"
        ) from None
