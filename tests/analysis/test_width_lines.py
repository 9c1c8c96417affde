"""Lines of sizes over widths, against polyfit."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isolab.analysis.seeds import seed_interval
from isolab.analysis.width_lines import size_tables, width_lines


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(2, 5))
def test_lines_are_least_squares(seed, seeds, count):
    rng = np.random.default_rng(seed)
    widths = (2.0 ** np.cumsum(rng.integers(1, 3, count))).tolist()
    sizes = np.exp(rng.normal(size=(seeds, count)))
    lines = width_lines(sizes, widths)
    slopes, intercepts = np.polyfit(np.log2(widths), np.log2(sizes).T, 1)
    np.testing.assert_allclose(lines.slopes, slopes, atol=1e-9)
    np.testing.assert_allclose(lines.intercepts, intercepts, atol=1e-8)
    mean = np.log2(sizes).mean(axis=0)
    fitted = np.polyval(np.polyfit(np.log2(widths), mean, 1), np.log2(widths))
    assert lines.residual == pytest.approx(np.sqrt(np.mean((mean - fitted) ** 2)), abs=1e-9)
    back = lines.intercepts + lines.slopes * lines.log2_width_at(1e-3)
    np.testing.assert_allclose(back, np.log2(1e-3), rtol=1e-6)


def test_a_flat_line_is_met_nowhere_and_bad_sizes_are_refused():
    assert np.isinf(width_lines(np.ones((1, 2)), [32, 64]).log2_width_at(0.5)).all()
    with pytest.raises(ValueError, match="positive and finite, got 0"):
        width_lines(np.array([[1.0, 0.0]]), [32, 64])
    with pytest.raises(ValueError, match="at least 2 widths"):
        width_lines(np.ones((2, 1)), [32])
    assert seed_interval(np.ones(1), 0.95) == (-np.inf, np.inf)


def test_tables_are_seeds_by_widths():
    rows = [("b", 64, 1, 4.0), ("b", 32, 1, 3.0), ("b", 64, 0, 2.0), ("b", 32, 0, 1.0)]
    rows.append(("a", 8, 0, 9.0))
    frame = pl.DataFrame(rows, schema=["role", "width", "seed", "size"], orient="row")
    (first, one, _), (second, table, widths) = size_tables(frame, ["role"], "size")
    assert first == {"role": "a"} and one.tolist() == [[9.0]]
    assert second == {"role": "b"} and widths == [32, 64]
    assert table.tolist() == [[1.0, 2.0], [3.0, 4.0]]
