"""A picture that follows sliders, drawn once for all moves that arrive while it is drawn."""

import asyncio
import base64
import io
from collections.abc import Callable
from html import escape

from ipywidgets import HTML, Image, Layout, VBox, Widget
from matplotlib.figure import Figure
from PIL.Image import Image as Picture

from nnbook.plotting import figures

DELAY = 0.03  # seconds to gather moves: invisible, and longer than between two moves of a drag


class Explorer(VBox):
    """Controls over a picture of their values.

    An error is shown in a line under the controls, and the last picture stays. Where no kernel
    runs, in a rendered report or a preview, the first picture stands in.

    Parameters
    ----------
    draw : callable
        Takes the controls' values by name; returns a figure, a picture, or HTML as a string.
    alt : str
        What the picture shows, in words.
    **controls : Widget

    Examples
    --------
    >>> from ipywidgets import IntSlider
    >>> Explorer(lambda n: f"<p>{n}</p>", "A number.", n=IntSlider(3)).page.value
    '<p>3</p>'
    """

    def __init__(self, draw: Callable[..., Figure | Picture | str], alt: str, **controls: Widget):
        self.draw = draw
        self.alt = alt
        self.controls = controls
        self.message = HTML()
        self.picture = Image(format="png", layout=Layout(display="none"))
        self.page = HTML()
        self._is_due = False
        for name, control in controls.items():
            control.description = control.description or name
            control.style.description_width = "initial"
            control.layout.width = "34rem"  # long enough to reach each of many values
            control.layout.max_width = "98%"
            control.observe(self._schedule, "value")
        super().__init__([*controls.values(), self.message, self.picture, self.page])
        self.add_class("nnbook-explorer")
        self.page.add_class("nnbook-page")
        self._update()
        self._first = {"text/html": self.page.value}
        if self.picture.value:
            self._first = {"image/png": base64.b64encode(self.picture.value).decode()}

    def _schedule(self, _) -> None:
        """Draw soon, with the newest values: moves that wait in the kernel's queue come first."""
        if self._is_due:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # nothing waits where no loop runs
            self._update()
            return
        self._is_due = True
        loop.call_later(DELAY, self._update)

    def _update(self) -> None:
        self._is_due = False
        values = {name: control.value for name, control in self.controls.items()}
        try:
            drawn = self.draw(**values)
        except Exception as error:  # of any kind: a stack trace would stay in the page for good
            self.message.value = f"<b>Not drawn:</b> {escape(str(error) or type(error).__name__)}"
            return
        self.message.value = ""
        if isinstance(drawn, str):
            self.page.value = drawn
        else:
            self.picture.value = _png(drawn)
            self.picture.layout.display = ""

    def _repr_mimebundle_(self, **options):
        data = super()._repr_mimebundle_(**options) | self._first | {"text/plain": self.alt}
        return data, {kind: {"alt": self.alt} for kind in self._first}


def _png(drawn: Figure | Picture) -> bytes:
    if isinstance(drawn, Figure):
        return figures.png(drawn)
    file = io.BytesIO()
    drawn.save(file, "png")
    return file.getvalue()
