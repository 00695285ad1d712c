"""The code stays small and plain: lines, tokens a line, lengths of files and functions only fall.

The bars that they are to reach are rows of `make claims` (tests/figures/test_house_figures.py).
"""

import ast
import io
import statistics
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE = ("_common", "distances", "attention", "neighbors", "nca")
FOLDERS = {"core": [f"nnlib/{name}" for name in CORE]} | {
    name: [f"nnlib/{name}"] for name in ("image_codec", "language", "training")
}
FOLDERS["nnbook"] = ["nnbook"]
LINES = {  # blank lines and docstrings included: lower a number when you get below it
    "core": 6700,
    "image_codec": 1200,
    "language": 1200,
    "training": 1200,
    "nnbook": 4371,
}
TOKENS = {"nnlib": 10.95, "nnbook": 11.2}  # a line of code
LAYOUT = {
    tokenize.COMMENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
    tokenize.INDENT,
    tokenize.NEWLINE,
    tokenize.NL,
}


def python_files(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def docstring_lines(tree: ast.Module) -> set[int]:
    lines: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            if ast.get_docstring(node, clean=False) is not None:
                first = node.body[0]
                lines.update(range(first.lineno, first.end_lineno + 1))
    return lines


def tokens_and_lines(path: Path) -> tuple[int, int]:
    """How many tokens of code a file has, and on how many lines they stand."""
    source = path.read_text(encoding="utf-8")
    skipped = docstring_lines(ast.parse(source))
    tokens = [
        token
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type not in LAYOUT and token.start[0] not in skipped
    ]
    lines = {line for token in tokens for line in range(token.start[0], token.end[0] + 1)}
    return len(tokens), len(lines)


def file_lengths(*folders: str) -> dict[Path, int]:
    return {
        path: len(path.read_text(encoding="utf-8").splitlines()) for path in python_files(*folders)
    }


def tokens_a_line(*folders: str) -> float:
    counts = [tokens_and_lines(path) for path in python_files(*folders)]
    tokens, lines = (sum(column) for column in zip(*counts, strict=True))
    return tokens / lines


def function_lengths(*folders: str) -> dict[str, int]:
    """Lines of each function, without those of its docstring."""
    lengths = {}
    for path in python_files(*folders):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        skipped = docstring_lines(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                lines = set(range(node.lineno, node.end_lineno + 1)) - skipped
                lengths[f"{path.relative_to(ROOT)}:{node.name}"] = len(lines)
    return lengths


@pytest.mark.parametrize("name", LINES)
def test_a_package_does_not_grow(name):
    lines = sum(file_lengths(*FOLDERS[name]).values())
    assert lines <= LINES[name], f"{name} has {lines} lines: retire as many as you add"


@pytest.mark.parametrize("package", TOKENS)
def test_lines_do_not_get_denser(package):
    assert tokens_a_line(package) <= TOKENS[package]


@pytest.mark.parametrize("package", ["nnlib", "nnbook"])
def test_files_are_short(package):
    lengths = file_lengths(package)
    assert statistics.median(lengths.values()) <= 200
    assert {str(path): length for path, length in lengths.items() if length > 350} == {}


@pytest.mark.parametrize("package", ["nnlib", "nnbook"])
def test_functions_are_short(package):
    too_long = {name: lines for name, lines in function_lengths(package).items() if lines > 40}
    assert too_long == {}


def test_the_readme_is_read_in_a_minute():
    assert len((ROOT / "README.md").read_bytes()) <= 8192
