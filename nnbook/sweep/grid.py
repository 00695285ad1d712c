"""The points of a sweep: all combinations of values, some drawn from them, or rows of a table."""

import csv
import itertools
import json
from pathlib import Path
from typing import Any

from nnbook.notebooks import Parameters, UsageError, literal, meant, parameters_of, typed

Point = dict[str, Any]


def points(
    chapter: Path,
    grid: list[str],
    table: Path | None = None,
    n_random: int = 0,
    seed: int = 0,
    fixed: Point | None = None,
) -> list[Point]:
    """Return what each run of a sweep changes in a chapter, each point once, in a fixed order.

    grid: `name=value,value,...`, values with a comma in double quotes; with `n_random` also
    `name=low..high`. table: a CSV file with parameters as columns, each row of which goes with each
    point of the grid. n_random: how many points of the grid to draw, 0 for all. fixed: values of
    other parameters. Raises UsageError naming what doesn't fit or is given twice.
    """
    known = parameters_of(chapter)
    axes = dict(_parse_axis(chapter, known, text, n_random > 0) for text in grid)
    if len(axes) < len(grid):
        reason = "give all its values at once, as in -g exponent=-2,-4"
        raise UsageError(f"-g names a parameter twice: {reason}")
    rows = _read_table(chapter, known, table) if table else [{}]
    _require_disjoint({"-g": set(axes), "--table": set(rows[0]), "-p": set(fixed or {})})
    if not axes and not table:
        reason = "give -g name=value,value or --table FILE, as in -g exponent=-2,-4"
        raise UsageError(f"a sweep needs values: {reason}")
    combinations = _combine(axes, n_random, seed)
    merged = [(fixed or {}) | row | point for row in rows for point in combinations]
    return list({json.dumps(point, sort_keys=True): point for point in merged}.values())


def _parse_axis(chapter: Path, known: Parameters, text: str, is_random: bool) -> tuple[str, Any]:
    """Return a parameter's name with a list of its values, or a distribution over a range."""
    name, sign, values = text.partition("=")
    if not sign or not values:
        raise UsageError(f"-g {text!r}: give name=value,value")
    parameter = _parameter(chapter, known, name, "-g")
    if ".." in values and type(literal(parameter["default"])) in (int, float):
        return name, _parse_range(name, values, parameter, is_random)
    words = next(csv.reader([values], skipinitialspace=True))
    return name, [_typed(name, word, parameter, "-g") for word in words]


def _parse_range(name: str, text: str, parameter: dict[str, str], is_random: bool):
    from scipy import stats

    low, high = (_typed(name, word, parameter, "-g") for word in text.split("..", 1))
    if not is_random or not low < high:
        reason = "a range is two numbers, the lower first, and goes with --random N"
        raise UsageError(f"-g {name}={text}: {reason}")
    return stats.randint(low, high + 1) if isinstance(low, int) else stats.uniform(low, high - low)


def _combine(axes: dict[str, Any], n_random: int, seed: int) -> list[Point]:
    from sklearn.model_selection import ParameterSampler

    if all(isinstance(axis, list) for axis in axes.values()):
        product = itertools.product(*axes.values())
        grid = [dict(zip(axes, values, strict=True)) for values in product]
        if not n_random or n_random >= len(grid):
            return grid
    sampled = ParameterSampler(axes, n_random, random_state=seed)
    return [{name: _to_python(point[name]) for name in axes} for point in sampled]


def _to_python(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    return float(f"{value:.4g}") if isinstance(value, float) else value  # more digits say nothing


def _read_table(chapter: Path, known: Parameters, table: Path) -> list[Point]:
    source = f"--table {str(table)!r}"
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restkey="")
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{source} can't be read: {error}") from error
    if not rows:
        reason = "give parameters as columns, and a row for each point"
        raise UsageError(f"{source} has no rows: {reason}")
    names = reader.fieldnames or []
    if len(set(names)) < len(names):
        raise UsageError(f"{source} names a column twice: {', '.join(names)}")
    parameters = {name: _parameter(chapter, known, name, source) for name in names}
    typed_rows = []
    for number, row in enumerate(rows, 1):
        where = f"{source}, row {number}"
        if "" in row or None in row.values():
            raise UsageError(f"{where} has more or fewer cells than there are headings")
        cells = row.items()
        typed_rows.append(
            {name: _typed(name, text, parameters[name], where) for name, text in cells}
        )
    return typed_rows


def _parameter(chapter: Path, known: Parameters, name: str, where: str) -> dict[str, str]:
    if name in known:
        return known[name]
    has_separator = ";" in name or "\t" in name
    hint = "columns are apart by commas" if has_separator else meant(name, known)
    hint = f" ({hint})" if hint else ""
    reason = f"is no parameter of {chapter.stem}{hint}, which has {', '.join(known) or 'none'}"
    raise UsageError(f"{where}: {name!r} {reason}")


def _typed(name: str, text: str, parameter: dict[str, str], where: str) -> Any:
    try:
        return typed(text.strip(), **parameter)
    except ValueError as error:
        raise UsageError(f"{where}: {name}={text!r} doesn't fit: {error}") from error


def _require_disjoint(named: dict[str, set[str]]) -> None:
    for (one, names), (other, other_names) in itertools.combinations(named.items(), 2):
        if both := sorted(names & other_names):
            raise UsageError(f"{one} and {other} both name {', '.join(both)}: give it once")
