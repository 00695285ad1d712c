"""One point of a sweep as a worker runs it, which needs nothing but the installed packages."""

import hashlib
import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from getpass import getuser
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import nbformat
from filelock import FileLock, Timeout

import nnlib
from nnbook.execution import executed
from nnbook.results import figures_of, output_of

Record = dict[str, Any]
Result = tuple[str, Record, str]  # a point's key, its record, and the executed notebook as text


class Job(NamedTuple):
    """What is the same for all points of a sweep."""

    chapter: str  # the file's name
    notebook: str  # its text
    folder: str  # of the chapter, in which its cells run where there is such a folder
    library: str
    timeout: float | None  # seconds that a cell may take
    parent: int  # the process whose end ends this one, 0 for none


def run_point(job: Job, key: str, values: dict[str, Any]) -> Result:
    """Run a point in a kernel of its own.

    The record has the parameters, the figures, the error ("" where there was none), and seconds: of
    the whole and of the cells alone. A worker with another library says so, and runs nothing.
    """
    if job.parent not in (0, os.getpid()):
        _end_with(job.parent)
    if (installed := library_version()) != job.library:
        reason = f"this worker has nnlib {installed}, and the sweep {job.library}"
        error = f"{reason}: install the same on both"
        return key, {"parameters": values, "figures": {}, "error": error}, ""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as spare, one_gpu():
        folder = Path(job.folder) if Path(job.folder).is_dir() else Path(spare)
        chapter = Path(spare) / job.chapter
        chapter.write_text(job.notebook, encoding="utf-8")
        notebook = executed(chapter, values, timeout=job.timeout, folder=folder)
    metadata = notebook.metadata["nnbook"]
    durations = [cell.metadata.get("papermill", {}).get("duration") for cell in notebook.cells]
    record = {name: metadata[name] for name in ("parameters", "error", "origin")}
    record |= {
        "figures": figures_of(notebook),
        "seconds": time.perf_counter() - started,
        "cells_seconds": sum(filter(None, durations)),
    }
    return key, record, nbformat.writes(notebook)


@cache  # one thread a process
def _end_with(parent: int) -> None:
    """End this process, and so its kernel, when the one that sent the work ends in any way."""

    def watch():
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def one_gpu() -> Iterator[None]:
    """Give processes started meanwhile one of several GPUs that no other worker here holds."""
    gpus = _visible_gpus()
    for gpu in gpus if len(gpus) > 1 else []:
        name = f"nnbook-{getuser()}-gpu-{gpu.replace('/', '-')}.lock"
        lock = FileLock(Path(tempfile.gettempdir()) / name)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        with mock.patch.dict(os.environ, CUDA_VISIBLE_DEVICES=gpu):
            try:
                yield
            finally:
                lock.release()
        return
    yield


def _visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [gpu.strip() for gpu in visible.split(",") if gpu.strip()]
    return [str(number) for number, _ in enumerate(output_of("nvidia-smi", "-L").splitlines())]


def library_version() -> str:
    """Return nnlib's version and a digest of its files, on which a point's figures depend."""
    files = sorted(Path(nnlib.__file__).parent.rglob("*.py"))
    return f"{nnlib.__version__} {digest(*(file.read_text(encoding='utf-8') for file in files))}"


def digest(*texts: str) -> str:
    """Return twelve hexadecimal digits of a hash over texts."""
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:12]
