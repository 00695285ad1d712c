"""Chapters: where they lie, what parameters they take, and what is known of one that ran."""

import ast
import difflib
import math
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from textwrap import shorten
from typing import Any

from nnbook.results import BookError, figures_of
from nnbook.site.images import Picture, pictures_of

ROOT = Path(__file__).parents[1]
PATTERN = "[0-9][0-9]_*.ipynb"
DEFAULT = "default"  # the run of a chapter as it is, which the book shows
ORIGIN = ("versions", "processor", "GPU", "system", "commit")  # what a run's figures depend on
HIDDEN = {"hide-in-report", "papermill-error-cell-tag"}  # tags of cells that stay out of the report
FENCED = re.compile(r"^ {0,3}(`{3,}|~{3,}).*?(^ {0,3}\1|\Z)", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#+ *(.+?) *#*$", re.MULTILINE)
CHOICES = re.compile(r"\w+(, \w+)* or \w+")
Parameters = dict[str, dict[str, str]]  # name -> {"default" (as it is written), "help"}


class UsageError(BookError):
    """A command line that asks for what isn't there."""

    code = 2


def find_chapters(folder: Path, names: list[str]) -> list[Path]:
    """Return the notebooks of numbers, stems or paths, or all; raises UsageError."""
    known = {path.stem: path for path in sorted(folder.resolve().glob(PATTERN))}
    if not known and not names:
        raise UsageError(f"notebooks={str(folder)!r} holds no chapter: give one with NN_name.ipynb")
    numbers = {str(int(stem[:2])): path for stem, path in known.items()}
    chapters = [] if names else list(known.values())
    for name in names:
        path = known.get(name) or numbers.get(name.lstrip("0")) or Path(name).resolve()
        if not (path.is_file() and path.match(PATTERN)):
            there = ", ".join(known) or "a path to NN_name.ipynb"
            raise UsageError(f"chapter={name!r} isn't there: give one of {there}")
        chapters.append(path)
    return list(dict.fromkeys(chapters))


def require_writable(reports: Path) -> None:
    """Refuse, before hours of work, a folder that can't take what they yield; raises BookError."""
    try:
        reports.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=reports).close()
    except OSError as error:
        reason = f"can't be written ({error.strerror}): give another folder, or free this one"
        raise BookError(f"reports={str(reports)!r} {reason}") from error


def near(path: Path) -> str:
    """Return the path as seen from here where it is below, in full elsewhere."""
    path = path.resolve()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


class Chapter:
    """A chapter that ran, from the notebook at `path`; raises BookError where that isn't one."""

    def __init__(self, path: Path):
        import nbformat

        try:
            self.notebook = nbformat.read(path, as_version=4)
        except Exception as error:
            reason = f"isn't a notebook ({error}): remove it, or run it again"
            raise BookError(f"{str(path)!r} {reason}") from error
        self.path = path
        self.page = path.with_suffix(".html")
        self.timing = self.notebook.metadata.get("papermill", {})
        self.seconds = self.timing.get("duration")
        self.name = Path(self.timing.get("input_path") or path.name).stem  # of a sweep's points
        self.number = int(self.name[:2]) if self.name[:2].isdecimal() else 0
        title, self.lede = _opening(self.notebook.cells, self.number)
        self.title = title or self.name[3:].replace("_", " ")
        self.figures = figures_of(self.notebook)
        self.run = self.notebook.metadata.get("nnbook", {})
        self.is_default = self.run.get("run", DEFAULT) == DEFAULT
        origin = self.run.get("origin", {})
        self.date = origin.get("date", "")
        self.origin = tuple((name, origin.get(name, "unknown")) for name in ORIGIN)
        error = self.run.get("error") or "an error in a cell" * bool(self.timing.get("exception"))
        self.error = shorten(error, 300, placeholder=" …")

    def picture(self) -> Picture | None:
        """Return the first picture of the cell tagged "headline", else of the notebook."""
        cells = list(cells_with_headings(self.notebook.cells))
        cells.sort(key=lambda pair: "headline" not in pair[0].metadata.get("tags", []))
        pictures = (pictures_of(cell, heading or self.title) for cell, heading in cells)
        return next((found[0] for found in pictures if found), None)


def duration(seconds: float | None) -> str:
    """Return seconds as people say them: `12.3 s`, `2 min 13 s`, `1 h 4 min`."""
    if seconds is None:
        return "unknown time"
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def parameters_of(chapter: Path) -> Parameters:
    """Return what -p may change in a chapter; raises BookError where the file isn't a notebook."""
    import papermill

    try:
        found = papermill.inspect_notebook(str(chapter))
        return {name: {key: p[key] for key in ("default", "help")} for name, p in found.items()}
    except Exception as error:
        reason = f"can't be read as a notebook ({error}): save it in JupyterLab, with a kernel"
        raise BookError(f"chapter={str(chapter)!r} {reason}") from error


