"""Explorers: what follows the controls, what is drawn while they move, and without a kernel."""

import asyncio
import time

import matplotlib.pyplot as plt
import pytest
from ipywidgets import Dropdown, IntSlider
from PIL import Image

from nnbook.plotting import Explorer


class Drawing:
    """Draws a picture as wide as asked, slowly, and keeps what it was asked for."""

    def __init__(self, seconds: float = 0.0):
        self.seconds, self.asked = seconds, []

    def __call__(self, width, kind="picture"):
        self.asked.append(width)
        time.sleep(self.seconds)
        if width > 90:
            raise ValueError(f"width={width} is < too wide >")
        return Image.new("L", (width, 2)) if kind == "picture" else f"<p>{width}</p>"


@pytest.fixture
def slider():
    return IntSlider(5, 1, 100)


def test_the_picture_follows_and_html_too(slider):
    kind = Dropdown(options=["picture", "page"])
    explorer = Explorer(Drawing(), "a bar", width=slider, kind=kind)
    first = explorer.picture.value
    slider.value = 7
    assert explorer.picture.value != first and slider.description == "width"
    kind.value = "page"
    assert explorer.page.value == "<p>7</p>"


def test_moves_that_wait_are_drawn_once_and_the_last_counts(slider):
    draw = Drawing(0.05)
    explorer = Explorer(draw, "a bar", width=slider)

    async def drag():
        for width in range(10, 60):
            slider.value = width
            await asyncio.sleep(0.002)
        await asyncio.sleep(0.3)

    asyncio.run(drag())
    assert draw.asked[-1] == 59 and 3 <= len(draw.asked) < 15, draw.asked
    assert explorer.picture.value == Explorer(Drawing(), "a bar", width=IntSlider(59)).picture.value


def test_what_makes_no_sense_is_said_and_the_picture_stays(slider):
    explorer = Explorer(Drawing(), "a bar", width=slider)
    before = explorer.picture.value
    slider.value = 95
    assert explorer.message.value == "<b>Not drawn:</b> width=95 is &lt; too wide &gt;"
    assert explorer.picture.value == before
    slider.value = 9
    assert explorer.message.value == "" and explorer.picture.value != before


def test_the_first_picture_stands_in_where_no_kernel_runs(slider):
    data, metadata = Explorer(Drawing(), "a bar", width=slider)._repr_mimebundle_()
    assert {"image/png", "application/vnd.jupyter.widget-view+json"} <= set(data)
    assert metadata == {"image/png": {"alt": "a bar"}} and data["text/plain"] == "a bar"
    page, _ = Explorer(
        Drawing(), "words", width=slider, kind=Dropdown(options=["page"])
    )._repr_mimebundle_()
    assert page["text/html"] == "<p>5</p>" and "image/png" not in page


def test_a_figure_is_closed_when_it_was_drawn(slider):
    def draw(width):
        figure, axis = plt.subplots(figsize=(width / 10, 1))
        axis.plot([1, 2])
        return figure

    open_before = plt.get_fignums()
    assert bytes(Explorer(draw, "a line", width=slider).picture.value).startswith(b"\x89PNG")
    assert plt.get_fignums() == open_before
