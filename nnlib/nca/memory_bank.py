"""The memory bank of neighborhood component analysis: one unit vector for each training sample.

Rows are kept sorted by class, so that a sample's own class is a short stretch of them. Over several processes each
keeps a stretch of the rows alone.
"""

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn
from torch.nn.functional import normalize

from nnlib._common.runtime import make_generator
from nnlib._common.validation import check_int, check_number
from nnlib.attention import working_dtype
from nnlib.nca.distributed import all_gather_rows, shard_bounds, world_size

DRAWN = 1 << 16  # rows drawn at a time
LATE = (
    (80 / 130, 0.8),
    (120 / 130, 0.9),
)  # from which share of the training on, and at least how much, is kept


class MemoryBank(nn.Module):
    """Unit vectors m_i [N, dim] for the samples 0 ... N - 1, moved after each step to mu m_i + (1 - mu) x_i, made unit.

    labels [N]: int64 classes from 0, every sample's own number where all are classes of their own. sharded: each
    process of torch.distributed keeps 1/world of the rows; all of them make, update and read the bank together. Rows
    are drawn at random, the same for any number of processes.
    Source: Wu, Efros, Yu, "Improving Generalization via Scalable Neighborhood Component Analysis", ECCV 2018.
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
        _require_labels(labels)
        self.dim, self.momentum = check_int("dim", dim), _checked_momentum(momentum)
        self.sharded = sharded and world_size() > 1
        self.classes = int(labels.max()) + 1
        if len(labels) < (processes := world_size() if sharded else 1):
            raise ValueError(
                f"labels holds {len(labels)} samples for {processes} processes: give each one at least"
            )
        labels = labels.cpu()
        order = labels.argsort(stable=True)
        self.rows = shard_bounds(len(labels)) if self.sharded else slice(0, len(labels))
        self.register_buffer("order", order[self.rows])
        self.register_buffer("labels", labels[self.order])
        self.register_buffer(
            "place", torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
        )
        self.register_buffer("memory", self._drawn(seed))

    def __len__(self) -> int:
        return len(self.place)

    def extra_repr(self) -> str:
        return f"{len(self)} samples of {self.classes} classes, dim={self.dim}, {len(self.memory)} of them here"

    @torch.no_grad()
    def update(
        self,
        index: Int64[Tensor, " B"],
        features: Float[Tensor, "B D"],
        momentum: float | None = None,
    ) -> None:
        """Move the rows of the samples `index` towards their features of this step; sharded, those of all processes.

        momentum: the share that is kept, the bank's own by default. A feature of zeros leaves its row as it is.
        """
        self._require_features(features, index)
        index, features = index.to(self.memory.device), features.to(self.memory)
        if self.sharded:
            index, features = (
                torch.cat(all_gather_rows(index)),
                torch.cat(all_gather_rows(features)),
            )
        row = self.place[index] - self.rows.start
        here = (row >= 0) & (row < len(self.memory))
        keep = self.momentum if momentum is None else _checked_momentum(momentum)
        row, new = row[here], normalize(features[here], dim=1)
        mixed = torch.lerp(new, self.memory[row], keep)
        length = torch.linalg.vector_norm(mixed, dim=1, keepdim=True)
        self.memory[row] = torch.where(length > 0, mixed / length, self.memory[row])

    def fill(self, embeddings: Float[Tensor, "N D"]) -> None:
        """Put the samples' embeddings [N, D], in the samples' order, in place of all rows."""
        if embeddings.shape != (len(self), self.dim):
            raise ValueError(
                f"embeddings {tuple(embeddings.shape)} don't fit: give [{len(self)}, {self.dim}]"
            )
        for start in range(0, len(self.memory), DRAWN):
            part = slice(start, start + DRAWN)
            self.memory[part] = UnitRows(embeddings)[self.order[part].to(embeddings.device)].to(
                self.memory
            )

    def clear(self, index: Int64[Tensor, " K"]) -> None:
        """Make zeros of the rows of samples that can't be had, so that they are near nothing."""
        row = self.place[index.to(self.place.device)] - self.rows.start
        self.memory[row[(row >= 0) & (row < len(self.memory))]] = 0

    def embeddings(self) -> Float[Tensor, "N D"]:
        """All rows in the samples' order, on the CPU; sharded, all processes have to ask at once."""
        whole = torch.empty(len(self), self.dim)
        rows, order = (
            all_gather_rows(part) if self.sharded else [part] for part in (self.memory, self.order)
        )
        for part, samples in zip(rows, order, strict=True):
            whole[samples.cpu()] = part.cpu()
        return whole

    def _drawn(self, seed: int) -> Float[Tensor, "n D"]:
        memory, generator = torch.empty(len(self.order), self.dim), make_generator(seed)
        for start in range(
            0, self.rows.stop, DRAWN
        ):  # those before its own too, so that all draw the same rows
            rows = (
                torch.rand(min(DRAWN, self.rows.stop - start), self.dim, generator=generator) * 2
                - 1
            )
            first, end = (
                max(start, self.rows.start) - self.rows.start,
                start + len(rows) - self.rows.start,
            )
            if end > first:
                memory[first:end] = normalize(rows[first - end :], dim=1)
        return memory

    def _require_features(self, features: Tensor, index: Tensor) -> None:
        if features.ndim != 2 or features.shape != (len(index), self.dim):
            raise ValueError(
                f"features {tuple(features.shape)} don't fit: give [{len(index)}, {self.dim}]"
            )
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(self):
            raise ValueError(
                f"index holds {int(index.min())} ... {int(index.max())}: give 0 ... {len(self) - 1}"
            )


class UnitRows:
    """Rows as unit vectors, normalised a slice at a time."""

    def __init__(self, rows: Shaped[Tensor, "N D"]):
        self.rows, self.shape, self.device, self.dtype = (
            rows,
            rows.shape,
            rows.device,
            working_dtype(rows),
        )

    def __getitem__(self, part: slice | Int64[Tensor, " M"]) -> Float[Tensor, "M D"]:
        rows = self.rows[part].to(self.dtype)
        length = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        right = ((length - 1).abs() < 1e-6) | (length == 0)  # and so left as they are, to the bit
        return rows if right.all() else rows / torch.where(right, 1, length)


def momentum_at(epoch: int, epochs: int, early: float = 0.5) -> float:
    """The bank's momentum in an epoch, counted from 0: `early`, and at least 0.8 and 0.9 late.

    As published, where that is from epochs 80 and 120 of 130.
    """
    return max([early, *(momentum for start, momentum in LATE if epoch >= round(start * epochs))])


def _checked_momentum(momentum: float) -> float:
    return check_number("momentum", momentum, "[0, 1)", "a share in [0, 1)")


def _require_labels(labels: Tensor) -> None:
    if labels.ndim != 1 or labels.dtype != torch.int64 or len(labels) == 0 or int(labels.min()) < 0:
        raise ValueError(
            f"labels is {labels.dtype} {tuple(labels.shape)}: give int64 [N], from 0, N 1 or more"
        )
