"""The page of a sweep: its plots, and a table of its points that can be sorted and filtered, offline.

What a sweep looks like: a metric against each parameter, over two of them, and against what it costs.
"""

import base64
import io
from collections.abc import Iterator, Sequence
from html import escape
from itertools import combinations
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from nnbook.plotting import figures
from nnbook.results import PERCENT, counted, label, shown
from nnbook.site.rendering import static, write_html
from nnbook.sweep import summary
from nnbook.sweep.runner import (
    Record,
    best,
    main_metric,
    more_is_better,
    order,
    told,
    value,
    varied,
)


def write(folder: Path, records: list[Record], metric: str = "") -> Path:
    """Render a sweep's records as index.html in its folder; returns the page's path."""
    records = sorted(records, key=order)
    return write_html(
        folder / "index.html",
        "sweep.html.j2",
        title=folder.name,
        heading=f"Sweep {folder.name}",
        script=static("sweep.js"),
        **_parts(records, main_metric(records, metric)),
    )


def _parts(records: list[Record], metric: str) -> dict[str, str]:
    names = varied(records)
    metrics = list(
        dict.fromkeys(
            name for r in records for name in r["figures"] if not name.startswith("published_")
        )
    )
    metrics.sort(key=lambda name: name != metric)
    columns = ["status", *names, *metrics, "seconds"]
    heads = "".join(
        f'<th data-name="{escape(c)}"><button>{escape(label(c))}</button></th>' for c in columns
    )
    failed = sum(bool(record["error"]) for record in records)
    winner = best(records, metric)
    text = (
        f"{counted(len(records) - failed, 'point')} done"
        + f', <span class="failed">{failed} failed</span>' * bool(failed)
    )
    if winner:
        figure = shown(metric, **winner["figures"][metric])
        text += f". Best {escape(label(metric))}: <b>{figure}</b> at {escape(told(winner, names))}"
    return {
        "told": text + ".",
        "facts": _facts(records, names),
        "plots": "".join(_plate(*plot) for plot in summary.sweep_figures(records, names, metric)),
        "example": escape(f"{names[0]}={records[0]['parameters'][names[0]]}" if names else "done"),
        "heads": heads,
        "rows": "".join(_row(record, names, metrics) for record in records),
    }


def _facts(records: list[Record], names: list[str]) -> str:
    """What is the same in all points, and what ran them."""
    rest = [
        told(record, [name for name in record["parameters"] if name not in names])
        for record in records[:1]
    ]
    lines = [": ".join(filter(None, [record["chapter"], *rest])) for record in records[:1]]
    for fact in ("processor", "GPU", "versions", "commit"):
        found = sorted({record.get("origin", {}).get(fact, "") for record in records} - {""})
        lines += [f"{fact}: {'; '.join(found)}"] if found else []
    return "<br>".join(map(escape, lines))


def _row(record: Record, names: list[str], metrics: list[str]) -> str:
    page = f"points/{record['chapter'][:2]}_{record['point']}.html"
    status = '<span class="failed">failed</span>' if record["error"] else "done"
    link = f'{status} · <a href="{page}">notebook</a>' if "origin" in record else status
    error = f'<div class="failed">{escape(record["error"][:200])}</div>' if record["error"] else ""
    cells = f'<td data-value="{"failed" if record["error"] else "done"}">{link}{error}</td>'
    for name in names:
        each = record["parameters"].get(name, "")
        cells += f'<td data-value="{escape(str(each))}">{escape(str(each))}</td>'
    for name in metrics:
        number = value(record, name)
        figure = shown(name, **record["figures"][name]) if number is not None else "–"
        cells += f'<td data-value="{"" if number is None else number}">{escape(figure)}</td>'
    return f'<tr>{cells}<td data-value="{record.get("seconds", "")}">{record.get("seconds", 0):.1f} s</td></tr>'


def _plate(heading: str, figure, alt: str) -> str:
    import matplotlib.pyplot as plt

    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    plt.close(figure)
    address = "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode()
    image = f'<img src="{address}" alt="{escape(alt)}">'
    return f'<figure><figcaption>{escape(heading)}</figcaption><div class="plate">{image}</div></figure>'


LINES, CELLS = 6, 40  # more values than these aren't drawn as lines, or along a side of a heatmap
COSTS = ("neighbors", "bits_per_pixel", "fit_seconds")


def sweep_figures(
    records: list[Record], names: list[str], metric: str
) -> Iterator[tuple[str, object, str]]:
    """(heading, figure, alternative text) of every plot that these points allow; names: the parameters that vary."""
    done = [
        record for record in records if not record["error"] and value(record, metric) is not None
    ]
    if len(done) < 2:
        return
    with plt.rc_context():
        figures.style()
        words = metric.replace("_", " ")
        for name in names:
            yield f"{words} against {name}", *_against(done, name, names, metric)
        for one, other in combinations(names[:3], 2):
            if _fills(done, one, other):
                mean = ", mean over the others" if len(names) > 2 else ""
                yield f"{words} over {one} and {other}{mean}", *_heatmap(done, one, other, metric)
        cost = next(
            (c for c in COSTS if c != metric and all(value(r, c) is not None for r in done)), ""
        )
        if cost:
            yield f"{words} against {cost.replace('_', ' ')}", *_front(done, cost, metric)


def pareto(costs: Sequence[float], gains: Sequence[float]) -> list[int]:
    """Numbers of the points that no other beats, being as cheap and better, or cheaper and as good; cheapest first."""
    order = sorted(range(len(costs)), key=lambda number: (costs[number], -gains[number]))
    front: list[int] = []
    for number in order:
        if not front or gains[number] > gains[front[-1]]:
            front.append(number)
    return front


