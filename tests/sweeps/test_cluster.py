"""Sweeps on a real dask cluster of two worker processes, one of which is killed while it works."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time

import distributed
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from isolab.results.store import Store
from isolab.sweeps.cluster import ClusterError, connect, slots
from isolab.sweeps.sweep import Sweep, run
from isolab.training.config import RunConfig

BASE = RunConfig(
    width=16, base_width=16, depth=1, head_size=8, context=8, mlp_ratio=2, batch_size=2,
    steps=500, warmup_steps=1, evaluate_every=500, validation_windows=4,
    corpus="zipf_markov:vocab_size=16,length=20000",
)  # fmt: skip
OUTCOME = pl.exclude("step_seconds", "git_revision")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    compiled = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.getbasetemp() / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    with distributed.LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=True,
        dashboard_address=None,
        env=compiled,
        resources={"GPU": 1},
    ) as started:
        yield started


class Watched(Store):
    """A store that remembers what was appended to it, and by which process."""

    def __init__(self, path):
        super().__init__(path)
        self.appended = []

    def append(self, frame):
        self.appended += [(key, os.getpid()) for key in frame["key"]]
        return super().append(frame)


def test_a_worker_killed_while_it_works_costs_no_row(cluster, tmp_path):
    sweep = Sweep(BASE, steps=[500, 1000, 1500], seed=range(16))  # six batches of eight
    store = Watched(tmp_path)
    victims = []

    def kill_one_at_work():
        with connect(cluster.scheduler_address) as client:
            deadline = time.monotonic() + 120
            while not victims and time.monotonic() < deadline:
                at_work = [worker for worker, tasks in client.processing().items() if tasks]
                if store.appended and at_work:  # something is done, and something is begun
                    pids = client.run(os.getpid, workers=at_work[:1])
                    victims.extend(pids.values())
                    os.kill(victims[0], signal.SIGKILL)
                time.sleep(0.02)

    killer = threading.Thread(target=kill_one_at_work)
    killer.start()
    table = run(
        sweep, store, progress=False, scheduler=cluster.scheduler_address, resources={"GPU": 1}
    )
    killer.join()
    assert len(victims) == 1
    keys = [key for key, _ in store.appended]
    assert len(keys) == len(set(keys)) == len(sweep) == table.height
    assert {pid for _, pid in store.appended} == {os.getpid()}
    assert sorted(keys) == sorted(table["key"])
    assert table["seed"].to_list() == [config.seed for config in sweep]
    assert Store(tmp_path).runs().height == len(sweep)
    # trained elsewhere, in batches of the same size: the same bits as here
    part = Sweep(BASE, seed=range(16))
    here = run(part, None, progress=False)
    assert_frame_equal(table.head(16).select(OUTCOME), here.select(OUTCOME), check_exact=True)


def test_ctrl_c_keeps_what_workers_have_begun_and_gives_up_the_rest(cluster, tmp_path):
    class Pressing(Watched):
        def append(self, frame):
            path = super().append(frame)
            if len(self.appended) == 8:
                signal.raise_signal(signal.SIGINT)
            return path

    sweep = Sweep(BASE, steps=[2000, 2500, 3000], seed=range(16))  # six batches of eight
    store = Pressing(tmp_path)
    where = {"progress": False, "scheduler": cluster.scheduler_address}
    with pytest.raises(KeyboardInterrupt, match=r"of 48 runs are stored in .* goes on from there"):
        run(sweep, store, **where)
    # the first, what the two workers had begun then, and what may have come back meanwhile
    assert len(store.keys()) == len(store.appended) in (8, 16, 24, 32)
    table = run(sweep, store, **where)
    assert table["key"].to_list() == [
        config.key(table["corpus_fingerprint"][0]) for config in sweep
    ]
    assert len(store.appended) == 48


def test_resources_bound_what_is_trained_at_the_same_time(cluster):
    with connect(cluster.scheduler_address) as client:
        client.wait_for_workers(2, timeout=30)
        assert slots(client, None) == 2
        assert slots(client, {"GPU": 1}) == 2
        assert slots(client, {"GPU": 2}) == 0


def test_a_batch_that_fails_is_named_after_the_others_are_stored(cluster, tmp_path):
    small = Sweep(BASE, seed=range(8))
    large = Sweep(BASE, width=[128], seed=range(2))
    allowed = 1_500_000  # bytes: enough for width 16, and for no run of width 128
    with pytest.raises(ClusterError, match="1 of 2 batches failed: 2 runs of adam at width 128"):
        run(
            small + large, tmp_path, progress=False,
            scheduler=cluster.scheduler_address, memory_bytes=allowed,
        )  # fmt: skip
    assert Store(tmp_path).runs()["width"].to_list() == [16] * 8


def test_an_unreachable_scheduler_is_told_before_anything(tmp_path, monkeypatch):
    monkeypatch.setattr("isolab.sweeps.cluster.CONNECT_SECONDS", 0.5)
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ClusterError, match=f"no dask scheduler answers at '{address}'"):
            run(Sweep(BASE), tmp_path / "runs", scheduler=address)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("address", ["nonsense://here", "tcp://127.0.0.1", ""])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(ClusterError, match=r"allowed: an address such as 'tcp://10\.0\.0\.1:8786'"):
        connect(address)
