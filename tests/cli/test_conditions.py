"""Conditions on stored runs mean what they say; only expressions over columns are conditions."""

from __future__ import annotations

import datetime
import math
import operator
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isolab.cli.conditions import matching

COMPARE = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
RUNS = pl.DataFrame(
    {
        "optimizer": ["adam", "isoadam", None],
        "width": [32, 64, 128],
        "learning_rate": [2.0**-7, 0.01, math.inf],
        "diverged": [True, False, None],
        "curve_step": [[0], [0, 1], []],
        "stored_at": [datetime.datetime(2026, 1, 31, 12 + hour) for hour in range(3)],
    }
)


@given(
    values=st.lists(st.none() | st.integers(-(2**40), 2**40) | st.floats(-1e30, 1e30)),
    symbol=st.sampled_from(sorted(COMPARE)),
    data=st.data(),
)
def test_numbers_compare_as_in_python(values: list[Any], symbol: str, data: Any) -> None:
    floats = [None if value is None else float(value) for value in values]
    present = [value for value in floats if value is not None]
    bound = data.draw(st.sampled_from([*present, 0.0, 1e-8]))
    frame = pl.DataFrame({"x": pl.Series(floats, dtype=pl.Float64)})
    wanted = [value for value in present if COMPARE[symbol](value, bound)]
    assert matching(frame, [f"x {symbol} {bound!r}"])["x"].to_list() == wanted


@pytest.mark.parametrize(
    ("text", "widths"),
    [
        ("optimizer = 'isoadam' AND width >= 64", [64]),
        ("optimizer != 'adam'", [64]),
        ("optimizer IN ('adam', 'sgd')", [32]),
        ("optimizer IS NULL", [128]),
        ("optimizer IS NOT NULL", [32, 64]),
        ("optimizer = 'adam' OR optimizer IS NULL", [32, 128]),
        ("width in (64, 128)", [64, 128]),
        ("width = 64.0", [64]),
        ("learning_rate = POWER(2.0, -7)", [32]),
        ("learning_rate > 1e300", [128]),
        ("diverged", [32]),
        ("NOT diverged", [64]),
        ("diverged = true", [32]),
        ("stored_at < DATE '2026-02-01'", [32, 64, 128]),
        ("stored_at < TIMESTAMP '2026-01-31T13:00'", [32]),
        ("width = MAX(width)", [128]),
    ],
)
def test_conditions_are_sql(text: str, widths: list[int]) -> None:
    assert matching(RUNS, [text])["width"].to_list() == widths


def test_all_of_several_hold() -> None:
    assert matching(RUNS, ["width > 32", "width < 128"])["width"].to_list() == [64]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("widht = 64", "no column 'widht'; did you mean width?"),
        ("zzz = 64", "no column 'zzz'; there are optimizer, width"),
        ("optimizer = isoadam", "no column 'isoadam'"),
        ("optimizer = isoadam", "optimizer is text in single quotes, such as 'adam'"),
        ("width = 'big'", "width is a number, such as 64"),
        ("width", "width is a number"),
        ("optimizer < 3", "optimizer is text"),
        ("stored_at < '2026-01-31'", "stored_at is a UTC time, such as DATE '2026-01-31'"),
        ("curve_step = 0", "curve_step is a list in each run"),
        ("learning_rate < 2**-7", "allowed: SQL over columns, such as optimizer = 'adam' AND"),
        ("", "allowed: SQL over columns"),
        ("1 = 1", "it names no column"),
        ("__import__('os')", "allowed: SQL over columns"),
        ("width = 64; DROP TABLE runs", "allowed: SQL over columns"),
        ("SELECT * FROM runs", "allowed: SQL over columns"),
        ("width = (SELECT 64)", "width is a number"),
        ("EXISTS (SELECT * FROM read_csv('/etc/hosts'))", "it names no column"),
    ],
)
def test_anything_else_is_refused_in_a_line(text: str, told: str) -> None:
    with pytest.raises(ValueError) as refused:
        matching(RUNS, [text])
    assert told in str(refused.value) and "\n" not in str(refused.value)
