"""Pictures that more than one chapter draws."""

import io
import sys
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

COLOURS = [
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#d55e00",
    "#f0e442",
    "#000000",
]  # Okabe and Ito's
CSS_PIXELS = 96  # an inch
PHOTO_DPI = 150  # sharper ones double the size of a page, and show nothing more


def style() -> None:
    """Calm axes, sharp pictures, and colours that colour-blind readers tell apart."""
    plt.rcParams.update(
        {
            "figure.dpi": 110,
            "savefig.dpi": 200,  # of what is rasterized in a drawing
            "savefig.bbox": "tight",
            "svg.hashsalt": "nnlib",  # or the same drawing has other ids, and so other bytes, each time
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
    axes=None,
):
    """A grid of pictures [N, H, W] or [N, H, W, 3], uint8 or 0..1, with a title over each; on `axes` where given.

    Returns the figure.
    """
    if axes is None:
        rows = -(-len(images) // columns)
        shape = (columns * size, rows * (size + 0.22 * bool(titles)))
        axes = plt.subplots(rows, columns, figsize=shape, squeeze=False)[1].flat
    axes = list(axes)
    for axis in axes:
        axis.axis("off")
    for axis, image in zip(axes, images, strict=False):
        axis.imshow(image.cpu(), vmin=0, vmax=255 if image.dtype == torch.uint8 else 1)
    for axis, title in zip(axes, titles, strict=False):
        axis.set_title(title, fontsize=8, pad=2)
    return axes[0].figure


def strip(
    axis,
    images: Shaped[Tensor, "N *size"],
    titles: Sequence[str] = (),
    frames: Sequence[str] = (),
    columns: int = 0,
) -> None:
    """Pictures beside and below each other in one axis, which is drawn many times sooner than an axis for each.

    images: [N, H, W] or [N, H, W, 3], uint8 or 0..1. titles: over each. frames: a colour for each. columns: 0 for all.
    """
    tiles = _tiles(images)
    count, height, width, _ = tiles.shape
    edge = max(1, height // 9) if frames else 0
    tall, broad = height + 2 * edge + max(1, height // 10), width + 2 * edge + max(1, width // 10)
    across = columns or count
    canvas = torch.ones(-(-count // across) * tall, across * broad, 3)
    for number, tile in enumerate(tiles):
        top, left = number // across * tall, number % across * broad
        if frames:
            colour = torch.tensor(plt.matplotlib.colors.to_rgb(frames[number]))
            canvas[top : top + height + 2 * edge, left : left + width + 2 * edge] = colour
        canvas[top + edge : top + edge + height, left + edge : left + edge + width] = tile
        if titles:
            axis.text(
                left + broad / 2,
                top - 0.03 * height,
                titles[number],
                ha="center",
                va="bottom",
                fontsize=8,
            )
    axis.imshow(canvas)
    axis.axis("off")


def _tiles(images: Shaped[Tensor, "N *size"]) -> Float[Tensor, "N H W 3"]:
    """Pictures as colours in 0..1; of one channel as ink on white, as everywhere in the book."""
    tiles = images.cpu().float() / (255 if images.dtype == torch.uint8 else 1)
    return tiles if tiles.ndim == 4 else (1 - tiles)[..., None].expand(*tiles.shape, 3)


def show(figure, alt: str, vector: bool = True) -> None:
    """Display a figure, which it is closed for: as SVG, or as PNG where `vector` is False, as suits photos.

    alt: what one would say of it to somebody who can't see it. Anywhere but in a notebook nothing is displayed. Raises
    ValueError where alt says nothing.
    """
    if not isinstance(alt, str) or not alt.strip():
        raise ValueError(f"alt={alt!r} says nothing: give a sentence on what the figure shows")
    kind, data, told = _drawn(figure, vector)
    plt.close(figure)
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is not None:
        from IPython.display import display

        display({kind: data, "text/plain": alt}, metadata={kind: told | {"alt": alt}}, raw=True)


def _drawn(figure, vector: bool) -> tuple[str, str | bytes, dict[str, int]]:
    """A figure's kind, its file, and for a PNG the size in CSS pixels at which it is to be shown."""
    file = io.BytesIO()
    if vector:
        figure.savefig(file, format="svg", metadata={"Date": None})
        return "image/svg+xml", file.getvalue().decode(), {}
    figure.savefig(file, format="png", dpi=PHOTO_DPI)
    data = file.getvalue()
    scale = CSS_PIXELS / PHOTO_DPI
    width, height = (
        round(scale * int.from_bytes(data[at : at + 4])) for at in (16, 20)
    )  # as PNG's header has them
    return "image/png", data, {"width": width, "height": height}


def png(figure) -> bytes:
    """A figure as a PNG file, which it is closed for."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=plt.rcParams["figure.dpi"])
    plt.close(figure)
    return file.getvalue()


def shares(
    axis, share: Float[Tensor, " C"], classes: Sequence[str], right: Sequence[int] = ()
) -> None:
    """Each class's share of the weight as bars, those of the right classes darker."""
    places = np.arange(len(classes))
    bars = axis.barh(places, share.cpu(), color=COLOURS[4])
    for place in right:
        bars[place].set_color(COLOURS[0])
    axis.set(yticks=places, yticklabels=classes, xlabel="share of the weight")
    axis.invert_yaxis()
    axis.tick_params(labelsize=8)


def class_map(
    axis, model, points: Float[Tensor, "N 2"], labels: Int64[Tensor, " N"], steps: int = 160
) -> None:
    """A classifier of the plane: its shares as shading, samples as dots, and its centers as rings."""
    low, high = points.min(0).values - 0.5, points.max(0).values + 0.5
    grid = torch.cartesian_prod(
        *(torch.linspace(float(a), float(b), steps) for a, b in zip(low, high, strict=True))
    )
    paint = torch.tensor([plt.matplotlib.colors.to_rgb(colour) for colour in COLOURS])
    share = model.predict_proba(grid).reshape(steps, steps, -1).transpose(0, 1)
    extent = (float(low[0]), float(high[0]), float(low[1]), float(high[1]))
    axis.imshow(
        0.45 + 0.55 * share @ paint[: share.shape[2]],
        origin="lower",
        extent=extent,
        interpolation="bilinear",
    )
    axis.scatter(*points.T, s=5, c=paint[labels], linewidths=0, rasterized=True)
    axis.scatter(
        *model.centers_.T, s=36, c=paint[model.values_], edgecolors="black", linewidths=0.9
    )
    axis.axis("off")


def dots(
    places: Float[Tensor, "M 2"], colours: Float[Tensor, "M 3"], height: int, width: int
) -> Tensor:
    """Centers as pixels of a white picture [height, width, 3]: (row, column) in pixels, colours in 0..1."""
    canvas = torch.ones(height, width, 3)
    rows, columns = places.long().clamp(min=0).unbind(1)
    canvas[rows.clamp(max=height - 1), columns.clamp(max=width - 1)] = colours.float().clamp(0, 1)
    return canvas


def ellipses(
    axis,
    places: Float[Tensor, "M 2"],
    shapes: Float[Tensor, "M 2 2"],
    colours: Float[Tensor, "M 3"],
) -> None:
    """Centers as ellipses at half a width: (row, column), the matrices of their distances, colours in 0..1."""
    lengths, ways = torch.linalg.eigh(shapes.double())
    sizes = (lengths.clamp(min=1e-9) ** -0.5).clamp(max=200)
    angles = torch.rad2deg(torch.atan2(ways[:, 0, 0], ways[:, 1, 0]))
    kind = {"units": "xy", "offset_transform": axis.transData, "rasterized": True, "linewidths": 0}
    kind |= {"offsets": places.flip(1).numpy(), "facecolors": colours.clamp(0, 1).numpy()}
    axis.add_collection(
        plt.matplotlib.collections.EllipseCollection(*sizes.T.numpy(), angles.numpy(), **kind)
    )
