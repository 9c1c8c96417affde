"""Outcomes of runs: when one counts as diverged."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from isolab.training.result import divergence_step


@settings(max_examples=50)
@given(
    every=st.integers(1, 4),
    intervals=st.integers(1, 5),
    data=st.data(),
)
def test_divergence_step_is_the_first_that_never_recovers(every, intervals, data):
    losses = np.ones(every * intervals)
    held_out = np.array(
        [2.0, *(data.draw(st.sampled_from([1.0, 2.0, 3.0, np.nan])) for _ in range(intervals))]
    )
    at = data.draw(st.none() | st.integers(0, len(losses) - 1))
    if at is not None:
        losses[at] = np.inf
    found = divergence_step(losses, held_out, every)
    if at is not None:
        assert found == at + 1
        return
    fine = [i for i, v in enumerate(held_out) if v <= 2.0]
    assert found == (None if fine[-1] == intervals else (fine[-1] + 1) * every)
