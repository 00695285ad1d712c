"""Training an embedding: all that is drawn follows from the seed, the epoch and the picture."""

import math
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm.auto import tqdm

from nnlib._common.runtime import resolve_device, torch_defaults
from nnlib.errors import DataError, ModelError
from nnlib.nca import distributed, embed, knn_accuracy
from nnlib.training import checkpoints
from nnlib.training.checkpoints import LAST, Trained
from nnlib.training.config import TrainingConfig
from nnlib.training.encoders import Embedding
from nnlib.training.image_data import Batch, Pictures, epoch_batches, open_pictures
from nnlib.training.objectives import Learner, Objective
from nnlib.training.processes import all_gather_unique, process_group

FIXED = ("arch", "low_dim", "loss", "size", "seed", "batch_size", "iter_size", "epochs")
PROGRESS = ("epoch", "step", "best", "best_weights", "history")


class Result(NamedTuple):
    """A run's epochs; its test figures; what it learned; the pictures that couldn't be read."""

    history: list[dict]
    test: dict[str, float]
    trained: Trained
    unread: list[str]


@torch_defaults(gradients=True)
def train(settings: TrainingConfig) -> Result:
    """Train, choose the epoch on validation pictures, and look at the test pictures once.

    Parameters
    ----------
    settings : what to train on, and how; its folder() is left with last.pt, from which
        resume="auto" goes on, log.csv, weights.safetensors and features.safetensors

    Examples
    --------
    >>> import tempfile; from PIL import Image
    >>> folder = tempfile.mkdtemp()
    >>> for number in range(20):
    ...     path = Path(folder, "data", "ab"[number % 2], f"{number}.png")
    ...     path.parent.mkdir(parents=True, exist_ok=True)
    ...     Image.new("L", (8, 8), 255 * (number % 2)).save(path)
    >>> how = dict(size=8, batch_size=8, epochs=1, validation=0, progress=False)
    >>> train(TrainingConfig(f"{folder}/data", f"{folder}/run", "small", **how)).test["knn_top1"]
    1.0
    """
    with process_group(settings.device):
        return Trainer(settings.check()).fit().test()


@torch_defaults(gradients=True)
def evaluate(settings: TrainingConfig) -> Result:
    """Only test what settings.resume names, against a gallery that is embedded anew."""
    with process_group(settings.device):
        return Trainer(settings.check(), only_tests=True).test()


