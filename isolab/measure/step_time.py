"""Step time of IsoAdam and Muon over Adam's, by the project's own training program.

What is compared runs in turn (A B C, A B C, ...), so that a busy machine slows all alike.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import polars as pl
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from tqdm.auto import tqdm

from isolab.optimizers.iso import growing_interval, refresh_due
from isolab.training.config import RunConfig
from isolab.training.program import arguments_of

OPTIMIZERS = ("adam", "isoadam", "muon")
RUN_STEPS = 400  # length of the run whose share of refresh steps an interval should have
SETTLED = 100  # intervals start here or later, past the warm-up and first steps, which all refresh

Seconds = dict[str, npt.NDArray[np.float64]]


class Interval:
    """``config.evaluate_every`` steps of training; each call trains on from where the last ended.

    The step counters go back to the start before each call, so every call has the same refresh
    steps; it starts where their share is nearest to a run's.  Before the first one the run trains
    an interval from step 0, so that the optimizer's state is a real one (an eigendecomposition's
    time depends on the matrix).  Its evaluation has one window, as a step's time is wanted.
    """

    def __init__(self, config: RunConfig) -> None:
        every = config.evaluate_every
        steps = every * -(-max(config.steps, SETTLED + every) // every)
        self.config = dataclasses.replace(config, steps=steps, validation_windows=1)
        self.start = representative_start(refresh_steps(self.config), every)
        self._program, (self._traced, self._tokens, self._windows) = arguments_of([self.config])
        self._state: Any = None

    def __call__(self) -> float:
        """Trains, waits for the end, and returns the mean training loss, nats/token."""
        if self._state is None:
            self._state, _ = self._program.init(self._traced, self._windows)
            self._advance(0)
        self._state = with_counters(self._state, self.start)
        return self._advance(self.start)

    def _advance(self, start: int) -> float:
        self._state, losses, _ = self._program.advance(
            self._state, self._traced, jnp.int32(start), self._tokens, self._windows
        )
        jax.block_until_ready(self._state)
        return float(np.asarray(losses).mean())


def interleave(
    calls: Mapping[str, Callable[[], object]], rounds: int, label: str | None = None
) -> Seconds:
    """Times calls in turn, after one turn that is not timed: compilation, caches, fresh memory.

    Args:
        calls: what to time; each returns only when its work is done.
        label: shown beside a bar on standard error; None for no bar.

    Returns:
        Seconds of each call, float64 (rounds,).
    """
    if not calls or rounds < 1:
        raise ValueError(
            f"interleave: {len(calls)} calls and {rounds} rounds; allowed: 1 or more of each"
        )
    times = {name: np.zeros(1 + rounds) for name in calls}
    total = (1 + rounds) * len(calls)
    with tqdm(total=total, desc=label, disable=label is None, leave=False) as bar:
        for turn in range(1 + rounds):
            for name, call in calls.items():
                bar.set_postfix_str(name if turn else f"{name}, warm-up")
                started = time.perf_counter()
                call()
                times[name][turn] = time.perf_counter() - started
                bar.update()
    return {name: seconds[1:] for name, seconds in times.items()}


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

    Returns:
        A row per optimizer, case and round: ``optimizer``, ``width``, ``tokens`` (a step),
        ``round``, ``step_ms``, ``ratio_to_adam`` (of the same round), ``refresh_share`` (of the
        timed steps) and ``run_refresh_share`` (of a run of 400 steps).
    """
    base = base or RunConfig(learning_rate=0.002, steps=RUN_STEPS, warmup_steps=40)
    frames = []
    for width, batch_size, steps in cases:
        total = max(1, round(base.steps / steps)) * steps
        config = dataclasses.replace(
            base, width=width, batch_size=batch_size, evaluate_every=steps, steps=total,
            warmup_steps=min(base.warmup_steps, total),
        )  # fmt: skip
        intervals = {
            name: Interval(dataclasses.replace(config, optimizer=name)) for name in OPTIMIZERS
        }
        label = f"width {width}, batch {batch_size}" if progress else None
        seconds = interleave(intervals, rounds, label)
        first = intervals[OPTIMIZERS[0]]
        due = refresh_steps(first.config)
        for name in OPTIMIZERS:
            columns = {
                "optimizer": name,
                "width": width,
                "tokens": batch_size * base.context,
                "round": range(rounds),
                "step_ms": 1e3 * (seconds[name] / steps),
                "ratio_to_adam": seconds[name] / seconds[OPTIMIZERS[0]],
                "refresh_share": float(due[first.start : first.start + steps].mean()),
                "run_refresh_share": float(due.mean()),
            }
            wide = dict.fromkeys(("width", "tokens"), pl.Int64)
            frames.append(pl.DataFrame(columns, schema_overrides=wide))
    return pl.concat(frames)


def ratio(
    frame: pl.DataFrame, numerator: str, denominator: str
) -> tuple[float, tuple[float, float]]:
    """Returns one optimizer's step time over another's: the median over rounds, and its range.

    Raises:
        ValueError: an optimizer that was not timed, or several cases.
    """
    if frame.select("width", "tokens").n_unique() != 1:
        raise ValueError("ratio: the frame holds several cases; filter it to one width and tokens")
    timed = sorted(set(frame["optimizer"]))
    missing = sorted({numerator, denominator} - set(timed))
    if missing:
        raise ValueError(f"ratio: {missing[0]!r} was not timed; timed: {timed}")
    over, under = (
        frame.filter(optimizer=name).sort("round")["step_ms"].to_numpy()
        for name in (numerator, denominator)
    )
    pairs = over / under
    return float(np.median(pairs)), (float(pairs.min()), float(pairs.max()))


def refresh_steps(config: RunConfig) -> npt.NDArray[np.bool_]:
    """Returns, for each step of the run, whether IsoAdam's factors would be refreshed in it."""
    rule = config.iso_refresh or growing_interval()
    return np.asarray(refresh_due(jnp.arange(config.steps), rule))


def representative_start(due: npt.NDArray[np.bool_], length: int) -> int:
    """Returns where an interval's share of true steps is nearest to that of all; the first such."""
    first = min(SETTLED, len(due) - length) if len(due) > SETTLED else 0
    counts = np.convolve(due, np.ones(length), "valid")[first:]
    return first + int(np.argmin(np.abs(counts - due.mean() * length)))


def with_counters(state: Any, step: int) -> Any:
    """Returns the training state with its step counters (whole scalars) at ``step``."""
    return jax.tree.map(lambda leaf: _moved(leaf, step), state)


def _moved(leaf: Any, step: int) -> Any:
    counter = leaf.shape == () and jnp.issubdtype(leaf.dtype, jnp.integer)
    return jnp.full_like(leaf, step) if counter else leaf
