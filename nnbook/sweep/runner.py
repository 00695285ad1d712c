"""`nnbook sweep`: one chapter at many points, by processes here or workers of a Dask cluster."""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import joblib
from tqdm import tqdm

from nnbook.execution import safe
from nnbook.notebooks import UsageError, assign, find_chapters, near, require_writable
from nnbook.results import BookError, counted, shown
from nnbook.site.report import write_front
from nnbook.sweep import report
from nnbook.sweep.grid import Point, points
from nnbook.sweep.records import Record, Sweep, best, main_metric, varied
from nnbook.sweep.worker import Job, Result, run_point

MAX_LOSSES = 3  # of workers, before a sweep gives up
OUTDATED = "run again where requested, else kept in points/ and left out of the table"


def sweep(args: argparse.Namespace) -> int:
    """Run a chapter at those of the requested points that aren't done; 1 where some failed."""
    chapter = find_chapters(args.notebooks, [args.chapter])[0]
    fixed = assign([chapter], args.parameter)[chapter]
    requested = points(chapter, args.grid, args.table, args.random, args.seed, fixed)
    name = args.name or "_".join([chapter.stem[:2], *varied(requested)])
    folder = args.reports / "sweeps" / safe(name)
    require_writable(folder)
    with Sweep(folder, chapter) as opened:
        if opened.n_outdated:
            outdated = counted(opened.n_outdated, "point")
            print(
                f"{outdated} of other code, the chapter's or nnlib's: {OUTDATED}", file=sys.stderr
            )
        try:
            failed = run_points(opened, requested, args)
        finally:
            opened.write_table()
            page = report.write(folder, list(opened.records.values()), args.metric)
            write_front(args.reports)
            print(f"{near(folder / 'results.csv')}\n{near(page)}")
    if failed:
        count = f"{len(failed)} of {len(requested)} points failed"
        print(f"{count}, the first of them with {failed[0]['error']}", file=sys.stderr)
    return int(bool(failed))


def run_points(opened: Sweep, requested: list[Point], args: argparse.Namespace) -> list[Record]:
    """Run the points that aren't done, and keep each as it ends; return the records that failed.

    Raises BookError where the workers are lost again and again.
    """
    by_key = {opened.key(point): point for point in requested}
    left = {key: point for key, point in by_key.items() if not opened.is_done(key)}
    if not left:
        print("All points are done: nothing is left to run", file=sys.stderr)
    job = Job(
        chapter=opened.chapter.name,
        notebook=opened.text,
        folder=str(opened.chapter.parent.resolve()),
        library=opened.identity["library"],
        timeout=args.timeout,
        parent=0 if args.scheduler else os.getpid(),
    )
    options = {"unit": "point", "dynamic_ncols": True, "smoothing": 0}
    with tqdm(total=len(by_key), initial=len(by_key) - len(left), **options) as bar:
        for key, record, notebook in _results(left, job, args.jobs, args.scheduler):
            opened.keep(key, record, notebook)
            bar.update()
            bar.set_postfix_str(_progress(list(opened.records.values()), len(left), args.metric))
            if args.metric and not record["error"] and args.metric not in record["figures"]:
                reason = f"the chapter records: {', '.join(record['figures']) or 'none'}"
                raise UsageError(f"--metric {args.metric!r} isn't among the figures that {reason}")
    return [opened.records[key] for key in by_key if not opened.is_done(key)]


def _progress(records: list[Record], n_left: int, metric: str) -> str:
    """Return in words how many points are done, failed and left, and the best of them so far."""
    n_failed = sum(bool(record["error"]) for record in records)
    text = f"done {len(records) - n_failed}, failed {n_failed}, left {n_left}"
    metric = main_metric(records, metric)
    winner = best(records, metric)
    if winner is None:
        return text
    point = winner["parameters"]
    names = varied([record["parameters"] for record in records])
    where = ", ".join(f"{name}={point.get(name)}" for name in names) or "this point"
    return f"{text}; best {metric} {shown(metric, **winner['figures'][metric])} at {where}"


def _results(left: dict[str, Point], job: Job, jobs: int, scheduler: str) -> Iterator[Result]:
    """Yield the results of points as they end, which are left no more; replace lost workers."""
    for _ in range(MAX_LOSSES if left else 0):
        try:
            with _workers(min(jobs, len(left)), scheduler):
                parallel = joblib.Parallel(return_as="generator_unordered", batch_size=1)
                calls = [joblib.delayed(run_point)(job, *item) for item in left.items()]
                for result in parallel(calls):
                    del left[result[0]]
                    yield result
            return
        except Exception as error:
            if type(error).__name__ not in ("TerminatedWorkerError", "KilledWorker"):
                raise
    if left:
        lost = f"workers were killed {MAX_LOSSES} times (is memory short?)"
        raise BookError(f"{lost}, {len(left)} points are left: start again")


@contextmanager
def _workers(jobs: int, scheduler: str) -> Iterator[None]:
    if not scheduler:
        with joblib.parallel_config("loky", n_jobs=jobs):
            yield
        return
    try:
        from distributed import Client

        client = Client(scheduler, timeout=20)
    except ImportError:
        reason = "install it with pip install 'nnlib[cluster]'"
        raise BookError(f"--scheduler needs Dask: {reason}") from None
    except (OSError, ValueError) as error:
        reason = f"doesn't answer ({error}): give tcp://HOST:PORT of one"
        raise BookError(f"--scheduler {scheduler!r} {reason}") from error
    with client, joblib.parallel_config("dask", n_jobs=-1):
        yield
