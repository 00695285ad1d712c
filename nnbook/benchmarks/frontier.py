"""Accuracy against the number of centers: `python -m nnbook.benchmarks.frontier TRACK` writes reports/recorded/frontier_TRACK.csv.

A track is a set, what is made of its pictures before anything is learned from labels, and a learned metric. For each
seed, all methods see the same training pictures; settings were chosen on validation pictures held out of them, and the
test pictures are looked at once, by the models that are recorded. A row is a method with so many centers and a seed.
"""

import argparse
import time
from collections.abc import Iterator

import pandas as pd

from nnbook.benchmarks.references import SOFTMAX, Voters, references, scores
from nnbook.benchmarks.tracks import TRACKS, Halves, Track
from nnbook.notebooks import ROOT
from nnbook.results import origin
from nnlib._common.files import atomic_write
from nnlib.attention import CosineSoftmax
from nnlib.datasets import DataError
from nnlib.neighbors import NCATransformer, PrototypeClassifier

RECORDED = ROOT / "reports" / "recorded"
SEEDS = (0, 1, 2)


def rows_of(track: Track, seed: int, beside: bool = False) -> Iterator[dict]:
    """Rows of one seed; `beside`: with what one would take instead. Seconds count the features too."""
    start = time.perf_counter()
    sets = track.prepared(track.data, seed)
    yield from learned(track, sets, seed, time.perf_counter() - start)
    if beside:
        own = len(sets.train[1]) // track.copies
        yield from references(
            track, sets._replace(train=tuple(part[:own] for part in sets.train)), seed
        )


def learned(track: Track, sets: Halves, seed: int, before: float) -> Iterator[dict]:
    """Rows of learned centers in the learned metric, and of all training samples as neighbors there."""
    start = time.perf_counter()
    if track.metric is not None:
        metric = NCATransformer(
            **track.metric, matmul_dtype="bfloat16", seed=seed, progress=False
        ).fit(*sets.train)
        sets = Halves(*((metric.transform(x), y) for x, y in sets))
    before += time.perf_counter() - start
    for count in track.counts:
        start = time.perf_counter()
        model = PrototypeClassifier(count, SOFTMAX, epochs=5, seed=seed, progress=False).fit(
            *sets.train
        )
        seconds = before + time.perf_counter() - start
        yield {"method": "learned centers", "centers": count, "seconds": seconds} | scores(
            model, sets
        )
    voters = {"k nearest, learned metric": Voters(sets.train)}
    if track.metric is None:
        voters["30 nearest, as published"] = Voters(sets.train, 30, CosineSoftmax(0.05))
    for method, model in voters.items():
        yield {"method": method, "centers": len(sets.train[1])} | scores(model, sets)


def main(arguments: list[str] | None = None) -> None:
    """Measure tracks, and record each once it is done."""
    parser = argparse.ArgumentParser(
        "nnbook.benchmarks.frontier", description="Accuracy against the number of centers."
    )
    parser.add_argument(
        "tracks", nargs="+", choices=TRACKS, metavar="TRACK", help=f"of {', '.join(TRACKS)}"
    )
    try:
        for name in parser.parse_args(arguments).tracks:
            record(name)
    except DataError as error:
        parser.exit(1, f"{parser.prog}: {error}\n")


def record(name: str) -> None:
    """Measure a track, and write its file once it is done."""
    rows, told = [], origin(ROOT) | {"command": f"python -m nnbook.benchmarks.frontier {name}"}
    for seed in SEEDS:
        for row in rows_of(TRACKS[name], seed, beside=seed == 0):
            rows.append({"track": name, "seed": seed} | row)
            print(rows[-1], flush=True)
    with atomic_write(RECORDED / f"frontier_{name}.csv") as path:
        pd.DataFrame(rows).assign(**told).to_csv(path, index=False, float_format="%.5g")


if __name__ == "__main__":
    main()
