"""What one would take instead: the same averages, losses and neighbors by other libraries.

Each peer is given the form that suits it best. A peer that isn't installed is None.
"""

import importlib.util
import os
from collections.abc import Callable

import torch
from sklearn.metrics import pairwise_distances_chunked
from torch import Tensor

from nnlib.attention import InverseDistance, attend, nearest
from nnlib.nca import nca_loss

CHUNK = 1000  # queries of whole rows of weights at a time, where a peer would fill the memory
FEW = 16  # features up to which a fused loop over pairs is worth its time
EPSILON, EXPONENT = InverseDistance.epsilon, InverseDistance.exponent


def averages(features: int) -> dict[str, Callable | None]:
    """(queries, centers, values) -> averages by inverse fourth powers of distances, by name."""
    return {
        "nnlib": _by_attend,
        "cdist + softmax": _in_chunks(softmax_averages),
        "scikit-learn": None if torch.cuda.is_available() else _by_sklearn,
        "KeOps": _by_keops if _has("pykeops") and features <= FEW else None,
    }


def neighbors(features: int) -> dict[str, Callable | None]:
    """(queries, centers, count) -> indices of the nearest centers, by name."""
    return {
        "nnlib": lambda x, c, k: nearest(x, c, k, InverseDistance(), backend="blocks")[1],
        "product + topk": _in_chunks(_topk),
        "FAISS": _by_faiss if _has("faiss") else None,
    }


def losses() -> dict[str, Callable | None]:
    """(features, labels, bank, bank labels, own rows) -> the NCA loss, by name."""
    return {
        "nnlib": nca_loss,
        "as published": _published_loss,
        "metric learning": _metric_learning_loss if _has("pytorch_metric_learning") else None,
    }


def _has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _in_chunks(peer: Callable) -> Callable:
    return lambda x, *others: torch.cat([peer(part, *others) for part in x.split(CHUNK)])


def _by_attend(x, c, v):
    return attend(x, c, v, InverseDistance(), backend="blocks" if x.is_cpu else "auto")


def softmax_averages(x: Tensor, c: Tensor, v: Tensor) -> Tensor:
    """Averages [B, V] by whole rows of distances, in place where no gradient is asked for."""
    distance = torch.cdist(x, c)
    if torch.is_grad_enabled() and x.requires_grad:
        scores = (distance + EPSILON).log() * EXPONENT
    else:
        scores = distance.add_(EPSILON).log_().mul_(EXPONENT)
    return torch.softmax(scores, 1) @ v


def _by_sklearn(x, c, v):
    def reduced(distance, start):
        weights = (distance + EPSILON) ** EXPONENT
        return weights @ v.numpy() / weights.sum(1, keepdims=True)

    how = {"reduce_func": reduced, "working_memory": 128}
    parts = pairwise_distances_chunked(x.numpy(), c.numpy(), **how)
    return torch.cat([torch.from_numpy(part) for part in parts])


def _by_keops(x, c, v):
    """Sums of powers, without the running maximum for which a softmax takes four times as long."""
    os.environ.setdefault("PYKEOPS_VERBOSE", "0")
    from pykeops.torch import LazyTensor

    squares = ((LazyTensor(x[:, None]) - LazyTensor(c[None])) ** 2).sum(-1)
    distance = squares.sqrt() + EPSILON
    sums = (1 / (distance**2) ** 2) @ torch.cat([v, torch.ones_like(v[:, :1])], 1)
    return sums[:, :-1] / sums[:, -1:]


def _topk(x, c, count):
    squares = torch.addmm((c * c).sum(1).expand(len(x), -1), x, c.T, alpha=-2)
    return squares.topk(count, largest=False).indices


def _by_faiss(x, c, count):
    import faiss

    return torch.from_numpy(faiss.knn(x.cpu().numpy(), c.cpu().numpy(), count)[1])


def _published_loss(x, y, bank, labels, own):
    """Whole rows of scores, as published: exponentials, a mask of the own class, a quotient."""
    weights = torch.exp(torch.nn.functional.normalize(x) @ bank.T / 0.05)
    weights = weights.scatter(1, own[:, None], 0)
    same = (weights * (labels == y[:, None])).sum(1)
    return -(same / weights.sum(1)).log().mean()


def _metric_learning_loss(x, y, bank, labels, own):
    """Its own loss, of squared distances; it can't leave out a feature's own row."""
    from pytorch_metric_learning.losses import NCALoss

    return NCALoss(softmax_scale=10)(x, y, ref_emb=bank, ref_labels=labels)
