"""The page of a sweep: plots of a metric against parameters and cost, and a table of the points."""

import base64
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from pandas.api.types import is_bool_dtype, is_integer_dtype, is_numeric_dtype

from nnbook.plotting import figures
from nnbook.results import PERCENT
from nnbook.site.rendering import static, write_html
from nnbook.sweep.records import best, main_metric, measured, more_is_better, order, value, varied
from nnbook.sweep.worker import Record

VALUE = ""  # the column of the metric: no parameter has this name
MAX_CELLS = 40  # along a side of a heatmap
MARKERS = "osD^vP"  # of the lines in one plot
COSTS = ("neighbors", "bits_per_pixel", "fit_seconds")


class Plot(NamedTuple):
    """A figure with its heading and a text in its place."""

    heading: str
    figure: plt.Figure
    alt: str

    def address(self) -> str:
        """Return the figure, which is closed, as a data URI."""
        svg = figures.svg(self.figure).encode()
        return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()


def write(folder: Path, records: list[Record], metric: str = "") -> Path:
    """Render a sweep's records as index.html in its folder; return the page's path."""
    records = sorted(records, key=order)
    names = varied([record["parameters"] for record in records])
    metric = main_metric(records, metric)
    recorded = dict.fromkeys(name for record in records for name in record["figures"])
    metrics = [name for name in recorded if not name.startswith("published_")]
    return write_html(
        folder / "index.html",
        "sweep.html.j2",
        title=folder.name,
        script=static("sweep.js"),
        records=records,
        names=names,
        metric=metric,
        metrics=sorted(metrics, key=lambda name: name != metric),
        winner=best(records, metric),
        plots=list(plots(records, names, metric)),
    )


def plots(records: list[Record], names: list[str], metric: str) -> Iterator[Plot]:
    """Yield every plot that the points allow; names: the parameters that vary."""
    done = measured(records, metric)
    if len(done) < 2:
        return
    table = _table(done, names, metric)
    words = metric.replace("_", " ")
    with plt.rc_context():
        figures.style()
        for name in names:
            yield Plot(f"{words} against {name}", *_against(table, name, metric))
        for one, other in combinations(names[:3], 2):
            if _is_grid(table, one, other):
                mean = ", mean over the others" if len(names) > 2 else ""
                heading = f"{words} over {one} and {other}{mean}"
                yield Plot(heading, *_heatmap(table, one, other, metric))
        costs = [c for c in COSTS if c != metric and len(measured(done, c)) == len(done)]
        for cost in costs[:1]:
            heading = f"{words} against {cost.replace('_', ' ')}"
            yield Plot(heading, *_front(done, cost, metric))


def _table(records: list[Record], names: list[str], metric: str) -> pd.DataFrame:
    """Return the varied parameters, as text unless all are numbers, and the metric as VALUE."""
    table = pd.DataFrame([{n: r["parameters"].get(n) for n in names} for r in records])
    for name in names:
        if is_bool_dtype(table[name]) or not is_numeric_dtype(table[name]):
            table[name] = [str(record["parameters"].get(name)) for record in records]
    table[VALUE] = _scaled(records, metric)
    return table


def _scaled(records: list[Record], metric: str) -> list[float]:
    factor = 100 if PERCENT.search(metric) else 1
    return [factor * value(record, metric) for record in records]


def _label(metric: str) -> str:
    return metric.replace("_", " ") + (", %" if PERCENT.search(metric) else "")


def _is_grid(table: pd.DataFrame, one: str, other: str) -> bool:
    """Return whether points fill most cells of a heatmap, as those of a grid do."""
    n_rows = table[one].nunique()
    n_columns = table[other].nunique()
    n_filled = len(table[[one, other]].drop_duplicates())
    return max(n_rows, n_columns) <= MAX_CELLS and n_filled > n_rows * n_columns / 2


