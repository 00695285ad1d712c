"""What neighbors look like: features of the same pictures by several networks, side by side."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch
from ipywidgets import IntSlider
from torch import Tensor
from torch.nn.functional import normalize

from nnbook.plotting import figures
from nnbook.plotting.explorer import Explorer
from nnlib.nca import embed, knn_accuracy, knn_predict
from nnlib.training import Pictures

RIGHT, WRONG = "#009e73", "#d55e00"


class Features(NamedTuple):
    """Unit features and labels of the pictures that may be neighbors, and of those that ask for them."""

    gallery: Tensor
    gallery_labels: Tensor
    queries: Tensor
    query_labels: Tensor

    def shares(self, k: int = 30, temperature: float = 0.05) -> dict[str, float]:
        """Shares of right answers of the k-NN."""
        return knn_accuracy(
            self.queries, self.query_labels, self.gallery, self.gallery_labels, k, temperature
        )

    def answers(self, k: int = 30, temperature: float = 0.05) -> list[int]:
        """The class that the neighbors of each query vote for."""
        return knn_predict(self.queries, self.gallery, self.gallery_labels, k, temperature).tolist()

    def answer(self, query: int, k: int = 30, temperature: float = 0.05) -> int:
        """The class that the neighbors of one query vote for."""
        return int(
            knn_predict(
                self.queries[query : query + 1], self.gallery, self.gallery_labels, k, temperature
            )
        )

    def nearest(self, query: int, k: int) -> Tensor:
        """The numbers of the k nearest neighbors of one query, the nearest first."""
        numbers = torch.arange(len(self.gallery))
        k = min(k, len(numbers))
        return knn_predict(self.queries[query : query + 1], self.gallery, numbers, k, top=k)[0]

    def of(self, classes: Sequence[int], shots: int = 0) -> "Features":
        """Only those classes; with only the first `shots` neighbors of each where that isn't 0."""
        kept = torch.isin(self.gallery_labels, torch.tensor(classes))
        if shots:
            order = self.gallery_labels.argsort(stable=True)
            counts = torch.bincount(self.gallery_labels)
            rank = (
                torch.arange(len(order)) - (counts.cumsum(0) - counts)[self.gallery_labels[order]]
            )
            kept &= torch.zeros_like(kept).index_fill_(0, order[rank < shots], True)
        asked = torch.isin(self.query_labels, torch.tensor(classes))
        return Features(
            self.gallery[kept],
            self.gallery_labels[kept],
            self.queries[asked],
            self.query_labels[asked],
        )


def features(network: Callable, gallery: Pictures, queries: Pictures) -> Features:
    """What a network makes of both, on the CPU."""
    rows = (
        embed(network, part.in_batches(256))
        for part in (gallery, queries)
    )
    return Features(*(part.cpu() for pair in rows for part in pair))


def raw(images: Tensor) -> Tensor:
    """Pixels as they are, as one vector."""
    return images.flatten(1).float() / 255


def effective_neighbors(found: Features, temperature: float) -> float:
    """Over how many neighbors exp(cos/T) spreads the weight: the exponential of its entropy, of the middle query."""
    share = torch.log_softmax(
        normalize(found.queries, dim=1) @ normalize(found.gallery, dim=1).T / temperature, 1
    )
    return float((-(share.exp() * share).sum(1)).exp().median())


def neighbor_gallery(
    kinds: dict[str, Features],
    queries: Sequence[int],
    shown: Tensor,
    asked: Tensor,
    k: int = 20,
    size: float = 0.34,
):
    """Queries, a row each, with their k nearest pictures by each kind of features: right ones framed green, wrong red.

    shown, asked: pictures [N, H, W, 3] of the gallery and of the queries. Returns the figure.
    """
    across = min(k, 5)
    down = -(-k // across)
    widths = [down, *[across] * len(kinds)]
    shape = (size * sum(widths), size * down * len(queries) + 0.3)
    ratios = {"width_ratios": widths, "wspace": 0.06, "hspace": 0.08}
    figure, axes = plt.subplots(
        len(queries), len(kinds) + 1, figsize=shape, squeeze=False, gridspec_kw=ratios
    )
    for row, query in zip(axes, queries, strict=True):
        figures.strip(row[0], asked[query : query + 1], frames=["black"])
        for axis, found in zip(row[1:], kinds.values(), strict=True):
            index = found.nearest(query, k)
            right = (found.gallery_labels[index] == found.query_labels[query]).tolist()
            figures.strip(
                axis,
                shown[index],
                frames=[RIGHT if each else WRONG for each in right],
                columns=across,
            )
    for axis, name in zip(axes[0], ["query", *kinds], strict=True):
        axis.set_title(name, fontsize=9)
    return figure


def explorer(
    kinds: dict[str, Features],
    shown: Tensor,
    asked: Tensor,
    classes: Sequence[str],
    temperature: float,
    first: int = 0,
) -> Explorer:
    """Sliders over the query and the number of its neighbors, with the gallery and what each kind takes it for."""
    some = next(iter(kinds.values()))

    def look(picture: int, neighbors: int):
        figure = neighbor_gallery(kinds, [picture], shown, asked, k=neighbors, size=0.42)
        said = [
            f"{name}: {classes[found.answer(picture, neighbors, temperature)]}"
            for name, found in kinds.items()
        ]
        figure.suptitle(
            f"it is {classes[some.query_labels[picture]]}; {', '.join(said)}", fontsize=9, y=1.06
        )
        return figure

    query = IntSlider(first, max=len(asked) - 1)
    near = IntSlider(10, min=1, max=min(40, len(shown)))
    words = "A test picture and its nearest training pictures by each kind of features, with what each takes it for"
    return Explorer(look, words, picture=query, neighbors=near)
