"""The tracks of `nnbook.frontier`: a set, what is made of its pictures, a metric's settings, and numbers of centers."""

import tempfile
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from nnlib.datasets import load
from nnlib.features import PatchFeatures, shifted_copies
from nnlib.nca import embed
from nnlib.training import TrainingConfig, batches, in_order, open_pictures, train

VALIDATION = 5_000  # pictures held out of the training set to choose by


class Halves(NamedTuple):
    """Features and labels to learn from, to choose by, and to be judged by."""

    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


class Track(NamedTuple):
    """data: the set's name. prepared(data, seed): its features, before a label is looked at, or as an embedding.

    metric: NCATransformer's settings, None for none. counts: of centers. beside: how the names of the methods begin that
    are measured on the same features. copies: of each training picture, they themselves first.
    """

    data: str
    prepared: Callable[[str, int], Halves]
    metric: dict | None
    counts: tuple[int, ...]
    beside: tuple[str, ...] = ("k nearest", "ridge")
    copies: int = 1


def halves(data: str, seed: int) -> Halves:
    """The training pictures shuffled by the seed, VALIDATION of them held out, and the test pictures."""
    found = load(data)
    order = torch.randperm(len(found.train_labels), generator=torch.Generator().manual_seed(seed))
    kept, held = order[VALIDATION:], order[:VALIDATION]
    pairs = [(found.train_images[part], found.train_labels[part]) for part in (kept, held)]
    return Halves(*pairs, (found.test_images, found.test_labels))


def plain(data: str, seed: int) -> Halves:
    """Pixels as a vector: no geometry."""
    return Halves(*((x.flatten(1), y) for x, y in halves(data, seed)))


def patches(data: str, seed: int, copies: int = 1, **settings) -> Halves:
    """How much of each of many whitened patches is where, in roots, which even out a few strong answers.

    copies: of the training pictures, all but the first moved by a pixel.
    """
    sets = halves(data, seed)
    model = PatchFeatures(threshold=0.5, matmul_dtype="bfloat16", compact=True, **settings).fit(
        sets.train[0]
    )
    sets = sets._replace(train=shifted_copies(*sets.train, copies=copies, seed=seed))
    return Halves(*((model.transform(x).sqrt_(), y) for x, y in sets))


def white(
    data: str, seed: int, dim: int, floor: float, before: Callable[[str, int], Halves] = plain
) -> Halves:
    """The coordinates along the axes of largest variance, evened out: gradients otherwise miss what is faint."""
    sets = before(data, seed)
    x = sets.train[0].flatten(1).float()
    pca = PCA(dim, svd_solver="covariance_eigh").fit(x.numpy())
    deviations = np.sqrt(pca.explained_variance_ + floor * float(x.var(0).mean()))
    mean, axes = (
        torch.from_numpy(pca.mean_),
        torch.from_numpy(pca.components_.T / deviations).float(),
    )
    return Halves(*((((x.flatten(1).float() - mean) @ axes).bfloat16(), y) for x, y in sets))


def embedded(data: str, seed: int, **settings) -> Halves:
    """Unit features of a network that chapter 4 trains, of the pictures as they are tested."""
    made = TrainingConfig(
        data, arch="small", schedule="cosine", watch="stale", seed=seed, progress=False, **settings
    )
    parts = open_pictures(*made.of_pictures())
    with tempfile.TemporaryDirectory() as folder:
        made.out = f"{folder}/run"
        network = train(made).trained.network
    of = lambda part: embed(network, batches(part, in_order(part, slice(None), 500)))  # noqa: E731
    return Halves(*(of(part) for part in (parts.train, parts.validation, parts.test)))


COPIES = 3
MNIST, CIFAR = (10, 30, 100, 300), (10, 100, 1000)
MOVED = {
    "dropout": 0.0,
    "drop_inputs": 0.0,
}  # learning from rows moved against the metric takes the place of both
COLOURED = partial(patches, count=1024, softening=300.0, mirror=True)
TRACKS = {
    "mnist_vector": Track(
        "mnist", plain, MOVED | {"epochs": 20, "adversarial": 0.15}, MNIST, ("",)
    ),
    "mnist_geometry": Track(
        "mnist",
        partial(patches, count=200, pool=3, copies=COPIES),
        MOVED | {"epochs": 5, "adversarial": 0.05},
        MNIST,
        ("k nearest", "supp"),
        COPIES,
    ),
    "fashion_geometry": Track(
        "fashion_mnist",
        partial(
            white,
            dim=3072,
            floor=0.3,
            before=partial(patches, count=400, pool=3, softening=100.0, mirror=True),
        ),
        {"epochs": 12, "drop_inputs": 0.3},
        (*MNIST, 1000),
        ("k nearest",),
    ),
    "cifar_vector": Track(
        "cifar10", plain, {"epochs": 40}, CIFAR, ("k", "cond", "learned", "ridge", "small")
    ),
    "cifar_geometry": Track(
        "cifar10",
        partial(white, dim=4096, floor=0.3, before=COLOURED),
        {"epochs": 16, "width": 2048, "dropout": 0.6, "drop_inputs": 0.4},
        (*CIFAR, 2000),
    ),
    "cifar_embedding": Track(
        "cifar10",
        partial(embedded, epochs=4, warmup=1.0, weight_decay=5e-4),
        None,
        (10, 30, 100),
        ("k nearest",),
    ),
}
