"""Figures that more than one chapter draws."""

import io
import sys
from collections.abc import Sequence

import matplotlib.pyplot as plt
import torch
from jaxtyping import Float, Int64, Shaped
from PIL import Image
from torch import Tensor

# Okabe and Ito's, which colour-blind readers tell apart
COLOURS = "#0072b2 #e69f00 #009e73 #cc79a7 #56b4e9 #d55e00 #f0e442 #000000".split()
CSS_PIXELS = 96  # an inch
PHOTO_DPI = 150  # more doubles the size of a page, and shows nothing more


def style() -> None:
    """Set matplotlib to calm axes, sharp pictures and the colours above."""
    plt.rcParams.update(
        {
            "figure.dpi": 110,
            "savefig.dpi": 200,  # of what is rasterized in a drawing
            "savefig.bbox": "tight",
            "svg.hashsalt": "nnlib",  # the same drawing has the same bytes each time
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": "medium",
            "axes.prop_cycle": plt.cycler(color=COLOURS),
            "legend.frameon": False,
            "image.cmap": "gray_r",
            "image.interpolation": "nearest",
        }
    )


def pictures(
    images: Shaped[Tensor, "N *size"],
    titles: Sequence[str] = (),
    columns: int = 12,
    size: float = 0.75,
    axes: Sequence[plt.Axes] | None = None,
) -> plt.Figure:
    """Draw pictures [N, H, W] or [N, H, W, 3], uint8 or 0..1, each in an axis of its own."""
    if axes is None:
        rows = -(-len(images) // columns)
        shape = (columns * size, rows * (size + 0.22 * bool(titles)))
        axes = plt.subplots(rows, columns, figsize=shape, squeeze=False)[1].ravel()
    for axis in axes:
        axis.axis("off")
    for axis, image in zip(axes, images, strict=False):
        axis.imshow(image.cpu(), vmin=0, vmax=255 if image.dtype == torch.uint8 else 1)
    for axis, title in zip(axes, titles, strict=False):
        axis.set_title(title, fontsize=8, pad=2)
    return axes[0].figure


def strip(
    axis: plt.Axes,
    images: Shaped[Tensor, "N *size"],
    titles: Sequence[str] = (),
    frames: Sequence[str] = (),
    columns: int = 0,
) -> None:
    """Draw pictures of one size in one axis, many times faster than in an axis for each.

    images: as for `pictures`. frames: a colour for each. columns: 0 for all in one row.
    """
    tiles = images.cpu().float() / (255 if images.dtype == torch.uint8 else 1)
    if tiles.ndim == 3:  # one channel is ink on white
        tiles = (1 - tiles)[..., None].expand(*tiles.shape, 3)
    count, height, width, _ = tiles.shape
    edge = max(1, height // 9) if frames else 0
    row_height = height + 2 * edge + max(1, height // 10)
    column_width = width + 2 * edge + max(1, width // 10)
    columns = columns or count
    canvas = torch.ones(-(-count // columns) * row_height, columns * column_width, 3)
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        top = row * row_height
        left = column * column_width
        if frames:
            colour = torch.tensor(plt.matplotlib.colors.to_rgb(frames[number]))
            canvas[top : top + height + 2 * edge, left : left + width + 2 * edge] = colour
        canvas[top + edge : top + edge + height, left + edge : left + edge + width] = tile
        if titles:
            middle = left + column_width / 2
            style = {"ha": "center", "va": "bottom", "fontsize": 8}
            axis.text(middle, top - 0.03 * height, titles[number], **style)
    axis.imshow(canvas)
    axis.axis("off")


def show(figure: plt.Figure, alt: str, vector: bool = True) -> None:
    """Display a figure in a notebook, and close it: as SVG, or as PNG, which suits photos.

    alt: what the figure shows, for those who can't see it. Raises ValueError where it is empty.
    """
    if not isinstance(alt, str) or not alt.strip():
        raise ValueError(f"alt={alt!r} says nothing: give a sentence on what the figure shows")
    if vector:
        data: dict[str, str | bytes] = {"image/svg+xml": svg(figure)}
        size = {}
    else:
        photo = png(figure, PHOTO_DPI)
        data = {"image/png": photo}
        width, height = Image.open(io.BytesIO(photo)).size
        scale = CSS_PIXELS / PHOTO_DPI
        size = {"width": round(scale * width), "height": round(scale * height)}
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is not None:
        from IPython.display import display

        metadata = {kind: size | {"alt": alt} for kind in data}
        display(data | {"text/plain": alt}, metadata=metadata, raw=True)


def svg(figure: plt.Figure) -> str:
    """Return a figure as an SVG file, and close it."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    plt.close(figure)
    return file.getvalue()


def png(figure: plt.Figure, dpi: float | None = None) -> bytes:
    """Return a figure as a PNG file, and close it."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=dpi or plt.rcParams["figure.dpi"])
    plt.close(figure)
    return file.getvalue()


def class_map(
    axis: plt.Axes, model, points: Float[Tensor, "N 2"], labels: Int64[Tensor, " N"]
) -> None:
    """Draw a DynamicClassifier of the plane: probabilities, its samples, and rings for centers."""
    low = (points.min(0).values - 0.5).tolist()
    high = (points.max(0).values + 0.5).tolist()
    steps = 160
    x, y = (torch.linspace(*ends, steps) for ends in zip(low, high, strict=True))
    colours = torch.tensor([plt.matplotlib.colors.to_rgb(colour) for colour in COLOURS])
    p = model.predict_proba(torch.cartesian_prod(x, y)).reshape(steps, steps, -1).transpose(0, 1)
    shades = 0.45 + 0.55 * p @ colours[: p.shape[2]]
    extent = (low[0], high[0], low[1], high[1])
    axis.imshow(shades, origin="lower", extent=extent, interpolation="bilinear")
    axis.scatter(*points.T, s=5, c=colours[labels], linewidths=0, rasterized=True)
    rings = {"s": 36, "edgecolors": "black", "linewidths": 0.9}
    values = model.values_
    says = values if values.ndim == 1 else values.argmax(1)
    axis.scatter(*points[model.indices_].T, c=colours[says], **rings)
    axis.axis("off")


def dots(
    positions: Float[Tensor, "M 2"], colours: Float[Tensor, "M 3"], height: int, width: int
) -> Tensor:
    """Return centers (row, column) as pixels of a white picture [height, width, 3] in 0..1."""
    canvas = torch.ones(height, width, 3)
    rows, columns = positions.long().clamp(min=0).unbind(1)
    canvas[rows.clamp(max=height - 1), columns.clamp(max=width - 1)] = colours.float().clamp(0, 1)
    return canvas
