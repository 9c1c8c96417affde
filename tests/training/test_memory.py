"""Memory: the compiler's account, batches cut to fit a bound, and no program compiled twice."""

from __future__ import annotations

import dataclasses

import jax
import polars as pl
import pytest
from polars.testing import assert_frame_equal
from training.tiny import TINY

from isolab.sweeps.batch import train_batch
from isolab.sweeps.sweep import Sweep, run
from isolab.training import memory, program
from isolab.training.memory import (
    MemoryWarning,
    allowed_bytes,
    free_bytes,
    needed_bytes,
    runs_that_fit,
)

RUNS = Sweep(TINY, seed=range(2)).configs


def test_the_program_that_is_measured_is_the_one_that_runs(compilations):
    for known in (memory._needed_bytes, program.compile_program):  # from other tests
        known.cache_clear()
    with compilations() as measured:
        assert needed_bytes(RUNS[:1]) > 0
    with compilations() as trained:
        train_batch(RUNS[:1])
    with compilations() as again:
        train_batch((dataclasses.replace(TINY, seed=1, learning_rate=0.1, steps=40),))
    assert measured.count("jit(advance)") == 1  # the step
    assert "jit(advance)" not in trained and "jit(init)" in trained
    assert not again


def test_needed_bytes_hold_parameters_moments_and_tokens():
    one, two = needed_bytes(RUNS[:1]), needed_bytes(RUNS)
    # attention 4 x 16 x 16, MLP 2 x 2 x 16 x 16, embedding and readout 2 x 16 x 16; thrice for Adam
    parameters = 4 * 3 * (8 * 16 * 16 + 2 * 16 * 16)
    assert one > parameters
    assert parameters < two - one < 20 * parameters


def test_a_batch_is_cut_to_fit_and_gives_the_same_runs(tmp_path):
    allowed = needed_bytes(RUNS[:1])
    assert runs_that_fit(RUNS, needed_bytes(RUNS)) == 2
    assert runs_that_fit(RUNS, allowed) == 1
    sweep = Sweep(TINY, seed=range(2))
    whole = run(sweep, None, progress=False)
    parts = run(sweep, tmp_path, progress=False, memory_bytes=allowed)
    assert parts["key"].to_list() == whole["key"].to_list()
    columns = ["seed", "curve_step", "curve_train_loss", "curve_validation_loss"]
    # alone and side by side: sums in another order, float32
    assert_frame_equal(parts.select(columns), whole.select(columns), rel_tol=1e-4)
    single = run(dataclasses.replace(TINY, seed=1), None, progress=False)
    assert_frame_equal(parts.filter(pl.col("seed") == 1).select(columns), single.select(columns),
                       check_exact=True)  # fmt: skip


def test_a_run_too_large_for_the_bound_is_refused_with_both_numbers():
    needed = needed_bytes(RUNS[:1])
    message = (
        rf"width 16, depth 1 .* takes {needed:,} bytes of memory; allowed: {needed - 1:,} bytes"
    )
    with pytest.raises(MemoryError, match=message):
        run(RUNS[0], None, progress=False, memory_bytes=needed - 1)


def test_a_container_bounds_what_is_free_and_a_run_above_it_is_warned_of(tmp_path, monkeypatch):
    unbounded = free_bytes()
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("max\n")
    assert free_bytes() > 1_000_000
    (tmp_path / "memory.max").write_text("100000\n")
    (tmp_path / "memory.current").write_text("95000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 1000\n")
    assert free_bytes() == 6000 < unbounded
    if jax.default_backend() == "cpu":
        assert allowed_bytes() == 3000
        with pytest.warns(MemoryWarning, match="allowed: 3,000 bytes; it is tried all the same"):
            assert runs_that_fit(RUNS) == 1
