"""Figures of learned centers: how they moved, accuracy against their number, and by layer."""

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
SETS = {"mnist": "MNIST", "cifar10": "CIFAR-10"}
STACKS = {
    "published": "from its own answers, as published",
    "left out": "from answers for pictures left out",
}
COLUMNS = 3
MARKERS = "s^Dv"  # of other methods, where colours run out


def recorded() -> dict[str, pd.DataFrame]:
    """Return the recorded tracks: means over seeds by method and number of centers, and spread."""
    tables = {}
    for name in NAMES:
        path = RECORDED / f"frontier_{name}.csv"
        if path.exists():
            groups = pd.read_csv(path).groupby(["method", "centers"], sort=False)
            means = groups[["validation", "test", "seconds"]].mean()
            means = means.assign(spread=groups.test.std(), seeds=groups.seed.nunique())
            tables[name] = means.reset_index()
    return tables


def front(tables: dict[str, pd.DataFrame]) -> plt.Figure:
    """Plot test accuracy against the number of centers, a panel a track, networks as lines."""
    down = -(-len(tables) // COLUMNS)
    across = -(-len(tables) // down)
    shape = (4.2 * across, 3.4 * down + 0.9)
    figure, axes = plt.subplots(down, across, figsize=shape, squeeze=False, layout="constrained")
    for axis in axes.flat[len(tables) :]:
        axis.axis("off")
    styles = _styles(tables)
    legend = {}
    for axis, (name, table) in zip(axes.flat, tables.items(), strict=False):
        for method, rows in table.groupby("method", sort=False):
            percent = 100 * rows.test
            if method == "learned centers":
                spread = 100 * rows.spread.fillna(0)
                style = {"fmt": "o-", "color": figures.COLOURS[0]}
                legend[method] = axis.errorbar(rows.centers, percent, spread, **style)
            elif rows.centers.all():
                (legend[method],) = axis.plot(rows.centers, percent, **styles[method])
            else:
                legend[method] = axis.axhline(percent.iloc[0], color="grey", linestyle=":")
        axis.set(xscale="log", xlabel="centers, or samples carried along", title=NAMES[name])
    for row in axes:
        row[0].set_ylabel("test accuracy, %")
    figure.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=3, fontsize=8)
    return figure


def _styles(tables: dict[str, pd.DataFrame]) -> dict[str, dict]:
    """Return a colour and a marker for each method, the same in all panels."""
    methods = pd.concat(tables.values()).method.unique()
    colours = figures.COLOURS[1:]
    styles = {}
    for number, method in enumerate(each for each in methods if each != "learned centers"):
        row, column = divmod(number, len(colours))
        styles[method] = {"color": colours[column], "marker": MARKERS[row], "linestyle": ""}
    return styles


def layers(table: pd.DataFrame) -> plt.Figure:
    """Plot test accuracy by layer of both stacks of `nnbook.benchmarks.depth`, a panel a set."""
    sets = table["set"].unique()
    shape = (4.2 * len(sets), 3.3)
    figure, axes = plt.subplots(1, len(sets), figsize=shape, squeeze=False, layout="constrained")
    for axis, name in zip(axes[0], sets, strict=True):
        for stack, label in STACKS.items():
            rows = table[(table["set"] == name) & (table["stack"] == stack)].dropna(subset="test")
            percent = 100 * rows.groupby("layer").test.agg(["mean", "std"]).fillna(0)
            axis.errorbar(percent.index, percent["mean"], percent["std"], fmt="o-", label=label)
        axis.set(title=SETS[name], xlabel="layer", xticks=range(1, 1 + int(table.layer.max())))
    axes[0][0].set_ylabel("test accuracy, %")
    axes[0][0].legend(fontsize=7)
    return figure


def moved(before: Tensor, after: Tensor, shape: Sequence[int], n_shown: int = 30) -> plt.Figure:
    """Draw some centers where they started, above, and where learning took them, below."""
    figure, axes = plt.subplots(2, 1, figsize=(9, 3.1), layout="constrained")
    step = max(1, len(before) // n_shown)
    titles = {"means of clusters": before, "after learning": after}
    for axis, (title, centers) in zip(axes, titles.items(), strict=True):
        pictures = centers[::step][:n_shown].clamp(0, 1).unflatten(1, shape)
        figures.strip(axis, pictures, columns=15)
        axis.set_title(title)
    return figure
