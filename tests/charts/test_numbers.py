"""Charts of curves, horizons, sizes and scores draw the numbers that the analysis gives."""

from __future__ import annotations

import itertools
import math

import numpy as np
import polars as pl
import pytest
from charts import samples
from charts.reading import drawn, spec_of, subtitle, titles
from charts.samples import BEST, BY, LAYERS, aligned, check, sweep, times, transfer

from isolab import charts
from isolab.analysis.optimum import at_best_rate
from isolab.analysis.power_law import fit_power_law
from isolab.analysis.ranking import ranking
from isolab.analysis.speedup import speedup
from isolab.measure.coordinates import slopes
from isolab.theory.tables import exponents


def test_curves_are_means_over_seeds_that_did_not_diverge():
    runs = samples.lost_curves()
    chart = charts.loss_curves(runs)
    means, dashed = drawn(chart, "line")
    finite = runs.filter(~pl.col("diverged") & (pl.col("optimizer") == "adam"))
    expected = np.mean(finite["curve_validation_loss"].to_list(), axis=0)
    found = [row["mean"] for row in means if row["optimizer"] == "adam"]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    band = next(row for row in means if row["optimizer"] == "adam" and row["step"] == 400)
    ends = [its[-1] for its in finite["curve_validation_loss"].to_list()]
    assert (band["low"], band["high"]) == (min(ends), max(ends))
    assert {row["seed"] for row in dashed} == {1}
    (crosses,) = drawn(chart, "point", strokeWidth=2.5)
    assert [(row["seed"], row["step"]) for row in crosses] == [(1, 400 - 4 * 20)]


def test_long_curves_are_thinned_and_keep_their_end():
    runs = at_best_rate(samples.with_curves(sweep(), points=4001), ["optimizer"])
    steps = pl.Series("curve_step", [list(range(4001))] * len(runs), dtype=pl.List(pl.Int32))
    (means,) = drawn(charts.loss_curves(runs.with_columns(steps)), "line")
    assert 2500 < len(means) <= 5000
    assert {row["optimizer"] for row in means if row["step"] == 4000} == set(BEST)


def test_fitted_curve_and_speedup_are_the_analysis_ones():
    runs = samples.horizons()
    adam, isoadam = (runs.filter(pl.col("optimizer") == name) for name in ("adam", "isoadam"))
    found = speedup(adam, isoadam)
    chart = charts.loss_vs_steps(runs, speedup=found)
    (curve,) = drawn(chart, "line")
    law = fit_power_law(found.horizons, found.losses)
    for row in curve:
        assert row["fitted"] == pytest.approx(float(law.loss(row["steps"])))
    ((rule,),) = drawn(chart, "rule")
    assert (rule["steps"], rule["to"]) == (400, pytest.approx(400 * found.value))
    # The rule ends on the curve.
    assert float(law.loss(rule["to"])) == pytest.approx(rule["loss"])
    assert f"{found.value:.2f}×" in subtitle(chart)
    few = runs.filter(pl.col("steps") <= 800)
    none = speedup(few.filter(pl.col("optimizer") == "adam"), isoadam)
    assert "No speedup: the challenger's loss" in subtitle(charts.loss_vs_steps(few, speedup=none))


def test_step_times_are_medians_and_ratios():
    spec = spec_of(charts.step_time(times()))
    for row in itertools.chain(*spec["datasets"].values()):
        over = {"adam": 1.0, "isoadam": 1.2, "muon": 1.3}[row["optimizer"]]
        assert row["ratio"] == pytest.approx(over)
        assert row["median"] == pytest.approx(over * row["width"] ** 1.5 / 500)
        assert row["low"] == pytest.approx(0.9 * row["median"])
        assert row["high"] == pytest.approx(1.2 * row["median"])
    assert len(spec["concat"]) == 2
    assert len(spec_of(charts.step_time(times().filter(optimizer="muon")))["concat"]) == 1


def test_changes_of_exactly_0_are_drawn_at_the_left_edge():
    chart = charts.invariance(samples.changes())
    ((zero,),) = drawn(chart, "point", shape="triangle-left")
    assert (zero["optimizer"], zero["draws"]) == ("adam_atan2", 2)
    (points,) = drawn(chart, "point", size=40)
    assert len(points) == 15 and min(row["change"] for row in points) > 0
    assert charts.invariance(samples.changes().filter(pl.col("relative_change") == 0)).to_dict()


