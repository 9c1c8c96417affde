"""A live run: the numbers of an ordinary one, reported as they come, and an end for every case."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
import textwrap
import threading

import polars as pl
import pytest

import isolab
from isolab.lab import inspection
from isolab.lab.live import Live, RunState
from isolab.results.store import Store
from isolab.training.config import RunConfig

BASE = RunConfig(
    width=16, base_width=16, depth=1, head_size=8, context=8, mlp_ratio=2, batch_size=4,
    learning_rate=0.01, steps=12, warmup_steps=2, evaluate_every=4, validation_windows=32,
    corpus="zipf_markov:vocab_size=16,length=20000",
)  # fmt: skip


def variant(**changes):
    return dataclasses.replace(BASE, **changes)


def made(config, on_change, store=None, inspect=False):
    live = Live(config, on_change, store)
    if not inspect:
        live.inspections.follow = lambda *_: None
    return live


def lived(config, store=None, on_change=lambda live, state: None, inspect=False):
    """Runs to the end, and returns all states."""
    states: list[RunState] = []

    def follow(state):
        states.append(state)
        on_change(live, state)

    live = made(config, follow, store, inspect)
    live.start()
    live.join(120)
    assert not live.is_alive()
    assert [state.live for state in states] == [True] * (len(states) - 1) + [False]
    return states


def curves(row):
    return [row[name].to_list() for name in ("curve_train_loss", "curve_validation_loss")]


def test_a_live_run_has_the_bits_of_an_ordinary_one(monkeypatch):
    monkeypatch.setattr(inspection, "INSPECTION_SECONDS", 0.0)
    monkeypatch.setattr(inspection, "INSPECTION_SHARE", 1.0)  # after every interval
    config = variant(optimizer="isoadam", seed=3)
    lived(config, inspect=True)  # compiles, so that the next one is inspected at once
    *course, last = lived(config, inspect=True)
    ordinary = isolab.run(config, store=None, progress=False)
    assert last.row is not None
    assert curves(last.row) == curves(ordinary)
    assert last.row["key"].item() == ordinary["key"].item()
    inspected = dict.fromkeys(state.inside.step for state in [*course, last] if state.inside)
    assert list(inspected) in ([0, 4, 8, 12], [4, 8, 12])  # at 0, if compiled in time
    assert last.before is last.after is None  # its symbols are no text


def test_states_report_the_curve_as_it_grows():
    states = lived(BASE)
    assert [state.state for state in states] == ["compiling", *["training"] * 4, "finished"]
    assert [state.step for state in states] == [0, 0, 4, 8, 12, 12]
    first, *_, last = states[1:]
    assert last.curve_step == (0, 4, 8, 12)
    assert first.curve_step == (0,) and math.isnan(first.curve_train_loss[0])
    for state in states[2:]:
        points = len(state.curve_step)
        assert state.curve_step == last.curve_step[:points]
        assert state.curve_validation_loss == last.curve_validation_loss[:points]
        # from float32 means, as the result's
        assert state.curve_train_loss == pytest.approx(last.curve_train_loss[:points], rel=1e-6)
    assert last.message.startswith("finished after") and "not stored" in last.message


def test_the_first_point_of_a_warm_start_waits_for_no_compiler(compilations):
    lived(BASE)
    point = threading.Event()
    live = made(BASE, lambda state: point.set() if state.curve_step else None)
    with compilations() as programs:
        live.start()
        assert point.wait(60)
        assert programs == []
    live.join(60)


def test_starting_a_run_waits_for_nothing():
    free, reported = threading.Event(), []
    live = made(BASE, lambda state: reported.append(free.wait(60)))
    live.start()  # no state is reported until this has returned
    free.set()
    live.join(60)
    assert reported and all(reported)


def test_a_long_evaluation_begins_with_a_point_from_a_few_windows(monkeypatch):
    whole = lived(BASE)
    monkeypatch.setattr("isolab.lab.live.LONG_OPERATIONS", 0)
    compiling, few, *rest = lived(BASE)
    assert compiling.curve_step == () and few.curve_step == (0,)
    assert few.message == "step 0: 8 of 32 validation windows"
    assert [state.curve_step for state in rest] == [state.curve_step for state in whole[1:]]
    assert curves(rest[-1].row) == curves(whole[-1].row)
    (first,), (all_of_them,) = few.curve_validation_loss, rest[0].curve_validation_loss
    assert first != all_of_them  # other windows, but an untrained model finds all alike
    assert first == pytest.approx(all_of_them, rel=0.05)


def test_a_finished_run_is_stored_once(tmp_path):
    store = Store(tmp_path / "runs")
    last = lived(BASE, store)[-1]
    assert last.message.endswith("; stored")
    assert store.runs()["key"].to_list() == last.row["key"].to_list()
    again = lived(BASE, store)[-1]
    assert "the store has had it already" in again.message
    assert len(list((tmp_path / "runs").glob("*.parquet"))) == 1
    read = isolab.run(BASE, store=store, progress=False)  # nothing is left to train
    assert curves(read) == curves(last.row)


@pytest.mark.parametrize(("at_step", "end"), [(-1, "stopped"), (4, "stopped"), (12, "finished")])
def test_a_stopped_run_ends_soon_and_is_not_stored_unless_it_was_done(at_step, end, tmp_path):
    store = Store(tmp_path / "runs")

    def stop(live, state):
        if state.step == at_step or at_step < 0:
            live.stop()

    last = lived(BASE, store, stop)[-1]
    assert last.state == end
    assert last.step == max(at_step, 0)
    assert (last.row is None) == store.runs().is_empty() == (end == "stopped")
    assert last.message.startswith(
        f"stopped at step {last.step} of 12" if last.row is None else end
    )


def test_a_diverged_run_says_where(tmp_path):
    store = Store(tmp_path / "runs")
    last = lived(variant(learning_rate=1e30, warmup_steps=0), store, inspect=True)[-1]
    assert last.state == "diverged"
    assert last.message.startswith(f"diverged at step {last.row['divergence_step'].item()}")
    assert last.curve_step == (0, 4, 8, 12)
    assert math.isnan(last.curve_validation_loss[-1])
    assert store.runs(pl.col("diverged")).height == 1


def test_what_fails_around_a_run_is_noted_and_does_not_end_it(tmp_path, monkeypatch):
    def show(live, state):
        raise TypeError("no such widget")

    def inspect_run(*_):
        raise MemoryError("no room")

    monkeypatch.setattr(inspection, "inspect_run", inspect_run)
    (tmp_path / "file").write_text("no folder")
    last = lived(BASE, Store(tmp_path / "file"), show, inspect=True)[-1]
    assert last.state == "finished" and last.row["final_validation_loss"].is_finite().item()
    assert "; not stored: " in last.message
    assert "; showing the run failed: TypeError: no such widget" in last.message
    assert "; inspection failed: MemoryError: no room" in last.message


def test_a_model_of_text_writes_before_and_after(tmp_path):
    file = tmp_path / "pattern.txt"
    file.write_text("def f(): pass\n" * 200)
    config = variant(corpus=str(file), steps=100, evaluate_every=50, learning_rate=0.02)
    last = lived(config, inspect=True)[-1]
    assert last.before.startswith("def ") and last.after.startswith("def ")
    # The untrained model draws from 256 bytes nearly evenly; the pattern has 12 characters.
    assert len(set(last.before)) > 2 * len(set(last.after))


def test_two_runs_at_once_do_not_mix():
    seeds = (0, 1)
    alone = [lived(variant(seed=seed))[-1] for seed in seeds]
    lives = [made(variant(seed=seed), lambda state: None) for seed in seeds]
    for live in lives:
        live.start()
    for live, one in zip(lives, alone, strict=True):
        live.join(60)
        assert live.now.curve_validation_loss == one.curve_validation_loss


@pytest.mark.parametrize("seconds", [0.2, 3.0])  # its step is compiled, an interval runs
def test_a_program_ends_while_a_run_trains(seconds):
    # An interval of 10^6 steps takes minutes, so that no stop is noticed; and a thread that comes
    # back from the compiler to a Python that has ended crashes it.
    config = variant(width=64, depth=4, steps=10**6, evaluate_every=10**6, validation_windows=4)
    program = f"""
        import time
        from isolab.training.config import RunConfig
        from isolab.lab.live import Live
        live = Live(RunConfig(**{dataclasses.asdict(config)!r}), lambda state: None)
        live.start()
        while live.now.state != "training":
            time.sleep(0.01)
        time.sleep({seconds})
        print("leaving", live.is_alive(), flush=True)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=90
    )
    assert (done.stdout, done.stderr, done.returncode) == ("leaving True\n", "", 0)