def _values(records: list[Record], name: str) -> list:
    """The different values of a parameter, in order: numbers by size, others as they came."""
    found = list(
        {repr(r["parameters"].get(name)): r["parameters"].get(name) for r in records}.values()
    )
    return sorted(found) if all(_is_number(each) for each in found) else found


def _fills(records: list[Record], one: str, other: str) -> bool:
    """Whether points fill most of the cells of a heatmap, as those of a grid do and drawn ones don't."""
    cells = {(repr(r["parameters"].get(one)), repr(r["parameters"].get(other))) for r in records}
    rows, columns = len(_values(records, one)), len(_values(records, other))
    return max(rows, columns) <= CELLS and len(cells) > rows * columns / 2


def _is_number(each) -> bool:
    return isinstance(each, int | float) and not isinstance(each, bool)


def _places(values: list) -> dict[str, float]:
    """Where values stand along an axis: numbers where they are, others one after the other."""
    numbers = all(map(_is_number, values))
    return {repr(each): each if numbers else place for place, each in enumerate(values)}


def _scaled(record: Record, metric: str) -> float:
    return value(record, metric) * (100 if PERCENT.search(metric) else 1)


def _label(metric: str) -> str:
    return metric.replace("_", " ") + (", %" if PERCENT.search(metric) else "")


def _against(records: list[Record], name: str, names: list[str], metric: str):
    values, others = _values(records, name), [other for other in names if other != name]
    place = _places(values)
    figure, axis = plt.subplots(figsize=(4.6, 3.1))
    lines = (
        _values(records, others[0])
        if len(others) == 1 and _fills(records, name, others[0])
        else [None]
    )
    lines = lines if len(lines) <= LINES else [None]
    for number, line in enumerate(lines):
        mine = [r for r in records if line is None or r["parameters"].get(others[0]) == line]
        mine.sort(key=lambda record: place[repr(record["parameters"].get(name))])
        x = [place[repr(record["parameters"].get(name))] for record in mine]
        single = len(set(x)) == len(x) and all(map(_is_number, values))
        label = f"{others[0]} {line}" if line is not None else None
        marker = "osD^vP"[number % LINES]
        axis.plot(
            x,
            [_scaled(r, metric) for r in mine],
            marker + "-" * single,
            label=label,
            alpha=1 if single else 0.7,
        )
    axis.set(xlabel=name, ylabel=_label(metric))
    if not all(map(_is_number, values)):
        axis.set_xticks(
            range(len(values)),
            [str(each) for each in values],
            rotation=20 if len(values) > 3 else 0,
        )
    elif all(isinstance(each, int) for each in values):
        axis.xaxis.get_major_locator().set_params(integer=True)
    if lines != [None]:
        axis.legend(fontsize=8)
    told = "; ".join(f"{each}: {_middle(records, name, each, metric):.4g}" for each in values[:12])
    return figure, f"{_label(metric)} against {name}, median at {told}"


def _middle(records: list[Record], name: str, wanted, metric: str) -> float:
    return float(
        np.median([_scaled(r, metric) for r in records if r["parameters"].get(name) == wanted])
    )


def _heatmap(records: list[Record], one: str, other: str, metric: str):
    rows, columns = _values(records, one), _values(records, other)
    grid = np.full((len(rows), len(columns)), np.nan)
    for row, each in enumerate(rows):
        for column, another in enumerate(columns):
            cell = [
                r
                for r in records
                if (r["parameters"].get(one), r["parameters"].get(other)) == (each, another)
            ]
            grid[row, column] = np.mean([_scaled(r, metric) for r in cell]) if cell else np.nan
    width, height = max(3.4, 0.62 * len(columns) + 2.4), max(2.2, 0.42 * len(rows) + 1.2)
    figure, axis = plt.subplots(figsize=(min(width, 12), min(height, 12)))
    image = axis.imshow(grid, cmap="cividis", aspect="auto")
    axis.set_xticks(
        range(len(columns)), [str(each) for each in columns], rotation=30 if len(columns) > 4 else 0
    )
    axis.set_yticks(range(len(rows)), [str(each) for each in rows])
    axis.set(xlabel=other, ylabel=one)
    for side in axis.spines.values():
        side.set_visible(False)
    middle = (np.nanmin(grid) + np.nanmax(grid)) / 2
    for (row, column), figure_here in np.ndenumerate(
        grid if grid.size <= 120 else np.empty((0, 0))
    ):
        if not np.isnan(figure_here):
            colour = "black" if figure_here > middle else "white"
            text = f"{figure_here:{'.2f' if PERCENT.search(metric) else '.4g'}}"
            axis.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
    figure.colorbar(image, label=_label(metric))
    return (
        figure,
        f"Heatmap of {_label(metric)}, mean over the other parameters, {one} down and {other} across",
    )


def _front(records: list[Record], cost: str, metric: str):
    sign = 1 if more_is_better(records, metric) else -1
    x, y = [_scaled(r, cost) for r in records], [_scaled(r, metric) for r in records]
    front = pareto(x, [sign * each for each in y])
    figure, axis = plt.subplots(figsize=(5.2, 3.4))
    axis.plot(x, y, "o", color="0.65", label="points")
    label = "nothing with less is as good"
    axis.plot(
        [x[n] for n in front],
        [y[n] for n in front],
        "D-",
        drawstyle="steps-post",
        color=figures.COLOURS[5],
        label=label,
    )
    axis.set(xlabel=_label(cost), ylabel=_label(metric))
    axis.legend(fontsize=8)
    told = "; ".join(f"{x[n]:.4g}: {y[n]:.4g}" for n in front[:12])
    return figure, f"{_label(metric)} against {_label(cost)}, the Pareto front at {told}"
