"""Pictures as their centers draw them: fewer of them, as shapes, or shrunk."""

import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from nnbook.plotting import figures
from nnlib.attention import attend
from nnlib.image_codec import opponent_to_rgb, shape_matrix

STEP = 4  # pixels between the places that are asked while a slider moves


def shrunk(picture: UInt8[Tensor, "H W 3"], side: int) -> UInt8[Tensor, "h w 3"]:
    """A picture whose longer side has at most `side` pixels, each the mean of those it covers; 0 leaves it as it is."""
    scale = min(side / max(picture.shape[:2]), 1) if side else 1
    sizes = [max(round(scale * n), 1) for n in picture.shape[:2]]
    small = torch.nn.functional.interpolate(picture.movedim(2, 0)[None].float(), sizes, mode="area")
    return small[0].movedim(0, 2).round().to(torch.uint8)


@torch.no_grad()
def thinned(model, kernel, height: int, width: int, centers: int) -> Image.Image:
    """The first centers of a regressor of colours, and beside them what they give back, at every fourth pixel."""
    kept, values = model.centers_[:centers], model.values_[:centers]
    rows, columns = torch.arange(0, height, STEP), torch.arange(0, width, STEP)
    places = torch.cartesian_prod(rows, columns).to(kept.dtype)
    again = attend(places, kept, values, kernel).clamp(0, 1).reshape(len(rows), len(columns), 3)
    again = again.repeat_interleave(STEP, 0).repeat_interleave(STEP, 1)[:height, :width]
    pair = torch.cat([figures.dots(kept, values, height, width), again], 1)
    return Image.fromarray((255 * pair).byte().numpy())


def draw_free(axis, spots: Tensor, shapes: Tensor, tints: Tensor) -> None:
    """Free centers as ellipses: places [M, 2], shapes and opponent colours as the codec holds them."""
    yy, yx, xx = shape_matrix(shapes)
    matrices = torch.stack([yy, yx, yx, xx], 1).reshape(-1, 2, 2)
    figures.ellipses(axis, spots, matrices, opponent_to_rgb(tints[:, None])[:, 0].expand(-1, 3))
