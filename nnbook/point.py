"""One point of a sweep, as a worker runs it: on this machine or another, it needs the installed packages alone.

What it did comes back as text; only the process that asked writes files.
"""

import hashlib
import json
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from getpass import getuser
from pathlib import Path
from typing import Any, NamedTuple

import nnlib
from nnbook.results import figures_of


class Task(NamedTuple):
    """A point to run. timeout: seconds a cell may take; parent: the process whose end ends this one, 0 for none."""

    key: str
    chapter: str  # its name, and the notebook as text
    notebook: str
    folder: str  # of the chapter, in which its cells run where there is such a folder
    values: dict[str, Any]
    library: str
    timeout: float | None
    parent: int


def run_point(task: Task) -> tuple[str, dict[str, Any], str]:
    """Run a point in a kernel of its own. Returns its key, its record, and the executed notebook as text.

    The record has the parameters, the figures, the error ("" where there was none), and seconds: of the whole and of
    the cells alone. A worker with another library says so in the error, and runs nothing.
    """
    import nbformat

    from nnbook.running import executed

    _end_with(task.parent)
    if (here := library()) != task.library:
        error = f"this worker has nnlib {here}, and the sweep {task.library}: install the same on both"
        return task.key, {"parameters": task.values, "figures": {}, "error": error}, ""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as spare, one_gpu():
        folder = Path(task.folder) if Path(task.folder).is_dir() else Path(spare)
        chapter = Path(spare) / task.chapter
        chapter.write_text(task.notebook, encoding="utf-8")
        notebook = executed(chapter, task.values, timeout=task.timeout, folder=folder)
    told = notebook.metadata["nnbook"]
    cells = [cell.metadata.get("papermill", {}).get("duration") or 0.0 for cell in notebook.cells]
    record = {"parameters": told["parameters"], "figures": figures_of(notebook), "error": told["error"]}
    record |= {"seconds": time.perf_counter() - started, "cells_seconds": sum(cells), "origin": told["origin"]}
    return task.key, record, nbformat.writes(notebook)


def library() -> str:
    """The version of nnlib with a digest of its files: what the figures of a point depend on besides the chapter."""
    files = sorted(Path(nnlib.__file__).parent.glob("*.py"))
    return f"{nnlib.__version__} {digest(*(file.read_text(encoding='utf-8') for file in files))}"


def digest(*texts: str) -> str:
    """Twelve digits that stand for some texts."""
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:12]


@contextmanager
def one_gpu() -> Iterator[None]:
    """Give what is started meanwhile one of several GPUs, where there is one that no other worker here holds."""
    from filelock import FileLock, Timeout

    gpus, before = _gpus(), os.environ.get("CUDA_VISIBLE_DEVICES")
    for gpu in gpus if len(gpus) > 1 else []:
        lock = FileLock(Path(tempfile.gettempdir()) / f"nnbook-{getuser()}-gpu-{gpu.replace('/', '-')}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        try:
            os.environ["CUDA_VISIBLE_DEVICES"] = gpu
            yield
        finally:
            lock.release()
            os.environ.pop("CUDA_VISIBLE_DEVICES") if before is None else os.environ.update(CUDA_VISIBLE_DEVICES=before)
        return
    yield


def _gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [gpu.strip() for gpu in visible.split(",") if gpu.strip()]
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [str(number) for number, _ in enumerate(done.stdout.splitlines())] if done.returncode == 0 else []


_watched: set[int] = set()


def _end_with(parent: int) -> None:
    """End this process when the one that asked for the work has ended, however that was; its kernel ends with it."""
    if parent in (0, os.getpid(), *_watched):
        return
    _watched.add(parent)

    def watch():
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
