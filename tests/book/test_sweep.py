"""Sweeps with real kernels, kills and a Dask scheduler: what is run, kept, skipped and refused."""

import csv
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_book import ROOT, interruptible, nnbook, notebook

from nnbook.sweep.grid import points
from nnbook.sweep.records import best, main_metric, varied
from nnbook.sweep.report import pareto
from nnbook.sweep.worker import one_gpu

PARAMETERS = """exponent = -4.0  # sharper when lower
kind = "cosine"  # or any
count = 3  # of centers
pause = 0.0  # seconds
rates = "0.1, 0.2"  # with commas"""
BODY = """import os, time
time.sleep(pause)
print('GPU', os.environ.get('CUDA_VISIBLE_DEVICES'), 'threads', os.environ.get('OMP_NUM_THREADS'))
if kind == 'bad':
    raise ValueError('kind=bad is < none')
from nnbook import record
record(test_accuracy=0.9 + exponent / 100, neighbors=10 * count)
record(fit_seconds=pause, published_neighbors=99)"""


pytestmark = pytest.mark.usefixtures("importable")


@pytest.fixture
def chapter(tmp_path) -> Path:
    notebook(
        tmp_path / "notebooks" / "01_small.ipynb",
        ["# 1 · Small\n\nIs it?", (PARAMETERS, "parameters"), BODY],
    )
    return tmp_path / "notebooks" / "01_small.ipynb"


def where(chapter: Path) -> list[str]:
    return ["--notebooks", str(chapter.parent), "--reports", str(chapter.parents[1] / "reports")]


def sweep(chapter: Path, *words):
    return nnbook("sweep", "01", *where(chapter), "--name", "s", *words)


def started(chapter: Path, *words, **how) -> subprocess.Popen:
    command = [
        sys.executable,
        "-m",
        "nnbook",
        "sweep",
        "01",
        *where(chapter),
        "--name",
        "s",
        *words,
    ]
    how = {
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
        "preexec_fn": interruptible,
    } | how
    return subprocess.Popen(command, cwd=ROOT, **how)


def folder(chapter: Path) -> Path:
    return chapter.parents[1] / "reports" / "sweeps" / "s"


