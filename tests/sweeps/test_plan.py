"""Plans that do not depend on what is stored, and what is told of time and progress."""

from __future__ import annotations

import dataclasses
import tempfile

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training.tiny import variant

from isolab.results.store import Store
from isolab.sweeps.batch import results_frame
from isolab.sweeps.cluster import Waiting
from isolab.sweeps.plan import BATCH_RUNS, BATCHES_EACH, Plan, batch_operations, evenly, plan
from isolab.sweeps.progress import Progress, expected_seconds
from isolab.sweeps.sweep import Sweep
from isolab.training.train import Result

BASE = variant(batch_size=2, steps=4, warmup_steps=1, evaluate_every=2, validation_windows=4)


@settings(max_examples=25, deadline=None)
@given(st.data(), st.integers(1, 3 * BATCH_RUNS))
def test_batches_do_not_depend_on_what_is_stored(data, seeds):
    sweep = Sweep(BASE, steps=[2, 4], seed=range(seeds))
    whole = plan(sweep)
    stored = data.draw(st.sets(st.sampled_from(whole.keys)))
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        if stored:
            store.append(pl.DataFrame({"key": sorted(stored)}))
        rest = plan(sweep, store)
    key = dict(zip(sweep, whole.keys, strict=True))
    left = [tuple(c for c in batch if key[c] not in stored) for batch in whole.batches]
    assert rest.batches == tuple(batch for batch in left if batch)
    assert rest.stored == stored
    assert rest.keys == whole.keys


@settings(max_examples=200)
@given(st.integers(1, 200), st.integers(1, 20))
def test_parts_are_even_and_within_the_limit(length, limit):
    parts = evenly(range(length), limit)
    assert [i for part in parts for i in part] == list(range(length))
    assert max(map(len, parts)) <= limit
    assert len(parts) == -(-length // limit)  # as few as can be
    assert len({len(part) for part in parts[:-1]}) <= 1  # one size, and perhaps a smaller last


def result(config, seconds):
    return Result(config, [0, config.steps], [2.0, 1.0], [2.0, 1.0], None, seconds)


def test_stored_runs_alike_tell_the_time_before_anything_runs(tmp_path):
    store = Store(tmp_path)
    assert expected_seconds([(BASE,)], store) == {}  # an empty store
    seeds = [dataclasses.replace(BASE, seed=s, steps=40) for s in range(3)]
    times = (0.001, 0.002, 0.009)
    rows = results_frame([result(c, s) for c, s in zip(seeds, times, strict=True)])
    elsewhere = dataclasses.replace(BASE, seed=9)
    other = results_frame([result(elsewhere, 1.0)]).with_columns(device=pl.lit("gpu X x1"))
    store.append(pl.concat([rows, other]))
    batch = tuple(Sweep(BASE, learning_rate=[0.1, 0.2]))
    wider = (dataclasses.replace(BASE, width=32),)
    # 2 runs of 4 steps at 2 ms each
    assert expected_seconds([batch], store) == {batch: pytest.approx(0.016)}
    assert expected_seconds([batch, wider], store) == {}


@given(
    st.lists(st.sampled_from([16, 32, 64, 128]), min_size=1, max_size=4, unique=True),
    st.integers(1, 40), st.integers(2, 6),
)  # fmt: skip
def test_batches_are_small_enough_to_keep_all_busy_to_the_end(widths, seeds, processes):
    sweep = Sweep(BASE, width=widths, steps=[500, 1000], seed=range(seeds))
    batches = plan(sweep, processes=processes).batches
    assert sorted(hash(c) for b in batches for c in b) == sorted(map(hash, sweep))
    costs = [batch_operations(batch) for batch in batches]
    share = sum(costs) / (BATCHES_EACH * processes)
    # sizes are whole: 1 + 1e-9 is the rounding of sums
    assert all(
        cost <= share * (1 + 1e-9) or len(batch) == 1
        for cost, batch in zip(costs, batches, strict=True)
    )


def test_a_worker_stays_with_its_programs_and_the_costliest_come_first():
    narrow, wide = Sweep(BASE, seed=range(3)), Sweep(BASE, width=[32], seed=range(2))
    batches = [(config,) for config in narrow + wide]
    waiting = Waiting(batches)
    first, second = waiting.take(None), waiting.take(None)
    assert batches[first][0].width == 32 and batches[second][0].width == 16
    waiting.finished(first, "a")
    assert batches[waiting.take("a")][0].width == 32  # compiled there
    waiting.finished(second, "b")
    assert [batches[waiting.take("b")][0].width for _ in range(2)] == [16, 16]
    assert not waiting


def test_the_bar_shows_the_share_of_the_work_that_is_done(capsys):
    first = tuple(Sweep(BASE, steps=[40], seed=range(2)))
    second = tuple(Sweep(BASE, steps=[80], seed=range(3)))  # three times the work
    planned = Plan(("a", "b", "c", "d", "e"), frozenset(), (first, second))
    with Progress(planned, None, at_once=2) as progress:
        progress.update(first, 0.5, np.array([np.nan]))
        progress.update(first, 1.0, np.array([2.5, np.inf, 2.25]))
    out, err = capsys.readouterr()
    assert out == f"{planned}; time: told after the first interval\n"
    assert " 25%|" in err and "80/320 steps, batches 1/2, adam best 2.250" in err
    assert "stopped by Ctrl-C: 2 of 5 runs are stored in here;" in progress.stopped("here")
