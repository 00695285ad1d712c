"""Controls that answer: a picture that follows sliders, drawn once for all moves that come while it is drawn."""

import asyncio
import base64
import io
from collections.abc import Callable
from html import escape

from ipywidgets import HTML, Image, Layout, VBox, Widget
from matplotlib.figure import Figure
from PIL.Image import Image as Picture

from nnbook.plotting import figures

DELAY = 0.03  # seconds in which moves gather: less than anyone sees, more than the next one takes to come in a drag


class Explorer(VBox):
    """Controls over what `draw` makes of their values: a figure or a picture, or HTML as a string.

    What makes no sense is said in a line under the controls, and the last picture stays. Where no kernel runs, in a
    rendered report or a preview, the first picture stands in; alt says in words what it shows.
    """

    def __init__(self, draw: Callable[..., Figure | Picture | str], alt: str, **controls: Widget):
        self._draw, self._alt, self._controls, self._due = draw, alt, controls, False
        self._said, self._picture, self._page = (
            HTML(),
            Image(format="png", layout=Layout(display="none")),
            HTML(),
        )
        for name, control in controls.items():
            control.description = control.description or name
            control.style.description_width = "initial"
            control.layout.width, control.layout.max_width = (
                "34rem",
                "98%",
            )  # long enough to reach each of many values
            control.observe(self._asked, "value")
        super().__init__([*controls.values(), self._said, self._picture, self._page])
        self.add_class("nnbook-explorer")
        self._page.add_class("nnbook-page")
        self._show()
        self._first = self._bundle()

    def _asked(self, _) -> None:
        """Draw soon: moves that wait in the kernel's queue come first, and the newest values count."""
        if self._due:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # nothing waits where no loop runs
            self._show()
            return
        self._due = True
        loop.call_later(DELAY, self._show)

    def _show(self) -> None:
        self._due = False
        try:
            made = self._draw(**{name: control.value for name, control in self._controls.items()})
        except (
            Exception
        ) as error:  # of whatever kind: a stack trace would stand in the page for good
            self._said.value = f"<b>Not drawn:</b> {escape(str(error) or type(error).__name__)}"
            return
        self._said.value = ""
        if isinstance(made, str):
            self._page.value = made
        else:
            self._picture.value, self._picture.layout.display = _png(made), ""

    def _bundle(self) -> dict[str, str]:
        if self._picture.value:
            return {"image/png": base64.b64encode(self._picture.value).decode()}
        return {"text/html": self._page.value}

    def _repr_mimebundle_(self, **words):
        data = super()._repr_mimebundle_(**words) | self._first | {"text/plain": self._alt}
        return data, {kind: {"alt": self._alt} for kind in self._first}


def _png(made: Figure | Picture) -> bytes:
    if isinstance(made, Figure):
        return figures.png(made)
    file = io.BytesIO()
    made.save(file, "png")
    return file.getvalue()
