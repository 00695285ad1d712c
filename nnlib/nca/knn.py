"""Weighted k-nearest-neighbor classification of embeddings: exact, a block at a time, over one process or many."""

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import normalize

from nnlib._common.validation import check_int, check_number
from nnlib.attention import blockwise_nearest, exact_products, working_dtype
from nnlib.distances import NegativeDotProduct
from nnlib.nca.distributed import all_gather_rows, all_reduce_sum, own
from nnlib.nca.memory_bank import MemoryBank, UnitRows

VOTES = 1 << 22  # compared at a time
Rows = tuple[Float[Tensor, "N D"], Int64[Tensor, " N"]]


def knn_predict(
    features: Float[Tensor, "B D"],
    bank: Float[Tensor, "N D"] | MemoryBank,
    bank_labels: Int64[Tensor, " N"] | None = None,
    k: int = 30,
    temperature: float = 0.05,
    exclude: Int64[Tensor, " B"] | None = None,
    top: int | None = None,
    sharded: bool = False,
) -> Int64[Tensor, "B *top"]:
    """The class [B] that the k nearest rows of the bank vote for, each with exp(cos/temperature); k = 1 is 1-NN.

    features [B, D] and rows of any length: only directions count. bank: a MemoryBank, or rows [N, D] with bank_labels
    [N]. exclude [B]: the sample whose own row a feature may not take, -1 for none. top: the so many first classes
    [B, top] instead, -1 where fewer have a vote. sharded: rows, labels and features are this process's part each, and
    all processes call it at once, without exclude; a sharded MemoryBank is so by itself.
    Source: Wu, Efros, Yu, ECCV 2018 (k = 30).
    """
    check_number("temperature", temperature, "(0, inf)", "a positive number, such as 0.05")
    near = nearest_labels(features, bank, bank_labels, k, exclude, sharded)
    classes = _voted(*near, temperature, check_int("top", 1 if top is None else top))
    return classes[:, 0] if top is None else classes


