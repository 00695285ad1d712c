"""Accuracy against the number of centers: `python -m nnbook.frontier TRACK` writes reports/recorded/frontier_TRACK.csv.

A track is a set, what is made of its pictures before anything is learned from labels, and a learned metric. For each
seed, all methods see the same training pictures; settings were chosen on validation pictures held out of them, and the
test pictures are looked at once, by the models that are recorded. A row is a method with so many centers and a seed.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import pandas as pd
import torch
from sklearn.neural_network import MLPClassifier
from sklearn.svm import SVC
from torch import Tensor

from nnbook.chapters import ROOT
from nnbook.results import origin
from nnlib.attend import Labels, attend
from nnlib.data import load
from nnlib.files import written_whole
from nnlib.kernels import InverseDistance, Kernel, KNearest
from nnlib.neighbors import DynamicClassifier, LearnedCenters, LearnedMetric
from nnlib.patches import PatchFeatures
from nnlib.projections import PrincipalComponents, RidgeProjection

EUCLIDEAN, SOFTMAX = InverseDistance(), "cosine_softmax"
RECORDED = ROOT / "reports" / "recorded"
SEEDS, VALIDATION, REFERENCE = (0, 1, 2), 5_000, 10_000  # REFERENCE: samples that a support vector machine is given
MANY = 4_000  # features, of which such a machine would take hours


class Halves(NamedTuple):
    """Features and labels to learn from, to choose by, and to be judged by."""

    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


class Track(NamedTuple):
    """A set, what its pictures are turned into, a metric's settings, numbers of centers, and their epochs."""

    data: str
    prepared: Callable[[Halves], Halves]
    metric: dict
    counts: tuple[int, ...]


def plain(halves: Halves) -> Halves:
    """Pixels as a vector: no geometry."""
    return Halves(*((x.flatten(1), y) for x, y in halves))


def patches(halves: Halves, **settings) -> Halves:
    """How much of each of many whitened patches is where, in roots, which even out a few strong answers."""
    model = PatchFeatures(threshold=0.5, products="bfloat16", compact=True, **settings).fit(halves.train[0])
    return Halves(*((model.transform(x).sqrt_(), y) for x, y in halves))


def white(halves: Halves, dim: int, floor: float, before: Callable[[Halves], Halves] = plain) -> Halves:
    """The coordinates along the axes of largest variance, evened out: gradients otherwise miss what is faint."""
    sets = before(halves)
    model = PrincipalComponents(dim, whiten=True, floor=floor).fit(sets.train[0])
    return Halves(*((model.transform(x).bfloat16(), y) for x, y in sets))


COLOURED = partial(patches, count=1024, softening=300.0, mirror=True)
TRACKS = {
    "mnist_vector": Track("mnist", plain, {"epochs": 40}, (10, 30, 100, 300)),
    "mnist_geometry": Track("mnist", partial(patches, count=200, pool=3), {"epochs": 20}, (10, 30, 100, 300)),
    "fashion_geometry": Track(
        "fashion_mnist", partial(patches, count=400, pool=3, mirror=True), {"epochs": 15}, (10, 30, 100, 300, 1000)
    ),
    "cifar_vector": Track("cifar10", plain, {"epochs": 40}, (10, 100, 1000)),
    "cifar_geometry": Track(
        "cifar10",
        partial(white, dim=4096, floor=0.3, before=COLOURED),
        {"epochs": 16, "width": 2048, "dropout": 0.6, "drop_inputs": 0.4},
        (10, 100, 1000, 2000),
    ),
}


def halves(name: str, seed: int) -> Halves:
    """The training pictures shuffled by the seed, VALIDATION of them held out, and the test pictures."""
    data = load(name)
    order = torch.randperm(len(data.train_labels), generator=torch.Generator().manual_seed(seed))
    kept, held = order[VALIDATION:], order[:VALIDATION]
    pairs = [(data.train_images[part], data.train_labels[part]) for part in (kept, held)]
    return Halves(*pairs, (data.test_images, data.test_labels))


def scores(model, sets: Halves) -> dict[str, float]:
    """Accuracies on validation and on test."""
    return {name: float(model.score(*getattr(sets, name))) for name in ("validation", "test")}


