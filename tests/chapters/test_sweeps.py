"""The chapters' sweeps: whole maps, one change at a time, grids that hold the best rate."""

from __future__ import annotations

import dataclasses
import math

import polars as pl
import pytest

from isolab import chapters
from isolab.chapters import CHAPTERS, transfer
from isolab.chapters.eps_sweeps import large_eps
from isolab.chapters.epsilon import damping
from isolab.chapters.grids import CENTRES, log2_centre
from isolab.theory.parameterization import parameterization
from isolab.training.program import program_of

PRESETS = ("smoke", "laptop", "full")


def planned(name, preset="laptop", **overrides):
    return chapters.open(name, preset, **overrides).own


@pytest.mark.parametrize("preset", PRESETS)
def test_chapter_1_gives_both_sides_as_many_trials(preset):
    own = planned("speedup", preset)
    s, sides = own.settings, {"adam": [], "isoadam": []}
    for config in own.sweeps["horizons"]:
        sides[config.optimizer].append(config)
    longest = max(s.horizons)
    assert {c.steps for c in sides["adam"]} == set(s.horizons)
    assert {c.steps for c in sides["isoadam"]} == {longest // 4, longest}
    assert len({sum(c.steps == longest for c in side) for side in sides.values()}) == 1
    assert all(c.warmup_steps == c.steps // 10 for c in own.sweep)


def test_grids_are_factors_of_two_around_the_centre():
    runs = planned("transfer", reach=2).sweeps["rates"]
    runs = [c for c in runs if c.rate_rule == "global" and c.width == 128]
    logs = sorted({math.log2(c.learning_rate) for c in runs})
    wide, centre = runs[0], CENTRES["standard", "adam"]
    assert logs == [k + log2_centre(wide) for k in range(-2, 3)]
    # one rate for all falls with the width as the hidden matrices need it
    assert log2_centre(wide) == centre - 2
    per_layer = dataclasses.replace(wide, rate_rule="full")
    assert log2_centre(per_layer) == centre
    # a base of 64 is one octave down the same line
    assert log2_centre(dataclasses.replace(per_layer, base_width=64)) == centre - 1


def test_the_reference_of_chapter_2_changes_one_thing_at_a_time():
    evidence = CHAPTERS["transfer"].evidence()
    gammas = {(c.gamma_embedding, c.gamma_hidden, c.gamma_readout) for c in evidence.sweep}
    assert all(sum(gamma != 1 for gamma in triple) <= 1 for triple in gammas)
    fallen = evidence.sweeps["embedding falls as 1/n"]
    assert all(c.gamma_embedding == 32 / c.width for c in fallen)
    unchanged = {dataclasses.replace(c, gamma_embedding=1.0) for c in fallen}
    assert unchanged == set(evidence.sweeps["embedding as prescribed"])  # as many trials
    tuned = evidence.sweeps["hidden at 1/4"]
    assert {(c.gamma_hidden, c.gamma_embedding, c.gamma_readout) for c in tuned} == {(0.25, 1, 1)}


def test_compared_runs_have_the_seeds_that_all_their_widths_have():
    cells = [("a", 32, 0), ("a", 32, 1), ("a", 32, 2), ("a", 64, 0), ("a", 64, 2), ("b", 32, 0)]
    runs = pl.DataFrame(cells, schema=["rule", "width", "seed"], orient="row")
    found = transfer.common_seeds(runs, ["rule"])
    assert found.rows() == [("a", 32, 0), ("a", 32, 2), ("a", 64, 0), ("a", 64, 2)]


def test_each_map_changes_one_thing_and_shares_a_program():
    sweeps = planned("epsilon").sweeps
    assert {c.loss_scale for c in sweeps["width_map"]} == {1.0}
    for name in ("width_map", "scale_map"):
        per_width = {(c.width, c.learning_rate) for c in sweeps[name]}
        assert len(per_width) == len({c.width for c in sweeps[name]})
        assert {c.moment_dtype for c in sweeps[name]} == {"float32"}
        assert all(c.eps is None for c in sweeps[name] if c.optimizer == "adam_atan2")
    assert {(c.moment_dtype, c.dtype) for c in sweeps["bfloat16"]} == {("bfloat16", "bfloat16")}
    at_64 = [c for name in ("width_map", "scale_map", "transfer") for c in sweeps[name]
             if c.width == 64]  # fmt: skip
    assert len({program_of(c) for c in at_64}) == 2  # Adam and Adam-atan2


def test_a_large_eps_stands_in_for_a_wider_model_and_its_rates_are_higher():
    own = planned("epsilon", stands_in=100)
    g = parameterization(own.settings.base.parameterization).gradient_exponent("hidden")
    assert own.settings.large_eps == pytest.approx(1e-8 * 100**g)
    assert {c.eps for c in own.sweeps["transfer"]} == {None, own.settings.large_eps}
    assert large_eps(100, "standard") == pytest.approx(1e-7)
    logs = {}
    for c in planned("epsilon", reach=2).sweeps["transfer"]:
        logs.setdefault((c.width, c.optimizer, c.eps), set()).add(math.log2(c.learning_rate))
    for (width, optimizer, eps), found in logs.items():
        least = min(logs[width, "adam", None])
        assert found == {min(found) + k for k in range(5)}
        assert min(found) > least if eps else min(found) == least, optimizer


def test_the_reference_of_chapter_3_asks_of_all_alike():
    sweeps = CHAPTERS["epsilon"].evidence().sweeps
    cells = {}
    for c in sweeps["tuned_eps"]:
        cells.setdefault((c.optimizer, c.eps), set()).add((c.width, c.learning_rate, c.seed))
    assert {eps for name, eps in cells if name == "adam"} == {None, 1e-6, 1e-5, 1e-4}
    assert len({frozenset(of) for of in cells.values()}) == 1
    shared = {c for c in sweeps["transfer"] if c.width <= 128 and c.eps is None}
    assert shared < set(sweeps["tuned_eps"])
    for wide, narrow in (("width_map", "_map"), ("transfer", "")):
        for kind in ("narrow_moments", "narrow_compute"):
            part = sweeps[kind + narrow]
            assert {c.moment_dtype for c in part} == {"bfloat16"}
            widened = {
                dataclasses.replace(c, moment_dtype="float32", dtype="float32") for c in part
            }
            assert widened < set(sweeps[wide])
    assert {c.atan2_b for c in sweeps["constants"]} == {1.0, 2.0, 4.0}


def test_damping_at_a_step_counts_every_parameter():
    found = damping(planned("epsilon", "smoke").settings.base, [16, 32], 2, [1e-8, 1.0])
    counts, shares = found.filter(pl.col("eps").is_null()), found.drop_nulls("eps")
    assert counts["width"].unique().to_list() == [16, 32]
    assert set(shares.filter(eps=1.0)["share"]) == {1.0}
    assert (shares.filter(eps=1e-8)["share"] < 0.5).all()
