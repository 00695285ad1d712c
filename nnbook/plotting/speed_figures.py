"""Figures of the chapter on speed, and of rounding errors far from the origin."""

import matplotlib.pyplot as plt
import pandas as pd
import torch
from torch import Tensor

from nnbook.benchmarks.speed import exact
from nnlib import attend
from nnlib.attention import InverseDistance

OURS = "#c2410c"
GREEN = "#16a34a"
BLUE = "#2563eb"
PURPLE = "#7c3aed"
GREY = "#9ca3af"
COLOURS = {
    "nnlib": OURS,
    **dict.fromkeys(("scikit-learn", "metric learning"), GREEN),
    **dict.fromkeys(("cdist + softmax", "as published", "published loop", "product + topk"), BLUE),
    **dict.fromkeys(("KeOps", "FAISS"), PURPLE),
    **dict.fromkeys(("bare product", "bare products", "float64"), GREY),
}


def nanoseconds_per_pair(table: pd.DataFrame) -> pd.Series:
    """Return nanoseconds for each pair of a query and a center."""
    return table.seconds * 1e9 / table.queries / table.centers


def by_features(table: pd.DataFrame) -> plt.Figure:
    """Plot time per pair against the number of features, without and with gradients."""
    works = [work for work in ("forward", "forward + backward") if (table.work == work).any()]
    shape = {"figsize": (9.5, 3.6), "sharey": True, "squeeze": False, "layout": "constrained"}
    figure, axes = plt.subplots(1, len(works), **shape)
    ticks = sorted(set(table.features))
    for axis, work in zip(axes[0], works, strict=True):
        measured = table[(table.work == work) & table.seconds.notna()]
        for peer, rows in measured.groupby("peer", sort=False):
            times = nanoseconds_per_pair(rows)
            axis.loglog(rows.features, times, "o-", color=COLOURS[peer], label=peer)
        axis.set(title=work, xlabel="features")
        axis.set_xticks(ticks, ticks, minor=False)
        axis.minorticks_off()
    axes[0][0].set_ylabel("ns for a pair")
    axes[0][0].legend()
    return figure


def growing(table: pd.DataFrame) -> plt.Figure:
    """Plot time per pair, and extra memory, against the number of centers, a line a dimension."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.4), layout="constrained")
    for features, rows in table.groupby("features"):
        left.loglog(rows.centers, nanoseconds_per_pair(rows), "o-", label=f"{features} features")
        right.semilogx(rows.centers, rows.extra_mb, "o-")
    left.set(xlabel="centers", ylabel="ns for a pair")
    right.set(xlabel="centers", ylabel="extra memory, MB", ylim=(0, 256))
    left.legend()
    return figure


def bars(table: pd.DataFrame) -> plt.Figure:
    """Draw seconds of each peer, a group of bars for each work."""
    works = table.work.unique()
    peers = table.peer[table.seconds.notna()].unique()
    height = 0.6 + 0.24 * len(works) * (len(peers) + 1)
    figure, axis = plt.subplots(figsize=(9.5, height), layout="constrained")
    bottoms = torch.arange(len(works)).flip(0).numpy() * (len(peers) + 1)  # of the groups
    for number, peer in enumerate(peers):
        seconds = table[table.peer == peer].set_index("work").seconds.reindex(works)
        places = bottoms + len(peers) / 2 - number
        drawn = axis.barh(places, seconds, 0.85, color=COLOURS[peer], label=peer)
        axis.bar_label(drawn, [f"{each:.3g} s" for each in seconds], padding=3)
    axis.set_yticks(bottoms + 0.5, works)
    axis.set(xlabel="seconds")
    if table.seconds.max() > 20 * table.seconds.min():
        axis.set(xscale="log", xlim=(None, float(table.seconds.max()) * 3))
    figure.legend(loc="outside upper right", ncols=len(peers))
    return figure


def along_a_line(offset: float, features: int = 24, centers: int = 40) -> dict[str, Tensor]:
    """Return averages on the way between two centers, all of which are `offset` from the origin.

    In float64, by the library, and by the textbook's |x|^2 + |c|^2 - 2 x.c in float32.
    """
    generator = torch.Generator().manual_seed(3)
    c = torch.randn(centers, features, generator=generator) + offset
    v = torch.randn(centers, 1, generator=generator)
    x = c[0] + torch.linspace(0, 1, 200)[:, None] * (c[1] - c[0])
    kernel = InverseDistance()
    squares = (x * x).sum(1, keepdim=True) + (c * c).sum(1) - 2 * x @ c.T
    scores = (squares.clamp(min=0).sqrt() + kernel.epsilon).log() * kernel.exponent
    return {
        "float64": exact(x, c, v, len(x))[:, 0],
        "textbook": (torch.softmax(scores, 1) @ v)[:, 0],
        "nnlib": attend(x, c, v, kernel)[:, 0],
    }


def far_away(power: float) -> plt.Figure:
    """Plot the three curves of `along_a_line`, 10^power from the origin."""
    curves = along_a_line(10**power)
    figure, axis = plt.subplots(figsize=(9.5, 3), layout="constrained")
    at = torch.linspace(0, 1, len(curves["float64"]))
    axis.plot(at, curves["textbook"], color=BLUE, lw=1, label="|x|² + |c|² − 2 x·c")
    axis.plot(at, curves["float64"], color=GREY, lw=5, label="float64")
    axis.plot(at, curves["nnlib"], color=OURS, lw=1.2, label="nnlib")
    words = f"from one center to another, {10**power:,.0f} from the origin"
    axis.set(xlabel=words, ylabel="average")
    axis.legend(loc="lower right")
    return figure
