"""One run on eight devices together: the result of one device, divided state, and kills."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from training.tiny import EIGHT, curves, finish, on_eight_devices

from isolab.training.sharded import Checkpoints, make_mesh, partition, train_sharded
from isolab.training.train import Snapshot

NEWTON = dataclasses.replace(EIGHT, optimizer="isoadam", iso_root="newton")
EIGH = dataclasses.replace(EIGHT, optimizer="isoadam", iso_root="eigh")
CASES = {"adam": (EIGHT, (1, 8)), "newton": (NEWTON, (2, 4)), "eigh": (EIGH, (1, 8))}

COMPARE = """
import dataclasses, json, sys
import jax, jax.numpy as jnp
from isolab import RunConfig, load_corpus
from isolab.training import train as training
from isolab.training.sharded import make_mesh, sharded_arguments, train_sharded

config, shape = RunConfig(**json.loads(sys.argv[1])), tuple(json.loads(sys.argv[2]))
results = [train_sharded(config, shape), train_sharded(config, shape), *training.train([config])]

program, arguments = sharded_arguments(config, load_corpus(config.corpus), make_mesh(shape))
traced, tokens, validation = arguments
state, _ = program.init(traced, validation)
state, _, _ = program.advance(state, traced, jnp.int32(0), tokens, validation)
try:
    train_sharded(dataclasses.replace(config, batch_size=4), shape)
except ValueError as error:
    refused = str(error)
print(json.dumps({
    "curves": [[*r.curve_train_loss, *r.curve_validation_loss] for r in results],
    "refused": refused,
    "points": [r.curve_step for r in results],
    "leaves": [
        [jax.tree_util.keystr(path), leaf.shape, leaf.addressable_shards[0].data.size,
         len({str(s.index) for s in leaf.addressable_shards})]
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    ],
}))
"""

TRAIN = """
import json, sys
from isolab import RunConfig
from isolab.training.sharded import train_sharded

config, shape = RunConfig(**json.loads(sys.argv[1])), tuple(json.loads(sys.argv[2]))
folder, killed_at = sys.argv[3], int(sys.argv[4])

def show(snapshot):
    print(snapshot.step, flush=True)
    if snapshot.step == killed_at:
        sys.stdin.read()  # until the kill

result = train_sharded(config, shape, checkpoint=folder or None, on_snapshot=show)
print(json.dumps([result.curve_step, result.curve_train_loss, result.curve_validation_loss]))
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


def start(cache, script, config, shape, *arguments):
    return on_eight_devices(cache, script, config, json.dumps(shape), *arguments)


@pytest.mark.parametrize(
    "case", ["adam", *(pytest.param(name, marks=pytest.mark.slow) for name in ("newton", "eigh"))]
)
def test_eight_devices_together_give_the_result_of_one(cache, case):
    config, (data, shards) = CASES[case]
    found = json.loads(finish(start(cache, COMPARE, config, (data, shards)))[-1])
    together, again, alone = found["curves"]
    # sums over the batch are made in eight parts: rounding
    np.testing.assert_allclose(together, alone, rtol=1e-5)
    assert together == again
    assert found["points"] == [[0, 5, 10, 15, 20]] * 3
    assert together[4] < together[0] - 0.05  # it trains
    assert "batch_size is 4; allowed: multiples of the mesh's 8 devices" in found["refused"]

    # each array is cut in as many parts as there are shards, where its shape allows it
    cut = {path: parts for path, shape, _, parts in found["leaves"] if np.prod(shape) >= 16}
    assert set(cut.values()) == {shards}
    for path, shape, size, parts in found["leaves"]:
        assert size * parts == np.prod(shape), path
    factors = [path for path in cut if ".factors" in path or ".roots" in path]
    assert len(factors) == (0 if case == "adam" else 4 * 4)  # 4 matrices; A, B and their roots


@pytest.mark.slow
def test_a_killed_run_resumes_and_ends_on_the_same_bits(cache, tmp_path):
    whole = finish(start(cache, TRAIN, NEWTON, (2, 4), "", 0))
    assert whole[:-1] == ["0", "5", "10", "15", "20"]

    folder = tmp_path / "run"
    running = start(cache, TRAIN, NEWTON, (2, 4), folder, 15)
    steps = [running.stdout.readline() for _ in range(4)]
    assert steps == ["0\n", "5\n", "10\n", "15\n"], running.communicate()[1]
    running.kill()
    running.communicate()
    assert running.returncode == -9

    resumed = finish(start(cache, TRAIN, NEWTON, (2, 4), folder, 0))
    # the checkpoint of step 10 may have been half-written when the kill came; that of 5 was not
    assert resumed[:-1] in (["15", "20"], ["10", "15", "20"])
    assert resumed[-1] == whole[-1]