def table(chapter: Path) -> list[dict[str, str]]:
    with open(folder(chapter) / "results.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def measured(chapter: Path) -> list[tuple]:
    """The table without times, dates and the order of its rows."""
    return sorted(
        tuple(v for k, v in row.items() if k not in ("seconds", "date")) for row in table(chapter)
    )


def kernels(chapter: Path) -> list[str]:
    """Processes that still work for a sweep: its own, its workers' and their kernels."""
    found = subprocess.run(
        ["ps", "-eo", "pid,args"], capture_output=True, text=True
    ).stdout.splitlines()
    return [
        line
        for line in found
        if re.search(r"ipykernel|loky|nnbook sweep", line) and "defunct" not in line
    ]


def test_points_are_all_combinations_with_the_types_of_the_defaults(chapter):
    found = points(chapter, ["exponent=-2,-4", 'rates="0.1, 0.2",0.5', "count=3"])
    assert len(found) == 4 and found[0] == {"exponent": -2.0, "rates": "0.1, 0.2", "count": 3}
    assert all(type(point["exponent"]) is float and type(point["count"]) is int for point in found)
    assert points(chapter, ["exponent=-2,-2.0,-4"]) == [{"exponent": -2.0}, {"exponent": -4.0}]


def test_points_drawn_are_of_the_grid_and_the_same_with_the_same_seed(chapter):
    grid = ["exponent=-1,-2,-3,-4,-5", "count=1,2,3,4"]
    some = points(chapter, grid, n_random=7, seed=3)
    assert len(some) == 7 and all(point in points(chapter, grid) for point in some)
    assert (
        some
        == points(chapter, grid, n_random=7, seed=3)
        != points(chapter, grid, n_random=7, seed=4)
    )
    assert points(chapter, grid, n_random=100) == points(chapter, grid)
    ranged = points(chapter, ["exponent=-9.5..-1", "count=2..4", "kind=a,b"], n_random=40)
    assert len(ranged) == 40 and {point["count"] for point in ranged} == {2, 3, 4}
    assert all(
        -9.5 <= point["exponent"] <= -1 and type(point["exponent"]) is float for point in ranged
    )


def test_points_come_from_a_table_too(chapter, tmp_path):
    (tmp_path / "points.csv").write_text("exponent,kind\n-2,cosine\n-8,other\n")
    found = points(chapter, ["count=1,2"], tmp_path / "points.csv", fixed={"pause": 0.5})
    assert (
        found[3] == {"pause": 0.5, "exponent": -8.0, "kind": "other", "count": 2}
        and len(found) == 4
    )


@pytest.mark.parametrize(
    "words, said",
    [
        (["-g", "exponent=x,-4"], "exponent='x' doesn't fit: give a value of type float"),
        (
            ["-g", "exponnet=-2"],
            "'exponnet' is no parameter of 01_small (did you mean exponent?), which has exponent",
        ),
        (["-g", "exponent"], "give name=value,value"),
        (["-g", "exponent=-2", "-g", "exponent=-4"], "names a parameter twice"),
        (["-g", "exponent=-2", "-p", "exponent", "-4"], "-g and -p both name exponent"),
        (["-g", "exponent=-4..-2"], "goes with --random N"),
        (["-g", "exponent=-2..-4", "--random", "3"], "the lower first"),
        (["--table", "nowhere.csv"], "'nowhere.csv' can't be read"),
        (["--random", "3"], "a sweep needs values"),
        (["-g", "exponent=1e400"], "exponent='1e400' doesn't fit: give a finite number"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_runs(chapter, words, said):
    done = sweep(chapter, *words)
    assert done.code == 2 and said in done.err and "Traceback" not in done.err
    assert not folder(chapter).exists()


def test_a_failed_point_is_a_row_and_the_others_are_done(chapter):
    done = sweep(chapter, "-g", "kind=cosine,bad", "-g", "exponent=-2,-4")
    assert done.code == 1 and "done 2, failed 2, left 0" in done.err
    assert "best test_accuracy 88.00 % at exponent=-2.0" in done.err
    rows = table(chapter)
    assert [(row["exponent"], row["kind"], row["status"]) for row in rows] == [
        ("-4.0", "bad", "failed"),
        ("-4.0", "cosine", "done"),
        ("-2.0", "bad", "failed"),
        ("-2.0", "cosine", "done"),
    ]
    assert rows[0]["error"] == "ValueError: kind=bad is < none" and rows[0]["neighbors"] == ""
    assert (rows[3]["test_accuracy"], rows[3]["neighbors"], rows[3]["count"]) == ("0.88", "30", "3")
    partial = folder(chapter) / "points" / f"01_{rows[0]['point']}.ipynb"
    assert "threads" in partial.read_text() and "kind=bad is < none" in partial.read_text()
    page = (folder(chapter) / "index.html").read_text()
    links = re.findall(r'href="(points/[^"]+)"', page)
    assert len(links) == 4 and all((folder(chapter) / link).is_file() for link in links)
    assert (
        "2 points done" in page and "kind=bad is &lt; none" in page and "data:image/svg+xml" in page
    )


@pytest.mark.slow
def test_what_is_done_is_skipped_and_what_failed_is_tried_again(chapter):
    assert sweep(chapter, "-g", "kind=cosine,bad").code == 1
    records = {
        path: path.stat().st_mtime_ns for path in (folder(chapter) / "points").glob("*.json")
    }
    assert sweep(chapter, "-g", "kind=cosine,bad,other").code == 1
    again = [path for path in records if path.stat().st_mtime_ns > records[path]]
    assert [json.loads(path.read_text())["parameters"]["kind"] for path in again] == ["bad"]
    assert [row["kind"] for row in table(chapter)] == ["bad", "cosine", "other"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "cell, change, runs", [(0, "\n\nMore prose.", 0), (2, "\nprint('more')", 2)]
)
def test_a_changed_chapter_is_run_again_where_its_code_changed(chapter, cell, change, runs):
    cells = ["# 1 · Small\n\nIs it?", (PARAMETERS, "parameters"), BODY]
    sweep(chapter, "-g", "count=1,2")
    before = {path: path.stat().st_mtime_ns for path in (folder(chapter) / "points").glob("*.json")}
    cells[cell] += change
    notebook(chapter, cells)
    done = sweep(chapter, "-g", "count=2,1")
    assert done.code == 0 and len(table(chapter)) == 2
    assert sum(path.stat().st_mtime_ns > then for path, then in before.items()) == runs
    assert (f"{runs} points of other code" in done.err, "nothing is left to run" in done.err) == (
        runs > 0,
        runs == 0,
    )


@pytest.mark.slow
def test_a_name_belongs_to_one_chapter_and_one_process(chapter):
    sweep(chapter, "-g", "count=1")
    notebook(chapter.parent / "02_other.ipynb", ["# 2", (PARAMETERS, "parameters"), BODY])
    other = nnbook("sweep", "02", *where(chapter), "--name", "s", "-g", "count=1")
    assert other.code == 2 and "is one of 01_small: give another --name" in other.err
    running = started(chapter, "-g", "pause=20.5")
    until = time.time() + 30
    while time.time() < until and (done := sweep(chapter, "-g", "count=1")).code == 0:
        time.sleep(0.2)
    running.send_signal(signal.SIGINT)
    assert running.wait(20) == 130
    assert done.code == 1 and "sweep 's' is running" in done.err


@pytest.mark.slow
def test_kills_at_any_moment_lose_no_point_and_double_none(chapter):
    grid = ["-g", "count=1,2,3,4,5", "-g", "exponent=-2,-4", "-g", "pause=0.1", "--jobs", "2"]
    random.seed(0)
    for _ in range(4):
        running = started(chapter, *grid)
        time.sleep(random.uniform(3, 9))
        running.kill()
        running.wait()
    assert sweep(chapter, *grid).code == 0
    rows = table(chapter)
    assert len(rows) == 10 == len({(row["count"], row["exponent"]) for row in rows})
    assert all(
        row["status"] == "done" and row["neighbors"] == str(10 * int(row["count"])) for row in rows
    )
    assert not list(folder(chapter).glob("**/.*.part"))


@pytest.mark.slow
@pytest.mark.parametrize("end, code", [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_no_worker_and_no_kernel_outlives_the_sweep(chapter, end, code):
    before = set(kernels(chapter))
    running = started(chapter, "-g", "pause=60.0,61.0", "--jobs", "2")
    until = time.time() + 40
    while (
        time.time() < until
        and sum("ipykernel" in line for line in set(kernels(chapter)) - before) < 2
    ):
        time.sleep(0.2)
    time.sleep(1)
    running.send_signal(end)
    said = running.communicate(timeout=30)[1]
    assert running.returncode == code and "Traceback" not in said
    until = time.time() + 15
    while time.time() < until and set(kernels(chapter)) - before:
        time.sleep(0.2)
    assert set(kernels(chapter)) - before == set()


@pytest.mark.slow
@pytest.mark.parametrize(
    "largest, kept", [(40_000, 2), (10_000, 0)]
)  # bytes: the sweep's page is larger, a point's
def test_a_full_disk_is_said_and_the_next_start_goes_on(chapter, largest, kept):
    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))

    short = started(chapter, "-g", "count=1,2", preexec_fn=small_files)
    said = short.communicate(timeout=60)[1]
    assert (short.returncode, "File too large" in said, "Traceback" in said) == (1, True, False), (
        said
    )
    assert len(list(folder(chapter).glob("points/*.json"))) == kept and not list(
        folder(chapter).glob("**/.*.part")
    )
    assert sweep(chapter, "-g", "count=1,2").code == 0
    assert [row["status"] for row in table(chapter)] == ["done", "done"]


@pytest.mark.slow
def test_a_dask_cluster_leaves_the_same_table(chapter):
    from distributed import LocalCluster

    grid = ["-g", "count=1,2,3", "-g", "kind=cosine,bad"]
    assert sweep(chapter, *grid).code == 1
    here = measured(chapter)
    for path in (folder(chapter) / "points").iterdir():
        path.unlink()
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        done = sweep(chapter, *grid, "--scheduler", cluster.scheduler_address)
    assert done.code == 1 and measured(chapter) == here and len(here) == 6


@pytest.mark.slow
def test_a_scheduler_that_is_not_there_is_refused_by_name(chapter):
    done = sweep(chapter, "-g", "count=1", "--scheduler", "nothing-of-the-kind")
    assert done.code == 1 and "--scheduler 'nothing-of-the-kind' doesn't answer" in done.err


@pytest.mark.slow
def test_a_cell_that_takes_too_long_is_a_failed_point(chapter):
    assert sweep(chapter, "-g", "pause=0.0,30.0", "--timeout", "2").code == 1
    assert [(row["pause"], row["status"]) for row in table(chapter)] == [
        ("0.0", "done"),
        ("30.0", "failed"),
    ]
    assert "timed out" in table(chapter)[1]["error"] and "2 seconds" in table(chapter)[1]["error"]


@pytest.mark.slow
def test_a_kernel_that_dies_is_a_failed_point_with_what_it_did(chapter):
    dies = "import os\nif count == 2:\n    os._exit(3)"
    notebook(chapter, ["# 1", (PARAMETERS, "parameters"), "print('got this' + ' far')", dies, BODY])
    assert sweep(chapter, "-g", "count=1,2,3").code == 1
    assert [row["status"] for row in table(chapter)] == ["done", "failed", "done"]
    partial = folder(chapter) / "points" / f"01_{table(chapter)[1]['point']}.ipynb"
    assert "DeadKernelError" in table(chapter)[1]["error"] and "got this far" in partial.read_text()


def test_workers_take_one_gpu_each(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-7")
    with one_gpu():
        first = os.environ["CUDA_VISIBLE_DEVICES"]
        code = "import os; from nnbook.sweep.worker import one_gpu\n"
        code += "with one_gpu(): print(os.environ['CUDA_VISIBLE_DEVICES'])"
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": "3,GPU-7"}
        other = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert (first, other.stdout.strip()) == ("3", "GPU-7")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3,GPU-7"


def test_the_best_is_the_largest_share_and_the_fewest_of_others():
    def measured(value, unit):
        return {
            "parameters": {"p": value},
            "error": "",
            "figures": {"f": {"value": value, "unit": unit}},
        }

    for unit, winner in (("1", 3.0), ("dB", 3.0), ("", 1.0), ("s", 1.0), ("bit", 1.0)):
        records = [measured(value, unit) for value in (2.0, 3.0, 1.0)]
        assert best(records, "f")["parameters"] == {"p": winner}
    equals = [
        measured(value, "1") | {"figures": records[0]["figures"]} for value in (3.0, 1.0, 2.0)
    ]
    assert best(equals, "f")["parameters"] == {"p": 1.0}
    assert (
        main_metric(records) == "f"
        and varied([each["parameters"] for each in records]) == ["p"]
        and best([], "f") is None
    )


def test_a_metric_that_isnt_recorded_is_refused_after_the_first_point(chapter):
    done = sweep(chapter, "-g", "count=1,2,3", "--metric", "nonsense")
    assert (
        done.code == 2
        and "'nonsense' isn't among the figures that the chapter records: test_accuracy" in done.err
    )
    assert len(table(chapter)) < 3


@pytest.mark.parametrize(
    "text, said",
    [
        ("count,count\n1,2\n", "names a column twice"),
        ("count;kind\n1;a\n", "columns are apart by commas"),
        ("count,kind\n1\n", "row 1 has more or fewer cells"),
        ("count\n1,2\n", "row 1 has more or fewer cells"),
        ("count\n", "has no rows"),
    ],
)
def test_a_table_that_cant_be_read_is_refused(chapter, tmp_path, text, said):
    (tmp_path / "points.csv").write_text(text)
    done = sweep(chapter, "--table", str(tmp_path / "points.csv"))
    assert done.code == 2 and said in done.err and not folder(chapter).exists()


def test_the_pareto_front_is_what_nothing_beats():
    points = [(3, 7), (1, 1), (2, 5), (2, 6), (5, 7), (4, 9)]
    beaten = [
        any(c <= cost and g >= gain and (c, g) != (cost, gain) for c, g in points)
        for cost, gain in points
    ]
    assert beaten == [
        number not in pareto(*map(list, zip(*points, strict=True))) for number in range(6)
    ]
