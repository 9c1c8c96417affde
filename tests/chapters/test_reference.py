"""Reference results: what is committed is what the chapter's sweep names, with its provenance."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys

import polars as pl
import pytest

from isolab.chapters import reference
from isolab.sweeps.sweep import Sweep
from isolab.training.config import RunConfig

FIELDS = list(RunConfig().row())
NAMES = sorted(reference.SWEEPS)


@pytest.mark.parametrize("name", NAMES)
def test_committed_runs_are_runs_of_the_sweep(name):
    runs = reference.load(name)
    named = {tuple(config.row().values()) for config in reference.SWEEPS[name]()}
    assert set(runs.select(FIELDS).iter_rows()) <= named
    assert runs["key"].n_unique() == len(runs)
    assert runs.filter(~pl.col("diverged"))["final_validation_loss"].is_finite().all()


@pytest.mark.parametrize("name", NAMES)
def test_provenance_says_what_is_there(name):
    said = json.loads((reference.folder(name) / "provenance.json").read_text())
    runs = reference.load(name)
    assert said["rows"] == len(runs)
    widths = said["varied"].get("width") or [said["fixed"]["width"]]
    assert widths == sorted(runs["width"].unique())
    assert said["sources"]["git_revision"] == sorted(runs["git_revision"].unique())
    assert not any("unknown" in value for value in said["sources"].values())


@pytest.mark.parametrize("name", ["alignment", "coordinates", "gradients"])
def test_tables_hold_every_parameterization_with_their_provenance(name):
    table = reference.load(name)
    assert table["parameterization"].n_unique() == 4
    said = json.loads((reference.folder(name) / "provenance.json").read_text())
    assert said["rows"] == len(table)
    assert "unknown" not in said["sources"].values()


def test_reference_data_stay_small():
    sizes = [f.stat().st_size for f in reference.folder(NAMES[0]).parent.rglob("*") if f.is_file()]
    assert max(sizes) <= 5 << 20
    assert sum(sizes) <= 20 << 20


def test_own_runs_are_told_apart():
    runs = reference.load(NAMES[0])
    both = reference.beside(runs.head(3), runs.head(2))
    assert both["origin"].to_list() == ["reference"] * 3 + ["yours"] * 2
    assert both.columns == [*runs.columns, "origin"]


def test_unknown_and_absent_results_are_said_in_words(tmp_path):
    with pytest.raises(ValueError, match=r"unknown reference results 'chapter9'; known: \["):
        reference.load("chapter9")
    # an installed package: the module without the repository around it
    script = (
        "import pathlib, isolab.chapters.reference as r;"
        f" r.PACKAGE = pathlib.Path({str(tmp_path / 'isolab')!r}); r.load({NAMES[0]!r})"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode
    assert "part of the repository, not of the installed package" in done.stderr


def test_the_sweep_is_the_same_in_every_process():
    """Its order is the order of batches, on which a resumed sweep relies."""
    script = (
        "import pickle, sys; from isolab.chapters.reference import SWEEPS;"
        f" sys.stdout.buffer.write(pickle.dumps(SWEEPS[{NAMES[0]!r}]().configs))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert pickle.loads(done.stdout) == reference.SWEEPS[NAMES[0]]().configs


def test_rows_of_a_sweep_are_found_by_their_keys_and_others_left_out():
    name = NAMES[0]
    runs = reference.load(name)
    sweep = reference.SWEEPS[name]()
    few = Sweep.union([sweep.configs[:5], [RunConfig(seed=12345)]])
    found = reference.rows_of(runs, few)
    assert sorted(found["key"]) == sorted(
        config.key(runs["corpus_fingerprint"][0]) for config in sweep.configs[:5]
    )
    assert reference.rows_of(runs, Sweep.union([])).is_empty()
