"""Weighted k-nearest-neighbor classification of embeddings: exact, over one process or many."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn.functional import normalize, pad

from nnlib._common.runtime import torch_defaults
from nnlib._common.validation import (
    as_integers,
    as_tensor,
    check_finite,
    check_int,
    check_number,
    like_input,
)
from nnlib.attention import working_dtype
from nnlib.distances import normalize_rows, wide_dtype
from nnlib.nca.distributed import all_gather_rows, all_reduce_sum, own_rows
from nnlib.nca.memory_bank import BankView, view_bank

BLOCK_QUERIES = {"cpu": 256, "other": 1024}
BLOCK_PAIRS = {"cpu": 1 << 22, "other": 1 << 25}  # of a query and a row, compared at a time
Bank = Any  # a MemoryBank, or rows [N, D]


@torch_defaults()
def knn_predict(
    features: Any,
    bank: Bank,
    bank_labels: Any = None,
    k: int = 30,
    temperature: float = 0.05,
    exclude: Any = None,
    top: int | None = None,
    sharded: bool = False,
) -> Int64[Tensor, "B *top"]:
    """Return the class that the k nearest rows vote for, each with the weight exp(cos/temperature).

    Classes of equal votes come in the order of their nearest rows. Rows of zeros don't vote.

    Parameters
    ----------
    features : [B, D], of which only directions count
    bank, bank_labels : MemoryBank, or rows [N, D] with whole numbers [N]
    k, temperature : number of neighbors, and T of their weights
    exclude : whole numbers [B], the sample whose own row a feature may not take, -1 for none
    top : return so many first classes
    sharded : features and plain rows are this process's part, and all processes call at once

    Returns
    -------
    int64 [B], or [B, top], as a tensor for tensors; where fewer classes have a vote, -1, or one
    less than the least label where labels are negative

    Raises
    ------
    ValueError, naming what holds NaN or infinity, doesn't fit, or makes no sense.

    Examples
    --------
    >>> knn_predict(torch.tensor([[2.0, 1.0]]), torch.eye(2), torch.tensor([7, 8]), k=1)
    tensor([7])
    """
    count = 1 if top is None else check_int("top", top)
    view = view_bank(bank, bank_labels, sharded)
    classes, voted, _ = _classify(features, view, k, temperature, exclude, count)
    classes = classes.masked_fill(~voted, min(view.lowest, 0) - 1)
    return like_input(classes[:, 0] if top is None else classes, features)


def _classify(
    features, bank: BankView, k: int, temperature: float, exclude, top: int
) -> tuple[Int64[Tensor, "B top"], Bool[Tensor, "B top"], Int64[Tensor, " B"]]:
    """Return the classes of most votes, whether there are so many, and the nearest row's class."""
    check_int("k", k)
    check_number("temperature", temperature, "(0, inf)")
    x = as_tensor("features", features).detach().to(bank.labels.device)
    if x.ndim != 2 or x.shape[1] != bank.memory.shape[1]:
        shapes = f"features {tuple(x.shape)} and bank {tuple(bank.memory.shape)}"
        raise ValueError(f"{shapes}: give [B, D] and [N, D]")
    check_finite("features", x)
    exclude = [-1] * len(x) if exclude is None else exclude
    exclude = as_integers("exclude", exclude, len(x), (-1, bank.samples - 1)).to(x.device)
    x = normalize_rows(x.to(working_dtype(x, bank.memory)))
    parts = all_gather_rows(x, bank.sharded)
    own = bank.local_rows(torch.cat(all_gather_rows(exclude, bank.sharded)))
    size = BLOCK_QUERIES["cpu" if x.device.type == "cpu" else "other"]
    found = []
    for queries, rows in zip(torch.cat(parts).split(size), own.split(size), strict=True):
        cosines, labels = _nearest(queries, bank, k, rows)
        found.append((*_vote(cosines, labels, temperature, top), labels[:, 0]))
    classes, voted, nearest = (torch.cat(each) for each in zip(*found, strict=True))
    return own_rows(classes, parts), own_rows(voted, parts), own_rows(nearest, parts)


