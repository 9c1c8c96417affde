"""`isolab runs`, as typed; the conditions it takes are in test_conditions.py."""

from __future__ import annotations

import datetime
import itertools
import subprocess
import sys

import polars as pl
import pytest
from typer.testing import CliRunner

from isolab.cli import app
from isolab.cli.runs import OUTCOMES
from isolab.results.store import STORED_AT, Store
from isolab.sweeps.batch import results_frame
from isolab.training.config import RunConfig
from isolab.training.train import Result

CORPUS = "zipf_markov:vocab_size=8,length=1000"
RATES = (2.0**-11, 2.0**-7)


def invoke(*arguments, store, answer="", columns=200):
    environment = {"ISOLAB_RUNS": str(store), "COLUMNS": str(columns)}
    return CliRunner().invoke(app, ["runs", *map(str, arguments)], input=answer, env=environment)


def lines(result):
    """The words of each line of stdout; a failure shows what was said instead."""
    assert result.exit_code == 0, result.output
    return [line.split() for line in result.stdout.splitlines()]


def trained(optimizer, width, learning_rate, seed):
    config = RunConfig(
        optimizer=optimizer, width=width, learning_rate=learning_rate, seed=seed, corpus=CORPUS
    )
    loss = 2 + width / 1000 + seed / 100
    diverged = 50 if optimizer == "sgd" and learning_rate > 0.001 else None
    return Result(config, [0, 50, 400], [4.0, 3.0, loss], [4.0, 3.0, loss], diverged, 0.01)


@pytest.fixture(scope="module")
def frame():
    grid = itertools.product(("adam", "isoadam", "sgd"), (32, 128), RATES, (0, 1))
    return results_frame([trained(*values) for values in grid])


@pytest.fixture
def store(frame, tmp_path):
    path = tmp_path / "runs"
    for part in frame.iter_slices(10):
        Store(path).append(part)
    return path


def test_list_shows_what_varies_and_how_it_ended(store):
    ended = ["steps", "seed", "final_validation_loss", "diverged"]
    heading, *rows = lines(invoke("list", store=store))
    assert heading == ["width", "optimizer", "learning_rate", *ended]
    assert len(rows) == 24
    assert rows[0] == ["32", "adam", "0.00048828125", "400", "0", "2.0320", "false"]
    assert ["32", "sgd", "0.0078125", "400", "1", "inf", "true"] in rows
    conditions = ("-w", "width = 32", "-w", "optimizer = 'adam'")
    heading, *rows = lines(invoke("list", *conditions, store=store))
    assert heading == ["learning_rate", *ended] and len(rows) == 4


def test_list_shows_hyperparameters_that_do_not_follow_from_the_optimizer(tmp_path):
    configs = [RunConfig(optimizer="adam", b2=b2, corpus=CORPUS) for b2 in (0.9, 0.99)]
    configs += [RunConfig(optimizer="lion", corpus=CORPUS)]
    runs = [Result(config, [0], [4.0], [4.0], None, 0.01) for config in configs]
    Store(tmp_path).append(results_frame(runs))
    heading = lines(invoke("list", store=tmp_path))[0]
    assert heading[:2] == ["optimizer", "b2"]
    assert "weight_decay" not in heading and "eps" not in heading


def test_list_sorts_limits_and_takes_columns(store):
    wanted = ("--columns", "seed, width,curve_step,stored_at", "--sort", "final_validation_loss")
    result = invoke("list", *wanted, "--limit", 2, "-w", "NOT diverged", store=store)
    heading, first, _ = lines(result)
    assert heading == ["seed", "width", "curve_step", "stored_at"]
    assert first[:4] == ["0", "32", "3", "values"]  # a curve is only counted
    datetime.datetime.fromisoformat(" ".join(first[4:]))
    assert result.stderr == "2 of 20 runs; --limit 0 shows all\n"
    wanted = ("--columns", "divergence_step", "--sort", "divergence_step", "--limit", 0)
    for direction in ([], ["--descending"]):  # null is last in both
        rows = lines(invoke("list", *wanted, *direction, store=store))[1:]
        assert rows == [["50"]] * 4 + [["null"]] * 20


@pytest.mark.parametrize(
    ("columns", "dropped"),
    [(80, ""), (70, "learning_rate"), (50, "width, optimizer, learning_rate")],
)
def test_list_fits_the_terminal_and_names_what_it_dropped(store, columns, dropped):
    text = invoke("list", store=store, columns=columns).stdout
    table, _, named = text.partition("too wide for this terminal, see --columns: ")
    assert max(map(len, table.splitlines())) <= columns
    assert named.strip() == dropped


