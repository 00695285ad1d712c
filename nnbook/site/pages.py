"""A chapter's page: its prose, its pictures and tables, its code folded away, and the ways through it.

What a browser would fetch or run is taken out of a page's text, and each heading can be linked to.
"""

import logging
import re
from copy import deepcopy
from html import escape
from pathlib import Path
from urllib.parse import quote

from nnbook.notebooks import Chapter, headed, hidden
from nnbook.results import file, head, recorded, table
from nnbook.site.equations import Equations, rendered
from nnbook.site.images import picture_of
from nnlib._common.files import atomic_write

WIDGET = "application/vnd.jupyter.widget-view+json"
STILL = {
    "text/html",
    "image/svg+xml",
    "image/png",
    "image/jpeg",
}  # what stands in for a widget on a page
SLIDERS = '<p class="small sliders">Sliders: open the chapter in JupyterLab to move them.</p>'


def write_page(
    chapter: Chapter,
    notebooks: Path,
    before: Chapter | None = None,
    after: Chapter | None = None,
    home: tuple[str, str] = ("index.html", "Contents"),
) -> Path:
    """Render one chapter beside its notebook; returns the page's path.

    before, after: its neighbors. home: address and title of the page that it belongs to.
    """
    text, contents = body(chapter, notebooks)
    script = file("toggle.js")
    links = f'<a href="{escape(home[0])}">{escape(home[1])}</a>' + _links(before, after)
    target = chapter.path.with_suffix(".html")
    with atomic_write(target) as part:
        part.write_text(
            f"""{head(chapter.title, script)}<a class="skip" href="#main">Skip to the text</a><div class="page">
<nav class="ways" aria-label="Chapters">{links}</nav>{_told(chapter)}{contents}<main id="main">{text}</main>
<nav class="ways" aria-label="Chapters, again">{links}</nav></div><script>{script}</script></body></html>""",
            encoding="utf-8",
        )
    return target


def _links(before: Chapter | None, after: Chapter | None) -> str:
    links = (
        f'<a rel="prev" href="{address(before)}">← {rendered(before.title)}</a>' if before else ""
    )
    return links + (
        f'<a rel="next" href="{address(after)}">{rendered(after.title)} →</a>' if after else ""
    )


def _told(chapter: Chapter) -> str:
    changes = ", ".join(
        f"{name}={value}" for name, value in chapter.timing.get("parameters", {}).items()
    )
    changed = f"<br>with {escape(changes)}; the text is about the defaults" if changes else ""
    error = (
        f'{changed}<br><a class="failed" href="#error">{escape(chapter.error)}</a>'
        if chapter.error
        else changed
    )
    button = '<button id="toggle" type="button" hidden>open all code</button>'
    return f'<div class="told small"><p>Chapter {chapter.number} · {chapter.status()}{error}</p>{button}</div>'


def address(chapter: Chapter) -> str:
    """The link to a chapter's page from beside it."""
    return escape(chapter.path.with_suffix(".html").name)


def body(chapter: Chapter, notebooks: Path) -> tuple[str, str]:
    """The chapter's text as HTML that loads and runs nothing, and the contents to go before it."""
    from bs4 import BeautifulSoup

    equations = Equations()
    soup = BeautifulSoup(_exported(_prepared(chapter, equations), notebooks), "html.parser")
    clean(soup)
    equations.put(soup)
    _mark_error(soup)
    contents = _contents(anchor(soup))
    return str(soup), contents


def _mark_error(soup) -> None:
    """Give the traceback of the cell that ended the run, which is the last one, its anchor."""
    told = soup.select("[data-mime-type$=stderr]")
    if told:
        told[-1]["id"] = "error"


def _contents(sections: list[tuple[str, str]]) -> str:
    """A list of links to sections: folded at the top of a page, and at its side where there is room."""
    if len(sections) < 2:
        return ""
    items = "".join(f'<li><a href="#{link}">{text}</a></li>' for link, text in sections)
    return f"""<nav class="contents" aria-label="On this page"><details><summary>On this page</summary><ul>{items}</ul>
</details><div class="side"><p>On this page</p><ul>{items}</ul></div></nav>"""


def _exported(notebook, notebooks: Path) -> str:
    from jinja2 import DictLoader
    from nbconvert import HTMLExporter
    from traitlets.config import Config

    quiet = logging.getLogger("nnbook.page")
    quiet.setLevel(logging.ERROR)
    config = Config(CoalesceStreamsPreprocessor={"enabled": True})
    template = DictLoader({"page": file("page.html")})
    exporter = HTMLExporter(config, extra_loaders=[template], template_file="page", log=quiet)
    exporter.embed_images = exporter.exclude_input_prompt = exporter.exclude_output_prompt = True
    exporter.exclude_anchor_links = True
    return exporter.from_notebook_node(notebook, {"metadata": {"path": str(notebooks)}})[0]


