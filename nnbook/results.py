"""The figures that chapters record, how they are shown and kept, and what they were measured on."""

import importlib.metadata
import json
import math
import os
import platform
import re
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import nnlib
from nnlib._common.files import atomic_write

MARK = "nnlib_results"  # the key under which the metadata of a notebook's outputs hold figures
COLUMNS = ["chapter", "run", "parameters", "metric", "value", "unit"]
RECORDED = [*COLUMNS, "date", "processor", "GPU", "versions", "commit", "command"]
UNITS = {  # by the end of a metric's name: fractions have unit 1, and counts have none
    **dict.fromkeys(("accuracy", "top1", "top5", "ssim"), "1"),
    **dict.fromkeys(("bits_per_pixel", "bits_per_character"), "bit"),
    **{"_seconds": "s", "per_second": "1/s", "_mb": "MB", "_db": "dB", "_bytes": "B"},
}
WORDS = {  # of metrics' names, where people write them otherwise; units stand by the values
    **{"seconds": "time", "knn": "k-NN", "top1": "top-1", "top5": "top-5", "db": "", "mb": ""},
    **{word: word.upper() for word in ("psnr", "ms", "ssim", "jpeg")},
}
PERCENT = re.compile(r"(accuracy|top\d+)$")  # fractions that people read as per cent
LAYER = re.compile(r"_layer_\d+$")  # the same figure of one layer of several
Figures = dict[str, dict[str, Any]]


class BookError(Exception):
    """A refusal in words; `code` is the exit status that goes with it."""

    code = 1


def record(**metrics: float | None | tuple[float | None, str]) -> Figures | None:
    """Leave figures in the notebook, for results.csv and the report.

    Parameters
    ----------
    **metrics : float, None or (float or None, str)
        A value, None for what wasn't measured, or (value, unit) where the name doesn't tell it.
        `published_x` is what was published for `x`.

    Returns
    -------
    dict or None
        The figures, metric -> {"value", "unit"}; None in a notebook, which shows them instead.

    Raises
    ------
    ValueError
        Naming a metric that isn't a finite number.

    Examples
    --------
    >>> record(test_accuracy=0.97)
    {'test_accuracy': {'value': 0.97, 'unit': '1'}}
    """
    figures = {name: _figure(name, given) for name, given in metrics.items()}
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is None:
        return figures
    from IPython.display import display

    from nnbook.site.rendering import figures_html

    text = "\n".join(f"{name}: {shown(name, **figure)}" for name, figure in figures.items())
    held = {MARK: figures, "order": list(figures)}  # notebooks are stored with their keys sorted
    data = {"text/html": figures_html(figures), "text/plain": text}
    display(data, metadata={MARK: held}, raw=True)
    return None


def holds(claim: str, truth: bool, strict: bool = True) -> None:
    """Hold a claim that a chapter makes: say whether it is true.

    Parameters
    ----------
    claim : str
        A sentence.
    truth : bool
        Whether it is true.
    strict : bool, default True
        Whether to fail where it isn't; False for claims about the defaults, when others are set.

    Raises
    ------
    AssertionError
        Where a strict claim isn't true.

    Examples
    --------
    >>> holds("two is more than one", 2 > 1)
    ✓ two is more than one
    """
    if strict and not truth:
        raise AssertionError(f"it is no longer true that {claim}")
    print(f"{'✓' if truth else '✗ not with these parameters:'} {claim}")


def _figure(name: str, given) -> dict[str, Any]:
    value, unit = given if isinstance(given, tuple) else (given, None)
    value = value.item() if hasattr(value, "item") else value  # a tensor or a NumPy scalar
    if value is not None and not (isinstance(value, int | float) and math.isfinite(value)):
        raise ValueError(f"{name}={value!r} isn't a figure: give a finite number, or None")
    if unit is None:
        metric = LAYER.sub("", name)
        unit = next((unit for end, unit in UNITS.items() if metric.endswith(end)), "")
    return {"value": value, "unit": unit}


