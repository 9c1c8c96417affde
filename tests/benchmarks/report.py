"""What a benchmark prints: a Markdown table, and the machine that it was measured on."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

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


def markdown(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Returns a Markdown table.

    Example:
        >>> print(markdown(["width", "ms"], [[64, 50.25]]))
        | width | ms |
        |---|---|
        | 64 | 50.2 |
    """

    def line(cells: Iterable[object]) -> str:
        texts = (f"{cell:.1f}" if isinstance(cell, float) else str(cell) for cell in cells)
        return f"| {' | '.join(texts)} |"

    return "\n".join([line(header), "|" + "---|" * len(header), *map(line, rows)])