def learned(track: Track, seed: int) -> Iterator[dict]:
    """Rows of one seed: learned centers in the learned metric, and all training samples as neighbors there."""
    start = time.perf_counter()
    sets = track.prepared(halves(track.data, seed))
    metric = LearnedMetric(**track.metric, products="bfloat16", seed=seed, progress=False).fit(*sets.train)
    sets = Halves(*((metric.transform(x), y) for x, y in sets))
    before = time.perf_counter() - start
    for count in track.counts:
        start = time.perf_counter()
        model = LearnedCenters(count, SOFTMAX, epochs=5, seed=seed, progress=False).fit(*sets.train)
        seconds = before + time.perf_counter() - start
        yield {"method": "learned centers", "centers": count, "seconds": seconds} | scores(model, sets)
    yield {"method": "k nearest, learned metric", "centers": len(sets.train[1])} | scores(Voters(sets.train), sets)


class Voters:
    """k nearest neighbors of a whole training set, by cosines of unit rows or Euclidean distances."""

    def __init__(self, train: tuple[Tensor, Tensor], count: int = 10, by: Kernel = EUCLIDEAN):
        self.centers, self.labels, self.kernel = train[0].float(), train[1], KNearest(count, by)

    def score(self, x: Tensor, y: Tensor) -> float:
        """The share of x [N, D] whose vote goes to y [N]."""
        shares = attend(x.float(), self.centers, Labels(self.labels, int(self.labels.max()) + 1), self.kernel)
        return (shares.argmax(1) == y).float().mean().item()


def references(track: Track, seed: int) -> Iterator[dict]:
    """Rows of one seed on the same features, without a learned metric: what one would take instead."""
    sets = track.prepared(halves(track.data, seed))
    sets = Halves(*((x.float() / sets.train[0].float().std(), y) for x, y in sets))
    few = tuple(part[:REFERENCE] for part in sets.train)
    unordered = DynamicClassifier(condensing="fcnn", progress=False)
    makers = {
        "k nearest": lambda: Voters(sets.train, 3),
        "condensed": lambda: DynamicClassifier(seed=seed, progress=False).fit(*sets.train),
        f"condensed in any order, {REFERENCE:,} samples": lambda: unordered.fit(*few),
        "learned centers, no metric": lambda: LearnedCenters(max(track.counts), SOFTMAX, seed=seed, progress=False).fit(
            *sets.train
        ),
        f"support vectors, {REFERENCE:,} samples": lambda: SVC(C=10, gamma="scale").fit(*few),
        "small network": lambda: MLPClassifier((256,), early_stopping=True, random_state=seed).fit(*sets.train),
    }
    if track.prepared is not plain:  # of many features, some of these take longer than all the learning
        many = sets.train[0].shape[1] > MANY
        makers = {name: make for name, make in makers.items() if name.startswith(("k nearest", "support")[: 2 - many])}
    for method, make in makers.items():
        start = time.perf_counter()
        model = make()
        seconds = time.perf_counter() - start
        yield {"method": method, "centers": centers_of(model), "seconds": seconds} | scores(model, sets)
    yield guessed(sets, seed)


def guessed(sets: Halves, seed: int, count: int = 100) -> dict:
    """A row of centers that learn from closed-form guesses, each training sample's being of the fit without it."""
    start, ridge = time.perf_counter(), RidgeProjection()
    train = (ridge.fit_transform(*sets.train), sets.train[1])
    model = LearnedCenters(count, SOFTMAX, seed=seed, progress=False).fit(*train)
    sets = Halves(train, *((ridge.transform(x), y) for x, y in sets[1:]))
    row = {"method": "learned centers on ridge guesses", "centers": count, "seconds": time.perf_counter() - start}
    return row | scores(model, sets)


def centers_of(model) -> int:
    """How many samples or centers a model carries along, 0 for a network."""
    if isinstance(model, Voters):
        return len(model.centers)
    return getattr(model, "num_neighbors", len(getattr(model, "support_", ())))


def main(arguments: list[str] | None = None) -> None:
    """Measure tracks and record them, the file written anew after every row."""
    parser = argparse.ArgumentParser("nnbook.frontier", description="Accuracy against the number of centers.")
    parser.add_argument("tracks", nargs="+", choices=TRACKS, metavar="TRACK", help=f"of {', '.join(TRACKS)}")
    for name in parser.parse_args(arguments).tracks:
        rows, told = [], origin(ROOT) | {"command": f"python -m nnbook.frontier {name}"}
        for seed in SEEDS:
            for row in (*learned(TRACKS[name], seed), *(references(TRACKS[name], seed) if seed == 0 else ())):
                rows.append({"track": name, "seed": seed} | row)
                print(rows[-1], flush=True)
        with written_whole(RECORDED / f"frontier_{name}.csv") as path:
            pd.DataFrame(rows).assign(**told).to_csv(path, index=False, float_format="%.5g")


if __name__ == "__main__":
    main()
