"""Where chapters lie and what names them, and where what they leave may go."""

import tempfile
from pathlib import Path

from nnbook.parameters import UsageError
from nnbook.results import BookError

ROOT = Path(__file__).parents[1]


def find_chapters(folder: Path, asked: list[str]) -> list[Path]:
    """The notebooks that `asked` names by number, stem or path; all of the folder where it names none.

    Raises UsageError where it names what isn't there.
    """
    known = sorted(folder.resolve().glob("[0-9][0-9]_*.ipynb"))
    if not known and not asked:
        raise UsageError(f"notebooks={str(folder)!r} holds no chapter: give a folder with NN_name.ipynb in it")
    found = [path for name in asked for path in _matches(name, known)]
    return list(dict.fromkeys(found)) or known


def _matches(name: str, known: list[Path]) -> list[Path]:
    path = Path(name).resolve()
    if path.is_file() and path.match("[0-9][0-9]_*.ipynb"):
        return [path]
    matches = [path for path in known if name == path.stem or (name.isdecimal() and int(name) == int(path.stem[:2]))]
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
