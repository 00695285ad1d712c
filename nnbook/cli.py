"""The book's own tool: `nnbook run` runs chapters, `nnbook sweep` runs one at many points, `nnbook report` renders what
they left, `nnbook list` shows them.

A chapter is notebooks/NN_name.ipynb. Its cell tagged "parameters" holds what -p may change, one `name = value  # help`
a line. What it passes to `record` goes to results.csv and the front page, along with its lede and the picture of the
cell tagged "headline"; cells tagged "hide-in-report" stay out of its page.
"""

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from nnbook.execution import DEFAULT, executed, kept
from nnbook.notebooks import (
    ROOT,
    assign,
    find_chapters,
    near,
    offered,
    parameters_of,
    require_writable,
)
from nnbook.results import RECORDED, BookError, add_results, read_results
from nnlib._common.files import atomic_write


def run_chapter(
    chapter: Path, values: dict[str, Any], name: str, reports: Path, record_it: bool = False
) -> str:
    """Run one chapter headless, and leave its notebook and its figures in `reports`, those of a failing one too.

    The notebook is left in runs/ as that of the run `name`, and in the book itself where that is the default one, or
    where the book has no default one of this chapter yet.
    With `record_it` the figures of one that passes are also kept in reports/recorded/, with what they depend on.
    Returns the failure in words, "" where there was none.
    """
    import nbformat

    notebook = executed(chapter, values, chapter.stem)
    error, source = (notebook.metadata["nnbook"][key] for key in ("error", "source"))
    notebook.metadata["nnbook"] |= {"run": name, "command": _command(chapter, values, name)}
    for path in [kept(reports, name, chapter.name), *_in_the_book(reports / chapter.name, name)]:
        with atomic_write(path) as part:
            nbformat.write(notebook, part)
    add_results(reports / "results.csv", chapter.stem, notebook)
    if record_it and not error:
        add_results(reports / "recorded" / f"{chapter.stem}.csv", chapter.stem, notebook, RECORDED)
    return f"{chapter.stem} failed: {error}\n\n{source}\n" if error else ""


def _in_the_book(path: Path, name: str) -> list[Path]:
    """The path of a chapter in the book, where a run of this name is the one to be shown there."""
    from nnbook.notebooks import Chapter

    return (
        []
        if name != DEFAULT and path.exists() and Chapter(path).run.get("run") == DEFAULT
        else [path]
    )


def _command(chapter: Path, values: dict[str, Any], name: str) -> str:
    changes = [word for key, value in values.items() for word in ("-p", key, str(value))]
    return shlex.join(["nnbook", "run", chapter.stem[:2], *changes, "--name", name, "--record"])


def run(args: argparse.Namespace) -> int:
    """Run chapters, and write notebooks, pages, the table of results and the front page; 1 where a chapter failed."""
    from nnbook.site import report

    chapters = find_chapters(args.notebooks, args.chapters)
    values = assign(chapters, args.parameter)
    require_writable(args.reports)
    read_results(args.reports / "results.csv")
    failed = False
    for chapter in chapters:
        changes = ", ".join(f"{name}={value}" for name, value in values[chapter].items())
        name = args.name or changes or DEFAULT
        failure = run_chapter(chapter, values[chapter], name, args.reports, args.record)
        page = report.write_run(kept(args.reports, name, chapter.name), chapter.parent)
        failed |= bool(failure)
        if failure:
            print(f"\n{failure}\nSee {near(page)}, and the notebook beside it.", file=sys.stderr)
        print(near(page))
    print(near(args.reports / "results.csv"))
    print(near(report.write(args.reports, args.notebooks)))
    return int(failed)


def render(args: argparse.Namespace) -> int:
    """Render the pages of all chapters that ran, the comparison that is asked for, and the front page."""
    from nnbook.site import comparison, report

    if args.compare:
        print(near(comparison.write(args.reports, *args.compare)))
    print(near(report.write(args.reports, args.notebooks)))
    return 0


