"""The book as a person meets it: JupyterLab and the rendered site, in a real browser."""

import csv
import shutil
from pathlib import Path

import browser as driver
import pytest
from test_api import write as write_reference
from test_book import nnbook, notebook
from test_sweep import BODY, PARAMETERS

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def chromium():
    with driver.browser() as started:
        yield started


@pytest.fixture(scope="module")
def lab(chromium, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    for chapter in driver.CHAPTERS:
        driver.copy(chapter, folder, driver.SMALL[chapter.stem[:2]])
    with driver.lab(folder) as address:
        yield address


@pytest.mark.parametrize("chapter", driver.CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_runs_in_the_lab_and_its_controls_answer(chromium, lab, chapter):
    page = chromium.new_page(viewport={"width": 1300, "height": 900})
    assert driver.run_all(page, f"{lab}/{chapter.name}?reset") == []
    controls = driver.controls(page)
    assert len(controls) == {"01": 3, "02": 1, "03": 4, "04": 2, "05": 1}[chapter.stem[:2]]
    for control in controls:
        times = [driver.answered(page, control, key) for key in 2 * ("ArrowRight", "ArrowLeft")]
        assert None not in times, f"control {control} changed nothing"
    page.close()


def test_a_fast_drag_doesnt_freeze(chromium, lab):
    page = chromium.new_page(viewport={"width": 1300, "height": 900})
    driver.run_all(page, f"{lab}/{driver.CHAPTERS[0].name}?reset")
    one = driver.answered(page, (0, 0))
    handle = page.query_selector(".nnbook-explorer .noUi-handle")
    handle.scroll_into_view_if_needed()
    box, wide = (
        handle.bounding_box(),
        page.query_selector(".nnbook-explorer .noUi-target").bounding_box()["width"],
    )
    page.mouse.move(box["x"] + 5, box["y"] + 5)
    page.mouse.down()
    for step in range(
        60
    ):  # in a second, some ten times as fast as pictures can be drawn; all take 60 times one
        page.mouse.move(box["x"] + 5 + wide * step / 80, box["y"] + 5)
        page.wait_for_timeout(16)
    page.mouse.up()
    idle = '.jp-Notebook-ExecutionIndicator[data-status="idle"]'
    page.wait_for_timeout(600)
    page.wait_for_selector(idle, timeout=15 * one)
    assert driver.answered(page, (0, 0)) < 15 * one
    page.close()


@pytest.fixture(scope="module")
def site(importable, tmp_path_factory) -> Path:
    """Every page there is: chapters, a sweep with a failed point, a comparison, the reference."""
    folder = tmp_path_factory.mktemp("site")
    reports, notebooks = folder / "reports", folder / "notebooks"
    notebook(
        notebooks / "01_small.ipynb", ["# 1 · Small\n\nIs it?", (PARAMETERS, "parameters"), BODY]
    )
    where = ["--notebooks", notebooks, "--reports", reports]
    grid = ["-g", "kind=cosine,bad", "-g", "exponent=-2,-4,-16"]
    assert nnbook("sweep", "01", *where, "--name", "s", *grid).code == 1
    for chapter in driver.CHAPTERS:
        shutil.copy(chapter, reports / chapter.name)
    points = sorted((reports / "sweeps" / "s" / "points").glob("*.ipynb"))[:2]
    write_reference(reports)
    assert nnbook("report", *where, "--compare", *points).code == 0
    return reports


@pytest.fixture
def opened(chromium):
    page = chromium.new_page(viewport={"width": 1280, "height": 900})
    yield page
    page.close()


def pages(site: Path) -> list[Path]:
    """The pages of the book, which isn't the author of those of the reference."""
    return sorted(path for path in site.glob("**/*.html") if not path.is_relative_to(site / "api"))


def test_the_site_asks_for_nothing_complains_of_nothing_and_its_links_hold(opened, site):
    found = driver.crawl(opened, site / "index.html")
    ours = {page.as_uri() for page in pages(site)}
    reference = {page.as_uri() for page in site.glob("api/**/*.html")}
    assert found.pages == ours | reference and len(ours) == 9 + len(driver.CHAPTERS)
    assert found.requests == [] and found.complaints == []
    assert [link for link in found.broken if "/api/" not in link.partition(" -> ")[0]] == []


def test_a_link_that_leads_nowhere_is_found(opened, tmp_path):
    (tmp_path / "index.html").write_text(
        '<a href="gone.html">a</a><a href="#here">b</a><p id="there"><a href="#there">c'
    )
    assert len(driver.crawl(opened, tmp_path / "index.html").broken) == 2


def test_every_picture_is_there_with_words(opened, site):
    for page in pages(site):
        opened.goto(page.as_uri())
        images = opened.eval_on_selector_all(
            "img", "(all) => all.map((i) => [i.alt, i.naturalWidth])"
        )
        assert all(alt.strip() and width > 0 for alt, width in images), page.name
        assert page.stat().st_size < 3e6


@pytest.mark.parametrize("width", [390, 1280])
def test_no_page_scrolls_sideways(opened, site, width):
    opened.set_viewport_size({"width": width, "height": 844})
    for page in pages(site):
        opened.goto(page.as_uri())
        assert opened.evaluate("document.documentElement.scrollWidth") <= width, page.name


def test_what_goes_on_to_the_right_fades_until_it_is_scrolled_there(opened, site):
    opened.set_viewport_size({"width": 390, "height": 844})
    opened.goto((site / driver.CHAPTERS[2].name).with_suffix(".html").as_uri())
    fades = """() => [...document.querySelectorAll('.plate, .scroll')].map((box) =>
      [box.scrollWidth > box.clientWidth,
       parseFloat(getComputedStyle(box).getPropertyValue('--more')) > 0])"""
    boxes = opened.evaluate(fades)
    assert {wider for wider, _ in boxes} == {True, False} and all(
        wider == faded for wider, faded in boxes
    )
    opened.evaluate(
        "document.querySelectorAll('.plate, .scroll').forEach((box) => box.scrollLeft = 9999)"
    )
    opened.wait_for_function(f"() => !({fades})().some(([, faded]) => faded)")


def test_code_is_folded_until_it_is_asked_for(opened, site):
    opened.goto((site / driver.CHAPTERS[0].name).with_suffix(".html").as_uri())
    shown = """() => [...document.querySelectorAll('.code .highlight')]
      .filter((code) => code.checkVisibility()).length"""
    assert opened.evaluate(shown) == 0
    opened.click("#toggle")
    assert opened.evaluate(shown) > 10
    opened.click("#toggle")
    assert opened.evaluate(shown) == 0


def test_a_sweep_can_be_sorted_and_filtered(opened, site):
    opened.goto((site / "sweeps" / "s" / "index.html").as_uri())

    def column(name):
        number = opened.eval_on_selector_all(
            "#points th", "(all) => all.map((th) => th.dataset.name)"
        ).index(name)
        rows = """(rows, n) => rows.filter((row) => !row.hidden)
          .map((row) => row.cells[n].dataset.value)"""
        return opened.eval_on_selector_all("#points tbody tr", rows, number)

    opened.click("#points th[data-name=test_accuracy] button")
    assert column("test_accuracy") == ["0.74", "0.86", "0.88", "", "", ""]
    opened.click("#points th[data-name=test_accuracy] button")
    assert column("test_accuracy") == ["0.88", "0.86", "0.74", "", "", ""]
    opened.click("#points th[data-name=exponent] button")
    assert column("exponent") == ["-16.0", "-16.0", "-4.0", "-4.0", "-2.0", "-2.0"]
    asked = {
        "exponent>-16": 4,
        "kind=bad": 3,
        "exponent>-16 kind=bad": 2,
        "fail": 3,
        "zebra": 0,
        "exponent=-2,-16": 4,
    }
    asked |= {
        "test accuracy > 80%": 2,
        "test_accuracy>=0.86 kind = cosine": 2,
        "Test Accuracy<80 %": 1,
        "status=done": 3,
    }
    for words, count in asked.items():
        opened.fill("#filter", words)
        assert len(column("kind")) == count and opened.inner_text("#count") == f"{count} of 6", (
            words
        )
    opened.fill("#filter", "exponnet=3")
    assert opened.inner_text("#count") == "0 of 6, no column exponnet"


def test_the_sweeps_page_and_its_table_agree(opened, site):
    opened.goto((site / "sweeps" / "s" / "index.html").as_uri())
    with open(site / "sweeps" / "s" / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    cells = opened.eval_on_selector_all(
        "#points tbody tr", "(rows) => rows.map((row) => row.innerText)"
    )
    assert len(cells) == len(rows) == 6
    assert (
        sum("kind=bad is < none" in cell for cell in cells)
        == sum(row["status"] == "failed" for row in rows)
        == 3
    )
