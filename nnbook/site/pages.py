"""A chapter's page: its prose, its pictures and tables, its code folded away, and its neighbors."""

import logging
from copy import deepcopy
from pathlib import Path

from jinja2 import pass_context
from markupsafe import Markup
from nbconvert import HTMLExporter
from traitlets.config import Config

from nnbook.notebooks import Chapter, cells_with_headings, is_hidden
from nnbook.results import recorded
from nnbook.site.images import picture_of
from nnbook.site.prose import ProseRenderer, sanitize
from nnbook.site.rendering import FILTERS, environment, write_html

OURS = {"clean_html": sanitize, "picture_of": picture_of, "recorded": recorded} | FILTERS


class ChapterExporter(HTMLExporter):
    """nbconvert's exporter with cells, prose and cleaning of our own."""

    def __init__(self, notebooks: Path):
        quiet = logging.getLogger("nnbook.pages")
        quiet.setLevel(logging.ERROR)
        super().__init__(
            Config(CoalesceStreamsPreprocessor={"enabled": True}),
            extra_loaders=[environment().loader],
            template_file="cells.html.j2",
            log=quiet,
            sanitize_html=True,
            exclude_input_prompt=True,
            exclude_output_prompt=True,
        )
        self.prose = ProseRenderer(str(notebooks))

    def default_filters(self):
        yield from super().default_filters()
        yield from OURS.items()

    @pass_context
    def markdown2html(self, context, source: str) -> str:
        self.prose.attachments = context.get("cell", {}).get("attachments", {})
        return self.prose.html(source)


def write_page(
    chapter: Chapter,
    notebooks: Path,
    before: Chapter | None = None,
    after: Chapter | None = None,
    home: tuple[str, str] = ("index.html", "Contents"),
) -> Path:
    """Render one chapter beside its notebook; return the page's path.

    before, after: its neighbors. home: address and title of the page that it belongs to.
    """
    exporter = ChapterExporter(notebooks)
    text, _ = exporter.from_notebook_node(_visible(chapter))
    values = {"chapter": chapter, "before": before, "after": after, "home": home}
    values |= {"text": Markup(text), "sections": exporter.prose.sections}
    return write_html(chapter.page, "chapter.html.j2", **values)


def _visible(chapter: Chapter):
    """Return a copy of the notebook without hidden cells; the others know their heading."""
    notebook = deepcopy(chapter.notebook)
    notebook.metadata.pop("widgets", None)
    cells = [pair for pair in cells_with_headings(notebook.cells) if not is_hidden(pair[0])]
    for cell, heading in cells:
        cell.metadata["heading"] = heading or chapter.title
    notebook.cells = [cell for cell, _ in cells]
    return notebook
