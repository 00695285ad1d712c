"""What chapter 1 states of the dynamic classifier at the published setting."""

import statistics
from functools import cache
from typing import NamedTuple

from figures.memory import within_256
from figures.table import figure

from nnlib.datasets import load
from tests.published import PublishedClassifier

SEEDS = (0, 1, 2)


class Fit(NamedTuple):
    """One fit; the train accuracy is that of MNIST, where it has a bar."""

    neighbors: int
    train: float
    test: float


@cache
def published(name: str) -> list[Fit]:
    """Fits at the published setting, a seed each."""
    data = load(name)
    train = data.train_images, data.train_labels
    fits = []
    for seed in SEEDS:
        model = PublishedClassifier(random_state=seed, progress=False).fit(*train)
        accuracy = model.score(*train) if name == "mnist" else float("nan")
        test = model.score(data.test_images, data.test_labels)
        fits.append(Fit(model.num_neighbors, accuracy, test))
    return fits


def percent(values) -> str:
    return ", ".join(f"{100 * value:.2f}" for value in values) + " %"


def centers(name: str, least: int, most: int) -> tuple[str, bool]:
    counts = [fit.neighbors for fit in published(name)]
    return ", ".join(f"{count:,}" for count in counts), least <= min(counts) <= max(counts) <= most


def accuracies(name: str, least: float, most: float) -> tuple[str, bool]:
    values = [fit.test for fit in published(name)]
    measured = f"{percent(values)}, mean {100 * statistics.mean(values):.2f} %"
    return measured, least <= min(values) <= max(values) <= most


@figure("MNIST, published setting, 3 seeds: centers", "2,800 to 3,100", "slow")
def test_mnist_centers():
    return centers("mnist", 2800, 3100)


@figure("MNIST, published setting: test accuracy of each of 3 seeds", "96.6 to 97.2 %", "slow")
def test_mnist_test():
    return accuracies("mnist", 0.966, 0.972)


@figure("MNIST, published setting, 3 seeds: train accuracy", "at least 99.0 %", "slow")
def test_mnist_train():
    values = [fit.train for fit in published("mnist")]
    return percent(values), min(values) >= 0.99


@figure("CIFAR-10, published setting, 3 seeds: centers", "30,000 to 31,600", "data")
def test_cifar_centers():
    return centers("cifar10", 30_000, 31_600)


@figure("CIFAR-10, published setting: test accuracy of each of 3 seeds", "41 to 42.5 %", "data")
def test_cifar_test():
    return accuracies("cifar10", 0.41, 0.425)


@figure("CIFAR-100, published setting: centers, test accuracy", "next to 42,378, 17.93 %", "data")
def test_cifar100():
    fits = published("cifar100")
    return f"{fits[0].neighbors:,} centers, {percent(fit.test for fit in fits)}", True


@figure("extra memory of fit and predict, inputs and model aside", "at most 256 MB", "slow")
def test_mnist_memory():
    return within_256("fit mnist cosine", "fit mnist euclidean", "fit mnist cone")


@figure("the same on CIFAR-10", "at most 256 MB", "data")
def test_cifar_memory():
    load("cifar10")
    return within_256("fit cifar10 cosine")


@figure("extra memory of attend, 60,000 x 60,000 x 784, results aside", "at most 256 MB", "slow")
def test_attend_memory():
    return within_256("attend euclidean", "attend cosine", "attend cone", "attend and gradient")
