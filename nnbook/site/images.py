"""The pictures that a notebook's outputs hold, as a page holds them: embedded, with a text and a size for each."""

import base64
import re
from functools import lru_cache
from html import escape
from io import BytesIO
from typing import NamedTuple

SVG, PNG, JPEG = "image/svg+xml", "image/png", "image/jpeg"
HEAVY = 200_000  # bytes of a PNG that is worth the time to write it as WebP
WIDE = 34 * 16  # CSS pixels: what is wider isn't shrunk below this, but scrolls in its box
PIXELS = {
    "": 1,
    "px": 1,
    "pt": 96 / 72,
    "in": 96,
    "cm": 96 / 2.54,
    "mm": 96 / 25.4,
}  # of CSS, in units of SVG
EIGHT_BITS = {"1", "L", "LA", "P", "RGB", "RGBA"}  # Pillow's modes that WebP holds without loss


class Picture(NamedTuple):
    """A picture of an output."""

    address: str  # data:
    alt: str
    width: int = 0  # CSS pixels, 0 where the file doesn't tell
    height: int = 0

    def html(self, wide: bool = True) -> str:
        """The picture as an element, that isn't shrunk too far where `wide` holds."""
        size = f' width="{self.width}" height="{self.height}"' if self.width and self.height else ""
        kind = ' class="wide"' if wide and self.width > WIDE else ""
        return f'<img src="{self.address}" alt="{escape(self.alt)}"{size}{kind}>'


def pictures_of(cell, heading: str) -> list[Picture]:
    """The pictures of a cell's outputs in order; `heading` names those without an alt text."""
    return [found for output in cell.get("outputs", []) if (found := picture_of(output, heading))]


def picture_of(output, heading: str) -> Picture | None:
    """The picture that an output is shown as, None where it is something else."""
    data = output.get("data", {})
    kind = next((kind for kind in (SVG, PNG, JPEG) if kind in data), None)
    if kind is None or "text/html" in data:
        return None
    told = output.get("metadata", {}).get(kind, {})
    alt = str(told.get("alt") or "").strip() or (f"Figure: {heading}" if heading else "Figure")
    if kind == SVG:
        text = base64.b64encode(data[SVG].encode()).decode()
        return Picture(f"data:{SVG};base64,{text}", alt, *_size(data[SVG]))
    text = "".join(data[kind].split())
    width, height = told.get("width"), told.get("height")
    size = (width, height) if isinstance(width, int) and isinstance(height, int) else _pixels(text)
    kind, text = _lighter(text) if kind == PNG else (kind, text)
    return Picture(f"data:{kind};base64,{text}", alt, *size)


def _size(svg: str) -> tuple[int, int]:
    """An SVG's width and height in CSS pixels, 0 and 0 where it doesn't tell both."""
    tag = re.search(r"<svg\b[^>]*>", svg)
    found = (
        dict(re.findall(r'\b(width|height)="\s*([\d.]+(?:px|pt|in|cm|mm)?)\s*"', tag[0]))
        if tag
        else {}
    )
    if len(found) < 2:
        return 0, 0
    numbers = (re.fullmatch(r"([\d.]+)(\D*)", found[name]).groups() for name in ("width", "height"))
    width, height = (round(float(number) * PIXELS[unit]) for number, unit in numbers)
    return width, height


def _pixels(text: str) -> tuple[int, int]:
    """The pixels across and down of a picture in base64, 0 and 0 where it can't be read."""
    from PIL import Image

    try:
        with Image.open(BytesIO(base64.b64decode(text))) as image:
            return image.size
    except (OSError, ValueError):
        return 0, 0


@lru_cache(maxsize=32)
def _lighter(text: str) -> tuple[str, str]:
    """Kind and base64 text of a PNG; of a heavy one those of a WebP of the same pixels, where that is smaller."""
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