def test_list_of_nothing_says_what_is_there(store, tmp_path):
    nowhere = invoke("list", "-w", "width = 3", store=tmp_path / "none")
    assert (nowhere.exit_code, nowhere.stdout) == (0, "")
    assert nowhere.stderr == f"no runs in {tmp_path / 'none'}\n"
    found = invoke("list", "--store", store, store=tmp_path / "none")  # before the environment
    assert len(lines(found)) == 25
    none = invoke("list", "-w", "optimizer = 'isodam' AND width > 0", store=store)
    assert none.exit_code == 0
    assert none.stderr == (
        f"none of 24 runs in {store} matches; optimizer is one of 'adam', 'isoadam', 'sgd'\n"
    )


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        ("list --where widht=64", 2, "no column 'widht'; did you mean width?"),
        ("list --columns seed,widht", 2, "no column 'widht'; did you mean width?"),
        ("list --sort sed", 2, "no column 'sed'; did you mean seed?"),
        ("list --sort curve_step", 2, "cannot sort by curve_step"),
        ("list --store nowhere://x", 2, "cannot open the store 'nowhere://x'"),
        (f"list --store {__file__}", 1, "is a file; allowed: a folder"),
        ("export a.xlsx -w seed=0", 2, "cannot export to 'a.xlsx'; allowed: .csv and .parquet"),
        ("export a.csv -w seed=9", 1, "none of 24 runs in"),
        ("prune --yes", 2, "either --where CONDITION, or --all"),
        ("prune --all -w diverged --yes", 2, "either --where CONDITION, or --all"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(store, tmp_path, monkeypatch, command, code, message):
    monkeypatch.chdir(tmp_path)
    result = invoke(*command.split(), store=store)
    assert (result.exit_code, result.stdout) == (code, "")
    assert message in result.stderr and result.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    assert len(Store(store).keys()) == 24


def test_export_writes_the_runs_that_match(store, frame, tmp_path):
    wanted = frame.filter(width=128, diverged=False).sort("key")
    conditions = ("-w", "width > 64", "-w", "NOT diverged")
    for name, read in {"a.parquet": pl.read_parquet, "a.csv": pl.read_csv}.items():
        result = invoke("export", tmp_path / name, *conditions, store=store)
        assert lines(result) == [["wrote", "10", "runs", "to", str(tmp_path / name)]]
        written = read(tmp_path / name)
        assert written.columns == frame.columns
        assert written["key"].to_list() == wanted["key"].to_list()
        assert written["learning_rate"].to_list() == wanted["learning_rate"].to_list()
    assert pl.read_parquet(tmp_path / "a.parquet").equals(wanted)
    invoke("export", tmp_path / "b.csv", "--columns", "seed,stored_at", store=store)
    assert pl.read_csv(tmp_path / "b.csv").columns == ["seed", STORED_AT]


@pytest.mark.parametrize(
    ("arguments", "answer", "code", "message", "left"),
    [
        (["-w", "diverged"], "n\n", 1, "Prune 4 of 24 runs in ", 24),
        (["-w", "diverged"], "y\n", 0, "pruned 4 runs", 20),
        (["-w", "diverged", "--yes"], "", 0, "pruned 4 runs", 20),
        (["-w", "seed = 7", "--yes"], "", 0, "none of 24 runs", 24),
        (["--all", "--yes"], "", 0, "... and 14 more", 0),
    ],
)
def test_prune_asks_and_removes_the_runs_that_match(store, arguments, answer, code, message, left):
    result = invoke("prune", *arguments, store=store, answer=answer)
    assert result.exit_code == code and message in result.output
    stored = Store(store).runs()
    assert stored.height == left and (left != 20 or not stored["diverged"].any())


def test_compact_merges(store):
    result = invoke("compact", store=store)
    assert result.exit_code == 0
    assert "in 3 files before" in result.stdout and "in 1 file now" in result.stdout
    assert len(Store(store).keys()) == 24


def test_damaged_files_are_named(store):
    sound = invoke("damaged", store=store)
    assert (sound.exit_code, sound.stdout) == (0, "")
    broken = min(store.iterdir())
    broken.write_bytes(broken.read_bytes()[:-1])
    found = invoke("damaged", store=store)
    assert (found.exit_code, found.stdout, found.stderr) == (1, f"{broken}\n", "")
    listed = invoke("list", store=store)
    assert listed.exit_code == 0
    assert f"isolab runs list: warning: {str(broken)!r} is damaged" in listed.stderr


def test_outcomes_are_the_columns_that_say_nothing_of_the_config(frame):
    config = RunConfig(corpus=CORPUS).row()
    assert set(OUTCOMES) == set(frame.columns) - set(config) | {STORED_AT}


@pytest.mark.parametrize("arguments", [["--help"], ["runs", "list"], ["runs", "export", "-"]])
def test_the_command_starts_without_jax(store, arguments):
    program = (
        "import sys; from typer.testing import CliRunner; from isolab.cli import app;"
        "CliRunner().invoke(app, sys.argv[1:], catch_exceptions=False);"
        "sys.exit('jax' in sys.modules or 'flax' in sys.modules)"
    )
    where = ["--store", str(store)] if arguments[0] == "runs" else []
    done = subprocess.run([sys.executable, "-c", program, *arguments, *where], timeout=100)
    assert done.returncode == 0
