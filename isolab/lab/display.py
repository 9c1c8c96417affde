"""Widgets that redraw a chart in place, and leave a picture where no kernel is.

A live view needs a front end and a kernel.  :func:`bundle` puts a picture beside it in the same
output, so that a notebook run by papermill, exported or re-opened shows what was there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ipywidgets as widgets

from isolab.charts.renderer import VEGALITE_MIME, offline_bundle, to_svg
from isolab.lab.front_end import FrontEnd

VIEW = "application/vnd.jupyter.widget-view+json"
_PNG = "image/png"
# JupyterLab draws a chart twice where no picture comes with it: the second time to make one.  A
# white pixel is taken for the picture.
_PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR42mP4DwABAQEAHLCMmQAAAABJRU5ErkJggg=="
)
# Elements instead of pixels: screen readers find the description, tests find the text.
_EMBED = {VEGALITE_MIME: {"embed_options": {"renderer": "svg", "actions": False}}}


class LiveChart:
    """A chart that is redrawn in place.

    An output's contents are replaced as a whole, which is safe in a thread and under papermill;
    ``with Output(): clear_output()`` is not.

    Args:
        front: where it is shown: one that draws charts itself is sent no pictures.
        height: least pixels, so that the page does not jump while a chart is redrawn.
        name: a CSS class of the box.

    Attributes:
        widget: what to lay out.
        spec: the Vega-Lite specification shown last, or None.
    """

    def __init__(self, front: FrontEnd, height: int, name: str = "", width: str = "auto") -> None:
        self._front = front
        self.spec: Mapping[str, Any] | None = None
        self.widget = widgets.Output(layout=widgets.Layout(min_height=f"{height}px", width=width))
        if name:
            self.widget.add_class(name)

    def show(self, spec: Mapping[str, Any]) -> bool:
        """Draws a chart in place of the last one, and tells whether it was another."""
        if spec == self.spec:
            return False
        self.spec = spec
        data, _ = offline_bundle(dict(spec), png=False)
        if self._front.draws:
            data[_PNG] = _PIXEL
        else:
            data["image/svg+xml"] = to_svg(spec)
        output = {"output_type": "display_data", "data": data, "metadata": _EMBED}
        self.widget.outputs = (output,)
        return True


def bundle(
    view: widgets.Widget, spec: Mapping[str, Any], text: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the mime bundle and metadata of a live view with a picture beside it.

    Args:
        view: the outermost widget.
        spec: Vega-Lite of what the picture shows.
        text: what a plain-text front end shows.
    """
    drawn, metadata = offline_bundle(dict(spec))
    data = {
        "text/plain": text,
        _PNG: drawn[_PNG],
        VIEW: {"version_major": 2, "version_minor": 0, "model_id": view.model_id},
    }
    return data, metadata
