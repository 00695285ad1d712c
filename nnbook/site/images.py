"""The pictures that a notebook's outputs hold, as a page embeds them: with a text and a size."""

import base64
import re
from functools import lru_cache
from io import BytesIO
from typing import NamedTuple

SVG, PNG, JPEG = "image/svg+xml", "image/png", "image/jpeg"
HEAVY = 270_000  # characters of a PNG that is worth the time to write it as WebP
WIDE = 34 * 16  # CSS pixels: what is wider isn't shrunk below this, but scrolls in its box
PIXELS = {"": 1, "px": 1, "pt": 96 / 72, "in": 96, "cm": 96 / 2.54, "mm": 96 / 25.4}
EIGHT_BITS = {"1", "L", "LA", "P", "RGB", "RGBA"}  # Pillow's modes that WebP holds without loss


class Picture(NamedTuple):
    """A picture of an output; its size is in CSS pixels, 0 where it isn't known."""

    address: str
    alt: str
    width: int = 0
    height: int = 0

    @property
    def is_wide(self) -> bool:
        return self.width > WIDE


def pictures_of(cell, heading: str) -> list[Picture]:
    """Return the pictures of a cell's outputs; `heading` names those without an alt text."""
    pictures = [picture_of(output, heading) for output in cell.get("outputs", [])]
    return [picture for picture in pictures if picture]


def picture_of(output, heading: str) -> Picture | None:
    """Return the picture that an output is shown as, None where it is something else."""
    data = output.get("data", {})
    kind = next((kind for kind in (SVG, PNG, JPEG) if kind in data), None)
    if kind is None or "text/html" in data:
        return None
    metadata = output.get("metadata", {}).get(kind, {})
    alt = str(metadata.get("alt") or "").strip() or f"Figure: {heading}".removesuffix(": ")
    if kind == SVG:
        text = base64.b64encode(data[SVG].encode()).decode()
        return Picture(f"data:{SVG};base64,{text}", alt, *_svg_size(data[SVG]))
    address, size = _embedded(kind, "".join(data[kind].split()))
    stated = metadata.get("width"), metadata.get("height")
    if all(isinstance(side, int) for side in stated):
        size = stated
    return Picture(address, alt, *size)


def _svg_size(svg: str) -> tuple[int, int]:
    """Return an SVG's width and height in CSS pixels, 0 and 0 where it doesn't tell both."""
    tag = re.search(r"<svg\b[^>]*>", svg)
    sides = r'\b(width|height)="\s*([\d.]+)(px|pt|in|cm|mm)?\s*"'
    found = re.findall(sides, tag[0]) if tag else []
    pixels = {side: round(float(number) * PIXELS[unit]) for side, number, unit in found}
    return (pixels["width"], pixels["height"]) if len(pixels) == 2 else (0, 0)


@lru_cache(maxsize=32)
def _embedded(kind: str, text: str) -> tuple[str, tuple[int, int]]:
    """Return a picture's address and size; a heavy PNG becomes a lossless WebP if smaller."""
    from PIL import Image

    address = f"data:{kind};base64,{text}"
    size = (0, 0)
    try:
        with Image.open(BytesIO(base64.b64decode(text))) as image:
            size = image.size
            is_still = image.mode in EIGHT_BITS and getattr(image, "n_frames", 1) == 1
            if kind == PNG and len(text) > HEAVY and is_still:
                file = BytesIO()
                image.save(file, "WEBP", lossless=True, exact=True)
                webp = f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
                address = min(webp, address, key=len)
    except (OSError, ValueError):  # a broken file, or a Pillow without WebP
        pass
    return address, size
