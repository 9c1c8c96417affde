"""Step time of IsoAdam and Muon over Adam's, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl

from benchmarks import report
from isolab.measure import step_time
from isolab.measure.step_time import OPTIMIZERS

WIDTHS = (64, 128, 256)


def cases_at(widths: Sequence[int]) -> list[tuple[int, int, int]]:
    """Returns widths, sequences a step and steps timed at once.

    17 and 9 steps come near a run's share of refreshes; width 256 is timed at 16,384 tokens too.
    """
    large = [(256, 256, 9)] if 256 in widths else []
    return [(width, 32, 17) for width in widths] + large


def measure(widths: Sequence[int], rounds: int = 5, **options: Any) -> pl.DataFrame:
    """Returns :func:`isolab.measure.step_time.measure`'s frame."""
    return step_time.measure(cases_at(widths), rounds, **options)


def table(frame: pl.DataFrame) -> str:
    """Returns :func:`measure`'s frame as a Markdown table, with the machine below it."""
    wide = frame.pivot(
        on="optimizer",
        values=["step_ms", "ratio_to_adam"],
        index=["width", "tokens", "round", "refresh_share", "run_refresh_share"],
    )
    columns = {f"{name}, ms": report.median(f"step_ms_{name}") for name in OPTIMIZERS}
    for name in OPTIMIZERS[1:]:
        columns[f"{name} / adam [min-max]"] = report.spread(f"ratio_to_adam_{name}")
    columns["IsoAdam's refresh steps: timed (run)"] = lambda rounds: (
        f"{rounds['refresh_share'][0]:.1%} ({rounds['run_refresh_share'][0]:.1%})"
    )
    return report.table(wide, {"width": "width", "tokens": "tokens a step"}, columns)
