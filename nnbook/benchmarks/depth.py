"""What depth buys: `python -m nnbook.benchmarks.depth` writes reports/recorded/depth.csv.

Stacks of three layers on pixels as a plain vector: the published one, whose layers learn from what the one before says
of the very samples it has learned from, and one whose layers learn from samples left out. A row is a layer of a stack,
with a seed; a refused layer has no accuracy but that on validation. Four second layers of one seed tell why.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from itertools import chain

import pandas as pd
from sklearn.model_selection import cross_val_predict

from nnbook.benchmarks.frontier import RECORDED, SEEDS
from nnbook.notebooks import ROOT
from nnbook.results import origin
from nnlib._common.files import atomic_write
from nnlib.datasets import DataError, load
from nnlib.neighbors import (
    BaseStack,
    DeepClassifier,
    DynamicClassifier,
    PrototypeClassifier,
    StackedClassifier,
)

SETS, LAYERS, SOME = ("mnist", "cifar10"), 3, 20_000


def stacks(seed: int) -> dict[str, BaseStack]:
    """The two of them, not yet fitted, which agree in their first layer's settings."""
    first = DynamicClassifier(seed=seed, progress=False)
    return {
        "published": DeepClassifier(LAYERS, seed=seed, progress=False),
        "left out": StackedClassifier(LAYERS, first, seed=seed, progress=False),
    }


def measured(name: str, seed: int) -> Iterator[dict]:
    """Rows of one set and seed."""
    data = load(name)
    for kind, model in stacks(seed).items():
        start = time.perf_counter()
        model.fit(data.train_images, data.train_labels)
        told = {"set": name, "seed": seed, "stack": kind, "seconds": time.perf_counter() - start}
        train, test = (
            model.layer_scores(images, labels)
            for images, labels in (
                (data.train_images, data.train_labels),
                (data.test_images, data.test_labels),
            )
        )
        scores = getattr(model, "validation_scores_", [None] * LAYERS)
        for layer, validation in enumerate(scores):
            kept = layer < len(test)
            row = {"layer": layer + 1, "centers": model.layers_[layer].num_neighbors if kept else 0}
            row |= {"train": train[layer], "test": test[layer]} if kept else {}
            yield told | row | {"validation": validation}


def second_layers(name: str, seed: int = 0) -> Iterator[dict]:
    """Rows that tell two causes apart, on fewer samples: what a second layer learns from, and what kind it is."""
    data, first = load(name), DynamicClassifier(seed=seed, progress=False)
    x, y = data.train_images[:SOME].flatten(1).numpy(), data.train_labels[:SOME].numpy()
    left_out = cross_val_predict(first, x, y, cv=5, method="predict_proba")
    own, new = (
        first.fit(x, y).predict_proba(rows) for rows in (x, data.test_images.flatten(1).numpy())
    )
    truth = data.test_labels.numpy()
    told = {"set": name, "seed": seed}
    yield told | {
        "stack": f"one layer, {SOME:,} samples",
        "test": first.score(data.test_images, data.test_labels),
    }
    for given, outputs in {"its own answers": own, "answers left out": left_out}.items():
        learned = PrototypeClassifier(100, "cosine_softmax", seed=seed, progress=False)
        for kind, layer in {
            "condensed": DynamicClassifier(seed=seed, progress=False),
            "learned": learned,
        }.items():
            layer.fit(outputs, y)
            row = {"layer": 2, "centers": layer.num_neighbors, "train": layer.score(outputs, y)}
            yield told | row | {"stack": f"{kind}, on {given}", "test": layer.score(new, truth)}


def gains(table: pd.DataFrame) -> pd.DataFrame:
    """By set and stack, means over seeds: test accuracy of the first layer and of the last one kept, and spreads."""
    kept = (
        table[table["stack"].isin(stacks(0))]
        .dropna(subset="test")
        .sort_values("layer")
        .groupby(["set", "stack", "seed"], sort=False)
    )
    ends = pd.DataFrame(
        {"layers": kept.layer.max(), "first": kept.test.first(), "last": kept.test.last()}
    )
    groups = ends.groupby(["set", "stack"], sort=False)
    return groups.mean().join(groups[["first", "last"]].std().add_suffix("_spread")).reset_index()


def recorded() -> pd.DataFrame:
    """The rows that were recorded."""
    return pd.read_csv(RECORDED / "depth.csv")


def causes(table: pd.DataFrame) -> pd.DataFrame:
    """Test accuracy of one layer and of the four second layers, by set."""
    some = table[~table["stack"].isin(stacks(0))]
    return some.pivot(index="stack", columns="set", values="test").loc[some["stack"].unique()]


def main(arguments: list[str] | None = None) -> None:
    """Record the sets that are asked for."""
    parser = argparse.ArgumentParser(
        "nnbook.benchmarks.depth", description="Test accuracy, layer by layer."
    )
    parser.add_argument(
        "sets",
        nargs="*",
        default=SETS,
        metavar="SET",
        help=f"of {', '.join(SETS)}; both by default",
    )
    sets = parser.parse_args(arguments).sets
    if unknown := [name for name in sets if name not in SETS]:
        parser.error(f"{unknown[0]!r} is not known: give {' or '.join(SETS)}")
    try:
        record(sets)
    except DataError as error:
        parser.exit(1, f"{parser.prog}: {error}\n")


def record(sets: Sequence[str]) -> None:
    """Measure and record, the file written anew after every seed."""
    rows, told = [], origin(ROOT) | {"command": "python -m nnbook.benchmarks.depth"}
    for name in sets:
        for seed in SEEDS:
            for row in chain(measured(name, seed), second_layers(name) if seed == 0 else ()):
                rows.append(row)
                print(row, flush=True)
            with atomic_write(RECORDED / "depth.csv") as path:
                pd.DataFrame(rows).assign(**told).to_csv(path, index=False, float_format="%.5g")


if __name__ == "__main__":
    main()
