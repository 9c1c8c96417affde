"""Step time of IsoAdam and Muon over Adam's, as a table."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from benchmarks.report import machine, markdown
from isolab.measure.step_time import OPTIMIZERS, measure
from isolab.measure.timing import Ratio

__all__ = ["CASES", "QUICK", "cases_at", "measure", "table"]

CASES = ((64, 32, 17), (128, 32, 17), (256, 32, 17), (256, 256, 9))
"""Width, sequences a step, steps timed at once: 17 and 9 come near a run's share of refreshes."""
QUICK = ((64, 32, 9), (128, 32, 9))


def cases_at(widths: Sequence[int]) -> list[tuple[int, int, int]]:
    """Returns the cases at these widths; 2,048 tokens a step at one that :data:`CASES` lacks."""
    known = [case for case in CASES if case[0] in widths]
    missing = [(width, 32, 17) for width in widths if width not in {case[0] for case in known}]
    return sorted(known + missing)


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
