"""Markdown and HTML of notebooks as a page has them: equations as MathML, linked headings, nothing that loads or runs."""

import re
from itertools import count
from urllib.parse import quote

import bleach
from bleach.css_sanitizer import ALLOWED_CSS_PROPERTIES, CSSSanitizer
from bs4 import BeautifulSoup
from markupsafe import Markup
from nbconvert.filters.markdown_mistune import (
    IPythonRenderer,
    MarkdownWithMath,
    MathBlockParser,
    MathInlineParser,
)

from nnbook.site.equations import BLOCK, ELEMENTS, INLINE, mathml

TAGS = {*bleach.ALLOWED_TAGS, *ELEMENTS} | set(
    """p div span pre br hr h1 h2 h3 h4 h5 h6 img figure figcaption details summary table caption thead tbody tfoot tr
th td dl dt dd del ins s sub sup u small mark kbd samp var""".split()
)
ATTRIBUTES = set(
    """class id title alt width height colspan rowspan scope align start lang dir open border aria-label display
stretchy fence separator form lspace rspace minsize maxsize movablelimits mathvariant mathsize accent accentunder
columnalign columnspacing columnlines rowlines rowspacing linethickness displaystyle scriptlevel notation depth""".split()
)
SILENT = ["script", "style", "iframe", "object", "embed", "svg", "template", "noscript", "title"]
LOADS = re.compile(r"url\(|[@\\<]")  # in a style sheet
STYLES = {*ALLOWED_CSS_PROPERTIES, "background", "opacity", "outline", "padding", "white-space"} - {
    "cursor"
}
CSS = CSSSanitizer(allowed_css_properties=[*STYLES, "overflow-x", "overflow-wrap"])


def sanitize(html: str) -> str:
    """Return HTML without what loads or runs: what bleach's lists allow, and style sheets without addresses."""
    soup = BeautifulSoup(html, "html.parser")
    sheets = [sheet for tag in soup("style") if not LOADS.search(sheet := tag.get_text())]
    for tag in soup(SILENT):
        tag.decompose()
    safe = bleach.clean(
        str(soup),
        tags=TAGS,
        attributes=_is_allowed,
        protocols={"http", "https", "mailto", "data"},
        strip=True,
        css_sanitizer=CSS,
    )
    return "".join(f"<style>{sheet}</style>" for sheet in sheets) + safe


def _is_allowed(tag: str, name: str, value: str) -> bool:
    if name == "src":
        return value.startswith("data:image/")
    if name == "href":
        return tag == "a" and not re.match(r"\W*data", value, re.IGNORECASE)
    if name == "style":
        return not LOADS.search(value.lower())
    return name in ATTRIBUTES


CODE = r"""^\ {0,3}(?P<fence>`{3,}|~{3,})[\s\S]*?(?:^\ {0,3}(?P=fence)[`~]*\ *$|\Z)
    | (?<!`)(?P<ticks>`+)(?!`) (?:(?!\n\s*\n)[\s\S])+? (?<!`)(?P=ticks)(?!`)"""
TOKENS = re.compile(rf"{CODE} | \\. | {BLOCK} | {INLINE}", re.VERBOSE | re.MULTILINE)


class _Blocks(MathBlockParser):
    SPECIFICATION = MathBlockParser.SPECIFICATION | {
        "multiline_math": rf"^ {{0,3}}{BLOCK}|^ {{0,3}}"
        + r"\\begin\{(?P<math_env_name>[a-z]*\*?)\}"
        r"[\s\S]*?\\end\{(?P=math_env_name)\}"
    }


class _Inlines(MathInlineParser):
    SPECIFICATION = MathInlineParser.SPECIFICATION | {
        "block_math_tex": BLOCK,
        "inline_math_tex": INLINE,
    }

    def precedence_scan(self, m, state, end_pos, rules=None):
        rules = ["inline_math_tex", "codespan", "link", "prec_auto_link", "prec_inline_html"]
        return super().precedence_scan(m, state, end_pos, rules)


class ProseRenderer(IPythonRenderer):
    """A page's markdown as HTML, which gives each heading an id and a link.

    `sections` holds the links and the HTML of the headings of level 2.
    """

    def __init__(self, path: str = ""):
        super().__init__(escape=False, embed_images=True, exclude_anchor_links=True, path=path)
        self.sections: list[tuple[str, Markup]] = []
        self.taken = {"main", "toggle", "error"}

    def html(self, markdown: str) -> str:
        """Return markdown as HTML, which isn't sanitized yet."""
        markdown = TOKENS.sub(_on_one_line, markdown)
        parser = MarkdownWithMath(self, _Blocks(), _Inlines(hard_wrap=False))
        return parser.render(markdown)

    def heading(self, text: str, level: int, **attrs) -> str:
        words = Markup(text).striptags()
        name = words.replace(" ", "-") or "section"
        if name in self.taken:
            name = next(new for n in count(2) if (new := f"{name}-{n}") not in self.taken)
        self.taken.add(name)
        if level == 2:
            unlinked = re.sub(r"</?a\b[^>]*>|\sid=\S+", "", text)
            self.sections.append((quote(name), Markup(sanitize(unlinked))))
        link = Markup('<a class="anchor" href="#{}" aria-label="Link to “{}”">#</a>')
        return Markup('<h{0} id="{1}">{2}{3}</h{0}>\n').format(
            level, name, Markup(text), link.format(quote(name), words)
        )

    def _html_embed_images(self, html: str) -> str:
        return super()._html_embed_images(html) if "<img" in html else html  # it closes open tags

    def table(self, text: str) -> str:
        return f'<div class="scroll"><table>\n{text}</table></div>\n'

    def inline_math(self, body: str) -> str:
        return str(mathml(body))

    def block_math(self, body: str) -> str:
        return str(mathml(body, block=True))

    def latex_environment(self, name: str, body: str) -> str:
        return str(mathml(rf"\begin{{{name}}}{body}\end{{{name}}}", block=True))


def _on_one_line(found: re.Match) -> str:
    """Return an equation without what markdown takes for a list or for the bar between two cells."""
    latex = found["math_inline_tex"]
    if not latex:
        return found[0]
    return "$" + re.sub(r"(?<!\\)\|", r"\\vert ", latex.replace("\n", " ")).strip() + "$"
