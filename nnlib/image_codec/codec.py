"""Pictures as centers in a file: `encode`, `decode` and `info`, and the same from the command line.

python -m nnlib.image_codec encode photo.png photo.nnc --bits-per-pixel 0.25
python -m nnlib.image_codec decode photo.nnc photo.png --zoom 4
python -m nnlib.image_codec info photo.nnc
"""

import argparse
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from nnlib._common.files import atomic_write
from nnlib._common.validation import check, check_int, check_number
from nnlib.attention import exact_products
from nnlib.datasets import load_photo
from nnlib.image_codec.bitstream import (
    MAX_PIXELS,
    displayed,
    parts_of,
    render_centers,
    render_residual,
    unpack,
)
from nnlib.image_codec.rate_control import RateController

SIDE = 65_535  # pixels along one side, at most
ZOOM = 64  # at most: a tile's samples are drawn together
QUALITY = (
    24,
    1.5,
)  # step of the ripples at quality 0, and how much finer each point of quality makes it


def samples(image: UInt8[Tensor, "H W C"]) -> tuple[Float[Tensor, "N 2"], Float[Tensor, "N C"]]:
    """A picture as samples to fit a DynamicRegressor to: (row, column) of each pixel, and its colour in 0..1."""
    places = torch.cartesian_prod(
        *(torch.arange(float(size), device=image.device) for size in image.shape[:2])
    )
    return places, image.flatten(0, 1) / 255


def encode(
    image: UInt8[Tensor, "H W *C"] | np.ndarray,
    bits_per_pixel: float | None = None,
    quality: float | None = None,
    background: tuple[int, int, int] = (255, 255, 255),
    steps: int | None = None,
    seed: int | None = 0,
    device: str | torch.device = "cpu",
    after: Callable[[], object] | None = None,
) -> bytes:
    """A picture as a file of centers.

    image: uint8 [H, W] or [H, W, 1] grey, [H, W, 3] RGB, or [H, W, 4] RGBA, which is laid on `background`.
    Give `bits_per_pixel` (0.25 by default): the file has at most so many, header and all, unless it can't be so small
    (tens of bytes); or `quality`, 0 ... 100: as many bits as the picture needs for it. More `steps` of gradient (600,
    fewer beyond a megapixel) make it better and take longer; `after` is called after each. The same arguments give the
    same bytes on the same machine.
    Raises ValueError for anything else.
    """
    pixels = _pixels(image, background)
    if bits_per_pixel is not None and quality is not None:
        raise ValueError(
            f"bits_per_pixel={bits_per_pixel} and quality={quality} are both given: give one of them"
        )
    rate = 0.25 if bits_per_pixel is None else bits_per_pixel
    check_number("bits_per_pixel", rate, "(0, inf)", "a positive number, such as 0.25")
    if quality is not None:
        check_number("quality", quality, "[0, 100]", "a number from 0 to 100")
    if steps is not None:
        check_int("steps", steps)
    grey = pixels.shape[2] == 1 or bool((pixels == pixels[..., :1]).all())
    with _plain_torch():
        picture = (pixels[..., :1] if grey else pixels).to(device).float() / 255
        encoder = RateController(picture, np.ndim(image) == 2, steps, seed, after)
        if quality is not None:
            return encoder.of_step(round(QUALITY[0] + QUALITY[1] * quality))
        return encoder.of_size(rate * pixels[..., 0].numel() / 8)


def decode(
    data: bytes, zoom: int = 1, max_pixels: int = MAX_PIXELS, device: str | torch.device = "cpu"
) -> UInt8[Tensor, "H W *C"]:
    """The picture of a file, `zoom` times as large along each side: uint8 [H, W, 3], or [H, W] where it was given so.

    Raises CorruptError (a ValueError) where data is damaged, cut short, foreign, or claims more than `max_pixels`
    pixels at this zoom; nothing is allocated for it before that is known.
    """
    check(zoom in range(1, ZOOM + 1), "zoom", zoom, f"a whole number from 1 to {ZOOM}")
    with _plain_torch():
        coded = unpack(data, max_pixels, zoom := int(zoom))
        shown = displayed(
            render_centers(coded, zoom, device) + render_residual(coded, zoom, device)
        )
    pixels = (shown * 255).round().clamp(0, 255).to(torch.uint8).cpu()
    return pixels[..., 0] if coded.flat else pixels.expand(-1, -1, 3).contiguous()


def info(data: bytes, max_pixels: int = MAX_PIXELS) -> dict[str, float]:
    """What a file holds: its size and centers, and where its bytes go. Raises CorruptError as `decode` does."""
    coded = unpack(data, max_pixels)
    sizes = parts_of(coded)
    known = {
        "height": coded.height,
        "width": coded.width,
        "channels": coded.channels,
        "bytes": len(data),
    }
    rate = 8 * len(data) / coded.height / coded.width
    ripples = int(np.count_nonzero(coded.ripples))
    return (
        known
        | {"bits_per_pixel": rate, "centers": len(coded.centers.places), "ripples": ripples}
        | sizes
    )


