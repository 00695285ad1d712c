"""JupyterLab and rendered pages in a real browser: what tests of the book and figures share."""

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

import nbformat
import pytest

from nnbook.notebooks import ROOT

CHAPTERS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
CONTROLS = ".noUi-handle, select, input[type=text]"
SMALL = {  # parameters with which a chapter's Run All takes seconds
    "01": {"n_train": "3000"},
    "02": {"image_path": '"chelsea"', "side": "96", "steps": "30", "rates": '"0.5, 1.0"'}
    | {"tolerance": "0.4"},
    "03": {"max_neighbors": "2000", "test_characters": "2000"},
    "04": {"n_train": "300", "n_test": "200", "epochs": "2"},
    "05": {"n_centers": "5000", "repeats": "1"},
}
TRACKER = "jupyter/lab/user-settings/@jupyterlab/notebook-extension/tracker.jupyterlab-settings"
PROMPTS = "[...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map((p) => p.textContent)"
READY = """() => {
  // the bar says '... | Idle ... Cell 1/47'
  const bar = document.querySelector('#jp-main-statusbar')?.innerText ?? '';
  const cells = bar.match(/Cell \\d+\\/(\\d+)/)?.[1];
  const drawn = document.querySelectorAll('.jp-Notebook .jp-Cell').length;
  return bar.includes('| Idle') && drawn === Number(cells);
}"""
# Where a cell raises, those after it lose their stars.
ERROR = "document.querySelector('[data-mime-type$=stderr]')"
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
  while (seen() === before && performance.now() - started < 15000) {
    await new Promise(requestAnimationFrame);
  }
  for (const image of images) if (image.offsetParent) await image.decode();
  return seen() === before ? null : performance.now() - started;
}"""


@contextmanager
def browser() -> Iterator:
    """A headless Chromium; the test is skipped where there is none."""
    api = pytest.importorskip("playwright.sync_api")
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip("no Chromium is installed")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=flags)
        try:
            yield chromium
        finally:
            chromium.close()


@contextmanager
def lab(folder: Path) -> Iterator[str]:
    """The address of a JupyterLab that serves a folder."""
    with free_port() as port, tempfile.TemporaryDirectory() as home:
        settings = Path(home) / TRACKER
        settings.parent.mkdir(parents=True)
        settings.write_text('{"windowingMode": "none"}')  # cells out of sight are drawn too
        flags = ["--no-browser", "--allow-root", "--IdentityProvider.token=", "--ip=127.0.0.1"]
        flags += [f"--ServerApp.port={port}", f"--ServerApp.root_dir={folder}"]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        environment |= {"JUPYTERLAB_SETTINGS_DIR": str(settings.parents[1])}
        command = [sys.executable, "-m", "jupyterlab", *flags]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        server = subprocess.Popen(command, env=environment, cwd=folder, **quiet)
        try:
            wait_for(f"http://127.0.0.1:{port}/api")
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


def wait_for(address: str) -> None:
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
    notebook = nbformat.read(chapter, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        if "parameters" in cell.metadata.get("tags", []):
            for name, value in (parameters or {}).items():
                old = rf"^{name} = .*?(?=  #)"
                cell.source, count = re.subn(old, f"{name} = {value}", cell.source, flags=re.M)
                assert count == 1, f"{chapter.stem} has no parameter {name}"
    nbformat.write(notebook, folder / chapter.name)


def run_all(page, address: str, seconds: float = 300) -> list[str]:
    """Open a notebook in JupyterLab and run its cells; returns the errors that its cells show."""
    page.goto(address)
    page.wait_for_function(READY, timeout=60_000)  # cells run before there is a kernel don't run
    page.click('.lm-MenuBar-itemLabel:text-is("Run")')
    page.click('.lm-Menu-itemLabel:text-is("Run All Cells")')
    started = f"() => {PROMPTS}.every((text) => /[*\\d]/.test(text)) || {ERROR}"
    page.wait_for_function(started, timeout=30_000)
    ended = f"() => !{PROMPTS}.some((text) => text.includes('*'))"
    page.wait_for_function(ended, timeout=1000 * seconds)
    page.wait_for_timeout(1000)
    if all(re.search(r"\d", text) for text in page.evaluate(PROMPTS)):
        return []
    errors = [each.inner_text() for each in page.query_selector_all("[data-mime-type$=stderr]")]
    return errors or ["cells weren't run"]


def controls(page) -> list[tuple[int, int]]:
    """Every control of every explorer of the page: its explorer's number, and its own in it."""
    count = f"(boxes) => boxes.map((box) => box.querySelectorAll('{CONTROLS}').length)"
    sizes = page.eval_on_selector_all(".nnbook-explorer", count)
    return [(box, number) for box, size in enumerate(sizes) for number in range(size)]


def answered(page, place: tuple[int, int], key: str = "ArrowRight") -> float | None:
    """Milliseconds from moving a control to the other picture; None where none came in 15 s."""
    return page.evaluate(ANSWER, [list(place), key])


class Crawl(NamedTuple):
    """Pages opened, requests to anything but files, links that lead nowhere, console errors."""

    pages: set[str]
    requests: list[str]
    broken: list[str]
    complaints: list[str]


def crawl(page, start: Path) -> Crawl:
    """Open a page, and every page that it leads to."""
    met = Crawl(set(), [], [], [])
    local = ("file:", "data:")
    page.on("request", lambda r: r.url.startswith(local) or met.requests.append(r.url))
    page.on("console", lambda message: met.complaints.append(message.text))
    page.on("pageerror", lambda error: met.complaints.append(str(error)))
    waiting = [start.as_uri()]
    while waiting:
        address = waiting.pop()
        if address in met.pages:
            continue
        met.pages.add(address)
        page.goto(address)
        anchors = page.eval_on_selector_all("[id]", "(all) => all.map((each) => each.id)")
        links = page.eval_on_selector_all("a[href]", "(all) => all.map((link) => link.href)")
        for path, _, anchor in (link.partition("#") for link in links):
            if not path.startswith("file:"):
                continue
            if not Path(unquote(path.removeprefix("file://"))).is_file():
                met.broken.append(f"{address} -> {path}")
            elif path == address and unquote(anchor) not in (*anchors, ""):
                met.broken.append(f"{address} -> #{anchor}")
            else:
                waiting.append(path)
    return met
