"""How few centers reach what accuracy: the recorded tracks, learned anew, over three seeds."""

import statistics
from functools import cache

import pandas as pd
from figures.table import figure

from nnbook.benchmarks.depth import gains, measured
from nnbook.benchmarks.frontier import TRACKS, rows_of
from nnbook.benchmarks.recorded import SEEDS

MINUTES = {"mnist": 10, "fashion_mnist": 10, "cifar10": 60}  # that a row may take on two cores


@cache
def fitted(name: str) -> list[dict]:
    """The row of the most centers, a seed each, and what all samples as neighbors reach."""
    track = TRACKS[name]
    rows = []
    for seed in SEEDS:
        row, *neighbors = rows_of(track._replace(counts=track.counts[-1:]), seed)
        rows.append(row | {"neighbors": max(each["test"] for each in neighbors)})
    return rows


def gap(name: str) -> float:
    """How far all samples as neighbors are ahead of the centers."""
    return statistics.mean(row["neighbors"] - row["test"] for row in fitted(name))


def accuracy(name: str, bar: float) -> tuple[str, bool]:
    rows = fitted(name)
    test = [row["test"] for row in rows]
    minutes = max(row["seconds"] for row in rows) / 60
    each = ", ".join(f"{100 * value:.2f}" for value in test)
    words = (
        f"{100 * statistics.mean(test):.2f} % ({each}), {rows[0]['centers']:,} centers, "
        f"{minutes:.1f} minutes each; all samples as neighbors: {100 * gap(name):+.2f}"
    )
    return words, statistics.mean(test) >= bar and minutes <= MINUTES[TRACKS[name].data]


@figure("MNIST as a plain vector, at most 300 centers, mean of 3 seeds", "98.6 %, 10 min", "slow")
def test_mnist_vector():
    return accuracy("mnist_vector", 0.986)


@figure("MNIST, geometry, at most 300 centers", "99.0 % at least, in 10 minutes", "slow")
def test_mnist_geometry():
    return accuracy("mnist_geometry", 0.990)


@figure("Fashion-MNIST, geometry, at most 1,000 centers", "91.5 % at least", "data")
def test_fashion_geometry():
    return accuracy("fashion_geometry", 0.915)


@figure("CIFAR-10 as a plain vector, at most 1,000 centers", "56 % at least, in 60 min", "data")
def test_cifar_vector():
    return accuracy("cifar_vector", 0.56)


@figure("CIFAR-10, geometry, at most 2,000 centers", "80 % at least, in 60 minutes", "data")
def test_cifar_geometry():
    return accuracy("cifar_geometry", 0.80)


@figure(
    "CIFAR-10, chapter 4's embedding, at most 100 centers",
    "within 0.2 points of all samples as neighbors",
    "data",
)
def test_cifar_embedding():
    words, quick = accuracy("cifar_embedding", 0.0)
    return words, quick and gap("cifar_embedding") <= 0.002


def deeper(name: str, least: float | None) -> tuple[str, bool]:
    table = gains(pd.DataFrame(row for seed in SEEDS for row in measured(name, seed)))
    ends = table.set_index("stack")
    words = [f"{stack}: {row['first']:.2%} to {row['last']:.2%}" for stack, row in ends.iterrows()]
    one = ends.loc["published"]  # its first layer is one layer on all samples
    ours = ends.loc["left out"]
    if least is None:
        least = -max(one.first_spread, ours.last_spread)
    spread = f"; spread {100 * ours.last_spread:.2f}"
    return "; ".join(words) + spread, ours["last"] - one["first"] >= least


@figure("three layers against one, MNIST, 3 seeds", "not lower beyond the seeds' spread", "slow")
def test_deeper_on_mnist():
    return deeper("mnist", None)


@figure("three layers against one, CIFAR-10, mean of 3 seeds", "+1 point", "data")
def test_deeper_on_cifar():
    return deeper("cifar10", 0.01)
