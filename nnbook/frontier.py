"""Accuracy against the number of centers: `python -m nnbook.frontier TRACK` writes reports/recorded/frontier_TRACK.csv.

A track is a set, what is made of its pictures before anything is learned from labels, and a learned metric. For each
seed, all methods see the same training pictures; settings were chosen on validation pictures held out of them, and the
test pictures are looked at once, by the models that are recorded. A row is a method with so many centers and a seed.
"""

import argparse
import time
from collections.abc import Iterator

import pandas as pd
from sklearn.neural_network import MLPClassifier
from sklearn.svm import SVC
from torch import Tensor

from nnbook.chapters import ROOT
from nnbook.results import origin
from nnbook.tracks import TRACKS, Halves, Track
from nnlib.attend import Labels, attend
from nnlib.files import written_whole
from nnlib.kernels import CosineSoftmax, InverseDistance, Kernel, KNearest
from nnlib.neighbors import DynamicClassifier, LearnedCenters, LearnedMetric
from nnlib.projections import RidgeProjection

EUCLIDEAN, SOFTMAX = InverseDistance(), "cosine_softmax"
RECORDED = ROOT / "reports" / "recorded"
SEEDS, REFERENCE = (0, 1, 2), 10_000  # REFERENCE: samples that a support vector machine is given


def scores(model, sets: Halves) -> dict[str, float]:
    """Accuracies on validation and on test."""
    return {name: float(model.score(*getattr(sets, name))) for name in ("validation", "test")}


def rows_of(track: Track, seed: int, beside: bool = False) -> Iterator[dict]:
    """Rows of one seed; `beside`: with what one would take instead. Seconds count the features too."""
    start = time.perf_counter()
    sets = track.prepared(track.data, seed)
    yield from learned(track, sets, seed, time.perf_counter() - start)
    if beside:
        yield from references(track, sets, seed)


def learned(track: Track, sets: Halves, seed: int, before: float) -> Iterator[dict]:
    """Rows of learned centers in the learned metric, and of all training samples as neighbors there."""
    start = time.perf_counter()
    if track.metric is not None:
        metric = LearnedMetric(**track.metric, products="bfloat16", seed=seed, progress=False).fit(*sets.train)
        sets = Halves(*((metric.transform(x), y) for x, y in sets))
    before += time.perf_counter() - start
    for count in track.counts:
        start = time.perf_counter()
        model = LearnedCenters(count, SOFTMAX, epochs=5, seed=seed, progress=False).fit(*sets.train)
        seconds = before + time.perf_counter() - start
        yield {"method": "learned centers", "centers": count, "seconds": seconds} | scores(model, sets)
    voters = {"k nearest, learned metric": Voters(sets.train)}
    if track.metric is None:
        voters["30 nearest, as published"] = Voters(sets.train, 30, CosineSoftmax(0.05))
    for method, model in voters.items():
        yield {"method": method, "centers": len(sets.train[1])} | scores(model, sets)


class Voters:
    """k nearest neighbors of a whole training set, by cosines of unit rows or Euclidean distances."""

    def __init__(self, train: tuple[Tensor, Tensor], count: int = 10, by: Kernel = EUCLIDEAN):
        self.centers, self.labels, self.kernel = train[0].float(), train[1], KNearest(count, by)

    def score(self, x: Tensor, y: Tensor) -> float:
        """The share of x [N, D] whose vote goes to y [N]."""
        shares = attend(x.float(), self.centers, Labels(self.labels, int(self.labels.max()) + 1), self.kernel)
        return (shares.argmax(1) == y).float().mean().item()


def references(track: Track, sets: Halves, seed: int) -> Iterator[dict]:
    """Rows on the same features, without a learned metric: what one would take instead."""
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
    for method, make in makers.items():
        if method.startswith(track.beside):
            start = time.perf_counter()
            model = make()
            seconds = time.perf_counter() - start
            yield {"method": method, "centers": centers_of(model), "seconds": seconds} | scores(model, sets)
    if "ridge".startswith(track.beside):
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
    """Measure tracks, and record each once it is done."""
    parser = argparse.ArgumentParser("nnbook.frontier", description="Accuracy against the number of centers.")
    parser.add_argument("tracks", nargs="+", choices=TRACKS, metavar="TRACK", help=f"of {', '.join(TRACKS)}")
    for name in parser.parse_args(arguments).tracks:
        rows, told = [], origin(ROOT) | {"command": f"python -m nnbook.frontier {name}"}
        for seed in SEEDS:
            for row in rows_of(TRACKS[name], seed, beside=seed == 0):
                rows.append({"track": name, "seed": seed} | row)
                print(rows[-1], flush=True)
        with written_whole(RECORDED / f"frontier_{name}.csv") as path:
            pd.DataFrame(rows).assign(**told).to_csv(path, index=False, float_format="%.5g")


if __name__ == "__main__":
    main()