def shown(metric: str, value: float | None, unit: str = "") -> str:
    """Return a figure as people read it: `96.88 %` of accuracy, `2,912` for a count, `20.2 s`."""
    if value is None:
        return "not measured"
    if PERCENT.search(LAYER.sub("", metric)) and unit == "1":
        return f"{100 * value:.2f} %"
    number = f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.4g}"
    return number if unit in ("", "1") else f"{number} {unit}"


def counted(number: int, noun: str) -> str:
    """Return so many of them: `1 point`, `3 points`."""
    return f"{number} {noun}{'s' * (number != 1)}"


def label(metric: str) -> str:
    """Return a metric's name as people write it."""
    return " ".join(filter(None, (WORDS.get(word, word) for word in metric.split("_"))))


def with_published(figures: Figures) -> list[tuple[str, dict | None, dict | None]]:
    """Return (metric, measured, published figure), those that have both first."""
    names = dict.fromkeys(name.removeprefix("published_") for name in figures)
    rows = [(name, figures.get(name), figures.get(f"published_{name}")) for name in names]
    return sorted(rows, key=lambda row: row[2] is None)


def figures_of(notebook) -> Figures:
    """Return the figures that a notebook's cells recorded: metric -> {"value", "unit"}."""
    figures: Figures = {}
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            figures |= recorded(output)
    return figures


def recorded(output) -> Figures:
    """Return the figures in one output of a cell, none where it is something else."""
    held = output.get("metadata", {}).get(MARK)
    return {name: held[MARK][name] for name in held["order"]} if held else {}


def read_results(path: Path, columns: list[str] = COLUMNS):
    """Return a table of results as text, empty where there is no file; raises BookError."""
    import pandas as pd

    if not path.exists():
        return pd.DataFrame(columns=columns)
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except ValueError as error:
        raise BookError(f"{str(path)!r} is no table ({error}): move it away") from error
    if list(table) != columns:
        raise BookError(f"{str(path)!r} has columns {list(table)} and not {columns}: move it away")
    return table


def add_results(path: Path, chapter: str, notebook, columns: list[str] = COLUMNS) -> None:
    """Put a chapter's figures into a table, in place of those of the same chapter and run."""
    import pandas as pd

    metadata = notebook.metadata["nnbook"]
    values = {name: metadata[name] for name in ("run", "command")} | {"chapter": chapter}
    values |= metadata["origin"]
    values["parameters"] = json.dumps(metadata["parameters"], default=str)
    rows = [values | {"metric": name} | each for name, each in figures_of(notebook).items()]
    table = read_results(path, columns)
    others = table[(table["chapter"] != chapter) | (table["run"] != metadata["run"])]
    table = pd.concat([others, pd.DataFrame(rows, columns=columns, dtype=object)])
    with atomic_write(path) as part:
        table.sort_values(["chapter", "run"], kind="stable").to_csv(
            part, index=False, lineterminator="\r\n"
        )


def origin(folder: Path) -> dict[str, str]:
    """Return what a run's figures depend on: date, versions, hardware, and a folder's commit."""
    versions = [f"Python {platform.python_version()}", f"nnlib {nnlib.__version__}"]
    for package in ("torch", "torchvision", "numpy", "scikit-learn"):
        versions.append(f"{package} {importlib.metadata.version(package)}")
    gpus = output_of("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    git = ["git", "-C", str(folder)]
    commit = output_of(*git, "rev-parse", "--short", "HEAD")
    # what a run writes to reports/ changes nothing of what it ran
    changes = output_of(*git, "status", "--porcelain", "--", ":/", ":(top,exclude)reports")
    return {
        "date": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        "versions": ", ".join(versions),
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "GPU": gpus.replace("\n", ", ") or "none",
        "system": f"{platform.system()} {platform.release()}",
        "commit": (commit or "unknown") + ("+changes" if commit and changes else ""),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    name = re.search(r"^model name\s*:\s*(.+)$", info.read_text() if info.exists() else "", re.M)
    if name:
        return name[1].strip()
    return output_of("sysctl", "-n", "machdep.cpu.brand_string") or platform.machine()


def output_of(*command: str) -> str:
    """Return what a program prints, "" where it isn't there or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
