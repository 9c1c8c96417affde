"""What a person sees of a sweep: its plan, and a bar with the time left."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any

import numpy as np
import polars as pl
from tqdm.auto import tqdm

from isolab.results.store import Store
from isolab.sweeps.batch import Batch
from isolab.sweeps.plan import Clock, Plan, duration, seconds_per_step
from isolab.training.train import Report

BAR = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} steps [{elapsed}{postfix}]"


class Board:
    """A sweep's progress: the plan first, then a bar of steps that ends with the ``with`` block.

    Args:
        planned: what will be done.
        store: where runs alike may tell how long a step takes.
        shown: False for silence.

    Attributes:
        beside: batches that can be trained at the same time; set before the block.
    """

    def __init__(self, planned: Plan, store: Store | None, shown: bool = True) -> None:
        self.beside = 1
        self._planned = planned
        self._store = store
        self._shown = shown
        self._runs = self._batches = 0

    def __enter__(self) -> Board:
        batches = self._planned.batches
        known = seconds_per_step(batches, self._store) if self._shown else {}
        self._clock = Clock(batches, known, self.beside)
        self._steps = dict.fromkeys(batches, 0)
        if self._shown:
            _say(f"{self._planned}; {self._clock}")
            if not self.beside:
                _say("no worker of the cluster can take a batch yet; they wait for one")
        total = sum(len(batch) * batch[0].steps for batch in batches)
        self._bar: Any = tqdm(total=total, disable=not self._shown, bar_format=BAR)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.close()

    def advance(self, batch: Batch, share: float, news: Report) -> None:
        """Shows that this share of a batch is done, and its best loss."""
        self._show(batch, share, news.validation_loss)

    def finished(self, batch: Batch, frame: pl.DataFrame) -> None:
        """Shows that a batch is done."""
        self._batches += 1
        self._runs += len(batch)
        self._show(batch, 1.0, frame["final_validation_loss"].to_numpy())

    def finishing(self) -> None:
        """Tells that Ctrl-C was heard."""
        _say("Ctrl-C: finishing and storing the batch in hand; again to stop at once")

    def stopped(self, place: str) -> str:
        """Returns what to tell when Ctrl-C has stopped the sweep."""
        todo = sum(len(batch) for batch in self._planned.batches)
        stored = len(self._planned.keys) - todo + self._runs
        return (
            f"stopped by Ctrl-C: {stored} of {len(self._planned.keys)} runs are stored in {place};"
            " the same call goes on from there"
        )

    def _show(self, batch: Batch, share: float, losses: np.ndarray) -> None:
        self._clock.advance(batch, share)
        steps = round(share * len(batch) * batch[0].steps)
        left = self._clock.seconds_left
        finite = losses[np.isfinite(losses)]
        best = f"best {finite.min():.3f}" if finite.size else "all diverged"
        self._bar.set_postfix_str(
            f"{f'about {duration(left)} left' if left else 'done'}, batches {self._batches}"
            f"/{len(self._steps)}, {batch[0].optimizer} {best}",
            refresh=False,
        )
        self._bar.update(steps - self._steps[batch])
        self._steps[batch] = steps


def _say(text: str) -> None:
    """Writes a line beside the bar at once, also where the output is a pipe and would wait."""
    tqdm.write(text)
    sys.stdout.flush()
