"""What is stated of the book in use: sweeps that are killed, controls that answer, a site, a newcomer's steps."""

import csv
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

from claims import browser
from claims.table import NotMeasured, claim

ROOT = Path(__file__).parents[1]
GRID = [
    "-g",
    "exponent=-1,-2,-4,-8",
    "-g",
    "batch_size=32,64,128",
    "-g",
    "n_train=300,400",
]  # 24 points
COMMAND = [sys.executable, "-m", "nnbook", "sweep", "01", *GRID, "--jobs", "2", "--name", "s"]


def _rows(reports: Path) -> list[dict[str, str]]:
    with open(reports / "sweeps" / "s" / "results.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _run(command: list, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    return subprocess.run(
        list(map(str, command)), cwd=cwd, capture_output=True, text=True, check=False
    )


@claim(
    "a sweep of 24 points of chapter 1, killed with -9 at 5 random moments",
    "24 rows, none twice, none lost",
    "slow",
)
def killed_sweep():
    with tempfile.TemporaryDirectory() as folder:
        reports, done = Path(folder), []
        for _ in range(5):
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            running = subprocess.Popen([*COMMAND, "--reports", folder], cwd=ROOT, **quiet)
            time.sleep(random.uniform(15, 40))
            running.kill()
            running.wait()
            done.append(len(list(reports.glob("sweeps/s/points/*.json"))))
        code = _run([*COMMAND, "--reports", folder]).returncode
        return _compared(
            _rows(reports), code, f"after the kills {', '.join(map(str, done))} were done; "
        )


def _compared(rows: list[dict[str, str]], code: int, told: str = "") -> tuple[str, bool]:
    points = {
        (row["exponent"], row["batch_size"], row["n_train"])
        for row in rows
        if row["status"] == "done"
    }
    return f"{told}{len(rows)} rows, {len(points)} different points done, exit {code}", (
        len(rows) == len(points) == 24 and code == 0
    )


@claim(
    "the same sweep on a Dask scheduler's two worker processes",
    "the same table as by processes here",
    "slow",
)
def dask_sweep():
    with (
        tempfile.TemporaryDirectory() as here,
        tempfile.TemporaryDirectory() as there,
        _cluster() as address,
    ):
        codes = [_run([*COMMAND, "--reports", here]).returncode]
        codes.append(_run([*COMMAND, "--reports", there, "--scheduler", address]).returncode)
        tables = [[_untimed(row) for row in _rows(Path(folder))] for folder in (here, there)]
        told, whole = _compared(_rows(Path(there)), max(codes))
    differ = sum(one != other for one, other in zip(*tables, strict=False))
    return f"{told}, {differ} of them differ", whole and differ == 0


def _untimed(row: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in row.items() if "seconds" not in name and name != "date"}


@contextmanager
def _cluster():
    """The address of a scheduler with two workers, all of them processes of their own."""
    with browser.free_port() as port:
        address = f"tcp://127.0.0.1:{port}"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    quiet = {
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.DEVNULL,
        "env": environment,
        "cwd": ROOT,
    }
    dask = [sys.executable, "-m", "dask"]
    try:
        running = [
            subprocess.Popen([*dask, "scheduler", "--port", str(port), "--no-dashboard"], **quiet)
        ]
        worker = [*dask, "worker", address, "--nworkers", "2", "--nthreads", "1", "--no-dashboard"]
        running.append(subprocess.Popen(worker, **quiet))
        yield address
    finally:
        for process in reversed(running):
            process.terminate()
            process.wait(20)


@claim(
    "one bad point of a sweep",
    "refused before, or one failed row; the others done; exit not 0",
    "slow",
)
def bad_point():
    start = [sys.executable, "-m", "nnbook", "sweep", "01", "--name", "s", "-p", "n_train", "300"]
    with tempfile.TemporaryDirectory() as folder:
        refused = [
            _run([*start, "--reports", folder, "-g", bad])
            for bad in ("exponent=-4,x", "kernel_type=cosin")
        ]
        nothing = not (Path(folder) / "sweeps").exists()
        cone = ["-p", "kernel_type", "influence_cone", "-g", "influence_cone_factor=2,0.5,4"]
        failed = _run([*start, "--reports", folder, *cone]).returncode
        ended = sorted(row["status"] for row in _rows(Path(folder)))
    codes = [done.returncode for done in refused]
    told = f"exponent=x, kernel_type=cosin: exit {codes}; a cone's factor of 0.5: exit {failed}, {', '.join(ended)}"
    return told, codes == [2, 2] and nothing and failed == 1 and ended == ["done", "done", "failed"]


