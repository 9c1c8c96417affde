"""The live check of chapter 1: who keeps the singular values of its update?"""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isolab.measure.invariance import update_invariance


@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 2**31 - 1))
def test_only_exact_isoadam_is_invariant_to_every_transformation(seed):
    changes = update_invariance(conditions=(1, 100), seed=seed)
    worst = dict(changes.group_by("optimizer").agg(pl.col("relative_change").max()).iter_rows())
    # damping 1e-13 of the largest eigenvalue against eigenvalues 1e-4 of it and condition numbers
    # of the drawn layer that reach 1e4 more; rounding of float64 adds 1e-16 * 1e8
    assert worst["isoadam"] < 1e-4
    for rule in ("adam", "muon", "isoadam, gradient factors"):
        assert worst[rule] > 1e-2


@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 2**31 - 1))
def test_gradient_factors_are_invariant_to_rotations(seed):
    changes = update_invariance(
        conditions=(1,), rules=("isoadam, gradient factors", "adam"), seed=seed
    )
    change = dict(changes.select("optimizer", "relative_change").iter_rows())
    assert change["isoadam, gradient factors"] < 1e-4
    assert change["adam"] > 1e-2


def test_unknown_rule_is_refused_by_name():
    with pytest.raises(ValueError, match="unknown rule 'sgdd'"):
        update_invariance(rules=("sgdd",))
