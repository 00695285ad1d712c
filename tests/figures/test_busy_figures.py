"""What a computation takes beside other processes that keep every core busy."""

import os
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
from figures.table import figure

from nnlib import image_codec
from nnlib.datasets import load, load_photo, load_text
from nnlib.language import ContextModel
from tests.published import PublishedClassifier

ROUNDS = 5
MOST = 3  # times the quiet time; beside one process a core, a fair share alone is 2


@contextmanager
def busy_cores():
    """A process without end for each core."""
    endless = [sys.executable, "-c", "while True: pass"]
    processes = [subprocess.Popen(endless) for _ in range(os.cpu_count())]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def encode():
    photo = load_photo("chelsea")[:160, :240].contiguous()
    return lambda: image_codec.encode(photo, steps=60)


def fit():
    data = load("mnist")
    x = data.train_images[:10_000].flatten(1).float() / 255
    y = data.train_labels[:10_000]
    model = PublishedClassifier(progress=False)
    return lambda: model.fit(x, y)


def generate():
    model = ContextModel().fit(load_text("alice"))
    return lambda: model.generate("Alice ", 400)


def seconds(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@pytest.mark.parametrize("make", [encode, fit, generate], ids=lambda make: make.__name__)
@figure("{make.__name__} beside a busy process a core, over quiet", f"{MOST} times at most", "slow")
def test_busy_cores(make):
    work = make()
    work()
    quiet, busy = [], []
    for _ in range(ROUNDS):
        quiet.append(seconds(work))
        with busy_cores():
            busy.append(seconds(work))
    ratio = statistics.median(busy) / statistics.median(quiet)
    words = f"{ratio:.1f}: {statistics.median(busy):.2f} s against {statistics.median(quiet):.2f} s"
    return f"{words} (medians of {ROUNDS})", ratio <= MOST
