"""The book's own tool: `nnbook run` runs chapters, `nnbook report` renders what they left, `nnbook list` shows them.

A chapter is notebooks/NN_name.ipynb. Its cell tagged "parameters" holds what -p may change, one `name = value  # help`
a line. What it passes to `record` goes to results.csv and the front page, along with its lede and the picture of the
cell tagged "headline"; cells tagged "hide-in-report" stay out of its page.
"""

import argparse
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

from nnbook.parameters import UsageError, assign, literal, offered, parameters_of
from nnbook.results import RECORDED, BookError, add_results, origin, read_results
from nnbook.runs import kept
from nnlib.files import written_whole

ROOT = Path(__file__).parents[1]


def find_chapters(folder: Path, asked: list[str]) -> list[Path]:
    """The notebooks that `asked` names by number, stem or path; all of the folder where it names none.

    Raises UsageError where it names what isn't there.
    """
    known = sorted(folder.resolve().glob("[0-9][0-9]_*.ipynb"))
    if not known and not asked:
        raise UsageError(f"notebooks={str(folder)!r} holds no chapter: give a folder with NN_name.ipynb in it")
    found = [path for name in asked for path in _matches(name, known)]
    return list(dict.fromkeys(found)) or known


def _matches(name: str, known: list[Path]) -> list[Path]:
    path = Path(name).resolve()
    if path.is_file() and path.match("[0-9][0-9]_*.ipynb"):
        return [path]
    matches = [path for path in known if name == path.stem or (name.isdecimal() and int(name) == int(path.stem[:2]))]
    if not matches:
        there = ", ".join(path.stem for path in known) or "a path to NN_name.ipynb"
        raise UsageError(f"chapter={name!r} isn't there: give one of {there}")
    return matches


def run_chapter(chapter: Path, values: dict[str, Any], name: str, reports: Path, record_it: bool = False) -> str:
    """Run one chapter headless, and leave its notebook and its figures in `reports`, those of a failing one too.

    The notebook is left twice: as the chapter's newest, and in runs/ as that of the run `name`.
    With `record_it` the figures of one that passes are also kept in reports/recorded/, with what they depend on.
    Returns the failure in words, "" where there was none.
    """
    import nbformat

    told = {"origin": origin(chapter.parent)}
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / chapter.name
        failure = _execute(chapter, copy, values)
        notebook = nbformat.read(copy if copy.exists() else chapter, as_version=4)
    error, source = _told(notebook, failure) if failure else ("", "")
    defaults = {key: literal(p["default"], p["default"]) for key, p in parameters_of(chapter).items()}
    told |= {"run": name, "parameters": defaults | values, "error": error, "command": _command(chapter, values, name)}
    notebook.metadata["nnbook"] = told
    notebook.metadata.get("papermill", {}).update(input_path=chapter.name, output_path=chapter.name)
    for path in (kept(reports, name, chapter.name), reports / chapter.name):
        with written_whole(path) as part:
            nbformat.write(notebook, part)
    add_results(reports / "results.csv", chapter.stem, notebook)
    if record_it and not failure:
        add_results(reports / "recorded" / f"{chapter.stem}.csv", chapter.stem, notebook, RECORDED)
    return f"{chapter.stem} failed: {error}\n\n{source}\n" if failure else ""


def _command(chapter: Path, values: dict[str, Any], name: str) -> str:
    changes = [word for key, value in values.items() for word in ("-p", key, str(value))]
    return shlex.join(["nnbook", "run", chapter.stem[:2], *changes, "--name", name, "--record"])


def _execute(chapter: Path, copy: Path, values: dict[str, Any]) -> Exception | None:
    import papermill

    try:
        how = {"progress_bar": {"desc": chapter.stem}, "extra_arguments": ["--log-level=CRITICAL"]}
        papermill.execute_notebook(str(chapter), str(copy), values, cwd=str(chapter.parent), **how)
    except Exception as error:  # a cell's own, or of a kernel that didn't start or died
        return error
    return None


def _told(notebook, failure: Exception) -> tuple[str, str]:
    """The error in words and the source of its cell, which is the one that shows an error, else the last begun."""
    begun = [cell for cell in notebook.cells if cell.metadata.get("papermill", {}).get("start_time")]
    for cell in begun:
        for output in (output for output in cell.get("outputs", []) if output.output_type == "error"):
            return f"{output.ename}: {output.evalue}".removesuffix(": "), cell.source
    return f"{type(failure).__name__}: {failure}", begun[-1].source if begun else ""


