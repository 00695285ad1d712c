"""The table of every figure that the project states: its bar, what was measured now, and whether it is met."""

import textwrap
import time
import traceback
from collections.abc import Callable
from typing import NamedTuple

TAGS = {
    "test": "seconds",
    "slow": "minutes",
    "data": "needs a set that isn't shipped",
    "gpu": "needs a GPU",
}


class Claim(NamedTuple):
    """A row: `measure()` returns the figure in words and whether it meets the bar."""

    what: str
    bar: str
    tag: str
    measure: Callable[[], tuple[str, bool]]


class NotMeasured(Exception):
    """Why a row can't be measured here."""


CLAIMS: list[Claim] = []


def claim(what: str, bar: str, tag: str):
    """Make a function a row of the table; it returns (measured, met) or raises NotMeasured."""
    assert tag in TAGS, f"tag={tag!r}: give one of {', '.join(TAGS)}"

    def enter(measure):
        CLAIMS.append(Claim(what, bar, tag, measure))
        return measure

    return enter


def report(claims: list[Claim], show=print) -> bool:
    """Measure rows one after the other and print each as soon as it is known; True where none was missed."""
    missed = 0
    for row in claims:
        started = time.perf_counter()
        try:
            measured, met = row.pairwise()
            verdict = "met" if met else "MISSED"
        except NotMeasured as reason:
            measured, verdict = f"not measured: {reason}", "—"
        except Exception as error:  # a row that breaks is a row that is missed
            traceback.print_exc()
            measured, verdict = f"{type(error).__name__}: {error}", "MISSED"
        missed += verdict == "MISSED"
        show(line(row, measured, f"{verdict} ({time.perf_counter() - started:.0f} s)"))
    return not missed


def line(row: Claim | None, measured: str, verdict: str) -> str:
    """One row, its cells wrapped to columns."""
    widths = (48, 34, 48, 14, 4)
    cells = (
        (row.what, row.bar, measured, verdict, row.tag)
        if row
        else ("what", "bar", measured, verdict, "tag")
    )
    wrapped = [
        textwrap.wrap(cell, width) or [""] for cell, width in zip(cells, widths, strict=True)
    ]
    height = max(map(len, wrapped))
    columns = [lines + [""] * (height - len(lines)) for lines in wrapped]
    rows = zip(*columns, strict=True)
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
        for cells in rows
    )
