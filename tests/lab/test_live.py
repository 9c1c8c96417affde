"""A live run: the numbers of an ordinary one, told as they come, and an end for every case."""

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
from isolab.lab import extras
from isolab.lab.live import ENDS, Live, News
from isolab.results.store import Store
from isolab.training.config import RunConfig

BASE = RunConfig(
    width=16, base_width=16, depth=1, head_size=8, context=8, mlp_ratio=2, batch_size=4,
    learning_rate=0.01, steps=12, warmup_steps=2, evaluate_every=4, validation_windows=32,
    corpus="zipf_markov:vocab_size=16,length=20000",
)  # fmt: skip


def variant(**changes):
    return dataclasses.replace(BASE, **changes)


def lived(config, store=None, **options):
    """Runs to the end, and returns all news."""
    told: list[News] = []
    live = Live(config, told.append, store, **options)
    live.start()
    live.join(120)
    assert not live.running
    assert live.news is told[-1]
    assert [news.state in ENDS for news in told] == [False] * (len(told) - 1) + [True]
    return told


def curves(row):
    return [row[name].to_list() for name in ("curve_train_loss", "curve_validation_loss")]


@pytest.mark.parametrize("optimizer", [pytest.param("adam", marks=pytest.mark.slow), "isoadam"])
def test_a_live_run_has_the_bits_of_an_ordinary_one(optimizer, monkeypatch):
    monkeypatch.setattr(extras, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(extras, "LOOK_SHARE", 1.0)  # look after every interval
    config = variant(optimizer=optimizer, seed=3)
    lived(config)  # its programs are compiled now, so that the next one looks from the start
    *course, last = lived(config)
    ordinary = isolab.run(config, store=None, progress=False)
    assert last.row is not None
    assert curves(last.row) == curves(ordinary)
    assert last.row["key"].item() == ordinary["key"].item()
    looked = list(dict.fromkeys(news.inside.step for news in [*course, last] if news.inside))
    assert looked in ([0, 4, 8, 12], [4, 8, 12])  # at 0, if the programs were found in time


def test_news_tell_the_curve_as_it_grows():
    told = lived(BASE, inspect=False)
    assert [news.state for news in told] == ["compiling", *["training"] * 4, "finished"]
    assert [news.step for news in told] == [0, 0, 4, 8, 12, 12]
    first, *_, last = told[1:]
    assert last.curve_step == (0, 4, 8, 12)
    assert first.curve_step == (0,) and math.isnan(first.curve_train_loss[0])
    for news in told[2:]:
        points = len(news.curve_step)
        assert news.curve_step == last.curve_step[:points]
        assert news.curve_validation_loss == last.curve_validation_loss[:points]
        # told from float32 means, as the result's
        assert news.curve_train_loss == pytest.approx(last.curve_train_loss[:points], rel=1e-6)
    assert last.message.startswith("finished after")
    assert "not stored" in last.message
    with pytest.raises(dataclasses.FrozenInstanceError):
        last.step = 3


def test_the_first_point_of_a_warm_start_waits_for_no_compiler(compilations):
    lived(BASE)
    point = threading.Event()
    live = Live(BASE, lambda news: point.set() if news.curve_step else None, inspect=False)
    with compilations() as programs:
        live.start()
        assert point.wait(60)
        assert programs == []
    live.join(60)


def test_starting_a_run_waits_for_nothing():
    free, heard = threading.Event(), []
    live = Live(BASE, lambda news: heard.append(free.wait(60)))  # no news until start() is over
    live.start()
    free.set()
    live.join(60)
    assert heard and all(heard)


def test_a_long_evaluation_begins_with_a_point_from_a_few_windows(monkeypatch):
    whole = lived(BASE, inspect=False)
    monkeypatch.setattr("isolab.lab.live.LONG_OPERATIONS", 0)
    compiling, few, *rest = lived(BASE, inspect=False)
    assert compiling.curve_step == () and few.curve_step == (0,)
    assert few.message == "step 0: 8 of 32 validation windows"
    assert [news.curve_step for news in rest] == [news.curve_step for news in whole[1:]]
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


@pytest.mark.parametrize("at_step", [None, 0, 4])
def test_a_stopped_run_ends_soon_and_is_not_stored(at_step, tmp_path):
    store, told = Store(tmp_path / "runs"), []

    def hear(news):
        told.append(news)
        if news.curve_step and news.step == at_step:
            live.stop()

    live = Live(BASE, hear, store)
    if at_step is None:
        live.stop()
    live.start()
    live.join(60)
    last = told[-1]
    assert not live.running
    assert last.state == "stopped"
    assert last.step == (at_step or 0)
    assert last.row is None
    assert last.message.startswith(f"stopped at step {last.step} of 12")
    assert store.runs().height == 0


def test_a_run_that_is_asked_to_stop_when_it_is_done_is_finished():
    told = []

    def hear(news):
        told.append(news)
        if news.step == 12:
            live.stop()

    live = Live(BASE, hear)
    live.start()
    live.join(60)
    assert told[-1].state == "finished"
    assert told[-1].row is not None


def test_a_diverged_run_says_where(tmp_path):
    store = Store(tmp_path / "runs")
    told = lived(variant(learning_rate=1e30, warmup_steps=0), store)
    last = told[-1]
    assert last.state == "diverged"
    assert last.message.startswith(f"diverged at step {last.row['divergence_step'].item()}")
    assert last.curve_step == (0, 4, 8, 12)
    assert math.isnan(last.curve_validation_loss[-1])
    assert store.runs(pl.col("diverged")).height == 1


def test_a_failed_run_says_why_and_leaves_all_usable(tmp_path):
    last = lived(variant(corpus=str(tmp_path / "absent")))[-1]
    assert last.state == "failed"
    assert last.message.startswith("FileNotFoundError: no corpus, file or folder")
    assert last.row is None
    assert lived(BASE)[-1].state == "finished"


def test_who_cannot_show_news_does_not_end_the_run():
    calls = []

    def hear(news):
        calls.append(news)
        raise TypeError("no such widget")

    live = Live(BASE, hear, inspect=False)
    live.start()
    live.join(60)
    assert calls[-1].state == "finished"
    assert calls[-1].message.endswith("showing news failed: TypeError: no such widget")


def test_a_store_that_cannot_be_written_is_told_and_the_row_kept(tmp_path):
    (tmp_path / "file").write_text("no folder")
    last = lived(BASE, Store(tmp_path / "file"))[-1]
    assert last.state == "finished"
    assert "; not stored: " in last.message
    assert last.row["final_validation_loss"].is_finite().item()


def test_a_model_of_text_writes_before_and_after(tmp_path):
    file = tmp_path / "pattern.txt"
    file.write_text("def f(): pass\n" * 200)
    config = variant(corpus=str(file), steps=100, evaluate_every=50, learning_rate=0.02)
    last = lived(config, inspect=False)[-1]
    assert last.before.startswith("def ") and last.after.startswith("def ")
    # The untrained model draws from 256 bytes nearly evenly; the pattern has 12 characters.
    assert len(set(last.before)) > 2 * len(set(last.after))
    assert last.inside is None


def test_symbols_that_are_no_text_are_not_written():
    last = lived(BASE)[-1]
    assert last.before is last.after is None
    assert last.inside is not None


def test_looking_inside_can_be_switched_on_in_the_middle():
    def hear(news):
        live.inspect = news.step >= 8

    live = Live(BASE, hear, inspect=False)
    live.start()
    live.join(60)
    assert live.news.inside.step >= 8


def test_news_come_from_a_daemon_thread_and_two_runs_do_not_mix():
    heard = {0: [], 1: []}
    threads = set()

    def hear(news):
        heard[news.config.seed].append(news)
        threads.add(threading.current_thread())

    lives = [Live(variant(seed=seed), hear) for seed in heard]
    for live in lives:
        live.start()
    for live in lives:
        live.join(60)
    assert len(threads) == 2
    assert all(t.daemon and t is not threading.main_thread() for t in threads)
    for seed, news in heard.items():
        assert news[-1].state == "finished"
        (alone,) = lived(variant(seed=seed), inspect=False)[-1:]
        assert news[-1].curve_validation_loss == alone.curve_validation_loss
    with pytest.raises(RuntimeError):
        lives[0].start()


@pytest.mark.parametrize(
    "seconds", [0.2, 3.0], ids=["while its step is compiled", "in the midst of an interval"]
)
def test_a_program_ends_while_a_run_trains(seconds):
    # An interval of 10^6 steps takes minutes, so that no stop is heard; and a thread that comes
    # back from the compiler to a Python that has ended crashes it.
    config = variant(width=64, depth=4, steps=10**6, evaluate_every=10**6, validation_windows=4)
    program = f"""
        import time
        from isolab.training.config import RunConfig
        from isolab.lab.live import Live
        live = Live(RunConfig(**{dataclasses.asdict(config)!r}), lambda news: None)
        live.start()
        while live.news.state != "training":
            time.sleep(0.01)
        time.sleep({seconds})
        print("leaving", live.running, flush=True)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=90
    )
    assert done.stdout == "leaving True\n"
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
