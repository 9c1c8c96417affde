"""Sweeps on several processes: the rows of one process, whatever is killed, pressed or raised."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from typer.testing import CliRunner

from isolab.cli import app
from isolab.results.store import Store
from isolab.sweeps.plan import BATCHES_EACH, batch_operations, plan
from isolab.sweeps.pool import PoolError, own_cores, process_count, shares
from isolab.sweeps.sweep import Sweep, run
from isolab.training.config import RunConfig

linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds workers in /proc")

TINY = {
    "width": 16, "base_width": 16, "depth": 1, "head_size": 8, "context": 8, "mlp_ratio": 2,
    "batch_size": 2, "steps": 500, "warmup_steps": 1, "evaluate_every": 500,
    "validation_windows": 4, "corpus": "zipf_markov:vocab_size=16,length=20000",
}  # fmt: skip
BASE = RunConfig(**TINY)
ENDLESS = 10**8  # steps: hours
OUTCOME = pl.exclude("step_seconds", "git_revision")


def workers_of(parent):
    """Process ids of a process's workers, by /proc."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            _, _, fields = stat.read_text().rpartition(")")
            state, father = fields.split()[:2]
            command = (stat.parent / "cmdline").read_text()
        except OSError:  # it has ended meanwhile
            continue
        if int(father) == parent and state != "Z" and "isolab.sweeps.pool" in command:
            found.append(int(stat.parent.name))
    return found


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(holds, seconds=120):
    deadline = time.monotonic() + seconds
    while not (value := holds()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return value


class Watched(Store):
    """A store that remembers what was appended to it, and does something after each append."""

    def __init__(self, path, afterwards=lambda store: None):
        super().__init__(path)
        self.appended = []
        self.afterwards = afterwards

    def append(self, frame):
        path = super().append(frame)
        self.appended += [(key, os.getpid()) for key in frame["key"]]
        self.afterwards(self)
        return path


# --- what they give ---


@linux
@pytest.mark.slow
def test_rows_are_those_of_one_process_from_workers_on_cores_of_their_own(tmp_path):
    def cores_of_workers(store):
        if len(store.appended) == 1:  # each is bound before it loads anything
            wanted = sorted(map(sorted, shares(own_cores(), 2)))
            until(
                lambda: (
                    wanted
                    == sorted(sorted(os.sched_getaffinity(pid)) for pid in workers_of(os.getpid()))
                )
            )

    sweep = Sweep(BASE, optimizer=["adam", "sgd"], seed=range(4))  # eight batches of one
    store = Watched(tmp_path, cores_of_workers)
    table = run(sweep, store, progress=False, processes=2)
    assert len(store.appended) == len(set(store.appended)) == len(sweep)
    assert {pid for _, pid in store.appended} == {os.getpid()}  # the caller alone writes
    here = run(sweep, None, progress=False)
    # A CPU trains the runs of a batch one by one, so that its size changes no bits.  But a worker
    # has fewer cores than the caller, and XLA may cut a sum in as many parts as it has threads:
    # float32 rounds by 6e-8, which 500 steps leave far below 1e-4 of the loss at these sizes.
    assert_frame_equal(
        table.select(OUTCOME), here.select(OUTCOME), check_exact=False, rel_tol=1e-4, abs_tol=0
    )
    again = run(sweep, store, progress=False)  # by one process: nothing is left to train
    assert again["step_seconds"].to_list() == table["step_seconds"].to_list()


@pytest.mark.slow
def test_settings_of_jax_hold_in_the_workers_too():
    starts = []
    before = jax.config.jax_default_prng_impl
    for bits in (before, "rbg"):  # other random bits: another initialization
        jax.config.update("jax_default_prng_impl", bits)
        try:
            table = run(BASE, None, progress=False, processes=2)
        finally:
            jax.config.update("jax_default_prng_impl", before)
        starts.append(table["curve_validation_loss"].list.first().item())
    assert starts[0] != starts[1]


# --- what they survive ---


@linux
def test_a_worker_killed_while_it_works_costs_no_row(tmp_path):
    victims = []

    def kill_one(store):
        if not victims:
            victims.extend(workers_of(os.getpid())[:1])
            os.kill(victims[0], signal.SIGKILL)

    sweep = Sweep(BASE, steps=[2000], seed=range(16))  # eight batches of two
    store = Watched(tmp_path, kill_one)
    table = run(sweep, store, progress=False, processes=2)
    assert len(victims) == 1
    assert len(store.appended) == len(set(store.appended)) == len(sweep)
    assert table["seed"].to_list() == list(range(16))
    assert table["final_validation_loss"].is_finite().all()
    assert not workers_of(os.getpid())


@linux
def test_a_batch_whose_workers_are_killed_again_and_again_is_named_at_the_end(tmp_path):
    ended = threading.Event()

    def kill_all():
        while not ended.is_set():
            for pid in workers_of(os.getpid()):
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)

    killer = threading.Thread(target=kill_all)
    told = r"2 of 2 batches failed: 1 runs of adam at width 16, 500 steps: PoolError: 3 processes"
    killer.start()
    try:
        with pytest.raises(PoolError, match=rf"{told} died over it, the last killed by signal 9"):
            run(Sweep(BASE, seed=[0, 1]), tmp_path, progress=False, processes=2)
    finally:
        ended.set()
        killer.join()


