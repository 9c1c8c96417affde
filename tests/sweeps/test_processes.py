"""Sweeps on other processes, of this machine or a dask cluster, whatever is killed or pressed."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import distributed
import jax
import polars as pl
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from training.tiny import variant

from isolab.results.store import Store
from isolab.sweeps import cluster
from isolab.sweeps.cluster import ClusterError, connect, slots
from isolab.sweeps.local import own_cores, process_count, shares
from isolab.sweeps.sweep import Sweep, run

BASE = variant(
    batch_size=2, steps=500, warmup_steps=1, evaluate_every=500, validation_windows=4
)  # fmt: skip
ENDLESS = 10**8  # steps: hours
OUTCOME = pl.exclude("step_seconds", "git_revision")


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The scheduler of a dask cluster of two worker processes."""
    compiled = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.getbasetemp() / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, env=compiled,
        resources={"GPU": 1},
    ) as started:  # fmt: skip
        yield started.scheduler_address


@pytest.fixture(params=["processes", "cluster"])
def where(request):
    """Arguments of `run`, twice."""
    if request.param == "processes":
        return {"progress": False, "processes": 2}
    return {
        "progress": False,
        "scheduler": request.getfixturevalue("address"),
        "resources": {"GPU": 1},
    }


def workers_of(pid, local=True):
    """The processes that train for a caller: under a host, or of the cluster in this process."""
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has ended meanwhile
            if "spawn_main" in " ".join(process.cmdline()) and (process.ppid() != pid) == local:
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

    def __init__(self, path, afterwards):
        super().__init__(path)
        self.appended = []
        self.afterwards = afterwards

    def append(self, frame):
        path = super().append(frame)
        self.appended += [(key, os.getpid()) for key in frame["key"]]
        self.afterwards(self)
        return path


def test_a_worker_killed_while_it_works_costs_no_row(where, tmp_path):
    victims = []

    def kill_one(store):
        if not victims:
            workers = workers_of(os.getpid(), "processes" in where)
            if "processes" in where and hasattr(os, "sched_getaffinity"):  # cores of their own
                cores = [sorted(process.cpu_affinity()) for process in workers]
                assert sorted(cores) == sorted(map(sorted, shares(own_cores(), 2)))
            victims.extend(workers[:1])
            victims[0].kill()

    sweep = Sweep(BASE, steps=[500, 1000, 1500], seed=range(16))
    store = Watched(tmp_path, kill_one)
    table = run(sweep, store, **where)
    assert len(victims) == 1
    assert len(store.appended) == len(set(store.appended)) == len(sweep) == table.height
    assert {pid for _, pid in store.appended} == {os.getpid()}  # the caller alone writes
    assert table["seed"].to_list() == [config.seed for config in sweep]
    part = Sweep(BASE, seed=range(16))
    here, there = run(part, None, progress=False), table.head(16)
    # A CPU trains the runs of a batch one by one, so that its size changes no bits.  But one of
    # several workers has fewer cores than the caller, and XLA may cut a sum in as many parts as it
    # has threads: float32 rounds by 6e-8, which 500 steps leave far below 1e-4 of the loss.
    exact = "processes" not in where
    assert_frame_equal(
        there.select(OUTCOME), here.select(OUTCOME), check_exact=exact, rel_tol=1e-4, abs_tol=0
    )
    again = run(part, store, progress=False)  # by one process: nothing is left to train
    assert again["step_seconds"].to_list() == there["step_seconds"].to_list()
    assert not workers_of(os.getpid())


