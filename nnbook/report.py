"""What a reader gets: a page for each chapter that ran, and a front page that sets figures beside the published ones.

A page is whole by itself: pictures are embedded, and its content policy holds a browser to loading nothing, from
anywhere. So widget views are left out, and prose does without LaTeX.
"""

import base64
import json
import logging
import re
from copy import deepcopy
from html import escape
from itertools import groupby
from pathlib import Path
from textwrap import shorten

from nnbook.page import head, template
from nnbook.results import BookError, Figures, figures_of, recorded, shown
from nnlib.files import written_whole

TITLE = "Nearest neighbors, one weighted average"
ROWS = 8  # figures on a card: all those with a published one beside them, and others up to this many
HIDDEN = {"hide-in-report", "papermill-error-cell-tag"}
WORDS = {  # of metrics' names, where people write them otherwise; units stand by the values
    "seconds": "time", "db": "", "mb": "", "psnr": "PSNR", "ms": "MS", "ssim": "SSIM", "jpeg": "JPEG", "knn": "k-NN",
    "top1": "top-1", "top5": "top-5",
}  # fmt: skip
FACTS = ("versions", "processor", "GPU", "system", "commit")
WIDGET = "application/vnd.jupyter.widget-view+json"


class Chapter:
    """A chapter that ran, as its notebook in the reports folder tells it; BookError where that isn't a notebook."""

    def __init__(self, path: Path):
        import nbformat

        try:
            self.notebook = nbformat.read(path, as_version=4)
        except Exception as error:
            raise BookError(f"{str(path)!r} isn't a notebook ({error}): remove it, or run it again") from error
        self.path, self.number = path, int(path.stem[:2])
        self.title, self.lede = opening(self.notebook, self.number)
        self.title = self.title or path.stem[3:].replace("_", " ")
        self.figures = figures_of(self.notebook)
        self.timing = self.notebook.metadata.get("papermill", {})
        self.run = self.notebook.metadata.get("nnbook", {})
        error = self.run.get("error") or "an error in a cell" * bool(self.timing.get("exception"))
        self.error = shorten(error, 300, placeholder=" …")

    def status(self) -> str:
        """Whether it passed, when, how long it took, and which run it was, as HTML."""
        outcome = '<span class="failed">✕ failed</span>' if self.error else "✓ passed"
        date = self.run.get("origin", {}).get("date", "")
        told = [f"{outcome} in {duration(self.timing.get('duration'))}", escape(date)]
        told += [f"run {escape(self.run['run'])}"] if self.run.get("run", "default") != "default" else []
        return " · ".join(part for part in told if part)

    def picture(self) -> str:
        """The first picture of the cell tagged "headline", else of the notebook, as a data: address; "" if none."""
        cells = sorted(self.notebook.cells, key=lambda cell: "headline" not in cell.metadata.get("tags", []))
        for data in (o.get("data", {}) for cell in cells for o in cell.get("outputs", [])):
            for kind in data.keys() & {"image/png", "image/jpeg"}:
                return f"data:{kind};base64,{''.join(data[kind].split())}"
            if "image/svg+xml" in data:
                return "data:image/svg+xml;base64," + base64.b64encode(data["image/svg+xml"].encode()).decode()
        return ""


def opening(notebook, number: int) -> tuple[str, str]:
    """The first heading, less the chapter's number, and the first paragraph after it, both as plain text."""
    cells = (c for c in notebook.cells if c.cell_type == "markdown" and not HIDDEN & set(c.metadata.get("tags", [])))
    prose = "\n\n".join(cell.source for cell in cells)
    heading = re.search(r"^#+ *(.+?) *#*$", prose, re.MULTILINE)
    after = prose[heading.end() :] if heading else prose
    paragraphs = (p.strip() for p in re.split(r"\n\s*\n", after))
    lede = next((p for p in paragraphs if p and not re.match(r"[#|>!]|[-*] |```|<\w", p)), "")
    title = _plain(heading[1]) if heading else ""
    return re.sub(rf"^(chapter )?0*{number}\b[ .:·–—-]*", "", title, flags=re.IGNORECASE), _plain(lede)


