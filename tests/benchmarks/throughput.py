"""One run's step, and a sweep's runs per second, over the per-step loop that a user would write."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

import polars as pl
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from benchmarks.plain_jax import PlainLoop
from benchmarks.report import machine, markdown
from isolab.measure.interval import Interval
from isolab.measure.timing import Ratio, interleave
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
    rows = []
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
        units = {"run": length, "loop": length, "sweep": RUNS}
        label = f"width {width}" if progress else None
        timings = interleave(calls, rounds, units=units, label=label)
        steps_up, runs_up = timings.ratios("loop", "run"), timings.ratios("loop_run", "sweep")
        rows += [
            {
                "width": width,
                "round": number,
                "run_ms": 1e3 * timings.seconds["run"][number],
                "loop_ms": 1e3 * timings.seconds["loop"][number],
                "sweep_run_seconds": timings.seconds["sweep"][number],
                "loop_run_seconds": timings.seconds["loop_run"][number],
                "step_speedup": steps_up[number],
                "sweep_speedup": runs_up[number],
            }
            for number in range(rounds)
        ]
    return pl.DataFrame(rows)


def table(frame: pl.DataFrame) -> str:
    """Returns :func:`measure`'s frame as a Markdown table, with the machine below it."""
    rows = []
    for (width,), group in frame.group_by("width", maintain_order=True):
        middle = group.median().row(0, named=True)
        rows.append(
            [
                width,
                middle["run_ms"],
                middle["loop_ms"],
                Ratio.of(group["step_speedup"]),
                f"{1 / middle['sweep_run_seconds']:.2f}",
                f"{1 / middle['loop_run_seconds']:.2f}",
                Ratio.of(group["sweep_speedup"]),
            ]
        )
    header = ["width", "a run's step, ms", "plain loop's step, ms", "loop / run [min-max]"]
    header += [f"sweep of {RUNS}, runs/s", "loop, runs/s", "sweep / loop [min-max]"]
    return f"{markdown(header, rows)}\n\n{machine()}"
