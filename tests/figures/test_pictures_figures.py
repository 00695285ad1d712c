"""What is stated of pictures as samples: pixels in, colours out, with influence cones."""

import time
from functools import cache
from typing import NamedTuple

import torch
from figures.memory import picture_regressor, picture_samples, within_256
from figures.table import figure

from nnbook.benchmarks import reference_loop


class Run(NamedTuple):
    """Seconds of a fit and of predicting every pixel, the samples that became centers, and dB."""

    fit: float
    predict: float
    chosen: torch.Tensor
    decibels: float


@cache
def race() -> tuple[Run, Run]:
    """Ours and the plain loop at the published setting, on a picture of 384 x 512 pixels."""
    x, y = picture_samples()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    model = picture_regressor()
    model.fit(x[:4000], y[:4000]).predict(x[:4000])
    times = [time.perf_counter()]
    model.fit(x, y)
    times.append(time.perf_counter())
    ours = model.predict(x)
    times.append(time.perf_counter())
    centers, values, chosen = reference_loop.fit_values(x, y, order, factor=4.0, tolerance=0.2)
    times.append(time.perf_counter())
    parts = [reference_loop.predict_values(rows, centers, values, 4.0) for rows in x.split(256)]
    plain = torch.cat(parts)
    times.append(time.perf_counter())
    seconds = [after - before for before, after in zip(times, times[1:], strict=False)]
    return (
        Run(seconds[0], seconds[1], model.indices_, decibels(ours, y)),
        Run(seconds[2], seconds[3], chosen, decibels(plain, y)),
    )


def decibels(guess: torch.Tensor, y: torch.Tensor) -> float:
    return float(-10 * (guess - y).square().mean().log10())


def faster(ours: float, plain: float, bar: float) -> tuple[str, bool]:
    words = f"{plain / ours:.1f} times faster: {ours:.2f} s against {plain:.1f} s"
    return words, plain / ours >= bar


@figure("a picture's fit, influence cones, against the plain loop", "8 times faster", "slow")
def test_fit_speed():
    ours, plain = race()
    return faster(ours.fit, plain.fit, 8)


@figure("predicting its 196,608 pixels, against the plain loop", "20 times faster", "slow")
def test_predict_speed():
    ours, plain = race()
    return faster(ours.predict, plain.predict, 20)


@figure("a picture's centers, ours and the plain loop's", "within 5 %", "slow")
def test_centers():
    ours, plain = (run.chosen for run in race())
    same = "the same in the same order" if torch.equal(ours, plain) else "others"
    return f"{len(ours):,} and {len(plain):,}, {same}", abs(len(ours) / len(plain) - 1) <= 0.05


@figure("the picture they give back, ours and the plain loop's", "within 0.3 dB", "slow")
def test_decibels():
    ours, plain = (run.decibels for run in race())
    return f"{ours:.2f} and {plain:.2f} dB", abs(ours - plain) <= 0.3


@figure("extra memory of both, and of 100,000 centers in one cone", "at most 256 MB", "slow")
def test_memory():
    return within_256("fit picture", "attend crowded")
