"""nnbook against real kernels: what runs, what is refused, and what a reader is left with."""

import base64
import csv
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from nnbook import cli, results
from nnbook import notebooks as notebooks_module
from nnbook.results import holds, record

ROOT = Path(__file__).parents[2]
KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}

POLICY = [
    "default-src 'none'",
    "img-src data:",
    "style-src 'unsafe-inline'",
    "base-uri 'none'",
    "form-action 'none'",
]
PARAMETERS = """exponent = -4.0  # sharper when lower
batch_size = 64  # samples a step
kernel_type = "cosine"  # or euclidean
shuffle = False
limit = None"""
FOREIGN = """from IPython.display import HTML, display
display(HTML('''<script src="https://x.example/a.js">run()</script><link rel="stylesheet" href="https://x.example/a.css">
<style>@import url(https://x.example/a.css); p { background: url(https://x.example/b.png) }</style>
<meta http-equiv="refresh" content="0;url=https://x.example"><a href="java
script:run()" onclick="run()">x</a>
<img src="https://x.example/a.png" alt="a far picture"><iframe src="//x.example"></iframe>
<b>kept</b>'''))
widget = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}, "text/plain": "WIDGET"}
display(widget, raw=True)"""
FIGURES = """from nnbook import record
record(train_accuracy=0.99, test_accuracy=0.9685, published_test_accuracy=0.9688, knn_top1=None,
       published_knn_top1=0.7059, fit_seconds=exponent, speedup=(2.5, "times"))"""
GOOD = [
    "# 1 · Tell <script>alert(1)</script> & *others*\n\nAre `two` points < one?\n\nMore of it.",
    (PARAMETERS, "parameters"),
    "from pathlib import Path\nprint('exponent is', exponent, 'in', Path.cwd().name)",
    "display({'image/png': 'b3RoZXI='}, raw=True)",
    "## The picture",
    ("display({'image/png': 'aGVhZGxpbmU='}, raw=True)", "headline"),
    FOREIGN,
    ("print('BOOK' + 'KEEPING')", "hide-in-report"),
    FIGURES,
]
BROKEN = [
    "# Breaks <b>here</b>",
    "print('before')",
    FIGURES.replace("fit_seconds=exponent, ", ""),
    "limit = 3\nraise ValueError(f'no {limit} < such & thing')",
    "print('never reached')",
]
AFTER = ["# Comes after", ("seed = 0  # of the generator", "parameters"), "print('after', seed)"]


def notebook(path: Path, cells: list) -> None:
    """Write cells, which are sources or (source, tag); those that begin with # are prose."""
    made = []
    for cell in cells:
        source, *tags = (cell,) if isinstance(cell, str) else cell
        made.append(
            (new_markdown_cell if source.startswith("#") else new_code_cell)(
                source, metadata={"tags": tags}
            )
        )
    path.parent.mkdir(exist_ok=True)
    nbformat.write(new_notebook(cells=made, metadata=KERNEL), path)


def nnbook(*words) -> SimpleNamespace:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = cli.main([str(word) for word in words])
    return SimpleNamespace(code=code, out=out.getvalue(), err=err.getvalue())


def as_opened(page: Path) -> str:
    """The page as it opens, with its code folded away."""
    return re.sub(r'<details class="code">.*?</details>', "", page.read_text(), flags=re.DOTALL)


def without_our_script(text: str) -> tuple[str, list[str]]:
    """Return a page without our script at its end, if it has one, and the hash that lets it run."""
    script = (ROOT / "nnbook" / "site" / "static" / "toggle.js").read_text()
    hashed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    rest = text.removesuffix(f"<script>{script}</script></body></html>")
    return rest, [f"'sha256-{hashed}'"] * (rest != text)


def rows(reports: Path) -> list[dict]:
    with open(reports / "results.csv", newline="") as file:
        return list(csv.DictReader(file))


