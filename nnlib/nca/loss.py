"""Neighborhood component analysis against a bank of every training sample.

    loss = -log p(own class) = softplus(lse_others - lse_own + margin/T)

over p ~ exp(cos(f(x), m)/T), the sample's own row left out: as MemoryBank's reference has it, in a
form that keeps the digits of classes far apart. Both sums, and with them the gradient, gather in
one sweep over the bank, and second derivatives in two more; nothing larger than a block of it is
made.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize, softplus

from nnlib._common.runtime import torch_defaults
from nnlib._common.validation import as_integers, as_tensor, check_number
from nnlib.attention import (
    DotProduct,
    LoopedFunction,
    OnlineWeightedMean,
    average_of,
    finite,
    mask_excluded,
    with_ones,
    working_dtype,
)
from nnlib.distances import wide_dtype
from nnlib.nca.distributed import all_gather_rows, all_reduce_sum, own_rows, world_size
from nnlib.nca.knn import Bank
from nnlib.nca.memory_bank import BankView, view_bank

BLOCK_PAIRS = {"cpu": 1 << 21, "other": 1 << 22}  # of a query and a row, scored at a time
DENSE = 1 / 16  # own-class pairs are gathered one by one where fewer than this are in a block


@torch_defaults()
def nca_loss(
    features: Any,
    labels: Any,
    bank: Bank,
    bank_labels: Any = None,
    exclude: Any = None,
    temperature: float = 0.05,
    margin: float = 0.0,
) -> Float[Tensor, ""]:
    """Return the mean of -log p(own class), each feature's neighbors being the whole bank.

    Over a sharded bank all processes call it at once, and the mean of their losses is that of all.

    Parameters
    ----------
    features : [B, D], of which only directions count; the loss is twice differentiable in them,
        also by torch.func (over a sharded bank once)
    labels : whole numbers [B]; a feature without another sample of its class carries no loss
    bank, bank_labels : MemoryBank, or rows [N, D] with whole numbers [N]; rows of zeros don't count
    exclude : whole numbers [B], the sample whose own row a feature leaves out, -1 for none
    temperature, margin : T of exp(cos/T); lead in cosines that the own class has to have

    Returns
    -------
    Tensor [], NaN where a feature isn't finite; float64 where features are, else float32

    Examples
    --------
    >>> rows, classes = torch.eye(2), torch.tensor([0, 1])
    >>> nca_loss(rows, classes, rows, classes, temperature=1.0)
    tensor(0.3133)
    """
    check_number("temperature", temperature, "(0, inf)")
    check_number("margin", margin, "[0, inf)")
    view = view_bank(bank, bank_labels)
    features = as_tensor("features", features)
    dim = view.memory.shape[1]
    if features.ndim != 2 or features.shape[1] != dim:
        raise ValueError(f"features {tuple(features.shape)} don't fit the bank: give [B, {dim}]")
    if features.device != view.labels.device:
        where = f"features lie on {features.device}, the bank on {view.labels.device}"
        raise ValueError(f"{where}: move them to one device")
    labels = as_integers("labels", labels, len(features)).to(features.device)
    if exclude is None:
        exclude = torch.full_like(labels, -1)
    exclude = as_integers("exclude", exclude, len(features)).to(features.device)
    x = normalize(features.to(working_dtype(features)), dim=1)
    if len(x) == 0 and not view.sharded:
        return x.sum()
    settings = _Settings(view, temperature, margin)
    total = _Losses.apply(x, labels, exclude, settings)[0].sum()
    if not view.sharded:
        return total * (1 / len(x))
    return total * (world_size() / all_reduce_sum(torch.tensor(len(x), device=x.device)))


class _Settings(NamedTuple):
    bank: BankView
    temperature: float
    margin: float


class _Losses(LoopedFunction):
    """The loss of each row of x; its gradient is known as soon as it is."""

    @staticmethod
    def forward(x, labels, exclude, settings: _Settings):
        """The losses [B], and their gradients [B, D], summed in the same sweep."""
        bank, temperature, margin = settings
        outside = labels[(labels < bank.lowest) | (labels > bank.highest)]
        if len(outside):
            known = f"classes of the bank, {bank.lowest} ... {bank.highest}"
            raise ValueError(f"labels holds {outside[0]}: give {known}")
        as_integers("exclude", exclude, interval=(-1, bank.samples - 1))
        others, own = _sum_both_sides(x, labels, bank, exclude, temperature)
        log_odds = _log_odds(own, others) - margin / temperature
        alone = own.sums[:, -1] == 0  # not where a feature is NaN, whose loss is NaN too
        slope = torch.sigmoid(-log_odds) / temperature
        pull = (average_of(others.sums) - average_of(own.sums)) * slope[:, None]
        pull.masked_fill_((alone | (others.sums[:, -1] == 0))[:, None], 0)
        return softplus(-log_odds).masked_fill_(alone, 0), pull

    @staticmethod
    def setup_context(ctx, inputs, output):
        LoopedFunction.setup_context(ctx, inputs, output)
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx, gradient, _):
        *tensors, _, pull = ctx.saved_tensors
        return _Gradients.apply(gradient, *tensors, pull, ctx.settings)[0], None, None, None

    @staticmethod
    def jvp(ctx, tangent, *_):
        return (ctx.saved_tensors[-1] * tangent).sum(1), None


class _Gradients(LoopedFunction):
    """The losses' gradients, each times a number."""

    @staticmethod
    def forward(gradient, x, labels, exclude, pull, settings):
        """The gradients [B, D] that the sweep has summed, times those of the losses [B]."""
        return (gradient[:, None] * pull,)

    @staticmethod
    def backward(ctx, vector):
        gradient, x, labels, exclude, pull, _ = ctx.saved_tensors
        vectors = vector * gradient[:, None]
        product = _Hessians.apply(x, vectors, labels, exclude, ctx.settings)[0]
        return (vector * pull).sum(1), product, *[None] * 4

    @staticmethod
    def jvp(ctx, to_gradient, to_x, *_):
        gradient, x, labels, exclude, pull, _ = ctx.saved_tensors
        vectors = to_x * gradient[:, None]
        product = _Hessians.apply(x, vectors, labels, exclude, ctx.settings)[0]
        return (product + to_gradient[:, None] * pull,)


