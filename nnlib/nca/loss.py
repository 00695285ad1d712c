"""Neighborhood component analysis against a bank of every training sample: the loss, and the k-NN that it is for.

    loss = -log p(own class) = softplus(lse_others - lse_same + margin/T), own row left out, p ~ exp(cos(f(x), m)/T)

Both sums, and with them the gradient, gather in one sweep over the bank; nothing larger than a block of it is made.
"""

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor
from torch.nn.functional import normalize, softplus

from nnlib._common.validation import check_number
from nnlib.attention import (
    DotProduct,
    OnlineWeightedMean,
    average_of,
    exact_products,
    finite,
    mask_excluded,
    with_ones,
    working_dtype,
)
from nnlib.nca.distributed import all_gather_rows, all_reduce_max, all_reduce_sum, own, world_size
from nnlib.nca.knn import embed, knn_evaluate, knn_predict, require_samples
from nnlib.nca.memory_bank import MemoryBank, UnitRows

__all__ = ["MemoryBank", "embed", "knn_evaluate", "knn_predict", "nca_loss"]
BLOCK_PAIRS = {"cpu": 1 << 21, "other": 1 << 22}  # of a query and a row, scored at a time
CROWDED = 16  # a block's own-class pairs are gathered one by one if fewer than 1 in so many


def nca_loss(
    features: Shaped[Tensor, "B D"],
    labels: Int64[Tensor, " B"],
    bank: Float[Tensor, "N D"] | MemoryBank,
    bank_labels: Int64[Tensor, " N"] | None = None,
    exclude: Int64[Tensor, " B"] | None = None,
    temperature: float = 0.05,
    margin: float = 0.0,
) -> Float[Tensor, ""]:
    """Mean of -log p(own class) over the batch, each feature's neighbors being the whole bank.

    features [B, D] of any length, for only their directions count; labels [B]. bank: a MemoryBank, or rows [N, D] of
    any length with bank_labels [N]. exclude [B]: which sample each feature is of, so that its own row is left out, -1
    for none. margin: by how much, in cosines, the own class has to lead. A feature without another sample of its class
    carries no loss. Over a sharded bank all processes call it at once, each with features of its own; the mean of their
    results is that of all features, as DistributedDataParallel takes the mean of gradients.
    Differentiable in features, not in the bank. Raises ValueError where shapes, labels or settings don't fit.
    Source: Wu, Efros, Yu, ECCV 2018, there without the softplus form, which keeps the digits of separated classes.
    """
    check_number("temperature", temperature, "(0, inf)", "a positive number, such as 0.05")
    check_number("margin", margin, "[0, inf)", "a difference of cosines, 0 or more, such as 0.1")
    rows = _Rows.of(bank, bank_labels)
    rows.check(features, labels, exclude)
    x = normalize(features.to(working_dtype(features)), dim=1)
    if len(x) == 0 and not rows.sharded:
        return x.sum()
    losses = _Losses.apply(x, labels, rows, exclude, temperature, margin)
    everyone = all_reduce_sum(torch.tensor(len(x), device=x.device)) if rows.sharded else len(x)
    return losses.sum() * (world_size() / everyone if rows.sharded else 1 / everyone)


class _Rows:
    """The bank's rows as they lie here, with their labels; `place` and `start` turn a sample's number into its row."""

    def __init__(self, memory, labels, classes: int, bank: MemoryBank | None = None):
        self.memory, self.labels, self.classes = memory, labels, classes
        self.place, self.start = (None, 0) if bank is None else (bank.place, bank.rows.start)
        self.sharded, self.samples = (
            bank is not None and bank.sharded,
            len(labels) if bank is None else len(bank),
        )

    @staticmethod
    def of(bank, labels) -> "_Rows":
        """Those of a MemoryBank, which has its labels, or of a tensor with labels beside it."""
        if isinstance(bank, MemoryBank):
            if labels is not None:
                raise ValueError(
                    "bank_labels is given beside a MemoryBank, which has its own: leave them out"
                )
            return _Rows(bank.memory, bank.labels, bank.classes, bank)
        if (
            labels is None
            or labels.dtype != torch.int64
            or labels.shape != bank.shape[:1]
            or len(bank.shape) != 2
        ):
            given = None if labels is None else (labels.dtype, tuple(labels.shape))
            raise ValueError(
                f"bank {tuple(bank.shape)} with bank_labels {given}: give [N, D] with int64 [N]"
            )
        if len(labels) == 0 or int(labels.min()) < 0:
            raise ValueError(
                f"bank_labels of {len(labels)} rows: give one row at least, and classes from 0"
            )
        return _Rows(UnitRows(bank.detach()), labels, int(labels.max()) + 1)

    def check(self, features, labels, exclude) -> None:
        """Raise ValueError, naming it, for what doesn't fit these rows."""
        if features.ndim != 2 or features.shape[1] != self.memory.shape[1]:
            raise ValueError(
                f"features {tuple(features.shape)} don't fit the bank: give [B, {self.memory.shape[1]}]"
            )
        for name, given in (("labels", labels), ("exclude", exclude)):
            if given is not None and (
                given.dtype != torch.int64 or given.shape != features.shape[:1]
            ):
                raise ValueError(
                    f"{name} is {given.dtype} {tuple(given.shape)}: give int64 [{len(features)}]"
                )
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.classes:
            found = f"{int(labels.min())} ... {int(labels.max())}"
            raise ValueError(
                f"labels holds {found}: give classes of the bank, 0 ... {self.classes - 1}"
            )
        require_samples(exclude, self.samples)
        devices = {
            str(t.device)
            for t in (features, labels, exclude, self.memory, self.labels)
            if t is not None
        }
        if len(devices) > 1:
            raise ValueError(
                f"features, labels, bank lie on {' and '.join(sorted(devices))}: move them to one device"
            )

    def row_of(
        self, exclude: Int64[Tensor, " B"], labels: Int64[Tensor, " B"]
    ) -> Int64[Tensor, " B"]:
        """The row of each sample here, and a number that is none for samples elsewhere."""
        row = exclude if self.place is None else self.place[exclude.clamp(min=0)] - self.start
        here = (exclude >= 0) & (row >= 0) & (row < len(self.labels))
        if not torch.equal(self.labels[row[here]], labels[here]):
            raise ValueError(
                "labels differ from those that the bank has for the samples in exclude: give those"
            )
        return torch.where(here, row, -1)

    def blocks(self, queries: int, dtype: torch.dtype):
        """(where, unit rows, labels), a block at a time."""
        size = max(
            1,
            BLOCK_PAIRS["cpu" if self.labels.device.type == "cpu" else "other"] // max(1, queries),
        )
        for start in range(0, len(self.labels), size):
            part = slice(start, min(start + size, len(self.labels)))
            yield part, self.memory[part].to(dtype), self.labels[part]


