"""What a reader gets: a page for each chapter that ran, and a front page that sets figures beside the published ones.

A page is whole by itself: pictures are embedded, and its content policy holds a browser to loading nothing, from
anywhere, and to running nothing but the one script of ours that opens and folds code.
"""

import sys
from pathlib import Path

from nnbook.chapter import Chapter
from nnbook.front import front
from nnbook.page import write_page
from nnbook.results import BookError
from nnbook.runs import DEFAULT
from nnlib.files import written_whole

LARGE = 3_000_000  # bytes of a page that is slow to send and to open


def write(reports: Path, notebooks: Path) -> Path:
    """Render every chapter in `reports` and the front page; returns the front page's path, warns of large pages.

    Raises BookError where nothing ran yet, OSError where `reports` can't be written.
    """
    chapters = _ran(reports)
    if not chapters and not any(reports.glob("sweeps/*/index.html")):
        raise BookError(f"reports={str(reports)!r} holds no chapter that ran: start with `nnbook run`")
    for before, chapter, after in zip([None, *chapters], chapters, [*chapters[1:], None], strict=False):
        _warn(write_page(chapter, notebooks, before, after))
    for path in reports.glob("runs/*/[0-9][0-9]_*.ipynb"):
        page = path.with_suffix(".html")
        if path.parent.name != DEFAULT and not (page.exists() and page.stat().st_mtime >= path.stat().st_mtime):
            write_run(path, notebooks)
    return write_front(reports)


def write_run(path: Path, notebooks: Path) -> Path:
    """Render the page of one run beside its notebook, or, of the default one, that of the book; returns its path."""
    if path.parent.name == DEFAULT:
        return write_page(Chapter(path.parents[2] / path.name), notebooks)
    return write_page(Chapter(path), notebooks, home=("../../index.html", "Contents"))


def _ran(reports: Path) -> list[Chapter]:
    return [Chapter(path) for path in sorted(reports.glob("[0-9][0-9]_*.ipynb"))]


def write_front(reports: Path) -> Path:
    """Write the front page alone, which links what is there; returns its path."""
    with written_whole(reports / "index.html") as part:
        part.write_text(front(_ran(reports), reports), encoding="utf-8")
    _warn(reports / "index.html")
    return reports / "index.html"


def _warn(page: Path) -> None:
    size = page.stat().st_size
    if size > LARGE:
        print(f"nnbook: {page.name} has {size / 1e6:.1f} MB: draw fewer or smaller pictures", file=sys.stderr)
