"""The figures that chapters record, how they are read by people and by programs, and what they were measured on.

Pieces of HTML that the book's pages share: heads, lists, and tables of figures.
"""

import base64
import csv
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable
from datetime import datetime
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import nnlib
from nnlib._common.files import atomic_write

MARK = "nnlib_results"  # the key under which the metadata of a notebook's outputs hold figures
COLUMNS = ["chapter", "run", "parameters", "metric", "value", "unit"]
RECORDED = [
    *COLUMNS,
    "date",
    "processor",
    "GPU",
    "versions",
    "commit",
    "command",
]  # of a figure that is kept
UNITS = {  # by the end of a metric's name: fractions have unit 1, and counts have none
    "accuracy": "1", "top1": "1", "top5": "1", "ssim": "1", "_seconds": "s", "per_second": "1/s", "_mb": "MB",
    "_db": "dB", "bits_per_pixel": "bit", "bits_per_character": "bit", "_bytes": "B",
}  # fmt: skip
PERCENT = re.compile(r"(accuracy|top\d+)$")  # fractions that people read as per cent
LAYER = re.compile(r"_layer_\d+$")  # the same figure of one layer of several
Figures = dict[str, dict[str, Any]]


class BookError(Exception):
    """A refusal in words; `code` is the exit status that goes with it."""

    code = 1


def record(**metrics: float | None | tuple[float | None, str]) -> Figures | None:
    """Leave figures in the notebook, for results.csv and the report: `record(test_accuracy=0.97, fit_seconds=1.2)`.

    A value is a number, None for what wasn't measured, or (value, unit) where the name doesn't tell the unit;
    `published_x` is what was published for `x`. A notebook shows the figures; anywhere else they are returned.
    Raises ValueError naming the metric that isn't a finite number.
    """
    figures = {name: _figure(name, given) for name, given in metrics.items()}
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is None:
        return figures
    from IPython.display import display

    text = "\n".join(f"{name}: {shown(name, **figure)}" for name, figure in figures.items())
    held = {MARK: figures, "order": list(figures)}  # notebooks are stored with their keys sorted
    display({"text/html": table(figures), "text/plain": text}, metadata={MARK: held}, raw=True)
    return None


def holds(claim: str, truth, strict: bool = True) -> None:
    """Hold a claim that a chapter makes: say whether it is true, and fail where it is not but was to be (`strict`).

    Raises AssertionError.
    """
    if strict and not truth:
        raise AssertionError(f"it is no longer true that {claim}")
    print(f"{'✓' if truth else '✗ not with these parameters:'} {claim}")


def _figure(name: str, given) -> dict[str, Any]:
    value, unit = given if isinstance(given, tuple) else (given, None)
    value = value.item() if hasattr(value, "item") else value  # a tensor or a NumPy scalar
    if value is not None and not (isinstance(value, int | float) and math.isfinite(value)):
        raise ValueError(
            f"{name}={value!r} isn't a figure: give a finite number, or None where nothing was measured"
        )
    known = next((symbol for end, symbol in UNITS.items() if LAYER.sub("", name).endswith(end)), "")
    return {"value": value, "unit": known if unit is None else unit}


def shown(metric: str, value: float | None, unit: str = "") -> str:
    """A figure as people read it: `96.88 %` for an accuracy of 0.9688, `2,912` for a count, `20.2 s`."""
    if value is None:
        return "not measured"
    if PERCENT.search(LAYER.sub("", metric)) and unit == "1":
        return f"{100 * value:.2f} %"
    number = f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.4g}"
    return number if unit in ("", "1") else f"{number} {unit}"


def counted(number: int, noun: str) -> str:
    """So many of them: `1 point`, `3 points`."""
    return f"{number} {noun}{'s' * (number != 1)}"


def figures_of(notebook) -> Figures:
    """The figures that a notebook's cells recorded: metric -> {"value", "unit"}."""
    found: Figures = {}
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        found |= recorded(output)
    return found


def recorded(output) -> Figures:
    """The figures in one output of a cell, none where it is something else."""
    held = output.get("metadata", {}).get(MARK)
    return {name: held[MARK][name] for name in held["order"]} if held else {}


def read_results(path: Path, columns: list[str] = COLUMNS) -> list[dict[str, str]]:
    """The rows of a table of results, none where there is no such file.

    Raises BookError where it is something else.
    """
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != columns:
            raise BookError(
                f"{str(path)!r} has columns {reader.fieldnames} and not {columns}: move it away"
            )
        return list(reader)