class _Losses(torch.autograd.Function):
    """The loss of each row of x, whose gradient is known once they are: backward needs no second sweep."""

    @staticmethod
    def forward(ctx, x, labels, rows, exclude, temperature, margin):
        """The losses [B] of unit rows x [B, D]; keeps what each is to be pulled by [B, D], and no score."""
        with exact_products():
            others, same = _both_sides(x, labels, rows, exclude, temperature)
        lead = _log_odds(same, others) - margin / temperature
        alone = same.sums[:, -1] == 0  # not where a feature is NaN, whose loss is NaN too
        pull = (average_of(others.sums) - average_of(same.sums)) * (
            torch.sigmoid(-lead) / temperature
        )[:, None]
        ctx.save_for_backward(pull.masked_fill_((alone | (others.sums[:, -1] == 0))[:, None], 0))
        return softplus(-lead).masked_fill_(alone, 0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return gradient[:, None] * ctx.saved_tensors[0], None, None, None, None, None


def _both_sides(
    x, labels, rows: _Rows, exclude, temperature: float
) -> tuple[OnlineWeightedMean, OnlineWeightedMean]:
    """What the own class and all others weigh, and their mean rows, for each row of x; those of all shards together."""
    skip = torch.full_like(labels, -1) if exclude is None else exclude
    parts, labels, skip = (
        (all_gather_rows(part) if rows.sharded else [part]) for part in (x, labels, skip)
    )
    labels, skip = torch.cat(labels), torch.cat(skip)
    sides = _sweep_bank(torch.cat(parts) / -temperature, labels, rows, rows.row_of(skip, labels))
    if rows.sharded:
        for side in sides:
            near = -all_reduce_max(-side.near)
            sums = all_reduce_sum(side.sums * torch.exp(finite(near) - side.near)[:, None])
            side.near, side.sums = own(near, parts), own(sums, parts)
    return sides


def _sweep_bank(x, labels, rows: _Rows, skip) -> tuple[OnlineWeightedMean, OnlineWeightedMean]:
    """One sweep over the rows here, for minus the scaled features: what is nearer has the smaller product.

    Few pairs are of one class, so their part is gathered from a block of all.
    """
    others, same = (OnlineWeightedMean(DotProduct(), len(x), x.shape[1], x) for _ in range(2))
    for part, memory, classes in rows.blocks(len(x), x.dtype):
        distance = mask_excluded(x @ memory.T, skip, part)
        low, high = torch.aminmax(classes)
        (near,) = ((labels >= low) & (labels <= high)).nonzero(
            as_tuple=True
        )  # few where the bank is sorted
        its = labels[near, None] == classes
        if int(its.sum()) > its.numel() / CROWDED:
            split = distance[near]
            same.add(split.masked_fill(~its, torch.inf), memory, near)
            distance[near] = split.masked_fill_(its, torch.inf)
        else:
            query, row = its.nonzero(as_tuple=True)
            _add_pairs(same, distance, memory, near[query], row)
            distance[near[query], row] = torch.inf
        others.add(distance, memory)
    return others, same


def _add_pairs(
    sums: OnlineWeightedMean, distance, memory, query: Int64[Tensor, " P"], row: Int64[Tensor, " P"]
) -> None:
    """Take in some pairs of a query and a row alone."""
    pairs = distance[query, row]
    near = sums.near.scatter_reduce(0, query, pairs, "amin")
    sums.sums.mul_(torch.exp(finite(near) - sums.near)[:, None])
    weights = torch.exp(finite(near)[query] - pairs)[:, None]
    sums.sums.index_add_(0, query, with_ones(memory[row]).mul_(weights))
    sums.near = near


def _log_odds(a: OnlineWeightedMean, b: OnlineWeightedMean) -> Float[Tensor, " B"]:
    """log of a's total weight over b's; the nearest are subtracted first, for they may be far and near each other."""
    return (finite(b.near) - a.near) + a.sums[:, -1].log() - b.sums[:, -1].log()
