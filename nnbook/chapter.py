"""A chapter that ran, as the notebook that its run left tells it."""

from html import escape
from pathlib import Path
from textwrap import shorten

from nnbook.pictures import Picture, pictures_of
from nnbook.prose import headed, opening
from nnbook.results import BookError, figures_of

FACTS = ("versions", "processor", "GPU", "system", "commit")


class Chapter:
    """A chapter that ran, from the notebook at `path`; BookError where that isn't one."""

    def __init__(self, path: Path):
        import nbformat

        try:
            self.notebook = nbformat.read(path, as_version=4)
        except Exception as error:
            raise BookError(f"{str(path)!r} isn't a notebook ({error}): remove it, or run it again") from error
        self.timing = self.notebook.metadata.get("papermill", {})
        self.path, self.name = path, Path(self.timing.get("input_path") or path.name).stem  # a sweep's files differ
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
        told += [f"run {escape(self.run['run'])}"] if self.run.get("run", "default") != "default" else []
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
        cells = sorted(headed(self.notebook.cells), key=lambda pair: "headline" not in pair[0].metadata.get("tags", []))
        return next((picture for cell, heading in cells for picture in pictures_of(cell, heading or self.title)), None)


def duration(seconds: float | None) -> str:
    """Seconds as people say them: `12.3 s`, `2 min 13 s`, `1 h 4 min`."""
    if seconds is None:
        return "unknown time"
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
