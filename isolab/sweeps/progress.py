"""What a person sees of a sweep: its plan, and a bar with the time left."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
import polars as pl
from tqdm.auto import tqdm

from isolab.results.provenance import provenance
from isolab.results.store import Store
from isolab.sweeps.batch import Batch
from isolab.sweeps.plan import Plan, batch_operations
from isolab.training.config import TRACED, RunConfig
from isolab.training.program import program_of

BAR = "{percentage:3.0f}%|{bar}| [{elapsed}<{remaining}{postfix}]"


class Progress:
    """A sweep's progress: the plan first, then a bar that ends with the ``with`` block.

    The bar's length is work: seconds, where runs alike are stored for every batch, else arithmetic
    operations.  So the time left is the time gone by, over the share of the work that is done.
    So many batches as ``at_once`` can be trained at the same time.
    """

    def __init__(self, plan: Plan, store: Store | None, at_once: int, shown: bool = True) -> None:
        seconds = expected_seconds(plan.batches, store) if shown else {}
        self._plan = plan
        self._work = seconds or {batch: batch_operations(batch) for batch in plan.batches}
        self._share = dict.fromkeys(plan.batches, 0.0)
        if shown:
            total = sum(seconds.values()) / max(1, min(at_once, len(plan.batches)))
            time = f"about {duration(total)}" if seconds else "time: told after the first interval"
            say(f"{plan}; {time}")
            if not at_once:
                say("no worker of the cluster can take a batch yet; they wait for one")
        total = sum(self._work.values())
        self._bar: Any = tqdm(total=total, disable=not shown, bar_format=BAR, smoothing=0)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def update(self, batch: Batch, share: float, losses: np.ndarray) -> None:
        """Shows that a share of a batch, from 0 to 1, is done, and its best loss."""
        more = (share - self._share[batch]) * self._work[batch]
        self._share[batch] = share
        steps = {b: len(b) * b[0].steps for b in self._share}
        done = round(sum(steps[b] * part for b, part in self._share.items()))
        finished = sum(part == 1 for part in self._share.values())
        finite = losses[np.isfinite(losses)]
        best = f"best {finite.min():.3f}" if finite.size else "all diverged"
        self._bar.set_postfix_str(
            f"{done}/{sum(steps.values())} steps, batches {finished}/{len(steps)},"
            f" {batch[0].optimizer} {best}",
            refresh=False,
        )
        self._bar.update(more)

    def stopped(self, place: str) -> str:
        """Returns what to tell when Ctrl-C has stopped the sweep."""
        todo = sum(len(batch) for batch, share in self._share.items() if share < 1)
        runs = len(self._plan.keys)
        return (
            f"stopped by Ctrl-C: {runs - todo} of {runs} runs are stored in {place};"
            " the same call goes on from there"
        )


def say(text: str) -> None:
    """Writes a line beside the bar at once, also where the output is a pipe and would wait."""
    tqdm.write(text)
    sys.stdout.flush()


def expected_seconds(batches: Iterable[Batch], store: Store | None) -> dict[Batch, float]:
    """Returns how long each batch takes by stored runs alike; nothing unless all have some.

    A run is like another if it shares its program and was trained on this kind of device; the
    median of their step_seconds (a step of one run) is taken.
    """
    names = [field.name for field in dataclasses.fields(RunConfig) if field.name not in TRACED]
    stored = store.runs() if store is not None else pl.DataFrame()
    if not {*names, "step_seconds", "device", "cpu"} <= set(stored.columns):
        return {}
    here = {name: provenance()[name] for name in ("device", "cpu")}
    found: dict[RunConfig, Any] = {}
    for program in {program_of(batch[0]) for batch in batches}:
        same = {name: getattr(program, name) for name in names} | here
        alike = stored.filter(*(pl.col(name) == value for name, value in same.items()))
        found[program] = alike["step_seconds"].median()
    if None in found.values():
        return {}
    return {b: len(b) * b[0].steps * found[program_of(b[0])] for b in batches}


def duration(seconds: float) -> str:
    """Returns seconds in words.

    Example:
        >>> duration(0.2), duration(42), duration(200), duration(9000), duration(300000)
        ('1 s', '42 s', '3 min', '2.5 h', '3.5 days')
    """
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"
