"""The memory bank: one unit vector for each training sample, sorted by class.

Sorted, a class is a short stretch of rows. Over several processes each holds a stretch of its own.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn
from torch.nn.functional import normalize

from nnlib._common.runtime import make_generator, torch_defaults
from nnlib._common.validation import as_integers, as_tensor, check_finite, check_int, check_number
from nnlib.attention import working_dtype
from nnlib.distances import normalize_rows
from nnlib.nca.distributed import all_gather_rows, rank, shard_bounds, world_size

BLOCK_ROWS = 1 << 16  # rows drawn or copied at a time


class MemoryBank(nn.Module):
    """Unit vectors [N, dim], one a training sample, which follow the samples' features.

    Parameters
    ----------
    labels : whole numbers [N], the samples' classes
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

    order: Tensor  # the sample of each row here
    place: Tensor  # the row of each sample
    labels: Tensor
    memory: Tensor

    @torch_defaults()
    def __init__(
        self,
        labels: Int64[Tensor, " N"],
        dim: int = 128,
        momentum: float = 0.5,
        sharded: bool = False,
        seed: int = 0,
    ):
        super().__init__()
        labels = as_integers("labels", labels).cpu()
        least = world_size() if sharded else 1
        if len(labels) < least:
            wanted = f"give int64 [N], {least} or more for {least} processes"
            raise ValueError(f"labels is of {len(labels)} samples: {wanted}")
        self.dim = check_int("dim", dim)
        self.momentum = check_number("momentum", momentum, "[0, 1)")
        self.sharded = sharded and world_size() > 1
        self.lowest, self.highest = map(int, torch.aminmax(labels))
        order = labels.argsort(stable=True)
        self.rows = shard_bounds(len(labels)) if self.sharded else slice(0, len(labels))
        self.register_buffer("order", order[self.rows])
        self.register_buffer("labels", labels[self.order])
        self.register_buffer("place", torch.empty_like(order))
        self.place[order] = torch.arange(len(order))
        self.register_buffer("memory", self._draw_rows(seed))

    def __len__(self) -> int:
        return len(self.place)

    def local_rows(self, samples: Int64[Tensor, " B"]) -> Int64[Tensor, " B"]:
        """Return the row of each sample in `memory`, -1 where another process has it or for -1."""
        row = self.place[samples.clamp(min=0)] - self.rows.start
        return row.masked_fill((samples < 0) | (row < 0) | (row >= len(self.memory)), -1)

    @torch_defaults()
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
        index = self._numbers(index)
        features = self._check_rows("features", features, len(index)).to(self.memory)
        keep = check_number("momentum", self.momentum if momentum is None else momentum, "[0, 1)")
        features = torch.cat(all_gather_rows(features, self.sharded))
        row = self.local_rows(torch.cat(all_gather_rows(index, self.sharded)))
        here = row >= 0
        row = row[here]
        mixed = torch.lerp(normalize_rows(features[here]), self.memory[row], keep)
        length = torch.linalg.vector_norm(mixed, dim=1, keepdim=True)
        self.memory[row] = torch.where(length > 0, mixed / length, self.memory[row])

    @torch_defaults()
    def fill(self, embeddings: Float[Tensor, "N D"]) -> None:
        """Replace all rows by these embeddings, given in the samples' order."""
        embeddings = self._check_rows("embeddings", embeddings, len(self))
        check_finite("embeddings", embeddings)
        unit = BankRows(embeddings)
        for start in range(0, len(self.memory), BLOCK_ROWS):
            samples = self.order[start : start + BLOCK_ROWS].to(embeddings.device)
            self.memory[start : start + BLOCK_ROWS] = unit[samples].to(self.memory)

    @torch_defaults()
    def clear(self, index: Int64[Tensor, " K"]) -> None:
        """Set the rows of samples that can't be read to zeros, which are no one's neighbors."""
        row = self.local_rows(self._numbers(index))
        self.memory[row[row >= 0]] = 0

    @torch_defaults()
    def embeddings(self) -> Float[Tensor, "N D"]:
        """Return all rows in the samples' order, on the CPU. All processes call it at once."""
        whole = torch.empty(len(self), self.dim)
        order = all_gather_rows(self.order, self.sharded)
        memory = all_gather_rows(self.memory, self.sharded)
        for samples, rows in zip(order, memory, strict=True):
            whole[samples.cpu()] = rows.cpu()
        return whole

    def _numbers(self, index) -> Int64[Tensor, " B"]:
        return as_integers("index", index, None, (0, len(self) - 1)).to(self.place.device)

    def _check_rows(self, name: str, rows, count: int) -> Float[Tensor, "B D"]:
        rows = as_tensor(name, rows).detach()
        if rows.shape != (count, self.dim):
            raise ValueError(f"{name} {tuple(rows.shape)} don't fit: give {[count, self.dim]}")
        return rows

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
        return rows if unit.all() else torch.where(unit, rows, normalize_rows(rows))


class BankView(NamedTuple):
    """What the loss and the k-NN read: a MemoryBank, or plain rows with labels."""

    memory: Tensor | BankRows
    labels: Int64[Tensor, " n"]
    lowest: int  # of all labels, those of other processes too
    highest: int
    samples: int
    sharded: bool
    local_rows: Callable[[Tensor], Tensor]


def view_bank(bank: Tensor | MemoryBank, labels: Tensor | None, sharded=False) -> BankView:
    """Return a view of the bank; raises ValueError where rows and labels don't fit."""
    if isinstance(bank, MemoryBank):
        if labels is not None:
            raise ValueError("bank_labels: a MemoryBank has labels of its own, leave them out")
        own = (bank.lowest, bank.highest, len(bank), bank.sharded, bank.local_rows)
        return BankView(bank.memory, bank.labels, *own)
    rows = as_tensor("bank", bank).detach()
    if labels is None or rows.ndim != 2 or rows.numel() == 0:
        given = "None" if labels is None else f"of {len(labels)} rows"
        wanted = "give rows [N, D] with their classes [N], N 1 or more"
        raise ValueError(f"bank {tuple(rows.shape)} with bank_labels {given}: {wanted}")
    labels = as_integers("bank_labels", labels, len(rows)).to(rows.device)
    check_finite("bank", rows)
    sharded = sharded and world_size() > 1
    summary = torch.stack([*labels.aminmax(), torch.full_like(labels[0], len(rows))])[None]
    everyone = torch.cat(all_gather_rows(summary, sharded)).tolist()
    lows, highs, lengths = zip(*everyone, strict=True)
    start = sum(lengths[: rank()]) if sharded else 0
    own = (min(lows), max(highs), sum(lengths), sharded, lambda samples: samples - start)
    return BankView(BankRows(rows), labels, *own)
