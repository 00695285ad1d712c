"""What is stated of pictures as samples: pixels in, colours out, with influence cones."""

import time
from functools import cache
from typing import NamedTuple

import torch

from claims.memory import within
from claims.table import claim
from nnbook.benchmarks import reference_loop
from nnlib.datasets import load_photo
from nnlib.image_codec import codec
from nnlib.neighbors.regressor import DynamicRegressor


class Run(NamedTuple):
    """Seconds of a fit and of predicting every pixel, which samples became centers, and dB of the picture."""

    fit: float
    predict: float
    chosen: torch.Tensor
    decibels: float


def samples() -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and columns [196608, 2], in pixels, of a picture of 384 x 512, and their RGB [196608, 3] in 0 ... 1."""
    return codec.samples(load_photo("astronaut")[:384, :512])


def regressor() -> DynamicRegressor:
    """At the published setting for pictures."""
    return DynamicRegressor(
        "influence_cone", influence_cone_factor=4.0, tolerance=0.2, seed=0, progress=False
    )


@cache
def race() -> tuple[Run, Run]:
    """Ours and the plain loop at the published setting, on a picture of 384 x 512 pixels."""
    x, y = samples()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    model = regressor()
    model.fit(x[:4000], y[:4000]).predict(x[:4000])
    start = time.perf_counter()
    model.fit(x, y)
    fitted = time.perf_counter()
    ours = model.predict(x)
    ended = time.perf_counter()
    centers, values, chosen = reference_loop.fit_values(x, y, order, factor=4.0, tolerance=0.2)
    plain_fitted = time.perf_counter()
    plain = torch.cat(
        [reference_loop.predict_values(rows, centers, values, 4.0) for rows in x.split(256)]
    )
    plain_ended = time.perf_counter()
    return (
        Run(fitted - start, ended - fitted, model.indices_, _decibels(ours, y)),
        Run(plain_fitted - ended, plain_ended - plain_fitted, chosen, _decibels(plain, y)),
    )


def _decibels(guess: torch.Tensor, y: torch.Tensor) -> float:
    return float(-10 * (guess - y).square().mean().log10())


def _faster(part: str, bar: float) -> tuple[str, bool]:
    ours, plain = (getattr(run, part) for run in race())
    return (
        f"{plain / ours:.1f} times faster: {ours:.2f} s against {plain:.1f} s",
        plain / ours >= bar,
    )


@claim(
    "a picture's fit, influence cones, against the plain loop in one run",
    "at least 8 times faster",
    "slow",
)
def fit_speed():
    return _faster("fit", 8)


@claim(
    "predicting all its 196,608 pixels, against the plain loop in one run",
    "at least 20 times faster",
    "slow",
)
def predict_speed():
    return _faster("predict", 20)


@claim("a picture's centers, ours and the plain loop's", "within 5 %", "slow")
def centers():
    ours, plain = (run.chosen for run in race())
    same = "the same in the same order" if torch.equal(ours, plain) else "others"
    return f"{len(ours):,} and {len(plain):,}, {same}", abs(len(ours) / len(plain) - 1) <= 0.05


@claim("the picture they give back, ours and the plain loop's", "within 0.3 dB", "slow")
def decibels():
    ours, plain = (run.decibels for run in race())
    return f"{ours:.2f} and {plain:.2f} dB", abs(ours - plain) <= 0.3


@claim(
    "extra memory of both, and of queries with 100,000 centers in reach", "at most 256 MB", "slow"
)
def memory():
    return within("fit picture", "attend crowded")