@pytest.mark.slow  # a quick one is in test_cluster.py
def test_a_batch_that_fails_is_named_after_the_others_are_stored(tmp_path):
    settings = [f"--set={name}={value}" for name, value in TINY.items() if name != "width"]
    # bytes for both processes: enough for width 16, and for no run of width 128
    allowed = ["--memory-bytes", "3000000", "--processes", "2"]
    axes = ["--axis", "width=16,128", "--axis", "seed=0,1", "--store", str(tmp_path)]
    done = CliRunner().invoke(app, ["sweep", *settings, *axes, *allowed])
    assert done.exit_code == 1, done.output
    assert "2 of 3 batches failed: 1 runs of adam at width 128, 500 steps: Memory" in done.stderr
    assert "allowed: 1,500,000 bytes (memory_bytes, of which each of 2 processes" in done.stderr
    assert Store(tmp_path).runs()["width"].to_list() == [16] * 2


def test_workers_that_cannot_start_are_told_at_once(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(sys, "path", [])  # as if isolab and Python's library were gone
    with pytest.raises(PoolError, match="ended at once; what it wrote to standard error says why"):
        run(Sweep(BASE, seed=range(16)), None, progress=False, processes=2)
    assert "No module named" in capfd.readouterr().err


# --- Ctrl-C ---


@linux
def test_ctrl_c_keeps_what_workers_have_begun_and_gives_up_the_rest(tmp_path):
    def press(store):
        if len(store.appended) == 2:
            signal.raise_signal(signal.SIGINT)
            for pid in workers_of(os.getpid()):  # as a terminal does
                os.kill(pid, signal.SIGINT)

    sweep = Sweep(BASE, steps=[1000], seed=range(16))  # eight batches of two
    store = Watched(tmp_path, press)
    with pytest.raises(KeyboardInterrupt, match=r"of 16 runs are stored in .* goes on from there"):
        run(sweep, store, progress=False, processes=2)
    # the first batch, and at least the other worker's; each may have begun another meanwhile
    assert len(store.keys()) == len(store.appended) in (4, 6, 8)
    assert not workers_of(os.getpid())
    table = run(sweep, store, progress=False)
    assert len(store.appended) == table.height == 16


@linux
def test_a_second_ctrl_c_kills_the_workers(tmp_path):
    insistent = threading.Thread(target=lambda: _press_twice(os.getpid()))
    sweep = Sweep(BASE, steps=[ENDLESS], evaluate_every=[ENDLESS], seed=[0, 1])
    insistent.start()
    with pytest.raises(KeyboardInterrupt, match="stopped at once, at the second Ctrl-C"):
        run(sweep, tmp_path, progress=False, processes=2)
    insistent.join()
    assert not workers_of(os.getpid())
    assert not Store(tmp_path).keys()


def _press_twice(pid):
    until(lambda: len(workers_of(pid)) == 2)
    for _ in range(2):
        os.kill(pid, signal.SIGINT)
        time.sleep(0.5)


SCRIPT = f"""
import isolab  # no guard: who loads this file again starts another sweep
print("begun", flush=True)
base = isolab.RunConfig(**{TINY | {"steps": ENDLESS}})
isolab.run(isolab.Sweep(base, seed=[0, 1]), None, processes=2)
"""


@linux
def test_workers_end_when_their_caller_is_killed(tmp_path):
    script, told = tmp_path / "script.py", tmp_path / "told"
    script.write_text(SCRIPT)
    with told.open("w") as file:
        caller = subprocess.Popen([sys.executable, script], stdout=file, stderr=file)
    try:
        until(lambda: "adam best" in told.read_text())  # the bar: the first interval is done
        workers = workers_of(caller.pid)
    finally:
        caller.kill()
        caller.wait()
    until(lambda: not any(map(is_running, workers)))
    assert len(workers) == 2
    assert told.read_text().count("begun") == 1


# --- how they are dealt out ---


@given(st.lists(st.integers(0, 200), unique=True, min_size=1, max_size=64), st.integers(1, 40))
def test_shares_cover_the_cores_evenly(cores, processes):
    dealt = shares(cores, processes)
    assert len(dealt) == processes
    assert {core for share in dealt for core in share} == set(cores)
    sizes = [len(share) for share in dealt]
    assert max(sizes) - min(sizes) <= 1
    if processes <= len(cores):
        assert sum(sizes) == len(cores)  # no core twice


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


# --- what is refused ---


@pytest.mark.parametrize("wrong", [0, -1, 2.0, True, "2"])
def test_a_wrong_number_is_refused_before_anything(wrong, tmp_path):
    with pytest.raises(
        ValueError, match=f"processes is {wrong!r}; allowed: None, 'auto', or a whole"
    ):
        run(Sweep(BASE), tmp_path / "runs", processes=wrong)
    assert not (tmp_path / "runs").exists()


def test_together_with_a_scheduler_they_are_refused(tmp_path):
    with pytest.raises(ValueError, match="processes=2 with a scheduler; allowed: one of them"):
        run(Sweep(BASE), tmp_path, scheduler="tcp://127.0.0.1:1", processes=2)


def test_an_accelerator_is_not_shared(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.raises(ValueError, match="processes is 2 with a gpu backend; allowed: 1"):
        process_count(2)
    assert process_count(1) == process_count(None) == 1
