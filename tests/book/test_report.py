"""The report: what pages show of a chapter and of two runs, and what is taken out of them."""

import base64
import io
import json
import os
import re
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import matplotlib
import nbformat
import numpy as np
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_output
from PIL import Image
from test_book import ROOT, nnbook, notebook

from nnbook import execution
from nnbook.notebooks import Chapter
from nnbook.plotting import figures
from nnbook.site import images, report
from nnbook.site.prose import sanitize

WORDS = """two < "three" & 'four'"""
DRAWN = f"""import matplotlib.pyplot as plt
from nnbook.plotting import figures as plots
plots.style()
figure, axis = plt.subplots(figsize=(9, 4))
axis.plot([1, 2, scale])
axis.scatter(range(50), range(50), rasterized=True)
plots.show(figure, {WORDS!r})"""
PHOTO = """figure, axis = plt.subplots()
axis.imshow([[0, 1], [1, 0]])
plots.show(figure, 'a photo', vector=False)"""
RECORD = """from nnbook import record
record(test_accuracy=0.9 + scale / 100, fit_seconds=scale, psnr_db=scale, gone=None)"""
BARE = """svg = '<svg xmlns="http://www.w3.org/2000/svg" width="10" height="5px"/>'
display({'image/svg+xml': svg}, raw=True)"""
WIDGET = "'application/vnd.jupyter.widget-view+json': {'model_id': '1'}, 'text/plain': 'WIDGET'"
CELLS = [
    "# 1 · What $y(x)$ is\n\nOf $x$, for $5 and *more*.\n\n| a | b |\n|---|---|\n| $|x|$ | `$x$` |",
    ("scale = 3.0  # of it\nkind = 'cosine'\nseed = 0", "parameters"),
    "## The *first* $x_1$ [part](#Other)\n\n$$\\frac{a}{b}$$",
    (DRAWN, "headline"),
    "## Other",
    PHOTO,
    f"display({{{WIDGET}, 'text/html': '<b>still</b>'}}, raw=True)"
    f"\ndisplay({{{WIDGET}}}, raw=True)",
    (f"display({{{WIDGET}, 'text/html': 'HID' + 'DEN'}}, raw=True)", "hide-in-report"),
    "## Other\n\n### Below",
    RECORD,
    BARE,
]
OTHER = ["# 2 · Other", ("seed = 0", "parameters"), "print(seed)"]


pytestmark = pytest.mark.usefixtures("importable")


@pytest.fixture(scope="module")
def ran(importable, tmp_path_factory) -> SimpleNamespace:
    """Run two chapters, and the first once more with another parameter and an odd name."""
    folder = tmp_path_factory.mktemp("report")
    notebook(folder / "notebooks" / "01_drawn.ipynb", CELLS)
    notebook(folder / "notebooks" / "02_other.ipynb", OTHER)
    where = ["--notebooks", folder / "notebooks", "--reports", folder / "reports"]
    assert nnbook("run", *where).code == 0
    assert nnbook("run", "1", *where, "-p", "scale", "6", "--name", "../b: 6 <x>").code == 0
    reports = folder / "reports"
    return SimpleNamespace(where=where, reports=reports, page=parsed(reports / "01_drawn.html"))


def parsed(page: Path) -> BeautifulSoup:
    return BeautifulSoup(page.read_text(), "html.parser")


def test_figures_go_in_as_pictures_with_their_words(ran):
    drawn, photo, bare = ran.page.select("main .plate img")
    assert drawn["alt"] == WORDS and drawn["src"].startswith("data:image/svg+xml;base64,")
    assert photo["alt"] == "a photo" and photo["src"].startswith("data:image/png;base64,")
    assert bare["alt"] == "Figure: Below" and (bare["width"], bare["height"]) == ("10", "5")
    assert (
        "wide" in drawn["class"] and not photo.has_attr("class") and 600 < int(drawn["width"]) < 864
    )
    with Image.open(io.BytesIO(base64.b64decode(photo["src"].split(",")[1]))) as image:
        assert abs(image.width / int(photo["width"]) - 150 / 96) < 0.02
    assert parsed(ran.reports / "index.html").select("article img")[0]["alt"] == WORDS


