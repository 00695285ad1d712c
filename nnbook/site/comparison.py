"""Two runs side by side: their parameters, figures and pictures, and what they ran on."""

import os
from itertools import zip_longest
from pathlib import Path
from typing import Any
from urllib.parse import quote

from nnbook.execution import find, safe
from nnbook.notebooks import Chapter, cells_with_headings, is_hidden
from nnbook.results import LAYER, PERCENT, shown
from nnbook.site.images import Picture, pictures_of
from nnbook.site.rendering import write_html

ADDED = {"injected-parameters", "papermill-error-cell-tag"}  # tags of cells that a run adds


def write(reports: Path, a: str, b: str) -> Path:
    """Write reports/compare/A--B.html on two runs, given by name or by a notebook's path.

    Raises UsageError for a run that isn't there.
    """
    left = {chapter.name: chapter for chapter in find(reports, a)}
    right = {chapter.name: chapter for chapter in find(reports, b)}
    names = [_name(left, a), _name(right, b)]
    if names[0] == names[1]:
        names = [str(Path(path).with_suffix("")) for path in (a, b)]
    target = reports / "compare" / f"{safe(names[0])}--{safe(names[1])}.html"
    pairs = []
    for name in sorted(left.keys() & right.keys()):
        chapters = [left[name], right[name]]
        links = [_link(chapter, target.parent) for chapter in chapters]
        pairs.append({"chapters": chapters, "links": links, "pictures": _picture_pairs(*chapters)})
    return write_html(
        target,
        "comparison.html.j2",
        names=names,
        pairs=pairs,
        missing=sorted((name, int(name in left)) for name in left.keys() ^ right.keys()),
        difference=difference,
    )


def _name(run: dict[str, Chapter], path: str) -> str:
    return next(iter(run.values())).run.get("run") or Path(path).stem


def _link(chapter: Chapter, folder: Path) -> str:
    """Return the address of a run's page from a folder, "" where it has none."""
    in_the_book = chapter.run.get("run") and chapter.is_default
    page = folder.parent / chapter.page.name if in_the_book else chapter.page
    return quote(Path(os.path.relpath(page, folder)).as_posix()) if page.is_file() else ""


def difference(metric: str, one: dict[str, Any] | None, other: dict[str, Any] | None) -> list[str]:
    """Return the second figure less the first, and that relative to the first if it makes sense."""
    if not one or not other or None in (one["value"], other["value"]):
        return ["—", "—"]
    unit = one["unit"]
    change = other["value"] - one["value"]
    sign = "+" if change > 0 else "−" if change < 0 else ""
    if unit != other["unit"]:
        return ["—", "—"]
    if PERCENT.search(LAYER.sub("", metric)) and unit == "1":
        return [f"{sign}{100 * abs(change):.2f} points", "—"]
    text = sign + shown("", abs(change), unit)
    if unit == "dB" or not one["value"]:  # decibels are logarithms
        return [text, "—"]
    return [text, f"{sign}{100 * abs(change / one['value']):.1f} %"]


def _picture_pairs(one: Chapter, other: Chapter) -> list[tuple[str, Picture, Picture]]:
    """Return the pictures of the same cells in pairs, with the heading that they stand under."""
    pairs = []
    for (heading, left), (_, right) in zip_longest(_drawn(one), _drawn(other), fillvalue=("", [])):
        for both in zip_longest(left, right):
            pairs.append((heading, *both))
    return pairs


def _drawn(chapter: Chapter) -> list[tuple[str, list[Picture]]]:
    """Return heading and pictures of each cell that the chapter itself has."""
    drawn = []
    for cell, heading in cells_with_headings(chapter.notebook.cells):
        heading = heading or chapter.title
        if not ADDED & set(cell.metadata.get("tags", [])):
            drawn.append((heading, [] if is_hidden(cell) else pictures_of(cell, heading)))
    return drawn