@claim("what a sweep's point takes beyond its cells, its page included", "at most 3 s", "slow")
def overhead():
    code = "import json, sys; print(json.load(open(sys.argv[1]))['cells_seconds'])"
    times = []
    for points in ("300", "300,310,320,330"):  # the difference is three points' and nothing else's
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            words = ["--name", "s", "--reports", folder, "-g", f"n_train={points}"]
            _run([sys.executable, "-m", "nnbook", "sweep", "01", *words])
            seconds = time.perf_counter() - start
            cells = [
                float(_run([sys.executable, "-c", code, path]).stdout)
                for path in Path(folder).glob("**/*.json")
            ]
            times.append(seconds - sum(cells))
    return f"{(times[1] - times[0]) / 3:.1f} s", (times[1] - times[0]) / 3 <= 3


def _latency(chapter: Path):
    def measured():
        with browser.browser() as chromium, tempfile.TemporaryDirectory() as folder:
            browser.copy(chapter, Path(folder))
            with browser.lab(Path(folder)) as address:
                page = chromium.new_page(viewport={"width": 1300, "height": 900})
                if errors := browser.run_all(page, f"{address}/{chapter.name}?reset"):
                    return f"Run All fails: {errors[0][:200]}", False
                moves = 2 * ("ArrowRight", "ArrowLeft", "ArrowRight", "ArrowLeft")
                times = [
                    browser.answered(page, place, key)
                    for place in browser.controls(page)
                    for key in moves
                ]
        known = sorted(time for time in times if time is not None)
        told = f"{statistics.median(known):.0f} ms, at most {known[-1]:.0f} ms, {len(known)} of {len(times)} moves"
        return told, len(known) == len(times) and statistics.median(known) <= 300

    return measured


for _chapter in browser.CHAPTERS:
    _what = (
        f"chapter {int(_chapter.stem[:2])} in JupyterLab: a control moved, the other picture drawn"
    )
    claim(_what, "median at most 300 ms on 2 cores", "slow")(_latency(_chapter))


@claim(
    "the report site, clicked through",
    "0 requests to the net, 0 broken links, 0 console errors",
    "slow",
)
def site():
    with browser.browser() as chromium, tempfile.TemporaryDirectory() as folder:
        for chapter in browser.CHAPTERS:
            shutil.copy(chapter, Path(folder) / chapter.name)
        _run([sys.executable, "-m", "nnbook", "report", "--reports", folder])
        found = browser.crawl(chromium.new_page(), Path(folder) / "index.html")
    told = f"{len(found.pages)} pages, {len(found.requests)} requests, {len(found.broken)} broken links, "
    whole = len(found.pages) == 1 + len(browser.CHAPTERS)
    return told + f"{len(found.complaints)} complaints", whole and not (
        found.requests or found.broken or found.complaints
    )


@claim(
    "a newcomer's path: clone, make book, one parameter, a sweep, a comparison",
    "each step as the README says",
    "slow",
)
def newcomer():
    if not (ROOT / ".git").exists() or not shutil.which("make"):
        raise NotMeasured("this isn't a checkout with make")
    steps = ["make book", "nnbook run 01 -p exponent -8 -p n_train 3000 --name steep"]
    steps += [
        "nnbook sweep 01 -g exponent=-2,-4 -p n_train 300 --name first",
        "nnbook report --compare default steep",
    ]
    missing = [
        step for step in steps if step not in (ROOT / "README.md").read_text(encoding="utf-8")
    ]
    if missing:
        return f"the README doesn't say {missing}", False
    with tempfile.TemporaryDirectory() as folder:
        clone, codes = Path(folder) / "clone", []
        _run(["git", "clone", "--quiet", ROOT, clone])
        environment = {
            name: value
            for name, value in os.environ.items()
            if not re.match("PYTHON|VIRTUAL_ENV|NNLIB", name)
        }
        for step in steps:
            words = step.split()
            words[0] = str(clone / ".venv/bin/nnbook") if words[0] == "nnbook" else words[0]
            codes.append(
                subprocess.run(words, cwd=clone, env=environment, capture_output=True).returncode
            )
        pages = [
            clone / "reports" / name
            for name in ("index.html", "sweeps/first/index.html", "compare/default--steep.html")
        ]
        there = [page.is_file() for page in pages]
    return f"exit {codes}, {sum(there)} of 3 pages there", not any(codes) and all(there)
