"""The code stays small and plain: budgets of lines, tokens a line, lengths of files and functions."""

import ast
import io
import statistics
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE = ("_common", "distances", "attention", "neighbors", "nca")
LINES = {  # blank lines and docstrings included
    "core": ([f"nnlib/{name}" for name in CORE], 4000),
    "image_codec": (["nnlib/image_codec"], 1200),
    "language": (["nnlib/language"], 1200),
    "training": (["nnlib/training"], 1200),
    "nnbook": (["nnbook"], 3200),
}
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


@pytest.mark.parametrize("name", LINES)
def test_a_package_stays_within_its_budget_of_lines(name):
    folders, budget = LINES[name]
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in python_files(*folders))
    assert lines <= budget, f"{name} has {lines} lines: retire as many as you add"


@pytest.mark.parametrize("package", ["nnlib", "nnbook"])
def test_lines_are_not_dense(package):
    counts = [tokens_and_lines(path) for path in python_files(package)]
    tokens, lines = (sum(column) for column in zip(*counts, strict=True))
    assert tokens / lines <= 10


@pytest.mark.parametrize("package", ["nnlib", "nnbook"])
def test_files_are_short(package):
    lengths = {
        path: len(path.read_text(encoding="utf-8").splitlines()) for path in python_files(package)
    }
    assert statistics.median(lengths.values()) <= 200
    assert {str(path): length for path, length in lengths.items() if length > 350} == {}


@pytest.mark.parametrize("package", ["nnlib", "nnbook"])
def test_functions_are_short(package):
    too_long = [
        f"{path.relative_to(ROOT)}:{node.name} {node.end_lineno - node.lineno + 1}"
        for path in python_files(package)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 40
    ]
    assert too_long == []


def test_the_readme_is_read_in_a_minute():
    assert len((ROOT / "README.md").read_bytes()) <= 8192
