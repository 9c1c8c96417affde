"""Sweeps: which runs they hold, and one table out of a store that remembers."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import polars as pl
import pytest
from training.tiny import variant

from isolab.results.folder import runs_folder
from isolab.results.store import Store
from isolab.sweeps.plan import BATCH_RUNS, plan
from isolab.sweeps.sweep import Sweep, run

BASE = variant(batch_size=2, steps=4, warmup_steps=1, evaluate_every=2, validation_windows=4)


def values(sweep, *names):
    return [tuple(getattr(config, name) for name in names) for config in sweep]


# --- which runs ---


def test_axes_are_crossed_in_order_and_zipped_ones_advance_together():
    sweep = Sweep(BASE, learning_rate=2.0 ** np.arange(-2, 0), seed=np.arange(3))
    assert values(sweep, "learning_rate", "seed") == [
        (rate, seed) for rate in (0.25, 0.5) for seed in range(3)
    ]
    assert {type(v) for pair in values(sweep, "learning_rate", "seed") for v in pair} == {
        float,
        int,
    }
    zipped = Sweep(BASE, {"width": [16, 32], "batch_size": [2, 4]}, {"b1": [0.5]}, seed=[7, 8])
    assert values(zipped, "width", "batch_size", "b1", "seed") == [
        (16, 2, 0.5, 7), (16, 2, 0.5, 8), (32, 4, 0.5, 7), (32, 4, 0.5, 8),
    ]  # fmt: skip


def test_sweeps_add_up_with_each_run_once():
    both = Sweep(BASE, seed=[0, 1]) + Sweep(BASE, seed=[1, 2])
    assert values(both, "seed") == [(0,), (1,), (2,)]
    assert Sweep(BASE).configs == (BASE,)


@pytest.mark.parametrize(
    ("zipped", "axes", "message"),
    [
        ((), {"sede": [1]}, r"unknown axis 'sede'; allowed: \["),
        ((), {"seed": []}, r"axis seed is \[\]; allowed: one value or more"),
        ((), {"corpus": "stdlib"}, "axis corpus is 'stdlib'; allowed"),
        ((), {"learning_rate": 0.1}, "axis learning_rate is 0.1; allowed: one value or more, list"),
        (({"seed": [1, 2], "b1": [0.5]},), {}, r"zipped axes have lengths \{'seed': 2, 'b1': 1\}"),
        (({"seed": [1]},), {"seed": [2]}, "axis 'seed' is given twice"),
        ((), {"width": [16, 17]}, r"width is 17; allowed: multiples of head_size \(8\)"),
    ],
)
def test_errors_come_before_any_training(zipped, axes, message):
    with pytest.raises(ValueError, match=message):
        Sweep(BASE, *zipped, **axes)


# --- plans ---


def test_plan_groups_by_program_and_horizon():
    sweep = Sweep(BASE, steps=[2, 4], optimizer=["adam", "lion"], seed=range(BATCH_RUNS + 1))
    planned = plan(sweep)
    assert len(planned.keys) == len(sweep) == 4 * (BATCH_RUNS + 1)
    assert sorted(len(b) for b in planned.batches) == sorted(2 * 2 * [*_halves(BATCH_RUNS + 1)])
    for batch in planned.batches:
        assert len({(c.steps, c.optimizer) for c in batch}) == 1
    trained = [c for batch in planned.batches for c in batch]
    assert sorted(c.key("x") for c in trained) == sorted(c.key("x") for c in sweep)
    assert str(planned).startswith(f"{len(sweep)} runs: 0 stored, {len(sweep)} to train")
    assert str(planned).endswith("in 8 batches of 2 programs")


def _halves(n):
    return n // 2, n - n // 2


# --- running ---


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A store and the table of its first sweep: adam, seeds 0 and 1."""
    store = Store(tmp_path_factory.mktemp("runs"))
    return store, run(Sweep(BASE, seed=[0, 1]), store, progress=False)


def test_table_has_a_row_per_run_in_order(first):
    _, table = first
    assert table["seed"].to_list() == [0, 1]
    assert table["curve_step"].to_list() == [[0, 2, 4]] * 2
    for row, config in zip(table.iter_rows(named=True), Sweep(BASE, seed=[0, 1]), strict=True):
        assert row["key"] == config.key(row["corpus_fingerprint"])
        assert {k: row[k] for k in config.row()} == config.row()
        assert row["final_validation_loss"] == pytest.approx(row["curve_validation_loss"][-1])
        assert row["isolab_version"] and row["jax_version"] and row["device"]
        assert row["divergence_step"] is None and row["diverged"] is False
    wanted = {
        "key": pl.String, "width": pl.Int64, "learning_rate": pl.Float64, "b1": pl.Float64,
        "qk_norm": pl.Boolean, "curve_step": pl.List(pl.Int32),
        "curve_train_loss": pl.List(pl.Float32), "curve_validation_loss": pl.List(pl.Float32),
        "final_validation_loss": pl.Float64, "final_train_loss": pl.Float64,
        "diverged": pl.Boolean, "divergence_step": pl.Int64, "step_seconds": pl.Float64,
    }  # fmt: skip
    assert {name: table.schema[name] for name in wanted} == wanted


def test_stored_runs_are_not_trained_again(first):
    store, before = first
    assert plan(Sweep(BASE, seed=[0, 1, 2]), store).stored == set(before["key"])
    mixed = run(Sweep(BASE, seed=[1, 3, 0]), store, progress=False)
    assert mixed["seed"].to_list() == [1, 3, 0]
    # step_seconds is a time: equal bits mean that nothing ran
    assert mixed["step_seconds"].to_list()[::2] == before["step_seconds"].to_list()[::-1]
    assert mixed["final_validation_loss"].is_finite().all()
    assert set(before.columns) <= set(mixed.columns)
    assert mixed["key"].null_count() == mixed["curve_step"].null_count() == 0


def test_runs_stored_before_a_field_came_have_its_default(first, tmp_path):
    _, table = first
    old = Store(tmp_path)
    old.append(table.head(1).drop("loss_scale"))
    alone = run(Sweep(BASE, seed=[0]), old, progress=False)
    assert alone["loss_scale"].to_list() == [1.0]
    old.append(table.tail(1))
    both = run(Sweep(BASE, seed=[0, 1]), old, progress=False)
    assert both["loss_scale"].to_list() == [1.0, 1.0]
    assert both["step_seconds"].to_list() == table["step_seconds"].to_list()


def test_rows_of_sgd_that_diverged_have_the_same_schema(first):
    _, adam = first
    sgd = run(dataclasses.replace(BASE, optimizer="sgd", learning_rate=1e30), None, progress=False)
    assert dict(sgd.schema) == dict(adam.schema)
    assert sgd["b2"].to_list() == [None]
    assert sgd["diverged"].to_list() == [True]
    assert sgd["final_validation_loss"].to_list() == [math.inf]
    assert sgd["divergence_step"][0] >= 1


def test_the_default_store_follows_the_environment(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ISOLAB_RUNS", str(tmp_path / "here"))
    assert str(Store(runs_folder()).folder.path).endswith("here")
    table = run(dataclasses.replace(BASE, seed=0))
    assert (tmp_path / "here").is_dir()
    assert set(Store(runs_folder()).keys()) == set(table["key"])
    assert "1 runs: 0 stored, 1 to train in 1 batches of 1 programs" in "".join(capsys.readouterr())
    monkeypatch.delenv("ISOLAB_RUNS")
    assert str(Store(runs_folder()).folder.path).endswith("runs")