def _against(table: pd.DataFrame, name: str, metric: str) -> tuple[plt.Figure, str]:
    figure, axis = plt.subplots(figsize=(4.6, 3.1))
    is_number = is_numeric_dtype(table[name])
    for marker, (label, rows) in zip(MARKERS, _lines(table, name), strict=False):
        rows = rows.sort_values(name, kind="stable")
        is_line = is_number and rows[name].is_unique
        line = "-" if is_line else ""
        axis.plot(rows[name], rows[VALUE], marker + line, label=label, alpha=1 if is_line else 0.7)
        if label:
            axis.legend(fontsize=8)
    axis.set(xlabel=name, ylabel=_label(metric))
    if is_integer_dtype(table[name]):
        axis.xaxis.get_major_locator().set_params(integer=True)
    elif not is_number and table[name].nunique() > 3:
        axis.tick_params(axis="x", rotation=20)
    medians = table.groupby(name)[VALUE].median()[:12]
    words = "; ".join(f"{each}: {median:.4g}" for each, median in medians.items())
    return figure, f"{_label(metric)} against {name}, median at {words}"


def _lines(table: pd.DataFrame, name: str) -> list[tuple[str, pd.DataFrame]]:
    """Return the points of each value of the only other parameter, if they are few; else all."""
    others = [other for other in table if other not in (name, VALUE)]
    if len(others) == 1 and table[others[0]].nunique() <= len(MARKERS):
        if _is_grid(table, name, others[0]):
            return [(f"{others[0]} {each}", rows) for each, rows in table.groupby(others[0])]
    return [("", table)]


def _heatmap(table: pd.DataFrame, one: str, other: str, metric: str) -> tuple[plt.Figure, str]:
    grid = table.pivot_table(index=one, columns=other, values=VALUE, aggfunc="mean")
    n_rows, n_columns = grid.shape
    width = np.clip(0.62 * n_columns + 2.4, 3.4, 12)
    height = np.clip(0.42 * n_rows + 1.2, 2.2, 12)
    figure, axis = plt.subplots(figsize=(width, height))
    image = axis.imshow(grid, cmap="cividis", aspect="auto")
    axis.set_xticks(range(n_columns), grid.columns, rotation=30 if n_columns > 4 else 0)
    axis.set_yticks(range(n_rows), grid.index)
    axis.set(xlabel=other, ylabel=one)
    axis.spines[:].set_visible(False)
    figure.colorbar(image, label=_label(metric))
    middle = (np.nanmin(grid) + np.nanmax(grid)) / 2
    digits = ".2f" if PERCENT.search(metric) else ".4g"
    for (row, column), cell in np.ndenumerate(grid if grid.size <= 120 else np.empty((0, 0))):
        if not np.isnan(cell):
            style = {"ha": "center", "va": "center", "fontsize": 8}
            style["color"] = "black" if cell > middle else "white"
            axis.text(column, row, f"{cell:{digits}}", **style)
    words = f"mean over the other parameters, {one} down and {other} across"
    return figure, f"Heatmap of {_label(metric)}, {words}"


def _front(records: list[Record], cost: str, metric: str) -> tuple[plt.Figure, str]:
    x = np.array(_scaled(records, cost))
    y = np.array(_scaled(records, metric))
    front = pareto(x, y if more_is_better(records, metric) else -y)
    figure, axis = plt.subplots(figsize=(5.2, 3.4))
    axis.plot(x, y, "o", color="0.65", label="points")
    style = {"drawstyle": "steps-post", "color": figures.COLOURS[5]}
    axis.plot(x[front], y[front], "D-", label="nothing with less is as good", **style)
    axis.set(xlabel=_label(cost), ylabel=_label(metric))
    axis.legend(fontsize=8)
    words = "; ".join(f"{x[number]:.4g}: {y[number]:.4g}" for number in front[:12])
    return figure, f"{_label(metric)} against {_label(cost)}, the Pareto front at {words}"


def pareto(costs: Sequence[float], gains: Sequence[float]) -> list[int]:
    """Return the numbers of the points that no other one dominates, cheapest first."""
    points = pd.DataFrame({"cost": costs, "gain": gains}, dtype=float)
    points = points.sort_values(["cost", "gain"], ascending=[True, False])
    cheaper = points.gain.cummax().shift(fill_value=-np.inf)
    return points.index[points.gain > cheaper].tolist()
