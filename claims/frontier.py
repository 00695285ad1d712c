"""How few centers reach what accuracy: the tracks of `nnbook.frontier`, learned anew, over three seeds."""

import statistics
from functools import cache

from claims.table import NotMeasured, claim
from nnbook.frontier import SEEDS, learned
from nnbook.tracks import TRACKS
from nnlib.data import DataError

MINUTES = {"mnist": 10, "fashion_mnist": 10, "cifar10": 60}  # that a row may take on two cores


@cache
def fitted(name: str) -> list[dict]:
    """The row of the most centers, a seed each, and beside it what all samples as neighbors reach."""
    track, found = TRACKS[name], []
    for seed in SEEDS:
        try:
            *rows, neighbors = learned(track._replace(counts=track.counts[-1:]), seed)
        except DataError as error:
            raise NotMeasured(f"needs data/{track.data}.npz") from error
        found.append(rows[-1] | {"neighbors": neighbors["test"]})
    return found


def _accuracy(name: str, bar: float) -> tuple[str, bool]:
    rows = fitted(name)
    test, minutes = [row["test"] for row in rows], max(row["seconds"] for row in rows) / 60
    gap = statistics.mean(row["neighbors"] - row["test"] for row in rows)
    told = f"{100 * statistics.mean(test):.2f} % ({', '.join(f'{100 * each:.2f}' for each in test)}), "
    told += f"{rows[0]['centers']:,} centers, {minutes:.1f} minutes each; all samples as neighbors: {100 * gap:+.2f}"
    return told, statistics.mean(test) >= bar and minutes <= MINUTES[TRACKS[name].data]


@claim("MNIST as a plain vector, at most 300 centers, mean of 3 seeds", "98.6 % at least, in 10 minutes", "slow")
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
