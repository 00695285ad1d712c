"""Training an embedding for nearest neighbors: one code path for a notebook, one GPU, or many processes.

What a run does follows from its settings alone: the order of the pictures, their augmentation and the bank's first rows
are drawn from the seed, the epoch and the picture. So a run that was killed goes on as if it had not been.
"""

import math
from collections.abc import Iterator
from contextlib import nullcontext
from hashlib import blake2b
from time import perf_counter
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from tqdm.auto import tqdm

from nnlib.errors import DataError
from nnlib.nca import embed, knn_accuracy
from nnlib.nca.distributed import all_gather_rows, all_reduce_sum, broadcast, rank, shard_bounds, world_size
from nnlib.training.processes import all_gather_names as all_gather_objects, own_device, process_group
from nnlib.training import checkpoints
from nnlib.training.checkpoints import LAST, Trained, write_trained
from nnlib.training.config import TrainingConfig
from nnlib.training.encoders import Embedding
from nnlib.training.image_data import Batch, Pictures, batches, in_order, open_pictures
from nnlib.training.objectives import Learner, objective_of


class Result(NamedTuple):
    """A run's epochs; its figures on the test pictures; what it learned; the pictures that it couldn't read."""

    history: list[dict]
    test: dict[str, float]
    trained: Trained
    unread: list[str]


def train(settings: TrainingConfig) -> Result:
    """Train, choose the epoch on validation pictures, look at the test pictures once, and leave all of it in a folder.

    In settings.folder(): last.pt, from which resume="auto" goes on, log.csv, weights.safetensors, features.safetensors.
    Raises ValueError, DataError or ModelError for settings, pictures or checkpoints that can't be used.
    """
    with process_group(settings.device):
        return Trainer(settings.check()).fit().test()


def evaluate(settings: TrainingConfig) -> Result:
    """Only test what settings.resume names, on a gallery embedded anew, whose features it leaves in the folder."""
    if not settings.resume:
        raise ValueError(
            "resume='' names nothing to evaluate: give a checkpoint, or the folder that a training left"
        )
    if settings.resume == "auto" and not (settings.folder() / LAST).exists():
        raise ValueError(
            f"resume='auto': {str(settings.folder())!r} has no run in it to evaluate: give out, or a path"
        )
    with process_group(settings.device):
        return Trainer(settings.check(), only_tests=True).test()


