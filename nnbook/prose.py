"""A chapter's prose as plain text: its title, its lede, and the heading that each cell stands under."""

import re
from collections.abc import Iterator

HIDDEN = {"hide-in-report", "papermill-error-cell-tag"}
FENCED = re.compile(r"^ {0,3}(`{3,}|~{3,}).*?(^ {0,3}\1|\Z)", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#+ +(.+?) *#*$", re.MULTILINE)


def hidden(cell) -> bool:
    """Whether a cell stays out of the report."""
    return bool(HIDDEN & set(cell.metadata.get("tags", [])))


def opening(notebook, number: int) -> tuple[str, str]:
    """The first heading, less the chapter's number, and the first paragraph after it, both as plain text."""
    cells = (cell for cell in notebook.cells if cell.cell_type == "markdown" and not hidden(cell))
    prose = "\n\n".join(cell.source for cell in cells)
    heading = re.search(r"^#+ *(.+?) *#*$", prose, re.MULTILINE)
    after = prose[heading.end() :] if heading else prose
    paragraphs = (p.strip() for p in re.split(r"\n\s*\n", after))
    lede = next((p for p in paragraphs if p and not re.match(r"[#|>!]|[-*] |```|<\w|\$\$", p)), "")
    title = plain(heading[1]) if heading else ""
    return re.sub(rf"^(chapter )?0*{number}\b[ .:·–—-]*", "", title, flags=re.IGNORECASE), plain(lede)


def plain(markdown: str) -> str:
    """A line of markdown without its marks; equations stay as they are written."""
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", markdown)
    text = re.sub(r"(\*{1,3}|`+)(\S.*?)\1", r"\2", text, flags=re.DOTALL)
    return " ".join(text.split())


def headed(cells: list) -> Iterator[tuple]:
    """Each cell with the last heading before its end, as plain text, "" where there is none."""
    heading = ""
    for cell in cells:
        if cell.cell_type == "markdown" and not hidden(cell):
            found = HEADING.findall(FENCED.sub("", cell.source))
            heading = plain(found[-1]) if found else heading
        yield cell, heading
