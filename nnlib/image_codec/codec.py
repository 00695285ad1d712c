"""Pictures as centers in a file."""

import numpy as np
import torch
from torch import Tensor

from nnlib._common.runtime import torch_defaults
from nnlib._common.validation import check, check_int, check_number
from nnlib.image_codec import bitstream
from nnlib.image_codec.bitstream import MAX_PIXELS
from nnlib.image_codec.lapped_cosine import dequantize, synthesize
from nnlib.image_codec.rate_control import RateController
from nnlib.image_codec.splatting import TileGrid, render

MAX_SIDE = 65_535  # pixels
MAX_ZOOM = 64  # as a tile's samples are rendered together


@torch_defaults(gradients=True, one_core=True)  # as quick, and the same bytes everywhere
def encode(
    image: Tensor | np.ndarray,
    bits_per_pixel: float | None = None,
    quality: float | None = None,
    background: tuple[int, int, int] = (255, 255, 255),
    steps: int | None = None,
    seed: int | None = 0,
    device: str | torch.device = "cpu",
    callback=None,
) -> bytes:
    """Encode a picture; the same arguments give the same bytes on the same machine.

    Parameters
    ----------
    image : uint8 [H, W], [H, W, 1], [H, W, 3] (RGB) or [H, W, 4] (RGBA)
    bits_per_pixel : float, at most (default 0.25), unless no file is so small (tens of bytes)
    quality : float from 0 to 100, in as many bits as the picture needs for it
    background : RGB under transparent pixels, default white
    steps : int, of gradient (default 600, fewer beyond a megapixel): more are better and slower
    seed : int or None
    device : str or torch.device
    callback : callable without arguments, called after each step

    Examples
    --------
    >>> encode(torch.zeros(8, 9, 3, dtype=torch.uint8), steps=2)[:3]
    b'nnc'
    """
    _check_settings(bits_per_pixel, quality, steps)
    picture = _to_pixels(image, background).to(device).float() / 255
    size = (bits_per_pixel or 0.25) * picture[..., 0].numel() / 8
    step = None if quality is None else round(24 + 1.5 * quality)
    options = (np.ndim(image) == 2, size, step, steps, seed, callback)
    return RateController(picture, *options).encode()


@torch_defaults(gradients=False, one_core=True)
def decode(
    data: bytes, zoom: int = 1, max_pixels: int = MAX_PIXELS, device: str | torch.device = "cpu"
) -> Tensor:
    """Decode a picture, `zoom` times as large along each side.

    Parameters
    ----------
    data : bytes
    zoom : int from 1 to 64, default 1
    max_pixels : int, default 2^24; larger pictures, after zoom, are refused and take no memory
    device : str or torch.device

    Returns
    -------
    uint8 tensor [H zoom, W zoom, 3], or [H zoom, W zoom] where `encode` was given [H, W]

    Raises
    ------
    CorruptError : the data are anything but a whole file within the limits

    Examples
    --------
    >>> decode(encode(torch.zeros(8, 9, dtype=torch.uint8), steps=2), zoom=2).shape
    torch.Size([16, 18])
    """
    check(zoom in range(1, MAX_ZOOM + 1), "zoom", zoom, f"a whole number from 1 to {MAX_ZOOM}")
    zoom = int(zoom)
    coded = bitstream.unpack(data, max_pixels, zoom)
    grid = TileGrid(coded.height, coded.width, zoom, device)
    picture = render(grid, *(part.to(device) for part in coded.centers.tensors()))
    codes = torch.from_numpy(coded.codes).to(device)
    coefficients = dequantize(codes, bitstream.STEP_SIZES[coded.step])
    residual = synthesize(coefficients, coded.height, coded.width, coded.pitch, zoom)
    rgb = bitstream.opponent_to_rgb(picture + residual)
    pixels = (rgb * 255).round().clamp(0, 255).to(torch.uint8).cpu()
    return pixels[..., 0] if coded.no_channel_axis else pixels.expand(-1, -1, 3).contiguous()


def info(data: bytes, max_pixels: int = MAX_PIXELS) -> dict[str, float]:
    """Describe a file: its size, its centers and nonzero coefficients, and where its bytes go.

    Parameters
    ----------
    data : bytes
    max_pixels : int, default 2^24, as in `decode`

    Examples
    --------
    >>> info(encode(torch.zeros(8, 9, dtype=torch.uint8), steps=2))["centers"]
    1
    """
    coded = bitstream.unpack(data, max_pixels)
    _, sizes = bitstream.pack(coded)
    return {
        "height": coded.height,
        "width": coded.width,
        "channels": len(coded.codes),
        "bytes": len(data),
        "bits_per_pixel": 8 * len(data) / coded.height / coded.width,
        "centers": len(coded.centers.positions),
        "coefficients": int(np.count_nonzero(coded.codes)),
        **sizes,
    }


def _check_settings(bits_per_pixel, quality, steps) -> None:
    if bits_per_pixel is not None and quality is not None:
        raise ValueError(f"{bits_per_pixel=} and {quality=} are both given: give one of them")
    check_number("bits_per_pixel", 0.25 if bits_per_pixel is None else bits_per_pixel, "(0, inf)")
    check_number("quality", 0 if quality is None else quality, "[0, 100]")
    check_int("steps", 1 if steps is None else steps)


def _to_pixels(image, background) -> Tensor:
    """Pixels [H, W, 3], or [H, W, 1] if all are grey, on the background where transparent."""
    pixels = image if isinstance(image, Tensor) else torch.from_numpy(np.array(image))
    size = list(pixels.shape)
    known = len(size) >= 2 and size[2:] in ([], [1], [3], [4])
    if pixels.dtype != torch.uint8 or not known:
        raise ValueError(f"image is {pixels.dtype} {size}: give uint8 [H, W], or [H, W, 1, 3 or 4]")
    if not 0 < min(size[:2]) <= max(size[:2]) <= MAX_SIDE:
        raise ValueError(f"image has {size[:2]} pixels: give 1 to {MAX_SIDE} along each side")
    pixels = pixels.reshape(*size[:2], -1)
    if pixels.shape[2] == 4:
        colour = torch.as_tensor(background)
        fits = colour.shape == (3,) and 0 <= colour.min() and colour.max() <= 255
        check(fits, "background", background, "R, G and B from 0 to 255")
        opacity = pixels[..., 3:] / 255
        colour = colour.to(pixels.device) * (1 - opacity)
        pixels = (pixels[..., :3] * opacity + colour).round().to(torch.uint8)
    return pixels[..., :1] if (pixels == pixels[..., :1]).all() else pixels
