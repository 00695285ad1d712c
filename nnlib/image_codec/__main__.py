"""Encode, decode and describe pictures as centers in a file."""

import argparse
import sys
from pathlib import Path

from PIL import Image
from tqdm.auto import tqdm

from nnlib._common.files import atomic_write
from nnlib._common.validation import check
from nnlib.datasets import load_photo
from nnlib.image_codec.bitstream import MAX_PIXELS
from nnlib.image_codec.codec import MAX_SIDE, decode, encode, info


def _encode(source: Path, target: Path, **settings) -> None:
    same = target.exists() and source.exists() and source.samefile(target)
    check(not same, "target", str(target), "another file than the source")
    image = load_photo(source, as_it_is=True)
    with atomic_write(target) as part, tqdm(unit=" steps", leave=False) as bar:
        part.write_bytes(encode(image, **settings, callback=bar.update))
    _info(target)


def _decode(source: Path, target: Path, **settings) -> None:
    kind = Image.registered_extensions().get(target.suffix.lower())
    check(kind in Image.SAVE, "target", str(target), "a name that ends in .png or the like")
    image = decode(source.read_bytes(), **settings)
    with atomic_write(target) as part:
        Image.fromarray(image.numpy()).save(part, kind)


def _info(source: Path) -> None:
    for name, value in info(source.read_bytes(), MAX_SIDE**2).items():
        print(f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = argparse.ArgumentParser("python -m nnlib.image_codec", description=__doc__)
    commands = parser.add_subparsers(required=True)
    for run in (_encode, _decode, _info):
        command = commands.add_parser(run.__name__[1:])
        command.set_defaults(run=run)
        command.add_argument("source", type=Path)
        if run is not _info:
            command.add_argument("target", type=Path)
            command.add_argument("--device", default="cpu")
        if run is _encode:
            rate = command.add_mutually_exclusive_group()
            rate.add_argument("--bits-per-pixel", type=float, help="at most (default 0.25)")
            rate.add_argument("--quality", type=float, help="0 to 100, in the bits that it needs")
            command.add_argument("--background", type=int, nargs=3, default=(255, 255, 255))
            command.add_argument("--steps", type=int, help="of gradient (default 600)")
            command.add_argument("--seed", type=int, default=0)
        if run is _decode:
            command.add_argument("--zoom", type=int, default=1, help="more samples a pixel")
            command.add_argument("--max-pixels", type=int, default=MAX_PIXELS)
    options = vars(parser.parse_args(arguments))
    try:
        options.pop("run")(**options)
    except (ValueError, OSError, RuntimeError) as error:  # the last of a device that is missing
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