class Trainer:
    """A run in progress; `epoch` and `step` say where it is."""

    def __init__(self, settings: TrainingConfig, only_tests: bool = False):
        self.settings, self.folder, self.only_tests = settings, settings.folder(), only_tests
        self.device = own_device(settings.device)
        self.pictures = open_pictures(*settings.of_pictures())
        self.epoch, self.step, self.sums, self.history, self.best = 0, 0, [0.0, 0], [], -1.0
        self.unread: dict[str, None] = {}  # names, in the order in which they were met
        self.lost: set[int] = set()  # their numbers among the training pictures
        self.steps = (
            0 if only_tests else checkpoints.require_steps(settings, len(self.pictures.train))
        )
        self._make(settings)
        self.best_at = self.folder / checkpoints.BEST
        checkpoints.resume(self)
        checkpoints.prepare(self.folder)
        where = [self.device] if self.device.type == "cuda" else None
        self.parallel = (
            DistributedDataParallel(self.learner, where) if world_size() > 1 else self.learner
        )

    def _make(self, s: TrainingConfig) -> None:
        torch.manual_seed(s.seed)
        train = self.pictures.train
        network = Embedding(s.arch, s.low_dim, train.channels, train.size, s.pretrained)
        layout = torch.contiguous_format if self.device.type == "mps" else torch.channels_last
        classes = len(train.classes) if s.loss == "softmax" else None
        self.learner = Learner(network, classes).to(self.device, memory_format=layout)
        self.objective = objective_of(
            s.loss, train.labels, s.low_dim, s.temperature, s.margin, s.seed
        ).to(self.device)
        how = {"momentum": s.momentum, "weight_decay": s.weight_decay, "nesterov": s.momentum > 0}
        self.optimizer = torch.optim.SGD(self.learner.parameters(), s.lr, **how)

    def fit(self) -> "Trainer":
        """Train the epochs that are left, each watched and saved."""
        checkpoints.begin(self)
        self._start_bank()
        while self.epoch < self.settings.epochs:
            started = perf_counter()
            self._train_epoch()
            loss, count = self.total()
            row = {"epoch": self.epoch, "lr": self.settings.lr_at(self.epoch), "loss": loss / count}
            row |= {f"validation_{name}": value for name, value in self._watched().items()}
            self.history.append(row | {"seconds": round(perf_counter() - started, 3)})
            checkpoints.keep_best(self, row.get("validation_knn_top1", float(self.epoch)))
            self.epoch, self.step, self.sums = self.epoch + 1, 0, [0.0, 0]
            checkpoints.save(self)
        return self

    def _start_bank(self) -> None:
        """Without labels, random rows would only be targets to run after; with them, they spread the classes."""
        bank, start, loss = self.objective.bank, self.settings.start, self.settings.loss
        if (
            bank is None
            or self.epoch
            or self.step
            or (start != "embedded" and (start, loss) != ("auto", "instance"))
        ):
            return
        (features, _), index = self._embedded(self.pictures.train)
        bank.update(index, features, 0.0)

    def _train_epoch(self) -> None:
        s, stream = self.settings, self._stream()
        self.learner.train()
        shown = {
            "desc": f"epoch {self.epoch}",
            "leave": False,
            "disable": rank() > 0 or not s.progress,
        }
        with tqdm(total=self.steps, initial=self.step, **shown) as bar:
            while self.step < self.steps:
                self._train_step(stream)
                self.step += 1
                bar.set_postfix(loss=f"{self.sums[0] / self.sums[1]:.3f}", refresh=False)
                bar.update()
                if s.save_steps and self.step % s.save_steps == 0 and self.step < self.steps:
                    checkpoints.save(self)
        broadcast(
            self.learner.buffers()
        )  # or each process would test with running means of its own
        lost = self.all_lost()
        if self.objective.bank is not None:
            self.objective.bank.clear(lost)

    def total(self) -> list[float]:
        """The sum of the epoch's losses so far, and their number."""
        device = self.device if self.device.type == "cuda" else "cpu"  # MPS has no float64
        return all_reduce_sum(torch.tensor(self.sums, dtype=torch.float64, device=device)).tolist()

    def all_lost(self) -> Tensor:
        """The numbers of the training pictures that no process could read."""
        return torch.cat(
            all_gather_rows(torch.tensor(sorted(self.lost), dtype=torch.int64, device=self.device))
        )

    def _train_step(self, stream: Iterator[Batch]) -> None:
        s, met = self.settings, []
        for micro in range(s.iter_size):
            last = micro == s.iter_size - 1  # with which processes share the gradients, once a step
            with nullcontext() if last or world_size() == 1 else self.parallel.no_sync():
                met.append(self._backward(next(stream)))
        for group in self.optimizer.param_groups:
            group["lr"] = s.lr_at(self.epoch + self.step / self.steps)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.objective.bank is not None:
            kept = momentum_at(self.epoch, s.epochs, s.memory_momentum)
            for index, features in met:
                self.objective.bank.update(index, features, kept)

    def _backward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        self.lost |= self._noted(batch).keys()
        if len(batch.images) == 0:
            raise DataError(
                f"data={self.settings.data!r}: no picture of a batch can be read, as {next(iter(self.unread))}"
            )
        images, labels, index = (part.to(self.device) for part in batch[:3])
        with self._autocast():
            features, scores = self.parallel(images)
        loss = self.objective(features, scores, labels, index)
        (loss / self.settings.iter_size).backward()
        self.sums = [self.sums[0] + float(loss.detach()), self.sums[1] + 1]
        if not math.isfinite(self.sums[0]):
            raise FloatingPointError(
                f"lr={self.settings.lr}: the loss is {float(loss.detach())} in epoch {self.epoch}, give less"
            )
        return index, features.detach()

    def _stream(self) -> Iterator[Batch]:
        """This process's part of the batches of the epoch that are still to come."""
        s, length = self.settings, self.settings.batch_size
        generator = torch.Generator().manual_seed(mixed(s.seed, self.epoch))
        order = torch.randperm(len(self.pictures.train), generator=generator)
        left = range(self.step * s.iter_size, self.steps * s.iter_size)
        mine = (
            order[at * length : (at + 1) * length][shard_bounds(length)].tolist() for at in left
        )
        asked = (
            [(number, mixed(s.seed, self.epoch, number)) for number in numbers] for numbers in mine
        )
        return batches(self.pictures.train, asked, s.workers)

    def _watched(self) -> dict[str, float]:
        """The k-NN's figures on the validation pictures, its bank embedded anew unless `watch` is "stale"."""
        s = self.settings
        if len(self.pictures.validation) == 0:
            return {}
        stale = self.objective.bank if s.watch == "stale" and s.loss == "nca" else None
        gallery = (stale, None) if stale is not None else self._embedded(self.pictures.train)[0]
        asked, _ = self._embedded(self.pictures.validation)
        return knn_accuracy(
            *asked, *gallery, k=s.k, temperature=s.temperature, sharded=world_size() > 1
        )

    def test(self) -> Result:
        """Figures on the test pictures with the best epoch's weights, and all training pictures as neighbors."""
        checkpoints.take_best(self)
        here, index = self._embedded(self.pictures.gallery)
        asked, _ = self._embedded(self.pictures.test)
        s = self.settings
        figures = knn_accuracy(
            *asked, *here, k=s.k, temperature=s.temperature, sharded=world_size() > 1
        )
        features, labels, index = (
            torch.cat(all_gather_rows(part)).cpu() for part in (*here, index)
        )
        files = tuple(str(self.pictures.gallery.files[number]) for number in index.tolist())
        trained = Trained(
            self.learner.network.eval(), features, labels, self.pictures.gallery.classes, files
        )
        if rank() == 0:
            write_trained(self.folder, trained)
        return Result(self.history, figures, trained, all_gather_objects(self.unread))

    def _embedded(self, pictures: Pictures) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Features and labels of this process's part of the pictures, and their numbers, as far as they can be read."""
        index: list[Tensor] = []
        with self._autocast():
            rows = embed(self.learner.network, self._shown(pictures, index), self.device)
        if not all_reduce_sum(torch.tensor(len(rows[1]), device=self.device)):
            first = pictures.files[0]
            raise DataError(
                f"data={self.settings.data!r}: none of {len(pictures)} pictures can be read, as {first}"
            )
        return rows, torch.cat(index).to(self.device)

    def _shown(self, pictures: Pictures, index: list[Tensor]) -> Iterator[Batch]:
        """This process's part of the pictures as they are tested; their numbers go to `index`."""
        s = self.settings
        for batch in batches(
            pictures, in_order(pictures, shard_bounds(len(pictures)), s.batch_size), s.workers
        ):
            self._noted(batch)
            index.append(batch.index)
            yield batch

    def _noted(self, batch: Batch) -> dict[int, str]:
        """The pictures of a batch that couldn't be read, told once each."""
        for name in batch.unread.values():
            if name not in self.unread:
                self.unread[name] = None
                tqdm.write(f"left out: {name}")
        return batch.unread

    def _autocast(self):
        precision = self.settings.precision
        half = precision == "bfloat16" or (precision == "auto" and self.device.type == "cuda")
        return torch.autocast(self.device.type, torch.bfloat16) if half else nullcontext()


LATE = ((80 / 130, 0.8), (120 / 130, 0.9))


def momentum_at(epoch, epochs, early=0.5):
    return max([early, *(m for start, m in LATE if epoch >= round(start * epochs))])


def mixed(*numbers: int) -> int:
    """A seed out of some numbers."""
    return int.from_bytes(blake2b(repr(numbers).encode(), digest_size=7).digest())
