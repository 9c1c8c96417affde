"""Charts of rate sweeps draw the numbers that the analysis gives, and lose no run."""

from __future__ import annotations

import math

import polars as pl
import pytest
from charts.reading import drawn, spec_of, subtitle, titles
from charts.samples import BEST, BY, RATES, best, both_transfers, fitted, sweep, transfer
from hypothesis import given, settings
from hypothesis import strategies as st

from isolab import charts
from isolab.analysis.optimum import optimum
from isolab.charts.theme import NAMES


def edge_marks(chart, panel=None):
    """What is drawn at the top edge: rows with their seeds apart."""
    rows = [r for its in drawn(chart, "point", panel) for r in its if "at the top edge" in r]
    return [row | {"seed": int(seed)} for row in rows for seed in row["seeds"].split(", ")]


@given(
    st.dictionaries(
        st.sampled_from(list(charts.OPTIMIZER_COLOURS)),
        st.tuples(st.floats(-9, -3.5), st.floats(0.5, 3)),
        min_size=1,
        max_size=4,
    )
)
@settings(max_examples=20, deadline=None)
def test_the_diamond_lies_at_the_best_rate_and_is_hollow_at_an_edge(lowest):
    runs = sweep(lowest)
    chart = charts.loss_vs_rate(runs)
    diamonds = {
        row["optimizer"]: row | {"filled": filled}
        for filled in (True, False)
        for rows in drawn(chart, "point", shape="diamond", filled=filled)
        for row in rows
    }
    assert diamonds.keys() == lowest.keys()
    for name, row in diamonds.items():
        found = optimum(runs.filter(pl.col("optimizer") == name))
        assert (row["learning_rate"], row["loss"]) == (found.rate, found.loss)
        assert row["label"].startswith(f"{found.rate:.2g}")
        assert ("edge" in row["label"]) == (found.edge is not None) == (not row["filled"])
        assert row["low"] <= row["learning_rate"] <= row["high"]
        assert row["low"] >= min(RATES) and row["high"] <= max(RATES)


GRID = [2.0**k for k in range(-11, -3)]
RUNS = st.tuples(
    st.sampled_from(["standard", "mup"]),
    st.sampled_from((32, 64, 128)),
    st.sampled_from(GRID),
    st.integers(0, 1),
)


@given(st.sets(RUNS, max_size=60))
@settings(max_examples=12, deadline=None)
def test_every_run_is_drawn_once_in_its_panel_and_diverged_ones_at_its_top(gone):
    runs = transfer(rules=("global",), gone=gone)
    chart = charts.loss_by_width(runs, *BY)
    key = ("width", "learning_rate", "seed")
    for p, name in (("standard", "standard"), ("mup", "muP")):
        title = f"{name}; one global rate"
        points = [r for rows in drawn(chart, "point", title, size=24) for r in rows]
        marks = edge_marks(chart, title)
        its = runs.filter(parameterization=p, rate_rule="global")
        found = [tuple(row[k] for k in key) for row in [*points, *marks]]
        assert sorted(found) == sorted(its.select(key).rows())
        lost = {tuple(m[k] for k in key) for m in marks if m["at the top edge"] == "diverged"}
        assert lost == {run[1:] for run in gone if run[0] == p}
        means = [r for rows in drawn(chart, "line", title) for r in rows if "segment" in r]
        whole = set(its.select(key[:2]).rows()) - {run[:2] for run in lost}
        assert {tuple(row[k] for k in key[:2]) for row in means} == whole


def test_a_line_breaks_where_a_seed_diverged():
    chart = charts.loss_vs_rate(sweep({"adam": BEST["adam"]}, gone=(("adam", 0.02, 1),)))
    (means,) = drawn(chart, "line")
    segments = {row["learning_rate"]: row["segment"] for row in means}
    assert segments[0.001] == segments[0.01] != segments[0.04] == segments[0.16]


def test_a_run_far_above_does_not_flatten_the_rest():
    high = (pl.col("learning_rate") == 0.16) & (pl.col("optimizer") == "adam")
    loss = "final_validation_loss"
    chart = charts.loss_vs_rate(
        sweep().with_columns(pl.when(high).then(50.0).otherwise(loss).alias(loss))
    )
    above = [m for m in edge_marks(chart) if m["at the top edge"] == "above the axis"]
    assert {("adam", 0.16)} <= {(m["optimizer"], m["learning_rate"]) for m in above}
    assert max(spec_of(chart)["layer"][0]["encoding"]["y"]["scale"]["domain"]) < 5


def test_a_sweep_without_a_best_rate_says_so():
    said = subtitle(charts.loss_vs_rate(sweep().filter(pl.col("learning_rate") < 0.005)))
    assert "No best rate for muon: " in said and "at least 3 rates" in said
    every = tuple((name, rate, 0) for name in BEST for rate in RATES)
    assert "has a seed that diverged" in subtitle(charts.loss_vs_rate(sweep(gone=every)))


def test_labels_of_close_optima_do_not_overlap():
    spec = spec_of(charts.loss_vs_rate(sweep({"adam": (-5.0, 1.5), "muon": (-5.0, 1.5)}, seeds=2)))
    heights = {
        row["optimizer"]: layer["mark"]["dy"]
        for layer in spec["layer"]
        if layer["mark"]["type"] == "text"
        for row in spec["datasets"][layer["data"]["name"]]
    }
    assert abs(heights["adam"] - heights["muon"]) >= 12


