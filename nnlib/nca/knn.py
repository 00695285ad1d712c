"""Weighted k-nearest-neighbor classification of embeddings: exact, over one process or many."""

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import normalize, pad

from nnlib._common.runtime import full_precision
from nnlib._common.validation import check_int, check_number
from nnlib.attention import blockwise_nearest, working_dtype
from nnlib.distances import NegativeDotProduct
from nnlib.nca.distributed import all_gather_rows, all_reduce_sum, own_rows
from nnlib.nca.memory_bank import MemoryBank, view_bank

VOTE_PAIRS = 1 << 22  # pairs of neighbors compared at a time
Bank = Float[Tensor, "N D"] | MemoryBank


def knn_predict(
    features: Float[Tensor, "B D"],
    bank: Bank,
    bank_labels: Int64[Tensor, " N"] | None = None,
    k: int = 30,
    temperature: float = 0.05,
    exclude: Int64[Tensor, " B"] | None = None,
    top: int | None = None,
    sharded: bool = False,
) -> Int64[Tensor, "B *top"]:
    """Return the class that the k nearest rows vote for, each with the weight exp(cos/temperature).

    Parameters
    ----------
    features : [B, D], of which only directions count
    bank, bank_labels : MemoryBank, or rows [N, D] with int64 [N]
    k, temperature : number of neighbors, and T of their weights
    exclude : int64 [B], the sample whose own row a feature may not take, -1 for none
    top : return so many first classes, -1 where fewer have a vote
    sharded : features and plain rows are this process's part, and all processes call at once

    Returns
    -------
    int64 [B], or [B, top]

    Examples
    --------
    >>> knn_predict(torch.tensor([[2.0, 1.0]]), torch.eye(2), torch.tensor([7, 8]), k=1)
    tensor([7])
    """
    check_number("temperature", temperature, "(0, inf)")
    cosines, labels = _nearest(features, bank, bank_labels, k, exclude, sharded)
    classes = _vote(cosines, labels, temperature, 1 if top is None else check_int("top", top))
    return classes[:, 0] if top is None else classes


def _nearest(features, bank, bank_labels, k, exclude, sharded) -> tuple[Tensor, Tensor]:
    """Return cosines and labels of the nearest rows, nearest first; labels of -1 for none."""
    check_int("k", k)
    bank = view_bank(bank, bank_labels, sharded)
    if features.ndim != 2 or features.shape[1] != bank.memory.shape[1]:
        shapes = f"features {tuple(features.shape)} and bank {tuple(bank.memory.shape)}"
        raise ValueError(f"{shapes}: give [B, D] and [N, D]")
    check_exclude(exclude, bank.samples, len(features))
    x = normalize(features.to(working_dtype(features)), dim=1)
    parts = all_gather_rows(x) if bank.sharded else [x]
    if exclude is not None:
        everyone = all_gather_rows(exclude) if bank.sharded else [exclude]
        exclude = bank.local_rows(torch.cat(everyone))
    with full_precision():
        x = torch.cat(parts)
        distances, rows = blockwise_nearest(x, bank.memory, k, NegativeDotProduct(), exclude)
    cosines = -distances
    labels = bank.labels[rows.clamp(min=0)].masked_fill(rows < 0, -1)
    if not bank.sharded:
        return cosines, labels
    cosines, order = torch.cat(all_gather_rows(cosines.T)).T.topk(k, dim=1)
    labels = torch.cat(all_gather_rows(labels.T)).T.gather(1, order)
    return own_rows(cosines, parts), own_rows(labels, parts)


def check_exclude(exclude: Tensor | None, samples: int, queries: int) -> None:
    """Raise ValueError for an `exclude` that isn't -1 or a sample's number for each query."""
    if exclude is None:
        return
    if exclude.dtype != torch.int64 or exclude.shape != (queries,):
        given = f"{exclude.dtype} {tuple(exclude.shape)}"
        raise ValueError(f"exclude is {given}: give int64 [{queries}], samples or -1")
    outside = exclude[(exclude < -1) | (exclude >= samples)]
    if len(outside):
        raise ValueError(f"exclude holds {outside[0]}: give samples 0 ... {samples - 1}, or -1")


def _vote(cosines, labels, temperature: float, top: int) -> Int64[Tensor, "B top"]:
    """Return the classes of the most votes, the nearest first where votes are equal."""
    size = max(1, VOTE_PAIRS // labels.shape[1] ** 2)
    ranked = [labels.new_empty(0, top)]
    for cosine, label in zip(cosines.split(size), labels.split(size), strict=True):
        votes = torch.exp((cosine - cosine[:, :1]) / temperature).masked_fill_(label < 0, 0)
        same = label[:, :, None] == label[:, None, :]
        total = (same * votes[:, None, :]).sum(2)
        repeated = same.tril(-1).any(2)  # a class counts where it is met first
        order = total.masked_fill(repeated | (label < 0), -1).sort(descending=True, stable=True)
        classes = label.gather(1, order.indices).masked_fill(order.values < 0, -1)[:, :top]
        ranked.append(pad(classes, (0, top - classes.shape[1]), value=-1))
    return torch.cat(ranked)


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
    training = module.training
    if training:
        module.eval()
    try:
        pairs = [(network(batch[0].to(device)), batch[1].to(device)) for batch in batches]
    finally:
        if training:
            module.train()
    if not pairs:
        raise ValueError("batches is empty: give at least one batch of (images, labels)")
    features, labels = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    return normalize(features.float(), dim=1), labels


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


def knn_accuracy(
    features, labels, bank: Bank, bank_labels=None, k=30, temperature=0.05, sharded=False
) -> dict[str, float]:
    """Return the fractions of features whose class the k-NN finds.

    Parameters
    ----------
    features, labels : features [B, D] and their classes int64 [B]
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
    cosines, neighbor_labels = _nearest(features, bank, bank_labels, k, None, sharded)
    hits = _vote(cosines, neighbor_labels, temperature, 5) == labels[:, None]
    nearest = neighbor_labels[:, 0] == labels
    counts = torch.stack([hits[:, 0], hits.any(1), nearest, torch.ones_like(nearest)]).sum(1)
    if sharded or getattr(bank, "sharded", False):
        all_reduce_sum(counts)
    *right, total = counts.tolist()
    names = ("knn_top1", "knn_top5", "nearest_top1")
    return {name: count / total for name, count in zip(names, right, strict=True)}
