"""Step time of IsoAdam and Muon over Adam's, by the project's own training program."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import polars as pl
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from isolab.measure.interval import RUN_STEPS, Interval, refresh_steps
from isolab.measure.timing import interleave
from isolab.training.config import RunConfig

OPTIMIZERS = ("adam", "isoadam", "muon")


@threadpool_limits.wrap(limits=1, user_api="blas")  # type: ignore[untyped-decorator]  # as train
def measure(
    cases: Sequence[tuple[int, int, int]],
    rounds: int = 5,
    base: RunConfig | None = None,
    progress: bool = True,
) -> pl.DataFrame:
    """Times training steps, the optimizers in turn.

    Args:
        cases: width, batch size and steps of each interval that is timed.
        rounds: timed turns.
        base: the run that the cases vary; by default 2 layers, a context of 64, heads of 16.
        progress: show a bar.

    Returns:
        A row per optimizer, case and round: ``optimizer``, ``width``, ``tokens`` (a step),
        ``round``, ``step_ms``, ``ratio_to_adam`` (of the same round), ``refresh_share`` (of the
        timed steps) and ``run_refresh_share`` (of a run of 400 steps).
    """
    base = base or RunConfig(learning_rate=0.002, steps=RUN_STEPS, warmup_steps=40)
    rows = []
    for width, batch_size, steps in cases:
        intervals = {
            name: Interval(_config(base, width, batch_size, steps, name)) for name in OPTIMIZERS
        }
        timings = interleave(
            intervals,
            rounds,
            units=dict.fromkeys(intervals, steps),
            label=f"width {width}, batch {batch_size}" if progress else None,
        )
        first = intervals[OPTIMIZERS[0]]
        due = refresh_steps(first.config)
        for name in OPTIMIZERS:
            pairs = zip(timings.seconds[name], timings.ratios(name, OPTIMIZERS[0]), strict=True)
            rows += [
                {
                    "optimizer": name,
                    "width": width,
                    "tokens": batch_size * base.context,
                    "round": number,
                    "step_ms": 1e3 * seconds,
                    "ratio_to_adam": ratio,
                    "refresh_share": float(due[first.start : first.start + steps].mean()),
                    "run_refresh_share": float(due.mean()),
                }
                for number, (seconds, ratio) in enumerate(pairs)
            ]
    return pl.DataFrame(rows)


def _config(base: RunConfig, width: int, batch_size: int, steps: int, optimizer: str) -> RunConfig:
    total = max(1, round(base.steps / steps)) * steps
    return dataclasses.replace(
        base,
        width=width,
        batch_size=batch_size,
        optimizer=optimizer,
        evaluate_every=steps,
        steps=total,
        warmup_steps=min(base.warmup_steps, total),
    )


def ratio(
    frame: pl.DataFrame, numerator: str, denominator: str
) -> tuple[float, tuple[float, float]]:
    """Returns one optimizer's step time over another's: the median over rounds, and its range.

    Args:
        frame: from :func:`measure`, one case.
        numerator, denominator: optimizers.

    Raises:
        ValueError: an optimizer that was not timed, or several cases.
    """
    if frame.select("width", "tokens").n_unique() != 1:
        raise ValueError("ratio: the frame holds several cases; filter it to one width and tokens")
    times = {
        name: frame.filter(pl.col("optimizer") == name).sort("round")["step_ms"].to_numpy()
        for name in (numerator, denominator)
    }
    for name, found in times.items():
        if not found.size:
            raise ValueError(
                f"ratio: {name!r} was not timed; timed: {sorted(set(frame['optimizer']))}"
            )
    pairs = times[numerator] / times[denominator]
    return float(np.median(pairs)), (float(pairs.min()), float(pairs.max()))
