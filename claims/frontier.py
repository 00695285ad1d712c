"""How few centers reach what accuracy: the tracks of `nnbook.frontier`, learned anew, over three seeds."""

import statistics
from functools import cache

import pandas as pd

from claims.table import NotMeasured, claim
from nnbook.benchmarks.depth import gains, measured
from nnbook.benchmarks.frontier import SEEDS, rows_of
from nnbook.benchmarks.tracks import TRACKS
from nnlib.datasets import DataError

MINUTES = {"mnist": 10, "fashion_mnist": 10, "cifar10": 60}  # that a row may take on two cores


@cache
def fitted(name: str) -> list[dict]:
    """The row of the most centers, a seed each, and beside it what all samples as neighbors reach."""
    track, found = TRACKS[name], []
    for seed in SEEDS:
        try:
            row, *neighbors = rows_of(track._replace(counts=track.counts[-1:]), seed)
        except DataError as error:
            raise NotMeasured(f"needs data/{track.data}.npz") from error
        found.append(row | {"neighbors": max(each["test"] for each in neighbors)})
    return found


def _gap(rows: list[dict]) -> float:
    """How far all samples as neighbors are ahead of the centers."""
    return statistics.mean(row["neighbors"] - row["test"] for row in rows)


def _accuracy(name: str, bar: float) -> tuple[str, bool]:
    rows = fitted(name)
    test, minutes = [row["test"] for row in rows], max(row["seconds"] for row in rows) / 60
    gap = _gap(rows)
    told = (
        f"{100 * statistics.mean(test):.2f} % ({', '.join(f'{100 * each:.2f}' for each in test)}), "
    )
    told += f"{rows[0]['centers']:,} centers, {minutes:.1f} minutes each; all samples as neighbors: {100 * gap:+.2f}"
    return told, statistics.mean(test) >= bar and minutes <= MINUTES[TRACKS[name].data]


@claim(
    "MNIST as a plain vector, at most 300 centers, mean of 3 seeds",
    "98.6 % at least, in 10 minutes",
    "slow",
)
def mnist_vector():
    return _accuracy("mnist_vector", 0.986)


@claim("MNIST, geometry, at most 300 centers", "99.0 % at least, in 10 minutes", "slow")
def mnist_geometry():
    return _accuracy("mnist_geometry", 0.990)


@claim("Fashion-MNIST, geometry, at most 1,000 centers", "91.5 % at least", "data")
def fashion_geometry():
    return _accuracy("fashion_geometry", 0.915)


@claim("CIFAR-10 as a plain vector, at most 1,000 centers", "56 % at least, in 60 minutes", "data")
def cifar_vector():
    return _accuracy("cifar_vector", 0.56)


@claim("CIFAR-10, geometry, at most 2,000 centers", "80 % at least, in 60 minutes", "data")
def cifar_geometry():
    return _accuracy("cifar_geometry", 0.80)


@claim(
    "CIFAR-10, chapter 4's embedding, at most 100 centers",
    "within 0.2 points of all samples as neighbors",
    "data",
)
def cifar_embedding():
    told, quick = _accuracy("cifar_embedding", 0.0)
    return told, quick and _gap(fitted("cifar_embedding")) <= 0.002


def _deeper(name: str, least: float) -> tuple[str, bool]:
    try:
        table = pd.DataFrame(row for seed in SEEDS for row in measured(name, seed))
    except DataError as error:
        raise NotMeasured(f"needs data/{name}.npz") from error
    found = gains(table).set_index("stack")
    told = [
        f"{stack}: {100 * row['first']:.2f} % to {100 * row['last']:.2f} %"
        for stack, row in found.iterrows()
    ]
    one, ours = (
        found.loc["published"],
        found.loc["left out"],
    )  # one layer: the published stack's first, on all samples
    least = least or -max(one.first_spread, ours.last_spread)
    return f"{'; '.join(told)}; spread {100 * ours.last_spread:.2f}", ours["last"] - one[
        "first"
    ] >= least


@claim(
    "three layers against one, MNIST, mean of 3 seeds", "not lower beyond the seeds' spread", "slow"
)
def deeper_on_mnist():
    return _deeper("mnist", 0.0)


@claim("three layers against one, CIFAR-10, mean of 3 seeds", "+1 point", "data")
def deeper_on_cifar():
    return _deeper("cifar10", 0.01)