class Trainer:
    """A run in progress; `epoch` and `step` say where it is."""

    def __init__(self, settings: TrainingConfig, only_tests: bool = False):
        self.settings = settings
        self.folder = settings.folder()
        shared = distributed.world_size() > 1  # then each process has a GPU, whatever its number
        self.device = resolve_device(settings.device.split(":")[0] if shared else settings.device)
        self.pictures = open_pictures(*settings.of_pictures())
        self.epoch = 0
        self.step = 0
        self.sums = [0.0, 0]  # of the epoch's losses, and their number
        self.history: list[dict] = []
        self.best = -1.0
        self.best_weights: dict[str, Tensor] | None = None
        self.unread: dict[str, None] = {}  # names, in the order in which they were met
        self.unread_numbers: set[int] = set()  # among the training pictures
        self.steps = 0 if only_tests else settings.count_steps(len(self.pictures.train))
        self._make_learner()
        self._resume(only_tests)
        checkpoints.prepare_folder(self.folder, None if only_tests else settings.resume)
        self.parallel: nn.Module = self.learner
        if shared:
            self.parallel = DistributedDataParallel(self.learner)

    def _make_learner(self) -> None:
        s = self.settings
        pictures = self.pictures.train
        form = (s.arch, s.low_dim, pictures.channels, pictures.size)
        network = Embedding(*form, s.pretrained, s.seed)
        layout = torch.contiguous_format if self.device.type == "mps" else torch.channels_last
        classes = len(pictures.classes) if s.loss == "softmax" else None
        self.learner = Learner(network, classes, s.seed).to(self.device, memory_format=layout)
        self.objective = Objective(pictures.labels, s).to(self.device)
        self.bank = self.objective.bank
        self.optimizer = torch.optim.SGD(
            self.learner.parameters(), s.lr, s.momentum, 0, s.weight_decay, s.momentum > 0
        )

    def fit(self) -> "Trainer":
        """Train the epochs that are left; validate and save each."""
        s = self.settings
        if s.loss == "instance" and self.epoch == self.step == 0:
            features, _, index = self._embed(self.pictures.train)
            self.bank.update(index, features, 0.0)  # random rows teach nothing without labels
        while self.epoch < s.epochs:
            started = perf_counter()
            self._train_epoch()
            total, count = self._total_loss()
            row = {"epoch": self.epoch, "lr": s.lr_at(self.epoch), "loss": total / count}
            row |= {f"validation_{name}": value for name, value in self._validate().items()}
            self.history.append(row | {"seconds": round(perf_counter() - started, 3)})
            figure = row.get("validation_knn_top1", float(self.epoch))
            if figure >= self.best:  # of equal epochs the last, which learned longest
                weights = self.learner.network.state_dict()
                self.best = figure
                self.best_weights = {name: each.cpu().clone() for name, each in weights.items()}
            self.epoch += 1
            self.step = 0
            self.sums = [0.0, 0]
            self.save()
        return self

    def test(self) -> Result:
        """Test the best epoch's weights, all training pictures being neighbors."""
        if self.best_weights is not None:
            self.learner.network.load_state_dict(self.best_weights)
        gallery = self.pictures.gallery
        rows = self._embed(gallery)
        figures = self._accuracy(self.pictures.test, *rows[:2])
        gathered = [torch.cat(distributed.all_gather_rows(part)).cpu() for part in rows]
        features, labels, index = gathered
        files = tuple(str(gallery.files[number]) for number in index.tolist())
        trained = Trained(self.learner.network.eval(), features, labels, gallery.classes, files)
        if distributed.rank() == 0:
            checkpoints.write_trained(self.folder, trained)
        return Result(self.history, figures, trained, all_gather_unique(self.unread))

    def _train_epoch(self) -> None:
        s = self.settings
        self.learner.train()
        stream = epoch_batches(self.pictures.train, self.steps, self.epoch, self.step, s)
        shown = {"desc": f"epoch {self.epoch}", "leave": False, "initial": self.step}
        hidden = distributed.rank() > 0 or not s.progress
        with tqdm(total=self.steps, disable=hidden, **shown) as bar:
            while self.step < self.steps:
                self._train_step(stream)
                self.step += 1
                bar.set_postfix(loss=f"{self.sums[0] / self.sums[1]:.3f}", refresh=False)
                bar.update()
                if s.save_steps and self.step % s.save_steps == 0 and self.step < self.steps:
                    self.save()
        distributed.broadcast(self.learner.buffers())  # or running means would differ
        if self.bank is not None:
            numbers = all_gather_unique(self.unread_numbers)
            self.bank.clear(torch.tensor(numbers, dtype=torch.int64, device=self.device))

    def _train_step(self, stream) -> None:
        s = self.settings
        updates = []
        for micro in range(s.iter_size):
            is_last = micro == s.iter_size - 1  # processes share gradients once a step
            self.parallel.require_backward_grad_sync = is_last
            updates.append(self._backward(next(stream)))
        for group in self.optimizer.param_groups:
            group["lr"] = s.lr_at(self.epoch + self.step / self.steps)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.bank is not None:
            for index, features in updates:
                self.bank.update(index, features, s.bank_momentum_at(self.epoch))

    def _backward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        s = self.settings
        self._note_unread(batch)
        self.unread_numbers |= batch.unread.keys()
        if len(batch.images) == 0:
            first = next(iter(self.unread))
            raise DataError(f"data={s.data!r}: no picture of a batch can be read, as {first}")
        images, labels, index = (part.to(self.device) for part in batch[:3])
        with self.settings.autocast(self.device):
            features, scores = self.parallel(images)
        loss = self.objective(features, scores, labels, index)
        (loss / s.iter_size).backward()
        value = float(loss.detach())
        self.sums[0] += value
        self.sums[1] += 1
        if not math.isfinite(self.sums[0]):
            where = f"in epoch {self.epoch}"
            raise FloatingPointError(f"lr={s.lr}: the loss is {value} {where}, give less")
        return index, features.detach()

    def _total_loss(self) -> list[float]:
        device = self.device if self.device.type == "cuda" else "cpu"  # MPS has no float64
        sums = torch.tensor(self.sums, dtype=torch.float64, device=device)
        return distributed.all_reduce_sum(sums).tolist()

    def _validate(self) -> dict[str, float]:
        if len(self.pictures.validation) == 0:
            return {}
        if self.settings.watch == "stale" and self.settings.loss == "nca":
            return self._accuracy(self.pictures.validation, self.bank, None)
        return self._accuracy(self.pictures.validation, *self._embed(self.pictures.train)[:2])

    def _accuracy(self, pictures, bank, bank_labels) -> dict[str, float]:
        s = self.settings
        features, labels, _ = self._embed(pictures)
        sharded = distributed.world_size() > 1
        return knn_accuracy(features, labels, bank, bank_labels, s.k, s.temperature, sharded)

    def _embed(self, pictures: Pictures) -> tuple[Tensor, ...]:
        """Return features, labels and numbers of this process's part of the readable pictures."""
        s = self.settings
        own = distributed.shard_bounds(len(pictures))
        numbers = []

        def readable():
            """Hand out batches of what can be read, and note their numbers."""
            for batch in pictures.in_batches(s.batch_size, own, s.workers):
                self._note_unread(batch)
                numbers.append(batch.index)
                yield batch

        with self.settings.autocast(self.device):
            features, labels = embed(self.learner.network, readable(), self.device)
        if not distributed.all_reduce_sum(torch.tensor(len(labels), device=self.device)):
            none = f"none of {len(pictures)} pictures can be read, as {pictures.files[0]}"
            raise DataError(f"data={s.data!r}: {none}")
        return features, labels, torch.cat(numbers).to(self.device)

    def _note_unread(self, batch: Batch) -> None:
        for name in batch.unread.values():
            if name not in self.unread:
                self.unread[name] = None
                tqdm.write(f"left out: {name}")

    def state_dict(self) -> dict:
        """Return all that the run goes on from; all processes call it at once."""
        return {name: getattr(self, name) for name in PROGRESS} | {
            "sums": self._total_loss(),
            "lost": all_gather_unique(self.unread_numbers),
            "unread": all_gather_unique(self.unread),
            "learner": self.learner.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "bank": None if self.bank is None else self.bank.embeddings(),
            "settings": asdict(self.settings),
            "labels": self.pictures.train.labels,
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on from such a state; raises ModelError for one of another run."""
        for name in FIXED:
            before = state["settings"].get(name)
            now = getattr(self.settings, name)
            if before != now:
                problem = f"it was trained with {name}={before!r}, not {now!r}"
                raise ModelError(f"{problem}: give the same")
        if not torch.equal(state["labels"], self.pictures.train.labels):
            data = self.settings.data
            raise ModelError(f"it was trained on other pictures than {data!r}: give the same")
        self.learner.load_state_dict(state["learner"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.bank is not None:
            self.bank.fill(state["bank"])
        for name in PROGRESS:
            setattr(self, name, state[name])
        if distributed.rank() == 0:
            self.sums = state["sums"]  # those of all processes
        self.unread = dict.fromkeys(state["unread"])
        self.unread_numbers = set(state["lost"])

    def save(self) -> None:
        """Write the run's state and its log; all processes call it at once."""
        state = self.state_dict()
        if distributed.rank() == 0:
            checkpoints.write_checkpoint(self.folder, state)

    def _resume(self, only_tests: bool) -> None:
        """Start where settings.resume says: "auto" is the run's own folder, "" anew."""
        resume = self.settings.resume
        path = self.folder if resume == "auto" else Path(resume)
        if not resume or (resume == "auto" and not (path / LAST).exists()):
            if only_tests:
                problem = f"{str(self.folder)!r} has no run in it to evaluate"
                raise ValueError(f"resume={resume!r}: {problem}, give a checkpoint or its folder")
            return
        try:
            self._load(checkpoints.read_any(path), only_tests)
        except ModelError as error:
            raise ModelError(f"resume={resume!r}: {error}") from None
        except Exception as error:  # a foreign state can lack anything
            cause = " ".join(f"{type(error).__name__}: {error}".split())
            advice = "give a run's, with its arch, low_dim and size"
            raise ModelError(f"resume={resume!r} doesn't fit ({cause:.200}): {advice}") from None

    def _load(self, state: dict, only_tests: bool) -> None:
        if "settings" in state and not only_tests:
            self.load_state_dict(state)
            return
        arch = state.get("arch", self.settings.arch)
        if arch != self.settings.arch:
            raise ModelError(f"its architecture is {arch}, not {self.settings.arch}")
        if state["best_weights"] is None:  # stopped within its first epoch
            self.learner.load_state_dict(state["learner"])
        else:
            self.learner.network.load_state_dict(state["best_weights"])
        bank = state.get("bank")
        if self.bank is not None and bank is not None:
            if bank.shape == (len(self.bank), self.bank.dim):
                self.bank.fill(bank)
