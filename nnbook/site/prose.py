"""Markdown and HTML of notebooks as pages have them: with MathML, with links, without what runs."""

import re
from itertools import count
from urllib.parse import quote

import bleach
from bleach.css_sanitizer import ALLOWED_CSS_PROPERTIES, CSSSanitizer
from bs4 import BeautifulSoup
from markupsafe import Markup
from nbconvert.filters import markdown_mistune as nbconvert

from nnbook.site.equations import BLOCK, ELEMENTS, INLINE, mathml

TAGS = {*bleach.ALLOWED_TAGS, *ELEMENTS} | set(
    """p div span pre br hr h1 h2 h3 h4 h5 h6 img figure figcaption details summary table caption
    thead tbody tfoot tr th td dl dt dd del ins s sub sup u small mark kbd samp var""".split()
)
ATTRIBUTES = set(
    """class id title alt width height colspan rowspan scope align start lang dir open border
    aria-label""".split()
)
STYLES = {*ALLOWED_CSS_PROPERTIES, "background", "opacity", "outline", "overflow-x", "padding"}
CSS = CSSSanitizer(allowed_css_properties=STYLES | {"white-space"})
SILENT = ["script", "style", "iframe", "object", "embed", "svg", "template", "noscript", "title"]
LOADS = re.compile(r"url\(|[@\\<]", re.IGNORECASE)  # in a style sheet
CODE = r"""^\ {0,3}(?P<fence>`{3,}|~{3,})[\s\S]*?(?:^\ {0,3}(?P=fence)[`~]*\ *$|\Z)
    | (?<!`)(?P<ticks>`+)(?!`) (?:(?!\n\s*\n)[\s\S])+? (?<!`)(?P=ticks)(?!`)"""
TOKENS = re.compile(rf"{CODE} | \\. | {BLOCK} | {INLINE}", re.VERBOSE | re.MULTILINE)


def sanitize(html: str) -> str:
    """Return HTML of what bleach's lists allow, and of style sheets without addresses."""
    soup = BeautifulSoup(html, "html.parser")
    sheets = [str(tag) for tag in soup("style") if not LOADS.search(tag.get_text())]
    for tag in soup(SILENT):
        tag.decompose()
    schemes = {"http", "https", "mailto", "data"}
    return "".join(sheets) + bleach.clean(
        str(soup), TAGS, _is_allowed, protocols=schemes, strip=True, css_sanitizer=CSS
    )


def _is_allowed(tag: str, name: str, value: str) -> bool:
    if name == "src":
        return value.startswith("data:image/")
    if name == "href":
        return tag == "a" and not re.match(r"\W*data", value, re.IGNORECASE)
    if name == "style":
        return not LOADS.search(value)
    return name in ATTRIBUTES or (tag in ELEMENTS and not re.search("^on|href", name))


class _Blocks(nbconvert.MathBlockParser):
    ENVIRONMENT = r"\\begin\{(?P<math_env_name>[a-z]*\*?)\}[\s\S]*?\\end\{(?P=math_env_name)\}"
    SPECIFICATION = nbconvert.MathBlockParser.SPECIFICATION | {
        "multiline_math": rf"^ {{0,3}}(?:{BLOCK}|{ENVIRONMENT})"
    }


class _Inlines(nbconvert.MathInlineParser):
    SPECIFICATION = nbconvert.MathInlineParser.SPECIFICATION | {
        "block_math_tex": BLOCK,
        "inline_math_tex": INLINE,
    }

    def precedence_scan(self, m, state, end_pos, rules=None):
        rules = ["inline_math_tex", "codespan", "link", "prec_auto_link", "prec_inline_html"]
        return super().precedence_scan(m, state, end_pos, rules)


class ProseRenderer(nbconvert.IPythonRenderer):
    """nbconvert's renderer of markdown, with MathML, and with an id and a link for each heading.

    `sections` holds the links and the HTML of the headings of level 2.
    """

    def __init__(self, path: str = ""):
        super().__init__(escape=False, embed_images=True, exclude_anchor_links=True, path=path)
        self.sections: list[tuple[str, Markup]] = []
        self.taken = {"main", "toggle", "error"}

    def html(self, markdown: str) -> str:
        """Return markdown as HTML, which isn't sanitized yet."""
        parser = nbconvert.MarkdownWithMath(self, _Blocks(), _Inlines(hard_wrap=False))
        return parser.render(TOKENS.sub(_on_one_line, markdown))

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
        html = Markup(text) + link.format(quote(name), words)
        return Markup('<h{0} id="{1}">{2}</h{0}>\n').format(level, name, html)

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
    """Return an equation without what markdown takes for a list or a bar between cells."""
    latex = found["math_inline_tex"]
    if not latex:
        return found[0]
    return "$" + re.sub(r"(?<!\\)\|", r"\\vert ", latex.replace("\n", " ")).strip() + "$"
