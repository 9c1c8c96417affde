"""The list of this session's runs: shown or not, and removed, each by its own control."""

from __future__ import annotations

import html
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import ipywidgets as widgets

from isolab.lab.live import News
from isolab.lab.views import RunView, run_colour

_ENDS = {"stopped": "stopped at step {step}", "diverged": "diverged", "finished": "loss {loss:.3f}"}


@dataclass
class Kept:
    """A run of this session that has ended.

    Attributes:
        number: from 1, in the order in which runs were started.
        label: what it is, in words.
        news: its end.
        shown: whether the charts draw it.
    """

    number: int
    label: str
    news: News
    shown: bool = True

    def __str__(self) -> str:
        return f"{self.number}: {self.label}"

    @property
    def view(self) -> RunView:
        """The run as charts show it."""
        return run_view(self.number, self.news)


def run_view(number: int, news: News, live: bool = False) -> RunView:
    """Returns a run as charts show it."""
    return RunView(
        number,
        news.config,
        news.curve_step,
        news.curve_validation_loss,
        news.curve_train_loss,
        news.state,
        live,
    )


def outcome(news: News) -> str:
    """Returns how a run ended, in a few words."""
    last = news.curve_validation_loss[-1] if news.curve_validation_loss else float("nan")
    return _ENDS.get(news.state, news.state).format(step=news.step, loss=last)


class KeptList:
    """Runs that have ended, newest last, each with a check box and a button to remove it.

    Args:
        on_change: called after a run was shown, hidden or removed by hand.
        lock: held meanwhile, as another thread may be adding a run.

    Attributes:
        runs: what is kept.
        widget: what to lay out.
    """

    def __init__(self, on_change: Callable[[], None], lock: AbstractContextManager[Any]) -> None:
        self.runs: list[Kept] = []
        self._on_change, self._lock = on_change, lock
        self._rows: dict[int, widgets.HBox] = {}
        self.widget = widgets.VBox(layout=widgets.Layout(width="100%"))
        self.widget.add_class("isolab-lab-kept")
        self._lay_out()

    def add(self, run: Kept) -> None:
        """Appends a run."""
        self.runs.append(run)
        self._rows[run.number] = self._row(run)
        self._lay_out()

    def _row(self, run: Kept) -> widgets.HBox:
        swatch = widgets.HTML(
            f'<span aria-hidden="true" style="display:inline-block;width:14px;height:14px;'
            f'border-radius:7px;background:{run_colour(run.number)};vertical-align:middle"></span>',
            layout=widgets.Layout(width="20px", margin="2px 4px 2px 0"),
        )
        swatch.add_class("isolab-lab-swatch")
        box = widgets.Checkbox(
            value=run.shown,
            description=str(run),
            indent=False,
            tooltip=f"Show or hide run {run.number}",
            layout=widgets.Layout(width="auto", margin="2px 8px 2px 0"),
        )
        end = widgets.HTML(f'<span style="opacity:0.75">{html.escape(outcome(run.news))}</span>')
        remove = widgets.Button(
            description="Remove",
            tooltip=f"Remove run {run.number} (a stored run stays stored)",
            layout=widgets.Layout(width="84px", margin="2px 0 2px 12px"),
        )

        def show(change: dict[str, bool]) -> None:
            with self._lock:
                run.shown = change["new"]
                self._on_change()

        def forget(_: object) -> None:
            with self._lock:
                self.runs = [other for other in self.runs if other is not run]
                self._lay_out()
                self._on_change()

        box.observe(show, names="value")
        remove.on_click(forget)
        return widgets.HBox([swatch, box, end, remove], layout=widgets.Layout(align_items="center"))

    def _lay_out(self) -> None:
        rows = [self._rows[run.number] for run in self.runs]
        none = widgets.HTML('<span style="opacity:0.75">None yet: press Train.</span>')
        self.widget.children = [widgets.HTML("<b>Your runs</b>"), *(rows or [none])]
