"""`python -m nnbook.benchmarks.tables` writes reports/recorded/README.md from its CSVs."""

from collections.abc import Iterator

import pandas as pd

from nnbook.benchmarks import depth, speed
from nnbook.benchmarks.recorded import RECORDED, read
from nnbook.plotting import frontier_figures
from nnbook.results import label, shown

SETS = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST"}
SETS |= {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
FORMATS = {"jpeg": "JPEG", "webp": "WebP", "jpeg2000": "JPEG 2000"}
FORMATS |= {"avif": "AVIF", "avif_444": "AVIF 4:4:4"}
COUNT, RATIO = "{:,}".format, "{:,.1f}".format
HEAD = """# Recorded figures

Written by `python -m nnbook.benchmarks.tables` from the CSV files in this folder. Each figure was
measured by the command under its table; – is what was not measured, or is no part of a method."""


def section(title: str, rows: pd.DataFrame, *tables: pd.DataFrame) -> str:
    """Tables, and when, where and by what command their rows were measured."""
    sources = rows.dropna(subset="date").groupby(["processor", "GPU", "command"], sort=False)
    lines = [
        f"- {dates.max()}, {processor}, GPU: {gpu}, `{command}`"
        for (processor, gpu, command), dates in sources.date
    ]
    return "\n\n".join([f"## {title}", *map(markdown, tables), "\n".join(lines)])


def markdown(table: pd.DataFrame) -> str:
    """A table of words; what is missing is a dash."""
    words = table.astype(object).map(lambda cell: COUNT(cell) if isinstance(cell, int) else cell)
    rows = [table.columns, ["---"] * table.shape[1], *words.fillna("–").values]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


def chapter(name: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A chapter's rows, and its figures in words by metric and run."""
    rows = read(name)
    units = rows.unit.fillna("")
    words = [shown(*figure) for figure in zip(rows.metric, rows.value, units, strict=True)]
    return rows, rows.assign(words=words).pivot(index="metric", columns="run", values="words")


def percent(mean: pd.Series, deviation: pd.Series) -> list[str]:
    """Means with their deviations over seeds, where there are any."""
    pairs = zip(100 * mean, 100 * deviation, strict=True)
    return [f"{a:.2f} %" if pd.isna(b) else f"{a:.2f} ± {b:.2f} %" for a, b in pairs]


def classification() -> Iterator[str]:
    """Chapter 1: the published rule, learned centers next to their rivals, and stacks of layers."""
    rows, words = chapter("01_invariant_classification")
    metrics = ("neighbors", "train_accuracy", "test_accuracy", "fit_seconds")
    names = [name for metric in metrics for name in (metric, f"published_{metric}")]
    names += ["learned_neighbors", "learned_test_accuracy"]
    table = words.loc[names].rename(index=label, columns=SETS).T.loc[list(SETS.values())]
    yield section("Keep what the model gets wrong", rows, table.reset_index(names="set"))
    parts, sources = [], []
    for name, means in frontier_figures.recorded().items():
        part = means[["method", "seeds", "centers"]].assign(
            test=percent(means.test, means.spread),
            seconds=means.seconds.map(RATIO, na_action="ignore"),
        )
        part.insert(0, "track", frontier_figures.NAMES[name])
        parts.append(part)
        sources.append(read(f"frontier_{name}"))
    yield section("Few centers that learn", pd.concat(sources), pd.concat(parts))
    rows = depth.recorded()
    gains = depth.gains(rows).replace({"set": SETS})
    stacks = gains[["set", "stack"]].assign(
        first=percent(gains["first"], gains.first_spread),
        last=percent(gains["last"], gains.last_spread),
        layers=gains.layers.astype(int),
    )
    causes = depth.causes(rows).rename(columns=SETS).map("{:.2%}".format)
    yield section("Depth", rows, stacks, causes.reset_index(names="second layer"))


def pictures() -> str:
    """Chapter 2: PSNR of every format at equal bytes, and the published rule in bits."""
    rows, words = chapter("02_image_compression")
    parts = rows.metric.str.extract(r"^(.+?)_(\d\.\d+)(?:_(.+))?_psnr_db$")
    parts.columns = ["photo", "bits per pixel", "format"]
    parts = parts.assign(psnr=rows.value.map("{:.2f}".format)).dropna(subset="photo")
    parts["format"] = parts["format"].fillna("centers").replace(FORMATS)
    table = parts.pivot(index=["bits per pixel", "photo"], columns="format", values="psnr")
    table = table[["centers", *FORMATS.values()]].replace("nan", pd.NA).reset_index()
    figures = words[~words.index.str.contains(r"_\d\.\d+_")].rename(index=label).reset_index()
    return section("PSNR in dB over RGB, whole photos", rows, table, figures)


def stated(title: str, name: str) -> str:
    """Chapters 3 and 4: figures that were written down without a table of their own."""
    rows = read("stated").query("section == @name")
    table = rows.pivot(index="row", columns="column", values="value")
    table = table.loc[rows.row.unique(), rows["column"].unique()]
    return section(title, rows, table.reset_index(names=""))


def times(name: str) -> str:
    """Chapter 5: medians, extra memory, and time over the library's."""
    rows = speed.recorded(name)
    table = rows[["work", "features", "queries", "centers", "peer"]].assign(
        seconds=rows.seconds.map(lambda each: f"{each:.2f}" if each >= 0.1 else f"{each:.4f}"),
        MB=rows.extra_mb.map(RATIO) if "extra_mb" in rows else pd.NA,
        ratio=rows.over_nnlib.map(RATIO),
    )
    table = table.replace("nan", pd.NA).rename(columns={"ratio": "time over nnlib's"})
    return section(f"Speed: {name}", rows, table)


def page() -> str:
    """The whole page."""
    sections = [*classification(), pictures(), stated("The last tenth of each book", "language")]
    sections += [stated("Learned neighbors", "learned neighbors"), *map(times, speed.TABLES)]
    return "\n\n".join([HEAD, *sections]) + "\n"


if __name__ == "__main__":
    (RECORDED / "README.md").write_text(page(), encoding="utf-8")