def _plain(markdown: str) -> str:
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", markdown)
    text = re.sub(r"(\*{1,3}|`+)(\S.*?)\1", r"\2", text, flags=re.DOTALL)
    return " ".join(text.split())


def duration(seconds: float | None) -> str:
    """Seconds as people say them: `12.3 s`, `2 min 13 s`, `1 h 4 min`."""
    if seconds is None:
        return "unknown time"
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def table(figures: Figures, rows: int | None = None) -> str:
    """An HTML table of measured figures beside the published ones, those that have both first."""
    names = list(dict.fromkeys(name.removeprefix("published_") for name in figures))
    names.sort(key=lambda name: f"published_{name}" not in figures)
    pairs = sum(f"published_{name}" in figures for name in names)
    kept = names[: max(rows, pairs)] if rows else names
    columns = ["", "published_"] if pairs else [""]
    heads = "".join(f"<th>{head}</th>" for head in ("", "measured", "published")[: 1 + len(columns)])
    body = "".join(f"<tr><td>{escape(_label(name))}</td>{_values(name, figures, columns)}</tr>" for name in kept)
    more = f'<p class="small">and {len(names) - len(kept)} more in the chapter</p>' if len(kept) < len(names) else ""
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>{more}" if names else ""


def _label(metric: str) -> str:
    return " ".join(filter(None, (WORDS.get(word, word) for word in metric.split("_"))))


def _values(name: str, figures: Figures, columns: list[str]) -> str:
    cells = ""
    for prefix in columns:
        figure = figures.get(prefix + name) or {"value": None}
        text = shown(name, **figure) if figure["value"] is not None or not prefix else "—"
        cells += f"<td{' class=none' if figure['value'] is None else ''}>{escape(text)}</td>"
    return cells


def write(reports: Path, notebooks: Path) -> Path:
    """Render every chapter in `reports` and the front page; returns the front page's path.

    Raises BookError where no chapter ran yet, OSError where `reports` can't be written.
    """
    chapters = [Chapter(path) for path in sorted(reports.glob("[0-9][0-9]_*.ipynb"))]
    if not chapters:
        raise BookError(f"reports={str(reports)!r} holds no chapter that ran: start with `nnbook run`")
    for before, chapter, after in zip([None, *chapters], chapters, [*chapters[1:], None], strict=False):
        write_page(chapter, notebooks, before, after)
    with written_whole(reports / "index.html") as part:
        part.write_text(front(chapters), encoding="utf-8")
    return reports / "index.html"


def write_page(chapter: Chapter, notebooks: Path, before: Chapter | None = None, after: Chapter | None = None) -> Path:
    """Render one chapter beside its notebook, with links to the front page and its neighbors; returns the path."""
    links = '<a href="index.html">Contents</a>'
    links += f'<a href="{_address(before)}">← {escape(before.title)}</a>' if before else ""
    links += f'<a class="next" href="{_address(after)}">{escape(after.title)} →</a>' if after else ""
    nav = f"<nav>{links}</nav>"
    error = f'<br><span class="failed">{escape(chapter.error)}</span>' if chapter.error else ""
    told = f'<p class="small">Chapter {chapter.number} · {chapter.status()}{error}</p>'
    opening = f'{head(chapter.title)}<div class="page">{nav}{told}'
    page = _exported(chapter, notebooks, opening, f"{nav}</div></body></html>")
    target = chapter.path.with_suffix(".html")
    with written_whole(target) as part:
        part.write_text(_offline(page), encoding="utf-8")
    return target


def _address(chapter: Chapter) -> str:
    return escape(chapter.path.with_suffix(".html").name)


def _exported(chapter: Chapter, notebooks: Path, opening: str, closing: str) -> str:
    from jinja2 import DictLoader
    from nbconvert import HTMLExporter
    from traitlets.config import Config

    quiet = logging.getLogger("nnbook.report")
    quiet.setLevel(logging.ERROR)  # it warns of missing alternative texts, which are put in afterwards
    config = Config(CoalesceStreamsPreprocessor={"enabled": True})
    loaders = [DictLoader({"page": template("page.html")})]
    exporter = HTMLExporter(config, extra_loaders=loaders, template_file="page", log=quiet)
    exporter.embed_images = exporter.exclude_input_prompt = exporter.exclude_output_prompt = True
    resources = {"metadata": {"path": str(notebooks)}, "opening": opening, "closing": closing}
    return exporter.from_notebook_node(_prepared(chapter.notebook), resources)[0]


