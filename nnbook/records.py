"""Records of a sweep's points: {"parameters", "figures", "error", ...}, and what is asked of many of them."""

from typing import Any

Record = dict[str, Any]
PREFERRED = ("test_accuracy", "knn_top1", "psnr_db", "accuracy", "static_bits_per_character")
MORE_IS_BETTER = {"1", "dB", "1/s", "times"}  # units; of counts, seconds, bytes and bits fewer are


def main_metric(records: list[Record], asked: str = "") -> str:
    """The metric that a sweep is looked at for: the one asked for, else the most telling one recorded; "" if none."""
    there = list(dict.fromkeys(name for record in records for name in record["figures"]))
    return asked or next((name for name in (*PREFERRED, *there) if name in there), "")


def best(records: list[Record], metric: str) -> Record | None:
    """The record with the best value of a metric, of equals the first in order; None where none has it."""
    have = [record for record in records if not record["error"] and value(record, metric) is not None]
    sign = -1 if have and more_is_better(have, metric) else 1
    return min(have, key=lambda record: (sign * value(record, metric), order(record)), default=None)


def value(record: Record, metric: str) -> float | None:
    """What a record measured, None where it didn't."""
    return record["figures"].get(metric, {}).get("value")


def more_is_better(records: list[Record], metric: str) -> bool:
    """Whether a larger value of a metric is the better one, by its unit."""
    return any(record["figures"].get(metric, {}).get("unit") in MORE_IS_BETTER for record in records)


def varied(records: list[Record]) -> list[str]:
    """The parameters that differ between points, in the chapter's order."""
    names = dict.fromkeys(name for record in records for name in record["parameters"])
    return [name for name in names if len({repr(record["parameters"].get(name)) for record in records}) > 1]


def told(record: Record, names: list[str]) -> str:
    """A point's parameters in words."""
    return ", ".join(f"{name}={record['parameters'].get(name)}" for name in names)


def order(record: Record) -> list:
    """To sort points by: their parameters, numbers by size."""
    values = record["parameters"].values()
    return [(0, each, "") if isinstance(each, int | float) else (1, 0, str(each)) for each in values]
