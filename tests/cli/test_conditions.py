"""Conditions on stored runs are SQL over columns; anything else is refused."""

from __future__ import annotations

import datetime
import math

import polars as pl
import pytest

from isolab.cli.conditions import matching

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


@pytest.mark.parametrize(
    ("conditions", "widths"),
    [
        (["optimizer = 'isoadam' AND width >= 64"], [64]),
        (["width > 32", "width < 128"], [64]),  # all hold
        (["optimizer != 'adam'"], [64]),
        (["optimizer IN ('adam', 'sgd') OR optimizer IS NULL"], [32, 128]),
        (["optimizer IS NOT NULL"], [32, 64]),
        (["width = 64.0"], [64]),
        (["learning_rate = POWER(2.0, -7)"], [32]),
        (["learning_rate > 1e300"], [128]),
        (["diverged"], [32]),
        (["NOT diverged"], [64]),
        (["stored_at < DATE '2026-02-01'"], [32, 64, 128]),
        (["stored_at < TIMESTAMP '2026-01-31T13:00'"], [32]),
    ],
)
def test_conditions_are_sql(conditions, widths):
    assert matching(RUNS, conditions)["width"].to_list() == widths


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("widht = 64", "no column 'widht'; did you mean width?"),
        ("zzz = 64", "no column 'zzz'; there are optimizer, width"),
        ("optimizer = isoadam", "no column 'isoadam'"),
        ("optimizer = isoadam", "optimizer is text in single quotes, such as 'adam'"),
        ("width = 'big'", "width is a number, such as 64"),
        ("stored_at < '2026-01-31'", "stored_at is a UTC time, such as DATE '2026-01-31'"),
        ("curve_step = 0", "curve_step is a list in each run"),
        ("learning_rate < 2**-7", "allowed: SQL over columns, such as optimizer = 'adam' AND"),
        ("", "allowed: SQL over columns"),
        ("1 = 1", "it names no column"),
        ("width = 64; DROP TABLE runs", "allowed: SQL over columns"),
        ("width = (SELECT 64)", "width is a number"),
        ("EXISTS (SELECT * FROM read_csv('/etc/hosts'))", "it names no column"),
    ],
)
def test_anything_else_is_refused_in_a_line(text, told):
    with pytest.raises(ValueError) as refused:
        matching(RUNS, [text])
    assert told in str(refused.value) and "\n" not in str(refused.value)
