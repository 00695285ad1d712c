"""The memory bank: one unit vector for each training sample, sorted by class.

Sorted, a class is a short stretch of rows. Over several processes each holds a stretch of its own.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn
from torch.nn.functional import normalize

from nnlib._common.runtime import make_generator
from nnlib._common.validation import check_int, check_number
from nnlib.attention import working_dtype
from nnlib.nca.distributed import all_gather_rows, shard_bounds, world_size

BLOCK_ROWS = 1 << 16  # rows drawn or copied at a time


class MemoryBank(nn.Module):
    """Unit vectors [N, dim], one a training sample, which follow the samples' features.

    Parameters
    ----------
    labels : int64 [N], classes from 0
    dim : length of a row
    momentum : fraction of a row that an update keeps
    sharded : whether each process of torch.distributed holds its part of the rows alone; then all
        processes make, update and read the bank at once
    seed : of the random first rows, which don't depend on the number of processes

    References
    ----------
    Wu, Efros, Yu. Improving Generalization via Scalable Neighborhood Component Analysis. ECCV 2018.

    Examples
    --------
    >>> bank = MemoryBank(torch.tensor([0, 1, 1]), dim=2, momentum=0.0)
    >>> bank.update(torch.tensor([1]), torch.tensor([[3.0, 4.0]]))
    >>> bank.embeddings()[1]
    tensor([0.6000, 0.8000])
    """

    def __init__(
        self,
        labels: Int64[Tensor, " N"],
        dim: int = 128,
        momentum: float = 0.5,
        sharded: bool = False,
        seed: int = 0,
    ):
        super().__init__()
        least = world_size() if sharded else 1
        if labels.ndim != 1 or labels.dtype != torch.int64 or len(labels) < least:
            given = f"{labels.dtype} {tuple(labels.shape)}"
            raise ValueError(
                f"labels is {given}: give int64 [N], {least} or more for {least} processes"
            )
        if int(labels.min()) < 0:
            raise ValueError(f"labels is {int(labels.min())} at least: give classes from 0")
        self.dim = check_int("dim", dim)
        self.momentum = check_number("momentum", momentum, "[0, 1)")
        self.sharded = sharded and world_size() > 1
        self.classes = int(labels.max()) + 1
        labels = labels.cpu()
        order = labels.argsort(stable=True)
        self.rows = shard_bounds(len(labels)) if self.sharded else slice(0, len(labels))
        self.register_buffer("order", order[self.rows])  # the sample of each row here
        self.register_buffer("labels", labels[self.order])
        self.register_buffer("place", torch.empty_like(order))  # the row of each sample
        self.place[order] = torch.arange(len(order))
        self.register_buffer("memory", self._draw_rows(seed))

    def __len__(self) -> int:
        return len(self.place)

    def local_rows(self, samples: Int64[Tensor, " B"]) -> Int64[Tensor, " B"]:
        """Return the row of each sample in `memory`, -1 where another process has it or for -1."""
        row = self.place[samples.clamp(min=0)] - self.rows.start
        return row.masked_fill((samples < 0) | (row < 0) | (row >= len(self.memory)), -1)

    @torch.no_grad()
    def update(
        self,
        index: Int64[Tensor, " B"],
        features: Float[Tensor, "B D"],
        momentum: float | None = None,
    ) -> None:
        """Move the rows of the samples `index` towards their features, those of all processes.

        A feature of zeros leaves its row as it is. `momentum` is the bank's own by default.
        """
        if features.shape != (len(index), self.dim):
            wanted = [len(index), self.dim]
            raise ValueError(f"features {tuple(features.shape)} don't fit: give {wanted}")
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(self):
            given = f"{int(index.min())} ... {int(index.max())}"
            raise ValueError(f"index holds {given}: give 0 ... {len(self) - 1}")
        keep = check_number("momentum", self.momentum if momentum is None else momentum, "[0, 1)")
        index = index.to(self.memory.device)
        features = features.to(self.memory)
        if self.sharded:
            index = torch.cat(all_gather_rows(index))
            features = torch.cat(all_gather_rows(features))
        row = self.local_rows(index)
        here = row >= 0
        row = row[here]
        mixed = torch.lerp(normalize(features[here], dim=1), self.memory[row], keep)
        length = torch.linalg.vector_norm(mixed, dim=1, keepdim=True)
        self.memory[row] = torch.where(length > 0, mixed / length, self.memory[row])

    def fill(self, embeddings: Float[Tensor, "N D"]) -> None:
        """Replace all rows by these embeddings, given in the samples' order."""
        if embeddings.shape != (len(self), self.dim):
            wanted = [len(self), self.dim]
            raise ValueError(f"embeddings {tuple(embeddings.shape)} don't fit: give {wanted}")
        unit = BankRows(embeddings)
        for start in range(0, len(self.memory), BLOCK_ROWS):
            samples = self.order[start : start + BLOCK_ROWS].to(embeddings.device)
            self.memory[start : start + BLOCK_ROWS] = unit[samples].to(self.memory)

    def clear(self, index: Int64[Tensor, " K"]) -> None:
        """Set the rows of samples that can't be read to zeros, which are near nothing."""
        row = self.local_rows(index.to(self.place.device))
        self.memory[row[row >= 0]] = 0

    def embeddings(self) -> Float[Tensor, "N D"]:
        """Return all rows in the samples' order, on the CPU. All processes call it at once."""
        whole = torch.empty(len(self), self.dim)
        order = all_gather_rows(self.order) if self.sharded else [self.order]
        memory = all_gather_rows(self.memory) if self.sharded else [self.memory]
        for samples, rows in zip(order, memory, strict=True):
            whole[samples.cpu()] = rows.cpu()
        return whole

    def _draw_rows(self, seed: int) -> Float[Tensor, "n D"]:
        generator = make_generator(seed)
        memory = torch.empty(len(self.order), self.dim)
        # the rows before its own are drawn too, so that every process sees the same ones
        for start in range(0, self.rows.stop, BLOCK_ROWS):
            count = min(BLOCK_ROWS, self.rows.stop - start)
            drawn = torch.rand(count, self.dim, generator=generator) * 2 - 1
            own = drawn[max(0, self.rows.start - start) :]
            end = start + count - self.rows.start
            if len(own):
                memory[end - len(own) : end] = normalize(own, dim=1)
        return memory


