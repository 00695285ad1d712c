"""What votes for a character, to look at: passages with their weights, and a text coloured by how expected it was."""

from html import escape
from os.path import commonprefix

from IPython.display import HTML

from nnlib.language import ContextModel

MARK = "font-weight:bold;background:rgba(230,159,0,.35)"
CELL = "padding:0 .4em;white-space:pre;font-family:monospace"


def shown(text: str) -> str:
    """Text for a page, with its line breaks visible and on one line."""
    return escape(text).replace("\n", "↵")


def passages(model: ContextModel, context: str, top: int = 8) -> HTML:
    """The passages that weigh most in what comes after a context; what each shares with it is underlined."""
    rows = []
    for weight, _, before, character, after in model.explain(context, top, around=30):
        same = len(commonprefix([before[::-1], context[::-1]]))
        head, tail = before[: len(before) - same], before[len(before) - same :]
        rows.append(
            f"<tr><td style='{CELL};text-align:right'>{100 * weight:.1f} %</td>"
            f"<td style='{CELL};text-align:right'>{shown(head)}<u>{shown(tail)}</u></td>"
            f"<td style='{CELL};{MARK}'>{shown(character)}</td>"
            f"<td style='{CELL};text-align:left'>{shown(after)}</td></tr>"
        )
    return HTML(f"<table style='overflow-x:auto;display:block'>{''.join(rows)}</table>")


def expected(model: ContextModel, prompt: str, text: str) -> list[float]:
    """How likely each character of a text after a prompt was held to be, before it was known."""
    places = (model.alphabet_.index(character) for character in text)
    return [
        model.predict_proba(prompt + text[:number])[place] for number, place in enumerate(places)
    ]


def why(
    model: ContextModel, prompt: str, text: str, likely: list[float], at: int, top: int = 6
) -> HTML:
    """A text after a prompt, each character the darker the more it was expected; and the passages for number `at`."""
    cells = []
    for number, (character, p) in enumerate(zip(text, likely, strict=True)):
        frame = "outline:2px solid #d55e00;" if number == at else ""
        cells.append(
            f"<span style='{frame}background:rgba(0,114,178,{0.5 * p:.2f})'>{shown(character)}</span>"
        )
    line = f"<span style='opacity:.6'>{shown(prompt)}</span>{''.join(cells)}"
    told = passages(model, prompt + text[:at], top).data
    return HTML(f"<p style='font-family:monospace;white-space:pre-wrap'>{line}</p>{told}")


def written(
    model: ContextModel, prompt: str, temperature: float, memory: int, seed: int, length: int = 200
) -> str:
    """What a model writes on after a prompt, as HTML, the prompt in bold."""
    more = model.generate(prompt, length, temperature, seed, memory)
    return f"<pre style='white-space:pre-wrap'><b>{escape(prompt)}</b>{escape(more)}</pre>"
