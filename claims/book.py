"""What is stated of the book as a whole."""

import csv
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from claims.table import NotMeasured, claim
from nnbook.benchmarks import depth
from nnbook.plotting import frontier_figures
from nnbook.results import shown

ROOT = Path(__file__).parents[1]
SHOWN = re.compile(
    r"(published_)?(neighbors|train_accuracy|test_accuracy)$|\d_(\w+_)?psnr_db$|(en|de)code_seconds$"
)
MEAN = re.compile(r"\d+\.\d\d ± \d\.\d\d %")
ALONE = re.compile(r"(?<!± )\b\d\d\.\d\d %")  # without a spread, and no spread itself


@claim("the figures in the README are the recorded ones", "all of them", "test")
def readme_figures():
    words, rows = (ROOT / "README.md").read_text(encoding="utf-8"), []
    for chapter in ("01_invariant_classification", "02_image_compression"):
        with open(ROOT / f"reports/recorded/{chapter}.csv", newline="", encoding="utf-8") as file:
            rows += [
                row
                for row in csv.DictReader(file)
                if SHOWN.search(row["metric"]) and row["chapter"] == chapter
            ]
    missing = [row for row in rows if _told(row) not in words]
    told = ", ".join(f"{row['run']} {row['metric']} {_told(row)}" for row in missing)
    return f"{len(rows) - len(missing)} of {len(rows)}" + f", not {told}" * bool(
        missing
    ), not missing


@claim(
    "the README's means of three seeds are recorded ones",
    "all of them, and each track's and stack's last",
    "test",
)
def readme_means():
    means, wanted = [], []
    for table in frontier_figures.recorded().values():
        means += [
            _mean(row.test, row.spread)
            for row in table[table.method == "learned centers"].itertuples()
        ]
        wanted.append(means[-1])
    for _, row in depth.gains(depth.recorded()).iterrows():
        ends = ("first", "last") if row["stack"] == "published" else ("last",)
        wanted += [_mean(row[end], row[f"{end}_spread"]) for end in ends]
    found = set(MEAN.findall((ROOT / "README.md").read_text(encoding="utf-8")))
    absent, foreign = sorted(set(wanted) - found), sorted(found - {*means, *wanted})
    told = f"not there: {', '.join(absent)}; " * bool(
        absent
    ) + f"not recorded: {', '.join(foreign)}" * bool(foreign)
    return told or f"{len(found)} of {len(found)}", not told


def _mean(mean: float, spread: float) -> str:
    return f"{100 * mean:.2f} ± {100 * spread:.2f} %"


def _told(row: dict[str, str]) -> str:
    value = float(row["value"])
    if row["metric"].endswith("psnr_db"):
        return f"{value:.2f}"
    return (
        f"{value:.3g} s"
        if row["metric"].endswith("code_seconds")
        else shown(row["metric"], value, row["unit"])
    )


@claim("the README's other figures beside those means are recorded ones", "all of them", "test")
def readme_beside():
    known = {
        f"{100 * test:.2f} %"
        for table in frontier_figures.recorded().values()
        for test in table.test
    }
    with open(
        ROOT / "reports/recorded/01_invariant_classification.csv", newline="", encoding="utf-8"
    ) as file:
        known |= {_told(row) for row in csv.DictReader(file) if SHOWN.search(row["metric"])}
    words = (ROOT / "README.md").read_text(encoding="utf-8")
    found = ALONE.findall(
        words[words.index("| MNIST, then others") : words.index("Depth pays where")]
    )
    foreign = sorted(set(found) - known)
    return f"{len(found) - len(foreign)} of {len(found)}" + f", not {', '.join(foreign)}" * bool(
        foreign
    ), not foreign


@claim("bad input: each a named error, nothing half-written", "all tests pass", "slow")
def bad_input():
    words = "refused or named or error or broken or truncated or foreign or fails or before_fit or missing"
    command = [sys.executable, "-m", "pytest", "-q", "-k", words, "tests"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip().splitlines()[-1].strip("= "), done.returncode == 0


@claim("the whole book, headless, on the shipped data", "at most 5 min on 2 cores", "slow")
def book_time():
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        command = [sys.executable, "-m", "nnbook", "run", "--reports", folder]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - start
    return (
        f"{seconds:.0f} s, exit status {done.returncode}",
        done.returncode == 0 and seconds <= 300,
    )


@claim(
    "make test: lint, tests, and every notebook under nbval", "at most 10 min on 2 cores", "slow"
)
def test_time():
    if not (ROOT / "Makefile").exists():
        raise NotMeasured("the Makefile is part of a checkout")
    start = time.perf_counter()
    done = subprocess.run(["make", "test"], cwd=ROOT, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    return (
        f"{seconds:.0f} s, exit status {done.returncode}",
        done.returncode == 0 and seconds <= 600,
    )