@pytest.mark.slow
def test_kills_at_any_moment_change_no_bit(cache, tmp_path):
    config = dataclasses.replace(EIGH, steps=100)
    whole = finish(start(cache, TRAIN, config, (1, 8), "", 0))
    rng = np.random.default_rng()
    reached = []
    for _ in range(8):
        running = start(cache, TRAIN, config, (1, 8), tmp_path / "run", 0)
        for _ in range(rng.integers(1, 5)):
            reached += running.stdout.readline().split()
        time.sleep(rng.uniform(0, 0.2))  # somewhere in training, or in writing a checkpoint
        running.kill()
        running.communicate()
    resumed = finish(start(cache, TRAIN, config, (1, 8), tmp_path / "run", 0))
    assert resumed[-1] == whole[-1]
    assert len(resumed) < len(whole) and len({*reached}) > 1


# --- one device, in this process ---


SHORT = dataclasses.replace(EIGHT, steps=10)


def test_one_device_stops_goes_on_and_refuses_another_run(tmp_path):
    def stop(snapshot):
        if snapshot.step:
            raise LookupError

    seen = []
    with pytest.raises(LookupError):
        train_sharded(SHORT, checkpoint=tmp_path, on_snapshot=stop)
    whole = train_sharded(SHORT, checkpoint=tmp_path, on_snapshot=seen.append)
    assert [snapshot.step for snapshot in seen] == [10]
    assert whole.step_seconds > 0 and whole.curve_step == [0, 5, 10]
    assert curves(train_sharded(SHORT)) == curves(whole)
    # nothing is left to do
    again = train_sharded(SHORT, checkpoint=tmp_path, on_snapshot=pytest.fail)
    assert curves(again) == curves(whole) and again.step_seconds > 0
    with pytest.raises(ValueError, match=r"holds checkpoints of another run; allowed: an empty"):
        train_sharded(dataclasses.replace(SHORT, seed=1), checkpoint=tmp_path)


def test_a_diverged_run_stops_and_is_reported_as_one():
    seen = []
    config = dataclasses.replace(EIGHT, learning_rate=1e30)
    result = train_sharded(config, on_snapshot=lambda snapshot: seen.append(snapshot.step))
    assert seen == [0, 5]
    assert result.divergence_step == 2 and result.curve_step == [0, 5, 10, 15, 20]
    assert np.isnan(result.curve_validation_loss[1:]).all()


def test_last_two_checkpoints_are_kept(tmp_path):
    with contextlib.closing(Checkpoints(tmp_path, key="a")) as checkpoints:
        assert checkpoints.latest(like={"w": np.zeros(2)}) is None
        for step in (1, 2, 3):
            loss = float(np.float32(1 / step))
            losses = np.array([[loss, np.nan]]), np.array([[loss]])
            checkpoints.save(Snapshot(step, {"w": np.full(2, loss)}, *losses, seconds=0.5))
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == [2, 3]
    with contextlib.closing(Checkpoints(tmp_path, key="a")) as checkpoints:
        found = checkpoints.latest(like={"w": np.zeros(2)})
    assert found.step == 3 and found.validation_losses == np.float32(1 / 3)
    assert np.isnan(found.train_losses[0, 1])
    np.testing.assert_array_equal(found.state["w"], np.full(2, float(np.float32(1 / 3))))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mesh_shape": (1, 99)}, r"mesh_shape is \(1, 99\); allowed: two numbers of 1 or more"),
        ({"mesh_shape": (0, 1)}, r"mesh_shape is \(0, 1\)"),
        ({"mesh_shape": (1,)}, r"mesh_shape is \(1,\)"),
    ],
)
def test_impossible_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        train_sharded(EIGHT, **options)


@given(shape=st.lists(st.integers(1, 24), max_size=3).map(tuple), shards=st.integers(1, 8))
def test_arrays_are_cut_along_the_longest_side_that_divides(shape, shards):
    spec = partition(shape, shards)
    sides = [side for side, name in enumerate(spec) if name is not None]
    dividable = [n for n in shape if n % shards == 0]
    if shards == 1 or not dividable:
        assert sides == []
    else:
        assert [shape[side] for side in sides] == [max(dividable)]


def test_default_mesh_is_all_devices_along_shards():
    assert dict(make_mesh().shape) == {"data": 1, "shards": len(jax.devices())}
