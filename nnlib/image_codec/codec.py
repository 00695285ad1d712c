"""Pictures as centers in a file."""

from collections.abc import Callable
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from nnlib._common.validation import check, check_int, check_number
from nnlib.attention import exact_products
from nnlib.image_codec.bitstream import (
    MAX_PIXELS,
    opponent_to_rgb,
    render_centers,
    render_residual,
    section_sizes,
    unpack,
)
from nnlib.image_codec.rate_control import RateController

MAX_SIDE = 65_535  # pixels
MAX_ZOOM = 64  # as a tile's samples are rendered together


def samples(image: UInt8[Tensor, "H W C"]) -> tuple[Float[Tensor, "N 2"], Float[Tensor, "N C"]]:
    """Turn a picture into samples to which a DynamicRegressor can be fitted.

    Parameters
    ----------
    image : uint8 tensor [H, W, C]

    Returns
    -------
    tuple of float tensors [H W, 2] and [H W, C]
        Row and column of each pixel, and its colour in 0..1.

    Examples
    --------
    >>> positions, colours = samples(torch.zeros(2, 3, 3, dtype=torch.uint8))
    >>> positions.shape
    torch.Size([6, 2])
    """
    sides = [torch.arange(float(size), device=image.device) for size in image.shape[:2]]
    return torch.cartesian_prod(*sides), image.flatten(0, 1) / 255


@contextmanager
def _default_torch_state():
    """Gradients and float32 at full precision, whatever the caller has set."""
    with torch.inference_mode(False), torch.enable_grad(), exact_products():
        yield


def encode(
    image: UInt8[Tensor, "H W *C"] | np.ndarray,
    bits_per_pixel: float | None = None,
    quality: float | None = None,
    background: tuple[int, int, int] = (255, 255, 255),
    steps: int | None = None,
    seed: int | None = 0,
    device: str | torch.device = "cpu",
    callback: Callable[[], object] | None = None,
) -> bytes:
    """Encode a picture: the same arguments give the same bytes on the same machine.

    Parameters
    ----------
    image : uint8 tensor or array [H, W], [H, W, 1], [H, W, 3] (RGB) or [H, W, 4] (RGBA)
    bits_per_pixel : float, default 0.25
        At most, unless the file can't be so small (tens of bytes).
    quality : float, optional
        From 0 to 100, instead of `bits_per_pixel`: as many bits as the picture needs for it.
    background : 3 ints, default white
        Under transparent pixels.
    steps : int, default 600, fewer beyond a megapixel
        Of gradient at the end; more are better and take longer.
    seed : int or None, default 0
    device : str or torch.device, default "cpu"
    callback : callable, optional
        Called after each step.

    Examples
    --------
    >>> len(encode(torch.zeros(64, 64, 3, dtype=torch.uint8), bits_per_pixel=0.1, steps=2)) <= 51
    True
    """
    _check_settings(bits_per_pixel, quality, steps)
    pixels = _to_pixels(image, background)
    grey = bool((pixels == pixels[..., :1]).all())
    with _default_torch_state():
        picture = pixels[..., : 1 if grey else 3].to(device).float() / 255
        controller = RateController(picture, np.ndim(image) == 2, steps, seed, callback)
        if quality is not None:
            return controller.encode_to_step(round(24 + 1.5 * quality))
        return controller.encode_to_size((bits_per_pixel or 0.25) * controller.pixels / 8)


def decode(
    data: bytes, zoom: int = 1, max_pixels: int = MAX_PIXELS, device: str | torch.device = "cpu"
) -> UInt8[Tensor, "H W *C"]:
    """Decode a picture, `zoom` times as large along each side.

    Parameters
    ----------
    data : bytes
        What `encode` returned.
    zoom : int, default 1
        From 1 to 64.
    max_pixels : int, default 2^24
        Refuse larger pictures, zoom included.
    device : str or torch.device, default "cpu"
        That computes.

    Returns
    -------
    uint8 tensor [H zoom, W zoom, 3], or [H zoom, W zoom] where `encode` was given [H, W]

    Raises
    ------
    CorruptError
        For anything but a whole file within the limits, before memory is allocated.

    Examples
    --------
    >>> decode(encode(torch.zeros(8, 9, dtype=torch.uint8), steps=2), zoom=2).shape
    torch.Size([16, 18])
    """
    check(zoom in range(1, MAX_ZOOM + 1), "zoom", zoom, f"a whole number from 1 to {MAX_ZOOM}")
    zoom = int(zoom)
    with _default_torch_state():
        coded = unpack(data, max_pixels, zoom)
        picture = render_centers(coded, zoom, device) + render_residual(coded, zoom, device)
        rgb = opponent_to_rgb(picture)
    pixels = (rgb * 255).round().clamp(0, 255).to(torch.uint8).cpu()
    return pixels[..., 0] if coded.no_channel_axis else pixels.expand(-1, -1, 3).contiguous()


def info(data: bytes, max_pixels: int = MAX_PIXELS) -> dict[str, float]:
    """Describe a file: its size, its centers and nonzero coefficients, and where its bytes go.

    Parameters
    ----------
    data : bytes
        What `encode` returned.
    max_pixels : int, default 2^24
        Refuse larger pictures.

    Returns
    -------
    dict of numbers by name

    Raises
    ------
    CorruptError
        As `decode` does.

    Examples
    --------
    >>> info(encode(torch.zeros(8, 9, dtype=torch.uint8), steps=2))["centers"]
    1
    """
    coded = unpack(data, max_pixels)
    return {
        "height": coded.height,
        "width": coded.width,
        "channels": len(coded.coefficients),
        "bytes": len(data),
        "bits_per_pixel": 8 * len(data) / coded.height / coded.width,
        "centers": len(coded.centers.positions),
        "coefficients": int(np.count_nonzero(coded.coefficients)),
        **section_sizes(coded),
    }


def _check_settings(bits_per_pixel, quality, steps) -> None:
    given = f"bits_per_pixel={bits_per_pixel} and quality={quality}"
    if bits_per_pixel is not None and quality is not None:
        raise ValueError(f"{given} are both given: give one of them")
    if bits_per_pixel is not None:
        check_number("bits_per_pixel", bits_per_pixel, "(0, inf)")
    if quality is not None:
        check_number("quality", quality, "[0, 100]")
    if steps is not None:
        check_int("steps", steps)


def _to_pixels(image, background) -> UInt8[Tensor, "H W C"]:
    """Grey or RGB pixels, on the background where they are transparent."""
    pixels = image if isinstance(image, Tensor) else torch.from_numpy(np.array(image))
    shape = tuple(pixels.shape)
    if (
        pixels.dtype != torch.uint8
        or len(shape) not in (2, 3)
        or shape[2:] not in ((), (1,), (3,), (4,))
    ):
        raise ValueError(
            f"image is {pixels.dtype} {shape}: give uint8 [H, W], or [H, W, 1, 3 or 4]"
        )
    if not 0 < min(shape[:2]) <= max(shape[:2]) <= MAX_SIDE:
        raise ValueError(f"image has {shape[:2]} pixels: give 1 to {MAX_SIDE} along each side")
    if shape[2:] != (4,):
        return pixels.reshape(*shape[:2], -1)
    colour = torch.as_tensor(background)
    fits = colour.shape == (3,) and 0 <= colour.min() and colour.max() <= 255
    check(fits, "background", background, "R, G and B from 0 to 255")
    opacity = pixels[..., 3:] / 255
    colour = colour.to(pixels.device) * (1 - opacity)
    return (pixels[..., :3] * opacity + colour).round().to(torch.uint8)
