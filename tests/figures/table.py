"""Figures that the project states: a test each, which returns what it measured and if it is met."""

import functools
import textwrap

import pytest
import torch

from nnlib.errors import DataError

TAGS = {
    "test": "seconds",
    "slow": "minutes",
    "data": "needs a set that isn't shipped",
    "gpu": "needs a GPU",
}
WIDTHS = (48, 34, 48, 14, 7, 4)


class Figure:
    """What a test measures, the bar in words, and its tag; `measured` is set when the test ends."""

    def __init__(self, what: str, bar: str, tag: str):
        self.what = what
        self.bar = bar
        self.tag = tag
        self.measured = ""


def figure(what: str, bar: str, tag: str = "test"):
    """Make a function that returns (measured, met) a test and a row of the table.

    `what` may name the test's parameters in braces. Tags but "test" are pytest's markers too. What
    needs a GPU or a data set that isn't here is skipped, and the table says why.
    """

    def decorate(measure):
        @functools.wraps(measure)
        def test(**parameters):
            if tag == "gpu" and not torch.cuda.is_available():
                pytest.skip("no GPU here")
            row.measured = ""
            try:
                row.measured, met = measure(**parameters)
            except DataError as error:
                pytest.skip(str(error))
            if not met:
                pytest.fail(f"{row.measured}; the bar: {bar}", pytrace=False)

        row = test.figure = Figure(what, bar, tag)
        return test if tag == "test" else getattr(pytest.mark, tag)(test)

    return decorate


def line(*cells: str) -> str:
    """One row of the table, its cells wrapped to columns."""
    pairs = list(zip(cells, WIDTHS, strict=True))
    wrapped = [textwrap.wrap(cell, width) or [""] for cell, width in pairs]
    height = max(map(len, wrapped))
    rows = zip(*(lines + [""] * (height - len(lines)) for lines in wrapped), strict=True)
    padded = ["  ".join(map(str.ljust, row, WIDTHS)) for row in rows]
    return "\n".join(row.rstrip() for row in padded)