def _prepared(chapter: Chapter, equations: Equations):
    """A copy of the notebook without what is hidden, with equations, pictures and figures as a page has them."""
    notebook = deepcopy(chapter.notebook)
    notebook.metadata.pop("widgets", None)
    kept = [
        (cell, heading or chapter.title)
        for cell, heading in headed(notebook.cells)
        if not hidden(cell)
    ]
    for cell, heading in kept:
        if cell.cell_type == "markdown":
            cell.source = equations.hold(cell.source)
        if "outputs" in cell:
            cell.outputs = [shown for output in cell.outputs for shown in _stills(output)]
        for output in cell.get("outputs", []):
            _embed(output, heading, equations)
    notebook.cells = [cell for cell, _ in kept]
    return notebook


def _stills(output) -> list:
    """The output; of a widget what stands in for it, with a line that says so, or nothing."""
    from nbformat.v4 import new_output

    if WIDGET not in output.get("data", {}):
        return [output]
    del output.data[WIDGET]
    return (
        [output, new_output("display_data", {"text/html": SLIDERS})]
        if STILL & output.data.keys()
        else []
    )


def _embed(output, heading: str, equations: Equations) -> None:
    """Put HTML of ours in the place of a picture or of recorded figures, and hold equations."""
    if picture := picture_of(output, heading):
        output.data = {"text/html": f'<div class="plate">{picture.html()}</div>'}
    elif figures := recorded(output):
        output.data["text/html"] = table(figures)
    elif "text/markdown" in output.get("data", {}):
        output.data["text/markdown"] = equations.hold(output.data["text/markdown"])


LOADS = "script, link, iframe, frame, object, embed, base, meta, image, use"
TAKEN = {"main", "toggle"}  # ids of ours


def clean(soup) -> None:
    """Take out what loads or runs, and leave a picture's text where it goes; put wide tables of prose into boxes."""
    for tag in soup.select(LOADS):
        tag.decompose()
    for tag in soup.select("[src], [srcset], [poster]"):
        if not tag.get("src", "").startswith("data:") or tag.has_attr("srcset"):
            tag.replace_with(tag.get("alt") or "")
    for style in soup.select("style"):
        style.string = re.sub(
            r"@import[^;]*;?|url\(\s*['\"]?(?!data:)[^)]*\)", "", style.string or ""
        )
    for tag in soup.find_all(True):
        for name in [name for name, value in tag.attrs.items() if _acts(name, value)]:
            del tag[name]
    for tag in soup.select(".jp-MarkdownCell table"):
        tag.wrap(soup.new_tag("div", attrs={"class": "scroll"}))


def _acts(name: str, value) -> bool:
    """Whether an attribute runs something or leads to what does."""
    scheme = re.sub(r"[\s\x00-\x1f]", "", str(value)[:40]).lower()
    return name.startswith("on") or (
        name in ("href", "xlink:href", "action") and scheme.startswith("javascript:")
    )


def anchor(soup) -> list[tuple[str, str]]:
    """Give each heading of the prose an id as Jupyter would, and a link; returns links and texts of the h2 ones."""
    sections, taken = [], TAKEN | {tag["id"] for tag in soup.select("[id]")}
    for heading in soup.select(", ".join(f".jp-MarkdownCell h{level}" for level in (1, 2, 3, 4))):
        text = heading.get_text().strip()
        name = _free(re.sub(r"\s+", "-", text) or "section", taken)
        taken.add(name)
        heading["id"] = name
        if heading.name == "h2":
            sections.append((quote(name), "".join(map(str, _unlinked(heading).contents))))
        link = soup.new_tag("a", attrs={"class": "anchor", "href": f"#{quote(name)}"})
        link["aria-label"] = f"Link to “{escape(text)}”"
        link.string = "#"
        heading.append(link)
    return sections


def _free(name: str, taken: set[str]) -> str:
    """The name, or with the first number that nothing else has."""
    return next(
        new
        for new in (name, *(f"{name}-{number}" for number in range(2, 10_000)))
        if new not in taken
    )


def _unlinked(heading):
    """A copy of a heading with its links' texts in the place of links, and without ids."""
    from copy import copy

    bare = copy(heading)
    for tag in bare.find_all(True):
        tag.unwrap() if tag.name == "a" else tag.attrs.pop("id", None)
    return bare