def add_results(path: Path, chapter: str, notebook, columns: list[str] = COLUMNS) -> None:
    """Put a chapter's figures into the table at `path`, in place of those of the same chapter and run."""
    ran = notebook.metadata["nnbook"]
    rows = [
        row
        for row in read_results(path, columns)
        if (row["chapter"], row["run"]) != (chapter, ran["run"])
    ]
    same = {
        "chapter": chapter,
        "run": ran["run"],
        "parameters": json.dumps(ran["parameters"], default=str),
    }
    same |= {
        name: ran["origin"].get(name, ran.get(name)) for name in columns if name not in COLUMNS
    }
    rows += [same | {"metric": name} | figure for name, figure in figures_of(notebook).items()]
    with atomic_write(path) as part, open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: (row["chapter"], row["run"])))


def origin(folder: Path) -> dict[str, str]:
    """What a run's figures depend on besides its chapter: date, versions, hardware, and the commit of `folder`."""
    versions = [f"Python {platform.python_version()}", f"nnlib {nnlib.__version__}"]
    versions += filter(None, map(_version, ("torch", "torchvision", "numpy", "scikit-learn")))
    return {
        "date": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        "versions": ", ".join(versions),
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "GPU": _said("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").replace("\n", ", ")
        or "none",
        "system": f"{platform.system()} {platform.release()}",
        "commit": _commit(folder),
    }


def _version(package: str) -> str:
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return ""


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return (
        names[0]
        if names
        else _said("sysctl", "-n", "machdep.cpu.brand_string") or platform.machine()
    )


def _commit(folder: Path) -> str:
    commit = _said("git", "-C", str(folder), "rev-parse", "--short", "HEAD")
    but_reports = [
        "--",
        ":/",
        ":(top,exclude)reports",
    ]  # what a run writes changes nothing of what it ran
    changes = commit and _said("git", "-C", str(folder), "status", "--porcelain", *but_reports)
    return (commit or "unknown") + "+changes" * bool(changes)


def _said(*command: str) -> str:
    """What a program prints, "" where it isn't there or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


WORDS = {  # of metrics' names, where people write them otherwise; units stand by the values
    "seconds": "time", "db": "", "mb": "", "psnr": "PSNR", "ms": "MS", "ssim": "SSIM", "jpeg": "JPEG", "knn": "k-NN",
    "top1": "top-1", "top5": "top-5",
}  # fmt: skip


def head(title: str, script: str = "") -> str:
    """A page up to its body: with our style, and a content policy that lets nothing run but `script`."""
    hashed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = f"; script-src 'sha256-{hashed}'" if script else ""
    return file("head.html").format(title=escape(title), css=file("style.css"), allowed=allowed)


def file(name: str) -> str:
    """The text of a template, style sheet or script that lies beside this module."""
    return files("nnbook").joinpath(name).read_text(encoding="utf-8")


def definitions(rows: dict[str, str]) -> str:
    """Names with what they are, those without left out."""
    lines = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(fact)}</dd>" for name, fact in rows.items() if fact
    )
    return f'<dl class="small">{lines}</dl>'


def grid(heads: Iterable[str], rows: Iterable[tuple[Iterable[str], str]], kind: str = "") -> str:
    """A table that scrolls in its own box: rows of cells, which are HTML, with each row's class; `kind` is its own."""
    kind = f' class="{kind}"' if kind else ""
    top = "".join(f'<th scope="col">{name}</th>' for name in heads)
    body = "".join(f"<tr{f' class={row}' * bool(row)}>{''.join(cells)}</tr>" for cells, row in rows)
    return f'<div class="scroll"><table{kind}><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def table(figures: Figures, rows: int | None = None) -> str:
    """An HTML table of measured figures beside the published ones, those that have both first."""
    names = list(dict.fromkeys(name.removeprefix("published_") for name in figures))
    names.sort(key=lambda name: f"published_{name}" not in figures)
    pairs = sum(f"published_{name}" in figures for name in names)
    kept = names[: max(rows, pairs)] if rows else names
    columns = ["", "published_"] if pairs else [""]
    heads = ("", "measured", "published")[: 1 + len(columns)]
    body = [
        ([f"<td>{escape(label(name))}</td>", *_values(name, figures, columns)], "") for name in kept
    ]
    more = (
        f'<p class="small">and {len(names) - len(kept)} more in the chapter</p>'
        if len(kept) < len(names)
        else ""
    )
    return grid(heads, body) + more if names else ""


def label(metric: str) -> str:
    """A metric's name as people write it."""
    return " ".join(filter(None, (WORDS.get(word, word) for word in metric.split("_"))))


def _values(name: str, figures: Figures, columns: list[str]) -> list[str]:
    return [
        value(name, figures.get(prefix + name), "—" if prefix else shown(name, None))
        for prefix in columns
    ]


def value(name: str, figure: dict | None, otherwise: str) -> str:
    """A cell of a table with a figure, or with what is said where none is known."""
    if figure is None or figure["value"] is None:
        return f'<td class="none">{otherwise}</td>'
    return f"<td>{escape(shown(name, **figure))}</td>"
