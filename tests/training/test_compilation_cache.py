"""Compiled programs on disk: kept by default, elsewhere or not at all if the user says so."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

BLOCKED = "a file is in the way"
SCRIPT = """
import json
from isolab import RunConfig
from isolab.training.train import train
import jax
from jax._src import monitoring

hits = []
monitoring.register_event_listener(lambda event, **_: hits.append(event))
config = RunConfig(width=16, depth=1, context=8, steps=2, evaluate_every=2, warmup_steps=0)
[result] = train([config])
print(json.dumps({
    "folder": jax.config.jax_compilation_cache_dir,
    "hits": hits.count("/jax/compilation_cache/cache_hits"),
    "losses": result.curve_validation_loss,
}))
"""


def trained(**environment):
    """Trains a run in a fresh process; returns the folder, the programs found there, the losses."""
    unset = ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE", "ISOLAB_PROGRAMS")
    inherited = {name: value for name, value in os.environ.items() if name not in unset}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_a_second_process_finds_the_programs_of_the_first_and_gives_the_same_bits(tmp_path):
    folder = str(tmp_path / "programs")
    first, second = (trained(ISOLAB_PROGRAMS=folder) for _ in range(2))
    assert first["folder"] == second["folder"] == folder
    assert first["hits"] == 0 < second["hits"]
    assert os.listdir(folder)
    assert first["losses"] == second["losses"]


@pytest.mark.parametrize(
    "choice", ["elsewhere", *(pytest.param(c, marks=pytest.mark.slow) for c in ("off", BLOCKED))]
)
def test_what_the_user_chose_stands_and_a_bad_folder_does_no_harm(tmp_path, choice):
    folder = tmp_path / "programs"
    if choice == "elsewhere":
        chosen = str(tmp_path / "own")
        run = trained(ISOLAB_PROGRAMS=str(folder), JAX_COMPILATION_CACHE_DIR=chosen)
        assert run["folder"] == chosen and not folder.exists()
    elif choice == "off":
        run = trained(ISOLAB_PROGRAMS=str(folder), JAX_ENABLE_COMPILATION_CACHE="false")
        assert not run["hits"] and not folder.exists()
    else:
        folder.write_text("not a folder")
        run = trained(ISOLAB_PROGRAMS=str(folder))
    assert len(run["losses"]) == 2
