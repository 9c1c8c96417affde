"""Below the lab's charts: a row for each run that has ended, and the panel "Watch it work"."""

from __future__ import annotations

import html

import ipywidgets as widgets

from isolab.lab.display import FrontEnd, LiveChart
from isolab.lab.live import RunState
from isolab.lab.views import run_colour

_TEXT = (
    "white-space:pre-wrap;overflow-wrap:anywhere;margin:2px 0 10px;padding:8px;line-height:1.35;"
    "max-height:11em;max-width:860px;box-sizing:border-box;overflow:auto;"
    "border:1px solid var(--jp-border-color2, #bbb);"
    "font-family:var(--jp-code-font-family, monospace);font-size:0.92em"
)


class EndedRun:
    """A run of this session that has ended, and its row: a box to show or hide it, a button."""

    def __init__(self, label: str, end: RunState) -> None:
        self.label, self.end, number = label, end, end.number
        self.outcome = f"stopped, {end.outcome}" if end.state == "stopped" else end.outcome
        swatch = widgets.HTML(
            f'<span aria-hidden="true" style="display:inline-block;width:14px;height:14px;'
            f'border-radius:7px;background:{run_colour(number)};vertical-align:middle"></span>',
            layout={"width": "20px", "margin": "2px 4px 2px 0"},
        )
        self.check_box = widgets.Checkbox(
            value=True,
            description=f"{number}: {label}",
            indent=False,
            tooltip=f"Show or hide run {number}",
            layout={"width": "auto", "margin": "2px 8px 2px 0"},
        )
        self.remove_button = widgets.Button(
            description="Remove",
            tooltip=f"Remove run {number} (a stored run stays stored)",
            layout={"width": "84px", "margin": "2px 0 2px 12px"},
        )
        parts = [
            swatch.add_class("isolab-lab-swatch"),
            self.check_box,
            widgets.HTML(faint(self.outcome)),
            self.remove_button,
        ]
        self.row = widgets.HBox(parts, layout={"align_items": "center"})


class Inspector:
    """A panel, closed at first, that draws the newest inspection of a run while it is open."""

    def __init__(self, front_end: FrontEnd) -> None:
        self._layers, self._spectra = LiveChart(front_end), LiveChart(front_end)
        self._note, self._text = (widgets.HTML(layout={"width": "auto"}) for _ in range(2))
        self._note.value = "Train a run to see what each step does to its layers."
        flow = {"flex_flow": "row wrap", "width": "100%", "align_items": "flex-start"}
        charts = widgets.Box([self._layers.widget, self._spectra.widget], layout=flow)
        parts = widgets.VBox([self._note, charts, self._text])
        self.widget = widgets.Accordion([parts], titles=("Watch it work",), selected_index=None)

    def show(self, run: RunState) -> None:
        """Draws a run's newest inspection if the panel is open."""
        if self.widget.selected_index is None:
            return
        inside = run.inside
        note = f"After step {inside.step}. {inside.note}" if inside else "Nothing measured yet."
        self._note.value = html.escape(note.strip())
        self._text.value = "".join(
            f'<b>What it writes {when} training</b><pre style="{_TEXT}">{html.escape(text)}</pre>'
            for when, text in (("before", run.before), ("after", run.after))
            if text is not None
        )
        if inside is None:
            return
        from isolab.charts.inside import layers_inside, spectra

        self._layers.show(layers_inside(inside.layers).to_dict())
        if not inside.spectra.is_empty():
            self._spectra.show(spectra(inside.spectra).to_dict())


def faint(text: str) -> str:
    """Returns HTML of a text that says less than others."""
    return f'<span style="opacity:0.8">{html.escape(text)}</span>'
