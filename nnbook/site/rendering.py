"""Pages are the Jinja2 templates in templates/, which take in style sheet and scripts from static/.

A page is whole by itself: its content policy keeps a browser from loading anything, and from
running anything but our one script.
"""

import base64
import hashlib
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from nnbook.notebooks import duration
from nnbook.results import counted, label, shown, with_published
from nnbook.site.equations import with_equations
from nnlib._common.files import atomic_write

FILTERS = {
    "counted": counted,
    "duration": duration,
    "equations": with_equations,
    "format_figure": shown,
    "label": label,
    "with_published": with_published,
}


@cache
def environment() -> Environment:
    """Return the templates' environment, which escapes whatever isn't marked as HTML."""
    loader = PackageLoader("nnbook.site")
    made = Environment(loader=loader, autoescape=True, trim_blocks=True)
    made.filters |= FILTERS | {"sha256": _sha256}
    made.globals |= {"static": static, "script": ""}
    return made


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def static(name: str) -> Markup:
    """Return the text of a style sheet or script."""
    return Markup(files("nnbook.site").joinpath("static", name).read_text(encoding="utf-8"))


def write_html(path: Path, template: str, **values: Any) -> Path:
    """Write a page from a template, whole or not at all; return its path."""
    page = environment().get_template(template).render(values)
    with atomic_write(path) as part:
        part.write_text(page, encoding="utf-8")
    return path


def figures_html(figures: dict[str, dict[str, Any]]) -> str:
    """Return a table of recorded figures, as notebooks show them."""
    return str(environment().get_template("parts.html.j2").module.figures_table(figures))
