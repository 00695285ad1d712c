"""What may be changed in a chapter: the parameters of its tagged cell, and values for them that fit."""

import ast
import difflib
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nnbook.results import BookError

Parameters = dict[str, dict[str, str]]  # name -> {"default" (as it is written), "help"}
CHOICES = re.compile(r"\w+(, \w+)* or \w+")


class UsageError(BookError):
    """A command line that asks for what isn't there."""

    code = 2


def parameters_of(chapter: Path) -> Parameters:
    """What -p may change in a chapter; raises BookError where the file isn't a notebook."""
    import papermill

    try:
        found = papermill.inspect_notebook(str(chapter))
        return {name: {"default": told["default"], "help": told["help"]} for name, told in found.items()}
    except Exception as error:
        why = f"can't be read as a notebook ({error}): open it in JupyterLab, pick a kernel, and save it"
        raise BookError(f"chapter={str(chapter)!r} {why}") from error


def offered(chapter: Path, parameters: Parameters) -> str:
    """A chapter's parameters with their defaults and help, a line each."""
    name_width = max(map(len, parameters), default=0)
    width = max((len(parameter["default"]) for parameter in parameters.values()), default=0)
    lines = [f"  {name:{name_width}}  {p['default']:{width}}  {p['help']}".rstrip() for name, p in parameters.items()]
    return "\n".join([chapter.stem, *(lines or ["  no parameters"])])


def assign(chapters: list[Path], given: list[list[str]]) -> dict[Path, dict[str, Any]]:
    """Which chapter runs with which of the parameters in `given`, each of the type of its default there.

    Raises UsageError naming a parameter that no chapter has or a value that doesn't fit, and what there is.
    """
    known = {chapter: parameters_of(chapter) for chapter in chapters}
    values: dict[Path, dict[str, Any]] = {chapter: {} for chapter in chapters}
    there = "\n".join(offered(*item) for item in known.items())
    for name, text in given:
        holders = [chapter for chapter in chapters if name in known[chapter]]
        if not holders:
            names = [name for parameters in known.values() for name in parameters]
            hint = f" ({meant(name, names)})" if meant(name, names) else ""
            raise UsageError(f"parameter {name!r} is in none of the chapters asked for{hint}, which have\n{there}")
        try:
            for chapter in holders:
                values[chapter][name] = typed(text, **known[chapter][name])
        except ValueError as error:
            raise UsageError(f"parameter {name}={text!r} doesn't fit: {error}\n{there}") from error
    return values


def meant(name: str, names: Iterable[str]) -> str:
    """A question after the name that somebody may have meant, "" where none is near."""
    return "".join(f"did you mean {near}?" for near in difflib.get_close_matches(name, names, 1))


def typed(text: str, default: str, help: str = "") -> Any:
    """The value that `text` stands for, of the type of a parameter's default, which is given as it is written.

    A default of None, or one that is computed, holds it to no type. Where the help lists words, as in `red, green or
    blue`, and the default is one of them, the value is one too. Raises ValueError saying what would do.
    """
    like = literal(default)
    readers = {int: int, float: float, str: str}
    try:
        value = readers.get(type(like), lambda word: literal(word, word))(text)
    except ValueError:
        value = None
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("give a finite number")
    if like is not None and type(value) is not type(like):
        raise ValueError(f"give a value of type {type(like).__name__}, as its default {default} is")
    words = re.split(", | or ", help) if CHOICES.fullmatch(help) else []
    if like in words and value not in words:
        raise ValueError(f"give {help}")
    return value


def literal(text: str, otherwise: Any = None) -> Any:
    """The value that Python would read, or `otherwise` where it is none."""
    words = {"true": True, "false": False}
    try:
        return words[text.lower()] if text.lower() in words else ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError):
        return otherwise
