"""What depth buys: `python -m nnbook.benchmarks.depth` records test accuracy, layer by layer.

Stacks of three layers on pixels as a plain vector: the published one, whose layers learn from what
the one before says of the very samples it has learned from, and one whose layers learn from samples
left out. A row is a layer with a seed; a refused layer has its accuracy on validation only. Four
second layers of one seed tell why.
"""

import argparse
import time
from collections.abc import Iterator

import pandas as pd
from sklearn.base import clone
from sklearn.model_selection import cross_val_predict

from nnbook.benchmarks import recorded as records
from nnbook.benchmarks.recorded import SEEDS
from nnlib import DeepClassifier, DynamicClassifier, PrototypeClassifier, StackedClassifier
from nnlib.datasets import load
from nnlib.errors import DataError

SETS, LAYERS, FEW = ("mnist", "cifar10"), 3, 20_000
STACKS = ("published", "left out")


def measured(name: str, seed: int) -> Iterator[dict]:
    """Rows of one set and seed; the stacks agree in their first layer's settings."""
    data, quiet = load(name), {"random_state": seed, "progress": False}
    first = DynamicClassifier(rule="published", **quiet)
    models = DeepClassifier(LAYERS, **quiet), StackedClassifier(LAYERS, first, **quiet)
    for stack, model in zip(STACKS, models, strict=True):
        start = time.perf_counter()
        model.fit(data.train_images, data.train_labels)
        row = {"set": name, "seed": seed, "stack": stack, "seconds": time.perf_counter() - start}
        train = model.layer_scores(data.train_images, data.train_labels)
        test = model.layer_scores(data.test_images, data.test_labels)
        for at, score in enumerate(getattr(model, "validation_scores_", [None] * LAYERS)):
            layer = {"layer": at + 1, "centers": 0}
            if at < len(test):
                layer["centers"] = model.layers_[at].num_neighbors
                layer |= {"train": train[at], "test": test[at]}
            yield row | layer | {"validation": score}


def second_layers(name: str, seed: int = 0) -> Iterator[dict]:
    """Rows that tell two causes apart: what a second layer learns from, and what kind it is."""
    data, quiet = load(name), {"random_state": seed, "progress": False}
    first, row = DynamicClassifier(rule="published", **quiet), {"set": name, "seed": seed}
    x, y = data.train_images[:FEW].flatten(1).numpy(), data.train_labels[:FEW].numpy()
    test_x, test_y = data.test_images.flatten(1).numpy(), data.test_labels.numpy()
    left_out = cross_val_predict(first, x, y, cv=5, method="predict_proba")
    first.fit(x, y)
    test = first.predict_proba(test_x)
    yield row | {"stack": f"one layer, {FEW:,} samples", "test": first.score(test_x, test_y)}
    answers = {"its own answers": first.predict_proba(x), "answers left out": left_out}
    for source, outputs in answers.items():
        learned = PrototypeClassifier(100, "cosine_softmax", scaling="none", **quiet)
        for kind, layer in {"condensed": clone(first), "learned": learned}.items():
            layer.fit(outputs, y)
            layer_row = {"layer": 2, "centers": layer.num_neighbors}
            scores = {"train": layer.score(outputs, y), "test": layer.score(test, test_y)}
            yield row | layer_row | {"stack": f"{kind}, on {source}"} | scores


def gains(table: pd.DataFrame) -> pd.DataFrame:
    """By set and stack, means and spreads over seeds of the first and the last layer's accuracy."""
    rows = table[table["stack"].isin(STACKS)].dropna(subset="test").sort_values("layer")
    runs = rows.groupby(["set", "stack", "seed"], sort=False)
    ends = {"layers": runs.layer.max(), "first": runs.test.first(), "last": runs.test.last()}
    groups = pd.DataFrame(ends).groupby(["set", "stack"], sort=False)
    spreads = groups[["first", "last"]].std().add_suffix("_spread")
    return groups.mean().join(spreads).reset_index()


def causes(table: pd.DataFrame) -> pd.DataFrame:
    """Test accuracy of one layer and of the four second layers, by set."""
    rows = table[~table["stack"].isin(STACKS)]
    return rows.pivot(index="stack", columns="set", values="test").loc[rows["stack"].unique()]


def recorded() -> pd.DataFrame:
    """The rows that were recorded."""
    return records.read("depth")


def main(arguments: list[str] | None = None) -> None:
    """Measure both sets, and record them anew after every seed."""
    parser = argparse.ArgumentParser("nnbook.benchmarks.depth", description=__doc__.split("\n")[0])
    parser.parse_args(arguments)
    rows = []
    try:
        for name in SETS:
            for seed in SEEDS:
                rows += [*measured(name, seed), *(second_layers(name) if seed == 0 else ())]
                print(pd.DataFrame(rows).tail(11).to_string(), flush=True)
                records.save("depth", rows, "python -m nnbook.benchmarks.depth")
    except DataError as error:
        parser.exit(1, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    main()
