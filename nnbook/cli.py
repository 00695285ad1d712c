"""The book's own tool: `nnbook run` runs chapters, `nnbook sweep` runs one at many points,
`nnbook report` renders what they left, `nnbook list` shows them.

A chapter is notebooks/NN_name.ipynb. Its cell tagged "parameters" holds what -p may change, one
`name = value  # help` a line. What it passes to `record` goes to results.csv and the front page,
with its first paragraph and the picture of the cell tagged "headline"; cells tagged
"hide-in-report" stay out of its page.
"""

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from nnbook import notebooks
from nnbook.execution import executed, safe
from nnbook.notebooks import DEFAULT, ROOT, Chapter, near
from nnbook.results import RECORDED, BookError, add_results, read_results
from nnlib._common.files import atomic_write


def run(args: argparse.Namespace) -> int:
    """Run chapters, and write notebooks, pages, the table of results and the front page."""
    from nnbook.site import report

    chapters = notebooks.find_chapters(args.notebooks, args.chapters)
    values = notebooks.assign(chapters, args.parameter)
    notebooks.require_writable(args.reports)
    read_results(args.reports / "results.csv")
    status = 0
    for chapter in chapters:
        path, failure = _run_chapter(chapter, values[chapter], args)
        page = near(report.write_run(path, chapter.parent))
        if failure:
            print(f"\n{failure}\nSee {page}, and the notebook beside it.", file=sys.stderr)
            status = 1
        print(page)
    print(near(args.reports / "results.csv"))
    print(near(report.write(args.reports, args.notebooks)))
    return status


def _run_chapter(chapter: Path, values: dict[str, Any], args) -> tuple[Path, str]:
    """Run one chapter; return the path of its notebook, and in words how it failed, if it did.

    The notebook is left in runs/, and in the book itself where the run is the default one or the
    book has no default one of this chapter yet.
    """
    import nbformat

    name = args.name or ", ".join(f"{key}={value}" for key, value in values.items()) or DEFAULT
    notebook = executed(chapter, values, chapter.stem)
    metadata = notebook.metadata["nnbook"]
    changes = [word for key, value in values.items() for word in ("-p", key, str(value))]
    command = ["nnbook", "run", chapter.stem[:2], *changes, "--name", name, "--record"]
    metadata |= {"run": name, "command": shlex.join(command)}
    path = args.reports / "runs" / safe(name) / chapter.name
    in_book = args.reports / chapter.name
    holds_default = in_book.exists() and Chapter(in_book).run.get("run") == DEFAULT
    for target in [path] if holds_default and name != DEFAULT else [path, in_book]:
        with atomic_write(target) as part:
            nbformat.write(notebook, part)
    add_results(args.reports / "results.csv", chapter.stem, notebook)
    if metadata["error"]:
        return path, f"{chapter.stem} failed: {metadata['error']}\n\n{metadata['source']}\n"
    if args.record:
        table = args.reports / "recorded" / f"{chapter.stem}.csv"
        add_results(table, chapter.stem, notebook, RECORDED)
    return path, ""


def render(args: argparse.Namespace) -> int:
    """Render the pages of all chapters that ran, a comparison if asked for, and the front page."""
    from nnbook.site import comparison, report

    if args.compare:
        print(near(comparison.write(args.reports, *args.compare)))
    print(near(report.write(args.reports, args.notebooks)))
    return 0


def show(args: argparse.Namespace) -> int:
    """Print the chapters with their parameters."""
    chapters = notebooks.find_chapters(args.notebooks, args.chapters)
    parts = [notebooks.offered(path, notebooks.parameters_of(path)) for path in chapters]
    print("\n\n".join(parts))
    return 0


def sweep(args: argparse.Namespace) -> int:
    """Run one chapter at many points; 1 where some failed."""
    from nnbook.sweep.runner import sweep

    return sweep(args)


INTERRUPTED = {  # what is left of a command that is
    run: "; chapters that had ended are kept, and `nnbook report` shows them;"
    " of the one under way nothing is",
    sweep: "; points that had ended are kept, and the same command goes on from there",
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("nnbook", description="Run chapters and render their report.")
    commands = parser.add_subparsers(required=True, metavar="run | sweep | report | list")

    def command(name, function, about, *shared):
        made = commands.add_parser(name, help=about, description=about, parents=shared)
        made.set_defaults(command=function)
        return made.add_argument

    folder = _shared("--notebooks", type=Path, default=ROOT / "notebooks", help="of the chapters")
    reports = _shared("--reports", type=Path, default=ROOT / "reports", help="where pages go")
    chapters = _shared("chapters", nargs="*", help="numbers, names or paths; none means all")
    pair = {"nargs": 2, "action": "append", "default": [], "metavar": ("NAME", "VALUE")}
    values = _shared("-p", dest="parameter", type=_unspaced, help="as in -p exponent -6", **pair)
    add = command("run", run, "run chapters and render them", chapters, folder, reports, values)
    add("--record", action="store_true", help="also keep the figures in reports/recorded/")
    add("--name", default="", metavar="RUN", help="what results.csv calls this run")
    about = "run one chapter at many points; started again, it goes on where it was"
    _add_sweep(command("sweep", sweep, about, folder, reports, values))
    add = command("report", render, "render again what was run", folder, reports)
    add("--compare", nargs=2, metavar=("RUN_A", "RUN_B"), help="also set two runs side by side")
    command("list", show, "show chapters and their parameters", chapters, folder)
    return parser


def _shared(*names: str, **words) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(*names, **words)
    return parser


def _add_sweep(add) -> None:
    add("chapter", help="its number, name or path")
    grid = {"action": "append", "default": [], "metavar": "NAME=VALUE,VALUE"}
    add("-g", dest="grid", help="of a parameter; with --random also NAME=LOW..HIGH", **grid)
    add("--table", type=Path, metavar="CSV", help="points as rows, with parameters as columns")
    add("--random", type=_count, default=0, metavar="N", help="draw so many points of the grid")
    add("--seed", type=int, default=0, help="of the drawing")
    add("--name", default="", metavar="SWEEP", help="of its folder in reports/sweeps/")
    add("--jobs", type=_count, default=1, metavar="N", help="points at once on this machine")
    add("--scheduler", default="", metavar="tcp://HOST:PORT", help="of a Dask cluster to run on")
    add("--metric", default="", help="which to call the best by")
    add("--timeout", type=_count, metavar="SECONDS", help="that a cell may take")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} isn't a whole number above 0")
    return int(text)


def _unspaced(text: str) -> str:
    return text.removeprefix(" ")


def main(argv: list[str] | None = None) -> int:
    """Run a command line; return its exit status: 1 for what failed, 2 for what can't be asked."""
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
        print(f"\nnnbook: interrupted{INTERRUPTED.get(args.command, '')}", file=sys.stderr)
        return 130
