"""What a classifier's centers say of a picture: the shares of the weight, and the centers that are nearest."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from nnbook.plotting import figures
from nnlib.neighbors import CenterClassifier

MOST = 5  # classes whose shares are shown


def votes(
    model: CenterClassifier, images: Tensor, labels: Tensor, classes: Sequence[str], near: int = 6
):
    """A row a picture: the picture, its classes' shares of the weight, and its nearest centers. Returns the figure.

    images: [N, H, W] or [N, H, W, 3]; labels: [N].
    """
    shares = model.predict_proba(images)
    named = (
        model.values_ if model.values_.ndim == 1 else model.values_.argmax(1)
    )  # learned ones speak for any class
    found = model.kneighbors(images, min(near, model.num_neighbors), return_distance=False)
    widths = {"width_ratios": [1.1, 2.2, 6.6], "hspace": 0.5}
    figure, rows = plt.subplots(
        len(images), 3, figsize=(9.5, 1.55 * len(images)), squeeze=False, gridspec_kw=widths
    )
    for row, image, label, share, index in zip(
        rows, images, labels.tolist(), shares, found, strict=True
    ):
        figures.strip(row[0], image[None], [f"a {classes[label]}"])
        top = share.topk(min(MOST, len(classes))).indices.sort().values
        figures.shares(
            row[1],
            share[top],
            [classes[each] for each in top],
            (top == label).nonzero()[:, 0].tolist(),
        )
        row[1].tick_params(labelsize=7)
        titles = [f"a {classes[each]}" for each in named[index]]
        near_ones = model.centers_[index].unflatten(
            1, images.shape[1:]
        )  # learned ones may be darker than ink
        figures.strip(
            row[2], near_ones.clamp(0, 1) if near_ones.is_floating_point() else near_ones, titles
        )
    rows[-1][1].set_xlabel("share of the weight", fontsize=8)
    rows[0][2].set_title("nearest centers", fontsize=9, pad=17)
    return figure


def some_of_each(
    images: Tensor, labels: Tensor, which: Tensor, classes: int, rows: int = 3
) -> Tensor:
    """Up to `rows` pictures of each class, of those that `which` says, a row after the other, blank where none is left.

    The first few are passed over where there are more: they are the ones of the first batch, which is kept whole.
    """
    numbers = torch.full((rows, classes), len(images))
    for label in range(classes):
        found = (which & (labels == label)).nonzero()[: rows + 4][-rows:, 0]
        numbers[: len(found), label] = found
    return torch.cat([images, torch.zeros_like(images[:1])])[numbers.flatten()]
