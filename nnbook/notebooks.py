"""Where chapters lie and what names them, and where what they leave may go.

A chapter that ran, as the notebook that its run left tells it.
What may be changed in a chapter: the parameters of its tagged cell, and values for them that fit.
A chapter's prose as plain text: its title, its lede, and the heading that each cell stands under.
"""

import ast
import difflib
import math
import re
import tempfile
from collections.abc import Iterable, Iterator
from html import escape
from pathlib import Path
from textwrap import shorten
from typing import Any

from nnbook.results import BookError, figures_of
from nnbook.site.images import Picture, pictures_of

ROOT = Path(__file__).parents[1]


def find_chapters(folder: Path, asked: list[str]) -> list[Path]:
    """The notebooks that `asked` names by number, stem or path; all of the folder where it names none.

    Raises UsageError where it names what isn't there.
    """
    known = sorted(folder.resolve().glob("[0-9][0-9]_*.ipynb"))
    if not known and not asked:
        raise UsageError(
            f"notebooks={str(folder)!r} holds no chapter: give a folder with NN_name.ipynb in it"
        )
    found = [path for name in asked for path in _matches(name, known)]
    return list(dict.fromkeys(found)) or known


def _matches(name: str, known: list[Path]) -> list[Path]:
    path = Path(name).resolve()
    if path.is_file() and path.match("[0-9][0-9]_*.ipynb"):
        return [path]
    matches = [
        path
        for path in known
        if name == path.stem or (name.isdecimal() and int(name) == int(path.stem[:2]))
    ]
    if not matches:
        there = ", ".join(path.stem for path in known) or "a path to NN_name.ipynb"
        raise UsageError(f"chapter={name!r} isn't there: give one of {there}")
    return matches


def require_writable(reports: Path) -> None:
    """Refuse, before hours of work, a folder that can't take what they yield; raises BookError."""
    try:
        reports.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=reports).close()
    except OSError as error:
        why = f"can't be written ({error.strerror}): give a folder that can be, or free this one"
        raise BookError(f"reports={str(reports)!r} {why}") from error


def near(path: Path) -> str:
    """The path as seen from here where it is below, in full elsewhere."""
    path = path.resolve()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


FACTS = ("versions", "processor", "GPU", "system", "commit")


class Chapter:
    """A chapter that ran, from the notebook at `path`; BookError where that isn't one."""

    def __init__(self, path: Path):
        import nbformat

        try:
            self.notebook = nbformat.read(path, as_version=4)
        except Exception as error:
            raise BookError(
                f"{str(path)!r} isn't a notebook ({error}): remove it, or run it again"
            ) from error
        self.timing = self.notebook.metadata.get("papermill", {})
        self.path, self.name = (
            path,
            Path(self.timing.get("input_path") or path.name).stem,
        )  # a sweep's files differ
        self.number = int(self.name[:2]) if self.name[:2].isdecimal() else 0
        self.title, self.lede = opening(self.notebook, self.number)
        self.title = self.title or self.name[3:].replace("_", " ")
        self.figures = figures_of(self.notebook)
        self.run = self.notebook.metadata.get("nnbook", {})
        error = self.run.get("error") or "an error in a cell" * bool(self.timing.get("exception"))
        self.error = shorten(error, 300, placeholder=" …")

    def status(self) -> str:
        """Whether it passed, when, how long it took, and which run it was, as HTML."""
        outcome = '<span class="failed">✕ failed</span>' if self.error else "✓ passed"
        told = [f"{outcome} in {duration(self.timing.get('duration'))}", escape(self.date())]
        told += (
            [f"run {escape(self.run['run'])}"]
            if self.run.get("run", "default") != "default"
            else []
        )
        return " · ".join(part for part in told if part)

    def date(self) -> str:
        """When it began, "" where it wasn't the book that ran it."""
        return self.run.get("origin", {}).get("date", "")

    def facts(self) -> dict[str, str]:
        """What its figures depend on besides its parameters."""
        origin = self.run.get("origin", {})
        return {name: origin.get(name, "unknown") for name in FACTS}

    def picture(self) -> Picture | None:
        """The first picture of the cell tagged "headline", else of the notebook."""
        cells = sorted(
            headed(self.notebook.cells),
            key=lambda pair: "headline" not in pair[0].metadata.get("tags", []),
        )
        return next(
            (
                picture
                for cell, heading in cells
                for picture in pictures_of(cell, heading or self.title)
            ),
            None,
        )


