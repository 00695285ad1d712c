"""The points of a sweep: every combination of the values asked for, some of them drawn, or the rows of a table."""

import csv
import itertools
import json
from pathlib import Path
from typing import Any

from nnbook.notebooks import UsageError, literal, meant, parameters_of, typed

Point = dict[str, Any]


def points(
    chapter: Path,
    grid: list[str],
    table: Path | None = None,
    draw: int = 0,
    seed: int = 0,
    fixed: Point | None = None,
) -> list[Point]:
    """What each run of a sweep changes in a chapter, each point once and in a fixed order.

    grid: `name=value,value,...`, values with a comma in double quotes; with `draw` also `name=low..high`.
    table: a CSV file with parameters as columns; each of its rows goes with each point of the grid.
    draw: how many of the grid's points to draw, 0 for all. fixed: values of other parameters, the same everywhere.
    Raises UsageError naming what isn't a parameter of the chapter, doesn't fit, or is given twice.
    """
    known = parameters_of(chapter)
    axes = dict(_axis(chapter, known, asked, bool(draw)) for asked in grid)
    if len(axes) < len(grid):
        raise UsageError(
            "-g names a parameter twice: give all its values at once, as in -g exponent=-2,-4"
        )
    rows = _rows(chapter, known, table) if table else [{}]
    _require_apart({"-g": set(axes), "--table": set(rows[0]), "-p": set(fixed or {})})
    if not axes and not table:
        raise UsageError(
            "a sweep needs values: give -g name=value,value or --table FILE, as in -g exponent=-2,-4"
        )
    found = [(fixed or {}) | row | point for row in rows for point in _combined(axes, draw, seed)]
    return list({json.dumps(point, sort_keys=True): point for point in found}.values())


def _axis(chapter: Path, known: dict, asked: str, drawn: bool) -> tuple[str, Any]:
    name, sign, text = asked.partition("=")
    if not sign or not text:
        raise UsageError(f"-g {asked!r}: give name=value,value")
    told = _told(chapter, known, name, "-g")
    if ".." in text and type(literal(told["default"])) in (int, float):
        return name, _range(name, text, told, drawn)
    words = next(csv.reader([text], skipinitialspace=True))
    return name, [_value(name, word, told, "-g") for word in words]


def _range(name: str, text: str, told: dict[str, str], drawn: bool):
    """What values between two bounds are drawn from, both included."""
    from scipy import stats

    low, high = (_value(name, word, told, "-g") for word in text.split("..", 1))
    if not drawn or not low < high:
        raise UsageError(
            f"-g {name}={text}: a range is two numbers, the lower first, and goes with --random N"
        )
    return stats.randint(low, high + 1) if isinstance(low, int) else stats.uniform(low, high - low)


def _combined(axes: dict[str, Any], draw: int, seed: int) -> list[Point]:
    from sklearn.model_selection import ParameterSampler

    ranges = [name for name, axis in axes.items() if not isinstance(axis, list)]
    whole = (
        [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
        if not ranges
        else []
    )
    if not draw or (whole and draw >= len(whole)):
        return whole
    drawn = [dict(point) for point in ParameterSampler(axes, draw, random_state=seed)]
    return [{name: _plain(point[name]) for name in axes} for point in drawn]


def _plain(value: Any) -> Any:
    """A drawn number as Python has it, to four digits, which is as many as anyone wants to read."""
    value = value.item() if hasattr(value, "item") else value
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _rows(chapter: Path, known: dict, table: Path) -> list[Point]:
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restkey="")
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"--table {str(table)!r} can't be read: {error}") from error
    if not rows:
        raise UsageError(
            f"--table {str(table)!r} has no rows: give parameters as columns, and a row for each point"
        )
    if len(set(reader.fieldnames)) < len(reader.fieldnames):
        raise UsageError(
            f"--table {str(table)!r} names a column twice: {', '.join(reader.fieldnames)}"
        )
    told = {
        name: _told(chapter, known, name, f"--table {str(table)!r}") for name in reader.fieldnames
    }
    found = []
    for number, row in enumerate(rows, 1):
        where = f"--table {str(table)!r}, row {number}"
        if "" in row or None in row.values():
            raise UsageError(f"{where} has more or fewer cells than there are headings")
        found.append({name: _value(name, text, told[name], where) for name, text in row.items()})
    return found


def _told(chapter: Path, known: dict, name: str, where: str) -> dict[str, str]:
    if name not in known:
        there = ", ".join(known) or "none"
        hint = "columns are apart by commas" if ";" in name or "\t" in name else meant(name, known)
        hint = f" ({hint})" if hint else ""
        raise UsageError(
            f"{where}: {name!r} is no parameter of {chapter.stem}{hint}, which has {there}"
        )
    return known[name]


def _value(name: str, text: str, told: dict[str, str], where: str) -> Any:
    try:
        return typed(text.strip(), **told)
    except ValueError as error:
        raise UsageError(f"{where}: {name}={text!r} doesn't fit: {error}") from error


def _require_apart(named: dict[str, set[str]]) -> None:
    for (one, these), (other, those) in itertools.combinations(named.items(), 2):
        if both := sorted(these & those):
            raise UsageError(f"{one} and {other} both name {', '.join(both)}: give it once")
