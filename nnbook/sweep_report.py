"""The page of a sweep: its plots, and a table of its points that can be sorted and filtered, offline."""

import base64
import io
from html import escape
from pathlib import Path

from nnbook import sweep_plots
from nnbook.markup import file, head, label
from nnbook.records import Record, best, main_metric, order, told, value, varied
from nnbook.results import counted, shown
from nnlib.files import written_whole


def write(folder: Path, records: list[Record], metric: str = "") -> Path:
    """Render a sweep's records as index.html in its folder; returns the page's path."""
    records = sorted(records, key=order)
    script = file("sweep.js")
    page = head(folder.name, script) + file("sweep.html").format(
        title=f"Sweep {escape(folder.name)}",
        script=script,
        **_parts(records, main_metric(records, metric)),
    )
    with written_whole(folder / "index.html") as part:
        part.write_text(page, encoding="utf-8")
    return folder / "index.html"


def _parts(records: list[Record], metric: str) -> dict[str, str]:
    names = varied(records)
    metrics = list(dict.fromkeys(name for r in records for name in r["figures"] if not name.startswith("published_")))
    metrics.sort(key=lambda name: name != metric)
    columns = ["status", *names, *metrics, "seconds"]
    heads = "".join(f'<th data-name="{escape(c)}"><button>{escape(label(c))}</button></th>' for c in columns)
    failed = sum(bool(record["error"]) for record in records)
    winner = best(records, metric)
    text = f"{counted(len(records) - failed, 'point')} done" + f', <span class="failed">{failed} failed</span>' * bool(
        failed
    )
    if winner:
        figure = shown(metric, **winner["figures"][metric])
        text += f". Best {escape(label(metric))}: <b>{figure}</b> at {escape(told(winner, names))}"
    return {
        "told": text + ".",
        "facts": _facts(records, names),
        "plots": "".join(_plate(*plot) for plot in sweep_plots.figures(records, names, metric)),
        "example": escape(f"{names[0]}={records[0]['parameters'][names[0]]}" if names else "done"),
        "heads": heads,
        "rows": "".join(_row(record, names, metrics) for record in records),
    }


def _facts(records: list[Record], names: list[str]) -> str:
    """What is the same in all points, and what ran them."""
    rest = [told(record, [name for name in record["parameters"] if name not in names]) for record in records[:1]]
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
