"""`isolab sweep`: values typed by the config's fields, errors in words before anything runs."""

from __future__ import annotations

import signal

import pytest
from typer.testing import CliRunner

from isolab.cli import app
from isolab.results.store import Store

TINY = [
    "--set", "width=16", "--set", "base_width=16", "-s", "depth=1", "-s", "head_size=8",
    "-s", "context=8", "-s", "mlp_ratio=2", "-s", "batch_size=2", "-s", "steps=4",
    "-s", "warmup_steps=1", "-s", "evaluate_every=2", "-s", "validation_windows=4",
    "-s", "b1=none", "-s", "qk_norm=no", "-s", "corpus=zipf_markov:vocab_size=8,length=2000",
]  # fmt: skip


def sweep(*arguments):
    return CliRunner().invoke(app, ["sweep", *map(str, arguments)])


def test_a_grid_is_trained_and_stored(tmp_path):
    corpus = "zipf_markov:vocab_size=8,length=2000"  # texts with commas are given as a list
    axes = ["--axis", "learning_rate=2**-7,0.02", "-a", "seed=3", "-a", f"corpus=['{corpus}']"]
    done = sweep(*TINY[:-2], *axes, "--store", tmp_path)
    assert done.exit_code == 0, done.output
    runs = Store(tmp_path).runs()
    assert sorted(zip(runs["learning_rate"], runs["seed"], strict=True)) == [
        (2**-7, 3), (0.02, 3),
    ]  # fmt: skip
    assert {*runs.select("corpus", "qk_norm", "b1").iter_rows()} == {(corpus, False, 0.9)}
    best = runs.sort("final_validation_loss").row(0, named=True)
    assert (
        f"lowest final validation loss of 2: {best['final_validation_loss']:.4f}"
        f" at learning_rate={best['learning_rate']}, seed={best['seed']}, corpus={corpus};"
    ) in done.output
    assert sweep(*TINY[:-2], *axes, "--store", tmp_path).exit_code == 0  # trains nothing again
    assert Store(tmp_path).runs()["step_seconds"].to_list() == runs["step_seconds"].to_list()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "widht=32"], "unknown field 'widht'; allowed: ['parameterization',"),
        (["--set", "width"], "--set 'width' is not NAME=VALUE, such as width=32"),
        (["--set", "width=wide"], "width is 'wide'; allowed: a whole number"),
        (["--set", "width=50"], "width is 50; allowed: multiples of head_size (16)"),
        (["--set", "qk_norm=maybe"], "qk_norm is 'maybe'; allowed: "),
        (["--axis", "b2=0.9,high"], "b2 is 'high'; allowed: "),
        (["--axis", "seed=0,"], "seed is ''; allowed: a whole number"),
        (["--axis", "corpus=['a"], "['a is no list in Python's form"),
        (["--axis", "seed=0", "--axis", "seed=1"], "--axis seed is given twice"),
        (["--resource", "GPU"], "--resource 'GPU' is not NAME=VALUE, such as GPU=1"),
        (["--resource", "GPU=1"], "resources={'GPU': 1.0} without a scheduler"),
    ],
)
def test_a_wrong_argument_is_told_before_anything_runs(arguments, message, tmp_path):
    done = sweep(*arguments, "--store", tmp_path / "runs")
    assert done.exit_code == 2, done.output
    assert f"isolab sweep: {message}" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_failures_end_with_one(tmp_path):
    done = sweep(*TINY, "--store", tmp_path, "--memory-bytes", "10")
    assert done.exit_code == 1
    assert "allowed: 10 bytes (memory_bytes)" in done.stderr
    pytest.importorskip("distributed")
    done = sweep(*TINY, "--store", tmp_path, "--scheduler", "nonsense://here")
    assert done.exit_code == 1
    assert "isolab sweep: no dask scheduler answers at 'nonsense://here'" in done.stderr


def test_ctrl_c_ends_with_130_and_how_to_go_on(tmp_path, monkeypatch):
    stored = Store.append

    def append_and_press(self, frame):
        path = stored(self, frame)
        signal.raise_signal(signal.SIGINT)
        return path

    monkeypatch.setattr(Store, "append", append_and_press)
    done = sweep(*TINY, "--axis", "seed=0,1", "--store", tmp_path)
    assert done.exit_code == 130
    assert "isolab sweep: stopped by Ctrl-C: 2 of 2 runs are stored in" in done.stderr
