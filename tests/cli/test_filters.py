"""Conditions on stored runs mean what they say; how they fail is in test_cli.py."""

from __future__ import annotations

import datetime
import math
import operator
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isolab.cli.filters import parse_filter

COMPARE = {
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def kept(values: list[Any], dtype: Any, text: str) -> list[Any]:
    frame = pl.DataFrame({"x": pl.Series(values, dtype=dtype)})
    mask = frame.select(parse_filter(text, frame.schema).expression()).to_series()
    assert mask.null_count() == 0
    return frame.filter(mask)["x"].to_list()


INTEGERS = st.integers(-(2**40), 2**40)
FLOATS = st.floats(allow_nan=False)


@given(
    case=st.one_of(
        st.tuples(st.just(pl.Int64), st.lists(st.none() | INTEGERS), INTEGERS),
        st.tuples(st.just(pl.Int32), st.lists(st.none() | st.integers(-3, 3)), INTEGERS),
        st.tuples(st.just(pl.Float64), st.lists(st.none() | FLOATS), FLOATS),
    ),
    symbol=st.sampled_from(sorted(COMPARE)),
    pick=st.booleans(),
    data=st.data(),
)
def test_numbers_compare_as_in_python(case: Any, symbol: str, pick: bool, data: Any) -> None:
    dtype, values, bound = case
    present = [value for value in values if value is not None]
    if pick and present:
        bound = data.draw(st.sampled_from(present))
    compare = COMPARE[symbol]
    wanted = [v for v in values if (symbol == "!=" if v is None else compare(v, bound))]
    assert kept(values, dtype, f"x {symbol} {bound!r}") == wanted


@given(
    values=st.lists(st.none() | st.text("ab,'=\" ", min_size=1)),
    names=st.lists(st.text("ab'=\"", min_size=1), min_size=1),
)
def test_in_takes_any_of_the_texts(values: list[str | None], names: list[str]) -> None:
    text = ",".join(f"'{name}'" for name in names)
    assert kept(values, pl.String, f"x in {text}") == [v for v in values if v in names]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("x", [True]),
        ("not x", [False]),
        ("x=true", [True]),
        ("x = No", [False]),
        ("x!=1", [False, None]),
        ("x=null", [None]),
        ("x != null", [True, False]),
        ("x in true,null", [True, None]),
    ],
)
def test_truth_and_null(text: str, wanted: list[bool | None]) -> None:
    assert kept([True, False, None], pl.Boolean, text) == wanted


def test_numbers_may_be_powers_and_infinite() -> None:
    assert kept([2.0**-7, 0.01, math.inf], pl.Float64, "x=2**-7") == [2.0**-7]
    assert kept([2.0**-7, 0.01, math.inf], pl.Float64, "x = inf") == [math.inf]
    assert kept([32, 64, 128], pl.Int64, "x<=2 ** 6") == [32, 64]
    assert kept([300, 1000], pl.Int64, "x=1e3") == [1000]


def test_single_precision_is_found_by_what_was_typed_in() -> None:
    assert len(kept([0.1, 0.2], pl.Float32, "x=0.1")) == 1


def test_times_are_utc_unless_they_say_otherwise() -> None:
    noon = datetime.datetime(2026, 1, 31, 12)
    for text in ("x<2026-02-01", "x=2026-01-31T12:00", "x=2026-01-31T14:00+02:00"):
        assert kept([noon, noon + datetime.timedelta(days=1)], pl.Datetime("us"), text) == [noon]
