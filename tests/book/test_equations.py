"""Equations of markdown become MathML, and nothing else does."""

import pytest
from bs4 import BeautifulSoup

from nnbook.site.equations import mathml, with_equations
from nnbook.site.prose import ProseRenderer, sanitize


def page(markdown: str) -> str:
    """The markdown as it is put into a page."""
    return sanitize(ProseRenderer().html(markdown))


def words(markdown: str) -> str:
    """The text of a page, which holds no equation."""
    soup = BeautifulSoup(page(markdown), "html.parser")
    assert not soup.find("math")
    return soup.get_text().strip()


@pytest.mark.parametrize(
    "text", ["$x$", "a $x + y$, b", "($x$)", "$x\n+ y$", r"\\$x$", "$x$-axis", "$5$ and $6$"]
)
def test_a_line_holds_equations(text):
    assert "<math" in page(text) and "$" not in page(text)


@pytest.mark.parametrize(
    "text",
    [
        "$5 and $6",
        "from $5 to$6",
        "$ x$",
        "$x $",
        "$",
        "a$",
        "$20,000 or $x",
        "$a\n\nb$",
        "costs $5 and 6$7",
        "$$",
        "$$$",
    ],
)
def test_dollars_stay_dollars(text):
    assert words(text).split() == text.split()


def test_an_escaped_dollar_is_a_dollar():
    assert words(r"\$x\$ costs \$5") == "$x$ costs $5"
    assert page(r"$a \$ b$").count("<math") == 1


@pytest.mark.parametrize(
    "text, code",
    [
        ("`$x$`", "$x$"),
        ("``a ` $x$``", "a ` $x$"),
        ("```\n$x$\n```", "$x$"),
        ("```\n$a|b\nc$\n```", "$a|b\nc$"),
        ("~~~python\n$x$\n$$y$$\n~~~\n", "$x$\n$$y$$"),
        ("```\n$x$ to the end", "$x$ to the end"),
        ("`$x$ a\nb`", "$x$ a b"),
        ("Use `$$` and\n\n`$$` twice", "Use $$ and\n$$ twice"),
    ],
)
def test_code_holds_none(text, code):
    assert words(text) == code


def test_a_backtick_alone_hides_nothing():
    assert page("a ` tick\n\n$x$ and a ` tick").count("<math") == 1


def test_html_code_shows_it_as_it_is_written():
    found = page("<pre>$x$</pre>\n\nA <b title='$y$'>$z$</b>")
    assert found.startswith("<pre>$x$</pre>") and '<b title="$y$"><math' in found


def test_equations_on_their_own_are_blocks():
    found = page("before\n\n$$\n\\frac{a}{b} < c\n$$\n\nafter $$x$$")
    assert found.count('<math display="block">') == 2 and "<mfrac>" in found and "&lt;" in found


def test_markdown_does_not_touch_them():
    found = BeautifulSoup(page("a *b* $x_1 * y_2 * z$ | $|x|$, *c $u*v$ d*"), "html.parser")
    assert [tag.get_text() for tag in found("em")] == ["b", "c u*v d"]
    assert [tag.get_text() for tag in found("math")] == ["x1*y2*z", "|x|", "u*v"]
    cells = BeautifulSoup(page("| a | b |\n|---|---|\n| $|x|$ | `$x$` |"), "html.parser")("td")
    assert [cell.get_text() for cell in cells] == ["|x|", "$x$"]


def test_environments_of_latex_are_equations():
    assert page(r"\begin{align}a&=b\\c&=d\end{align}").count("<mtr>") == 2


@pytest.mark.parametrize(
    "latex",
    [
        r"\foo{x}",
        r"\frac{a",
        "x_",
        "}",
        r"\left( x",
        "a & b",
        r"\text{<script>run()</script>}",
        r"\text{<b>x</b>}",
        " ",
    ],
)
def test_what_cannot_be_read_stays_as_code(latex):
    found = mathml(latex)
    assert found.startswith("<code>") and "<script" not in found and "<b>" not in found


def test_latex_brings_no_links_and_no_styles():
    for latex in (r"\href{javascript:run()}{x}", r"\style{background:red}{x}", r"\class{x}{y}"):
        assert not any(
            word in mathml(latex).split("</code>")[0] for word in ("href=", "style=", "class=")
        )


def test_a_plain_line_is_escaped_around_them():
    found = with_equations("a < b & $x < y$ for $5")
    assert found.startswith("a &lt; b &amp; <math") and found.endswith(" for $5")
