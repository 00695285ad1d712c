"""Tables of measurements in reports/recorded/, each row with its command, date and hardware."""

from collections.abc import Iterable

import pandas as pd

from nnbook.notebooks import ROOT
from nnbook.results import origin
from nnlib._common.files import atomic_write

RECORDED = ROOT / "reports" / "recorded"
SEEDS = (0, 1, 2)


def save(name: str, rows: Iterable[dict], command: str) -> None:
    """Write a table whole, with where and when it was measured."""
    table = pd.DataFrame(rows).assign(**origin(ROOT), command=command)
    with atomic_write(RECORDED / f"{name}.csv") as path:
        table.to_csv(path, index=False, float_format="%.5g")


def read(name: str) -> pd.DataFrame:
    """Read a table as it was last recorded."""
    return pd.read_csv(RECORDED / f"{name}.csv")
