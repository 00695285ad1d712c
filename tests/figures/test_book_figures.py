"""What is stated of the book as a whole."""

import subprocess
import sys
import time

from figures.table import figure

from nnbook.notebooks import ROOT

REFUSALS = "refused named error broken truncated foreign fails before_fit missing"


def run(*command: str) -> subprocess.CompletedProcess:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@figure("bad input: each a named error, nothing half-written", "all tests pass", "slow")
def test_bad_input():
    words = " or ".join(REFUSALS.split())
    done = run(sys.executable, "-m", "pytest", "-q", "-k", words, "tests")
    return done.stdout.strip().splitlines()[-1].strip("= "), done.returncode == 0


def within(minutes: int, *command: str) -> tuple[str, bool]:
    start = time.perf_counter()
    code = run(*command).returncode
    seconds = time.perf_counter() - start
    return f"{seconds:.0f} s, exit status {code}", code == 0 and seconds <= 60 * minutes


@figure("the whole book, headless, on the shipped data", "at most 5 min on 2 cores", "slow")
def test_book_time(tmp_path):
    return within(5, sys.executable, "-m", "nnbook", "run", "--reports", str(tmp_path))


@figure("make test: lint, tests, notebooks under nbval", "at most 6 min on 2 cores", "slow")
def test_test_time():
    return within(6, "make", "test")