def duration(seconds: float | None) -> str:
    """Seconds as people say them: `12.3 s`, `2 min 13 s`, `1 h 4 min`."""
    if seconds is None:
        return "unknown time"
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


Parameters = dict[str, dict[str, str]]  # name -> {"default" (as it is written), "help"}
CHOICES = re.compile(r"\w+(, \w+)* or \w+")


class UsageError(BookError):
    """A command line that asks for what isn't there."""

    code = 2


def parameters_of(chapter: Path) -> Parameters:
    """What -p may change in a chapter; raises BookError where the file isn't a notebook."""
    import papermill

    try:
        found = papermill.inspect_notebook(str(chapter))
        return {
            name: {"default": told["default"], "help": told["help"]} for name, told in found.items()
        }
    except Exception as error:
        why = f"can't be read as a notebook ({error}): open it in JupyterLab, pick a kernel, and save it"
        raise BookError(f"chapter={str(chapter)!r} {why}") from error


def offered(chapter: Path, parameters: Parameters) -> str:
    """A chapter's parameters with their defaults and help, a line each."""
    name_width = max(map(len, parameters), default=0)
    width = max((len(parameter["default"]) for parameter in parameters.values()), default=0)
    lines = [
        f"  {name:{name_width}}  {p['default']:{width}}  {p['help']}".rstrip()
        for name, p in parameters.items()
    ]
    return "\n".join([chapter.stem, *(lines or ["  no parameters"])])


def assign(chapters: list[Path], given: list[list[str]]) -> dict[Path, dict[str, Any]]:
    """Which chapter runs with which of the parameters in `given`, each of the type of its default there.

    Raises UsageError naming a parameter that no chapter has or a value that doesn't fit, and what there is.
    """
    known = {chapter: parameters_of(chapter) for chapter in chapters}
    values: dict[Path, dict[str, Any]] = {chapter: {} for chapter in chapters}
    there = "\n".join(offered(*item) for item in known.items())
    for name, text in given:
        holders = [chapter for chapter in chapters if name in known[chapter]]
        if not holders:
            names = [name for parameters in known.values() for name in parameters]
            hint = f" ({meant(name, names)})" if meant(name, names) else ""
            raise UsageError(
                f"parameter {name!r} is in none of the chapters asked for{hint}, which have\n{there}"
            )
        try:
            for chapter in holders:
                values[chapter][name] = typed(text, **known[chapter][name])
        except ValueError as error:
            raise UsageError(f"parameter {name}={text!r} doesn't fit: {error}\n{there}") from error
    return values


def meant(name: str, names: Iterable[str]) -> str:
    """A question after the name that somebody may have meant, "" where none is near."""
    return "".join(f"did you mean {near}?" for near in difflib.get_close_matches(name, names, 1))


def typed(text: str, default: str, help: str = "") -> Any:
    """The value that `text` stands for, of the type of a parameter's default, which is given as it is written.

    A default of None, or one that is computed, holds it to no type. Where the help lists words, as in `red, green or
    blue`, and the default is one of them, the value is one too. Raises ValueError saying what would do.
    """
    like = literal(default)
    readers = {int: int, float: float, str: str}
    try:
        value = readers.get(type(like), lambda word: literal(word, word))(text)
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
    """The value that Python would read, or `otherwise` where it is none."""
    words = {"true": True, "false": False}
    try:
        return words[text.lower()] if text.lower() in words else ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError):
        return otherwise


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
    return re.sub(rf"^(chapter )?0*{number}\b[ .:·–—-]*", "", title, flags=re.IGNORECASE), plain(
        lede
    )


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
