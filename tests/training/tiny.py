"""A tiny run for every test of training, and batches of one size: one program an optimizer."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import subprocess
import sys

from isolab.training.config import RunConfig
from isolab.training.train import train

CORPUS = "zipf_markov:vocab_size=16,length=20000"
TINY = RunConfig(
    width=16, base_width=16, depth=1, head_size=8, context=8, mlp_ratio=2, batch_size=4,
    learning_rate=0.01, steps=20, warmup_steps=2, evaluate_every=10, validation_windows=32,
    corpus=CORPUS,
)  # fmt: skip
EIGHT = dataclasses.replace(TINY, batch_size=8, evaluate_every=5, validation_windows=16)
RUNS = 5  # of every batch: a program is compiled anew for each number


def variant(**changes):
    return dataclasses.replace(TINY, **changes)


@functools.cache
def trained(*configs):
    """Results of the configs, side by side; copies of the first fill up the batch."""
    return train([*configs, *configs[:1] * (RUNS - len(configs))])[: len(configs)]


def curves(result):
    return [*result.curve_train_loss, *result.curve_validation_loss]


def on_eight_devices(cache, script, config, *arguments):
    """Starts a script on EIGHT's shapes in a process that takes this CPU for eight devices."""
    env = os.environ | {
        # unoptimized code compiles in half the time
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0",
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, "-W", "error", "-c", script, json.dumps(dataclasses.asdict(config))]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [*command, *map(str, arguments)], env=env, text=True, stdin=pipe, stdout=pipe, stderr=pipe
    )


def finish(process):
    """Returns the lines that it wrote."""
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out.splitlines()
