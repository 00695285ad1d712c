"""Accuracy against the number of centers: `python -m nnbook.benchmarks.frontier TRACK` records it.

A track is a set, what is made of its pictures before anything is learned from labels, and a metric.
For each seed, all methods see the same training pictures; settings were chosen on validation ones
held out of them, and the test pictures are looked at once, by the models that are recorded.
"""

import argparse
import time
from collections.abc import Iterator

from nnbook.benchmarks import recorded
from nnbook.benchmarks.recorded import SEEDS
from nnbook.benchmarks.references import SOFTMAX, references, scores, voters
from nnbook.benchmarks.tracks import TRACKS, Splits, Track
from nnlib.errors import DataError
from nnlib.neighbors import NCATransformer, PrototypeClassifier


def rows_of(track: Track, seed: int, with_references: bool = False) -> Iterator[dict]:
    """Rows of one seed; seconds count the features too."""
    start = time.perf_counter()
    splits = track.prepare(track.data, seed)
    yield from learned(track, splits, seed, time.perf_counter() - start)
    if with_references:
        pictures = len(splits.train[1]) // track.copies
        own = tuple(part[:pictures] for part in splits.train)
        yield from references(track, splits._replace(train=own), seed)


def learned(track: Track, splits: Splits, seed: int, before: float) -> Iterator[dict]:
    """Rows of learned centers in the learned metric, and of all samples as neighbors there."""
    start, quiet = time.perf_counter(), {"random_state": seed, "progress": False}
    if track.metric is not None:
        metric = NCATransformer(**track.metric, matmul_dtype="bfloat16", **quiet)
        metric.fit(*splits.train)
        splits = Splits(*((metric.transform(x).float(), y) for x, y in splits))
    before += time.perf_counter() - start
    for count in track.counts:
        start = time.perf_counter()
        model = PrototypeClassifier(count, SOFTMAX, epochs=5, scaling="none", **quiet)
        model.fit(*splits.train)
        seconds = before + time.perf_counter() - start
        row = {"method": "learned centers", "centers": count, "seconds": seconds}
        yield row | scores(model, splits)
    models = {"k nearest, learned metric": voters(10)}
    if track.metric is None:
        models["30 nearest, as published"] = voters(30, "cosine")
    for method, model in models.items():
        model.fit(*splits.train)
        yield {"method": method, "centers": len(splits.train[1])} | scores(model, splits)


def main(arguments: list[str] | None = None) -> None:
    """Measure tracks, and record each once it is done."""
    parser = argparse.ArgumentParser(
        "nnbook.benchmarks.frontier", description=__doc__.split("\n")[0]
    )
    known = ", ".join(TRACKS)
    parser.add_argument("tracks", nargs="+", choices=TRACKS, metavar="TRACK", help=f"of {known}")
    try:
        for name in parser.parse_args(arguments).tracks:
            rows = []
            for seed in SEEDS:
                for row in rows_of(TRACKS[name], seed, with_references=seed == 0):
                    rows.append({"track": name, "seed": seed} | row)
                    print(rows[-1], flush=True)
            recorded.save(f"frontier_{name}", rows, f"python -m {parser.prog} {name}")
    except DataError as error:
        parser.exit(1, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    main()
