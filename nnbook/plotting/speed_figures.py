"""What the chapter on speed draws of its tables, and how much of a textbook's formula is left far from the origin."""

import matplotlib.pyplot as plt
import pandas as pd
import torch
from torch import Tensor

from nnbook.benchmarks.speed import exact
from nnlib.attention import InverseDistance, attend

COLOURS = {
    "nnlib": "#c2410c",
    "cdist + softmax": "#2563eb",
    "scikit-learn": "#16a34a",
    "KeOps": "#7c3aed",
}
COLOURS |= {
    "bare product": "#9ca3af",
    "as published": "#2563eb",
    "published loop": "#2563eb",
    "bare products": "#9ca3af",
}
COLOURS |= {
    "metric learning": "#16a34a",
    "product + topk": "#2563eb",
    "FAISS": "#7c3aed",
    "float64": "#9ca3af",
}


def a_pair(table: pd.DataFrame) -> pd.Series:
    """Nanoseconds for each pair of a query and a center."""
    return table.seconds * 1e9 / table.queries / table.centers


def by_features(table: pd.DataFrame):
    """Time for a pair against the number of features, without and with gradients, a line for each peer."""
    works = [work for work in ("forward", "forward + backward") if (table.work == work).any()]
    figure, axes = plt.subplots(
        1, len(works), figsize=(9.5, 3.6), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, work in zip(axes[0], works, strict=True):
        for peer, rows in table[(table.work == work) & table.seconds.notna()].groupby(
            "peer", sort=False
        ):
            axis.loglog(rows.features, a_pair(rows), "o-", color=COLOURS[peer], label=peer, base=10)
        axis.set(title=work, xlabel="features")
        axis.set_xticks(sorted(set(table.features)), sorted(set(table.features)), minor=False)
        axis.minorticks_off()
    axes[0][0].set_ylabel("ns for a pair")
    axes[0][0].legend()
    return figure


def growing(table: pd.DataFrame):
    """Time for a pair, and extra memory, against the number of centers, a line for each number of features."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.4), layout="constrained")
    for features, rows in table.groupby("features"):
        left.loglog(rows.centers, a_pair(rows), "o-", label=f"{features} features")
        right.semilogx(rows.centers, rows.extra_mb, "o-")
    left.set(xlabel="centers", ylabel="ns for a pair")
    right.set(xlabel="centers", ylabel="extra memory, MB", ylim=(0, 256))
    left.legend()
    return figure


def bars(table: pd.DataFrame):
    """Seconds of each peer, a group of bars for each work."""
    works, peers = (
        list(dict.fromkeys(table.work)),
        list(dict.fromkeys(table.peer[table.seconds.notna()])),
    )
    figure, axis = plt.subplots(
        figsize=(9.5, 0.6 + 0.24 * len(works) * (len(peers) + 1)), layout="constrained"
    )
    for at, peer in enumerate(peers):
        rows = table[table.peer == peer].set_index("work").reindex(works)
        places = [
            len(peers) * 0.5 + group * (len(peers) + 1) - at
            for group in reversed(range(len(works)))
        ]
        drawn = axis.barh(places, rows.seconds, 0.85, color=COLOURS[peer], label=peer)
        axis.bar_label(drawn, [f"{each:.3g} s" for each in rows.seconds], padding=3)
    middle = [group * (len(peers) + 1) + 0.5 for group in reversed(range(len(works)))]
    axis.set_yticks(middle, works)
    axis.set(xlabel="seconds")
    if table.seconds.max() > 20 * table.seconds.min():
        axis.set(xscale="log", xlim=(None, float(table.seconds.max()) * 3))
    figure.legend(loc="outside upper right", ncols=len(peers))
    return figure


def along_a_line(offset: float, features: int = 24, centers: int = 40) -> dict[str, Tensor]:
    """Averages on the way between two centers, all `offset` from the origin: exact, by the library, by a product.

    The product is the textbook's |x|^2 + |c|^2 - 2 x.c in float32.
    """
    generator = torch.Generator().manual_seed(3)
    c = torch.randn(centers, features, generator=generator) + offset
    v = torch.randn(centers, 1, generator=generator)
    steps = torch.linspace(0, 1, 200)[:, None]
    x = c[0] + steps * (c[1] - c[0])
    squares = (x * x).sum(1, keepdim=True) + (c * c).sum(1) - 2 * x @ c.T
    scores = (
        squares.clamp(min=0).sqrt() + InverseDistance.epsilon
    ).log() * InverseDistance.exponent
    return {
        "float64": exact(x, c, v, len(x))[:, 0],
        "textbook": (torch.softmax(scores, 1) @ v)[:, 0],
        "nnlib": attend(x, c, v, InverseDistance())[:, 0],
    }


def far_away(power: float):
    """The three curves of `along_a_line`, 10^power from the origin."""
    curves = along_a_line(10**power)
    figure, axis = plt.subplots(figsize=(9.5, 3), layout="constrained")
    at = torch.linspace(0, 1, len(curves["float64"]))
    axis.plot(at, curves["textbook"], color="#2563eb", lw=1, label="|x|² + |c|² − 2 x·c")
    axis.plot(at, curves["float64"], color="#9ca3af", lw=5, label="float64")
    axis.plot(at, curves["nnlib"], color="#c2410c", lw=1.2, label="nnlib")
    axis.set(
        xlabel=f"from one center to another, {10**power:,.0f} from the origin", ylabel="average"
    )
    axis.legend(loc="lower right")
    return figure
