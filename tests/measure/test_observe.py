"""Observed runs are watched runs, in the order asked for, whatever runs beside them."""

from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl
import pytest

from isolab.measure.observe import observe
from isolab.training.config import RunConfig
from isolab.training.watch import watch

BASE = RunConfig(
    width=8, depth=1, head_size=8, context=8, mlp_ratio=2, batch_size=4, learning_rate=0.01,
    steps=4, warmup_steps=0, evaluate_every=4, corpus="zipf_markov:vocab_size=16,length=20000",
)  # fmt: skip
RUNS = [dataclasses.replace(BASE, width=width, seed=seed) for width in (16, 8) for seed in (1, 0)]


def size(seen):
    return [{"entry": float(np.abs(seen.params["embedding"]).sum()), "missing": None}]


def test_rows_are_those_of_each_run_by_itself():
    frame = observe(RUNS, [3, 0], size, schema={"missing": pl.Float64})
    assert frame.schema == {
        "width": pl.Int64, "seed": pl.Int64, "step": pl.Int64, "entry": pl.Float64,
        "missing": pl.Float64,
    }  # fmt: skip
    alone = [(run, seen) for run in RUNS for seen in watch(run, [0, 3])]
    assert frame.drop("missing").rows() == [
        (run.width, run.seed, seen.step, size(seen)[0]["entry"]) for run, seen in alone
    ]
    assert frame["entry"].n_unique() == 8


def test_what_a_measurement_raises_ends_it():
    with pytest.raises(ZeroDivisionError):
        observe(RUNS[:1], [0], lambda seen: [{"entry": 1 / seen.step}])
    with pytest.raises(ValueError, match=r"steps is \[5\]; allowed: .* from 0 to 4"):
        observe(RUNS[:1], [5], size)
