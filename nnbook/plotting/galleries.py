"""Nearest neighbors as pictures, by several kinds of features side by side."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import torch
from ipywidgets import IntSlider
from torch import Tensor
from torch.nn.functional import normalize

from nnbook.plotting import figures
from nnbook.plotting.explorer import Explorer
from nnlib.nca import embed, knn_accuracy, knn_predict
from nnlib.training import Pictures

RIGHT = "#009e73"
WRONG = "#d55e00"


@dataclass
class Features:
    """Features and labels of gallery pictures, among which neighbors are found, and of queries.

    Examples
    --------
    >>> rows, labels = torch.eye(2), torch.tensor([0, 1])
    >>> Features(rows, labels, rows, labels).predict(k=1)
    tensor([0, 1])
    """

    gallery: Tensor
    gallery_labels: Tensor
    queries: Tensor
    query_labels: Tensor

    def accuracy(self, k: int = 30, temperature: float = 0.05) -> dict[str, float]:
        """Return the accuracies of k-NN: knn_top1, knn_top5 and nearest_top1."""
        gallery = (self.gallery, self.gallery_labels)
        return knn_accuracy(self.queries, self.query_labels, *gallery, k, temperature)

    def predict(self, k: int = 30, temperature: float = 0.05, rows: slice = slice(None)) -> Tensor:
        """Return the classes that the neighbors of queries vote for."""
        return knn_predict(self.queries[rows], self.gallery, self.gallery_labels, k, temperature)

    def nearest(self, query: int, k: int) -> Tensor:
        """Return the numbers of the k nearest neighbors of one query, the nearest first."""
        numbers = torch.arange(len(self.gallery))
        k = min(k, len(numbers))
        return knn_predict(self.queries[query][None], self.gallery, numbers, k, top=k)[0]

    def select(self, classes: Sequence[int], shots: int = 0) -> "Features":
        """Return some classes only; with only the first `shots` of each in the gallery, if any."""
        rows = torch.isin(self.gallery_labels, torch.tensor(classes)).nonzero()[:, 0]
        if shots:
            groups = [rows[self.gallery_labels[rows] == label][:shots] for label in classes]
            rows = torch.cat(groups).sort().values
        queries = torch.isin(self.query_labels, torch.tensor(classes))
        gallery = (self.gallery[rows], self.gallery_labels[rows])
        return Features(*gallery, self.queries[queries], self.query_labels[queries])


def extract_features(network: Callable, gallery: Pictures, queries: Pictures) -> Features:
    """Return a network's features of both, on the CPU."""
    pairs = [embed(network, pictures.in_batches(256)) for pictures in (gallery, queries)]
    return Features(*(part.cpu() for pair in pairs for part in pair))


def flatten_pixels(images: Tensor) -> Tensor:
    """Return pixels as vectors in 0..1."""
    return images.flatten(1).float() / 255


def effective_neighbors(features: Features, temperature: float) -> float:
    """Return the median query's number of neighbors in effect: exp of the weights' entropy."""
    cosines = normalize(features.queries, dim=1) @ normalize(features.gallery, dim=1).T
    log_weights = torch.log_softmax(cosines / temperature, 1)
    return float((-(log_weights.exp() * log_weights).sum(1)).exp().median())


def neighbor_gallery(
    kinds: dict[str, Features],
    queries: Sequence[int],
    gallery_images: Tensor,
    query_images: Tensor,
    k: int = 20,
    size: float = 0.34,
) -> plt.Figure:
    """Draw queries, a row each, with their k nearest pictures by each kind of features.

    Right ones are framed green, wrong ones red. Images: [N, H, W] or [N, H, W, 3].
    """
    across = min(k, 5)
    down = -(-k // across)
    widths = [down, *[across] * len(kinds)]
    shape = (size * sum(widths), size * down * len(queries) + 0.3)
    layout = {"width_ratios": widths, "wspace": 0.06, "hspace": 0.08}
    grid = (len(queries), len(kinds) + 1)
    figure, axes = plt.subplots(*grid, figsize=shape, squeeze=False, gridspec_kw=layout)
    for row, query in zip(axes, queries, strict=True):
        figures.strip(row[0], query_images[query][None], frames=["black"])
        for axis, features in zip(row[1:], kinds.values(), strict=True):
            index = features.nearest(query, k)
            right = features.gallery_labels[index] == features.query_labels[query]
            frames = [RIGHT if each else WRONG for each in right.tolist()]
            figures.strip(axis, gallery_images[index], frames=frames, columns=across)
    for axis, name in zip(axes[0], ["query", *kinds], strict=True):
        axis.set_title(name, fontsize=9)
    return figure


def gallery_explorer(
    kinds: dict[str, Features],
    gallery_images: Tensor,
    query_images: Tensor,
    classes: Sequence[str],
    temperature: float,
    first: int = 0,
) -> Explorer:
    """Return sliders over the query and the number of its neighbors, above its gallery."""
    labels = next(iter(kinds.values())).query_labels

    def draw(picture: int, neighbors: int) -> plt.Figure:
        images = (gallery_images, query_images)
        figure = neighbor_gallery(kinds, [picture], *images, k=neighbors, size=0.42)
        title = f"true class: {classes[labels[picture]]}"
        for name, features in kinds.items():
            predicted = features.predict(neighbors, temperature, slice(picture, picture + 1))
            title += f"; {name}: {classes[int(predicted)]}"
        figure.suptitle(title, fontsize=9, y=1.06)
        return figure

    alt = "A test picture with its nearest training pictures and its predicted class, by features."
    query = IntSlider(first, max=len(query_images) - 1)
    k = IntSlider(10, min=1, max=min(40, len(gallery_images)))
    return Explorer(draw, alt, picture=query, neighbors=k)
