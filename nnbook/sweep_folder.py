"""Many runs of one chapter, kept so that any end of the process leaves a state that the next start goes on from.

A sweep's folder, reports/sweeps/NAME, holds in points/ a notebook, a page and a record of each point. The record is
written last, and whole: a point that has one is done, or has failed and is tried again. results.csv and index.html are
made from the records. A record counts as long as the chapter's code and the library are the same.
"""

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nnbook.grid import Point
from nnbook.parameters import UsageError
from nnbook.point import digest, library
from nnbook.records import Record, order
from nnbook.results import BookError
from nnbook.running import whole
from nnlib.files import written_whole


class Sweep:
    """A sweep's folder, held by this process alone while it is open as a context.

    Raises UsageError where the folder is another chapter's, BookError where another process holds it.
    """

    def __init__(self, folder: Path, chapter: Path):
        from filelock import FileLock

        self.folder, self.chapter = folder, chapter
        self.text = chapter.read_text(encoding="utf-8")
        self.same = {"chapter": chapter.stem, "source": _source(self.text), "library": library()}
        self.defaults = whole(chapter, {})
        self.records: dict[str, Record] = {}
        self.outdated = 0  # records of other code, the chapter's or the library's
        (folder / "points").mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(folder / ".lock")

    def __enter__(self) -> "Sweep":
        from filelock import Timeout

        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise BookError(f"sweep {self.folder.name!r} is running: wait for it, or give another --name") from None
        self._read()
        return self

    def __exit__(self, *_) -> None:
        self._lock.release()

    def _read(self) -> None:
        """Take up the records that still count; half-written files of a process that was killed are cleared away."""
        for part in self.folder.glob("**/.*.part"):
            part.unlink(missing_ok=True)
        for record in records_of(self.folder):
            if record["chapter"] != self.chapter.stem:
                raise UsageError(f"sweep {self.folder.name!r} is one of {record['chapter']}: give another --name")
            if self.same.items() <= record.items():
                self.records[record["point"]] = record
            else:
                self.outdated += 1

    def key(self, point: Point) -> str:
        """What stands for a point: it tells all parameters apart, also those left at their defaults."""
        return digest(json.dumps(self.defaults | point, sort_keys=True))

    def left(self, points: Iterable[Point]) -> dict[str, Point]:
        """The points that aren't done, by their keys."""
        asked = {self.key(point): point for point in points}
        return {key: point for key, point in asked.items() if self.records.get(key, {"error": "not run"})["error"]}

    def keep(self, key: str, record: Record, notebook: str) -> None:
        """Write what a point left: its notebook and page, then its record, then the table of all."""
        place = self.folder / "points" / f"{self.chapter.stem[:2]}_{key}"
        if notebook:
            with written_whole(place.with_suffix(".ipynb")) as part:
                part.write_text(notebook, encoding="utf-8")
            _render(place.with_suffix(".ipynb"), self.chapter.parent)
        self.records[key] = self.same | {"point": key} | record
        with written_whole(place.with_suffix(".json")) as part:
            part.write_text(json.dumps(self.records[key], indent=1, default=str), encoding="utf-8")
        self.write_table()

    def write_table(self) -> None:
        """Write results.csv: a row a point, its parameters and figures as columns, with how it ended."""
        rows = [row_of(record) for record in sorted(self.records.values(), key=order)]
        columns = list(dict.fromkeys(name for row in rows for name in row))
        last = [name for name in ("seconds", "date", "error") if name in columns]
        columns = [name for name in columns if name not in last] + last
        with written_whole(self.folder / "results.csv") as part, open(part, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)


def records_of(folder: Path) -> list[Record]:
    """The records in a sweep's folder; BookError where one isn't a record."""
    try:
        return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("points/*.json"))]
    except ValueError as error:
        raise BookError(f"{str(folder / 'points')!r} holds a record that can't be read ({error}): remove it") from error


def row_of(record: Record) -> dict[str, Any]:
    """A record as a row of the table."""
    ended = {"point": record["point"], "status": "failed" if record["error"] else "done"}
    figures = {name: figure["value"] for name, figure in record["figures"].items()}
    date = record.get("origin", {}).get("date", "")
    told = {"seconds": round(record.get("seconds", 0.0), 1), "date": date, "error": record["error"]}
    return ended | record["parameters"] | figures | told


def _source(text: str) -> str:
    """What stands for a chapter's code; its prose and its outputs may change."""
    import nbformat

    cells = nbformat.reads(text, as_version=4).cells
    return digest(*(cell.source for cell in cells if cell.cell_type == "code"))


def _render(notebook: Path, notebooks: Path) -> None:
    from nnbook.chapter import Chapter
    from nnbook.page import write_page

    write_page(Chapter(notebook), notebooks, home=("../index.html", "Sweep"))
