"""Two runs side by side: what they were given, what they measured, what they drew, and what they ran on."""

import os
from html import escape
from itertools import zip_longest
from pathlib import Path
from typing import Any
from urllib.parse import quote

from nnbook.execution import DEFAULT, find, safe
from nnbook.notebooks import Chapter, duration, headed, hidden
from nnbook.results import LAYER, PERCENT, grid, head, label, shown, value
from nnbook.site.equations import rendered
from nnbook.site.images import Picture, pictures_of
from nnlib._common.files import atomic_write

Pair = tuple[Chapter, Chapter]


def write(reports: Path, a: str, b: str) -> Path:
    """Write reports/compare/A--B.html on two runs, by their names or by paths of notebooks; returns its path.

    Raises UsageError for a run that isn't there.
    """
    left, right = find(reports, a), find(reports, b)
    if len(left) == len(right) == 1 and a.endswith(".ipynb") and b.endswith(".ipynb"):
        pairs, missing = [(left[0], right[0])], []  # as asked for, whatever they are called
    else:
        pairs, missing = _paired(left, right)
    names = _names(left, right, a, b)
    target = reports / "compare" / f"{safe(names[0])}--{safe(names[1])}.html"
    with atomic_write(target) as part:
        part.write_text(page(pairs, missing, names, target.parent), encoding="utf-8")
    return target


def _paired(left: list[Chapter], right: list[Chapter]) -> tuple[list[Pair], list[tuple[str, int]]]:
    """The chapters that both runs have, and the names of others with the run, 0 or 1, that lacks them."""
    first, second = ({chapter.name: chapter for chapter in chapters} for chapters in (left, right))
    pairs = [(first[name], second[name]) for name in sorted(first.keys() & second.keys())]
    return pairs, sorted((name, int(name in first)) for name in first.keys() ^ second.keys())


def _names(left: list[Chapter], right: list[Chapter], a: str, b: str) -> tuple[str, str]:
    """What the runs are called, or their notebooks where they are called the same."""
    names = [
        chapters[0].run.get("run") or Path(given).stem
        for chapters, given in ((left, a), (right, b))
    ]
    return tuple(
        names if names[0] != names[1] else (str(Path(given).with_suffix("")) for given in (a, b))
    )


def page(
    pairs: list[Pair], missing: list[tuple[str, int]], names: tuple[str, str], folder: Path
) -> str:
    """The page that sets two runs side by side, for a folder, from which its links lead to theirs."""
    title = f"{names[0]} beside {names[1]}"
    lacks = "".join(
        f"<li>{escape(name)} is missing in {escape(names[run])}</li>" for name, run in missing
    )
    lacks = f'<ul class="small">{lacks}</ul>' if lacks else ""
    text = "".join(_compared(pair, names, folder) for pair in pairs)
    return f"""{head(title)}<a class="skip" href="#main">Skip to the text</a><div class="front compared">
<nav class="ways" aria-label="Chapters"><a href="../index.html">Contents</a></nav>
<header><h1>{escape(names[0])} <span class="none">beside</span> {escape(names[1])}</h1>{lacks}</header>
<main id="main">{text}</main></div></body></html>"""


def _compared(pair: Pair, names: tuple[str, str], folder: Path) -> str:
    title = (
        f"{pair[0].number} · {rendered(pair[0].title)}"
        if pair[0].number
        else rendered(pair[0].title)
    )
    heads = ["", *map(escape, names)]
    parts = {
        "Parameters": _rows(heads, *(chapter.run.get("parameters", {}) for chapter in pair)),
        "Figures": _figures(heads, pair),
        "Pictures": _pictures(pair, names),
        "What ran them": _rows(heads, *map(_facts, pair)),
    }
    went = "<br>".join(
        _went(chapter, name, folder) for chapter, name in zip(pair, names, strict=True)
    )
    text = "".join(f"<h3>{heading}</h3>{part}" for heading, part in parts.items() if part)
    return f'<section><h2>{title}</h2><p class="small">{went}</p>{text}</section>'


def _went(chapter: Chapter, name: str, folder: Path) -> str:
    """How a run went, with a link to its page where it has one."""
    shown_in_the_book = chapter.run.get("run") == DEFAULT
    page = (folder.parent / chapter.path.name if shown_in_the_book else chapter.path).with_suffix(
        ".html"
    )
    link = quote(Path(os.path.relpath(page, folder)).as_posix())
    called = f'<a href="{link}">{escape(name)}</a>' if page.is_file() else escape(name)
    error = f": {escape(chapter.error)}" if chapter.error else ""
    return f"{called}: {chapter.status()}{error}"