def test_a_figure_is_the_same_each_time_and_closed(capsys):
    with matplotlib.rc_context():
        matplotlib.use("agg")
        figures.style()
        files = []
        for _ in range(2):
            figure, axis = figures.plt.subplots()
            axis.plot([1, 2])
            files.append(figures.svg(figure))
            figures.show(figure, "a line")  # outside of a notebook
            assert not figures.plt.fignum_exists(figure.number)
    assert files[0] == files[1] and "<dc:date>" not in files[0] and capsys.readouterr().out == ""


@pytest.mark.parametrize("alt", ["", "  ", None])
def test_a_figure_needs_words(alt):
    with pytest.raises(ValueError, match="alt=.* says nothing: give a sentence"):
        figures.show(None, alt)


def test_a_widget_leaves_what_stands_in_for_it(ran):
    text = ran.page.main.get_text()
    assert (
        ran.page.find("b", string="still")
        and text.count("Sliders: open the chapter in JupyterLab") == 1
    )
    assert "model_id" not in "".join(p.get_text() for p in ran.page.select(".jp-OutputArea"))
    assert not ran.page.find("pre", string="WIDGET") and "HIDDEN" not in text


def test_contents_lead_to_headings(ran):
    lists = ran.page.select('nav[aria-label="On this page"] ul')
    assert len(lists) == 2 and lists[0] == lists[1] and not lists[0].select("li a a, em[id]")
    links = [link["href"].removeprefix("#") for link in lists[0].select("a")]
    assert (
        links == ["The-first-x1-part", "Other", "Other-2"]
        and lists[0].find("math")
        and lists[0].find("em")
    )
    ids = [tag["id"] for tag in ran.page.select("[id]")]
    assert set(links) <= set(ids) and len(ids) == len(set(ids)) and ran.page.main["id"] == "main"
    assert ran.page.select_one(".skip")["href"] == "#main"
    assert all(
        heading.find("a", class_="anchor")
        for heading in ran.page.select("main h1, main h2, main h3")
    )
    assert [nav["aria-label"] for nav in ran.page.select("nav")] == [
        "Chapters",
        "On this page",
        "Chapters, again",
    ]


def test_equations_reach_the_pages(ran):
    text = ran.page.main.get_text()
    assert (
        ran.page.h1.find("math") and ran.page.select(".formula mfrac") and "for $5 and more" in text
    )
    assert (
        ran.page.select_one("td code").string == "$x$" and len(ran.page.select(".scroll td")) >= 2
    )
    assert "\ue000" not in (ran.reports / "01_drawn.html").read_text()
    front = parsed(ran.reports / "index.html")
    assert front.article.h2.find("math") and front.article.find_all("p")[1].find("math")


def test_colours_can_be_read():
    css = (ROOT / "nnbook" / "site" / "static" / "style.css").read_text()
    light, dark = (
        dict(re.findall(r"--(\w+): (#\w+)", block))
        for block in re.findall(r":root \{(.*?)\}", css, re.S)
    )
    for scheme in (light, light | dark):
        for ink in ("ink", "soft", "accent", "bad"):
            for ground in ("paper", "card", "code"):
                assert contrast(scheme[ink], scheme[ground]) >= 4.5, (ink, ground, scheme)
    assert contrast("#3a3834", "#fff") >= 4.5 and set(dark) >= {
        "ink",
        "soft",
        "accent",
        "bad",
        "paper",
        "card",
        "code",
    }


def contrast(one: str, other: str) -> float:
    """The ratio of two colours' luminances, as WCAG 2 has it."""
    lights = []
    for colour in (one, other):
        digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
        rgb = np.array([int(digits[at : at + 2], 16) for at in (0, 2, 4)]) / 255
        lights.append(
            np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
            @ [0.2126, 0.7152, 0.0722]
        )
    return (max(lights) + 0.05) / (min(lights) + 0.05)


