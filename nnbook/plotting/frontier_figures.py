"""What the first chapter draws of learned centers: where they were and went, and accuracy against their number."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
from torch import Tensor

from nnbook.benchmarks.recorded import RECORDED
from nnbook.plotting import figures

NAMES = {
    "mnist_vector": "MNIST, pixels as a vector",
    "mnist_geometry": "MNIST, patches",
    "fashion_geometry": "Fashion-MNIST, patches",
    "cifar_vector": "CIFAR-10, pixels as a vector",
    "cifar_geometry": "CIFAR-10, patches",
    "cifar_embedding": "CIFAR-10, an embedding",
}
SETS, ACROSS = {"mnist": "MNIST", "cifar10": "CIFAR-10"}, 3
MARKS = "s^Dv"  # of methods beside, where colours run out


def recorded() -> dict[str, pd.DataFrame]:
    """The tracks that were recorded: the mean over seeds of each method and number of centers, with their spread."""
    paths = {name: RECORDED / f"frontier_{name}.csv" for name in NAMES}
    return {name: _means(pd.read_csv(path)) for name, path in paths.items() if path.exists()}


def _means(table: pd.DataFrame) -> pd.DataFrame:
    groups = table.groupby(["method", "centers"], sort=False)
    means = groups[["validation", "test", "seconds"]].mean()
    return means.assign(spread=groups.test.std(), seeds=groups.seed.nunique()).reset_index()


def front(tables: dict[str, pd.DataFrame]):
    """Test accuracy against the number of centers, a panel a track; other methods are marks, networks are lines."""
    down = -(-len(tables) // ACROSS)
    across = -(-len(tables) // down)
    shape = (4.2 * across, 3.4 * down + 0.9)
    figure, axes = plt.subplots(down, across, figsize=shape, squeeze=False, layout="constrained")
    for axis in axes.flat[len(tables) :]:
        axis.axis("off")
    looks, shown = _looks(tables), {}
    for axis, (name, table) in zip(axes.flat, tables.items(), strict=False):
        line = table[table.method == "learned centers"]
        shown["learned centers"] = axis.errorbar(
            line.centers,
            100 * line.test,
            100 * line.spread.fillna(0),
            fmt="o-",
            color=figures.COLOURS[0],
        )
        for row in table[table.method != "learned centers"].itertuples():
            if row.centers:
                (shown[row.method],) = axis.plot(row.centers, 100 * row.test, **looks[row.method])
            else:
                shown[row.method] = axis.axhline(100 * row.test, color="grey", linestyle=":")
        axis.set(xscale="log", xlabel="centers, or samples carried along", title=NAMES[name])
    for row in axes:
        row[0].set_ylabel("test accuracy, %")
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=3, fontsize=8)
    return figure


def _looks(tables: dict[str, pd.DataFrame]) -> dict[str, dict]:
    """A colour and a mark for each method, the same in all panels."""
    methods = dict.fromkeys(method for table in tables.values() for method in table.method)
    others, colours = (
        [method for method in methods if method != "learned centers"],
        figures.COLOURS[1:],
    )
    return {
        method: {
            "color": colours[at % len(colours)],
            "marker": MARKS[at // len(colours)],
            "linestyle": "",
        }
        for at, method in enumerate(others)
    }


def layers(table: pd.DataFrame):
    """Test accuracy by layer of both stacks of `nnbook.depth`, a panel a set; bars are deviations over seeds."""
    names = {
        "published": "from its own answers, as published",
        "left out": "from answers for pictures left out",
    }
    sets = table["set"].unique()
    figure, axes = plt.subplots(
        1, len(sets), figsize=(4.2 * len(sets), 3.3), squeeze=False, layout="constrained"
    )
    for axis, name in zip(axes[0], sets, strict=True):
        for stack, label in names.items():
            kept = table[(table["set"] == name) & (table["stack"] == stack)].dropna(subset="test")
            found = 100 * kept.groupby("layer").test.agg(["mean", "std"]).fillna(0)
            axis.errorbar(found.index, found["mean"], found["std"], fmt="o-", label=label)
        axis.set(title=SETS[name], xlabel="layer", xticks=range(1, 1 + int(table.layer.max())))
    axes[0][0].set_ylabel("test accuracy, %")
    axes[0][0].legend(fontsize=7)
    return figure


def moved(before: Tensor, after: Tensor, shape: Sequence[int], shown: int = 30):
    """Some centers where they started, above, and where learning took them, below."""
    figure, (above, below) = plt.subplots(2, 1, figsize=(9, 3.1), layout="constrained")
    step = max(1, len(before) // shown)
    for axis, rows, title in (
        (above, before, "means of clusters"),
        (below, after, "after learning"),
    ):
        figures.strip(axis, rows[::step][:shown].clamp(0, 1).unflatten(1, shape), columns=15)
        axis.set_title(title)
    return figure
