"""Runs divided among devices: the same rows, and each device holds and trains its own part."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from training.tiny import EIGHT, finish, on_eight_devices

from isolab.training.runs_axis import padded

RUNS = 11  # not a multiple of the devices: two on each, the last repeated

SCRIPT = """
import collections, json, sys
import jax, jax.numpy as jnp
from isolab import RunConfig, Sweep
from isolab.sweeps import plan as scheduling
from isolab.training import program as programs
from isolab.training import train as training
from isolab.model.corpus import load_corpus, validation_windows
from isolab.training.runs_axis import device_count, on_each, padded

base, seeds = RunConfig(**json.loads(sys.argv[1])), range(int(sys.argv[2]))
grid = Sweep(base, seed=seeds)
scheduling.BATCH_RUNS = 2
about = {"devices": device_count(), "batches": [len(b) for b in scheduling.plan(grid).batches]}
reports = []
results = training.train(
    grid.configs, on_snapshot=lambda snapshot: reports.append(len(snapshot.validation_loss))
)
with jax.default_device(jax.devices()[3]):
    about["devices_if_one_is_chosen"] = device_count()
    alone = training.train(grid.configs)
about["curves"] = [[[*r.curve_train_loss, *r.curve_validation_loss] for r in rows]
                   for rows in (results, alone)]
about["seeds"] = [r.config.seed for r in results]
about["reported"] = reports

# the same program, from the inside
program = programs.compile_program(programs.program_of(base), 16, 8)
corpus = load_corpus(base.corpus)
traced = programs.stack_traced(padded(grid.configs, 8))
windows = on_each(tuple(map(jnp.asarray, validation_windows(corpus, 16, base.context))), 8)
state, _ = program.init(traced, windows)
step = (state, traced, jnp.int32(0), programs.device_tokens(corpus, 8), windows)
compiled = program.advance.lower(*step).compile().as_text()
about["collectives"] = [n for n in ("all-reduce", "all-gather", "all-to-all", "collective-permute",
                                    "reduce-scatter") if n + "(" in compiled]
about["branches"] = compiled.count(" conditional(")
state, losses, _ = program.advance(*step)
leaves = jax.tree.leaves(state)
about["counters"] = [leaf.sharding.is_fully_replicated for leaf in leaves if leaf.shape == ()]
held = collections.Counter()
about["shards"] = []
for leaf in (leaf for leaf in [*leaves, losses] if leaf.shape):
    where = {str(s.device): s.data.shape for s in leaf.addressable_shards}
    held.update(where)
    about["shards"].append([len(leaf), len(where), sorted({shape[0] for shape in where.values()})])
about["leaves_by_device"] = sorted(held.values())
print(json.dumps(about))
"""


@pytest.mark.parametrize("optimizer", ["adam", pytest.param("isoadam", marks=pytest.mark.slow)])
def test_eight_devices_give_the_rows_of_one(tmp_path, optimizer):
    config = dataclasses.replace(EIGHT, optimizer=optimizer, steps=10)
    there = json.loads(finish(on_eight_devices(tmp_path, SCRIPT, config, RUNS))[-1])
    assert there["devices"] == 8
    assert there["batches"] == [RUNS]  # two a device fit, on one device it would be six batches
    assert there["seeds"] == list(range(RUNS))
    assert there["reported"] == [RUNS] * 3
    assert there["devices_if_one_is_chosen"] == 1
    eight, one = there["curves"]
    # the program is compiled for two runs a device and sums in another order: rounding
    np.testing.assert_allclose(eight, one, rtol=1e-5)
    assert len({tuple(curve) for curve in eight}) == RUNS

    # every array of the state lies in eight parts of two runs, and nothing is sent about
    assert there["shards"] and all(parts == [16, 8, [2]] for parts in there["shards"])
    assert len(there["leaves_by_device"]) == 8
    assert there["counters"] and all(there["counters"])
    assert there["collectives"] == []
    assert (there["branches"] > 0) == (optimizer == "isoadam")  # refreshes are skipped, not masked


@given(count=st.integers(1, 40), devices=st.integers(1, 9))
def test_padding_repeats_the_last_item_up_to_a_multiple(count, devices):
    items = list(range(count))
    filled = padded(items, devices)
    assert len(filled) % devices == 0 and len(filled) - count < devices
    assert filled[:count] == items and set(filled[count:]) <= {items[-1]}
