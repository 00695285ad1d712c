"""The front page: what the book is, a card for each chapter, what else lies beside them, and what ran them."""

import csv
import json
import re
from collections.abc import Iterable
from datetime import datetime
from html import escape, unescape
from itertools import groupby
from pathlib import Path
from urllib.parse import quote

from nnbook.chapter import Chapter
from nnbook.equations import rendered
from nnbook.markup import definitions, file, head, table
from nnbook.page import address
from nnbook.results import counted

TITLE = "Nearest neighbors, one weighted average"
ROWS = 8  # figures on a card: all those with a published one beside them, and others up to this many


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
        f'<div class="plate">{link}{image}</a></div>' if picture else '<div class="plate blank small">no picture</div>'
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
        items += f'<li><a href="{link}">{escape(name)}</a> <span class="small">{date}{told}</span></li>'
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
    return f"{page.parent.name} · {title}", ' · <span class="failed">failed</span>' * ('href="#error"' in text)


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
