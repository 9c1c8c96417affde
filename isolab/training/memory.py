"""How much memory training takes, by the compiler's own account, and how much there is."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import psutil

from isolab.training.config import RunConfig
from isolab.training.program import arguments_of, program_of
from isolab.training.runs_axis import device_count

CGROUP = Path("/sys/fs/cgroup")


class MemoryWarning(UserWarning):
    """Issued for a run that takes more memory than there seems to be, before it starts."""


def runs_that_fit(
    configs: Sequence[RunConfig], memory_bytes: int | None = None, processes: int = 1
) -> int:
    """Returns how many runs of a program can be trained side by side; compiles it for that.

    So many processes share ``memory_bytes`` of each device (None for :func:`allowed_bytes`).

    Raises:
        MemoryError: one run alone takes more than its share of ``memory_bytes``.  (Where it takes
            more than the bound found by itself, there is a MemoryWarning.)
    """
    allowed = (allowed_bytes() if memory_bytes is None else memory_bytes) // processes
    size = len(configs)
    devices = min(size, device_count())
    while (needed := needed_bytes(configs[:size])) > allowed and size > devices:
        # memory grows no faster than with the runs, so this never cuts below what fits
        size = max(devices, min(size - 1, size * allowed // needed))
    if needed <= allowed:
        return size
    first = configs[0]
    message = (
        f"a run of width {first.width}, depth {first.depth} and {first.batch_size} x"
        f" {first.context} tokens a step takes {needed:,} bytes of memory; allowed:"
        f" {allowed:,} bytes"
    )
    if memory_bytes is not None:
        part = f", of which each of {processes} processes has its part" if processes > 1 else ""
        raise MemoryError(f"{message} (memory_bytes{part})")
    warnings.warn(f"{message}; it is tried all the same", MemoryWarning, stacklevel=2)
    return size


def needed_bytes(configs: Sequence[RunConfig]) -> int:
    """Returns the bytes that training these runs side by side takes on each device.

    They are the compiled step's arguments, outputs and temporaries, less those that share memory;
    0 where the backend does not tell.  The program stays compiled: training starts at once.
    """
    return _needed_bytes(program_of(configs[0]), len(configs), min(len(configs), device_count()))


@functools.lru_cache(maxsize=256)
def _needed_bytes(static: RunConfig, runs: int, devices: int) -> int:
    program, (traced, tokens, windows) = arguments_of([static] * runs)
    init: Any = program.init  # jitted
    advance: Any = program.advance
    state, _ = jax.eval_shape(init, traced, windows)
    if devices > 1:
        state = jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            state,
            init.lower(traced, windows).compile().output_shardings[0],
        )
    start = jax.numpy.int32(0)
    stats = advance.lower(state, traced, start, tokens, windows).compile().memory_analysis()
    if stats is None:
        return 0
    return int(
        stats.argument_size_in_bytes
        + stats.output_size_in_bytes
        + stats.temp_size_in_bytes
        - stats.alias_size_in_bytes
    )


def allowed_bytes() -> int:
    """Returns what training may take: an accelerator's memory, or half of what is free here."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    return free_bytes() // 2


def free_bytes() -> int:
    """Returns the memory that this machine, or this container, has left."""
    free = int(psutil.virtual_memory().available)
    try:  # psutil knows nothing of containers
        limit = (CGROUP / "memory.max").read_text().strip()
        if limit != "max":
            used = int((CGROUP / "memory.current").read_text())
            cache = dict(map(str.split, (CGROUP / "memory.stat").read_text().splitlines()))
            free = min(free, int(limit) - used + int(cache.get("inactive_file", 0)))
    except (OSError, ValueError):
        pass
    return max(0, free)
