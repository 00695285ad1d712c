"""One chapter, run headless in a kernel of its own: what it left, and in words how it failed.

Past runs are `reports/runs/<run>/<chapter>.ipynb`, each until the same run is made again.
"""

import hashlib
import re
import tempfile
from pathlib import Path
from typing import Any

from nnbook.notebooks import Chapter, UsageError, literal, parameters_of
from nnbook.results import origin, read_results

LENGTH = 80  # characters of a run's name that its folder keeps


def executed(
    chapter: Path,
    values: dict[str, Any],
    label: str = "",
    timeout: float | None = None,
    folder: Path | None = None,
):
    """Return the notebook of a chapter run with some parameters changed, as far as it came.

    label: of the progress bar, none where it is empty. timeout: seconds that a cell may take.
    folder: where it runs, its own by default. The metadata hold under "nnbook" the parameters,
    the origin, the error ("" where there was none) and the source of the cell that raised it.
    """
    import nbformat

    folder = folder or chapter.parent
    metadata: dict[str, Any] = {"origin": origin(folder), "parameters": whole(chapter, values)}
    with tempfile.TemporaryDirectory() as spare:
        copy = Path(spare) / chapter.name
        for _ in range(2):
            failure = _execute(
                chapter,
                copy,
                values,
                cwd=str(folder),
                execution_timeout=timeout,
                progress_bar={"desc": label} if label else False,
                extra_arguments=["--log-level=CRITICAL"],
            )
            notebook = nbformat.read(copy if copy.exists() else chapter, as_version=4)
            if not failure or _begun(notebook):
                break  # else two kernels may have started at once with the same port
    error, source = _explained(notebook, failure) if failure else ("", "")
    notebook.metadata["nnbook"] = metadata | {"error": error, "source": source}
    notebook.metadata.get("papermill", {}).update(input_path=chapter.name, output_path=chapter.name)
    return notebook


def whole(chapter: Path, values: dict[str, Any]) -> dict[str, Any]:
    """Return all parameters of a chapter: the values given, and defaults for the others."""
    defaults = {name: each["default"] for name, each in parameters_of(chapter).items()}
    return {name: literal(default, default) for name, default in defaults.items()} | values


def _execute(chapter: Path, copy: Path, values: dict, **options) -> Exception | None:
    import papermill
    from papermill.engines import NBClientEngine, papermill_engines

    class WrittenOnce(NBClientEngine):
        """papermill's own engine, but for writing the notebook before and after each cell."""

        @classmethod
        def execute_managed_notebook(cls, nb_man, kernel_name, **words):
            write = nb_man.save
            nb_man.save = lambda **_: None
            try:
                super().execute_managed_notebook(nb_man, kernel_name, **words)
            finally:
                nb_man.save = write
                write()

    papermill_engines.register("nnbook", WrittenOnce)
    try:
        papermill.execute_notebook(str(chapter), str(copy), values, engine_name="nnbook", **options)
    except Exception as error:  # a cell's own, or of a kernel that didn't start or died
        return error
    return None


def _begun(notebook) -> list:
    return [cell for cell in notebook.cells if cell.metadata.get("papermill", {}).get("start_time")]


def _explained(notebook, failure: Exception) -> tuple[str, str]:
    """Return the error in words and the source of its cell: the one with it, or the last begun."""
    from nbclient.exceptions import CellTimeoutError

    begun = _begun(notebook)
    if isinstance(failure, CellTimeoutError):  # which its cell shows as an interruption
        return str(failure).partition("\n")[0], begun[-1].source
    for cell in begun:
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                return f"{output.ename}: {output.evalue}".removesuffix(": "), cell.source
    return f"{type(failure).__name__}: {failure}", begun[-1].source if begun else ""


def safe(name: str) -> str:
    """Return a name that any file system takes: the same where it can be, else with a hash."""
    short = re.sub(r"[^\w=+,.-]+", "_", name, flags=re.ASCII).strip("._")[:LENGTH]
    if name and short == name:
        return name
    return f"{short}-{hashlib.sha256(name.encode()).hexdigest()[:8]}".lstrip("-")


def find(reports: Path, name: str) -> list[Chapter]:
    """Return the chapters of a run, by its name or its folder's, or the one of a notebook's path.

    Raises UsageError where there is no such run, BookError where what is there can't be read.
    """
    path = Path(name)
    if path.suffix == ".ipynb" and path.is_file():
        return [Chapter(path)]
    for folder in (reports / "runs" / safe(name), reports / "runs" / name):
        if paths := sorted(folder.glob("*.ipynb")):
            return [Chapter(path) for path in paths]
    runs = read_results(reports / "results.csv")["run"].unique()
    listed = "".join(f"{run!r}, " for run in runs if (reports / "runs" / safe(run)).is_dir())
    there = f"{f'one of {listed}or ' if listed else ''}the path of a notebook that ran"
    raise UsageError(f"run={name!r} isn't there: give {there}")