def test_two_runs_stand_side_by_side(ran):
    done = nnbook("report", *ran.where, "--compare", "default", "../b: 6 <x>")
    path, front = map(Path, done.out.splitlines())
    assert (
        done.code == 0
        and path.parent == ran.reports / "compare"
        and path.name.startswith("default--b_6_x-")
    )
    page = parsed(path)
    assert page.find("li", string="02_other is missing in ../b: 6 <x>")
    given, figures, machines = (
        [[c.get_text() for c in r.select("th, td")] for r in t("tr")] for t in page("table")
    )
    assert given[1:] == [
        ["scale ≠", "3.0", "6.0"],
        ["kind", "cosine", "cosine"],
        ["seed", "0", "0"],
    ]
    assert figures[1:] == [
        ["test accuracy", "93.00 %", "96.00 %", "+3.00 points", "—"],
        ["fit time", "3 s", "6 s", "+3 s", "+100.0 %"],
        ["PSNR", "3 dB", "6 dB", "+3 dB", "—"],
        ["gone", "not measured", "not measured", "—", "—"],
    ]
    assert {"versions", "processor", "commit"} <= {row[0].removesuffix(" ≠") for row in machines}
    pairs = page.select(".pair")
    assert [len(pair.select("img")) for pair in pairs] == [2, 1, 1] and WORDS in {
        i["alt"] for i in pairs[0]("img")
    }
    assert ["the same in both" in heading.get_text() for heading in page.select("h4")] == [
        False,
        True,
        True,
    ]
    assert "default-src 'none'" in path.read_text() and "script" not in path.read_text()
    went = page.select_one("section > p")
    assert went.get_text().count("passed") == 2 and len(went("a")) == 2
    assert all((path.parent / unquote(link["href"])).is_file() for link in went("a"))
    link = parsed(front).find("h2", string="Comparisons").find_next("a")
    assert link.string == "default beside ../b: 6 <x>" and link["href"] == f"compare/{path.name}"


def test_notebooks_are_compared_by_their_paths(ran, tmp_path):
    point = tmp_path / "point_7.ipynb"
    point.write_bytes(next((ran.reports / "runs").glob("b_6*/*.ipynb")).read_bytes())
    done = nnbook(
        "report",
        *ran.where,
        "--compare",
        ran.reports / "runs" / "default" / "01_drawn.ipynb",
        point,
    )
    assert done.code == 0 and "scale" in Path(done.out.split()[0]).read_text()
    done = nnbook("report", *ran.where, "--compare", point, point)
    assert done.code == 0 and "--" in Path(done.out.split()[0]).name


def test_a_run_that_is_not_there_is_refused(ran):
    done = nnbook("report", *ran.where, "--compare", "default", "nope")
    assert done.code == 2 and done.out == ""
    assert (
        "run='nope' isn't there: give one of '../b: 6 <x>', 'default', or the path of a notebook"
        in done.err
    )


def test_runs_have_folders_of_their_own():
    names = [
        "a",
        "a b",
        "a_b",
        "..",
        ".",
        "",
        "a/b",
        "a\\b",
        "x" * 300,
        "x" * 301,
        "é",
        "exponent=-6.0",
        "con:",
    ]
    folders = [execution.safe(name) for name in names]
    assert len(set(map(str.lower, folders))) == len(names) and all(
        0 < len(folder) < 100 for folder in folders
    )
    assert all(re.fullmatch(r"[\w=+,-][\w=+,.-]*", folder, re.ASCII) for folder in folders)
    assert folders[0] == "a" and folders[11] == "exponent=-6.0"


@pytest.mark.parametrize(
    "html",
    [
        "<script>run()</script>",
        "<img src=x onerror=run()>",
        "<svg onload=run()><script>run()</script></svg>",
        "<math><mi onclick=run() xlink:href='javascript:run()'>x</mi></math>",
        "<math><mtext><table><mglyph><style><img src=x onerror=run()>",
        "<a href='java\nscript:run()'>x</a>",
        "<a href=' data:text/html,<script>run()</script>'>x</a>",
        "<form action='javascript:run()'><button formaction='javascript:run()'>x</button></form>",
        "<p style='background: url(https://x.example/run())'>x</p>",
        "<style>p { background: u\\72l(https://x.example/run()) }</style>",
        "<style>@import 'https://x.example/run()';</style>",
        "<noscript><p title='</noscript><img src=x onerror=run()>'>",
        "<img src='https://x.example/run()' srcset='https://x.example/run() 2x'>",
        "<template><script>run()</script></template><base href='https://x.example/run()'>",
    ],
)
def test_what_runs_or_loads_is_taken_out(html):
    assert not BeautifulSoup(sanitize(html), "html.parser").find(
        lambda tag: (
            tag.name in {"script", "base"} or any("run" in str(a) for a in tag.attrs.values())
        )
    )
    assert "x.example" not in sanitize(html)


