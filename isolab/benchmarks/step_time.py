"""Step time of IsoAdam and Muon over Adam's, by the project's own training program."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import polars as pl
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from isolab.benchmarks.interval import RUN_STEPS, Interval, refresh_steps
from isolab.benchmarks.report import machine, markdown
from isolab.benchmarks.timing import Ratio, interleave
from isolab.config import RunConfig

OPTIMIZERS = ("adam", "isoadam", "muon")
CASES = ((64, 32, 17), (128, 32, 17), (256, 32, 17), (256, 256, 9))
"""Width, sequences a step, steps timed at once: 17 and 9 come near a run's share of refreshes."""
QUICK = ((64, 32, 9), (128, 32, 9))


def cases_at(widths: Sequence[int]) -> list[tuple[int, int, int]]:
    """Returns the cases at these widths; 2,048 tokens a step at one that :data:`CASES` lacks."""
    known = [case for case in CASES if case[0] in widths]
    missing = [(width, 32, 17) for width in widths if width not in {case[0] for case in known}]
    return sorted(known + missing)


@threadpool_limits.wrap(limits=1, user_api="blas")  # type: ignore[untyped-decorator]  # as train
def measure(
    cases: Sequence[tuple[int, int, int]] = CASES,
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


def table(frame: pl.DataFrame) -> str:
    """Returns :func:`measure`'s frame as a Markdown table, with the machine below it."""
    rows = []
    for (width, tokens), case in frame.group_by("width", "tokens", maintain_order=True):
        of = {name: case.filter(pl.col("optimizer") == name) for name in OPTIMIZERS}
        share, run_share = case["refresh_share"][0], case["run_refresh_share"][0]
        rows.append(
            [width, tokens]
            + [of[name]["step_ms"].median() for name in OPTIMIZERS]
            + [Ratio.of(of[name]["ratio_to_adam"]) for name in OPTIMIZERS[1:]]
            + [f"{share:.1%} ({run_share:.1%})"]
        )
    header = ["width", "tokens a step", *(f"{name}, ms" for name in OPTIMIZERS)]
    header += [f"{name} / adam [min-max]" for name in OPTIMIZERS[1:]]
    header += ["IsoAdam's refresh steps: timed (run)"]
    return f"{markdown(header, rows)}\n\n{machine()}"


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