def test_theory_draws_every_line_with_its_power():
    chart = charts.theory_rates(samples.THEORY)
    assert titles(chart) == ["standard; SGD", "standard; Adam", "muP; SGD", "muP; Adam"]
    names = {"full": "full alignment", "none": "no alignment"}
    rows = list(itertools.chain(*drawn(chart, "line", "muP; Adam")))
    for role, alignment in itertools.product(("embedding", "hidden", "readout"), names):
        which = {"parameterization": "mup", "rule": "adam", "role": role, "alignment": alignment}
        power = exponents().filter(**which)["power"].item()
        its = [row for row in rows if (row["role"], row["alignment"]) == (role, names[alignment])]
        assert [row["width"] for row in its] == [32, 128, 512]
        for row in its:
            assert row["factor"] == pytest.approx((row["width"] / 32) ** power)
            top, _, bottom = row["power"].replace("−", "-").partition("/")
            assert float(top) / float(bottom or 1) == pytest.approx(power)
    # each power is written once in a panel
    (texts, again) = drawn(chart, "text", "muP; Adam")
    assert texts == again
    assert sorted(row["power"] for row in texts) == ["0", "−1", "−1/2"]


def test_ranking_is_in_order_with_diverged_rules_last():
    gone = [("mup", 128, 2.0**k, 0) for k in range(-11, -3)]
    lower = pl.when(pl.col("rate_rule") == "full").then(0.5).otherwise(0.0)
    runs = transfer(gone=gone).with_columns(pl.col("final_validation_loss") - lower)
    frame = ranking(runs, BY)
    chart = charts.ranking(frame.sample(fraction=1, shuffle=True, seed=1))
    order = spec_of(chart)["layer"][0]["encoding"]["y"]["sort"]
    points, crosses = drawn(chart, "point")
    found = {row["name"]: row["value"] for row in points}
    assert [found[name] for name in order[:2]] == sorted(found.values())
    assert order[0] == "standard; per layer, full alignment"
    assert sorted(found.values()) == frame["loss"].filter(frame["loss"].is_finite()).to_list()
    assert {row["name"] for row in crosses} == set(order[2:])
    assert all(name.startswith("muP") for name in order[2:])
    (texts,) = drawn(chart, "text")
    assert [row["name"] for row in texts] == order
    assert texts[0]["text"].startswith(f"{min(found.values()):.3f} at ")
    assert texts[2]["text"] == "every rate diverged"


def test_regrets_are_drawn_with_their_intervals_and_infinite_ones_at_the_top():
    frame = pl.DataFrame(
        {"rate_rule": ["global", "global", "full", "full"], "width": [64, 128, 64, 128],
         "regret": [0.1, math.inf, 0.0, None], "regret_low": [0.05, None, 0.0, None],
         "regret_high": [0.2, None, 0.01, None], "note": ["", "diverged", "", "off the grid"]}
    )  # fmt: skip
    chart = charts.regrets(frame)
    points, crosses = drawn(chart, "point")
    assert sorted((row["width"], row["value"]) for row in points) == [(64, 0.0), (64, 0.1)]
    assert [(row["rate_rule"], row["width"]) for row in crosses] == [("one global rate", 128)]
    zero, bars = drawn(chart, "rule")
    assert zero == [{"value": 0.0}]
    assert sorted((row["low"], row["high"]) for row in bars) == [(0.0, 0.01), (0.05, 0.2)]
    assert len({row["at"] for row in points}) == 2  # side by side
    assert "1 not drawn: off the grid" in subtitle(chart)


def test_sizes_are_geometric_means_over_seeds_at_the_last_step():
    chart = charts.coordinates(check())
    assert titles(chart) == ["activation", "change since the start"]
    assert spec_of(chart)["title"]["text"].endswith("step 4")
    for panel, scale in (("activation", 1.0), ("change since the start", 0.1)):
        (rows,) = drawn(chart, "line", panel)
        assert len(rows) == 3 * len(LAYERS)
        for row in rows:
            at = scale * (row["width"] / 32) ** LAYERS[row["layer"]]
            assert row["size"] == pytest.approx(at * math.sqrt(2))
            assert (row["low"], row["high"]) == (pytest.approx(at), pytest.approx(2 * at))
    colours = spec_of(chart)["concat"][0]["layer"][0]["encoding"]["color"]["scale"]["domain"]
    assert colours == list(LAYERS)  # in the order of the calls, not of the alphabet


