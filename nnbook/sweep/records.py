"""What is kept of a sweep: a record and a notebook for each point, and a table of all.

A record is {"point", "parameters", "figures", "error", ...}.
"""

import json
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
from filelock import FileLock, Timeout

from nnbook.execution import whole
from nnbook.notebooks import Chapter, UsageError
from nnbook.results import BookError
from nnbook.site.pages import write_page
from nnbook.sweep.grid import Point
from nnbook.sweep.worker import Record, digest, library_version
from nnlib._common.files import atomic_write

PREFERRED = ("test_accuracy", "knn_top1", "psnr_db", "accuracy", "static_bits_per_character")
MORE_IS_BETTER = {"1", "dB", "1/s", "times"}  # units; of counts, seconds, bytes and bits less is


class Sweep:
    """A sweep's folder, locked by this process while it is open as a context.

    Whenever the process ends, the next one goes on from what is kept. Raises UsageError where the
    folder is another chapter's, BookError where another process has locked it.
    """

    def __init__(self, folder: Path, chapter: Path):
        self.folder = folder
        self.chapter = chapter
        self.text = chapter.read_text(encoding="utf-8")
        cells = nbformat.reads(self.text, as_version=4).cells
        code = digest(*(cell.source for cell in cells if cell.cell_type == "code"))
        self.identity = {"chapter": chapter.stem, "source": code, "library": library_version()}
        self.defaults = whole(chapter, {})
        self.records: dict[str, Record] = {}
        self.n_outdated = 0  # records of other code, the chapter's or the library's
        (folder / "points").mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(folder / ".lock")

    def __enter__(self) -> "Sweep":
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            reason = "is running: wait for it, or give another --name"
            raise BookError(f"sweep {self.folder.name!r} {reason}") from None
        self._read()
        return self

    def __exit__(self, *_) -> None:
        self._lock.release()

    def _read(self) -> None:
        for part in self.folder.glob("**/.*.part"):  # of a process that was killed
            part.unlink(missing_ok=True)
        for path in sorted(self.folder.glob("points/*.json")):
            try:
                record = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                reason = f"is a record that can't be read ({error}): remove it"
                raise BookError(f"{str(path)!r} {reason}") from error
            if record["chapter"] != self.chapter.stem:
                reason = f"is one of {record['chapter']}: give another --name"
                raise UsageError(f"sweep {self.folder.name!r} {reason}")
            if self.identity.items() <= record.items():
                self.records[record["point"]] = record
            else:
                self.n_outdated += 1

    def key(self, point: Point) -> str:
        """Return a digest of all parameters of a point, also of those left at their defaults."""
        return digest(json.dumps(self.defaults | point, sort_keys=True))

    def is_done(self, key: str) -> bool:
        """Return whether a point ran without an error."""
        return key in self.records and not self.records[key]["error"]

    def keep(self, key: str, record: Record, notebook: str) -> None:
        """Write a point's notebook and page, then its record, then the table of all."""
        path = self.folder / "points" / f"{self.chapter.stem[:2]}_{key}.ipynb"
        if notebook:
            with atomic_write(path) as part:
                part.write_text(notebook, encoding="utf-8")
            write_page(Chapter(path), self.chapter.parent, home=("../index.html", "Sweep"))
        self.records[key] = self.identity | {"point": key} | record
        with atomic_write(path.with_suffix(".json")) as part:
            part.write_text(json.dumps(self.records[key], indent=1, default=str), encoding="utf-8")
        self.write_table()

    def write_table(self) -> None:
        """Write results.csv: a row a point with its parameters and figures, and how it ended."""
        table = pd.DataFrame(map(_row, sorted(self.records.values(), key=order)), dtype=object)
        last = [name for name in ("seconds", "date", "error") if name in table]
        columns = [name for name in table if name not in last] + last
        with atomic_write(self.folder / "results.csv") as part:
            table.to_csv(part, columns=columns, index=False, lineterminator="\r\n")


def _row(record: Record) -> dict[str, Any]:
    status = {"point": record["point"], "status": "failed" if record["error"] else "done"}
    figures = {name: figure["value"] for name, figure in record["figures"].items()}
    end = {
        "seconds": round(record.get("seconds", 0.0), 1),
        "date": record.get("origin", {}).get("date", ""),
        "error": record["error"],
    }
    return status | record["parameters"] | figures | end


def main_metric(records: list[Record], preferred: str = "") -> str:
    """Return the metric to judge a sweep by, `preferred` where it is given; "" if there is none."""
    recorded = list(dict.fromkeys(name for record in records for name in record["figures"]))
    candidates = (name for name in (*PREFERRED, *recorded) if name in recorded)
    return preferred or next(candidates, "")


def best(records: list[Record], metric: str) -> Record | None:
    """Return the record with the best value of a metric, of equals the first in order."""
    candidates = measured(records, metric)
    sign = -1 if more_is_better(candidates, metric) else 1
    candidates.sort(key=lambda record: (sign * value(record, metric), order(record)))
    return next(iter(candidates), None)


def measured(records: list[Record], metric: str) -> list[Record]:
    """Return the records of the points that are done and have a value of a metric."""
    done = (record for record in records if not record["error"])
    return [record for record in done if value(record, metric) is not None]


def value(record: Record, metric: str) -> float | None:
    """Return what a record measured, None where it didn't."""
    return record["figures"].get(metric, {}).get("value")


def more_is_better(records: list[Record], metric: str) -> bool:
    """Return whether a larger value of a metric is the better one, by its unit."""
    units = {record["figures"].get(metric, {}).get("unit") for record in records}
    return bool(units & MORE_IS_BETTER)


def varied(points: list[Point]) -> list[str]:
    """Return the parameters that differ between points, in the chapter's order."""
    names = dict.fromkeys(name for point in points for name in point)
    return [name for name in names if len({repr(point.get(name)) for point in points}) > 1]


def order(record: Record) -> list:
    """Return a key to sort records by: their parameters, numbers by size."""
    values = record["parameters"].values()
    return [(0, v, "") if isinstance(v, int | float) else (1, 0, str(v)) for v in values]