def _nearest(x, bank: BankView, k: int, excluded_row) -> tuple[Float[Tensor, "B K"], Tensor]:
    """Return cosines and labels of the nearest rows, nearest first; -inf where none is left."""
    cosines = x.new_empty(len(x), 0)
    labels = bank.labels.new_empty(len(x), 0)
    pairs = BLOCK_PAIRS["cpu" if x.device.type == "cpu" else "other"]
    size = max(1, pairs // max(1, len(x)))
    for start in range(0, len(bank.labels), size):
        rows = bank.memory[start : start + size].to(x.dtype)
        empty = rows.new_zeros(len(rows)).masked_fill_(~rows.any(1), -torch.inf)
        cosine = torch.addmm(empty, x, rows.T)
        row = (excluded_row - start)[:, None]
        column = row.clamp(0, len(rows) - 1)
        kept = cosine.gather(1, column).masked_fill(row == column, -torch.inf)
        found, place = cosine.scatter_(1, column, kept).topk(min(k, len(rows)))
        near = bank.labels[start : start + size][place]
        cosines, labels = _merge([cosines, found], [labels, near], k)
    if bank.sharded:
        both = [torch.cat(all_gather_rows(part.T.contiguous())).T for part in (cosines, labels)]
        cosines, labels = _merge(both[:1], both[1:], k)
    return cosines, labels


def _merge(cosines: list, labels: list, k: int) -> tuple[Float[Tensor, "B K"], Tensor]:
    joined = torch.cat(cosines, 1)
    nearest, order = joined.topk(min(k, joined.shape[1]))
    return nearest, torch.cat(labels, 1).gather(1, order)


def _vote(
    cosines, labels, temperature: float, top: int
) -> tuple[Int64[Tensor, "B top"], Bool[Tensor, "B top"]]:
    """Return the classes of most votes, the nearest first where votes are equal, and which are."""
    weights = torch.exp((cosines - cosines[:, :1].clamp(min=-1)) / temperature)
    classes, order = labels.sort(dim=1, stable=True)
    begins = torch.ones_like(classes, dtype=torch.bool)  # a class counts where it is met first
    begins[:, 1:] = classes[:, 1:] != classes[:, :-1]
    group = begins.cumsum(1) - 1
    weights = weights.to(wide_dtype(weights)).gather(1, order)
    total = torch.zeros_like(weights).scatter_add_(1, group, weights).gather(1, group)
    absent = cosines.gather(1, order) == -torch.inf
    total = total.masked_fill_(~begins | absent, -1)
    ranked = torch.empty_like(total).scatter_(1, order, total).sort(descending=True, stable=True)
    missing = (0, max(0, top - labels.shape[1]))
    votes = pad(ranked.values[:, :top], missing, value=-1)
    return pad(labels.gather(1, ranked.indices)[:, :top], missing), votes >= 0


@torch.no_grad()
def embed(network: nn.Module | Callable, batches: Iterable, device=None) -> tuple[Tensor, Tensor]:
    """Return unit features and labels of batches, by a network in evaluation mode.

    Parameters
    ----------
    network : module or function from images [B, ...] to features [B, D]
    batches : iterable of (images, labels, ...), as a DataLoader gives them
    device : where to compute, by default where the network's weights are

    Returns
    -------
    features [N, D], labels [N]

    Examples
    --------
    >>> embed(torch.nn.Identity(), [(torch.tensor([[3.0, 4.0]]), torch.tensor([1]))])
    (tensor([[0.6000, 0.8000]]), tensor([1]))
    """
    module = network if isinstance(network, nn.Module) else nn.Identity()
    if device is None:
        device = next((weight.device for weight in module.parameters()), None)
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        pairs = [
            (network(as_tensor("batches", batch[0]).to(device)), as_tensor("batches", batch[1]))
            for batch in batches
        ]
    finally:
        for part, mode in modes:
            part.training = mode
    if not pairs:
        raise ValueError("batches is empty: give at least one batch of (images, labels)")
    with torch_defaults():
        features, labels = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        return normalize(features.float(), dim=1), labels.to(features.device)


def knn_evaluate(network: nn.Module | Callable, queries: Iterable, gallery: Iterable, **settings):
    """Return the accuracy of the k-NN, the gallery being embedded anew by the network as it is.

    Parameters
    ----------
    network, queries, gallery : as for `embed`
    settings : k, temperature and sharded, as for `knn_accuracy`

    Examples
    --------
    >>> batches = [(torch.eye(2), torch.tensor([0, 1]))]
    >>> knn_evaluate(torch.nn.Identity(), batches, batches)["knn_top1"]
    1.0
    """
    return knn_accuracy(*embed(network, queries), *embed(network, gallery), **settings)


@torch_defaults()
def knn_accuracy(
    features, labels, bank: Bank, bank_labels=None, k=30, temperature=0.05, sharded=False
) -> dict[str, float]:
    """Return the fractions of features whose class the k-NN finds.

    Parameters
    ----------
    features, labels : features [B, D] and their classes [B]
    bank, bank_labels, k, temperature, sharded : as for `knn_predict`

    Returns
    -------
    dict of knn_top1, knn_top5 (among the first five), nearest_top1 (by the nearest row alone)

    Examples
    --------
    >>> rows, labels = torch.eye(2), torch.tensor([0, 1])
    >>> knn_accuracy(rows, labels, rows, labels)["nearest_top1"]
    1.0
    """
    view = view_bank(bank, bank_labels, sharded)
    classes, voted, nearest = _classify(features, view, k, temperature, None, 5)
    labels = as_integers("labels", labels, len(classes)).to(classes.device)
    hits = voted & (classes == labels[:, None])
    right = (hits[:, 0], hits.any(1), nearest == labels, torch.ones_like(nearest))
    counts = torch.stack([each.sum() for each in right])
    if view.sharded:
        all_reduce_sum(counts)
    *found, total = counts.tolist()
    names = ("knn_top1", "knn_top5", "nearest_top1")
    return {name: count / total for name, count in zip(names, found, strict=True)}
