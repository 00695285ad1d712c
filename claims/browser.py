"""JupyterLab and rendered pages in a real browser: chapters run, controls moved, and how soon a picture answers."""

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from claims.table import NotMeasured

ROOT = Path(__file__).parents[1]
CHAPTERS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
SMALL = {  # parameters with which a chapter's Run All takes seconds
    "01": {"n_train": "3000"},
    "02": {
        "image_path": '"chelsea"',
        "side": "96",
        "steps": "30",
        "rates": '"0.5, 1.0"',
        "tolerance": "0.4",
    },
    "03": {"max_neighbors": "2000", "test_characters": "2000"},
    "04": {"n_train": "300", "n_test": "200", "epochs": "2"},
    "05": {"n_centers": "5000", "repeats": "1"},
}
TRACKER = "jupyter/lab/user-settings/@jupyterlab/notebook-extension/tracker.jupyterlab-settings"
PROMPTS = "[...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map((prompt) => prompt.textContent)"
READY = """() => {
  const bar = document.querySelector('#jp-main-statusbar')?.innerText ?? '';  // '... | Idle ... Cell 1/47'
  const cells = bar.match(/Cell \\d+\\/(\\d+)/)?.[1];
  return bar.includes('| Idle') && document.querySelectorAll('.jp-Notebook .jp-Cell').length === Number(cells);
}"""
ERROR = "document.querySelector('[data-mime-type$=stderr]')"  # where a cell raises, those after it lose their stars
ANSWER = """async ([place, key]) => {
  const box = document.querySelectorAll('.nnbook-explorer')[place[0]];
  const control = box.querySelectorAll('.noUi-handle, select, input[type=text]')[place[1]];
  const page = box.querySelector('.nnbook-page'), images = [...box.querySelectorAll('img')];
  const seen = () => images.map((image) => image.src) + page.innerHTML;
  const before = seen(), started = performance.now();
  control.focus();
  if (control.matches('.noUi-handle')) {
    control.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true }));
  } else if (control.matches('select')) {
    control.selectedIndex = (control.selectedIndex + 1) % control.options.length;
    control.dispatchEvent(new Event('change', { bubbles: true }));
  } else {
    control.value += 'a';
    control.dispatchEvent(new Event('input', { bubbles: true }));
  }
  while (seen() === before && performance.now() - started < 15000) await new Promise(requestAnimationFrame);
  for (const image of images) if (image.offsetParent) await image.decode();
  return seen() === before ? null : performance.now() - started;
}"""


@contextmanager
def browser() -> Iterator:
    """A headless Chromium; NotMeasured where there is none."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise NotMeasured("Playwright isn't installed") from error
    path = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if path is None:
        raise NotMeasured("no Chromium is installed")
    with sync_playwright() as playwright:
        quiet = [
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--no-first-run",
        ]
        started = playwright.chromium.launch(executable_path=path, args=quiet)
        try:
            yield started
        finally:
            started.close()


@contextmanager
def lab(folder: Path) -> Iterator[str]:
    """The address of a JupyterLab that serves a folder."""
    with free_port() as port, tempfile.TemporaryDirectory() as home:
        settings = (
            Path(home) / TRACKER
        )  # all cells are drawn, also those that a person would have to scroll to
        settings.parent.mkdir(parents=True)
        settings.write_text('{"windowingMode": "none"}')
        words = [
            "--no-browser",
            "--allow-root",
            f"--ServerApp.port={port}",
            "--IdentityProvider.token=",
            "--ip=127.0.0.1",
        ]
        environment = os.environ | {
            "JUPYTERLAB_SETTINGS_DIR": str(settings.parents[1]),
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, "-m", "jupyterlab", *words, f"--ServerApp.root_dir={folder}"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        server = subprocess.Popen(command, env=environment, cwd=folder, **quiet)
        try:
            _await(f"http://127.0.0.1:{port}/api")
            yield f"http://127.0.0.1:{port}/lab/tree"
        finally:
            server.terminate()
            server.wait(20)


@contextmanager
def free_port() -> Iterator[int]:
    """A port that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    yield port


