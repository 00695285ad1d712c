"""Why a classifier says what it says: probabilities of classes, and the nearest centers."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from nnbook.plotting import figures
from nnlib.neighbors import DynamicClassifier

MAX_CLASSES = 5  # that are shown


def votes(
    model: DynamicClassifier, images: Tensor, labels: Tensor, classes: Sequence[str], k: int = 6
) -> plt.Figure:
    """Draw pictures, a row each, with their classes' probabilities and their k nearest centers.

    images: [N, H, W] or [N, H, W, 3]; labels: int64 [N].
    """
    probabilities = model.predict_proba(images)
    values = model.values_
    center_labels = values if values.ndim == 1 else values.argmax(1)  # learned: [M, classes]
    neighbors = model.kneighbors(images, min(k, model.num_neighbors), return_distance=False)
    widths = {"width_ratios": [1.1, 2.2, 6.6], "hspace": 0.5}
    size = (9.5, 1.55 * len(images))
    figure, axes = plt.subplots(len(images), 3, figsize=size, squeeze=False, gridspec_kw=widths)
    for number, (picture, bars, gallery) in enumerate(axes):
        label = int(labels[number])
        figures.strip(picture, images[number][None], [f"a {classes[label]}"])
        probability = probabilities[number]
        top = probability.topk(min(MAX_CLASSES, len(classes))).indices.sort().values.tolist()
        names = [classes[each] for each in top]
        colours = [figures.COLOURS[0 if each == label else 4] for each in top]
        bars.barh(range(len(top)), probability[top].cpu(), color=colours, tick_label=names)
        bars.invert_yaxis()
        bars.tick_params(labelsize=7)
        index = neighbors[number]
        centers = model.centers_[index].unflatten(1, images.shape[1:])
        if centers.is_floating_point():  # learned ones may leave the range of colours
            centers = centers.clamp(0, 1)
        figures.strip(gallery, centers, [f"a {classes[each]}" for each in center_labels[index]])
    axes[-1][1].set_xlabel("share of the weight", fontsize=8)
    axes[0][2].set_title("nearest centers", fontsize=9, pad=17)
    return figure


def examples_of_classes(
    images: Tensor, labels: Tensor, mask: Tensor, n_classes: int, rows: int = 3
) -> Tensor:
    """Return up to `rows` pictures of each class where `mask` is true, a row after the other.

    Blank where there are too few; the first are skipped, as the first batch is kept whole.
    """
    numbers = torch.full((rows, n_classes), len(images))
    for label in range(n_classes):
        chosen = (mask & (labels == label)).nonzero()[: rows + 4][-rows:, 0]
        numbers[: len(chosen), label] = chosen
    return torch.cat([images, torch.zeros_like(images[:1])])[numbers.flatten()]
