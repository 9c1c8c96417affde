"""Sweeps over widths whose truth is known, for the tests of transfer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import polars as pl
import pytest


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
    shared = np.zeros(seeds) if shared is None else shared
    widths = list(bests)
    shape = (len(widths), len(grid), seeds)
    n, x, s = (
        axis.ravel() for axis in np.meshgrid(range(shape[0]), grid, range(seeds), indexing="ij")
    )
    best = np.array([bests[width] for width in widths], dtype=np.float64)
    floor = np.array([floors[width] if floors else 2.0 for width in widths], dtype=np.float64)
    loss = floor[n] + curvature * (x - best[n]) ** 2 + shared[s]
    if rng is not None:
        loss = loss + noise * rng.normal(size=loss.shape)
    return pl.DataFrame(
        {
            "width": np.array(widths)[n],
            "learning_rate": 2.0**x,
            "seed": s,
            "final_validation_loss": loss,
        }
    ).with_columns(
        **{name: pl.lit(value) for name, value in {"optimizer": optimizer, **columns}.items()}
    )


def diverge(runs: pl.DataFrame, **where: object) -> pl.DataFrame:
    """The same runs, those with all these values (a list: any of them) diverged."""
    hit = pl.all_horizontal(
        pl.col(name).is_in(value if isinstance(value, list) else [value])
        for name, value in where.items()
    )
    loss = "final_validation_loss"
    return runs.with_columns(pl.when(hit).then(float("inf")).otherwise(pl.col(loss)).alias(loss))


@pytest.fixture(scope="session", name="parabolas")
def _parabolas() -> Callable[..., pl.DataFrame]:
    return parabolas


@pytest.fixture(scope="session", name="diverge")
def _diverge() -> Callable[..., pl.DataFrame]:
    return diverge
