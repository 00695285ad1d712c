"""What is stated of the book as a whole."""

import csv
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from claims.table import NotMeasured, claim
from nnbook.results import shown

ROOT = Path(__file__).parents[1]
SHOWN = ("neighbors", "train_accuracy", "test_accuracy")


@claim("the figures in the README are the recorded ones", "all of them", "test")
def readme_figures():
    words, missing, count = (ROOT / "README.md").read_text(encoding="utf-8"), [], 0
    with open(ROOT / "reports/recorded/01_invariant_classification.csv", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["metric"].removeprefix("published_") in SHOWN:
                told, count = shown(row["metric"], float(row["value"]), row["unit"]), count + 1
                missing += [] if told in words else [f"{row['run']} {row['metric']} {told}"]
    return f"{count - len(missing)} of {count}" + f", not {', '.join(missing)}" * bool(missing), not missing


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
    return f"{seconds:.0f} s, exit status {done.returncode}", done.returncode == 0 and seconds <= 300


@claim("make test: lint, tests, and every notebook under nbval", "at most 10 min on 2 cores", "slow")
def test_time():
    if not (ROOT / "Makefile").exists():
        raise NotMeasured("the Makefile is part of a checkout")
    start = time.perf_counter()
    done = subprocess.run(["make", "test"], cwd=ROOT, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    return f"{seconds:.0f} s, exit status {done.returncode}", done.returncode == 0 and seconds <= 600