def test_panels_share_their_axes_and_a_missing_one_says_so():
    missing = (pl.col("parameterization") == "mup") & (pl.col("rate_rule") == "full")
    chart = charts.loss_by_width(transfer().filter(~missing), *BY)
    assert titles(chart)[-1] == "muP; per layer, full alignment"
    assert drawn(chart, "text", titles(chart)[-1]) == [[{"text": "no rows"}]]
    for axis in "xy":
        domains = {
            tuple(layer["encoding"][axis]["scale"]["domain"])
            for panel in spec_of(chart)["concat"]
            for layer in panel["layer"]
            if layer.get("encoding", {}).get(axis, {}).get("scale")
        }
        assert len(domains) == 1


def test_widths_of_two_origins_are_shades_of_blue_and_orange():
    chart = charts.loss_by_width(both_transfers(), *BY)
    dashed, solid = drawn(chart, "line", "muP; one global rate", strokeWidth=2)
    assert [{row["origin"] for row in its} for its in (dashed, solid)] == [{"reference"}, {"yours"}]
    scale = spec_of(chart)["concat"][0]["layer"][0]["encoding"]["color"]["scale"]
    shades = dict(zip(scale["domain"], scale["range"], strict=True))
    assert list(shades) == ["32", "64", "128", "32, yours", "48, yours", "64, yours"]
    assert len(set(shades.values())) == 6
    for name, shade in shades.items():
        red, blue = int(shade[1:3], 16), int(shade[5:7], 16)
        assert (red > blue) == name.endswith("yours")
    one = transfer().with_columns(origin=pl.lit("reference"))
    assert "Dashed" not in subtitle(charts.loss_by_width(one, *BY))


def test_lines_are_the_fit_and_the_theory():
    runs = transfer(("mup",))
    laws = fitted(runs).with_columns(exponent_high=math.inf)
    chart = charts.best_rate_vs_width(best(runs), laws)
    fits, dotted = drawn(chart, "line")
    ((points,), (texts, _)) = (drawn(chart, mark) for mark in ("point", "text"))
    for law in laws.iter_rows(named=True):
        name = NAMES["rate_rule"][law["rate_rule"]]
        of_rates, of_fits, of_theory, of_texts = (
            {row["width"]: row for row in rows if row["rate_rule"] == name}
            for rows in (points, fits, dotted, texts)
        )
        assert list(of_rates) == list(of_fits) == list(of_theory) == [32, 64, 128]
        for width in of_rates:
            fit = 2.0 ** (law["intercept"] + law["exponent"] * math.log2(width))
            theory = of_rates[32]["rate"] * (width / 32) ** law["theory"]
            assert of_fits[width]["rate"] == pytest.approx(fit)
            assert of_theory[width]["rate"] == pytest.approx(theory)
        text = of_texts[32]["text"].replace("−", "-")
        assert float(text.split()[0]) == pytest.approx(law["exponent"], abs=0.00501)
        assert text.endswith(f"open], theory {law['theory']:.0f}")


def test_texts_of_exponents_do_not_overlap():
    chart = charts.best_rate_vs_width(
        best(transfer()), fitted(transfer()), columns="parameterization"
    )
    for panel in spec_of(chart)["concat"]:
        at = [r["pixel"] for rows in drawn(chart, "text", panel["title"]["text"]) for r in rows]
        assert len(at) == 4 and len(set(at)) == 2
        assert max(at) <= panel["height"] and max(at) - min(at) >= 14


def test_a_best_rate_at_an_edge_is_a_triangle_and_a_lost_one_is_named():
    runs = transfer(widths=(32, 64, 128, 4096), gone=[("mup", 128, rate, 0) for rate in GRID])
    chart = charts.best_rate_vs_width(best(runs), fitted(runs), columns="parameterization")
    (down,) = drawn(chart, "point", "standard", shape="triangle-down")
    assert [(row["width"], row["rate"]) for row in down] == [(4096, GRID[0])]
    assert "lowest (down)" in subtitle(chart)
    assert "muP, one global rate, width 128: all diverged" in subtitle(chart)
    assert 128 not in {row["width"] for rows in drawn(chart, "point", "muP") for row in rows}


def test_open_intervals_reach_the_frame_and_closed_ones_do_not():
    frame = pl.DataFrame(
        {"rate_rule": "full", "width": [32, 64, 128, 256], "rate": [0.02, 0.02, 0.02, 0.02],
         "rate_low": [0.01, 0.0, 0.01, 0.0], "rate_high": [0.03, 0.03, math.inf, math.inf],
         "edge": [None] * 4},
        schema_overrides={"edge": pl.String},
    )  # fmt: skip
    chart = charts.best_rate_vs_width(frame, fitted(transfer(("mup",), ("full",))))
    (bars,) = drawn(chart, "rule")
    (points,) = drawn(chart, "point")
    low, high = spec_of(chart)["layer"][0]["encoding"]["y"]["scale"]["domain"]
    ends = {row["width"]: (row["low"], row["high"]) for row in bars}
    expected = {32: (0.01, 0.03), 64: (low, 0.03), 128: (0.01, high)}
    assert ends.keys() == expected.keys()  # 256 is open at both ends: no bar
    for width, (a, b) in expected.items():
        assert ends[width] == (pytest.approx(a), pytest.approx(b))
    said = {row["width"]: row["rates"] for row in points}
    assert said[64] == "below the grid to 0.03" and said[256] == "none"
    assert "goes on beyond" in subtitle(chart)


def test_six_thousand_runs_are_thinned_and_told():
    runs = transfer(("mup",), ("full",), widths=(64,), seeds=750)
    chart = charts.loss_vs_rate(runs.with_columns(optimizer=pl.lit("adam")))
    points = drawn(chart, "point")
    assert len(runs) == 6000 and max(map(len, points)) == 5000
    assert "5,000 of 5,250 points are drawn." in subtitle(chart)
