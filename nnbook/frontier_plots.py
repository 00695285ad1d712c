"""What the first chapter draws of learned centers: where they were and went, and accuracy against their number."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
from torch import Tensor

from nnbook.frontier import RECORDED
from nnlib import plots

NAMES = {
    "mnist_vector": "MNIST, pixels as a vector",
    "mnist_geometry": "MNIST, patches",
    "fashion_geometry": "Fashion-MNIST, patches",
    "cifar_vector": "CIFAR-10, pixels as a vector",
    "cifar_geometry": "CIFAR-10, patches",
    "cifar_embedding": "CIFAR-10, an embedding",
}


def recorded() -> dict[str, pd.DataFrame]:
    """The tracks that were recorded: the mean over seeds of each method and number of centers, with their spread."""
    paths = {name: RECORDED / f"frontier_{name}.csv" for name in NAMES}
    return {name: _means(pd.read_csv(path)) for name, path in paths.items() if path.exists()}


def _means(table: pd.DataFrame) -> pd.DataFrame:
    groups = table.groupby(["method", "centers"], sort=False)
    means = groups[["validation", "test", "seconds"]].mean()
    return means.assign(spread=groups.test.std(), seeds=groups.seed.nunique()).reset_index()


def front(tables: dict[str, pd.DataFrame]):
    """Test accuracy against the number of centers, a panel a track; other methods are dots, networks are lines."""
    figure, axes = plt.subplots(1, len(tables), figsize=(4.2 * len(tables), 3.9), squeeze=False, layout="constrained")
    for axis, (name, table) in zip(axes[0], tables.items(), strict=True):
        line = table[table.method == "learned centers"]
        axis.errorbar(line.centers, 100 * line.test, 100 * line.spread.fillna(0), fmt="o-", label="learned centers")
        for number, row in enumerate(table[table.method != "learned centers"].itertuples(), 1):
            colour = plots.COLOURS[number % len(plots.COLOURS)]
            if row.centers:
                axis.plot(row.centers, 100 * row.test, "s", color=colour, label=row.method)
            else:
                axis.axhline(100 * row.test, color=colour, linestyle=":", label=row.method)
        axis.set(xscale="log", xlabel="centers, or samples carried along", title=NAMES[name])
        axis.legend(fontsize=7)
    axes[0][0].set_ylabel("test accuracy, %")
    return figure


def moved(before: Tensor, after: Tensor, shape: Sequence[int], shown: int = 30):
    """Some centers where they started, above, and where learning took them, below."""
    figure, (above, below) = plt.subplots(2, 1, figsize=(9, 3.1), layout="constrained")
    step = max(1, len(before) // shown)
    for axis, rows, title in ((above, before, "means of clusters"), (below, after, "after learning")):
        plots.strip(axis, rows[::step][:shown].clamp(0, 1).unflatten(1, shape), columns=15)
        axis.set_title(title)
    return figure