class _Hessians(LoopedFunction):
    """Each loss's second derivatives times a vector.

    Of log sum exp(m.x/T) these are the covariance of the rows m over T^2, by their own weights.
    """

    @staticmethod
    def forward(x, vectors, labels, exclude, settings: _Settings):
        """The products of each loss's Hessian with a vector, in another sweep."""
        bank, temperature, margin = settings
        if bank.sharded:
            raise NotImplementedError("nca_loss over a sharded bank is differentiable once alone")
        kept = x.dtype
        x, vectors = x.to(wide_dtype(x)), vectors.to(wide_dtype(x))
        sides = _sum_both_sides(x, labels, bank, exclude, temperature)
        products = torch.zeros_like(x)
        others, own = (finite(side.nearest)[:, None] for side in sides)
        weights = [torch.where(side.sums[:, -1:] > 0, side.sums[:, -1:], 1) for side in sides]
        for block in _blocks(bank, len(x)):
            memory, distance = _measure(x / -temperature, bank, block, bank.local_rows(exclude))
            same = labels[:, None] == bank.labels[block]
            share = torch.where(same, own - distance, others - distance).exp_()
            share /= torch.where(same, -weights[1], weights[0])
            products += (share * (vectors @ memory.T)) @ memory
        for side, sign in zip(sides, (-1, 1), strict=True):
            mean = average_of(side.sums)
            products += sign * (mean * vectors).sum(1, keepdim=True) * mean
        odds = torch.sigmoid(margin / temperature - _log_odds(*sides[::-1]))[:, None]
        lead = average_of(sides[0].sums) - average_of(sides[1].sums)
        products += (1 - odds) * (lead * vectors).sum(1, keepdim=True) * lead
        alone = (sides[0].sums[:, -1:] == 0) | (sides[1].sums[:, -1:] == 0)
        return ((products * odds / temperature**2).masked_fill_(alone, 0).to(kept),)


def _sum_both_sides(
    x, labels, bank: BankView, exclude, temperature: float
) -> tuple[OnlineWeightedMean, OnlineWeightedMean]:
    """Return weights and mean rows of all other classes and of the own one, for each row of x."""
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
        memory, distance = _measure(x, bank, block, excluded_row)
        classes = bank.labels[block]
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


def _measure(x, bank: BankView, block: slice, excluded_row) -> tuple[Tensor, Tensor]:
    """Rows of the bank, and x's products with them; inf for those that don't count."""
    memory = bank.memory[block].to(x.dtype)
    distance = mask_excluded(x @ memory.T, excluded_row, block)
    zero = (memory[:, 0] == 0).nonzero()[:, 0]  # few need a look at the whole row
    distance[:, zero[~memory[zero].any(1)]] = torch.inf
    return memory, distance


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