def test_ctrl_c_keeps_what_workers_have_begun_and_gives_up_the_rest(where, tmp_path):
    def press(store):
        if len(store.appended) <= 8 and not pressed:
            pressed.append(len(store.appended))
            signal.raise_signal(signal.SIGINT)
            for process in workers_of(os.getpid()):  # as a terminal does
                process.parent().send_signal(signal.SIGINT)
                process.send_signal(signal.SIGINT)

    pressed = []
    sweep = Sweep(BASE, steps=[2000, 2500, 3000], seed=range(16))
    store = Watched(tmp_path, press)
    with pytest.raises(KeyboardInterrupt, match=r"of 48 runs are stored in .* goes on from there"):
        run(sweep, store, **where)
    # the first batch, what the two workers had begun then, and what may have come back meanwhile
    batch = pressed[0]
    assert len(store.keys()) == len(store.appended) in range(batch, 4 * batch + 1)
    table = run(sweep, store, **where)
    assert table["key"].to_list() == [
        config.key(table["corpus_fingerprint"][0]) for config in sweep
    ]
    assert len(store.appended) == 48


def test_a_batch_that_fails_is_named_after_the_others_are_stored(where, tmp_path):
    small, large = Sweep(BASE, seed=range(8)), Sweep(BASE, width=[128], seed=range(2))
    allowed = 1_500_000  # bytes: enough for width 16, and for no run of width 128
    part = ""
    if "processes" in where:
        allowed, part = 2 * allowed, ", of which each of 2 processes has its part"
    told = rf"batches failed: \d runs of adam at width 128, 500 steps: Memory.*memory_bytes{part}"
    with pytest.raises(ClusterError, match=told):
        run(small + large, tmp_path, memory_bytes=allowed, **where)
    assert Store(tmp_path).runs()["width"].to_list() == [16] * 8


# --- processes of this machine ---


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


def test_a_batch_that_kills_its_workers_is_named_after_the_others_are_stored(tmp_path, monkeypatch):
    usual = cluster.train_task

    def deadly(batch, *others):
        if batch[0].seed == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return usual(batch, *others)

    monkeypatch.setattr(cluster, "train_task", deadly)
    told = "1 of 3 batches failed: 1 runs of adam at width 16, 500 steps: ClusterError: 3 workers"
    with pytest.raises(ClusterError, match=told):
        run(Sweep(BASE, seed=[0, 1, 2]), tmp_path, progress=False, processes=2)
    assert sorted(Store(tmp_path).runs()["seed"]) == [0, 2]


def test_workers_that_cannot_start_are_told_at_once(monkeypatch, capfd):
    monkeypatch.setattr(sys, "path", [])  # as if isolab and Python's library were gone
    with pytest.raises(ClusterError, match="could not be started; what they wrote to standard err"):
        run(Sweep(BASE, seed=range(16)), None, progress=False, processes=2)
    assert "No module named" in capfd.readouterr().err


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
base = isolab.RunConfig(**{dataclasses.asdict(BASE) | {"steps": ENDLESS}})
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


@given(st.lists(st.integers(0, 200), unique=True, min_size=1, max_size=64), st.integers(1, 40))
def test_shares_cover_the_cores_evenly(cores, processes):
    dealt = shares(cores, processes)
    assert len(dealt) == processes
    assert {core for share in dealt for core in share} == set(cores)
    sizes = [len(share) for share in dealt]
    assert max(sizes) - min(sizes) <= 1
    if processes <= len(cores):
        assert sum(sizes) == len(cores)  # no core twice


# --- what is refused, and where a scheduler is ---


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
    assert process_count(1) == process_count("auto") == process_count(None) == 1


def test_resources_bound_what_is_trained_at_the_same_time(address):
    with connect(address) as client:
        client.wait_for_workers(2, timeout=30)
        needs = (None, {"GPU": 1}, {"GPU": 2})
        assert [slots(client, resources) for resources in needs] == [2, 2, 0]


def test_an_unreachable_scheduler_is_told_before_anything(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 0.5)
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ClusterError, match=f"no dask scheduler answers at '{address}'"):
            run(Sweep(BASE), tmp_path / "runs", scheduler=address)
    assert not (tmp_path / "runs").exists()
    for nonsense in ("nonsense://here", "tcp://127.0.0.1", ""):
        with pytest.raises(ClusterError, match=r"address such as 'tcp://10\.0\.0\.1:8786'"):
            connect(nonsense)
