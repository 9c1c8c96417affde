"""A chapter opens at a preset, refuses what cannot be, and holds both origins' results."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys

import polars as pl
import pytest

from isolab import chapters
from isolab.chapters import CHAPTERS, Evidence, Opened
from isolab.chapters.chapter import REFERENCE, Verdicts, claim_of, load
from isolab.sweeps.batch import keys_of
from isolab.training.config import RunConfig

NAMED = [name for name, chapter in CHAPTERS.items() if chapter.reference is not None]


@pytest.mark.parametrize(
    ("name", "preset", "overrides", "message"),
    [
        ("atan2", "smoke", {}, "unknown chapter 'atan2'; known: ['start', 'speedup',"),
        ("speedup", "labtop", {}, "preset is 'labtop'; allowed: ['smoke', 'laptop', 'full']"),
        ("speedup", "smoke", {"widht": 32}, "unknown setting 'widht'; allowed: ['batch_size',"),
        ("speedup", "smoke", {"width": 50}, "width is 50; allowed: multiples of head_size (16)"),
        ("speedup", "smoke", {"width": "64"}, "width is '64'; allowed: a whole number such as 16"),
        ("speedup", "smoke", {"width": True}, "width is True; allowed: a whole number"),
        ("speedup", "smoke", {"seeds": 3}, "seeds is 3; allowed: a list such as [0, 1]"),
        ("speedup", "smoke", {"seeds": []}, "seeds is []; allowed: a list such as [0, 1]"),
        ("speedup", "smoke", {"seeds": [1, 1]}, "seeds is (1, 1); allowed: two different ones"),
        ("speedup", "smoke", {"horizons": [40, 80]}, "horizons is (40, 80); allowed: three"),
        ("speedup", "smoke", {"horizons": [20, 40, 90]}, "multiples of evaluate_every"),
        ("speedup", "smoke", {"log2_rates_adam": [-3, -1]}, "three rates or more"),
        ("speedup", "smoke", {"log2_rates_adam": [-3, -1, 2]}, "[start, stop)"),
        ("transfer", "laptop", {"widths": [32]}, "widths is (32,); allowed: two different ones"),
        ("transfer", "laptop", {"widths": ["32"]}, "widths is ['32']; allowed: a list such as"),
        ("transfer", "laptop", {"widths": [32, 50]}, "width is 50; allowed: multiples of"),
        ("transfer", "laptop", {"parameterizations": ["mup"]}, "a list with 'standard'"),
        ("transfer", "laptop", {"parameterizations": ["standard", "sp"]}, "'sp'"),
        ("transfer", "laptop", {"optimizers": ["muon"]}, "('muon',); allowed: of ['adafactor',"),
        ("transfer", "laptop", {"optimizers": [1]}, "optimizers is [1]; allowed: a list such as"),
        ("transfer", "laptop", {"reach": 0}, "reach is 0; allowed: 1 or more"),
        ("epsilon", "laptop", {"log2_loss_scales": [-10, -20]}, "allowed: 0 and one other"),
        ("epsilon", "laptop", {"reach": 0}, "reach is 0; allowed: 1 or more"),
        ("epsilon", "laptop", {"stands_in": 0}, "stands_in is 0; allowed: 1 or more"),
        ("epsilon", "laptop", {"gradient_step": 71}, "gradient_step is 71; allowed: 1 to steps"),
        ("epsilon", "laptop", {"log10_eps": [-50]}, "allowed: 0, or 2**-126 to 2**127"),
        ("epsilon", "laptop", {"log2_loss_scales": [0, -200]}, "2**-126 to 2**127"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_training(name, preset, overrides, message):
    with pytest.raises(ValueError) as refused:
        chapters.open(name, preset, **overrides)
    assert message in str(refused.value)


def test_none_keeps_the_presets_value_and_lists_are_taken():
    settings = chapters.open("speedup", "smoke", width=None, seeds=[5, 7]).settings
    assert settings.width == CHAPTERS["speedup"].presets["smoke"].width
    assert settings.seeds == (5, 7)
    assert chapters.open("transfer", "smoke", optimizers=["sgd"]).settings.optimizers == ("sgd",)


@pytest.mark.parametrize("name", NAMED)
def test_printing_a_chapter_counts_its_runs(name):
    opened = chapters.open(name, "smoke")
    count = len(set(keys_of(opened.own.sweep.configs)))
    assert str(opened).startswith(f"{name}: {count} runs (")


@pytest.mark.parametrize("name", NAMED)
def test_committed_runs_are_what_the_reference_asks_for(name):
    chapter, fields = CHAPTERS[name], list(RunConfig().row())
    runs, evidence, found = load(chapter.folder), chapter.evidence(), set()
    for sweep, configs in evidence.sweeps.items():
        its = evidence.runs(sweep)
        found |= set(its["key"])
        assert set(its.select(fields).iter_rows()) <= {tuple(c.row().values()) for c in configs}
    assert len(found) == len(runs) == runs["key"].n_unique()
    assert runs.filter(~pl.col("diverged"))["final_validation_loss"].is_finite().all()


def test_the_reference_sweep_is_the_same_in_every_process():
    """Its order is the order of batches, on which a resumed sweep relies."""
    script = (
        "import pickle, sys; from isolab.chapters import CHAPTERS;"
        " sys.stdout.buffer.write(pickle.dumps(CHAPTERS['speedup'].evidence().sweep.configs))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert pickle.loads(done.stdout) == CHAPTERS["speedup"].evidence().sweep.configs


@pytest.mark.parametrize("place", sorted(REFERENCE.glob("*/provenance.json")), ids=str)
def test_provenance_says_what_is_there(place):
    about, frame = json.loads(place.read_text()), load(place.parent.name)
    assert about["rows"] == len(frame)
    assert not any("unknown" in value for value in about["sources"].values())
    if "varied" in about:
        widths = about["varied"].get("width") or [about["fixed"]["width"]]
        assert widths == sorted(frame["width"].unique())
        assert about["sources"]["git_revision"] == sorted(frame["git_revision"].unique())


def test_reference_data_stay_small():
    sizes = [file.stat().st_size for file in REFERENCE.rglob("*") if file.is_file()]
    assert max(sizes) <= 5 << 20
    assert sum(sizes) <= 20 << 20


def test_missing_reference_data_are_named():
    with pytest.raises(FileNotFoundError, match="part of the repository, not of the"):
        load("nowhere")


@pytest.fixture(scope="module")
def opened():
    """Chapter 3 whose reader's runs are the reference's own."""
    chapter = CHAPTERS["epsilon"]
    own = Evidence(chapter, chapter.reference, "yours")
    own.__dict__["everything"] = load(chapter.folder)
    return Opened(own, chapter.evidence())


def test_both_origins_are_in_one_frame_and_told_apart(opened):
    runs = opened.runs("transfer")
    assert runs.columns[-1] == "origin"
    assert runs["origin"].unique(maintain_order=True).to_list() == ["reference", "yours"]
    halves = [half.drop("origin") for half in runs.partition_by("origin", maintain_order=True)]
    assert halves[0].equals(halves[1])
    with pytest.raises(ValueError, match="unknown name 'rates'; the chapter's sweeps are"):
        opened.runs("rates")
    with pytest.raises(ValueError, match="unknown name 'alignment'; the chapter's tables are"):
        opened.table("alignment")


def test_a_sweep_of_one_origin_has_that_origin_alone():
    opened = chapters.open("epsilon", "smoke")
    assert set(opened.runs("constants")["origin"]) == {"reference"}


def test_the_same_runs_have_the_same_claims_whoevers_they_are(opened, capsys):
    found = opened.claims()
    assert [*found] == ["reference", "yours"]
    assert found["reference"] == found["yours"]
    found._ipython_display_()
    shown = capsys.readouterr().out
    assert all(shown.count(claim.question) == 2 for claim in found["yours"].values())
    assert not Verdicts()._ipython_display_()


def test_runs_at_the_base_width_stand_for_every_rule():
    rates = CHAPTERS["transfer"].evidence().runs("rates")
    at_base = rates.filter(pl.col("width") == 32, pl.col("seed") < 3, optimizer="adam")
    rules = at_base.group_by("key").agg(pl.col("rate_rule").sort())["rate_rule"].to_list()
    assert {tuple(names) for names in rules} == {("full", "global", "none")}
    eps = CHAPTERS["epsilon"].evidence().runs("width_map")
    at_base = eps.filter(width=32, optimizer="adam")
    rules = at_base.group_by("key").agg(pl.col("eps_rule").sort())["eps_rule"].to_list()
    assert {tuple(names) for names in rules} == {("per_layer", "same")}


def row(**more):
    row = {"case": "a", "width": 256, "shift": 0.2, "shift_low": -0.3, "shift_high": 0.7,
           "note": "", "reason": None}  # fmt: skip
    return pl.DataFrame([row | more], schema_overrides={"reason": pl.String})


@pytest.mark.parametrize(
    ("more", "verdict"),
    [
        ({}, "reproduced"),
        ({"shift_low": -1.5}, "inconclusive"),
        ({"shift_high": float("inf")}, "inconclusive"),
        ({"shift": -2.0, "shift_low": -2.5, "shift_high": -1.5}, "not reproduced"),
        ({"reason": "best rate at the edge of the grid"}, "inconclusive"),
        ({"shift": None, "shift_low": None, "shift_high": None}, "inconclusive"),
    ],
)
def test_a_claim_takes_its_row_with_interval_and_reason(more, verdict):
    claim = claim_of(
        row(**more), {"case": "a"}, "shift", "At width {width}?", threshold=1.0, direction="within"
    )
    assert claim.question == "At width 256?"
    assert claim.verdict == verdict
    assert more.get("reason") in (None, claim.reason)


def test_an_absent_row_is_named():
    with pytest.raises(ValueError, match=r"0 rows of \{'case': 'b'\}; needed: one"):
        claim_of(row(), {"case": "b"}, "shift", "?", threshold=1.0)
