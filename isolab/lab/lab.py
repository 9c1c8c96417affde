"""The live lab: controls, two charts and the runs of a session.

Controls -> RunConfig -> Stored.look -> charts      a slider, within a tenth of a second
                      -> Live -> News -> charts     Train, in a thread
"""

from __future__ import annotations

import functools
import html
import os
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import ipywidgets as widgets
import polars as pl

from isolab.chapters import reference
from isolab.lab.controls import Controls
from isolab.lab.display import LiveChart, bundle
from isolab.lab.front_end import FrontEnd
from isolab.lab.inspector import Inspector
from isolab.lab.live import ENDS, Live, News
from isolab.lab.questions import question as question_named
from isolab.lab.session import Kept, KeptList, outcome, run_view
from isolab.lab.stored import Look, Stored, in_words
from isolab.lab.views import TOTAL, RunView, curve_view, picture, summary_view
from isolab.lab.words import run_label
from isolab.results.store import Store
from isolab.sweeps.sweep import default_store
from isolab.training.config import RunConfig, with_later_fields

REDRAW_SECONDS = 0.22
"""Least time between two drawings of a run that is training."""

REDRAW_SHARE = 0.2
"""Largest share of a run's time that drawing it takes."""

Guarded = Callable[..., None]


def _guarded(method: Guarded) -> Guarded:
    """What an observer raises is shown in the lab, which stays usable."""

    @functools.wraps(method)
    def call(self: Lab, *arguments: Any, **named: Any) -> None:
        try:
            with self._lock:
                method(self, *arguments, **named)
        except Exception as error:
            self._alarm(error)

    return call


