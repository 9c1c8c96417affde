"""The list of this session's runs: each is shown or hidden, and removed, by its own control."""

from __future__ import annotations

import html
from collections.abc import Sequence

import ipywidgets as widgets

from isolab.lab.live import RunState
from isolab.lab.views import run_colour


class EndedRun:
    """A run of this session that has ended.

    Attributes:
        label: what it is, in words.
        end: its last state.
        outcome: how it ended, in a few words.
        row: its row in the list.
    """

    def __init__(self, label: str, end: RunState) -> None:
        self.label, self.end = label, end
        number = end.number
        swatch = widgets.HTML(
            f'<span aria-hidden="true" style="display:inline-block;width:14px;height:14px;'
            f'border-radius:7px;background:{run_colour(number)};vertical-align:middle"></span>',
            layout={"width": "20px", "margin": "2px 4px 2px 0"},
        )
        swatch.add_class("isolab-lab-swatch")
        self.check_box = widgets.Checkbox(
            value=True,
            description=f"{number}: {label}",
            indent=False,
            tooltip=f"Show or hide run {number}",
            layout={"width": "auto", "margin": "2px 8px 2px 0"},
        )
        self.outcome = f"stopped, {end.outcome}" if end.state == "stopped" else end.outcome
        outcome = widgets.HTML(f'<span style="opacity:0.75">{html.escape(self.outcome)}</span>')
        self.remove_button = widgets.Button(
            description="Remove",
            tooltip=f"Remove run {number} (a stored run stays stored)",
            layout={"width": "84px", "margin": "2px 0 2px 12px"},
        )
        parts = [swatch, self.check_box, outcome, self.remove_button]
        self.row = widgets.HBox(parts, layout={"align_items": "center"})

    @property
    def shown(self) -> bool:
        """Whether the charts draw it."""
        return bool(self.check_box.value)


class RunList:
    """Runs that have ended, newest last.

    Attributes:
        runs: those that were not removed.
        widget: what to lay out.
    """

    def __init__(self) -> None:
        self.widget = widgets.VBox(layout={"width": "100%"})
        self.widget.add_class("isolab-lab-runs")
        self.show([])

    def show(self, runs: Sequence[EndedRun]) -> None:
        """Shows these runs in place of those before."""
        self.runs = list(runs)
        none = widgets.HTML('<span style="opacity:0.75">None yet: press Train.</span>')
        rows = [run.row for run in runs] or [none]
        self.widget.children = [widgets.HTML("<b>Your runs</b>"), *rows]
