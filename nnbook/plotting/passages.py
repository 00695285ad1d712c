"""The passages behind a predicted character, and a text coloured by its probabilities."""

from html import escape
from os.path import commonprefix

from IPython.display import HTML

from nnlib import ContextModel

MARK = "font-weight:bold;background:rgba(230,159,0,.35)"
CELL = "padding:0 .4em;white-space:pre;font-family:monospace"


def escape_text(text: str) -> str:
    """Return text as HTML in one line, its line breaks as visible signs."""
    return escape(text).replace("\n", "↵")


def passages(model: ContextModel, context: str, top: int = 8) -> HTML:
    """Return a table of the passages of most weight; what matches the context is underlined."""
    rows = []
    for weight, _, before, character, after in model.explain(context, top, around=30):
        n_same = len(commonprefix([before[::-1], context[::-1]]))
        start = len(before) - n_same
        match = f"{escape_text(before[:start])}<u>{escape_text(before[start:])}</u>"
        rows.append(
            f"<tr><td style='{CELL};text-align:right'>{100 * weight:.1f} %</td>"
            f"<td style='{CELL};text-align:right'>{match}</td>"
            f"<td style='{CELL};{MARK}'>{escape_text(character)}</td>"
            f"<td style='{CELL};text-align:left'>{escape_text(after)}</td></tr>"
        )
    return HTML(f"<table style='overflow-x:auto;display:block'>{''.join(rows)}</table>")


def character_probabilities(model: ContextModel, prompt: str, text: str) -> list[float]:
    """Return the probability of each character of a text, given the prompt and those before it."""
    columns = [model.alphabet_.index(character) for character in text]
    contexts = [prompt + text[:number] for number in range(len(text))]
    pairs = zip(contexts, columns, strict=True)
    return [model.predict_proba(context)[column] for context, column in pairs]


def explain_character(
    model: ContextModel, prompt: str, text: str, probabilities: list[float], at: int, top: int = 6
) -> str:
    """Return as HTML a text, darker where it was probable, and the passages for character `at`."""
    cells = []
    for number, (character, p) in enumerate(zip(text, probabilities, strict=True)):
        frame = "outline:2px solid #d55e00;" if number == at else ""
        style = f"{frame}background:rgba(0,114,178,{0.5 * p:.2f})"
        cells.append(f"<span style='{style}'>{escape_text(character)}</span>")
    line = f"<span style='opacity:.6'>{escape_text(prompt)}</span>{''.join(cells)}"
    table = passages(model, prompt + text[:at], top).data
    return f"<p style='font-family:monospace;white-space:pre-wrap'>{line}</p>{table}"


def continuation(
    model: ContextModel, prompt: str, temperature: float, memory: int, seed: int, length: int = 200
) -> str:
    """Return as HTML what a model writes after a prompt, the prompt in bold."""
    text = model.generate(prompt, length, temperature, seed, memory)
    return f"<pre style='white-space:pre-wrap'><b>{escape(prompt)}</b>{escape(text)}</pre>"