@contextmanager
def _plain_torch():
    """Gradients, float32 and full precision, whatever the caller has set."""
    with torch.inference_mode(False), torch.enable_grad(), exact_products():
        yield


def _pixels(image, background) -> UInt8[Tensor, "H W C"]:
    """Grey or RGB, on the background where it is transparent."""
    pixels = image if isinstance(image, Tensor) else torch.from_numpy(np.array(image))
    fits = pixels.dtype == torch.uint8 and (
        pixels.ndim == 2 or pixels.ndim == 3 and pixels.shape[2] in (1, 3, 4)
    )
    if not fits:
        raise ValueError(
            f"image is {pixels.dtype} {list(pixels.shape)}: give uint8 [H, W], or [H, W, 1, 3 or 4]"
        )
    if not 0 < min(pixels.shape[:2]) <= max(pixels.shape[:2]) <= SIDE:
        raise ValueError(
            f"image has {list(pixels.shape[:2])} pixels: give 1 to {SIDE} along each side"
        )
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.shape[2] < 4:
        return pixels
    ground = torch.as_tensor(background)
    check(
        ground.shape == (3,) and 0 <= ground.min() and ground.max() <= 255,
        "background",
        background,
        "R, G and B",
    )
    cover = pixels[..., 3:].float() / 255
    return (
        (pixels[..., :3] * cover + ground.to(pixels.device) * (1 - cover)).round().to(torch.uint8)
    )


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m nnlib.image_codec", description="Pictures as centers in a file."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    writes = commands.add_parser(
        "encode", help="a picture that Pillow can read, into a file of centers"
    )
    rate = writes.add_mutually_exclusive_group()
    rate.add_argument(
        "--bits-per-pixel", type=float, help="at most so many, header and all (default 0.25)"
    )
    rate.add_argument("--quality", type=float, help="0 to 100, as many bits as it needs")
    writes.add_argument(
        "--background", type=int, nargs=3, default=(255, 255, 255), metavar=("R", "G", "B")
    )
    writes.add_argument(
        "--steps", type=int, help="of gradient at the end (600, fewer beyond a megapixel)"
    )
    writes.add_argument("--seed", type=int, default=0)
    reads = commands.add_parser("decode", help="a file of centers into a picture")
    reads.add_argument("--zoom", type=int, default=1, help="so many times as large along each side")
    reads.add_argument(
        "--max-pixels",
        type=int,
        default=MAX_PIXELS,
        help="refuse larger ones (default %(default)s)",
    )
    told = commands.add_parser("info", help="what a file of centers holds, and where its bytes go")
    for command in (writes, reads, told):
        command.add_argument("source", type=Path)
    for command in (writes, reads):
        command.add_argument("target", type=Path)
        command.add_argument("--device", default="cpu")
    try:
        _run(parser.parse_args(arguments))
    except (
        ValueError,
        OSError,
        RuntimeError,
    ) as error:  # RuntimeError: of a device that isn't there
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    return 0


def _run(asked: argparse.Namespace) -> None:
    if asked.command == "encode":
        same = (
            asked.target.exists() and asked.source.exists() and asked.source.samefile(asked.target)
        )
        check(not same, "target", str(asked.target), "another file than the source")
        image = load_photo(asked.source, as_it_is=True)
        names = ("bits_per_pixel", "quality", "background", "steps", "seed", "device")
        with atomic_write(asked.target) as part, tqdm(unit=" steps", leave=False) as bar:
            part.write_bytes(
                encode(image, **{name: getattr(asked, name) for name in names}, after=bar.update)
            )
        _tell(asked.target)
    elif asked.command == "decode":
        kind = _pillow_name(asked.target)
        image = decode(asked.source.read_bytes(), asked.zoom, asked.max_pixels, asked.device)
        with atomic_write(asked.target) as part:
            Image.fromarray(image.numpy()).save(part, kind)
    else:
        _tell(asked.source)


def _pillow_name(target: Path) -> str:
    """The name of the format that the target's ending asks for."""
    known = Image.registered_extensions()
    written = known.get(target.suffix.lower()) in Image.SAVE
    check(
        written,
        "target",
        str(target),
        "a name that ends in .png, or as another format that Pillow writes",
    )
    return known[target.suffix.lower()]


def _tell(path: Path) -> None:
    for name, value in info(path.read_bytes(), SIDE**2).items():
        print(f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}")


if __name__ == "__main__":
    sys.exit(main())
