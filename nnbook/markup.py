"""Pieces of HTML that the book's pages share: heads, lists, and tables of figures."""

import base64
import hashlib
from collections.abc import Iterable
from html import escape
from importlib.resources import files

from nnbook.results import Figures, shown

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
    lines = "".join(f"<dt>{escape(name)}</dt><dd>{escape(fact)}</dd>" for name, fact in rows.items() if fact)
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
    body = [([f"<td>{escape(label(name))}</td>", *_values(name, figures, columns)], "") for name in kept]
    more = f'<p class="small">and {len(names) - len(kept)} more in the chapter</p>' if len(kept) < len(names) else ""
    return grid(heads, body) + more if names else ""


def label(metric: str) -> str:
    """A metric's name as people write it."""
    return " ".join(filter(None, (WORDS.get(word, word) for word in metric.split("_"))))


def _values(name: str, figures: Figures, columns: list[str]) -> list[str]:
    return [value(name, figures.get(prefix + name), "—" if prefix else shown(name, None)) for prefix in columns]


def value(name: str, figure: dict | None, otherwise: str) -> str:
    """A cell of a table with a figure, or with what is said where none is known."""
    if figure is None or figure["value"] is None:
        return f'<td class="none">{otherwise}</td>'
    return f"<td>{escape(shown(name, **figure))}</td>"