def test_what_only_shows_is_left():
    html = (
        "<style>td { color: red; }</style><p style='background: rgba(0, 1, 2, 0.5);'><b>a</b></p>"
    )
    assert sanitize(html).replace('"', "'") == html
    assert sanitize('<img src="data:image/png;base64,aa" alt="a">').count("aa") == 1


def by_hand(reports: Path, outputs: list) -> Path:
    notebook(reports / "01_hand.ipynb", ["# By hand", "1"])
    made = nbformat.read(reports / "01_hand.ipynb", as_version=4)
    made.cells[1].outputs = outputs
    nbformat.write(made, reports / "01_hand.ipynb")
    return reports / "01_hand.ipynb"


def png(pixels: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_a_heavy_picture_becomes_lighter_without_loss(tmp_path):
    steps = np.random.default_rng(0).integers(-2, 3, (500, 500, 3)).cumsum(0).cumsum(1)
    pixels = (steps % 256).astype(np.uint8)
    data = {"image/png": png(pixels)}
    found = images.picture_of(
        new_output("display_data", data, metadata={"image/png": {"alt": "waves"}}), ""
    )
    kind, text = found.address.split(",")
    assert (
        kind == "data:image/webp;base64"
        and len(text) < len(data["image/png"])
        and found.alt == "waves"
    )
    with Image.open(io.BytesIO(base64.b64decode(text))) as image:
        assert (np.array(image.convert("RGB")) == pixels).all()


@pytest.mark.parametrize("text", ["b3RoZXI=", base64.b64encode(bytes(300_000)).decode()])
def test_a_picture_that_cannot_be_read_stays_as_it_is(text):
    found = images.picture_of(new_output("display_data", {"image/png": text}), "Here")
    assert found == ("data:image/png;base64," + text, "Figure: Here", 0, 0)


def test_a_large_page_is_warned_of(tmp_path):
    outputs = [new_output("stream", text="x" * 3_100_000)]
    by_hand(tmp_path / "reports", outputs)
    done = nnbook("report", "--reports", tmp_path / "reports", "--notebooks", tmp_path)
    assert done.code == 0 and re.fullmatch(r"nnbook: 01_hand.html has 3\.1 MB: .*\n", done.err)


def test_a_sweep_is_linked_from_the_front_page(tmp_path):
    by_hand(tmp_path / "reports", [])
    sweep = tmp_path / "reports" / "sweeps" / "of exponent" / "index.html"
    sweep.parent.mkdir(parents=True)
    sweep.write_text("<title>x</title>")
    (sweep.parent / "results.csv").write_text("point,status\n1,done\n2,failed\n")
    os.utime(sweep, (1e9, 1e9))
    front = parsed(report.write(tmp_path / "reports", tmp_path))
    item = front.find("h2", string="Sweeps").find_next("li")
    assert item.a["href"] == "sweeps/of%20exponent/index.html" and item.get_text().startswith(
        "of exponent 2001-09-09 "
    )
    assert item.get_text().endswith(" · 2 points, 1 failed")
    assert not front.find("h2", string="Comparisons")


def test_a_chapter_is_called_as_what_it_came_from(tmp_path):
    path = by_hand(tmp_path, [])
    told = json.loads(path.read_text())
    told["metadata"]["papermill"] = {"input_path": "notebooks/03_far.ipynb"}
    (tmp_path / "point.ipynb").write_text(json.dumps(told))
    assert (Chapter(tmp_path / "point.ipynb").name, Chapter(tmp_path / "point.ipynb").number) == (
        "03_far",
        3,
    )
    assert (Chapter(path).name, Chapter(path).number) == ("01_hand", 1)
