"""The README's figures are recorded ones, and the page of recorded figures is made of its rows."""

import re

from figures.table import figure

from nnbook.benchmarks import tables
from nnbook.notebooks import ROOT

NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")


@figure("reports/recorded/README.md is what its command writes", "the same")
def test_page_is_what_its_command_writes():
    same = (tables.RECORDED / "README.md").read_text(encoding="utf-8") == tables.page()
    return "the same" if same else "not so: python -m nnbook.benchmarks.tables", same


@figure("the figures in the README's table of chapters are on that page", "all of them")
def test_readme_figures_are_recorded():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    cells = [line.split("|")[3] for line in lines if line.startswith("| [")]
    stated = [number for cell in cells for number in NUMBER.findall(cell)]
    known = set(NUMBER.findall(tables.page()))
    foreign = [number for number in stated if number not in known]
    words = f"{len(stated) - len(foreign)} of {len(stated)}"
    if foreign:
        words += f", not {', '.join(foreign)}"
    return words, bool(stated) and not foreign
