"""What a sweep survives: SIGKILL at any moment, Ctrl-C once and twice, in processes of its own."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time

import polars as pl
import pytest
from polars.testing import assert_frame_equal
from training.tiny import variant

from isolab.results.store import Store
from isolab.sweeps.plan import plan
from isolab.sweeps.sweep import Sweep, run
from isolab.training.interrupt import interrupt

BASE = variant(batch_size=2, warmup_steps=1, validation_windows=4)
PROGRAM = """
import json, sys
from isolab.training.config import RunConfig
from isolab.sweeps.sweep import Sweep, run

base = RunConfig(**json.loads(sys.argv[2]))
rates = [0.001 * 2**i for i in range(8)]
steps = [base.steps, 2 * base.steps]
sweep = Sweep(base, steps=steps, learning_rate=rates, seed=[0, 1])  # four batches of eight
print("ready", flush=True)
table = run(sweep, sys.argv[1])
assert table.height == 32
"""
UNREPEATABLE = ["step_seconds", "git_revision"]  # a time, and what somebody edits meanwhile


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Environment of processes that compile once for all."""
    return os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.getbasetemp() / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


@pytest.fixture
def start(environment):
    """Starts a process that sweeps into a folder, and returns when it is about to."""
    processes = []

    def started(folder, steps, every=500):
        config = dataclasses.replace(BASE, steps=steps, evaluate_every=every)
        base = json.dumps(dataclasses.asdict(config))
        arguments = [sys.executable, "-c", PROGRAM, str(folder), base]
        pipe = subprocess.PIPE
        process = subprocess.Popen(arguments, stdout=pipe, stderr=pipe, text=True, env=environment)
        processes.append(process)
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        return process

    yield started
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def wait_for_files(folder, process, seconds=120):
    """Waits until something is stored."""
    deadline = time.monotonic() + seconds
    while not (folder.exists() and list(folder.glob("*.parquet"))):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def bits(folder):
    """Every stored row, floats as their bits."""
    runs = Store(folder).runs().drop(UNREPEATABLE)
    assert runs["key"].n_unique() == runs.height == 32
    return runs


@pytest.mark.parametrize("times", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_a_sweep_killed_at_random_moments_resumes_to_the_same_rows(start, tmp_path, times):
    steps = 2000
    whole = start(tmp_path / "whole", steps)
    wait_for_files(tmp_path / "whole", whole)
    compiled = time.monotonic()
    assert whole.wait(120) == 0, whole.stderr.read()
    seconds = time.monotonic() - compiled  # three of the four batches
    reference = bits(tmp_path / "whole")

    moments = random.Random()
    interrupted = killed = round_ = 0
    while killed < times:
        folder = tmp_path / f"killed-{round_}"
        process = start(folder, steps)
        try:
            finished = process.wait(moments.uniform(0, seconds))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            killed += 1
            stored = Store(folder).keys()
            assert len(stored) % 8 == 0  # whole batches
            interrupted += 0 < len(stored) < 32
        else:
            assert finished == 0, process.stderr.read()
            assert_frame_equal(bits(folder), reference)
            round_ += 1
    assert start(folder, steps).wait(120) == 0
    # to the bit: the same batches, which runs from the same executable
    assert_frame_equal(bits(folder), reference, check_exact=True)
    assert interrupted > 0 or times < 20  # some kills fell between the first and the last batch


def test_ctrl_c_finishes_and_stores_the_batch_in_hand_and_says_how_to_go_on(start, tmp_path):
    process = start(tmp_path / "runs", 8000)
    wait_for_files(tmp_path / "runs", process)
    time.sleep(0.2)  # into the second batch
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    stored = len(Store(tmp_path / "runs").keys())
    assert stored in (16, 24)
    assert process.returncode != 0
    assert "Ctrl-C: finishing and storing the batch in hand; again to stop at once" in out
    assert f"KeyboardInterrupt: stopped by Ctrl-C: {stored} of 32 runs are stored in" in err
    assert "the same call goes on from there" in err


def test_a_second_ctrl_c_stops_at_once(start, tmp_path):
    process = start(tmp_path / "runs", 10**8, every=10**8)  # hours to the next evaluation
    watchdog = threading.Timer(120, process.kill)  # so that a lost signal fails and does not hang
    watchdog.start()
    written = []
    reader = threading.Thread(
        target=lambda: written.extend(iter(lambda: process.stderr.read(1), ""))
    )
    reader.start()
    while (
        "%|" not in "".join(written) and process.poll() is None
    ):  # the bar stands: Ctrl-C is heard
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    heard = process.stdout.readline()
    while heard and "again to stop at once" not in heard:
        heard = process.stdout.readline()
    process.send_signal(signal.SIGINT)
    process.wait(110)  # before the watchdog: it may be compiling, but does not train for hours
    reader.join()
    watchdog.cancel()
    assert "KeyboardInterrupt: stopped at once, at the second Ctrl-C" in "".join(written)
    assert process.returncode not in (0, -signal.SIGKILL)
    assert not Store(tmp_path / "runs").keys()


def test_the_former_handler_is_back_afterwards():
    heard = []
    former = signal.signal(signal.SIGINT, lambda *_: heard.append("former"))
    try:
        with interrupt(lambda: heard.append("first")) as requested:
            assert not requested()
            signal.raise_signal(signal.SIGINT)
            assert requested()
            with pytest.raises(KeyboardInterrupt, match="second"):
                signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        with interrupt(lambda: heard.append("unheard"), enabled=False) as requested:
            signal.raise_signal(signal.SIGINT)
        assert not requested()
        elsewhere = threading.Thread(target=interrupt(lambda: None).__enter__)  # left alone there
        elsewhere.start()
        elsewhere.join()
        signal.raise_signal(signal.SIGINT)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # and where it is ignored
        with interrupt(lambda: heard.append("unheard")):
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, former)
    assert heard == ["first", "former", "former", "former"]


def test_rows_of_a_sweep_that_stopped_after_any_batch_are_those_of_a_whole_one(tmp_path):
    base = dataclasses.replace(BASE, steps=4, evaluate_every=2)
    sweep = Sweep(base, steps=[2, 4], seed=range(16))  # four batches of eight

    class Stopping(Store):
        """Presses Ctrl-C when a batch has been stored."""

        def append(self, frame):
            path = super().append(frame)
            signal.raise_signal(signal.SIGINT)
            return path

    whole = run(sweep, tmp_path / "whole", progress=False)
    store = Stopping(tmp_path / "parts")
    for stored in (8, 16, 24, 32):
        with pytest.raises(KeyboardInterrupt, match=rf"{stored} of 32 runs are stored in"):
            run(sweep, store, progress=False)
        assert len(store.keys()) == stored
    parts = run(sweep, store, progress=False)
    assert not plan(sweep, store).batches
    columns = pl.exclude(UNREPEATABLE)
    assert_frame_equal(parts.select(columns), whole.select(columns), check_exact=True)