def _await(address: str) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            time.sleep(0.3)
    raise TimeoutError(f"no answer from {address} within a minute")


def copy(chapter: Path, folder: Path, parameters: dict[str, str] | None = None) -> None:
    """A chapter without its outputs, and with some of its parameters changed."""
    import nbformat

    notebook = nbformat.read(chapter, as_version=4)
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        cell.outputs, cell.execution_count = [], None
        if "parameters" in cell.metadata.get("tags", []):
            for name, value in (parameters or {}).items():
                cell.source, count = re.subn(
                    rf"^{name} = .*?(?=  #)", f"{name} = {value}", cell.source, flags=re.M
                )
                assert count == 1, f"{chapter.stem} has no parameter {name}"
    nbformat.write(notebook, folder / chapter.name)


def run_all(page, address: str, seconds: float = 300) -> list[str]:
    """Open a notebook in JupyterLab and run all of its cells; returns the errors that its cells show."""
    page.goto(address)
    page.wait_for_function(
        READY, timeout=60_000
    )  # cells that are run before there is a kernel don't run at all
    page.click('.lm-MenuBar-itemLabel:text-is("Run")')
    page.click('.lm-Menu-itemLabel:text-is("Run All Cells")')
    page.wait_for_function(
        f"() => {PROMPTS}.every((text) => /[*\\d]/.test(text)) || {ERROR}", timeout=30_000
    )
    page.wait_for_function(
        f"() => !{PROMPTS}.some((text) => text.includes('*'))", timeout=1000 * seconds
    )
    page.wait_for_timeout(1000)
    if all(re.search(r"\d", text) for text in page.evaluate(PROMPTS)):
        return []
    return [each.inner_text() for each in page.query_selector_all("[data-mime-type$=stderr]")] or [
        "cells weren't run"
    ]


def controls(page) -> list[tuple[int, int]]:
    """Every control of every explorer of the page: its explorer's number, and its own in it."""
    count = "(boxes) => boxes.map((box) => box.querySelectorAll('.noUi-handle, select, input[type=text]').length)"
    found = page.eval_on_selector_all(".nnbook-explorer", count)
    return [(box, number) for box, size in enumerate(found) for number in range(size)]


def answered(page, place: tuple[int, int], key: str = "ArrowRight") -> float | None:
    """Milliseconds from moving a control to the other picture being drawn; None where none came in 15 seconds."""
    return page.evaluate(ANSWER, [list(place), key])


class Crawl(NamedTuple):
    """What a browser met: pages opened, requests to anywhere but files, links and anchors that lead nowhere, errors."""

    pages: set[str]
    requests: list[str]
    broken: list[str]
    complaints: list[str]


def crawl(page, start: Path) -> Crawl:
    """Open a page, and every page that it leads to."""
    found, waiting = Crawl(set(), [], [], []), [start.as_uri()]
    page.on("request", lambda request: found.requests.append(request.url))
    page.on("console", lambda message: found.complaints.append(message.text))
    page.on("pageerror", lambda error: found.complaints.append(str(error)))
    anchors: dict[str, set[str]] = {}
    while waiting:
        if (address := waiting.pop()) in found.pages:
            continue
        found.pages.add(address)
        page.goto(address)
        anchors[address] = set(
            page.eval_on_selector_all("[id]", "(all) => all.map((each) => each.id)")
        )
        for link in page.eval_on_selector_all(
            "a[href]", "(links) => links.map((link) => link.href)"
        ):
            path, _, anchor = link.partition("#")
            if not path.startswith("file:"):
                continue
            if not Path(unquote(path.removeprefix("file://"))).is_file():
                found.broken.append(f"{address} -> {link}")
            elif path == address and unquote(anchor) not in anchors[address] | {""}:
                found.broken.append(f"{address} -> #{anchor}")
            else:
                waiting.append(path)
    found.requests[:] = [url for url in found.requests if not url.startswith(("file:", "data:"))]
    return found