def test_zero_and_lost_sizes_are_at_the_edges():
    layer, width, size = pl.col("layer"), pl.col("width"), pl.col("activation_rms")
    zero = (layer == "logits") & (width == 64)
    lost = (layer == "embedding") & (width == 256) & (pl.col("seed") == 1)
    frame = check().with_columns(pl.when(zero).then(0.0).when(lost).then(math.nan).otherwise(size)
                                 .alias("activation_rms"))  # fmt: skip
    chart = charts.coordinates(frame)
    zeros, crosses = drawn(chart, "point", "activation", size=45)
    assert [(row["layer"], row["width"]) for row in zeros] == [("logits", 64)]
    assert [(row["layer"], row["width"]) for row in crosses] == [("embedding", 256)]
    (rows,) = drawn(chart, "line", "activation")
    at = {(row["layer"], row["width"]) for row in rows}
    assert not at & {("logits", 64), ("embedding", 256)} and len(at) == 10
    assert "bottom edge: 0" in subtitle(chart) and "top edge: not finite" in subtitle(chart)


def test_steps_are_panels_and_nothing_has_changed_before_the_first():
    chart = charts.coordinates(check(), columns="step")
    kinds = itertools.product(("activation", "change since the start"), (0, 1, 4))
    assert titles(chart) == [f"{what}; step {step}" for what, step in kinds]
    assert drawn(chart, "text", "change since the start; step 0") == [[{"text": "no rows"}]]


def test_slopes_are_drawn_in_the_order_of_the_layers_with_their_intervals():
    found = slopes(check()).filter(step=4)
    chart = charts.coordinate_slopes(slopes(check()))
    (points,) = drawn(chart, "point", "activation")
    assert {row["layer"]: round(row["value"], 6) for row in points} == LAYERS
    zero, bars = drawn(chart, "rule", "activation")
    assert zero == [{"value": 0.0}]
    its = found.filter(quantity="activation").sort("order")
    assert [row["low"] for row in bars] == pytest.approx(its["slope_low"].to_list())
    assert [row["high"] for row in bars] == pytest.approx(its["slope_high"].to_list())
    y = spec_of(chart)["concat"][0]["layer"][1]["encoding"]["y"]
    assert y["sort"] == y["scale"]["domain"] == list(LAYERS)


def test_a_layer_without_a_slope_says_why_and_one_seed_has_no_bar():
    lost = pl.when(pl.col("layer") == "logits").then(0.0).otherwise("activation_rms")
    chart = charts.coordinate_slopes(slopes(check(seeds=(0,)).with_columns(activation_rms=lost)))
    assert "logits, activation: no slope: at width 32, seed 0, it is 0" in subtitle(chart)
    assert len(drawn(chart, "point", "activation")[0]) == 3
    assert drawn(chart, "rule", "activation") == [[{"value": 0.0}]]


def test_alignments_are_means_with_bands_over_what_is_not_named():
    frame = aligned()
    chart = charts.alignment(frame, rows="layer")
    assert titles(chart)[:2] == ["a; weights", "a; change of the weights"]
    (line,) = drawn(chart, "line", "z; weights")
    first = next(row for row in line if (row["width"], row["step"]) == (32, 0))
    assert (first["mean"], first["values"]) == (pytest.approx(0.53), 3)
    assert (first["low"], first["high"]) == (pytest.approx(0.52), pytest.approx(0.54))
    roles = charts.alignment(frame)
    (line,) = drawn(roles, "line", "hidden; weights")
    first = next(row for row in line if (row["width"], row["step"]) == (32, 0))
    assert (first["mean"], first["values"]) == (pytest.approx(0.52), 6)
    assert [{"mean": 0.5}, {"mean": 1.0}] in drawn(roles, "rule")
    said = subtitle(charts.alignment(aligned(lost={("a", 100)})))
    assert "18 values are not finite" in said  # 2 widths, 3 seeds, 3 kinds


@pytest.mark.parametrize(
    ("steps", "kind"), [((0, 1, 2, 5, 10, 100), "symlog"), ((0, 50, 100), None)]
)
def test_steps_that_crowd_at_the_start_have_a_log_axis(steps, kind):
    chart = charts.alignment(aligned(steps))
    x = spec_of(chart)["concat"][0]["layer"][1]["encoding"]["x"]
    assert (x["scale"].get("type"), x["scale"]["domain"]) == (kind, [0, 100])