class BankRows:
    """The rows of a bank as unit vectors, normalised a slice at a time."""

    def __init__(self, rows: Shaped[Tensor, "N D"]):
        self.rows = rows
        self.shape = rows.shape
        self.device = rows.device
        self.dtype = working_dtype(rows)

    def __getitem__(self, part: slice | Int64[Tensor, " M"]) -> Float[Tensor, "M D"]:
        rows = self.rows[part].to(self.dtype)
        length = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        unit = ((length - 1).abs() < 1e-6) | (length == 0)  # left as they are, to the bit
        return rows if unit.all() else rows / torch.where(unit, 1, length)


class BankView(NamedTuple):
    """What the loss and the k-NN read: a MemoryBank, or plain rows with labels."""

    memory: Tensor | BankRows
    labels: Int64[Tensor, " n"]
    classes: int
    samples: int
    sharded: bool
    local_rows: Callable[[Tensor], Tensor]


def view_bank(bank: Tensor | MemoryBank, labels: Tensor | None, sharded=False) -> BankView:
    """Return a view of the bank; raises ValueError where rows and labels don't fit."""
    if isinstance(bank, MemoryBank):
        if labels is not None:
            raise ValueError("bank_labels: a MemoryBank has labels of its own, leave them out")
        own = (bank.classes, len(bank), bank.sharded, bank.local_rows)
        return BankView(bank.memory, bank.labels, *own)
    given = None if labels is None else (labels.dtype, tuple(labels.shape))
    if bank.ndim != 2 or len(bank) == 0 or given != (torch.int64, tuple(bank.shape[:1])):
        wanted = "[N, D] with int64 [N], N 1 or more"
        raise ValueError(f"bank {tuple(bank.shape)} with bank_labels {given}: give {wanted}")
    low, high = map(int, torch.aminmax(labels))
    if low < 0:
        raise ValueError(f"bank_labels of {len(labels)} rows holds {low}: give classes from 0")
    rows = BankRows(bank.detach())
    return BankView(rows, labels, high + 1, len(bank), sharded, lambda samples: samples)