def show(args: argparse.Namespace) -> int:
    """Print the chapters with their parameters."""
    chapters = find_chapters(args.notebooks, args.chapters)
    print("\n\n".join(offered(chapter, parameters_of(chapter)) for chapter in chapters))
    return 0


def sweep(args: argparse.Namespace) -> int:
    """Run one chapter at many points; 1 where some failed."""
    from nnbook.sweep.runner import sweep

    return sweep(args)


KEPT = {  # of a command that is interrupted
    run: "; chapters that had ended are kept, and `nnbook report` shows them; of the one under way nothing is",
    sweep: "; points that had ended are kept, and the same command goes on from there",
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "nnbook", description="Runs the chapters of this book and renders their report."
    )
    commands = parser.add_subparsers(required=True, metavar="run | sweep | report | list")
    for name, command, does in (
        ("run", run, "run chapters and render them"),
        ("sweep", sweep, "run one chapter at many points; started again, it goes on where it was"),
        ("report", render, "render again what was run"),
        ("list", show, "show chapters and their parameters"),
    ):
        sub = commands.add_parser(name, help=does, description=does)
        sub.set_defaults(command=command)
        sub.add_argument(
            "--notebooks",
            type=Path,
            default=ROOT / "notebooks",
            metavar="DIR",
            help="where chapters are",
        )
        if command in (run, show):
            sub.add_argument(
                "chapters",
                nargs="*",
                metavar="CHAPTER",
                help="a number, name or path; none means all",
            )
        if command is not show:
            sub.add_argument(
                "--reports",
                type=Path,
                default=ROOT / "reports",
                metavar="DIR",
                help="where pages go",
            )
        if command is render:
            runs = {
                "nargs": 2,
                "metavar": ("RUN_A", "RUN_B"),
                "help": "also set two runs side by side",
            }
            sub.add_argument("--compare", **runs)
        if command in (run, sweep):
            pair = {
                "nargs": 2,
                "metavar": ("NAME", "VALUE"),
                "type": lambda word: word.removeprefix(" "),
            }
            sub.add_argument(
                "-p",
                dest="parameter",
                action="append",
                default=[],
                help="as in -p exponent -6",
                **pair,
            )
        if command is run:
            sub.add_argument(
                "--record", action="store_true", help="also keep the figures in reports/recorded/"
            )
            sub.add_argument(
                "--name", default="", metavar="RUN", help="what results.csv calls this run"
            )
        if command is sweep:
            _add_sweep(sub)
    return parser


def _add_sweep(sub: argparse.ArgumentParser) -> None:
    grid = {"action": "append", "default": [], "metavar": "NAME=VALUE,VALUE"}
    sub.add_argument("chapter", metavar="CHAPTER", help="its number, name or path")
    sub.add_argument(
        "-g", dest="grid", help="values of a parameter; with --random also NAME=LOW..HIGH", **grid
    )
    sub.add_argument(
        "--table", type=Path, metavar="CSV", help="points as rows, with parameters as columns"
    )
    sub.add_argument(
        "--random", type=_count, default=0, metavar="N", help="draw so many points of the grid"
    )
    sub.add_argument("--seed", type=int, default=0, help="of the drawing")
    sub.add_argument("--name", default="", metavar="SWEEP", help="of its folder in reports/sweeps/")
    sub.add_argument(
        "--jobs", type=_count, default=1, metavar="N", help="points at once on this machine"
    )
    sub.add_argument(
        "--scheduler",
        default="",
        metavar="tcp://HOST:PORT",
        help="of a Dask cluster that runs them",
    )
    sub.add_argument("--metric", default="", help="which to call the best by")
    sub.add_argument(
        "--timeout", type=_count, metavar="SECONDS", help="that a cell may take, or its point fails"
    )


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} isn't a whole number above 0")
    return int(text)


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
        print(f"\nnnbook: interrupted{KEPT.get(args.command, '')}", file=sys.stderr)
        return 130
