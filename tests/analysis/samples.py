"""Sweeps over widths whose truth is known, for the tests of transfer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl


def parabolas(
    bests: Mapping[int, float],
    floors: Mapping[int, float] | None = None,
    grid: Sequence[float] = tuple(range(-10, 0)),
    curvature: float = 0.1,
    seeds: int = 2,
    noise: float = 0.0,
    shared: np.ndarray | None = None,
    rng: np.random.Generator | None = None,
    optimizer: str = "adam",
    **columns: object,
) -> pl.DataFrame:
    """A row per width, rate and seed, whose loss is a parabola in log2(rate).

    bests: log2 of the best rate by width; floors: the loss there (2 where None); noise: standard
    deviation per run; shared: (seeds,) added to a seed's every loss.
    """
    loss = "final_validation_loss"
    shared = np.zeros(seeds) if shared is None else shared
    rows = [
        {
            **columns, "optimizer": optimizer, "width": width, "learning_rate": 2.0**x, "seed": s,
            loss: (floors or {}).get(width, 2.0) + curvature * (x - best) ** 2 + shared[s],
        }
        for width, best in bests.items()
        for x in grid
        for s in range(seeds)
    ]  # fmt: skip
    runs = pl.DataFrame(rows)
    if rng is None:
        return runs
    return runs.with_columns(pl.col(loss) + pl.Series(noise * rng.normal(size=len(runs))))


def diverge(runs: pl.DataFrame, **where: object) -> pl.DataFrame:
    """The same runs, those with all these values (a list: any of them) diverged."""
    hit = pl.all_horizontal(
        pl.col(name).is_in(value if isinstance(value, list) else [value])
        for name, value in where.items()
    )
    loss = "final_validation_loss"
    return runs.with_columns(pl.when(hit).then(float("inf")).otherwise(pl.col(loss)).alias(loss))


def seedwise(*frames: pl.DataFrame) -> pl.DataFrame:
    """The runs of each frame, of one seed, as those of a seed of its own."""
    return pl.concat(its.with_columns(seed=pl.lit(s)) for s, its in enumerate(frames))
