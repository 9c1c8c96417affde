"""What a benchmark prints: a Markdown table, and the machine that it was measured on."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

import polars as pl

from isolab.results.provenance import provenance


def cores() -> int:
    """Returns how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def machine(*more: str) -> str:
    """Returns one line: processor, cores, versions, what else was running, and ``more``."""
    about = provenance()
    parts = [about["cpu"], f"{cores()} cores", f"jax {about['jax_version']} on {about['device']}"]
    if hasattr(os, "getloadavg"):
        parts.append(f"load average {os.getloadavg()[0]:.1f} at the end")
    return "; ".join([*parts, *more])


def table(
    frame: pl.DataFrame,
    by: Mapping[str, str],
    columns: Mapping[str, Callable[[pl.DataFrame], object]],
    *more: str,
) -> str:
    """Returns a Markdown table with a row per case, and the machine below it.

    Args:
        frame: rounds of all cases.
        by: the columns that tell cases apart, and their headings.
        columns: headings, and what a cell holds, of a case's rounds.
        more: what else to say of the machine.
    """
    rows = [[*by.values(), *columns], ["---"] * (len(by) + len(columns))]
    for case, rounds in frame.group_by(list(by), maintain_order=True):
        cells = [cell(rounds) for cell in columns.values()]
        rows.append([f"{x:.1f}" if isinstance(x, float) else str(x) for x in [*case, *cells]])
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([*lines, "", machine(*more)])


def median(column: str) -> Callable[[pl.DataFrame], object]:
    """Returns a cell: the median of a column over rounds."""
    return lambda rounds: rounds[column].median()


def spread(column: str) -> Callable[[pl.DataFrame], object]:
    """Returns a cell: the median of a column over rounds, with the lowest and the highest.

    Example:
        >>> spread("ratio")(pl.DataFrame({"ratio": [1.0, 3.0, 2.0]}))
        '2.00 [1.00-3.00]'
    """

    def cell(rounds: pl.DataFrame) -> str:
        x = rounds[column]
        return f"{x.median():.2f} [{x.min():.2f}-{x.max():.2f}]"

    return cell
