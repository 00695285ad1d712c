"""The pictures that a notebook's outputs hold, as a page holds them: embedded, with a text and a size for each."""

import base64
import re
from functools import lru_cache
from io import BytesIO
from typing import NamedTuple

SVG, PNG, JPEG = "image/svg+xml", "image/png", "image/jpeg"
HEAVY = 200_000  # bytes of a PNG that is worth the time to write it as WebP
WIDE = 34 * 16  # CSS pixels: what is wider isn't shrunk below this, but scrolls in its box
PIXELS = {"": 1, "px": 1, "pt": 96 / 72, "in": 96, "cm": 96 / 2.54, "mm": 96 / 25.4}
EIGHT_BITS = {"1", "L", "LA", "P", "RGB", "RGBA"}  # Pillow's modes that WebP holds without loss


class Picture(NamedTuple):
    """A picture of an output: its data: address, its text, and its size in CSS pixels, 0 where it isn't known."""

    address: str
    alt: str
    width: int = 0
    height: int = 0

    @property
    def is_wide(self) -> bool:
        return self.width > WIDE


def pictures_of(cell, heading: str) -> list[Picture]:
    """Return the pictures of a cell's outputs in order; `heading` names those without an alt text."""
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
    text = "".join(data[kind].split())
    size = metadata.get("width"), metadata.get("height")
    if not all(isinstance(side, int) for side in size):
        size = _pixels(text)
    if kind == PNG:
        kind, text = _lighter(text)
    return Picture(f"data:{kind};base64,{text}", alt, *size)


def _svg_size(svg: str) -> tuple[int, int]:
    """Return an SVG's width and height in CSS pixels, 0 and 0 where it doesn't tell both."""
    tag = re.search(r"<svg\b[^>]*>", svg)
    sides = r'\b(width|height)="\s*([\d.]+)(px|pt|in|cm|mm)?\s*"'
    found = {
        side: (number, unit) for side, number, unit in re.findall(sides, tag[0] if tag else "")
    }
    if len(found) < 2:
        return 0, 0
    pixels = {side: round(float(number) * PIXELS[unit]) for side, (number, unit) in found.items()}
    return pixels["width"], pixels["height"]


def _pixels(text: str) -> tuple[int, int]:
    """Return the pixels across and down of a picture in base64, 0 and 0 where it can't be read."""
    from PIL import Image

    try:
        with Image.open(BytesIO(base64.b64decode(text))) as image:
            return image.size
    except (OSError, ValueError):
        return 0, 0


@lru_cache(maxsize=32)
def _lighter(text: str) -> tuple[str, str]:
    """Return kind and base64 of a PNG; of a heavy one those of a lossless WebP, where that is smaller."""
    from PIL import Image

    if len(text) * 3 // 4 < HEAVY:
        return PNG, text
    file = BytesIO()
    try:
        with Image.open(BytesIO(base64.b64decode(text))) as image:
            if image.mode not in EIGHT_BITS or getattr(image, "n_frames", 1) > 1:
                return PNG, text
            image.save(file, "WEBP", lossless=True, exact=True)
    except (OSError, ValueError):  # a broken file, or a Pillow without WebP
        return PNG, text
    lighter = base64.b64encode(file.getvalue()).decode()
    return ("image/webp", lighter) if len(lighter) < len(text) else (PNG, text)
