"""Sweeps on several processes: the rows of one process, whatever is killed, pressed or raised."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

import jax
import polars as pl
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from typer.testing import CliRunner

from isolab.cli import app
from isolab.results.store import Store
from isolab.sweeps import worker
from isolab.sweeps.cluster import ClusterError
from isolab.sweeps.local import own_cores, process_count, shares
from isolab.sweeps.sweep import Sweep, run
from isolab.training.config import RunConfig

linux = pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="cores are chosen there")

TINY = {
    "width": 16, "base_width": 16, "depth": 1, "head_size": 8, "context": 8, "mlp_ratio": 2,
    "batch_size": 2, "steps": 500, "warmup_steps": 1, "evaluate_every": 500,
    "validation_windows": 4, "corpus": "zipf_markov:vocab_size=16,length=20000",
}  # fmt: skip
BASE = RunConfig(**TINY)
ENDLESS = 10**8  # steps: hours
OUTCOME = pl.exclude("step_seconds", "git_revision")


def workers_of(pid):
    """The processes that train for a caller; those that oversee them are not among them."""
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has ended meanwhile
            if "spawn_main" in " ".join(process.cmdline()):
                found.append(process)
    return found


def until(holds, seconds=300):
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
        cores = [sorted(process.cpu_affinity()) for process in workers_of(os.getpid())]
        assert sorted(cores) == sorted(map(sorted, shares(own_cores(), 2)))

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
            table = run(Sweep(BASE, seed=[0, 1]), None, progress=False, processes=2)
        finally:
            jax.config.update("jax_default_prng_impl", before)
        starts.append(table["curve_validation_loss"].list.first().to_list())
    assert starts[0] != starts[1]


# --- what they survive ---


def test_a_worker_killed_while_it_works_costs_no_row(tmp_path):
    victims = []

    def kill_one(store):
        if not victims:
            victims.extend(workers_of(os.getpid())[:1])
            victims[0].kill()

    sweep = Sweep(BASE, steps=[2000], seed=range(16))  # eight batches of two
    store = Watched(tmp_path, kill_one)
    table = run(sweep, store, progress=False, processes=2)
    assert len(victims) == 1
    assert len(store.appended) == len(set(store.appended)) == len(sweep)
    assert table["seed"].to_list() == list(range(16))
    assert table["final_validation_loss"].is_finite().all()
    assert not workers_of(os.getpid())


def test_a_batch_that_kills_its_workers_is_named_after_the_others_are_stored(tmp_path, monkeypatch):
    usual = worker.train_task

    def deadly(batch, *others):
        if batch[0].seed == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return usual(batch, *others)

    monkeypatch.setattr(worker, "train_task", deadly)
    told = "1 of 3 batches failed: 1 runs of adam at width 16, 500 steps: ClusterError: 3 workers"
    with pytest.raises(ClusterError, match=told):
        run(Sweep(BASE, seed=[0, 1, 2]), tmp_path, progress=False, processes=2)
    assert sorted(Store(tmp_path).runs()["seed"]) == [0, 2]


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
    with pytest.raises(ClusterError, match="could not be started; what they wrote to standard err"):
        run(Sweep(BASE, seed=range(16)), None, progress=False, processes=2)
    assert "No module named" in capfd.readouterr().err


# --- Ctrl-C ---


def test_ctrl_c_keeps_what_workers_have_begun_and_gives_up_the_rest(tmp_path):
    def press(store):
        if len(store.appended) == 2:
            signal.raise_signal(signal.SIGINT)
            for process in psutil.Process().children(recursive=True):  # as a terminal does
                process.send_signal(signal.SIGINT)

    sweep = Sweep(BASE, steps=[1000], seed=range(16))  # eight batches of two
    store = Watched(tmp_path, press)
    with pytest.raises(KeyboardInterrupt, match=r"of 16 runs are stored in .* goes on from there"):
        run(sweep, store, progress=False, processes=2)
    # the first batch, and at least the other worker's; each may have begun another meanwhile
    assert len(store.keys()) == len(store.appended) in (4, 6, 8)
    assert not workers_of(os.getpid())
    table = run(sweep, store, progress=False)
    assert len(store.appended) == table.height == 16


def test_a_second_ctrl_c_kills_the_workers(tmp_path):
    def press_twice():
        until(lambda: len(workers_of(os.getpid())) == 2)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)

    pressing = threading.Thread(target=press_twice)
    sweep = Sweep(BASE, steps=[ENDLESS], evaluate_every=[ENDLESS], seed=[0, 1])
    pressing.start()
    with pytest.raises(KeyboardInterrupt, match="stopped at once, at the second Ctrl-C"):
        run(sweep, tmp_path, progress=False, processes=2)
    pressing.join()
    assert not workers_of(os.getpid())
    assert not Store(tmp_path).keys()


SCRIPT = f"""
import isolab  # no guard: who loads this file again starts another sweep
print("begun", flush=True)
base = isolab.RunConfig(**{TINY | {"steps": ENDLESS}})
isolab.run(isolab.Sweep(base, seed=[0, 1]), None, processes=2)
"""


def test_workers_end_when_their_caller_is_killed(tmp_path):
    script, told = tmp_path / "script.py", tmp_path / "told"
    script.write_text(SCRIPT)
    with told.open("w") as file:
        caller = subprocess.Popen([sys.executable, script], stdout=file, stderr=file)
    try:
        until(lambda: "adam best" in told.read_text())  # the bar: the first interval is done
        family = psutil.Process(caller.pid).children(recursive=True)
        assert len(workers_of(caller.pid)) == 2
        served = [c for p in family for c in p.net_connections("inet") if c.status == "LISTEN"]
        assert served and {connection.laddr.ip for connection in served} == {"127.0.0.1"}
    finally:
        caller.kill()
        caller.wait()
    assert not psutil.wait_procs(family, timeout=60)[1]
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


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        *(({"processes": n}, f"processes is {n!r}; allowed: None, 'auto', or a whole")
          for n in (0, -1, 2.0, True, "2")),
        ({"processes": 2, "scheduler": "tcp://127.0.0.1:1"},
         "processes=2 with a scheduler; allowed: one of them"),
        ({"resources": {"GPU": 1}}, r"resources=\{'GPU': 1\} without a scheduler"),
    ],
)  # fmt: skip
def test_wrong_wishes_are_refused_before_anything(wrong, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(Sweep(BASE), tmp_path / "runs", **wrong)
    assert not (tmp_path / "runs").exists()


def test_an_accelerator_is_not_shared(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.raises(ValueError, match="processes is 2 with a gpu backend; allowed: 1"):
        process_count(2)
    assert process_count(1) == process_count(None) == 1