def _prepared(notebook):
    """A copy without hidden cells and widget views, and with recorded figures as a table."""
    notebook = deepcopy(notebook)
    notebook.metadata.pop("widgets", None)
    notebook.cells = [cell for cell in notebook.cells if not HIDDEN & set(cell.metadata.get("tags", []))]
    for cell in (cell for cell in notebook.cells if "outputs" in cell):
        cell.outputs = [output for output in cell.outputs if WIDGET not in output.get("data", {})]
        for output in (output for output in cell.outputs if recorded(output)):
            output.data["text/html"] = table(recorded(output))
    return notebook


def _offline(page: str) -> str:
    """The page without anything that a browser would fetch or run, and with a text for each picture."""
    from bs4 import BeautifulSoup

    soup = BeautifulSoup(page, "html.parser")
    for tag in soup.select("script, link, iframe, object, embed, base, image, use"):
        tag.decompose()
    for tag in soup.select("[src], [srcset], [poster]"):
        if not tag.get("src", "").startswith("data:") or tag.has_attr("srcset"):
            tag.replace_with(tag.get("alt") or "")
    for style in soup.select("style"):
        style.string = re.sub(r"@import[^;]*;?|url\(\s*['\"]?(?!data:)[^)]*\)", "", style.string or "")
    for picture in soup.select("img[alt^='No description']"):
        heading = picture.find_previous(["h1", "h2", "h3", "h4"])
        picture["alt"] = f"Figure: {heading.get_text().removesuffix('¶')}" if heading else "Figure"
    return str(soup)


def front(chapters: list[Chapter]) -> str:
    """The front page: what the book is, a card for each chapter, and what ran them."""
    failed = sum(bool(chapter.error) for chapter in chapters)
    told = f"{len(chapters)} chapter{'s' * (len(chapters) > 1)} ran, "
    told += f'<span class="failed">{failed} failed</span>' if failed else "none failed"
    cards = "".join(map(card, chapters))
    return head(TITLE) + template("front.html").format(title=TITLE, told=told, cards=cards, origins=origins(chapters))


def card(chapter: Chapter) -> str:
    """A chapter on the front page: its picture, what it asks, its figures, and how its run went."""
    title, link = escape(chapter.title), f'<a href="{_address(chapter)}">'
    picture = chapter.picture()
    image = f'<img src="{picture}" alt="Picture of chapter {chapter.number}: {title}">'
    plate = f'<div class="plate">{image}</div>' if picture else '<div class="plate blank small">no picture</div>'
    error = f'<p class="failed">{escape(chapter.error)}</p>' if chapter.error else ""
    return f"""<article>{plate}<div><p class="small">Chapter {chapter.number}</p>
<h2>{link}{title}</a></h2><p>{escape(chapter.lede)}</p>{error}{table(chapter.figures, ROWS)}
<p class="small">{chapter.status()} · {link}read the chapter</a></p></div></article>
"""


def origins(chapters: list[Chapter]) -> str:
    """What ran the chapters: a list for each machine and commit, since they may come from several."""

    def facts(chapter: Chapter) -> str:
        origin = chapter.run.get("origin", {})
        return json.dumps({name: origin.get(name, "unknown") for name in FACTS})

    text = ""
    for told, group in groupby(sorted(chapters, key=facts), facts):
        ran = list(group)
        dates = sorted(chapter.run.get("origin", {}).get("date", "") for chapter in ran)
        rows = {"date": " to ".join(dict.fromkeys([dates[0], dates[-1]]))} | json.loads(told)
        lines = "".join(f"<dt>{escape(name)}</dt><dd>{escape(fact)}</dd>" for name, fact in rows.items() if fact)
        numbers = ", ".join(str(chapter.number) for chapter in ran)
        text += f'<h3>What ran chapter{"s" * (len(ran) > 1)} {numbers}</h3><dl class="small">{lines}</dl>'
    return text
