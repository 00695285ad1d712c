"""Two runs side by side: their parameters, what they measured, what they drew, and what they ran on."""

import os
from itertools import zip_longest
from pathlib import Path
from typing import Any
from urllib.parse import quote

from nnbook.execution import find, safe
from nnbook.notebooks import Chapter, cells_with_headings, duration, is_hidden
from nnbook.results import LAYER, PERCENT, Figures, shown
from nnbook.site.images import Picture, pictures_of
from nnbook.site.rendering import write_html

ADDED = {"injected-parameters", "papermill-error-cell-tag"}  # tags of cells that a run adds


def write(reports: Path, a: str, b: str) -> Path:
    """Write reports/compare/A--B.html on two runs, by their names or by paths of notebooks; return its path.

    Raises UsageError for a run that isn't there.
    """
    first = {chapter.name: chapter for chapter in find(reports, a)}
    second = {chapter.name: chapter for chapter in find(reports, b)}
    if len(first) == len(second) == 1 and a.endswith(".ipynb") and b.endswith(".ipynb"):
        pairs = [(*first.values(), *second.values())]  # as asked for, whatever they are called
        missing = []
    else:
        pairs = [(first[name], second[name]) for name in sorted(first.keys() & second.keys())]
        missing = sorted((name, int(name in first)) for name in first.keys() ^ second.keys())
    names = [_name(first, a), _name(second, b)]
    if names[0] == names[1]:
        names = [str(Path(path).with_suffix("")) for path in (a, b)]
    target = reports / "compare" / f"{safe(names[0])}--{safe(names[1])}.html"
    compared = [_compared(pair, target.parent) for pair in pairs]
    return write_html(target, "comparison.html.j2", pairs=compared, missing=missing, names=names)


def _name(chapters: dict[str, Chapter], path: str) -> str:
    return next(iter(chapters.values())).run.get("run") or Path(path).stem


def _compared(chapters: tuple[Chapter, Chapter], folder: Path) -> dict[str, Any]:
    """Return what the page shows of a chapter in both runs; its links lead from `folder`."""
    return {
        "number": chapters[0].number,
        "title": chapters[0].title,
        "chapters": chapters,
        "links": [_link(chapter, folder) for chapter in chapters],
        "parameters": _rows(*(chapter.run.get("parameters", {}) for chapter in chapters)),
        "figures": _figure_rows(*(chapter.figures for chapter in chapters)),
        "pictures": _picture_pairs(*chapters),
        "facts": _rows(*map(_facts, chapters)),
    }


def _link(chapter: Chapter, folder: Path) -> str:
    """Return the address of a run's page, "" where it has none."""
    in_the_book = chapter.run.get("run") and chapter.is_default
    page = folder.parent / chapter.page.name if in_the_book else chapter.page
    return quote(Path(os.path.relpath(page, folder)).as_posix()) if page.is_file() else ""


def _rows(one: dict[str, Any], other: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return what two runs have by name, what differs first."""
    names = dict.fromkeys([*one, *other])
    rows = [(name, str(one.get(name, "—")), str(other.get(name, "—"))) for name in names]
    return sorted(rows, key=lambda row: row[1] == row[2])


def _facts(chapter: Chapter) -> dict[str, str]:
    """Return when and how a run went, and what it ran on."""
    outcome = f"failed: {chapter.error}" if chapter.error else "passed"
    date = chapter.date or "unknown"
    return {"outcome": outcome, "date": date, "time": duration(chapter.seconds)} | chapter.origin()


def _figure_rows(one: Figures, other: Figures) -> list[tuple]:
    """Return (metric, both figures, difference) of all that either run measured."""
    names = [name for name in {**one, **other} if not name.startswith("published_")]
    both = {name: (one.get(name), other.get(name)) for name in names}
    return [(name, pair, _difference(name, *pair)) for name, pair in both.items()]


def _difference(metric: str, one: dict | None, other: dict | None) -> tuple[str, str]:
    """Return the second figure less the first, and that relative to the first where such a ratio means something."""
    known = [figure is not None and figure["value"] is not None for figure in (one, other)]
    if not all(known) or one["unit"] != other["unit"]:
        return "—", "—"
    unit = one["unit"]
    difference = other["value"] - one["value"]
    sign = "+" if difference > 0 else "−" if difference < 0 else ""
    if PERCENT.search(LAYER.sub("", metric)) and unit == "1":
        return f"{sign}{100 * abs(difference):.2f} points", "—"
    text = sign + shown("", abs(difference), unit)
    if unit == "dB" or not one["value"]:  # decibels are logarithms
        return text, "—"
    return text, f"{sign}{100 * abs(difference / one['value']):.1f} %"


def _picture_pairs(one: Chapter, other: Chapter) -> list[tuple[str, Picture, Picture]]:
    """Return the pictures of the same cells in pairs, with the heading that they stand under."""
    pairs = []
    for (heading, left), (_, right) in zip_longest(_drawn(one), _drawn(other), fillvalue=("", [])):
        pairs += [(heading, *pair) for pair in zip_longest(left, right)]
    return pairs


def _drawn(chapter: Chapter) -> list[tuple[str, list[Picture]]]:
    """Return heading and pictures of each cell that the chapter itself has."""
    drawn = []
    for cell, heading in cells_with_headings(chapter.notebook.cells):
        heading = heading or chapter.title
        if not ADDED & set(cell.metadata.get("tags", [])):
            drawn.append((heading, [] if is_hidden(cell) else pictures_of(cell, heading)))
    return drawn
