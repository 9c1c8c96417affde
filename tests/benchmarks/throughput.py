"""One run's step, and a sweep's runs per second, over the per-step loop that a user would write."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

import polars as pl
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from benchmarks import report
from benchmarks.plain_jax import PlainLoop
from isolab.measure.step_time import Interval, interleave
from isolab.model.corpus import load_corpus
from isolab.sweeps.sweep import Sweep, run
from isolab.training.config import RunConfig

WIDTHS = (32, 64, 128, 256)
RUNS = 8
"""Runs of the sweep that is timed; the loop trains one, as eight in a row take eight times that."""


@threadpool_limits.wrap(limits=1, user_api="blas")  # type: ignore[untyped-decorator]  # as train
def measure(
    widths: Sequence[int] = WIDTHS,
    rounds: int = 5,
    steps: int = 0,
    base: RunConfig | None = None,
    progress: bool = True,
) -> pl.DataFrame:
    """Times a run, a sweep of eight seeds and the loop in turn.

    The sweep and the loop each initialize, train for ``steps`` and evaluate once; what is compiled
    stays so.  The run's step is compared with the loop's without either's initialization.

    Args:
        widths: of the model.
        rounds: timed turns.
        steps: of each run; 0 for 40 at width 64 and fewer above it.
        base: the run that the widths vary.
        progress: show a bar.

    Returns:
        A row per width and round: ``width``, ``round``, ``run_ms`` and ``loop_ms`` (a step),
        ``sweep_run_seconds`` and ``loop_run_seconds`` (a whole run), ``step_speedup`` (loop's step
        over the run's) and ``sweep_speedup`` (the sweep's runs per second over the loop's).
    """
    base = base or RunConfig(learning_rate=0.002, validation_windows=16)
    frames = []
    for width in widths:
        length = steps or max(5, min(40, 40 * 64 // width))
        config = dataclasses.replace(
            base, width=width, steps=length, evaluate_every=length, warmup_steps=0
        )
        loop = PlainLoop(config, load_corpus(config.corpus))
        sweep = Sweep(config, seed=range(RUNS))
        calls: dict[str, Callable[[], object]] = {
            "run": Interval(config),
            "loop": partial(loop.advance, length),
            "sweep": partial(run, sweep, store=None, progress=False),
            "loop_run": partial(loop.train, length),
        }
        seconds = interleave(calls, rounds, f"width {width}" if progress else None)
        columns = {
            "width": width,
            "round": range(rounds),
            "run_ms": 1e3 * seconds["run"] / length,
            "loop_ms": 1e3 * seconds["loop"] / length,
            "sweep_run_seconds": seconds["sweep"] / RUNS,
            "loop_run_seconds": seconds["loop_run"],
            "step_speedup": seconds["loop"] / seconds["run"],
            "sweep_speedup": RUNS * seconds["loop_run"] / seconds["sweep"],
        }
        frames.append(pl.DataFrame(columns))
    return pl.concat(frames)


def table(frame: pl.DataFrame) -> str:
    """Returns :func:`measure`'s frame as a Markdown table, with the machine below it."""
    columns = {
        "a run's step, ms": report.median("run_ms"),
        "plain loop's step, ms": report.median("loop_ms"),
        "loop / run [min-max]": report.spread("step_speedup"),
        f"sweep of {RUNS}, runs/s": lambda rounds: (
            f"{1 / rounds['sweep_run_seconds'].median():.2f}"
        ),
        "loop, runs/s": lambda rounds: f"{1 / rounds['loop_run_seconds'].median():.2f}",
        "sweep / loop [min-max]": report.spread("sweep_speedup"),
    }
    return report.table(frame, {"width": "width"}, columns)
