"""The best rate: recovered exactly without noise, covered by its interval with noise."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isolab.analysis.optimum import at_best_rate, optima, optimum
from isolab.analysis.seeds import AllDivergedError

INF = math.inf
LOSSES = st.one_of(st.floats(0.1, 9.0), st.sampled_from([INF, math.nan]))


def frame(losses: dict[float, list[float]], **columns: object) -> pl.DataFrame:
    """A row per rate and seed; seeds are positions in the lists."""
    rows = [
        {"learning_rate": rate, "seed": seed, "final_validation_loss": loss, **columns}
        for rate, values in losses.items()
        for seed, loss in enumerate(values)
    ]
    return pl.DataFrame(rows)


@given(st.lists(st.lists(LOSSES, min_size=3, max_size=3), min_size=3, max_size=6))
def test_divergence_never_makes_nan(losses):
    runs = frame({2.0**-k: values for k, values in enumerate(losses)})
    losses = np.where(np.isnan(losses), INF, losses)
    if np.isinf(losses).any(axis=1).all():
        with pytest.raises(AllDivergedError, match="add lower rates"):
            optimum(runs)
        return
    found = optimum(runs)
    assert found.rate_low <= found.rate * (1 + 1e-12)
    assert found.rate <= found.rate_high * (1 + 1e-12)
    assert found.loss_low <= found.loss <= found.loss_high
    assert math.isfinite(found.rate) and math.isfinite(found.loss)


def test_intervals_are_open_with_one_seed_and_where_they_reach_the_end_of_the_grid():
    found = optimum(frame({0.1: [2.0], 0.2: [1.0], 0.4: [2.0]}))
    ends = (found.rate_low, found.rate_high, found.loss_low, found.loss_high)
    assert ends == (0.0, INF, -INF, INF)
    assert "one seed" in found.note
    found = optimum(frame({0.1: [2.0, 1.0, 1.0], 0.2: [1.0, 1.3, 1.0], 0.4: [2.0, 2.0, 2.0]}))
    assert found.edge is None
    assert found.rate_low == 0.0 and found.rate_high < 0.4
    for losses, edge, interval in [((1.0, 2, 3), "low", 0.0), ((3.0, 2, 1), "high", INF)]:
        found = optimum(frame({r: [v] * 2 for r, v in zip([1, 2, 4], losses, strict=True)}))
        assert (found.edge, found.rate) == (edge, pytest.approx(1 if edge == "low" else 4))
        assert (
            interval in (found.rate_low, found.rate_high) and "of the grid: widen it" in found.note
        )


def test_optima_has_a_row_per_group():
    runs = pl.concat(
        [
            frame({0.1: [2.0, 2.1], 0.2: [1.0, 1.1], 0.4: [2.0, 2.1]}, optimizer="adam", width=32),
            frame({0.1: [1.0, 1.1], 0.2: [2.0, 2.1], 0.4: [3.0, 3.1]}, optimizer="adam", width=64),
            frame({0.1: [INF, 1], 0.2: [1, INF], 0.4: [INF] * 2}, optimizer="iso", width=32),
        ],
        how="vertical_relaxed",
    )
    found = optima(runs, by=["optimizer", "width"])
    assert found["width"].to_list() == [32, 64, 32]
    assert found["edge"].to_list() == [None, "low", None]
    assert found["rate"].to_list() == [pytest.approx(0.2), pytest.approx(0.1), None]
    assert "diverged" in found["note"][2]
    alone = optimum(runs.filter(pl.col("width") == 64))
    assert found.row(1, named=True) == {"optimizer": "adam", "width": 64} | vars(alone)
    adam = runs.filter(pl.col("optimizer") == "adam")
    with pytest.raises(ValueError, match=r"'width': 64.*3 rates"):
        optima(adam.filter((pl.col("width") == 32) | (pl.col("learning_rate") < 0.3)), by=["width"])


def test_at_best_rate_keeps_every_seed_of_the_best_rate():
    runs = frame({0.1: [2.0, 2.1], 0.2: [0.5, INF], 0.4: [1.0, 1.1]}, optimizer="adam")
    found = at_best_rate(runs, by=["optimizer"])
    assert found.select("learning_rate", "seed").sort("seed").rows() == [(0.4, 0), (0.4, 1)]
