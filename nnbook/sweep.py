"""`nnbook sweep`: one chapter run at many points, by processes here or by the workers of a Dask cluster."""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from nnbook.chapters import find_chapters, near, require_writable
from nnbook.grid import Point, points
from nnbook.parameters import UsageError, assign
from nnbook.point import Task, run_point
from nnbook.progress import Progress
from nnbook.records import Record, varied
from nnbook.results import BookError, counted
from nnbook.runs import safe
from nnbook.sweep_folder import Sweep

LOSSES = 3  # of workers, before a sweep gives up
OUTDATED = "run again where asked for, else kept in points/ and left out of the table"


def sweep(args: argparse.Namespace) -> int:
    """Run a chapter at those of the points asked for that aren't done; 1 where some failed."""
    from nnbook import report, sweep_report

    chapter = find_chapters(args.notebooks, [args.chapter])[0]
    fixed = assign([chapter], args.parameter)[chapter]
    asked = points(chapter, args.grid, args.table, args.random, args.seed, fixed)
    name = args.name or "_".join([chapter.stem[:2], *varied([{"parameters": point} for point in asked])])
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
            page = sweep_report.write(folder, list(held.records.values()), args.metric)
            report.write_front(args.reports)
            print(f"{near(folder / 'results.csv')}\n{near(page)}")
    for record in failed[:1]:
        print(f"{len(failed)} of {len(asked)} points failed, the first of them with {record['error']}", file=sys.stderr)
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
    tasks = [Task(key, *told, point, sweep.same["library"], timeout, parent) for key, point in left.items()]
    with Progress(len({sweep.key(point) for point in points}) - len(tasks), len(tasks), metric) as progress:
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
        raise UsageError(f"--metric {metric!r} isn't among the figures that the chapter records: {there}")


def _each(tasks: list[Task], jobs: int, scheduler: str) -> Iterator[tuple[str, Record, str]]:
    """What the workers return, as it comes; where they are lost, what is left goes to new ones."""
    import joblib

    left = {task.key: task for task in tasks}
    for _ in range(LOSSES if tasks else 0):
        try:
            with _workers(min(jobs, len(left)) if jobs > 0 else jobs, scheduler):
                parallel = joblib.Parallel(return_as="generator_unordered", batch_size=1)
                for done in parallel(joblib.delayed(run_point)(task) for task in list(left.values())):
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
        raise BookError("--scheduler needs Dask: install it with pip install 'nnlib[cluster]'") from None
    try:
        client = Client(scheduler, timeout=20)
    except (OSError, ValueError) as error:
        raise BookError(f"--scheduler {scheduler!r} doesn't answer ({error}): give tcp://HOST:PORT of one") from error
    with client, joblib.parallel_config("dask", n_jobs=-1):
        yield
