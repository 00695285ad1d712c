r"""Equations, $…$ in a line and $$…$$ on their own, as MathML.

As in pandoc, an opening $ has no space after it, and a closing one none before it and no digit
after: "$5 and $6" are prices. \$ is a dollar.
"""

import re
from xml.etree import ElementTree

from markupsafe import Markup, escape

INLINE = (  # the groups' names are those of nbconvert's markdown parser
    r"(?<!\$)\$(?!\$)(?P<math_inline_tex>(?!\s)(?:[^$\\\n]|\\.|\n(?!\s*\n))+?)(?<!\s)\$(?![\d$])"
)
BLOCK = r"\$\$(?P<math_block_tex>(?:[^$\\]|\\[\s\S])+?)\$\$"
TOKEN = re.compile(rf"\\.|{BLOCK}|{INLINE}")
NAMESPACE = "{http://www.w3.org/1998/Math/MathML}"
ELEMENTS = """math mrow mi mn mo mtext mspace mfrac msup msub msubsup munder mover munderover msqrt
mroot mtable mtr mtd mstyle mpadded mphantom menclose mmultiscripts mprescripts""".split()
ACTIVE = {"href", "style", "class", "id"}  # attributes that LaTeX has no business with here


def with_equations(text: str) -> Markup:
    """Return a line of plain text as HTML, with its equations."""
    html = Markup()
    end = 0
    for found in TOKEN.finditer(text):
        latex = found["math_block_tex"] or found["math_inline_tex"]
        token = mathml(latex) if latex else escape(found[0].replace(r"\$", "$"))
        html += escape(text[end : found.start()]) + token
        end = found.end()
    return html + escape(text[end:])


def mathml(latex: str, block: bool = False) -> Markup:
    """Return LaTeX as MathML, or as code where it can't be read."""
    from latex2mathml.converter import convert

    try:
        root = ElementTree.fromstring(convert(latex, display="block" if block else "inline"))
        _purify(latex, root)
    except Exception:  # the converter knows no bound to what it raises
        return Markup("<code>{}</code>").format(latex.strip())
    html = Markup(ElementTree.tostring(root, "unicode"))
    return Markup('<span class="formula">{}</span>').format(html) if block else html


def _purify(latex: str, root: ElementTree.Element) -> None:
    """Make it plain MathML; raises ValueError where the converter only seems to have read it."""
    braces = re.sub(r"\\.", "", latex, flags=re.DOTALL)
    for element in root.iter():
        element.tag = element.tag.removeprefix(NAMESPACE)  # which HTML knows by itself
        if element.tag not in ELEMENTS or "\\" in (element.text or ""):
            raise ValueError(f"latex={latex!r} has an unknown command")
        for name in ACTIVE & element.attrib.keys():
            del element.attrib[name]
    if braces.count("{") != braces.count("}"):
        raise ValueError(f"latex={latex!r} has a brace without its pair")