def _rows(heads: list[str], left: dict[str, Any], right: dict[str, Any]) -> str:
    """A table of what two runs have by name, what differs first and marked."""
    names = sorted(
        dict.fromkeys([*left, *right]), key=lambda name: _said(left, name) == _said(right, name)
    )
    rows = []
    for name in names:
        both = [_said(side, name) for side in (left, right)]
        differs = both[0] != both[1]
        mark = ' <span class="failed" title="differs">≠</span>' * differs
        rows.append(
            (
                [_name(escape(name) + mark), *(f"<td>{escape(text)}</td>" for text in both)],
                "differs" * differs,
            )
        )
    return grid(heads, rows, "words") if rows else ""


def _said(side: dict[str, Any], name: str) -> str:
    return str(side[name]) if name in side else "—"


def _name(html: str) -> str:
    return f'<th scope="row">{html}</th>'


def _facts(chapter: Chapter) -> dict[str, str]:
    """When and how a run went, and what it ran on."""
    outcome = f"failed: {chapter.error}" if chapter.error else "passed"
    told = {
        "outcome": outcome,
        "date": chapter.date() or "unknown",
        "time": duration(chapter.timing.get("duration")),
    }
    return told | chapter.facts()


def _figures(heads: list[str], pair: Pair) -> str:
    """A table of all figures that either run recorded, with how far apart they are; not what was published."""
    sides = [chapter.figures for chapter in pair]
    names = dict.fromkeys(
        name for side in sides for name in side if not name.startswith("published_")
    )
    rows = []
    for name in names:
        cells = [
            value(name, side.get(name), "—" if name not in side else shown(name, None))
            for side in sides
        ]
        apart = _difference(name, *(side.get(name) for side in sides))
        rows.append(
            ([_name(escape(label(name))), *cells, *(f"<td>{text}</td>" for text in apart)], "")
        )
    return grid([*heads, "difference", "relative"], rows) if rows else ""


def _difference(name: str, left: dict | None, right: dict | None) -> tuple[str, str]:
    """The second figure less the first, and that as a share of the first where shares of it mean something."""
    known = [side and side["value"] is not None for side in (left, right)]
    if not all(known) or left["unit"] != right["unit"]:
        return "—", "—"
    apart, unit = right["value"] - left["value"], left["unit"]
    points = PERCENT.search(LAYER.sub("", name)) and unit == "1"
    text = f"{100 * abs(apart):.2f} points" if points else shown("", abs(apart), unit)
    sign = "+" if apart > 0 else "−" if apart < 0 else ""
    if (
        points or unit == "dB" or not left["value"]
    ):  # shares of shares mislead, and decibels are logarithms
        return sign + text, "—"
    return sign + text, f"{sign}{100 * abs(apart / left['value']):.1f} %"


def _pictures(pair: Pair, names: tuple[str, str]) -> str:
    """The pictures of the same cells in pairs, each pair under the heading that it stands under."""
    text = ""
    for (heading, left), (_, right) in zip_longest(*map(_drawn, pair), fillvalue=("", [])):
        for both in zip_longest(left, right):
            same = both[0] == both[1]
            shown = [(both[0], "both")] if same else zip(both, names, strict=True)
            sides = "".join(_side(picture, name) for picture, name in shown)
            text += f'<h4>{escape(heading)}{" · the same in both" * same}</h4><div class="pair">{sides}</div>'
    return text


def _drawn(chapter: Chapter) -> list[tuple[str, list[Picture]]]:
    """Headings and pictures of each cell, without the cell that parameters add."""
    cells = [
        (cell, heading or chapter.title)
        for cell, heading in headed(chapter.notebook.cells)
        if not {"injected-parameters", "papermill-error-cell-tag"}
        & set(cell.metadata.get("tags", []))
    ]
    return [
        (heading, [] if hidden(cell) else pictures_of(cell, heading)) for cell, heading in cells
    ]


def _side(picture: Picture | None, name: str) -> str:
    plate = (
        f'<div class="plate">{picture.html()}</div>'
        if picture
        else '<div class="plate blank small">no picture</div>'
    )
    return f'<figure>{plate}<figcaption class="small">{escape(name)}</figcaption></figure>'
