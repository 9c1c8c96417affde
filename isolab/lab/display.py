"""How the lab is shown: charts that are redrawn in place, and what is mended in the page.

A chart is sent as Vega-Lite.  JupyterLab draws it; other front ends show a picture, which takes
50 ms to draw.  Which of them shows the lab only the page knows: ``front_end.js``, in an output
beside the charts, presses a hidden button once a chart is drawn, and from then on no pictures are
sent.

The script also mends what no widget can set.  In ipywidgets a slider's handle has no name, and
tells its place among the options in place of its value; an accordion's header hears only the mouse;
a list's arrow and a chart's white are made for a light theme; and JupyterLab takes keys pressed in
a control for its own commands: an arrow key in a list of choices went to the next cell, and two D
deleted this one.  It asks for nothing from the network; where it does not run, the lab is as it
would be without.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ipywidgets as widgets

from isolab.charts.renderer import VEGALITE_MIME, offline_bundle, to_svg
from isolab.charts.theme import Spec

# JupyterLab draws a chart twice where no picture comes with it: the second time to make one.  A
# white pixel is taken for the picture.
_PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR42mP4DwABAQEAHLCMmQAAAABJRU5ErkJggg=="
)
# Elements instead of pixels: screen readers find the description, tests find the text.
_EMBED = {VEGALITE_MIME: {"embed_options": {"renderer": "svg", "actions": False}}}


class FrontEnd:
    """The page in which a lab is shown; ``widget`` is its script and a button, without size."""

    def __init__(self) -> None:
        self.draws = False  # whether it has drawn a chart from Vega-Lite
        button = widgets.Button(layout={"display": "none"}).add_class("isolab-lab-draws")
        button.on_click(lambda _: setattr(self, "draws", True))
        script = Path(__file__).with_name("front_end.js").read_text()
        output = _output({"application/javascript": script, "text/plain": ""}, {})
        layout = {"height": "0", "margin": "0", "overflow": "hidden"}
        self.widget = widgets.Box([button, widgets.Output(outputs=output)], layout=layout)


class LiveChart:
    """A chart that is redrawn in place; as pictures until the front end draws it itself.

    An output's contents are replaced as a whole, which is safe in a thread and under papermill;
    ``with Output(): clear_output()`` is not.  With a width and a least height in its layout the
    page does not jump.
    """

    def __init__(self, front_end: FrontEnd, **layout: str) -> None:
        self._front_end = front_end
        self.spec: Spec | None = None  # shown last
        self.widget = widgets.Output(layout=layout)

    def show(self, spec: Spec) -> None:
        """Draws a chart in place of the last one, if it is another."""
        if spec == self.spec:
            return
        self.spec = spec
        data, _ = offline_bundle(spec, png=False)
        if self._front_end.draws:
            data["image/png"] = _PIXEL
        else:
            data["image/svg+xml"] = to_svg(spec)
        self.widget.outputs = _output(data, _EMBED)


def _output(data: dict[str, Any], metadata: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    return ({"output_type": "display_data", "data": data, "metadata": metadata},)
