"""What chapter 1 runs."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import polars as pl

from isolab.chapters.settings import choose, rates, require_several
from isolab.measure import step_time
from isolab.sweeps.sweep import Sweep
from isolab.training.config import RunConfig

SPEEDUP: dict[str, dict[str, Any]] = {
    "smoke": {
        "width": 16,
        "depth": 1,
        "context": 32,
        "batch_size": 8,
        "horizons": [20, 40, 80],
        "evaluate_every": 20,
        "log2_rates_adam": [-6, -2],
        "log2_rates_isoadam": [-6, -2],
        "seeds": [0, 1],
        "timing_rounds": 2,
    },
    "laptop": {
        "width": 64,
        "depth": 2,
        "context": 64,
        "batch_size": 32,
        "horizons": [100, 200, 400],
        "evaluate_every": 50,
        "log2_rates_adam": [-7, -3],
        "log2_rates_isoadam": [-6, -2],
        "seeds": [0, 1, 2],
        "timing_rounds": 5,
    },
    "full": {
        "width": 256,
        "depth": 4,
        "context": 256,
        "batch_size": 64,
        "horizons": [1000, 2000, 4000, 8000],
        "evaluate_every": 250,
        "log2_rates_adam": [-10, -4],
        "log2_rates_isoadam": [-10, -4],
        "seeds": [0, 1, 2, 3, 4],
        "timing_rounds": 5,
    },
}
"""Chapter 1: rates are 2**k for k in the half-open ranges; the challenger's short horizon is the
baseline's longest divided by 4."""


@dataclass(frozen=True)
class SpeedupPlan:
    """Chapter 1's sweeps, checked and not yet run.

    Attributes:
        base: what all runs share.
        adam: the baseline's runs: rates, seeds and all horizons.
        isoadam: the challenger's: rates, seeds, the short horizon and the longest.
        short: the challenger's horizon for the speedup, in steps.
        timing: width, sequences and steps of the intervals in which steps are timed.
    """

    base: RunConfig
    adam: Sweep
    isoadam: Sweep
    short: int
    timing: tuple[int, int, int]

    def __str__(self) -> str:
        shape = f"width {self.base.width}, depth {self.base.depth}, context {self.base.context}"
        return f"{shape}: {len(self.adam)} runs of Adam, {len(self.isoadam)} of IsoAdam"


def speedup_plan(settings: SimpleNamespace) -> SpeedupPlan:
    """Returns chapter 1's sweeps; an impossible setting fails here, before any training.

    Args:
        settings: from :func:`choose` with :data:`SPEEDUP`.

    Raises:
        ValueError: fewer than two seeds or three horizons, horizons that evaluations do not
            divide, or what :class:`isolab.RunConfig` refuses.
    """
    require_several(settings, "seeds")
    if len(set(settings.horizons)) < 3:
        raise ValueError(f"horizons is {settings.horizons}; allowed: three or more, in steps")
    horizons = sorted(settings.horizons)
    short = horizons[-1] // 4
    base = RunConfig(
        width=settings.width,
        depth=settings.depth,
        context=settings.context,
        batch_size=settings.batch_size,
        evaluate_every=settings.evaluate_every,
        steps=horizons[-1],
        warmup_steps=horizons[-1] // 10,
    )

    def sweep(optimizer: str, steps: list[int], log2_range: list[int]) -> Sweep:
        schedules = {"steps": steps, "warmup_steps": [n // 10 for n in steps]}
        return Sweep(
            base,
            schedules,
            optimizer=[optimizer],
            learning_rate=rates(log2_range),
            seed=settings.seeds,
        )

    return SpeedupPlan(
        base,
        sweep("adam", horizons, settings.log2_rates_adam),
        sweep("isoadam", [short, horizons[-1]], settings.log2_rates_isoadam),
        short,
        (settings.width, settings.batch_size, 17),
    )


def speedup_reference() -> Sweep:
    """Returns the runs of chapter 1's reference results: preset "laptop" with five seeds."""
    plan = _reference_plan()
    return plan.adam + plan.isoadam


def speedup_step_time() -> pl.DataFrame:
    """Times the steps of Adam, IsoAdam and Muon at the size of the reference runs."""
    plan = _reference_plan()
    frame: pl.DataFrame = step_time.measure([plan.timing], rounds=15, base=plan.base)
    return frame


def _reference_plan() -> SpeedupPlan:
    return speedup_plan(choose(SPEEDUP, "laptop", seeds=[0, 1, 2, 3, 4]))
