"""`nnbook sweep`: one chapter run at many points, by processes here or by the workers of a Dask cluster.

One point of a sweep, as a worker runs it: on this machine or another, it needs the installed packages alone.
Many runs of one chapter, kept so that any end of the process leaves a state that the next start goes on from.
What a person sees while a sweep runs: how many points are done, the best of them so far, and the time left.
Records of a sweep's points: {"parameters", "figures", "error", ...}, and what is asked of many of them.
"""

import argparse
import csv
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from getpass import getuser
from pathlib import Path
from typing import Any, NamedTuple

import nnlib
from nnbook.execution import safe, whole
from nnbook.notebooks import UsageError, assign, find_chapters, near, require_writable
from nnbook.results import BookError, counted, figures_of, shown
from nnbook.sweep.grid import Point, points
from nnlib._common.files import atomic_write

LOSSES = 3  # of workers, before a sweep gives up

OUTDATED = "run again where asked for, else kept in points/ and left out of the table"

_watched: set[int] = set()

Record = dict[str, Any]

PREFERRED = ("test_accuracy", "knn_top1", "psnr_db", "accuracy", "static_bits_per_character")

MORE_IS_BETTER = {"1", "dB", "1/s", "times"}  # units; of counts, seconds, bytes and bits fewer are


class Task(NamedTuple):
    """A point to run. timeout: seconds a cell may take; parent: the process whose end ends this one, 0 for none."""

    key: str
    chapter: str  # its name, and the notebook as text
    notebook: str
    folder: str  # of the chapter, in which its cells run where there is such a folder
    values: dict[str, Any]
    library: str
    timeout: float | None
    parent: int


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
            raise BookError(
                f"sweep {self.folder.name!r} is running: wait for it, or give another --name"
            ) from None
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
                raise UsageError(
                    f"sweep {self.folder.name!r} is one of {record['chapter']}: give another --name"
                )
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
        return {
            key: point
            for key, point in asked.items()
            if self.records.get(key, {"error": "not run"})["error"]
        }

    def keep(self, key: str, record: Record, notebook: str) -> None:
        """Write what a point left: its notebook and page, then its record, then the table of all."""
        place = self.folder / "points" / f"{self.chapter.stem[:2]}_{key}"
        if notebook:
            with atomic_write(place.with_suffix(".ipynb")) as part:
                part.write_text(notebook, encoding="utf-8")
            _render(place.with_suffix(".ipynb"), self.chapter.parent)
        self.records[key] = self.same | {"point": key} | record
        with atomic_write(place.with_suffix(".json")) as part:
            part.write_text(json.dumps(self.records[key], indent=1, default=str), encoding="utf-8")
        self.write_table()

    def write_table(self) -> None:
        """Write results.csv: a row a point, its parameters and figures as columns, with how it ended."""
        rows = [row_of(record) for record in sorted(self.records.values(), key=order)]
        columns = list(dict.fromkeys(name for row in rows for name in row))
        last = [name for name in ("seconds", "date", "error") if name in columns]
        columns = [name for name in columns if name not in last] + last
        with (
            atomic_write(self.folder / "results.csv") as part,
            open(part, "w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)


class Progress:
    """The bar: points done, failed and left, the best so far, and the time left."""

    def __init__(self, finished: int, left: int, metric: str = ""):
        from tqdm import tqdm

        self.records: list[Record] = []
        self.metric, self.total = metric, finished + left
        self.bar = tqdm(
            total=self.total, initial=finished, unit="point", dynamic_ncols=True, smoothing=0
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        self.bar.close()

    def seen(self, record: Record) -> None:
        """Take up a point that an earlier start ran."""
        self.records.append(record)

    def ended(self, record: Record) -> None:
        """Take up a point that ended now."""
        self.seen(record)
        self.bar.set_postfix_str(self.line(), refresh=False)
        self.bar.update()

    def line(self) -> str:
        """The state in words."""
        by_point = {
            record["point"]: record for record in self.records
        }  # one that failed before may be done now
        failed = sum(bool(record["error"]) for record in by_point.values())
        done = len(by_point) - failed
        text = f"done {done}, failed {failed}, left {self.total - self.bar.n - 1}"
        metric = main_metric(self.records, self.metric)
        if not (winner := best(list(by_point.values()), metric)):
            return text
        figure = shown(metric, **winner["figures"][metric])
        return f"{text}; best {metric} {figure} at {told(winner, varied(list(by_point.values()))) or 'this point'}"


def sweep(args: argparse.Namespace) -> int:
    """Run a chapter at those of the points asked for that aren't done; 1 where some failed."""
    from nnbook.site import report
    from nnbook.sweep import summary

    chapter = find_chapters(args.notebooks, [args.chapter])[0]
    fixed = assign([chapter], args.parameter)[chapter]
    asked = points(chapter, args.grid, args.table, args.random, args.seed, fixed)
    name = args.name or "_".join(
        [chapter.stem[:2], *varied([{"parameters": point} for point in asked])]
    )
    folder = args.reports / "sweeps" / safe(name)
    require_writable(folder)
    with Sweep(folder, chapter) as held:
        if held.outdated:
            print(
                f"{counted(held.outdated, 'point')} of other code, the chapter's or nnlib's: {OUTDATED}",
                file=sys.stderr,
            )
        try:
            failed = run_points(held, asked, args.jobs, args.scheduler, args.timeout, args.metric)
        finally:
            held.write_table()
            page = summary.write(folder, list(held.records.values()), args.metric)
            report.write_front(args.reports)
            print(f"{near(folder / 'results.csv')}\n{near(page)}")
    for record in failed[:1]:
        print(
            f"{len(failed)} of {len(asked)} points failed, the first of them with {record['error']}",
            file=sys.stderr,
        )
    return int(bool(failed))


def run_points(
    sweep: Sweep, points: list[Point], jobs: int, scheduler: str, timeout: float | None, metric: str
) -> list[Record]:
    """Run the points that aren't done, and keep each as it ends; returns the records of those that failed.

    jobs: points at once on this machine; scheduler: the address of a Dask scheduler, whose workers run them instead.
    timeout: seconds that a cell may take. Raises BookError where the workers are lost again and again.
    """
    left = sweep.left(points)
    parent = 0 if scheduler else os.getpid()
    if not left:
        print("All points are done: nothing is left to run", file=sys.stderr)
    told = (sweep.chapter.name, sweep.text, str(sweep.chapter.parent.resolve()))
    tasks = [
        Task(key, *told, point, sweep.same["library"], timeout, parent)
        for key, point in left.items()
    ]
    with Progress(
        len({sweep.key(point) for point in points}) - len(tasks), len(tasks), metric
    ) as progress:
        for record in sweep.records.values():
            progress.seen(record)
        for key, record, notebook in _each(tasks, jobs, scheduler):
            sweep.keep(key, record, notebook)
            progress.ended(sweep.records[key])
            _require_metric(metric, sweep.records[key])
    ended = [sweep.records[key] for key in dict.fromkeys(map(sweep.key, points))]
    return [record for record in ended if record["error"]]


def _require_metric(metric: str, record: Record) -> None:
    if metric and not record["error"] and metric not in record["figures"]:
        there = ", ".join(record["figures"]) or "none"
        raise UsageError(
            f"--metric {metric!r} isn't among the figures that the chapter records: {there}"
        )


def _each(tasks: list[Task], jobs: int, scheduler: str) -> Iterator[tuple[str, Record, str]]:
    """What the workers return, as it comes; where they are lost, what is left goes to new ones."""
    import joblib

    left = {task.key: task for task in tasks}
    for _ in range(LOSSES if tasks else 0):
        try:
            with _workers(min(jobs, len(left)) if jobs > 0 else jobs, scheduler):
                parallel = joblib.Parallel(return_as="generator_unordered", batch_size=1)
                for done in parallel(
                    joblib.delayed(run_point)(task) for task in list(left.values())
                ):
                    del left[done[0]]
                    yield done
            return
        except Exception as error:
            if type(error).__name__ not in ("TerminatedWorkerError", "KilledWorker"):
                raise
    if left:
        raise BookError(
            f"workers were killed {LOSSES} times (is memory short?), {len(left)} points are left: start again"
        )


@contextmanager
def _workers(jobs: int, scheduler: str) -> Iterator[None]:
    import joblib

    if not scheduler:
        with joblib.parallel_config("loky", n_jobs=jobs):
            yield
        return
    try:
        from distributed import Client
    except ImportError:
        raise BookError(
            "--scheduler needs Dask: install it with pip install 'nnlib[cluster]'"
        ) from None
    try:
        client = Client(scheduler, timeout=20)
    except (OSError, ValueError) as error:
        raise BookError(
            f"--scheduler {scheduler!r} doesn't answer ({error}): give tcp://HOST:PORT of one"
        ) from error
    with client, joblib.parallel_config("dask", n_jobs=-1):
        yield


def run_point(task: Task) -> tuple[str, dict[str, Any], str]:
    """Run a point in a kernel of its own. Returns its key, its record, and the executed notebook as text.

    The record has the parameters, the figures, the error ("" where there was none), and seconds: of the whole and of
    the cells alone. A worker with another library says so in the error, and runs nothing.
    """
    import nbformat

    from nnbook.execution import executed

    _end_with(task.parent)
    if (here := library()) != task.library:
        error = (
            f"this worker has nnlib {here}, and the sweep {task.library}: install the same on both"
        )
        return task.key, {"parameters": task.values, "figures": {}, "error": error}, ""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as spare, one_gpu():
        folder = Path(task.folder) if Path(task.folder).is_dir() else Path(spare)
        chapter = Path(spare) / task.chapter
        chapter.write_text(task.notebook, encoding="utf-8")
        notebook = executed(chapter, task.values, timeout=task.timeout, folder=folder)
    told = notebook.metadata["nnbook"]
    cells = [cell.metadata.get("papermill", {}).get("duration") or 0.0 for cell in notebook.cells]
    record = {
        "parameters": told["parameters"],
        "figures": figures_of(notebook),
        "error": told["error"],
    }
    record |= {
        "seconds": time.perf_counter() - started,
        "cells_seconds": sum(cells),
        "origin": told["origin"],
    }
    return task.key, record, nbformat.writes(notebook)


def library() -> str:
    """The version of nnlib with a digest of its files: what the figures of a point depend on besides the chapter."""
    files = sorted(Path(nnlib.__file__).parent.rglob("*.py"))
    return f"{nnlib.__version__} {digest(*(file.read_text(encoding='utf-8') for file in files))}"


def digest(*texts: str) -> str:
    """Twelve digits that stand for some texts."""
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:12]


@contextmanager
def one_gpu() -> Iterator[None]:
    """Give what is started meanwhile one of several GPUs, where there is one that no other worker here holds."""
    from filelock import FileLock, Timeout

    gpus, before = _gpus(), os.environ.get("CUDA_VISIBLE_DEVICES")
    for gpu in gpus if len(gpus) > 1 else []:
        lock = FileLock(
            Path(tempfile.gettempdir()) / f"nnbook-{getuser()}-gpu-{gpu.replace('/', '-')}.lock"
        )
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        try:
            os.environ["CUDA_VISIBLE_DEVICES"] = gpu
            yield
        finally:
            lock.release()
            os.environ.pop("CUDA_VISIBLE_DEVICES") if before is None else os.environ.update(
                CUDA_VISIBLE_DEVICES=before
            )
        return
    yield


def _gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [gpu.strip() for gpu in visible.split(",") if gpu.strip()]
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return (
        [str(number) for number, _ in enumerate(done.stdout.splitlines())]
        if done.returncode == 0
        else []
    )


def _end_with(parent: int) -> None:
    """End this process when the one that asked for the work has ended, however that was; its kernel ends with it."""
    if parent in (0, os.getpid(), *_watched):
        return
    _watched.add(parent)

    def watch():
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def records_of(folder: Path) -> list[Record]:
    """The records in a sweep's folder; BookError where one isn't a record."""
    try:
        return [
            json.loads(path.read_text(encoding="utf-8"))
            for path in sorted(folder.glob("points/*.json"))
        ]
    except ValueError as error:
        raise BookError(
            f"{str(folder / 'points')!r} holds a record that can't be read ({error}): remove it"
        ) from error


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
    from nnbook.notebooks import Chapter
    from nnbook.site.pages import write_page

    write_page(Chapter(notebook), notebooks, home=("../index.html", "Sweep"))


def main_metric(records: list[Record], asked: str = "") -> str:
    """The metric that a sweep is looked at for: the one asked for, else the most telling one recorded; "" if none."""
    there = list(dict.fromkeys(name for record in records for name in record["figures"]))
    return asked or next((name for name in (*PREFERRED, *there) if name in there), "")


def best(records: list[Record], metric: str) -> Record | None:
    """The record with the best value of a metric, of equals the first in order; None where none has it."""
    have = [
        record for record in records if not record["error"] and value(record, metric) is not None
    ]
    sign = -1 if have and more_is_better(have, metric) else 1
    return min(have, key=lambda record: (sign * value(record, metric), order(record)), default=None)


def value(record: Record, metric: str) -> float | None:
    """What a record measured, None where it didn't."""
    return record["figures"].get(metric, {}).get("value")


def more_is_better(records: list[Record], metric: str) -> bool:
    """Whether a larger value of a metric is the better one, by its unit."""
    return any(
        record["figures"].get(metric, {}).get("unit") in MORE_IS_BETTER for record in records
    )


def varied(records: list[Record]) -> list[str]:
    """The parameters that differ between points, in the chapter's order."""
    names = dict.fromkeys(name for record in records for name in record["parameters"])
    return [
        name
        for name in names
        if len({repr(record["parameters"].get(name)) for record in records}) > 1
    ]


def told(record: Record, names: list[str]) -> str:
    """A point's parameters in words."""
    return ", ".join(f"{name}={record['parameters'].get(name)}" for name in names)


def order(record: Record) -> list:
    """To sort points by: their parameters, numbers by size."""
    values = record["parameters"].values()
    return [
        (0, each, "") if isinstance(each, int | float) else (1, 0, str(each)) for each in values
    ]
