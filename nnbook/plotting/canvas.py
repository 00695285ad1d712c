"""Pictures rendered from their centers: from fewer of them, as ellipses, or at a smaller size."""

import matplotlib.pyplot as plt
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from nnbook.plotting import figures
from nnlib.attention import attend
from nnlib.image_codec import opponent_to_rgb

STEP = 4  # pixels between those that are computed while a slider moves


def shrink(picture: UInt8[Tensor, "H W 3"], side: int) -> UInt8[Tensor, "h w 3"]:
    """Average a picture down to at most `side` pixels on its longer side; 0 leaves it as it is."""
    scale = min(side / max(picture.shape[:2]), 1) if side else 1
    sizes = [max(round(scale * n), 1) for n in picture.shape[:2]]
    small = torch.nn.functional.interpolate(picture.movedim(2, 0)[None].float(), sizes, mode="area")
    return small[0].movedim(0, 2).round().to(torch.uint8)


@torch.no_grad()
def render_subset(model, kernel, height: int, width: int, n_centers: int) -> Image.Image:
    """Draw the first centers of a regressor of colours, and what they predict, side by side."""
    centers = model.centers_[:n_centers]
    colours = model.values_[:n_centers]
    rows = torch.arange(0, height, STEP)
    columns = torch.arange(0, width, STEP)
    queries = torch.cartesian_prod(rows, columns).to(centers.dtype)
    rendered = attend(queries, centers, colours, kernel).clamp(0, 1)
    rendered = rendered.reshape(len(rows), len(columns), 3)
    rendered = rendered.repeat_interleave(STEP, 0).repeat_interleave(STEP, 1)[:height, :width]
    pair = torch.cat([figures.dots(centers, colours, height, width), rendered], 1)
    return Image.fromarray((255 * pair).byte().numpy())


def draw_ellipses(
    axis: plt.Axes,
    positions: Float[Tensor, "M 2"],
    shapes: Float[Tensor, "M 3"],
    colours: Float[Tensor, "M C"],
) -> None:
    """Draw the codec's free centers as ellipses at half a width; colours: opponent ones."""
    m, p, q = shapes.double().unbind(1)
    log_metrics = torch.stack([m + p, q, q, m - p], 1).reshape(-1, 2, 2)
    log_lengths, directions = torch.linalg.eigh(log_metrics)
    diameters = torch.exp(-log_lengths / 2).clamp(max=200)
    angles = torch.rad2deg(torch.atan2(directions[:, 0, 0], directions[:, 1, 0]))
    rgb = opponent_to_rgb(colours[:, None])[:, 0].expand(-1, 3)
    ellipses = plt.matplotlib.collections.EllipseCollection(
        *diameters.T.numpy(),
        angles.numpy(),
        units="xy",
        offsets=positions.flip(1).numpy(),
        offset_transform=axis.transData,
        facecolors=rgb.clamp(0, 1).numpy(),
        linewidths=0,
        rasterized=True,
    )
    axis.add_collection(ellipses)
