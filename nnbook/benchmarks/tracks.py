"""The tracks of `frontier`: a set, what is made of its pictures, a metric, numbers of centers."""

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
from nnlib.training import TrainingConfig, open_pictures, train

VALIDATION = 5_000  # pictures held out of the training set to choose by


class Splits(NamedTuple):
    """Features and labels to learn from, to choose by, and to be judged by."""

    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


class Track(NamedTuple):
    """A line of learned centers, and the methods that are measured on the same features.

    prepare(data, seed): the set's features, before a label is looked at, or an embedding.
    metric: NCATransformer's settings, None for none. references: how methods' names begin.
    copies: of each training picture, they themselves first.
    """

    data: str
    prepare: Callable[[str, int], Splits]
    metric: dict | None
    counts: tuple[int, ...]
    references: tuple[str, ...] = ("k nearest",)
    copies: int = 1


def split(data: str, seed: int) -> Splits:
    """Training pictures shuffled by the seed, VALIDATION of them held out, and test pictures."""
    sets = load(data)
    order = torch.randperm(len(sets.train_labels), generator=torch.Generator().manual_seed(seed))
    parts = order[VALIDATION:], order[:VALIDATION]
    pairs = [(sets.train_images[part], sets.train_labels[part]) for part in parts]
    return Splits(*pairs, (sets.test_images, sets.test_labels))


def plain(data: str, seed: int) -> Splits:
    """Pixels as a vector: no geometry."""
    return Splits(*((x.flatten(1), y) for x, y in split(data, seed)))


def patches(data: str, seed: int, copies: int = 1, **settings) -> Splits:
    """How much of each whitened patch is where, in roots, which even out a few strong answers."""
    splits = split(data, seed)
    settings |= {"threshold": 0.5, "matmul_dtype": "bfloat16", "compact": True}
    model = PatchFeatures(**settings).fit(splits.train[0])
    moved = shifted_copies(*splits.train, copies=copies, seed=seed)
    splits = splits._replace(train=moved)
    return Splits(*((model.transform(x).sqrt_(), y) for x, y in splits))


def white(data: str, seed: int, dim: int, floor: float, prepare: Callable = plain) -> Splits:
    """Coordinates along the axes of largest variance, evened out: gradients miss what is faint."""
    splits = prepare(data, seed)
    x = splits.train[0].flatten(1).float()
    pca = PCA(dim, svd_solver="covariance_eigh").fit(x.numpy())
    deviations = np.sqrt(pca.explained_variance_ + floor * float(x.var(0).mean()))
    mean = torch.from_numpy(pca.mean_)
    axes = torch.from_numpy(pca.components_.T / deviations).float()
    return Splits(*((((x.flatten(1).float() - mean) @ axes).bfloat16(), y) for x, y in splits))


def embedded(data: str, seed: int, **settings) -> Splits:
    """Unit features of a network that chapter 4 trains, of the pictures as they are tested."""
    quiet = {"random_state": seed, "progress": False}
    how = settings | {"arch": "small", "schedule": "cosine", "watch": "stale"} | quiet
    config = TrainingConfig(data, **how)
    pictures = open_pictures(*config.of_pictures())
    with tempfile.TemporaryDirectory() as folder:
        config.out = f"{folder}/run"
        network = train(config).trained.network
    parts = pictures.train, pictures.validation, pictures.test
    return Splits(*(embed(network, part.in_batches(500)) for part in parts))


MNIST, CIFAR = (10, 30, 100, 300), (10, 100, 1000)
# Learning from rows moved against the metric takes the place of dropout.
MOVED = {"dropout": 0.0, "drop_inputs": 0.0}
FASHION_PATCHES = partial(patches, count=400, pool=3, softening=100.0, mirror=True)
CIFAR_PATCHES = partial(patches, count=1024, softening=300.0, mirror=True)
TRACKS = {
    "mnist_vector": Track(
        "mnist", plain, MOVED | {"epochs": 20, "adversarial": 0.15}, MNIST, ("",)
    ),
    "mnist_geometry": Track(
        "mnist",
        partial(patches, count=200, pool=3, copies=3),
        MOVED | {"epochs": 5, "adversarial": 0.05, "scaling": "common"},
        MNIST,
        ("k nearest", "supp"),
        copies=3,
    ),
    "fashion_geometry": Track(
        "fashion_mnist",
        partial(white, dim=3072, floor=0.3, prepare=FASHION_PATCHES),
        {"epochs": 12, "drop_inputs": 0.3, "scaling": "common"},
        (*MNIST, 1000),
        ("k nearest",),
    ),
    "cifar_vector": Track(
        "cifar10", plain, {"epochs": 40}, CIFAR, ("k", "cond", "learned", "small")
    ),
    "cifar_geometry": Track(
        "cifar10",
        partial(white, dim=4096, floor=0.3, prepare=CIFAR_PATCHES),
        {"epochs": 16, "width": 2048, "dropout": 0.6, "drop_inputs": 0.4, "scaling": "common"},
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