class Lab:
    """The live lab: sliders that answer from stored runs at once, and a button that trains.

    Shown as a notebook cell's value.  Where no kernel is, a picture of its charts stands there.

    Args:
        question: what it is set to: "start", "speedup" (chapter 1), "transfer" (chapter 2) or
            "epsilon" (chapter 3).
        config: the first setting; default: the question's.
        runs: stored runs to draw, with the columns of :func:`isolab.run`; default: the reference
            results and what is in the store.
        store: where trained runs are kept: a Store, a path, None to keep nothing, or "default" for
            :func:`isolab.sweeps.sweep.default_store`.

    Attributes:
        widget: what is displayed.

    Raises:
        ValueError: an unknown question, or runs that lack columns.

    Example:
        >>> lab = Lab("transfer", store=None)
        >>> lab.set(width=96, learning_rate=2**-6)
        >>> lab.config.width
        96
    """

    def __init__(
        self,
        question: str = "start",
        config: RunConfig | None = None,
        runs: pl.DataFrame | None = None,
        store: Store | str | os.PathLike[str] | None = "default",
    ) -> None:
        self._question = question_named(question)
        self._start = config or self._question.start
        self._lock = threading.RLock()
        self._live: Live | None = None
        self._news: News | None = None
        self._number = 0
        self._due = 0.0  # when to draw a run again
        self._ended = ""
        self._look = Look(None, None, ())
        self._asked = self._start

        kept = default_store() if store == "default" else store
        self._store = kept if kept is None or isinstance(kept, Store) else Store(kept)
        self._controls = Controls(self._question, self._start, self._moved)
        self._kept = KeptList(self._redraw, self._lock)
        self._front = FrontEnd()
        self._inspector = Inspector(self._front)
        size = TOTAL[1] + 24, f"{TOTAL[0] + 8}px"
        self._curve = LiveChart(self._front, size[0], "isolab-lab-curve", size[1])
        self._summary = LiveChart(self._front, size[0], "isolab-lab-summary", size[1])
        self.widget = self._laid_out()

        x, line = self._question.x, self._question.line
        trouble: Exception | None = None
        if runs is None:
            try:
                runs = _stored_runs(self._store)
            except Exception as error:
                runs, trouble = pl.DataFrame(), error
        self._stored = Stored(runs, x, line)
        self._redraw()
        if trouble is not None:
            self._alarm(trouble)

    @property
    def config(self) -> RunConfig | None:
        """The setting now; None while it is refused."""
        return self._controls.config

    @property
    def refusals(self) -> dict[str, str]:
        """Why the setting is refused, by field; empty if it is not."""
        return dict(self._controls.refusals)

    @property
    def kept(self) -> list[Kept]:
        """The runs of this session that have ended and were not removed."""
        return list(self._kept.runs)

    @property
    def status(self) -> str:
        """The line below the charts: what stored runs are shown, how the last run ended."""
        return self._status_text

    @property
    def running(self) -> bool:
        """Whether a run is training."""
        live = self._live
        return live is not None and live.running

    def set(self, **values: Any) -> None:
        """Moves the controls, as a person would; fields without a control can be set too.

        Args:
            **values: by field of :class:`isolab.RunConfig`.

        Raises:
            ValueError: an unknown field, or an impossible setting; all stays as it was.
        """
        self._controls.set(**values)

    def train(self) -> None:
        """Starts to train the setting in a thread, and returns at once.

        Raises:
            ValueError: the setting is refused.
            RuntimeError: a run is training.
        """
        with self._lock:
            config = self._controls.config
            if config is None:
                raise ValueError("; ".join(self._controls.refusals.values()))
            if self._live is not None:
                raise RuntimeError("a run is training: stop it, or wait for its end")
            self._calm()
            self._number += 1
            self._news = None  # the last run's, until this one has some
            self._ended = ""
            self._live = Live(config, self._heard, self._store)
            self._buttons()
            self._live.start()

    def stop(self) -> None:
        """Asks the run that is training to stop after the interval in hand; returns at once."""
        live = self._live
        if live is None:
            return
        live.stop()
        with self._lock:
            if self._live is live:  # or it has ended by now, and said so
                self._progress_text.value = _quiet("stopping after this interval ...")

    def join(self, timeout: float | None = None) -> None:
        """Waits for the run that is training, at most ``timeout`` seconds."""
        with self._lock:  # while a run is being kept, it is not over
            live = self._live
        if live is not None:
            live.join(timeout)

    def _repr_mimebundle_(
        self, include: Any = None, exclude: Any = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns the live view with a picture of its charts, as one output."""
        with self._lock:
            views = self._views()
            text = f"<isolab lab: {self._question.title} {self._status_text}>"
            return bundle(self.widget, picture(*views, self._question.title), text)

    def _laid_out(self) -> widgets.VBox:
        said = self._question
        wide = widgets.Layout(width="100%")
        heading = widgets.HTML(
            f'<div style="font-size:1.25em;font-weight:600;line-height:1.5">'
            f"{html.escape(said.title)}</div><div>{html.escape(said.sentence)}</div>",
            layout=widgets.Layout(margin="0 0 8px 0"),
        )
        self._more = widgets.Accordion(
            children=[self._controls.more], titles=("More settings",), selected_index=None
        )
        button = widgets.Layout(width="96px", margin="0 8px 0 0")
        self._train_button = widgets.Button(
            description="Train", button_style="primary", layout=button,
            tooltip="Train a model with this setting and add it to the charts",
        )  # fmt: skip
        self._stop_button = widgets.Button(
            description="Stop", disabled=True, layout=button,
            tooltip="Stop the run that is training; what it did stays in the charts",
        )  # fmt: skip
        self._train_button.on_click(lambda _: self._pressed_train())
        self._stop_button.on_click(lambda _: self.stop())
        self._progress = widgets.IntProgress(
            layout=widgets.Layout(width="150px", display="none", margin="2px 8px 2px 0")
        )
        self._progress_text = widgets.HTML()
        row = widgets.Layout(flex_flow="row wrap", align_items="center", margin="8px 0")
        bar = widgets.Box(
            [self._train_button, self._stop_button, self._progress, self._progress_text],
            layout=row,
        )
        self._alert = widgets.HTML(layout=widgets.Layout(display="none", width="100%"))
        self._alert.add_class("isolab-lab-alert")
        flow = widgets.Layout(flex_flow="row wrap", width="100%", align_items="flex-start")
        charts = widgets.Box([self._curve.widget, self._summary.widget], layout=flow)
        self._status = widgets.HTML(layout=widgets.Layout(width="100%", margin="0 0 6px 0"))
        self._status.add_class("isolab-lab-status")
        self._status_text = ""
        self._inspector.widget.observe(lambda _: self._opened(), names="selected_index")
        parts = [
            heading, self._controls.front, self._controls.general, self._more, bar, self._alert,
            charts, self._status, self._kept.widget, self._inspector.widget, self._front.widget,
        ]  # fmt: skip
        outer = widgets.VBox(parts, layout=wide)
        outer.add_class("isolab-lab")
        return outer

    @_guarded
    def _moved(self) -> None:
        self._calm()
        self._redraw()

    @_guarded
    def _pressed_train(self) -> None:
        self.train()

    @_guarded
    def _opened(self) -> None:
        self._inspector.draw()

    @_guarded
    def _redraw(self) -> None:
        """Draws the setting; one that is refused leaves the charts as they were."""
        self._buttons()
        if set(self._controls.refusals) & set(self._question.more):
            self._more.selected_index = 0  # the reason stands in there
        if self._controls.config is not None:
            self._asked = self._controls.config
            self._look = self._stored.look(self._asked)
        self._draw()

    def _draw(self) -> None:
        curve, summary = self._views()
        self._curve.show(curve)
        self._summary.show(summary)
        stored = in_words(self._asked, self._look, self._question.x)
        self._say(f"{stored} {self._ended}".strip())

    def _views(self) -> tuple[dict[str, Any], dict[str, Any]]:
        config, look, runs = self._asked, self._look, self._shown()
        x, line = self._question.x, self._question.line
        asked = run_label(config, self._start)
        curve = curve_view(asked, look.cell, runs, config.steps)
        return curve, summary_view(config, look, runs, x, line)

    def _shown(self) -> list[RunView]:
        views = [run.view for run in self._kept.runs if run.shown]
        if self._live is not None and self._news is not None:
            views.append(run_view(self._number, self._news, live=True))
        return views

    def _heard(self, news: News) -> None:
        """Shows a run's news, not more often than a browser can draw; called in its thread."""
        last = news.state in ENDS
        with self._lock:
            due = time.monotonic() >= self._due
            self._news = news
            if last:
                self._end(news)
            elif due or len(news.curve_step) == 1:
                self._told(news)

    @_guarded
    def _told(self, news: News) -> None:
        begun = time.monotonic()
        self._progress.max, self._progress.value = news.steps, news.step
        self._progress_text.value = _quiet(f"run {self._number}: {news.message}")
        self._draw()
        self._inspector.show(news)
        now = time.monotonic()
        self._due = now + max(REDRAW_SECONDS, (now - begun) * (1 / REDRAW_SHARE - 1))

    @_guarded
    def _end(self, news: News) -> None:
        """Keeps a run that has ended, and makes room for the next one."""
        self._live = None
        if news.state == "failed":
            self._ended = f"Run {self._number} failed."
            self._progress_text.value = ""  # the alert says why
            self._warn(f"Run {self._number} failed: {news.message}")
        else:
            self._progress_text.value = _quiet(f"run {self._number}: {news.message}")
            label = run_label(news.config, self._start)
            self._kept.add(Kept(self._number, label, news))
            self._ended = f"Run {self._number}: {outcome(news)}."
        if news.row is not None:
            self._stored = self._stored.joined(with_later_fields(news.row))
        self._redraw()
        self._inspector.show(news)

    def _buttons(self) -> None:
        running = self._live is not None
        self._train_button.disabled = running or self._controls.config is None
        self._stop_button.disabled = not running
        self._progress.layout.display = None if running else "none"

    def _say(self, text: str) -> None:
        if text != self._status_text:
            self._status_text = text
            self._status.value = (
                '<div role="status" aria-live="polite" style="line-height:1.4">'
                f"{html.escape(text)}</div>"
            )

    def _alarm(self, error: Exception) -> None:
        where = "".join(traceback.format_exception(error))
        self._warn(f"{type(error).__name__}: {error}", where)

    def _warn(self, text: str, details: str = "") -> None:
        style = (
            "border-left:4px solid var(--jp-error-color1, #d32f2f);padding:4px 10px;margin:4px 0"
        )
        more = ""
        if details:
            code = 'style="overflow:auto;max-height:16em;font-size:0.85em"'
            more = (
                f"<details><summary>Details</summary><pre {code}>{html.escape(details)}</pre>"
                "</details>"
            )
        said = f"&#9888; {html.escape(text)}{more}"
        self._alert.value = f'<div role="alert" style="{style}">{said}</div>'
        self._alert.layout.display = None

    def _calm(self) -> None:
        if self._alert.value:
            self._alert.value = ""
            self._alert.layout.display = "none"


def _stored_runs(store: Store | None) -> pl.DataFrame:
    """Returns the reference runs that there are, and the store's."""
    frames = []
    for name in reference.SWEEPS:
        try:
            frames.append(reference.load(name))
        except FileNotFoundError:  # an installed package
            continue
    if store is not None:
        own = store.runs()
        if not own.is_empty():
            frames.append(with_later_fields(own))
    return pl.concat(frames, how="diagonal_relaxed") if frames else pl.DataFrame()


def _quiet(text: str) -> str:
    return f'<span style="opacity:0.85">{html.escape(text)}</span>'
