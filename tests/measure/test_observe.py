"""Observed runs are watched runs, in the order asked for, whatever runs beside them."""

from __future__ import annotations

import dataclasses
import itertools

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
AXES = {"parameterization": ["mup", "ntk"], "width": [16, 8], "seed": [1, 0]}


def size(seen):
    return [{"entry": float(np.abs(seen.params["embedding"]).sum()), "missing": None}]


def test_rows_are_those_of_each_run_by_itself():
    frame = observe(BASE, AXES, [3, 0], size, schema={"missing": pl.Float64})
    assert frame.schema == {
        "parameterization": pl.String, "width": pl.Int64, "seed": pl.Int64, "step": pl.Int64,
        "entry": pl.Float64, "missing": pl.Float64,
    }  # fmt: skip
    cells = itertools.product(AXES["parameterization"], (8, 16), (0, 1))
    assert frame.drop("missing").rows() == [
        (*cell, seen.step, size(seen)[0]["entry"])
        for cell in cells
        for seen in watch(dataclasses.replace(BASE, **dict(zip(AXES, cell, strict=True))), [0, 3])
    ]
    assert frame["entry"].n_unique() == 16


def test_what_a_measurement_raises_ends_it():
    with pytest.raises(ZeroDivisionError):
        observe(BASE, {"width": [8], "seed": [0]}, [0], lambda seen: [{"entry": 1 / seen.step}])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": [5]}, r"steps is \[5\]; allowed: .* from 0 to 4"),
        ({"width": [12]}, "width is 12; allowed: multiples of head_size"),
        ({"seed": [0.5]}, r"seeds is \[0.5\]; allowed: 1 or more different whole numbers"),
    ],
)
def test_what_cannot_be_is_named(changes, message):
    axes = {"width": [8], "seed": [0], "steps": [0]} | changes
    steps = axes.pop("steps")
    with pytest.raises(ValueError, match=message):
        observe(BASE, axes, steps, size)
