"""The list of this session's runs: each is shown or hidden, and removed, by its own control."""

from __future__ import annotations

import html
from collections.abc import Sequence

import ipywidgets as widgets

from isolab.lab.live import RunState
from isolab.lab.views import RunView, run_colour

_ENDS = {"stopped": "stopped at step {step}", "diverged": "diverged", "finished": "loss {loss:.3f}"}


class EndedRun:
    """A run of this session that has ended.

    Attributes:
        number: from 1, in the order in which runs were started.
        label: what it is, in words.
        end: its last state.
        row: its row in the list.
    """

    def __init__(self, number: int, label: str, end: RunState) -> None:
        self.number, self.label, self.end = number, label, end
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
        how = widgets.HTML(f'<span style="opacity:0.75">{html.escape(outcome(end))}</span>')
        self.remove_button = widgets.Button(
            description="Remove",
            tooltip=f"Remove run {number} (a stored run stays stored)",
            layout={"width": "84px", "margin": "2px 0 2px 12px"},
        )
        parts = [swatch, self.check_box, how, self.remove_button]
        self.row = widgets.HBox(parts, layout={"align_items": "center"})

    @property
    def shown(self) -> bool:
        """Whether the charts draw it."""
        return bool(self.check_box.value)

    @property
    def view(self) -> RunView:
        """The run as charts show it."""
        return run_view(self.number, self.end)


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


def run_view(number: int, run: RunState, live: bool = False) -> RunView:
    """Returns a run as charts show it."""
    curves = run.curve_step, run.curve_validation_loss, run.curve_train_loss
    return RunView(number, run.config, *curves, run.state, live)


def outcome(run: RunState) -> str:
    """Returns how a run ended, in a few words."""
    last = run.curve_validation_loss[-1] if run.curve_validation_loss else float("nan")
    return _ENDS.get(run.state, run.state).format(step=run.step, loss=last)
