"""What is stated of the book in use: killed sweeps, controls, the site, a newcomer's steps."""

import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import browser
import pandas as pd
import pytest
from figures.table import figure

from nnbook.notebooks import ROOT

SWEEP = (sys.executable, "-m", "nnbook", "sweep", "01", "--name", "s")
POINTS = ("exponent=-1,-2,-4,-8", "batch_size=32,64,128", "n_train=300,400")  # 24 of them
GRID = (*SWEEP, "--jobs", "2", *(word for grid in POINTS for word in ("-g", grid)))
QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


def run(*command, **how) -> int:
    """The exit status of a command in the checkout."""
    return subprocess.run(list(map(str, command)), **{"cwd": ROOT} | QUIET | how).returncode


def rows(reports: Path) -> pd.DataFrame:
    return pd.read_csv(reports / "sweeps" / "s" / "results.csv")


def complete(table: pd.DataFrame, code: int) -> tuple[str, bool]:
    done = table[table.status == "done"]
    points = len(done[["exponent", "batch_size", "n_train"]].drop_duplicates())
    words = f"{len(table)} rows, {points} different points done, exit {code}"
    return words, len(table) == points == 24 and code == 0


@figure("24 points, killed with -9 at 5 random moments", "24 rows, none twice or lost", "slow")
def test_killed_sweep(tmp_path):
    done = []
    for _ in range(5):
        sweep = subprocess.Popen([*GRID, "--reports", str(tmp_path)], cwd=ROOT, **QUIET)
        time.sleep(random.uniform(15, 40))
        sweep.kill()
        sweep.wait()
        done.append(len(list(tmp_path.glob("sweeps/s/points/*.json"))))
    code = run(*GRID, "--reports", tmp_path)
    words, whole = complete(rows(tmp_path), code)
    return f"after the kills {', '.join(map(str, done))} were done; {words}", whole


@figure("the same sweep on a Dask scheduler's two workers", "the same table", "slow")
def test_dask_sweep(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    codes = [run(*GRID, "--reports", here)]
    with cluster() as address:
        codes.append(run(*GRID, "--reports", there, "--scheduler", address))
    words, whole = complete(rows(there), max(codes))
    timed = "seconds|^date$"
    tables = [rows(folder).filter(regex=f"^(?!.*({timed}))") for folder in (here, there)]
    same = tables[0].equals(tables[1])
    return f"{words}, tables {'equal' if same else 'differ'}", whole and same


@contextmanager
def cluster():
    """The address of a scheduler with two workers, all of them processes of their own."""
    with browser.free_port() as port:
        address = f"tcp://127.0.0.1:{port}"
    how = {"env": os.environ | {"PYTHONPATH": str(ROOT)}, "cwd": ROOT} | QUIET
    dask = [sys.executable, "-m", "dask"]
    scheduler = [*dask, "scheduler", "--port", str(port), "--no-dashboard"]
    worker = [*dask, "worker", address, "--nworkers", "2", "--nthreads", "1", "--no-dashboard"]
    processes = [subprocess.Popen(command, **how) for command in (scheduler, worker)]
    try:
        yield address
    finally:
        for process in reversed(processes):
            process.terminate()
            process.wait(20)


@figure("one bad point of a sweep", "refused before, or one failed row; exit not 0", "slow")
def test_bad_point(tmp_path):
    start = (*SWEEP, "-p", "n_train", "300", "--reports", tmp_path)
    refused = [run(*start, "-g", bad) for bad in ("exponent=-4,x", "kernel_type=cosin")]
    nothing = not (tmp_path / "sweeps").exists()
    cone = ("-p", "kernel_type", "influence_cone", "-g", "influence_cone_factor=2,0.5,4")
    failed = run(*start, *cone)
    ended = sorted(rows(tmp_path).status)
    words = f"exponent=x, kernel_type=cosin: exit {refused}; a factor of 0.5: exit {failed}, "
    met = refused == [2, 2] and nothing and failed == 1 and ended == ["done", "done", "failed"]
    return words + ", ".join(ended), met


@figure("what a sweep's point takes beyond its cells, its page included", "at most 3 s", "slow")
def test_overhead(tmp_path):
    times = []
    for points in ("300", "300,310,320,330"):  # the difference is three points' and nothing else's
        folder = tmp_path / points
        start = time.perf_counter()
        run(*SWEEP, "--reports", folder, "-g", f"n_train={points}")
        seconds = time.perf_counter() - start
        facts = [json.loads(path.read_text()) for path in folder.glob("**/*.json")]
        times.append(seconds - sum(float(each["cells_seconds"]) for each in facts))
    each = (times[1] - times[0]) / 3
    return f"{each:.1f} s", each <= 3


@pytest.mark.parametrize("chapter", browser.CHAPTERS, ids=lambda path: path.stem)
@figure("{chapter.stem} in JupyterLab: from control to picture", "median 300 ms, 2 cores", "slow")
def test_latency(chapter, tmp_path):
    browser.copy(chapter, tmp_path)
    with browser.browser() as chromium, browser.lab(tmp_path) as address:
        page = chromium.new_page(viewport={"width": 1300, "height": 900})
        if errors := browser.run_all(page, f"{address}/{chapter.name}?reset"):
            return f"Run All fails: {errors[0][:200]}", False
        moves = 4 * ("ArrowRight", "ArrowLeft")
        controls = browser.controls(page)
        times = [browser.answered(page, place, key) for place in controls for key in moves]
    known = [milliseconds for milliseconds in times if milliseconds is not None]
    median = statistics.median(known)
    words = f"{median:.0f} ms, at most {max(known):.0f} ms, {len(known)} of {len(times)} moves"
    return words, len(known) == len(times) and median <= 300


@figure("the report site, clicked through", "0 requests, broken links, console errors", "slow")
def test_site(tmp_path):
    for chapter in browser.CHAPTERS:
        shutil.copy(chapter, tmp_path / chapter.name)
    run(sys.executable, "-m", "nnbook", "report", "--reports", tmp_path)
    with browser.browser() as chromium:
        site = browser.crawl(chromium.new_page(), tmp_path / "index.html")
    faults = site.requests, site.broken, site.complaints
    words = "{} requests, {} broken links, {} complaints".format(*map(len, faults))
    whole = len(site.pages) == 1 + len(browser.CHAPTERS)
    return f"{len(site.pages)} pages, {words}", whole and not any(faults)


STEPS = (
    "make book",
    "nnbook run 01 -p exponent -8 -p n_train 3000 --name steep",
    "nnbook sweep 01 -g exponent=-2,-4 -p n_train 300 --name first",
    "nnbook report --compare default steep",
)


@figure("clone, make book, one parameter, a sweep, a comparison", "each as documented", "slow")
def test_newcomer(tmp_path):
    pages = [
        (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "nnbook/README.md")
    ]
    if missing := [step for step in STEPS if step not in "\n".join(pages)]:
        return f"no README says {missing}", False
    clone = tmp_path / "clone"
    run("git", "clone", "--quiet", ROOT, clone)
    foreign = re.compile("PYTHON|VIRTUAL_ENV|NNLIB")
    environment = {name: value for name, value in os.environ.items() if not foreign.match(name)}
    codes = []
    for step in STEPS:
        words = re.sub("^nnbook", f"{clone}/.venv/bin/nnbook", step).split()
        codes.append(run(*words, cwd=clone, env=environment))
    names = ("index.html", "sweeps/first/index.html", "compare/default--steep.html")
    there = [(clone / "reports" / name).is_file() for name in names]
    return f"exit {codes}, {sum(there)} of 3 pages there", not any(codes) and all(there)
