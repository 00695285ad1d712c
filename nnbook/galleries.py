"""What neighbors look like: features of the same pictures by several networks, side by side."""

from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch
from ipywidgets import HTML, Image, IntSlider, VBox
from torch import Tensor
from torch.nn.functional import normalize

from nnlib import plots
from nnlib.knn import embed, knn_predict, knn_shares, nearest_labels
from nnlib.pictures import Pictures, batches, in_order

RIGHT, WRONG = "#009e73", "#d55e00"


class Features(NamedTuple):
    """Unit features and labels of the pictures that may be neighbors, and of those that ask for them."""

    gallery: Tensor
    gallery_labels: Tensor
    queries: Tensor
    query_labels: Tensor

    def shares(self, k: int = 30, temperature: float = 0.05) -> dict[str, float]:
        """Shares of right answers of the k-NN."""
        return knn_shares(self.queries, self.query_labels, self.gallery, self.gallery_labels, k, temperature)

    def answers(self, k: int = 30, temperature: float = 0.05) -> list[int]:
        """The class that the neighbors of each query vote for."""
        return knn_predict(self.queries, self.gallery, self.gallery_labels, k, temperature).tolist()

    def of(self, classes: Sequence[int], shots: int = 0) -> "Features":
        """Only those classes; with only the first `shots` neighbors of each where that isn't 0."""
        kept = torch.isin(self.gallery_labels, torch.tensor(classes))
        if shots:
            order = self.gallery_labels.argsort(stable=True)
            counts = torch.bincount(self.gallery_labels)
            rank = torch.arange(len(order)) - (counts.cumsum(0) - counts)[self.gallery_labels[order]]
            kept &= torch.zeros_like(kept).index_fill_(0, order[rank < shots], True)
        asked = torch.isin(self.query_labels, torch.tensor(classes))
        return Features(self.gallery[kept], self.gallery_labels[kept], self.queries[asked], self.query_labels[asked])


def features(network: Callable, gallery: Pictures, queries: Pictures) -> Features:
    """What a network makes of both, on the CPU."""
    rows = (embed(network, batches(part, in_order(part, slice(None), 256))) for part in (gallery, queries))
    return Features(*(part.cpu() for pair in rows for part in pair))


def raw(images: Tensor) -> Tensor:
    """Pixels as they are, as one vector."""
    return images.flatten(1).float() / 255


def effective_neighbors(found: Features, temperature: float) -> float:
    """Over how many neighbors exp(cos/T) spreads the weight: the exponential of its entropy, of the middle query."""
    share = torch.log_softmax(normalize(found.queries, dim=1) @ normalize(found.gallery, dim=1).T / temperature, 1)
    return float((-(share.exp() * share).sum(1)).exp().median())


def neighbor_gallery(
    kinds: dict[str, Features], queries: Sequence[int], shown: Tensor, asked: Tensor, k: int = 20, size: float = 0.34
):
    """Queries, a row each, with their k nearest pictures by each kind of features: right ones framed green, wrong red.

    shown, asked: pictures [N, H, W, 3] of the gallery and of the queries. Returns the figure.
    """
    across = min(k, 5)
    down = -(-k // across)
    widths, heights = [down, *[across] * len(kinds)], [down] * len(queries)
    figure = plt.figure(figsize=(size * sum(widths), size * sum(heights) + 0.3))
    grid = figure.add_gridspec(len(queries), len(kinds) + 1, width_ratios=widths, wspace=0.06, hspace=0.08)
    for row, query in enumerate(queries):
        _picture(figure.add_subplot(grid[row, 0]), asked[query], "black", 0.12 * down)
        for column, found in enumerate(kinds.values()):
            index = _nearest(found, query, k)
            cells = grid[row, column + 1].subgridspec(down, across, wspace=0.08, hspace=0.08)
            for place, number in enumerate(index.tolist()):
                right = found.gallery_labels[number] == found.query_labels[query]
                _picture(
                    figure.add_subplot(cells[place // across, place % across]), shown[number], RIGHT if right else WRONG
                )
    for column, name in enumerate(["query", *kinds]):
        box = grid[0, column].get_position(figure)
        figure.text((box.x0 + box.x1) / 2, box.y1 + 0.01, name, ha="center", va="bottom", fontsize=9)
    return figure


def explorer(
    kinds: dict[str, Features], shown: Tensor, asked: Tensor, classes: Sequence[str], temperature: float, first: int = 0
) -> VBox:
    """Sliders over the query and the number of its neighbors, with the gallery and what each kind takes it for."""
    some = next(iter(kinds.values()))
    query = IntSlider(value=first, max=len(asked) - 1, description="picture", continuous_update=False)
    near = IntSlider(value=10, min=1, max=min(40, len(shown)), description="neighbors", continuous_update=False)
    picture, told = Image(format="png"), HTML()

    def look(_=None):
        figure = neighbor_gallery(kinds, [query.value], shown, asked, k=near.value, size=0.42)
        picture.value = plots.png(figure)
        answers = {name: classes[found.answers(near.value, temperature)[query.value]] for name, found in kinds.items()}
        said = ", ".join(f"{name}: {answer}" for name, answer in answers.items())
        told.value = f"it is <b>{escape(classes[some.query_labels[query.value]])}</b>; {escape(said)}"

    for slider in (query, near):
        slider.observe(look, "value")
    look()
    return VBox([query, near, told, picture])


def _nearest(found: Features, query: int, k: int) -> Tensor:
    numbers = torch.arange(len(found.gallery))
    return nearest_labels(found.queries[query : query + 1], found.gallery, numbers, min(k, len(numbers)))[1][0]


def _picture(axis, image: Tensor, colour: str, width: float = 1.3) -> None:
    axis.imshow(image, cmap="gray")
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set(visible=True, color=colour, linewidth=width)
