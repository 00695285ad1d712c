r"""Equations of markdown, $…$ in a line and $$…$$ on their own, as MathML.

They are held aside while the rest becomes HTML, for no rule of markdown may touch them. As in pandoc, an opening $ has
no space after it, and a closing one none before it and no digit after: "$5 and $6" are prices. \$ is a dollar.
"""

import re
from html import escape
from xml.etree import ElementTree

TOKEN = re.compile(
    r"""(?P<code>^[ ]{0,3}(?P<fence>`{3,}|~{3,}).*?(?:^[ ]{0,3}(?P=fence)[`~]*[ ]*$|\Z)
        | (?<!`)(?P<ticks>`+)(?!`) (?:(?!\n\s*\n).)+? (?<!`)(?P=ticks)(?!`))
    | \\(?P<escaped>.)
    | \$\$ (?P<block>(?:[^$\\]|\\.)+?) \$\$
    | (?<!\$)\$(?!\$) (?P<line>(?!\s)(?:[^$\\\n]|\\.|\n(?!\s*\n))+?) (?<!\s)\$(?![\d$])
    | (?P<dollar>\$)""",
    re.VERBOSE | re.MULTILINE | re.DOTALL,
)
OPEN, CLOSE = (
    "\ue000",
    "\ue001",
)  # private characters of Unicode, around the number of what is held aside
PLACE = re.compile(f"{OPEN}(\\d+){CLOSE}")
NAMESPACE = "{http://www.w3.org/1998/Math/MathML}"
ELEMENTS = """math mrow mi mn mo mtext mspace mfrac msup msub msubsup munder mover munderover msqrt mroot mtable mtr mtd
mstyle mpadded mphantom menclose mmultiscripts mprescripts""".split()
ACTIVE = {"href", "style", "class", "id"}  # attributes that LaTeX has no business with here


class Equations:
    """Equations and dollars that are held aside from a page's markdown until its HTML is there."""

    def __init__(self):
        self.held: list[tuple[str, str]] = []  # as HTML, and as it is written

    def hold(self, markdown: str) -> str:
        """The markdown with a mark in the place of each."""
        return TOKEN.sub(self._mark, markdown)

    def _mark(self, found: re.Match) -> str:
        if found["code"] or found["escaped"] not in (None, "$"):
            return found[0]
        latex = found["block"] or found["line"]
        html = mathml(latex, block=bool(found["block"])) if latex else "$"
        self.held.append((html, found[0] if latex else "$"))
        return f"{OPEN}{len(self.held) - 1}{CLOSE}"

    def put(self, soup) -> None:
        """Put them back into the parsed page: as MathML into its text, as they are written into code and attributes."""
        from bs4 import BeautifulSoup

        for text in soup.find_all(string=PLACE):
            form = 1 if text.find_parent(["code", "pre"]) else 0
            html = PLACE.sub(
                lambda place, form=form: self._told(place, form), escape(text, quote=False)
            )
            text.replace_with(BeautifulSoup(html, "html.parser"))
        for tag in soup.find_all(True):
            for name, value in tag.attrs.items():
                if isinstance(value, str) and OPEN in value:
                    tag[name] = PLACE.sub(lambda place: self._told(place, 1), value)

    def _told(self, place: re.Match, which: int) -> str:
        number = int(place[1])
        return self.held[number][which] if number < len(self.held) else place[0]


def rendered(text: str) -> str:
    """A line of plain text as HTML, with its equations."""
    equations = Equations()
    html = escape(equations.hold(text))
    return PLACE.sub(lambda place: equations._told(place, 0), html)


def mathml(latex: str, block: bool = False) -> str:
    """LaTeX as MathML, or as code where it can't be read."""
    from latex2mathml.converter import convert

    try:
        root = ElementTree.fromstring(convert(latex, display="block" if block else "inline"))
        _purify(latex, root)
    except Exception:  # the converter knows no bound to what it raises
        return f"<code>{escape(latex.strip())}</code>"
    html = ElementTree.tostring(root, "unicode")
    return f'<span class="formula">{html}</span>' if block else html


def _purify(latex: str, root: ElementTree.Element) -> None:
    """Make it plain MathML; raises ValueError where the converter only seems to have read it."""
    braces = re.sub(r"\\.", "", latex, flags=re.DOTALL)
    if braces.count("{") != braces.count("}"):
        raise ValueError(f"latex={latex!r} has a brace without its pair: close it")
    for element in root.iter():
        element.tag = element.tag.removeprefix(NAMESPACE)  # which HTML knows by itself
        if element.tag not in ELEMENTS or "\\" in (element.text or ""):
            raise ValueError(
                f"latex={latex!r} has a command that isn't known: write it with others"
            )
        for name in ACTIVE & element.attrib.keys():
            del element.attrib[name]
