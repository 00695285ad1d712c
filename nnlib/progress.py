"""How a training run is kept and gone on with: its last state, its best weights, its log."""

import shutil
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor

from nnlib.checkpoints import LAST, read_checkpoint, read_network, write_checkpoint
from nnlib.files import written_whole
from nnlib.models import ModelError
from nnlib.published import Published
from nnlib.settings import Settings
from nnlib.shards import named, rank, spread, world

BEST, LOG = "best.pt", "log.csv"
SAME = ("arch", "low_dim", "loss", "size", "seed", "batch_size", "iter_size", "epochs")  # or it would be another run


def require_steps(settings: Settings, pictures: int) -> int:
    """Steps in an epoch; the few pictures that are left after whole ones are others each time."""
    steps, wanted = pictures // (settings.batch_size * settings.iter_size), settings.batch_size * settings.iter_size
    if steps == 0:
        raise ValueError(f"batch_size x iter_size is {wanted}, for {pictures} pictures to train on: give that at most")
    if settings.batch_size < 2 * world():
        raise ValueError(f"batch_size={settings.batch_size} for {world()} processes: give 2 pictures for each at least")
    return steps


def prepare(folder: Path) -> None:
    """Make the run's folder, without what a killed run was just writing."""
    if rank() > 0:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"out={str(folder)!r} can't be made a folder ({error.strerror}): give another") from None
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
        with written_whole(run.folder / BEST) as part:
            shutil.copyfile(run.best_at, part)
    run.best_at = run.folder / BEST


def save(run) -> None:
    """Write the run's state and its log; over a sharded bank all processes call it at once."""
    bank = None if run.objective.bank is None else run.objective.bank.embeddings()
    met = {"sums": run.total(), "lost": run.all_lost().tolist(), "unread": named(run.unread)}
    if rank() > 0:
        return
    where = {"epoch": run.epoch, "step": run.step, "best": run.best} | met
    kept = {"learner": run.learner.state_dict(), "optimizer": run.optimizer.state_dict(), "bank": bank}
    told = {"history": run.history, "settings": asdict(run.settings), "labels": run.pictures.train.labels}
    if run.history:  # first, for a run that is killed in between writes it again, and one at its end wouldn't
        lines = [",".join(run.history[0]), *(",".join(map(str, row.values())) for row in run.history)]
        with written_whole(run.folder / LOG) as part:
            part.write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_checkpoint(run.folder, where | kept | told)


def keep_best(run, figure: float) -> None:
    """Keep the weights where no figure was better so far: of equal ones, those that learned longest."""
    if figure >= run.best:
        run.best = figure
        if rank() == 0:
            with written_whole(run.best_at) as part:
                torch.save(run.learner.network.state_dict(), part)


def take_best(run) -> None:
    """Go back to the best epoch's weights, where this run has epochs."""
    spread([])  # the first may be writing them yet
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
    return {key.removeprefix(name): weight for key, weight in learner.items() if key.startswith(name)}


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
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, EOFError, UnpicklingError) as error:
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        raise ModelError(f"resume={str(path)!r} doesn't fit ({cause:.200}): give what a training left") from None


def _require_same(run, found: dict, path: Path) -> None:
    for name in SAME:
        was, given = found["settings"].get(name), getattr(run.settings, name)
        if was != given:
            raise ModelError(f"resume={str(path)!r} was trained with {name}={was!r}, not {given!r}: give the same")
    if not torch.equal(found["labels"], run.pictures.train.labels):
        raise ModelError(
            f"resume={str(path)!r} was trained on other pictures than {run.settings.data!r}: give the same"
        )


def _take(run, found: dict) -> None:
    run.learner.load_state_dict(found["learner"])
    run.optimizer.load_state_dict(found["optimizer"])
    if found["bank"] is not None:
        run.objective.bank.fill(found["bank"])
    run.epoch, run.step, run.best, run.history = (found[name] for name in ("epoch", "step", "best", "history"))
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
        raise ModelError(f"resume={str(path)!r} has weights of another network ({cause}): {wanted}") from None
