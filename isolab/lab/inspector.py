"""The panel "Watch it work": what a run's steps do to its layers, and what its model writes."""

from __future__ import annotations

import html

import ipywidgets as widgets

from isolab.lab.display import FrontEnd, LiveChart
from isolab.lab.live import RunState

_TEXT = (
    "white-space:pre-wrap;overflow-wrap:anywhere;margin:2px 0 10px;padding:8px;line-height:1.35;"
    "max-height:11em;max-width:860px;box-sizing:border-box;overflow:auto;"
    "border:1px solid var(--jp-border-color2, #bbb);"
    "font-family:var(--jp-code-font-family, monospace);font-size:0.92em"
)


class Inspector:
    """A panel, closed at first, that draws the newest inspection of a run while it is open.

    Args:
        front_end: where it is shown.

    Attributes:
        widget: what to lay out.
    """

    def __init__(self, front_end: FrontEnd) -> None:
        self._run: RunState | None = None
        self._layers, self._spectra = LiveChart(front_end), LiveChart(front_end)
        wide = {"width": "auto"}
        self._note = widgets.HTML(
            "Train a run to see what each step does to its layers.", layout=wide
        )
        self._text = widgets.HTML(layout=wide)
        flow = widgets.Layout(flex_flow="row wrap", width="100%", align_items="flex-start")
        charts = widgets.Box([self._layers.widget, self._spectra.widget], layout=flow)
        self.widget = widgets.Accordion(
            children=[widgets.VBox([self._note, charts, self._text])],
            titles=("Watch it work",),
            selected_index=None,
        )
        self.widget.add_class("isolab-lab-inside")

    def show(self, run: RunState) -> None:
        """Draws a run's newest inspection, at once if the panel is open and else once it is."""
        self._run = run
        self.draw()

    def draw(self) -> None:
        """Draws the newest inspection if the panel is open."""
        if self._run is None or self.widget.selected_index is None:
            return
        inside = self._run.inside
        note = f"After step {inside.step}. {inside.note}" if inside else "Nothing measured yet."
        self._note.value = html.escape(note.strip())
        self._text.value = "".join(
            f'<b>What it writes {when} training</b><pre style="{_TEXT}">{html.escape(text)}</pre>'
            for when, text in (("before", self._run.before), ("after", self._run.after))
            if text is not None
        )
        if inside is None:
            return
        from isolab.charts.inside import layers_inside, spectra

        self._layers.show(layers_inside(inside.layers).to_dict())
        if not inside.spectra.is_empty():
            self._spectra.show(spectra(inside.spectra).to_dict())
