"""The live lab: controls, two charts and the runs of a session.

Controls -> RunConfig -> Stored.nearest -> charts      a slider, within a tenth of a second
                      -> Live -> RunState -> charts    Train, in a thread
"""

from __future__ import annotations

import contextlib
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

from isolab.chapters import CHAPTERS
from isolab.chapters.chapter import load
from isolab.charts.renderer import offline_bundle
from isolab.lab.controls import Controls
from isolab.lab.display import FrontEnd, LiveChart
from isolab.lab.live import Live, RunState
from isolab.lab.panels import EndedRun, Inspector, faint
from isolab.lab.stored import Nearest, Stored, in_words
from isolab.lab.views import TOTAL, curve_view, picture, summary_view
from isolab.lab.words import run_label
from isolab.results.folder import runs_folder
from isolab.results.store import Store
from isolab.training.config import RunConfig

VIEW = "application/vnd.jupyter.widget-view+json"
REDRAW_SECONDS = 0.22  # least time between two drawings of a run that is training
REDRAW_SHARE = 0.2  # largest share of a run's time that drawing it takes


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
            :func:`isolab.results.folder.runs_folder`.

    Attributes:
        widget: what is displayed.
        status: the line below the charts: what stored runs are shown, how the last run ended.
        runs: the runs of this session that have ended and were not removed.

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
        if question not in CHAPTERS:
            raise ValueError(f"unknown question {question!r}; known: {sorted(CHAPTERS)}")
        self._question = CHAPTERS[question].question
        self._start = self._drawn = config or self._question.start
        self._lock = threading.RLock()
        self._live: Live | None = None
        self._now: RunState | None = None  # of the newest run
        self._number = 0
        self._due = 0.0  # when to draw a run again
        self._end_text = ""
        self._nearest = Nearest()
        self.status = ""

        store = runs_folder() if store == "default" else store
        self._store = store if store is None or isinstance(store, Store) else Store(store)
        self._controls = Controls(self._question, self._start, lambda: self._guard(self._moved))
        self._front_end = FrontEnd()
        self._inspector = Inspector(self._front_end)
        size = {"width": f"{TOTAL[0] + 8}px", "min_height": f"{TOTAL[1] + 24}px"}
        self._curve, self._summary = (LiveChart(self._front_end, **size) for _ in range(2))
        self._lay_out()
        frame = pl.DataFrame() if runs is None else runs
        self._stored = Stored(frame, self._question.x, self._question.line)
        if runs is None:
            self._guard(self._load)
        self._guard(self._redraw)

    @property
    def config(self) -> RunConfig | None:
        """The setting now; None while it is refused."""
        return self._controls.config

    @property
    def refusals(self) -> dict[str, str]:
        """Why the setting is refused, by field; empty if it is not."""
        return dict(self._controls.refusals)

    @property
    def running(self) -> bool:
        """Whether a run is training."""
        live = self._live
        return live is not None and live.is_alive()

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
            self._warn("")
            self._number += 1
            self._now, self._end_text = None, ""
            follow = functools.partial(self._guard, self._follow)
            self._live = Live(config, follow, self._store, self._number)
            self._enable()
            self._live.start()

    def stop(self) -> None:
        """Asks the run that is training to stop after the interval in hand; returns at once."""
        live = self._live
        if live is None:
            return
        live.stop()
        with self._lock:
            if self._live is live:  # or it has ended by now, and said so
                self._say("stopping after this interval ...")

    def join(self, timeout: float | None = None) -> None:
        """Waits for the run that is training, at most ``timeout`` seconds."""
        with self._lock:  # while the end of a run is being shown, it is not over
            live = self._live
        if live is not None:
            live.join(timeout)

    def _repr_mimebundle_(
        self, include: Any = None, exclude: Any = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns the live view with a picture of its charts, as one output.

        A notebook run by papermill, exported or opened again shows the picture.
        """
        with self._lock:
            title = self._question.title
            drawn, metadata = offline_bundle(picture(*self._charts(), title))
            view = {"version_major": 2, "version_minor": 0, "model_id": self.widget.model_id}
            text = f"<isolab lab: {title} {self.status}>"
            return {"text/plain": text, "image/png": drawn["image/png"], VIEW: view}, metadata

    def _lay_out(self) -> None:
        question, controls = self._question, self._controls
        heading = widgets.HTML(
            f'<div style="font-size:1.25em;font-weight:600;line-height:1.5">'
            f"{html.escape(question.title)}</div><div>{html.escape(question.sentence)}</div>",
            layout={"margin": "0 0 8px 0"},
        )
        folded = {"titles": ("More settings",), "selected_index": None}
        self._more = widgets.Accordion([controls.more], **folded)
        button = {"width": "96px", "margin": "0 8px 0 0"}
        self._train_button = widgets.Button(
            description="Train", button_style="primary", layout=button,
            tooltip="Train a model with this setting and add it to the charts",
        )  # fmt: skip
        self._stop_button = widgets.Button(
            description="Stop", layout=button,
            tooltip="Stop the run that is training; what it did stays in the charts",
        )  # fmt: skip
        self._train_button.on_click(lambda _: self._guard(self.train))
        self._stop_button.on_click(lambda _: self.stop())
        self._progress = widgets.IntProgress(layout={"width": "150px", "margin": "2px 8px 2px 0"})
        self._progress_text = widgets.HTML()
        bar = [self._train_button, self._stop_button, self._progress, self._progress_text]
        wide = {"width": "100%", "margin": "0 0 6px 0"}
        self._alert, self._status = widgets.HTML(layout=wide), widgets.HTML(layout=wide)
        self._warn("")
        self._list = widgets.VBox(layout={"width": "100%"})
        self._list_runs([])
        inside = self._inspector.widget
        inside.observe(lambda _: self._guard(self._inspect), names="selected_index")
        row = {"flex_flow": "row wrap", "align_items": "center", "margin": "8px 0"}
        flow = {"flex_flow": "row wrap", "width": "100%", "align_items": "flex-start"}
        charts = [
            self._curve.widget.add_class("isolab-lab-curve"),
            self._summary.widget.add_class("isolab-lab-summary"),
        ]
        parts = [
            heading, controls.front, controls.general, self._more, widgets.Box(bar, layout=row),
            self._alert.add_class("isolab-lab-alert"), widgets.Box(charts, layout=flow),
            self._status, self._list.add_class("isolab-lab-runs"),
            inside.add_class("isolab-lab-inside"), self._front_end.widget,
        ]  # fmt: skip
        self.widget = widgets.VBox(parts, layout={"width": "100%"}).add_class("isolab-lab")

    def _guard(self, action: Callable[..., None], *arguments: Any) -> None:
        """Does something alone; what it raises is shown in the lab, which stays usable."""
        try:
            with self._lock:
                action(*arguments)
        except Exception as error:
            details = "".join(traceback.format_exception(error))
            self._warn(f"{type(error).__name__}: {error}", details)

    def _load(self) -> None:
        """Reads the reference runs, which an installed package has not, and the store's."""
        frames = []
        for folder in (chapter.folder for chapter in CHAPTERS.values() if chapter.folder):
            with contextlib.suppress(FileNotFoundError):
                frames.append(load(folder))
        if self._store is not None:
            frames.append(self._store.runs())
        self._stored = self._stored.joined(*frames)

    def _moved(self) -> None:
        self._warn("")
        self._redraw()

    def _redraw(self) -> None:
        """Draws the setting; one that is refused leaves the charts as they were."""
        self._enable()
        if set(self._controls.refusals) & set(self._question.more):
            self._more.selected_index = 0  # the reason stands in there
        if self._controls.config is not None:
            self._drawn = self._controls.config
            self._nearest = self._stored.nearest(self._drawn)
        self._draw()

    def _draw(self) -> None:
        curve, summary = self._charts()
        self._curve.show(curve)
        self._summary.show(summary)
        stored = in_words(self._drawn, self._nearest, self._question.x)
        self.status = f"{stored} {self._end_text}".strip()
        style = 'role="status" aria-live="polite" style="line-height:1.4"'
        self._status.value = f"<div {style}>{html.escape(self.status)}</div>"

    def _charts(self) -> tuple[dict[str, Any], dict[str, Any]]:
        config, nearest = self._drawn, self._nearest
        runs = [run.end for run in self.runs if run.check_box.value]
        if self._live is not None and self._now is not None:
            runs.append(self._now)
        label = run_label(config, self._start)
        curve = curve_view(label, nearest.cell, runs, config.steps)
        return curve, summary_view(config, nearest, runs, self._question.x, self._question.line)

    def _follow(self, run: RunState) -> None:
        """Shows a run, not more often than a browser can draw; called in its thread."""
        self._now, begun = run, time.monotonic()
        if run.live and begun < self._due and len(run.curve_step) != 1:
            return
        self._progress.max, self._progress.value = run.config.steps, run.step
        self._say(f"run {run.number}: {run.message}")
        if run.live:
            self._draw()
        else:
            self._end(run)
            self._redraw()
        self._inspect()
        now = time.monotonic()
        self._due = now + max(REDRAW_SECONDS, (now - begun) * (1 / REDRAW_SHARE - 1))

    def _end(self, run: RunState) -> None:
        """Lists a run that has ended, and makes room for the next one."""
        self._live = None
        if run.state == "failed":
            self._end_text = f"Run {run.number} failed."
            self._say("")  # the alert says why
            self._warn(f"Run {run.number} failed: {run.message}")
            return
        ended = EndedRun(run_label(run.config, self._start), run)
        self._end_text = f"Run {run.number}: {ended.outcome}."
        ended.check_box.observe(lambda _: self._guard(self._redraw), names="value")
        ended.remove_button.on_click(lambda _: self._guard(self._remove, ended))
        self._list_runs([*self.runs, ended])
        if run.row is not None:
            self._stored = self._stored.joined(run.row)

    def _remove(self, run: EndedRun) -> None:
        self._list_runs([other for other in self.runs if other is not run])
        self._redraw()

    def _list_runs(self, runs: list[EndedRun]) -> None:
        self.runs = runs
        rows = [run.row for run in runs] or [widgets.HTML(faint("None yet: press Train."))]
        self._list.children = [widgets.HTML("<b>Your runs</b>"), *rows]

    def _inspect(self) -> None:
        if self._now is not None:
            self._inspector.show(self._now)

    def _enable(self) -> None:
        """Enables the buttons that can be pressed now."""
        training = self._live is not None
        self._train_button.disabled = training or self._controls.config is None
        self._stop_button.disabled = not training
        self._progress.layout.display = None if training else "none"

    def _say(self, text: str) -> None:
        self._progress_text.value = faint(text)

    def _warn(self, text: str, details: str = "") -> None:
        """Shows an alert, or with an empty text none."""
        if details:
            code = 'style="overflow:auto;max-height:16em;font-size:0.85em"'
            pre = f"<pre {code}>{html.escape(details)}</pre>"
            details = f"<details><summary>Details</summary>{pre}</details>"
        edge = "border-left:4px solid var(--jp-error-color1, #d32f2f)"
        style = f'role="alert" style="{edge};padding:4px 10px;margin:4px 0"'
        alert = f"<div {style}>&#9888; {html.escape(text)}{details}</div>"
        self._alert.value = alert if text else ""
        self._alert.layout.display = None if text else "none"