def interruptible() -> None:
    """Let Ctrl-C reach a process also where tests run in the background, which ignores it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


pytestmark = pytest.mark.usefixtures("importable")


@pytest.fixture
def notebooks(tmp_path) -> Path:
    notebook(tmp_path / "notebooks" / "01_good.ipynb", GOOD)
    notebook(tmp_path / "notebooks" / "02_other.ipynb", AFTER)
    return tmp_path / "notebooks"


@pytest.fixture(scope="module")
def ran(importable, tmp_path_factory) -> SimpleNamespace:
    """Three chapters, the second of which fails, with a parameter that only the first has."""
    folder = tmp_path_factory.mktemp("book")
    for name, cells in {"01_good": GOOD, "02_broken": BROKEN, "03_after": AFTER}.items():
        notebook(folder / "notebooks" / f"{name}.ipynb", cells)
    where = ["--notebooks", folder / "notebooks", "--reports", folder / "reports"]
    done = nnbook("run", *where, "-p", "exponent", "-1e-3", "--name", "first")
    return SimpleNamespace(folder=folder, where=where, reports=folder / "reports", **vars(done))


def test_a_parameter_arrives_and_the_folder_is_the_notebooks(ran):
    assert "exponent is -0.001 in notebooks" in (ran.reports / "01_good.ipynb").read_text()


def test_paths_of_what_was_written_are_printed(ran):
    names = ["01_good", "02_broken", "03_after"]
    runs = [f"runs/first/{name}.html" for name in names]
    assert ran.out.split() == [
        str(ran.reports / name) for name in [*runs, "results.csv", "index.html"]
    ]
    pages = {f"{name}.{kind}" for name in names for kind in ("html", "ipynb")}
    assert {path.name for path in ran.reports.iterdir()} == {
        *pages,
        "runs",
        "results.csv",
        "index.html",
    }


def test_another_run_leaves_the_default_one_in_the_book(notebooks):
    where = ["--notebooks", notebooks, "--reports", notebooks.parent / "reports"]
    assert nnbook("run", "1", *where).code == 0
    before = (notebooks.parent / "reports" / "01_good.html").read_text()
    done = nnbook("run", "1", *where, "-p", "exponent", "-2", "--name", "other")
    assert done.out.split()[0].endswith("runs/other/01_good.html")
    page = (notebooks.parent / "reports" / "runs" / "other" / "01_good.html").read_text()
    assert (
        "with exponent=-2.0; the text is about the defaults" in page
        and 'href="../../index.html"' in page
    )
    assert (
        notebooks.parent / "reports" / "01_good.html"
    ).read_text() == before and "run other" not in before
    front = (notebooks.parent / "reports" / "index.html").read_text()
    assert 'href="runs/other/01_good.html">other · Tell' in front and front.count("<article>") == 1


def test_figures_reach_the_table(ran):
    found = [row for row in rows(ran.reports) if row["chapter"] == "01_good"]
    told = {
        "exponent": -0.001,
        "batch_size": 64,
        "kernel_type": "cosine",
        "shuffle": False,
        "limit": None,
    }
    assert all(row["run"] == "first" and json.loads(row["parameters"]) == told for row in found)
    assert [(row["metric"], row["value"], row["unit"]) for row in found] == [
        ("train_accuracy", "0.99", "1"),
        ("test_accuracy", "0.9685", "1"),
        ("published_test_accuracy", "0.9688", "1"),
        ("knn_top1", "", "1"),
        ("published_knn_top1", "0.7059", "1"),
        ("fit_seconds", "-0.001", "s"),
        ("speedup", "2.5", "times"),
    ]


def test_a_failing_chapter_is_told_and_the_others_run(ran):
    assert ran.code == 1
    assert "02_broken failed: ValueError: no 3 < such & thing" in ran.err
    assert "limit = 3\nraise ValueError(f'no {limit} < such & thing')" in ran.err
    assert "Traceback" not in ran.err and "papermill" not in ran.err and "WARNING" not in ran.err
    assert "after 0" in (ran.reports / "03_after.ipynb").read_text()


def test_a_failing_chapter_leaves_what_it_did(ran):
    cells = nbformat.read(ran.reports / "02_broken.ipynb", as_version=4).cells
    texts = [output.get("text", "") for cell in cells for output in cell.get("outputs", [])]
    assert "before\n" in texts and "never reached\n" not in texts
    assert "no 3 &lt; such &amp; thing" in (ran.reports / "02_broken.html").read_text()


def test_the_front_page_tells_each_chapter(ran):
    front = (ran.reports / "index.html").read_text()
    cards = re.findall(r"<article>.*?</article>", front, re.DOTALL)
    assert len(cards) == 3
    assert (
        "Tell &lt;script&gt;alert(1)&lt;/script&gt; &amp; others" in cards[0]
        and "<script" not in front
        and "script-src" not in front
    )
    assert "<p>Are two points &lt; one?</p>" in cards[0] and "More of it" not in front
    assert 'src="data:image/png;base64,aGVhZGxpbmU="' in cards[0] and "b3RoZXI" not in front
    assert ["failed" in card for card in cards] == [False, True, False]
    assert "no 3 &lt; such &amp; thing" in cards[1] and "no picture" in cards[1]
    assert all(f'href="{name}.html"' in front for name in ("01_good", "02_broken", "03_after"))
    assert (
        "Python 3." in front and f"{os.cpu_count()} cores" in front and "unknown" in front
    )  # the commit


def test_measured_stands_beside_published(ran):
    front = (ran.reports / "index.html").read_text()
    table = re.findall(
        r"<tr><td>(.*?)</td><td.*?>(.*?)</td><td.*?>(.*?)</td></tr>", front.split("</article>")[0]
    )
    assert table[:3] == [
        ("test accuracy", "96.85 %", "96.88 %"),
        ("k-NN top-1", "not measured", "70.59 %"),
        ("train accuracy", "99.00 %", "—"),
    ]


def test_pages_load_nothing(ran):
    for page in ran.reports.glob("*.html"):
        text, hashes = without_our_script(as_opened(page))
        policy = re.search(r'Content-Security-Policy"\scontent="([^"]*)"', text)[1]
        assert len(hashes) == (page.name != "index.html"), page.name
        scripts = [f"script-src {name}" for name in hashes]
        assert policy.split("; ") == [*POLICY[:3], *scripts, *POLICY[3:]], page.name
        assert not re.search(r"<(script|link|iframe|object|embed)\b", text), page.name
        assert not re.search(r"(src|srcset)\s*=\s*(?![\"']data:)", text), page.name
        assert not re.search(r"@import|url\(", text) and "x.example" not in text, page.name
        assert not re.search(r"<[^>]*\son\w+\s*=|javascript:|http-equiv=.?refresh", text), page.name


def test_a_page_shows_what_a_reader_needs(ran):
    page = as_opened(ran.reports / "01_good.html")
    assert "<b>kept</b>" in page and "a far picture" in page and "exponent is -0.001" in page
    assert "BOOKKEEPING" not in page and "WIDGET" not in page
    assert '<img alt="Figure: The picture"' in page and "base64,aGVhZGxpbmU=" in page
    assert "<td>test accuracy</td><td>96.85 %</td><td>96.88 %</td>" in page
    assert "batch_size" not in page and "batch_size" in (ran.reports / "01_good.html").read_text()


def test_pages_link_to_their_neighbors(ran):
    links = {
        name: (ran.reports / f"{name}.html").read_text()
        for name in ("01_good", "02_broken", "03_after")
    }
    assert 'href="index.html"' in links["01_good"] and 'href="02_broken.html"' in links["01_good"]
    assert (
        'href="01_good.html"' in links["02_broken"] and 'href="03_after.html"' in links["02_broken"]
    )
    assert (
        'href="02_broken.html"' in links["03_after"]
        and 'href="01_good.html"' not in links["03_after"]
    )


def test_a_rerun_replaces_its_rows_and_no_others(ran, tmp_path):
    reports = shutil.copytree(ran.reports, tmp_path / "reports")
    where = ["--notebooks", ran.folder / "notebooks", "--reports", reports]
    assert (
        nnbook("run", "1", *where, "-p", "exponent", "2", "--name", "first", "--record").code == 0
    )
    before, after = rows(ran.reports), rows(reports)
    assert len(after) == len(before)
    assert [row["value"] for row in after if row["metric"] == "fit_seconds"] == ["2.0"]
    assert [r for r in after if r["chapter"] != "01_good"] == [
        r for r in before if r["chapter"] != "01_good"
    ]
    assert (reports / "index.html").read_text().count("<article>") == 3
    with open(reports / "recorded" / "01_good.csv", newline="") as file:
        kept = list(csv.DictReader(file))
    assert [(row["metric"], row["value"]) for row in kept] == [
        (r["metric"], r["value"]) for r in after[: len(kept)]
    ]
    assert {row["command"] for row in kept} == {
        "nnbook run 01 -p exponent 2.0 --name first --record"
    }
    assert all(
        row["date"] and row["processor"] and "torch" in row["versions"] and row["commit"]
        for row in kept
    )


def test_a_claim_that_is_no_longer_true_fails_where_it_must(capsys):
    holds("two is more than one", 2 > 1)
    holds("one is more than two", 1 > 2, strict=False)
    assert capsys.readouterr().out.splitlines() == [
        "✓ two is more than one",
        "✗ not with these parameters: one is more than two",
    ]
    with pytest.raises(AssertionError, match="no longer true that one is more than two"):
        holds("one is more than two", 1 > 2)


@pytest.mark.parametrize(
    "name, text, words",
    [
        ("exponnet", "-6", "parameter 'exponnet' is in none"),
        ("exponent", "steep", "exponent='steep' doesn't fit: give a value of type float"),
        ("batch_size", "6.5", "batch_size='6.5' doesn't fit: give a value of type int"),
        ("shuffle", "1", "shuffle='1' doesn't fit: give a value of type bool"),
    ],
)
def test_a_parameter_that_does_not_fit_is_refused_before_anything_runs(
    notebooks, name, text, words
):
    reports = notebooks.parent / "reports"
    done = nnbook("run", "--notebooks", notebooks, "--reports", reports, "-p", name, text)
    assert done.code == 2 and words in done.err
    assert re.search(r"exponent +-4\.0 +sharper when lower", done.err)
    assert not reports.exists()


@pytest.mark.parametrize(
    "text, default, value",
    [
        ("-6", "-4.0", -6.0),
        ("-1e-3", "1", None),
        ("128", "64", 128),
        ("TRUE", "False", True),
        ("3", '"cosine"', "3"),
        ("true", "'cosine'", "true"),
        ("1000", "None", 1000),
        ("data/big", "None", "data/big"),
        ("[1, 2]", "[3]", [1, 2]),
        ("1", "[3]", None),
        ("0.5", "1 / 3", 0.5),
    ],
)
def test_values_take_the_type_of_the_default(text, default, value):
    if value is None:
        with pytest.raises(ValueError, match="give a value of type"):
            notebooks_module.typed(text, default)
    else:
        assert notebooks_module.typed(text, default) == value and type(
            notebooks_module.typed(text, default)
        ) is type(value)


@pytest.mark.parametrize(
    "help, fits",
    [
        ("red, green or blue", {"blue"}),
        ("red or blue", {"blue"}),
        ("red, blue, or a colour's name", {"blue", "gren"}),
        ("green or blue", {"blue", "gren"}),  # which the default isn't one of
        ("", {"blue", "gren"}),
    ],
)
def test_where_the_help_lists_words_the_value_is_one_of_them(help, fits):
    for word in ("blue", "gren"):
        if word in fits:
            assert notebooks_module.typed(word, '"red"', help) == word
        else:
            with pytest.raises(ValueError, match=f"give {help}"):
                notebooks_module.typed(word, '"red"', help)


def test_a_parameter_goes_to_the_chapters_that_have_it(notebooks):
    one, two = notebooks_module.find_chapters(notebooks, [])
    assert notebooks_module.assign([one, two], [["seed", "3"], ["shuffle", "true"]]) == {
        one: {"shuffle": True},
        two: {"seed": 3},
    }


def test_chapters_go_by_number_stem_or_path(notebooks):
    one, two = notebooks / "01_good.ipynb", notebooks / "02_other.ipynb"
    assert notebooks_module.find_chapters(notebooks, []) == [one, two]
    names = ["02", "1", "02_other", str(two)]
    assert notebooks_module.find_chapters(notebooks, names) == [two, one]
    with pytest.raises(
        notebooks_module.UsageError, match="chapter='3' isn't there: give one of 01_good, 02_other"
    ):
        notebooks_module.find_chapters(notebooks, ["3"])


def test_list_tells_parameters(notebooks):
    done = nnbook("list", "--notebooks", notebooks)
    assert done.code == 0 and done.out.startswith("01_good\n")
    assert (
        "  batch_size   64        samples a step\n" in done.out
        and "  seed  0  of the generator\n" in done.out
    )


def test_reports_that_is_a_file_is_refused_by_name(notebooks):
    reports = notebooks.parent / "reports"
    reports.write_text("mine")
    done = nnbook("run", "--notebooks", notebooks, "--reports", reports)
    assert done.code == 1 and f"reports='{reports}' can't be written" in done.err
    assert reports.read_text() == "mine"


def test_a_table_of_something_else_is_left_alone(notebooks):
    reports = notebooks.parent / "reports"
    reports.mkdir()
    (reports / "results.csv").write_text("a,b\n1,2\n")
    done = nnbook("run", "--notebooks", notebooks, "--reports", reports)
    assert done.code == 1 and "has columns ['a', 'b']" in done.err
    assert [path.name for path in reports.iterdir()] == ["results.csv"]


def test_report_shows_a_notebook_that_was_run_by_hand(notebooks):
    reports = notebooks.parent / "reports"
    assert "holds no chapter that ran" in nnbook("report", "--reports", reports).err
    notebook(reports / "01_good.ipynb", ["# Chapter 1: By hand", "print(1)"])
    made = nbformat.read(reports / "01_good.ipynb", as_version=4)
    made.cells[1].outputs = [new_output("display_data", {"image/png": "b3RoZXI=\n"})]
    nbformat.write(made, reports / "01_good.ipynb")
    done = nnbook("report", "--notebooks", notebooks, "--reports", reports)
    assert done.code == 0 and done.out.splitlines()[-1] == str(reports / "index.html")
    front = (reports / "index.html").read_text()
    assert ">By hand</a>" in front and "base64,b3RoZXI=" in front and "unknown time" in front


@pytest.mark.slow
def test_ctrl_c_leaves_no_kernel_and_nothing_half_written(tmp_path):
    file = str(tmp_path / "pid")
    waits = f"import os, time\nopen({file!r}, 'w').write(f'{{os.getpid()}}.')\ntime.sleep(60)"
    notebook(tmp_path / "notebooks" / "01_waits.ipynb", ["# Waits", waits])
    where = ["--notebooks", tmp_path / "notebooks", "--reports", tmp_path / "reports"]
    command = [sys.executable, "-m", "nnbook", "run", *where]
    running = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, preexec_fn=interruptible)
    pid = tmp_path / "pid"
    until = time.time() + 40
    while time.time() < until and not (pid.exists() and pid.read_text().endswith(".")):
        time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    err = running.communicate(timeout=20)[1].decode()
    assert (
        running.returncode == 130
        and "of the one under way nothing is" in err
        and "Traceback" not in err
    )
    assert list((tmp_path / "reports").iterdir()) == []
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()[:-1]), 0)


def test_record_outside_a_notebook_returns_the_figures():
    figures = record(
        psnr_db=31, ms_ssim=0.98, jpeg_bits_per_pixel=0.5, characters_per_second=9.5, neighbors=2912
    )
    assert {name: figure["unit"] for name, figure in figures.items()} == {
        "psnr_db": "dB",
        "ms_ssim": "1",
        "jpeg_bits_per_pixel": "bit",
        "characters_per_second": "1/s",
        "neighbors": "",
    }
    assert figures["neighbors"]["value"] == 2912
    assert record(test_accuracy_layer_12=0.5)["test_accuracy_layer_12"]["unit"] == "1"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "97 %", [1.0]])
def test_record_refuses_what_is_not_a_figure(value):
    with pytest.raises(ValueError, match="test_accuracy=.* isn't a figure"):
        record(test_accuracy=value)


def test_figures_are_written_as_people_read_them():
    assert results.shown("test_accuracy", 0.9688, "1") == "96.88 %"
    assert results.shown("train_accuracy_layer_2", 0.9911, "1") == "99.11 %"
    assert results.shown("neighbors", 2912) == "2,912"
    assert results.shown("fit_seconds", 20.2, "s") == "20.2 s"
    assert results.shown("ms_ssim", 0.98123, "1") == "0.9812"
    assert results.shown("extra_memory_mb", 12345.6, "MB") == "12,346 MB"
    assert [notebooks_module.duration(seconds) for seconds in (12.34, 133, 3840)] == [
        "12.3 s",
        "2 min 13 s",
        "1 h 4 min",
    ]


def test_recording_is_light():
    heavy = "{'torch', 'papermill', 'nbconvert', 'pandas', 'nbformat'}"
    code = f"import sys, nnbook.cli; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_nnlib_knows_nothing_of_the_book():
    sources = (ROOT / "nnlib").rglob("*.py")
    assert [path for path in sources if "nnbook" in path.read_text(encoding="utf-8")] == []


def test_templates_go_into_the_wheel():
    told = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folder = ROOT / "nnbook"
    packed = {path for pattern in told["package-data"]["nnbook"] for path in folder.glob(pattern)}
    there = {
        path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    }
    assert {path for path in there if path.suffix not in (".py", ".md")} == packed and packed
