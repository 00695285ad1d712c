"""What a reader gets: a page for each chapter that ran, and a front page with all figures."""

import csv
import re
import sys
from collections.abc import Iterable
from datetime import datetime
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from nnbook.notebooks import DEFAULT, Chapter
from nnbook.results import BookError
from nnbook.site import api
from nnbook.site.pages import write_page
from nnbook.site.rendering import write_html

LARGE = 3_000_000  # bytes of a page that is slow to send and to open


def write(reports: Path, notebooks: Path) -> Path:
    """Render all chapters in `reports`, the library's reference and the front page; return that.

    Raises BookError where nothing ran yet, OSError where `reports` can't be written.
    """
    chapters = _chapters(reports)
    if not chapters and not any(reports.glob("sweeps/*/index.html")):
        raise BookError(f"reports={str(reports)!r} holds no chapter that ran: use `nnbook run`")
    neighbors = [None, *chapters, None]
    for before, chapter, after in zip(neighbors, chapters, neighbors[2:], strict=False):
        _warn_if_large(write_page(chapter, notebooks, before, after))
    for path in reports.glob("runs/*/[0-9][0-9]_*.ipynb"):
        page = path.with_suffix(".html")
        is_new = page.exists() and page.stat().st_mtime >= path.stat().st_mtime
        if path.parent.name != DEFAULT and not is_new:
            write_run(path, notebooks)
    api.write(reports)
    return write_front(reports)


def write_run(path: Path, notebooks: Path) -> Path:
    """Render the page of a run beside its notebook, of the default one in the book."""
    if path.parent.name == DEFAULT:
        return write_page(Chapter(path.parents[2] / path.name), notebooks)
    return write_page(Chapter(path), notebooks, home=("../../index.html", "Contents"))


def write_front(reports: Path) -> Path:
    """Write the front page alone, which links what is there; return its path."""
    others = {
        "Other runs": _listed(reports, reports.glob("runs/*/*.html")),
        "Sweeps": _listed(reports, reports.glob("sweeps/*/index.html")),
        "Comparisons": _listed(reports, reports.glob("compare/*.html")),
    }
    has_api = (reports / "api" / "index.html").exists()
    values = {"chapters": _chapters(reports), "others": others, "has_api": has_api}
    page = write_html(reports / "index.html", "front.html.j2", **values)
    _warn_if_large(page)
    return page


def _chapters(reports: Path) -> list[Chapter]:
    return [Chapter(path) for path in sorted(reports.glob("[0-9][0-9]_*.ipynb"))]


def _warn_if_large(page: Path) -> None:
    size = page.stat().st_size
    if size > LARGE:
        why = f"{page.name} has {size / 1e6:.1f} MB: draw fewer or smaller pictures"
        print(f"nnbook: {why}", file=sys.stderr)


def _listed(reports: Path, pages: Iterable[Path]) -> list[dict[str, Any]]:
    """Return what the front page tells of other pages, the newest first."""
    listed = []
    for page in sorted(pages, key=lambda page: (-page.stat().st_mtime, page)):
        date = datetime.fromtimestamp(page.stat().st_mtime).strftime("%Y-%m-%d %H:%M")
        link = quote(page.relative_to(reports).as_posix())
        summary = _sweep(page.parent) if page.name == "index.html" else _summary(page)
        listed.append({"link": link, "date": date} | summary)
    return listed


def _sweep(folder: Path) -> dict[str, Any]:
    """Return what a sweep is called, how many points it has, and how many of them failed."""
    table = folder / "results.csv"
    lines = table.read_text(encoding="utf-8").splitlines() if table.exists() else []
    ended = [row.get("status") for row in csv.DictReader(lines)]
    return {"name": folder.name, "points": len(ended), "failed": ended.count("failed")}


def _summary(page: Path) -> dict[str, Any]:
    """Return what a run or a comparison is called, and whether it failed."""
    text = page.read_text(encoding="utf-8", errors="replace").partition("<main")[0]
    title = re.search(r"<title>(.*?)</title>", text, re.DOTALL)
    name = unescape(title[1]) if title else page.stem
    if page.parent.name == "compare":
        return {"name": name}
    return {"name": f"{page.parent.name} · {name}", "failed": int('href="#error"' in text)}
