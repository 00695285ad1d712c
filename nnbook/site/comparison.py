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
    runs = [{chapter.name: chapter for chapter in find(reports, name)} for name in (a, b)]
    names = [next(iter(run.values())).run.get("run") for run in runs]
    names = [name or Path(path).stem for name, path in zip(names, (a, b), strict=True)]
    if names[0] == names[1]:
        names = [str(Path(path).with_suffix("")) for path in (a, b)]
    common = sorted(runs[0].keys() & runs[1].keys())
    pairs = [[run[name] for run in runs] for name in common]
    missing = sorted((name, int(name in runs[0])) for name in runs[0].keys() ^ runs[1].keys())
    if len(missing) == 2 and a.endswith(".ipynb") and b.endswith(".ipynb"):
        pairs = [[chapter for run in runs for chapter in run.values()]]  # whatever they are called
        missing = []
    target = reports / "compare" / f"{safe(names[0])}--{safe(names[1])}.html"
    compared = [
        {
            "chapters": pair,
            "links": [_link(chapter, target.parent) for chapter in pair],
            "pictures": _picture_pairs(*pair),
        }
        for pair in pairs
    ]
    values = {"pairs": compared, "missing": missing, "names": names, "difference": difference}
    return write_html(target, "comparison.html.j2", **values)


def _link(chapter: Chapter, folder: Path) -> str:
    """Return the address of a run's page from a folder, "" where it has none."""
    in_the_book = chapter.run.get("run") and chapter.is_default
    page = folder.parent / chapter.page.name if in_the_book else chapter.page
    return quote(Path(os.path.relpath(page, folder)).as_posix()) if page.is_file() else ""


def difference(metric: str, one: dict[str, Any] | None, other: dict[str, Any] | None) -> list[str]:
    """Return the second figure less the first, and that relative to the first if it makes sense."""
    known = [figure is not None and figure["value"] is not None for figure in (one, other)]
    if not all(known) or one["unit"] != other["unit"]:
        return ["—", "—"]
    unit = one["unit"]
    change = other["value"] - one["value"]
    sign = "+" if change > 0 else "−" if change < 0 else ""
    if PERCENT.search(LAYER.sub("", metric)) and unit == "1":
        return [f"{sign}{100 * abs(change):.2f} points", "—"]
    text = sign + shown("", abs(change), unit)
    if unit == "dB" or not one["value"]:  # decibels are logarithms
        return [text, "—"]
    return [text, f"{sign}{100 * abs(change / one['value']):.1f} %"]


def _picture_pairs(one: Chapter, other: Chapter) -> list[tuple[str, Picture, Picture]]:
    """Return the pictures of the same cells in pairs, with the heading that they stand under."""
    cells = zip_longest(_drawn(one), _drawn(other), fillvalue=("", []))
    both = [(heading, zip_longest(left, right)) for (heading, left), (_, right) in cells]
    return [(heading, *pair) for heading, pairs in both for pair in pairs]


def _drawn(chapter: Chapter) -> list[tuple[str, list[Picture]]]:
    """Return heading and pictures of each cell that the chapter itself has."""
    drawn = []
    for cell, heading in cells_with_headings(chapter.notebook.cells):
        heading = heading or chapter.title
        if not ADDED & set(cell.metadata.get("tags", [])):
            drawn.append((heading, [] if is_hidden(cell) else pictures_of(cell, heading)))
    return drawn