def run(args: argparse.Namespace) -> int:
    """Run chapters, and write notebooks, pages, the table of results and the front page; 1 where a chapter failed."""
    from nnbook import report

    chapters = find_chapters(args.notebooks, args.chapters)
    values = assign(chapters, args.parameter)
    _check_writable(args.reports)
    failed = False
    for chapter in chapters:
        changes = ", ".join(f"{name}={value}" for name, value in values[chapter].items())
        failure = run_chapter(chapter, values[chapter], args.name or changes or "default", args.reports, args.record)
        page = report.write_page(report.Chapter(args.reports / chapter.name), chapter.parent)
        failed |= bool(failure)
        if failure:
            print(f"\n{failure}\nSee {_near(page)}, and the notebook beside it.", file=sys.stderr)
        print(_near(page))
    print(_near(args.reports / "results.csv"))
    print(_near(report.write(args.reports, args.notebooks)))
    return int(failed)


def _check_writable(reports: Path) -> None:
    """Refuse, before hours of work, a folder that can't take what they yield."""
    try:
        reports.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=reports).close()
    except OSError as error:
        why = f"can't be written ({error.strerror}): give a folder that can be, or free this one"
        raise BookError(f"reports={str(reports)!r} {why}") from error
    read_results(reports / "results.csv")


def _near(path: Path) -> str:
    """The path as seen from here where it is below, in full elsewhere."""
    path = path.resolve()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def render(args: argparse.Namespace) -> int:
    """Render the pages of all chapters that ran, the comparison that is asked for, and the front page."""
    from nnbook import compare, report

    if args.compare:
        print(_near(compare.write(args.reports, *args.compare)))
    print(_near(report.write(args.reports, args.notebooks)))
    return 0


def show(args: argparse.Namespace) -> int:
    """Print the chapters with their parameters."""
    chapters = find_chapters(args.notebooks, args.chapters)
    print("\n\n".join(offered(chapter, parameters_of(chapter)) for chapter in chapters))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("nnbook", description="Runs the chapters of this book and renders their report.")
    commands = parser.add_subparsers(required=True, metavar="run | report | list")
    for name, command, does in (
        ("run", run, "run chapters and render them"),
        ("report", render, "render again what was run"),
        ("list", show, "show chapters and their parameters"),
    ):
        sub = commands.add_parser(name, help=does, description=does)
        sub.set_defaults(command=command)
        sub.add_argument("--notebooks", type=Path, default=ROOT / "notebooks", metavar="DIR", help="where chapters are")
        if command is not render:
            sub.add_argument("chapters", nargs="*", metavar="CHAPTER", help="a number, name or path; none means all")
        if command is not show:
            sub.add_argument("--reports", type=Path, default=ROOT / "reports", metavar="DIR", help="where pages go")
        if command is render:
            runs = {"nargs": 2, "metavar": ("RUN_A", "RUN_B"), "help": "also set two runs side by side"}
            sub.add_argument("--compare", **runs)
        if command is run:
            pair = {"nargs": 2, "metavar": ("NAME", "VALUE"), "type": lambda word: word.removeprefix(" ")}
            sub.add_argument("-p", dest="parameter", action="append", default=[], help="as in -p exponent -6", **pair)
            sub.add_argument("--record", action="store_true", help="also keep the figures in reports/recorded/")
            sub.add_argument("--name", default="", metavar="RUN", help="what results.csv calls this run")
    return parser


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status: 1 for what failed, 2 for what can't be asked, 130 for Ctrl-C."""
    words = sys.argv[1:] if argv is None else list(argv)
    for place in [at + 2 for at, word in enumerate(words[:-2]) if word == "-p"]:
        words[place] = " " + words[place]  # or argparse takes -1e-3 for an option
    args = _parser().parse_args(words)
    try:
        return args.command(args)
    except (BookError, OSError) as error:
        print(f"nnbook: {error}", file=sys.stderr)
        return getattr(error, "code", 1)
    except KeyboardInterrupt:
        print("\nnnbook: interrupted; what had ended is kept, and `nnbook report` shows it", file=sys.stderr)
        return 130
