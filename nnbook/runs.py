"""The notebooks of past runs: `reports/runs/<run>/<chapter>.ipynb`, each until the same run is made again."""

import hashlib
import re
from pathlib import Path

from nnbook.chapter import Chapter
from nnbook.parameters import UsageError
from nnbook.results import read_results

DEFAULT = "default"  # the run of a chapter as it is, which the book shows
LENGTH = 80  # characters of a run's name that its folder keeps


def kept(reports: Path, run: str, chapter: str) -> Path:
    """Where the notebook of a chapter's run is kept."""
    return reports / "runs" / safe(run) / chapter


def safe(name: str) -> str:
    """A name that any file system takes: the same where it can be, else with a hash that tells it from others."""
    short = re.sub(r"[^\w=+,.-]+", "_", name, flags=re.ASCII).strip("._")[:LENGTH]
    return name if name and short == name else f"{short}-{hashlib.sha256(name.encode()).hexdigest()[:8]}".lstrip("-")


def find(reports: Path, name: str) -> list[Chapter]:
    """The chapters of a run as results.csv names it or as its folder is called, or the one of a notebook's path.

    Raises UsageError where there is no such run, BookError where what is there can't be read.
    """
    path = Path(name)
    if path.suffix == ".ipynb" and path.is_file():
        return [Chapter(path)]
    folders = {folder.name: folder for folder in (reports / "runs").glob("*") if any(folder.glob("*.ipynb"))}
    found = folders.get(safe(name)) or folders.get(name)
    if found is None:
        raise UsageError(f"run={name!r} isn't there: give {_known(reports, set(folders))}")
    return [Chapter(path) for path in sorted(found.glob("*.ipynb"))]


def _known(reports: Path, folders: set[str]) -> str:
    """The runs that are kept, as they can be asked for."""
    named = dict.fromkeys(row["run"] for row in read_results(reports / "results.csv") if safe(row["run"]) in folders)
    names = [*named, *sorted(folders - {safe(name) for name in named})]
    listed = ", ".join(map(repr, names))
    return f"one of {listed}, or the path of a notebook that ran" if names else "the path of a notebook that ran"
