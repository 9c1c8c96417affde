"""Compiled programs on disk: kept by default, elsewhere or not at all if the user says so."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys

import pytest
from training.tiny import TINY

SCRIPT = """
import json, sys
import jax
from isolab import RunConfig
from isolab.training.train import train

hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event))
[result] = train([RunConfig(**json.loads(sys.argv[1]))])
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
    config = json.dumps(dataclasses.asdict(TINY))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, config],
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_another_process_finds_the_programs_and_gives_the_same_bits_also_by_the_users_choice(
    tmp_path,
):
    folder, unused = str(tmp_path / "programs"), tmp_path / "unused"
    first, second = (trained(ISOLAB_PROGRAMS=folder) for _ in range(2))
    third = trained(ISOLAB_PROGRAMS=str(unused), JAX_COMPILATION_CACHE_DIR=folder)
    assert first["folder"] == second["folder"] == third["folder"] == folder
    assert first["hits"] == 0 < second["hits"] <= third["hits"]  # quick ones are kept later
    assert os.listdir(folder) and not unused.exists()
    assert first["losses"] == second["losses"] == third["losses"]


@pytest.mark.slow
@pytest.mark.parametrize("switched_off", [True, False])
def test_without_a_cache_or_with_a_bad_folder_training_goes_on(tmp_path, switched_off):
    folder = tmp_path / "programs"
    if switched_off:
        run = trained(ISOLAB_PROGRAMS=str(folder), JAX_ENABLE_COMPILATION_CACHE="false")
        assert not run["hits"] and not folder.exists()
    else:
        folder.write_text("not a folder")
        run = trained(ISOLAB_PROGRAMS=str(folder))
    assert len(run["losses"]) == 3
