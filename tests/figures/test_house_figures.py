"""How small and plain the code is to be."""

import statistics
import subprocess
import sys
import time

import pytest
from figures.table import figure
from house.test_budgets import (
    FOLDERS,
    file_lengths,
    function_lengths,
    tokens_a_line,
)
from house.test_faces import files_on_the_way_of_predict

from nnbook.notebooks import ROOT

BARS = {"core": 4000, "image_codec": 1200, "language": 1200, "training": 1200, "nnbook": 3200}


@pytest.mark.parametrize("name", BARS)
@figure("lines of {name}, blank ones and docstrings too", "1,200; core 4,000, nnbook 3,200", "slow")
def test_lines(name):
    lines = sum(file_lengths(*FOLDERS[name]).values())
    return f"{lines:,}", lines <= BARS[name]


@pytest.mark.parametrize("package", ["nnlib", "nnbook"])
@figure("{package}: tokens a code line", "at most 10", "slow")
def test_tokens(package):
    tokens = tokens_a_line(package)
    return f"{tokens:.1f}", tokens <= 10


@pytest.mark.parametrize("package", ["nnlib", "nnbook"])
@figure("{package}: median file, longest function", "200 lines, 40 without docstring", "slow")
def test_lengths(package):
    median = statistics.median(file_lengths(package).values())
    longest = max(function_lengths(package).values())
    return f"{median:.0f}, {longest}", median <= 200 and longest <= 40


@figure("files on the way of DynamicClassifier.predict", "at most 9", "slow")
def test_predict_files():
    files = files_on_the_way_of_predict()
    return f"{len(files)}", len(files) <= 9


def import_seconds(module: str) -> float:
    times = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", f"import {module}"], cwd=ROOT, check=True)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


@figure("import nnlib, over import torch", "at most 1.5", "slow")
def test_import_time():
    ratio = import_seconds("nnlib") / import_seconds("torch")
    return f"{ratio:.2f}", ratio <= 1.5
