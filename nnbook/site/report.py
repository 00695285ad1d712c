"""What a reader gets: a page for each chapter that ran, and a front page that sets figures beside the published ones.

A page is whole by itself: pictures are embedded, and its content policy holds a browser to loading nothing, from
anywhere, and to running nothing but the one script of ours that opens and folds code.

The front page: what the book is, a card for each chapter, what else lies beside them, and what ran them.
"""

import csv
import json
import re
import sys
from collections.abc import Iterable
from datetime import datetime
from html import escape, unescape
from itertools import groupby
from pathlib import Path
from urllib.parse import quote

from nnbook.execution import DEFAULT
from nnbook.notebooks import Chapter
from nnbook.results import BookError, counted, definitions, file, head, table
from nnbook.site.equations import rendered
from nnbook.site.pages import address, write_page
from nnlib._common.files import atomic_write

LARGE = 3_000_000  # bytes of a page that is slow to send and to open


def write(reports: Path, notebooks: Path) -> Path:
    """Render every chapter in `reports` and the front page; returns the front page's path, warns of large pages.

    Raises BookError where nothing ran yet, OSError where `reports` can't be written.
    """
    chapters = _ran(reports)
    if not chapters and not any(reports.glob("sweeps/*/index.html")):
        raise BookError(
            f"reports={str(reports)!r} holds no chapter that ran: start with `nnbook run`"
        )
    for before, chapter, after in zip(
        [None, *chapters], chapters, [*chapters[1:], None], strict=False
    ):
        _warn(write_page(chapter, notebooks, before, after))
    for path in reports.glob("runs/*/[0-9][0-9]_*.ipynb"):
        page = path.with_suffix(".html")
        if path.parent.name != DEFAULT and not (
            page.exists() and page.stat().st_mtime >= path.stat().st_mtime
        ):
            write_run(path, notebooks)
    return write_front(reports)


def write_run(path: Path, notebooks: Path) -> Path:
    """Render the page of one run beside its notebook, or, of the default one, that of the book; returns its path."""
    if path.parent.name == DEFAULT:
        return write_page(Chapter(path.parents[2] / path.name), notebooks)
    return write_page(Chapter(path), notebooks, home=("../../index.html", "Contents"))


def _ran(reports: Path) -> list[Chapter]:
    return [Chapter(path) for path in sorted(reports.glob("[0-9][0-9]_*.ipynb"))]


def write_front(reports: Path) -> Path:
    """Write the front page alone, which links what is there; returns its path."""
    with atomic_write(reports / "index.html") as part:
        part.write_text(front(_ran(reports), reports), encoding="utf-8")
    _warn(reports / "index.html")
    return reports / "index.html"


def _warn(page: Path) -> None:
    size = page.stat().st_size
    if size > LARGE:
        print(
            f"nnbook: {page.name} has {size / 1e6:.1f} MB: draw fewer or smaller pictures",
            file=sys.stderr,
        )


TITLE = "Nearest neighbors, one weighted average"
ROWS = (
    8  # figures on a card: all those with a published one beside them, and others up to this many
)


def front(chapters: list[Chapter], reports: Path) -> str:
    """The front page of the chapters, and of the sweeps and comparisons in `reports`."""
    failed = sum(bool(chapter.error) for chapter in chapters)
    told = f"{counted(len(chapters), 'chapter')} ran, "
    told += f'<span class="failed">{failed} failed</span>' if failed else "none failed"
    beside = _listed("Other runs", reports, reports.glob("runs/*/*.html"))
    beside += _listed("Sweeps", reports, reports.glob("sweeps/*/index.html"))
    beside += _listed("Comparisons", reports, reports.glob("compare/*.html"))
    filled = {"title": TITLE, "told": told, "cards": "".join(map(card, chapters)), "beside": beside}
    return head(TITLE) + file("front.html").format(**filled, origins=origins(chapters))


def card(chapter: Chapter) -> str:
    """A chapter on the front page: its picture, what it asks, its figures, and how its run went."""
    title, link = rendered(chapter.title), f'<a href="{address(chapter)}">'
    picture = chapter.picture()
    image = picture.html(wide=False) if picture else ""
    plate = (
        f'<div class="plate">{link}{image}</a></div>'
        if picture
        else '<div class="plate blank small">no picture</div>'
    )
    error = f'<p class="failed">{escape(chapter.error)}</p>' if chapter.error else ""
    return f"""<article>{plate}<div><p class="small">Chapter {chapter.number}</p>
<h2>{link}{title}</a></h2><p>{rendered(chapter.lede)}</p>{error}{table(chapter.figures, ROWS)}
<p class="small">{chapter.status()} · {link}read the chapter</a></p></div></article>
"""


def _listed(title: str, reports: Path, pages: Iterable[Path]) -> str:
    """Links to pages with their dates, the newest first; "" where there are none."""
    items = ""
    for page in sorted(pages, key=lambda page: (-page.stat().st_mtime, page)):
        date = datetime.fromtimestamp(page.stat().st_mtime).strftime("%Y-%m-%d %H:%M")
        link = quote(page.relative_to(reports).as_posix())
        name, told = _name(page)
        items += (
            f'<li><a href="{link}">{escape(name)}</a> <span class="small">{date}{told}</span></li>'
        )
    return f'<section class="beside"><h2>{title}</h2><ul>{items}</ul></section>' if items else ""


def _name(page: Path) -> tuple[str, str]:
    """What a page is called, a sweep by its folder and a run with its own name first; and in HTML how it went."""
    if page.name == "index.html":
        return page.parent.name, _ended(page.parent / "results.csv")
    with open(page, encoding="utf-8", errors="replace") as file:
        text = file.read().partition("<main")[0]
    found = re.search(r"<title>(.*?)</title>", text, re.DOTALL)
    title = unescape(found[1]) if found else page.stem
    if page.parent.parent.name != "runs":
        return title, ""
    return f"{page.parent.name} · {title}", ' · <span class="failed">failed</span>' * (
        'href="#error"' in text
    )


def _ended(table: Path) -> str:
    """How many points a sweep's table has, and how many of them failed."""
    if not table.exists():
        return ""
    with open(table, newline="", encoding="utf-8") as file:
        ended = [row.get("status") for row in csv.DictReader(file)]
    failed = ended.count("failed")
    told = f" · {counted(len(ended), 'point')}"
    return told + f', <span class="failed">{failed} failed</span>' * bool(failed)


def origins(chapters: list[Chapter]) -> str:
    """What ran the chapters: a list for each machine and commit, since they may come from several."""

    def facts(chapter: Chapter) -> str:
        return json.dumps(chapter.facts())

    text = ""
    for told, group in groupby(sorted(chapters, key=facts), facts):
        ran = list(group)
        dates = sorted(chapter.date() for chapter in ran)
        rows = {"date": " to ".join(dict.fromkeys([dates[0], dates[-1]]))} | json.loads(told)
        numbers = ", ".join(str(chapter.number) for chapter in ran)
        text += f"<h3>What ran chapter{'s' * (len(ran) > 1)} {numbers}</h3>{definitions(rows)}"
    return text
