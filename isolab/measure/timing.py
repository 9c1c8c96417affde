"""Interleaved timing: what is compared runs in turn, so that a busy machine slows all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from tqdm.auto import tqdm


class Ratio(NamedTuple):
    """A ratio of two times, from the rounds in which both were taken."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, ratios: Iterable[float]) -> Ratio:
        """Returns the median of the rounds' ratios, with the lowest and the highest."""
        values = sorted(ratios)
        return cls(statistics.median(values), values[0], values[-1])

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}-{self.high:.2f}]"


@dataclass(frozen=True)
class Timings:
    """Seconds of each callable in each round, by name."""

    seconds: Mapping[str, tuple[float, ...]]

    def median(self, name: str) -> float:
        """Returns the median over rounds, in seconds."""
        return statistics.median(self.seconds[name])

    def ratios(self, name: str, baseline: str) -> tuple[float, ...]:
        """Returns ``name``'s time over ``baseline``'s, of each round."""
        pairs = zip(self.seconds[name], self.seconds[baseline], strict=True)
        return tuple(ours / theirs for ours, theirs in pairs)

    def ratio(self, name: str, baseline: str) -> Ratio:
        """Returns the median of the rounds' ratios, with the lowest and the highest."""
        return Ratio.of(self.ratios(name, baseline))


def interleave(
    callables: Mapping[str, Callable[[], object]],
    rounds: int,
    units: Mapping[str, int] | None = None,
    warm_up: int = 1,
    clock: Callable[[], float] = time.perf_counter,
    label: str | None = None,
) -> Timings:
    """Times callables in turn: A B C, A B C, and so on.

    Args:
        callables: what to time; each returns only when its work is done.
        rounds: timed turns.
        units: what to divide each one's time by, such as the steps that a call makes; default 1.
        warm_up: turns before the first timed one: compilation, caches, first touches of memory.
        clock: seconds.
        label: shown beside a bar on standard error; None for no bar.

    Raises:
        ValueError: no callables, no rounds, or fewer warm-up turns than none.

    Example:
        >>> ticks = iter([0.0, 1.0, 1.0, 3.0, 3.0, 5.0, 5.0, 9.0])
        >>> work = {"adam": lambda: None, "isoadam": lambda: None}
        >>> timings = interleave(work, rounds=2, clock=lambda: next(ticks))
        >>> timings.median("adam"), str(timings.ratio("isoadam", "adam"))
        (1.5, '2.00 [2.00-2.00]')
    """
    if not callables:
        raise ValueError("interleave: no callables; allowed: one or more")
    if rounds < 1 or warm_up < 0:
        raise ValueError(f"rounds is {rounds} and warm_up {warm_up}; allowed: from 1, and from 0")
    units = units or {}
    taken: dict[str, list[float]] = {name: [] for name in callables}
    with tqdm(
        total=(warm_up + rounds) * len(callables), desc=label, disable=label is None, leave=False
    ) as bar:
        for turn in range(warm_up + rounds):
            for name, call in callables.items():
                bar.set_postfix_str(name if turn >= warm_up else f"{name}, warm-up")
                if turn < warm_up:
                    call()
                else:
                    started = clock()
                    call()
                    taken[name].append((clock() - started) / units.get(name, 1))
                bar.update()
    return Timings({name: tuple(seconds) for name, seconds in taken.items()})
