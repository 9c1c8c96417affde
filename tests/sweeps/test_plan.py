"""Plans that do not depend on what is stored, and the time that a sweep says it will take."""

from __future__ import annotations

import dataclasses
import tempfile

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isolab.results.store import Store
from isolab.sweeps.batch import results_frame
from isolab.sweeps.plan import BATCH_RUNS, Clock, evenly, plan, seconds_per_step
from isolab.sweeps.sweep import Sweep
from isolab.training.config import RunConfig
from isolab.training.result import Result
from isolab.training.train import program_of

BASE = RunConfig(
    width=16, base_width=16, depth=1, head_size=8, context=8, mlp_ratio=2, batch_size=2,
    steps=4, warmup_steps=1, evaluate_every=2, validation_windows=4,
    corpus="zipf_markov:vocab_size=8,length=2000",
)  # fmt: skip


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
    assert seconds_per_step([(BASE,)], store) == {}  # an empty store
    seeds = [dataclasses.replace(BASE, seed=s, steps=40) for s in range(3)]
    times = (0.001, 0.002, 0.009)
    rows = results_frame([result(c, s) for c, s in zip(seeds, times, strict=True)])
    elsewhere = dataclasses.replace(BASE, seed=9)
    other = results_frame([result(elsewhere, 1.0)]).with_columns(device=pl.lit("gpu X x1"))
    store.append(pl.concat([rows, other]))
    batch = tuple(Sweep(BASE, learning_rate=[0.1, 0.2]))
    wider = (dataclasses.replace(BASE, width=32),)
    known = seconds_per_step([batch, wider], store)
    assert known == {program_of(BASE): 0.002}
    # 2 runs of 4 steps at 2 ms each
    assert Clock([batch], known).seconds_left == pytest.approx(0.016)
    assert Clock([batch, batch[:1]], known, beside=2).seconds_left == pytest.approx(0.012)
    assert Clock([batch, wider], known).seconds_left is None
    assert str(Clock([batch, wider], known)) == "time: told after the first interval"


def test_time_left_is_revised_by_the_share_of_the_work_done():
    now = [100.0]
    first = tuple(Sweep(BASE, steps=[40], seed=range(2)))
    second = tuple(Sweep(BASE, steps=[80], seed=range(3)))  # three times the work
    clock = Clock([first, second], {}, now=lambda: now[0])
    assert clock.seconds_left is None
    now[0] = 105.0
    clock.advance(first, 0.5)  # 1 of 8 parts in 5 s
    assert clock.seconds_left == pytest.approx(35)
    assert str(clock) == "about 35 s"
    now[0] = 112.0
    clock.advance(first, 1.0)
    assert clock.seconds_left == pytest.approx(36)
    clock.advance(second, 1.0)
    assert clock.seconds_left == 0