def _voted(cosine, labels, temperature: float, count: int) -> Int64[Tensor, "B top"]:
    size = max(1, VOTES // labels.shape[1] ** 2)
    ranked = [
        _ranked(*part, temperature, count)
        for part in zip(cosine.split(size), labels.split(size), strict=True)
    ]
    return torch.cat(ranked) if ranked else labels.new_empty(0, count)


def _ranked(cosine, labels, temperature: float, count: int) -> Int64[Tensor, "B top"]:
    """The classes of the most votes, first come first where they are equal; votes are relative to the nearest one's."""
    votes = torch.exp((cosine - cosine[:, :1]) / temperature).masked_fill_(labels < 0, 0)
    same = labels[:, :, None] == labels[:, None, :]
    total = (same * votes[:, None, :]).sum(2)
    earlier = same.tril(-1).any(2)  # each class stands for itself once
    first = ~earlier & (labels >= 0)
    order = total.masked_fill(~first, -1).sort(dim=1, descending=True, stable=True)
    ranked = labels.gather(1, order.indices).masked_fill(order.values < 0, -1)[:, :count]
    return torch.nn.functional.pad(ranked, (0, count - ranked.shape[1]), value=-1)


def nearest_labels(
    features, bank, bank_labels=None, k: int = 30, exclude=None, sharded: bool = False
) -> tuple[Float[Tensor, "B k"], Int64[Tensor, "B k"]]:
    """Cosines and labels of the k nearest rows, nearest first; labels of -1 where there are fewer."""
    check_int("k", k)
    _require_fit(features, bank, bank_labels)
    require_samples(exclude, len(bank), len(features))
    x = normalize(features.to(working_dtype(features)), dim=1)
    if isinstance(bank, MemoryBank):
        sharded, rows, labels = bank.sharded, bank.memory, bank.labels
    else:
        rows, labels = UnitRows(bank), bank_labels
        if sharded and exclude is not None:
            raise ValueError(
                "exclude and sharded: give a sharded MemoryBank, which knows where a sample's row is"
            )
    parts = all_gather_rows(x) if sharded else [x]
    skip = exclude if exclude is None or not sharded else torch.cat(all_gather_rows(exclude))
    if isinstance(bank, MemoryBank) and skip is not None:
        skip = torch.where(skip < 0, -1, bank.place[skip] - bank.rows.start)
    cosine, label = _nearest_here(torch.cat(parts), rows, labels, k, skip)
    if sharded:
        cosine, label = (torch.cat(all_gather_rows(part.T)).T for part in (cosine, label))
        cosine, order = cosine.topk(k, dim=1)
        cosine, label = own(cosine, parts), own(label.gather(1, order), parts)
    return cosine, label


def _nearest_here(x, rows, labels, k: int, exclude) -> tuple[Tensor, Tensor]:
    if len(x) == 0:
        return x.new_empty(0, k), labels.new_empty(0, k)
    with exact_products():
        distance, index = blockwise_nearest(x, rows, k, NegativeDotProduct(), exclude)
    return -distance, torch.where(index >= 0, labels[index.clamp(min=0)], -1)


@torch.no_grad()
def embed(
    network: nn.Module | Callable, batches: Iterable, device: str | torch.device | None = None
) -> Rows:
    """Unit features [N, D] and labels [N] of (pictures, labels, ...) batches, in evaluation mode.

    On `device`, by default where the network's weights are.
    """
    if device is None and isinstance(network, nn.Module):
        device = next((weight.device for weight in network.parameters()), None)
    training = getattr(network, "training", False)
    if training:
        network.eval()
    try:
        found = [(network(batch[0].to(device)), batch[1].to(device)) for batch in batches]
    finally:
        if training:
            network.train()
    if not found:
        raise ValueError("batches is empty: give at least one batch of (pictures, labels)")
    features, labels = (torch.cat(each) for each in zip(*found, strict=True))
    return normalize(features.float(), dim=1), labels


def knn_evaluate(
    network: nn.Module | Callable,
    queries: Iterable,
    gallery: Iterable | None = None,
    *,
    stale: MemoryBank | None = None,
    k: int = 30,
    temperature: float = 0.05,
    device: str | torch.device | None = None,
    sharded: bool = False,
) -> dict[str, float]:
    """Shares of right answers of the k-NN: knn_top1, knn_top5, and nearest_top1 of the one nearest.

    queries, gallery: batches of (pictures, labels, ...), as DataLoaders give them. The gallery is embedded anew by the
    network as it is now; a bank that still holds features of earlier steps is taken only where it is named, as `stale`.
    sharded: both are this process's part; the result is that of all processes.
    """
    if (gallery is None) == (stale is None):
        raise ValueError(
            "gallery and stale: give one of them, the gallery's batches or a bank by name"
        )
    asked = embed(network, queries, device)
    bank = (stale, None) if stale is not None else embed(network, gallery, device)
    return knn_accuracy(*asked, *bank, k=k, temperature=temperature, sharded=sharded)


def knn_accuracy(
    features,
    labels,
    bank,
    bank_labels=None,
    k: int = 30,
    temperature: float = 0.05,
    sharded: bool = False,
) -> dict[str, float]:
    """Shares of right answers, as `knn_evaluate` gives them, for features [B, D] of the classes labels [B]."""
    cosine, near = nearest_labels(features, bank, bank_labels, k, sharded=sharded)
    hit = _voted(cosine, near, temperature, 5) == labels[:, None]
    right = torch.stack([hit[:, 0], hit.any(1), near[:, 0] == labels]).sum(1)
    counts = torch.cat([right, right.new_tensor([len(labels)])])
    if sharded or getattr(bank, "sharded", False):
        all_reduce_sum(counts)
    *right, total = counts.tolist()
    return dict(
        zip(
            ("knn_top1", "knn_top5", "nearest_top1"),
            (count / total for count in right),
            strict=True,
        )
    )


def require_samples(
    exclude: Int64[Tensor, " B"] | None, samples: int, queries: int | None = None
) -> None:
    """Raise ValueError for an `exclude` that isn't -1 or a sample's number for each of the queries."""
    if exclude is None or exclude.numel() == 0:
        return
    if queries is not None and exclude.shape != (queries,):
        raise ValueError(
            f"exclude has shape {tuple(exclude.shape)}: give [{queries}], a sample for each feature or -1"
        )
    low, high = int(exclude.min()), int(exclude.max())
    if low < -1 or high >= samples:
        raise ValueError(
            f"exclude holds {low if low < -1 else high}: give samples 0 ... {samples - 1}, or -1"
        )


def _require_fit(x, bank, labels) -> None:
    whole = isinstance(bank, MemoryBank)
    shape = (len(bank), bank.dim) if whole else tuple(bank.shape)
    given = None if labels is None else (labels.dtype, tuple(labels.shape))
    if x.ndim != 2 or len(shape) != 2 or x.shape[1] != shape[1] or shape[0] == 0:
        raise ValueError(
            f"features {tuple(x.shape)} and bank {shape}: give [B, D] and [N, D], N 1 or more"
        )
    if given != (None if whole else (torch.int64, shape[:1])):
        wanted = "none beside a MemoryBank, which has its own" if whole else f"int64 [{shape[0]}]"
        raise ValueError(f"bank_labels is {given}: give {wanted}")
