"""The stored runs nearest to a setting, and how they are described."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isolab.chapters import CHAPTERS
from isolab.lab.stored import Stored, differences, in_words
from isolab.training.config import RunConfig

START = CHAPTERS["transfer"].question.start


def frame(*runs: tuple[RunConfig, float], curve=None) -> pl.DataFrame:
    """Rows as isolab.run gives them, with these final losses."""
    names = "final_validation_loss", "diverged", "curve_step", "curve_validation_loss"
    rows = []
    for config, loss in runs:
        outcome = loss, math.isinf(loss), *(curve or ([0, config.steps], [5.5, loss]))
        rows.append(config.row() | dict(zip(names, outcome, strict=True)))
    kinds = dict.fromkeys(("b1", "b2", "eps", "weight_decay"), pl.Float64)
    return pl.DataFrame(rows, schema_overrides=kinds, infer_schema_length=None)


def at(**changes) -> RunConfig:
    return dataclasses.replace(START, **changes)


WIDTHS, RATES = (64, 96, 208), tuple(2.0**k for k in (-8, -6, -4, -2))
GRID = Stored(
    frame(*((at(width=w, learning_rate=r, seed=s), 2 + s / 10)
            for w in WIDTHS for r in RATES for s in (0, 1)))
)  # fmt: skip


@given(st.integers(1, 32).map(lambda k: 16 * k), st.floats(-14, 10).map(lambda k: 2.0**k))
def test_the_nearest_setting_is_shown_by_factors_of_width_and_rate(width, rate):
    near = GRID.nearest(at(width=width, learning_rate=rate))

    def far(cell):
        return abs(math.log2(cell["width"] / width)) + abs(math.log2(cell["learning_rate"] / rate))

    least = min(far({"width": w, "learning_rate": r}) for w in WIDTHS for r in RATES)
    assert far(near.cell.setting) == pytest.approx(least, abs=1e-9)  # of float64 logarithms
    shown = [near.line, *near.others]
    assert sorted(line.value for line in shown) == list(WIDTHS)
    assert [cell.setting["learning_rate"] for cell in near.line.cells] == sorted(RATES)
    away = differences(at(width=width, learning_rate=rate), near.cell.setting)
    assert ("width" in away) == (width not in WIDTHS)


def test_the_distance_is_told_with_its_factor_and_what_is_as_asked():
    asked = at(width=128, learning_rate=2**-6)
    assert in_words(asked, GRID.nearest(asked), "learning_rate") == (
        "Stored (dashed): width 96 instead of 128 (1.3x), learning rate 2^-6 as asked; 2 seeds,"
        " final loss 2.050."
    )
    asked = at(width=96, learning_rate=2**-6)
    assert "just what was asked" in in_words(asked, GRID.nearest(asked), "learning_rate")


@pytest.mark.parametrize(
    "change",
    [{"optimizer": "isoadam"}, {"parameterization": "ntk"}, {"corpus": "zipf_markov"},
     {"dtype": "bfloat16"}, {"gamma_hidden": 0.5}, {"b2": 0.9}],
    ids=str,
)  # fmt: skip
def test_another_kind_of_run_is_never_put_in_place(change):
    near = GRID.nearest(at(**change))
    assert near.cell is None and near.line is None
    assert "Nothing is stored" in in_words(at(**change), near, "learning_rate")


@pytest.mark.parametrize("change", [{"seed": 7}, {"evaluate_every": 50}, {"b2": 0.95}], ids=str)
def test_what_changes_no_run_changes_nothing(change):
    assert GRID.nearest(at(**change)) == GRID.nearest(START)


def test_at_the_base_width_every_rule_is_the_same_run():
    stored = Stored(frame((at(width=32, rate_rule="global"), 2.0), (at(), 2.5)))
    for rule in ("global", "full", "none"):
        asked = at(width=32, rate_rule=rule)
        assert stored.nearest(asked).cell.mean == 2.0
        assert differences(asked, stored.nearest(asked).cell.setting) == {}
    assert stored.nearest(at(width=32, eps_rule="per_layer")).cell.mean == 2.0
    assert stored.nearest(at(rate_rule="none")).cell.setting["width"] == 32
    stored = Stored(frame((at(rate_rule="global", base_width=64, width=48), 2.0)))
    asked = at(rate_rule="global", base_width=16, width=48)  # which plays no part there
    assert differences(asked, stored.nearest(asked).cell.setting) == {}


def test_seeds_are_gathered_and_the_first_of_a_seed_counts():
    runs = frame((at(seed=0), 2.0), (at(seed=1), math.inf), (at(seed=0, evaluate_every=100), 9.0))
    cell = Stored(runs).nearest(START).cell
    assert cell.losses == {0: 2.0, 1: math.inf}
    assert cell.diverged == 1 and cell.finite == [2.0] and math.isinf(cell.mean)
    assert "2 seeds, 1 diverged" in in_words(START, Stored(runs).nearest(START), "learning_rate")


def test_a_curve_is_the_mean_of_the_commonest_kind():
    fine = frame((at(seed=0), 2.0), curve=([0, 100, 200], [5.0, 3.0, 2.0]))
    coarse = frame((at(seed=1), 2.2), (at(seed=2), 2.4), curve=([0, 200], [5.0, 2.3]))
    steps, losses = Stored(pl.concat([fine, coarse])).nearest(START).cell.curve()
    assert steps == (0, 200)
    np.testing.assert_allclose(losses, [5.0, 2.3], rtol=1e-12)  # a mean of two equal numbers
    assert Stored(fine).nearest(START).cell.curve() == ((0, 100, 200), [5.0, 3.0, 2.0])


def test_a_single_run_nearby_is_the_curve_but_not_the_line():
    more = GRID.joined(frame((at(width=80, learning_rate=2**-5.5), 2.7)))
    asked = at(width=80, learning_rate=2**-5.5)
    near = more.nearest(asked)
    assert near.cell.mean == 2.7
    assert near.line.value == 96 and len(near.line.cells) == len(RATES)
    text = in_words(asked, near, "learning_rate")
    assert "just what was asked" in text and "Line at the right: width 96 instead of 80" in text


def test_lines_of_other_optimizers_are_shown_also_where_nothing_is_stored():
    runs = frame(*((at(optimizer=o, learning_rate=r), 2.0) for o in ("adam", "sgd") for r in RATES))
    stored = Stored(runs, line="optimizer")
    near = stored.nearest(at(optimizer="isoadam"))
    assert near.cell is None and [line.name for line in near.others] == ["Adam", "SGD"]
    assert [line.name for line in stored.nearest(START).others] == ["SGD"]


def test_along_eps_with_zero_below_all_and_optimizers_without_eps_flat():
    epsilons = [1e-3, 1e-8, 1e-20, 0.0]
    same = {"parameterization": "mean_field", "loss_scale": 2.0**-40}
    runs = frame(
        *((at(eps=e, **same), 2.0) for e in epsilons),
        *((at(eps=e, eps_rule="per_layer", **same), 2.1) for e in epsilons),
        (at(optimizer="adam_atan2", **same), 2.2),
        (at(optimizer="sgd", **same), 3.0),
    )
    stored = Stored(runs, x="eps", line="variant")
    near = stored.nearest(at(eps=1e-19, **same))
    assert near.cell.setting["eps"] == 1e-20
    assert [cell.setting["eps"] for cell in near.line.cells] == sorted(epsilons)
    assert [line.name for line in near.others] == ["Adam, eps per layer", "Adam-atan2"]
    assert stored.nearest(at(eps=0.0, **same)).cell.setting["eps"] == 0.0
    flat = stored.nearest(at(optimizer="adam_atan2", **same))
    assert flat.line.cells == (flat.cell,) and flat.cell.setting["eps"] is None


def test_no_runs_find_nothing_and_runs_without_their_columns_are_refused():
    assert Stored(pl.DataFrame()).nearest(START) == (None, None, ())
    with pytest.raises(ValueError, match="curve_step"):
        Stored(frame((START, 2.0)).drop("curve_step"))
