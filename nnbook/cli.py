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

from nnbook.execution import executed, kept
from nnbook.notebooks import (
    DEFAULT,
    ROOT,
    Chapter,
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
    chapter: Path, values: dict[str, Any], args: argparse.Namespace
) -> tuple[Path, str]:
    """Run one chapter headless; return the path of its notebook, and in words how it failed, "" where it didn't.

    The notebook is left in runs/, and in the book itself where the run is the default one or the book has no default
    one of this chapter yet. With --record, the figures of one that passes go to reports/recorded/ too.
    """
    import nbformat

    name = args.name or ", ".join(f"{key}={value}" for key, value in values.items()) or DEFAULT
    notebook = executed(chapter, values, chapter.stem)
    metadata = notebook.metadata["nnbook"]
    metadata["run"] = name
    changes = [word for key, value in values.items() for word in ("-p", key, str(value))]
    command = ["nnbook", "run", chapter.stem[:2], *changes, "--name", name, "--record"]
    metadata["command"] = shlex.join(command)
    path = kept(args.reports, name, chapter.name)
    in_book = args.reports / chapter.name
    holds_default = in_book.exists() and Chapter(in_book).run.get("run") == DEFAULT
    for target in [path] if holds_default and name != DEFAULT else [path, in_book]:
        with atomic_write(target) as part:
            nbformat.write(notebook, part)
    add_results(args.reports / "results.csv", chapter.stem, notebook)
    if args.record and not metadata["error"]:
        table = args.reports / "recorded" / f"{chapter.stem}.csv"
        add_results(table, chapter.stem, notebook, RECORDED)
    failure = f"{chapter.stem} failed: {metadata['error']}\n\n{metadata['source']}\n"
    return path, failure if metadata["error"] else ""


def run(args: argparse.Namespace) -> int:
    """Run chapters, and write notebooks, pages, the table of results and the front page; 1 where a chapter failed."""
    from nnbook.site import report

    chapters = find_chapters(args.notebooks, args.chapters)
    values = assign(chapters, args.parameter)
    require_writable(args.reports)
    read_results(args.reports / "results.csv")
    failed = False
    for chapter in chapters:
        path, failure = run_chapter(chapter, values[chapter], args)
        page = near(report.write_run(path, chapter.parent))
        failed = failed or bool(failure)
        if failure:
            print(f"\n{failure}\nSee {page}, and the notebook beside it.", file=sys.stderr)
        print(page)
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
    about = "Runs the chapters of this book and renders their report."
    parser = argparse.ArgumentParser("nnbook", description=about)
    commands = parser.add_subparsers(required=True, metavar="run | sweep | report | list")

    def command(name, function, about, *shared):
        made = commands.add_parser(name, help=about, description=about, parents=shared)
        made.set_defaults(command=function)
        return made

    chapters = _options("--notebooks", default=ROOT / "notebooks", help="where chapters are")
    reports = _options("--reports", default=ROOT / "reports", help="where pages go")
    values = argparse.ArgumentParser(add_help=False)
    values.add_argument(
        "-p",
        dest="parameter",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        type=lambda word: word.removeprefix(" "),
        help="as in -p exponent -6",
    )
    made = command("run", run, "run chapters and render them", chapters, reports, values)
    _add_chapters(made)
    made.add_argument(
        "--record", action="store_true", help="also keep figures in reports/recorded/"
    )
    made.add_argument("--name", default="", metavar="RUN", help="what results.csv calls this run")
    about = "run one chapter at many points; started again, it goes on where it was"
    _add_sweep(command("sweep", sweep, about, chapters, reports, values))
    made = command("report", render, "render again what was run", chapters, reports)
    about = "also set two runs side by side"
    made.add_argument("--compare", nargs=2, metavar=("RUN_A", "RUN_B"), help=about)
    _add_chapters(command("list", show, "show chapters and their parameters", chapters))
    return parser


def _options(name: str, **words) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(name, type=Path, metavar="DIR", **words)
    return parser


def _add_chapters(parser: argparse.ArgumentParser) -> None:
    about = "a number, name or path; none means all"
    parser.add_argument("chapters", nargs="*", metavar="CHAPTER", help=about)


def _add_sweep(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    about = "values of a parameter; with --random also NAME=LOW..HIGH"
    add("chapter", metavar="CHAPTER", help="its number, name or path")
    add("-g", dest="grid", action="append", default=[], metavar="NAME=VALUE,VALUE", help=about)
    add("--table", type=Path, metavar="CSV", help="points as rows, with parameters as columns")
    add("--random", type=_count, default=0, metavar="N", help="draw so many points of the grid")
    add("--seed", type=int, default=0, help="of the drawing")
    add("--name", default="", metavar="SWEEP", help="of its folder in reports/sweeps/")
    add("--jobs", type=_count, default=1, metavar="N", help="points at once on this machine")
    about = "of a Dask cluster that runs them"
    add("--scheduler", default="", metavar="tcp://HOST:PORT", help=about)
    add("--metric", default="", help="which to call the best by")
    about = "that a cell may take, or its point fails"
    add("--timeout", type=_count, metavar="SECONDS", help=about)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} isn't a whole number above 0")
    return int(text)


def main(argv: list[str] | None = None) -> int:
    """Run a command line; return its exit status: 1 for what failed, 2 for what can't be asked, 130 for Ctrl-C."""
    words = sys.argv[1:] if argv is None else list(argv)
    for place, word in enumerate(words[:-2]):
        if word == "-p":
            words[place + 2] = " " + words[place + 2]  # or argparse takes -1e-3 for an option
    args = _parser().parse_args(words)
    try:
        return args.command(args)
    except (BookError, OSError) as error:
        print(f"nnbook: {error}", file=sys.stderr)
        return getattr(error, "code", 1)
    except KeyboardInterrupt:
        print(f"\nnnbook: interrupted{KEPT.get(args.command, '')}", file=sys.stderr)
        return 130