def offered(chapter: Path, parameters: Parameters) -> str:
    """Return a chapter's parameters with their defaults and help, a line each."""
    rows = [(name, each["default"], each["help"]) for name, each in parameters.items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"  {a:{widths[0]}}  {b:{widths[1]}}  {c}".rstrip() for a, b, c in rows]
    return "\n".join([chapter.stem, *(lines or ["  no parameters"])])


def assign(chapters: list[Path], given: list[list[str]]) -> dict[Path, dict[str, Any]]:
    """Return which chapter runs with which parameters, each of the type of its default there.

    Raises UsageError naming a parameter that no chapter has or a value that doesn't fit.
    """
    known = {chapter: parameters_of(chapter) for chapter in chapters}
    values: dict[Path, dict[str, Any]] = {chapter: {} for chapter in chapters}
    there = "\n".join(offered(*item) for item in known.items())
    for name, text in given:
        holders = [chapter for chapter in chapters if name in known[chapter]]
        if not holders:
            hint = meant(name, {name for parameters in known.values() for name in parameters})
            lacks = f"parameter {name!r} is in none of the chapters asked for"
            raise UsageError(f"{lacks}{f' ({hint})' if hint else ''}, which have\n{there}")
        for chapter in holders:
            try:
                values[chapter][name] = typed(text, **known[chapter][name])
            except ValueError as error:
                raise UsageError(
                    f"parameter {name}={text!r} doesn't fit: {error}\n{there}"
                ) from error
    return values


def meant(name: str, names: Iterable[str]) -> str:
    """Return a question after the name that may have been meant, "" where none is similar."""
    return "".join(f"did you mean {each}?" for each in difflib.get_close_matches(name, names, 1))


def typed(text: str, default: str, help: str = "") -> Any:
    """Return the value that `text` stands for, of the type of a parameter's default.

    A default of None, or one that is computed, holds it to no type. Where the help lists words, as
    in `red, green or blue`, with the default among them, the value is one too. Raises ValueError.
    """
    like = literal(default)
    try:
        value = type(like)(text) if type(like) in (int, float, str) else literal(text, text)
    except ValueError:
        value = None
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("give a finite number")
    if like is not None and type(value) is not type(like):
        raise ValueError(f"give a value of type {type(like).__name__}, as its default {default} is")
    words = re.split(", | or ", help) if CHOICES.fullmatch(help) else []
    if like in words and value not in words:
        raise ValueError(f"give {help}")
    return value


def literal(text: str, otherwise: Any = None) -> Any:
    """Return the value that Python would read, or `otherwise` where it is none."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError):
        return otherwise


def is_hidden(cell) -> bool:
    """Return whether a cell stays out of the report."""
    return bool(HIDDEN & set(cell.metadata.get("tags", [])))


def cells_with_headings(cells: list) -> Iterator[tuple]:
    """Yield each cell with the last heading before its end, as plain text, "" without one."""
    heading = ""
    for cell in cells:
        if cell.cell_type == "markdown" and not is_hidden(cell):
            found = HEADING.findall(FENCED.sub("", cell.source))
            heading = _plain(found[-1]) if found else heading
        yield cell, heading


def _opening(cells: list, number: int) -> tuple[str, str]:
    """Return the first heading, less the chapter's number, and the paragraph after it, as text."""
    shown = [cell for cell in cells if cell.cell_type == "markdown" and not is_hidden(cell)]
    prose = "\n\n".join(cell.source for cell in shown)
    heading = HEADING.search(prose)
    parts = re.split(r"\n\s*\n", prose[heading.end() :] if heading else prose)
    ordinary = re.compile(r"\s*(?![#|>!]|[-*] |```|<\w|\$\$)\S")
    lede = next(filter(ordinary.match, parts), "")
    prefix = re.compile(rf"^(chapter )?0*{number}\b[ .:·–—-]*", re.IGNORECASE)
    return prefix.sub("", _plain(heading[1]) if heading else ""), _plain(lede)


def _plain(markdown: str) -> str:
    """Return a line of markdown without its marks; equations stay as they are written."""
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", markdown)
    text = re.sub(r"(\*{1,3}|`+)(\S.*?)\1", r"\2", text, flags=re.DOTALL)
    return " ".join(text.split())
