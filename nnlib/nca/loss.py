"""Neighborhood component analysis against a bank of every training sample.

    loss = -log p(own class) = softplus(lse_others - lse_own + margin/T)

over p ~ exp(cos(f(x), m)/T), the sample's own row left out: as MemoryBank's reference has it, in a
form that keeps the digits of classes far apart. Both sums, and with them the gradient, gather in
one sweep over the bank; nothing larger than a block of it is made.
"""

from collections.abc import Iterator

import torch
import torch.distributed as dist
from jaxtyping import Float, Int64, Shaped
from torch import Tensor
from torch.nn.functional import normalize, softplus

from nnlib._common.runtime import torch_defaults
from nnlib._common.validation import check_number
from nnlib.attention import (
    DotProduct,
    OnlineWeightedMean,
    average_of,
    finite,
    mask_excluded,
    with_ones,
    working_dtype,
)
from nnlib.nca.distributed import all_gather_rows, all_reduce_sum, own_rows, world_size
from nnlib.nca.knn import Bank, check_exclude
from nnlib.nca.memory_bank import BankView, view_bank

BLOCK_PAIRS = {"cpu": 1 << 21, "other": 1 << 22}  # of a query and a row, scored at a time
DENSE = 1 / 16  # own-class pairs are gathered one by one where fewer than this are in a block


def nca_loss(
    features: Shaped[Tensor, "B D"],
    labels: Int64[Tensor, " B"],
    bank: Bank,
    bank_labels: Int64[Tensor, " N"] | None = None,
    exclude: Int64[Tensor, " B"] | None = None,
    temperature: float = 0.05,
    margin: float = 0.0,
) -> Float[Tensor, ""]:
    """Return the mean of -log p(own class), each feature's neighbors being the whole bank.

    Over a sharded bank all processes call it at once, and the mean of their losses is that of all.

    Parameters
    ----------
    features : [B, D], of which only directions count; the loss is once differentiable in them
    labels : int64 [B]; a feature without another sample of its class carries no loss
    bank, bank_labels : MemoryBank, or rows [N, D] with int64 [N]
    exclude : int64 [B], the sample whose own row a feature leaves out, -1 for none
    temperature, margin : T of exp(cos/T); lead in cosines that the own class has to have

    Examples
    --------
    >>> rows, classes = torch.eye(2), torch.tensor([0, 1])
    >>> nca_loss(rows, classes, rows, classes, temperature=1.0)
    tensor(0.3133)
    """
    check_number("temperature", temperature, "(0, inf)")
    check_number("margin", margin, "[0, inf)")
    bank = view_bank(bank, bank_labels)
    _check_batch(bank, features, labels, exclude)
    x = normalize(features.to(working_dtype(features)), dim=1)
    if len(x) == 0 and not bank.sharded:
        return x.sum()
    total = _Losses.apply(x, labels, bank, exclude, temperature, margin).sum()
    if not bank.sharded:
        return total * (1 / len(x))
    return total * (world_size() / all_reduce_sum(torch.tensor(len(x), device=x.device)))


def _check_batch(bank: BankView, features, labels, exclude) -> None:
    """Raise ValueError, naming it, for what doesn't fit the bank."""
    dim = bank.memory.shape[1]
    if features.ndim != 2 or features.shape[1] != dim:
        raise ValueError(f"features {tuple(features.shape)} don't fit the bank: give [B, {dim}]")
    if labels.dtype != torch.int64 or labels.shape != features.shape[:1]:
        given = f"{labels.dtype} {tuple(labels.shape)}"
        raise ValueError(f"labels is {given}: give int64 [{len(features)}]")
    outside = labels[(labels < bank.lowest) | (labels > bank.highest)]
    if len(outside):
        known = f"{bank.lowest} ... {bank.highest}"
        raise ValueError(f"labels holds {outside[0]}: give classes of the bank, {known}")
    check_exclude(exclude, bank.samples, len(features))
    tensors = (features, labels, exclude, bank.labels)
    devices = sorted({str(each.device) for each in tensors if each is not None})
    if len(devices) > 1:
        where = " and ".join(devices)
        raise ValueError(f"features, labels, bank lie on {where}: move them to one device")


class _Losses(torch.autograd.Function):
    """The loss of each row of x; its gradient is known as soon as it is."""

    @staticmethod
    def forward(ctx, x, labels, bank, exclude, temperature, margin):
        """The losses [B]; their gradient is summed in the same sweep, and saved."""
        with torch_defaults():
            others, own = _sum_both_sides(x, labels, bank, exclude, temperature)
        log_odds = _log_odds(own, others) - margin / temperature
        alone = own.sums[:, -1] == 0  # not where a feature is NaN, whose loss is NaN too
        slope = torch.sigmoid(-log_odds) / temperature
        pull = (average_of(others.sums) - average_of(own.sums)) * slope[:, None]
        ctx.save_for_backward(pull.masked_fill_((alone | (others.sums[:, -1] == 0))[:, None], 0))
        return softplus(-log_odds).masked_fill_(alone, 0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return gradient[:, None] * ctx.saved_tensors[0], None, None, None, None, None


def _sum_both_sides(
    x, labels, bank: BankView, exclude, temperature: float
) -> tuple[OnlineWeightedMean, OnlineWeightedMean]:
    """Return weights and mean rows of all other classes and of the own one, for each row of x."""
    if exclude is None:
        exclude = torch.full_like(labels, -1)
    parts = [x]
    if bank.sharded:
        parts = all_gather_rows(x)
        labels = torch.cat(all_gather_rows(labels))
        exclude = torch.cat(all_gather_rows(exclude))
    row = bank.local_rows(exclude)
    here = row >= 0
    if not torch.equal(bank.labels[row[here]], labels[here]):
        raise ValueError("labels differ from those that the bank has for the samples in exclude")
    sides = _sweep_bank(torch.cat(parts) / -temperature, labels, bank, row)
    if bank.sharded:
        for side in sides:
            nearest = side.nearest.clone()
            dist.all_reduce(nearest, dist.ReduceOp.MIN)
            sums = all_reduce_sum(side.sums * torch.exp(finite(nearest) - side.nearest)[:, None])
            side.nearest = own_rows(nearest, parts)
            side.sums = own_rows(sums, parts)
    return sides


def _blocks(bank: BankView, queries: int) -> Iterator[slice]:
    kind = "cpu" if bank.labels.device.type == "cpu" else "other"
    size = max(1, BLOCK_PAIRS[kind] // max(1, queries))
    for start in range(0, len(bank.labels), size):
        yield slice(start, min(start + size, len(bank.labels)))


def _sweep_bank(
    x, labels, bank: BankView, excluded_row
) -> tuple[OnlineWeightedMean, OnlineWeightedMean]:
    """Sweep the rows here once, for minus the scaled features: a nearer row's product is smaller.

    Few pairs are of one class: their part is gathered out of a block, and then masked in it.
    """
    others, own = (OnlineWeightedMean(DotProduct(), len(x), x.shape[1], x) for _ in range(2))
    for block in _blocks(bank, len(x)):
        memory = bank.memory[block].to(x.dtype)
        classes = bank.labels[block]
        distance = mask_excluded(x @ memory.T, excluded_row, block)
        low, high = torch.aminmax(classes)
        queries = ((labels >= low) & (labels <= high)).nonzero()[:, 0]  # few, in a sorted bank
        same = labels[queries, None] == classes
        if int(same.sum()) > same.numel() * DENSE:
            split = distance[queries]
            own.add(split.masked_fill(~same, torch.inf), memory, queries)
            distance[queries] = split.masked_fill_(same, torch.inf)
        else:
            query, row = same.nonzero(as_tuple=True)
            _add_pairs(own, distance, memory, queries[query], row)
            distance[queries[query], row] = torch.inf
        others.add(distance, memory)
    return others, own


def _add_pairs(mean: OnlineWeightedMean, distance, memory, query, row) -> None:
    """Take some pairs of a query and a row alone into the mean."""
    pairs = distance[query, row]
    nearest = mean.nearest.scatter_reduce(0, query, pairs, "amin")
    mean.sums.mul_(torch.exp(finite(nearest) - mean.nearest)[:, None])
    weights = torch.exp(finite(nearest)[query] - pairs)[:, None]
    mean.sums.index_add_(0, query, with_ones(memory[row]).mul_(weights))
    mean.nearest = nearest


def _log_odds(a: OnlineWeightedMean, b: OnlineWeightedMean) -> Float[Tensor, " B"]:
    """Return log of a's total weight over b's; far but similar distances cancel first."""
    return (finite(b.nearest) - a.nearest) + a.sums[:, -1].log() - b.sums[:, -1].log()
