"""Charts of learning-rate transfer draw the numbers of the analysis, and lose no run."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isolab import charts
from isolab.analysis.exponent import exponents
from isolab.analysis.optimum import optima
from isolab.analysis.ranking import ranking
from isolab.analysis.regret import regrets, sensitivities
from isolab.charts import renderer
from isolab.charts.picture import size
from isolab.theory import tables

RATES = tuple(2.0**k for k in range(-11, -3))
BY = ["parameterization", "rate_rule"]
POWERS = {"global": -1.0, "full": 0.0, "none": -0.5}


def sweep(
    parameterizations=("standard", "mup"),
    rules=("global", "full"),
    widths=(32, 64, 128),
    gone=(),
    seeds=2,
    origin=None,
    shift=0.0,
):
    """A rate sweep over widths: parabolas in log2(rate) whose lowest points move as a power."""
    rng = np.random.default_rng(0)
    rows = []
    for p, rule, width, rate, seed in itertools.product(
        parameterizations, rules, widths, RATES, range(seeds)
    ):
        away = math.log2(rate) + 6 - shift - POWERS[rule] * math.log2(width / 64)
        loss = 2 + 16 / width + 0.03 * away**2 + 0.005 * rng.normal()
        row = {
            "parameterization": p,
            "rate_rule": rule,
            "width": width,
            "learning_rate": rate,
            "seed": seed,
            "final_validation_loss": math.inf if (p, width, rate, seed) in gone else loss,
        }
        rows.append(row | ({"origin": origin} if origin else {}))
    return pl.DataFrame(rows)


def both():
    """Reference runs, and a reader's at two of their widths and another one."""
    return pl.concat(
        [sweep(origin="reference"), sweep(widths=(32, 48, 64), origin="yours", shift=0.5)]
    )


def best(runs, by=BY):
    return optima(runs, [*by, "width"], resamples=50)


def fitted(runs, by=BY):
    found = exponents(runs, by, resamples=50)
    return found.with_columns(theory=pl.col("rate_rule").replace_strict(POWERS))


def lines():
    return tables.rate_lines([32, 128, 512], 32, ["mup", "standard"], ["adam", "sgd"])


GONE = tuple(("mup", 128, rate, seed) for rate, seed in ((RATES[-1], 0), (RATES[-1], 1)))
EVERY = {
    "theory_rates": lambda: charts.theory_rates(lines()),
    "loss_by_width": lambda: charts.loss_by_width(
        sweep(gone=GONE), rows="parameterization", columns="rate_rule"
    ),
    "loss_by_width origins": lambda: charts.loss_by_width(
        both(), rows="parameterization", columns="rate_rule"
    ),
    "loss_by_width one panel": lambda: charts.loss_by_width(sweep(("mup",), ("full",))),
    "best_rate_vs_width": lambda: charts.best_rate_vs_width(
        best(sweep()), fitted(sweep()), columns="parameterization"
    ),
    "best_rate_vs_width origins": lambda: charts.best_rate_vs_width(
        best(both(), [*BY, "origin"]),
        fitted(both(), [*BY, "origin"]),
        rows="rate_rule",
        columns="parameterization",
        color="origin",
    ),
    "ranking": lambda: charts.ranking(ranking(sweep(gone=GONE), BY, resamples=50)),
    "regrets": lambda: charts.regrets(
        regrets(both(), [*BY, "origin"], resamples=50), columns="parameterization"
    ),
    "sensitivities": lambda: charts.sensitivities(
        sensitivities(sweep(("mup",), gone=GONE), BY, resamples=50)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EVERY)
def test_every_chart_is_strict_json_with_titles_and_is_drawn_by_both_vega_lites(name):
    import vl_convert

    chart = EVERY[name]()
    spec = chart.to_dict()
    json.dumps(spec, allow_nan=False)
    for rows in spec["datasets"].values():
        assert 0 < len(rows) <= 5000
        assert not {"nan", "inf", "-inf", "NaN"} & {str(v) for row in rows for v in row.values()}
    assert spec["title"]["text"] and spec["title"]["subtitle"]
    panels = spec.get("concat", [spec])
    for axis in "xy" if name != "ranking" else "x":
        titles = [
            layer["encoding"][axis].get("title")
            for panel in panels
            for layer in panel["layer"]
            if "type" in layer["encoding"].get(axis, {})
        ]
        assert any(titles)
    bundle, _ = renderer.offline_bundle(spec, png=False)
    live = bundle[renderer.VEGALITE_MIME]
    # The oldest that vl-convert has; JupyterLab's own is 5.6.
    assert min(size(vl_convert.vegalite_to_png(live, vl_version="5.8"))) > 200


def test_theory_draws_every_line_with_its_power(drawn, titles):
    chart = charts.theory_rates(lines())
    assert titles(chart) == ["standard; SGD", "standard; Adam", "muP; SGD", "muP; Adam"]
    table = tables.exponents()
    names = {"full": "full alignment", "none": "no alignment"}
    rows = list(itertools.chain(*drawn(chart, "line", "muP; Adam")))
    for role, alignment in itertools.product(("embedding", "hidden", "readout"), ("full", "none")):
        ((power,),) = (
            table.filter(parameterization="mup", rule="adam", role=role, alignment=alignment)
            .select("power")
            .rows()
        )
        its = [row for row in rows if (row["role"], row["alignment"]) == (role, names[alignment])]
        assert [row["width"] for row in its] == [32, 128, 512]
        for row in its:
            assert row["factor"] == pytest.approx((row["width"] / 32) ** power)
            assert _number(row["power"]) == pytest.approx(power)
    # each power is written once in a panel
    (texts, again) = drawn(chart, "text", "muP; Adam")
    assert texts == again
    assert sorted(row["power"] for row in texts) == ["0", "−1", "−1/2"]


def _number(text):
    top, _, bottom = text.replace("−", "-").partition("/")
    return float(top) / float(bottom or 1)


@given(
    st.sets(
        st.tuples(
            st.sampled_from(["standard", "mup"]),
            st.sampled_from((32, 64, 128)),
            st.sampled_from(RATES),
            st.integers(0, 1),
        ),
        max_size=30,
    )
)
@settings(max_examples=8, deadline=None)
def test_every_run_is_drawn_once_and_diverged_ones_at_the_top(drawn, gone):
    runs = sweep(rules=("global",), gone=gone)
    chart = charts.loss_by_width(runs, rows="parameterization", columns="rate_rule")
    for p, name in (("standard", "standard"), ("mup", "muP")):
        title = f"{name}; one global rate"
        points = drawn(chart, "point", title)
        inside = [(r["width"], r["learning_rate"], r["seed"]) for r in points[0]]
        marks = [row for rows in points[1:] for row in rows if "at the top edge" in row]
        lost = {
            (row["width"], row["learning_rate"], int(seed)): row["at the top edge"]
            for row in marks
            for seed in row["seeds"].split(", ")
        }
        its = runs.filter(parameterization=p, rate_rule="global")
        assert sorted([*inside, *lost]) == sorted(
            its.select("width", "learning_rate", "seed").rows()
        )
        told = {key for key, kind in lost.items() if kind == "diverged"}
        assert told == {key[1:] for key in gone if key[0] == p}


def test_diamonds_are_the_optima_and_hollow_at_an_edge(drawn):
    runs = sweep(widths=(32, 64, 4096))
    chart = charts.loss_by_width(runs, rows="parameterization", columns="rate_rule")
    (hollow,) = drawn(chart, "point", "muP; one global rate", shape="diamond", filled=False)
    (filled,) = drawn(chart, "point", "muP; one global rate", shape="diamond", filled=True)
    found = best(runs).filter(parameterization="mup", rate_rule="global")
    for row in [*hollow, *filled]:
        its = found.row(by_predicate=pl.col("width") == row["width"], named=True)
        assert (row["learning_rate"], row["loss"]) == (its["rate"], its["loss"])
        assert row["edge"] == its["edge"]
    assert (
        {row["width"] for row in hollow}
        == set(found.filter(pl.col("edge") == "low")["width"])
        != set()
    )
    assert (
        {row["width"] for row in filled}
        == set(found.filter(pl.col("edge").is_null())["width"])
        != set()
    )


def test_panels_share_their_axes_and_a_missing_one_says_so(drawn, titles, spec_of):
    runs = sweep().filter((pl.col("parameterization") != "mup") | (pl.col("rate_rule") != "full"))
    chart = charts.loss_by_width(runs, rows="parameterization", columns="rate_rule")
    assert titles(chart)[-1] == "muP; per layer, full alignment"
    assert drawn(chart, "text", titles(chart)[-1]) == [[{"text": "no rows"}]]
    for axis in "xy":
        domains = {
            tuple(layer["encoding"][axis]["scale"]["domain"])
            for panel in spec_of(chart)["concat"]
            for layer in panel["layer"]
            if "scale" in layer.get("encoding", {}).get(axis, {})
        }
        assert len(domains) == 1


def test_origins_are_told_apart_by_colour_dash_and_fill(drawn, subtitle, spec_of):
    chart = charts.loss_by_width(both(), rows="parameterization", columns="rate_rule")
    dashed, solid = drawn(chart, "line", "muP; one global rate", strokeWidth=2)
    assert {row["origin"] for row in dashed} == {"reference"}
    assert {row["origin"] for row in solid} == {"yours"}
    layer = spec_of(chart)["concat"][0]["layer"]
    assert layer[0]["mark"]["strokeDash"] and "strokeDash" not in layer[1]["mark"]
    scale = layer[0]["encoding"]["color"]["scale"]
    shades = dict(zip(scale["domain"], scale["range"], strict=True))
    assert list(shades) == ["32", "64", "128", "32, yours", "48, yours", "64, yours"]
    assert len(set(shades.values())) == 6
    for name, shade in shades.items():
        red, blue = int(shade[1:3], 16), int(shade[5:7], 16)
        assert (red > blue) == name.endswith("yours")
    assert "Dashed and hollow: reference" in subtitle(chart)
    one = sweep(origin="reference")
    assert "Dashed" not in subtitle(charts.loss_by_width(one, "parameterization", "rate_rule"))


@given(
    st.lists(st.tuples(st.floats(-1.5, 0.5), st.floats(-8, -4)), min_size=1, max_size=3),
    st.sampled_from([-1.0, -0.5, 0.0, None]),
)
@settings(max_examples=10, deadline=None)
def test_lines_are_the_fit_and_the_theory(drawn, laws, by_theory):
    widths = (32, 64, 256)
    frame = pl.DataFrame(
        [
            {"rule": f"r{i}", "width": n, "rate": 2.0 ** (start + slope * math.log2(n / 32) + 0.1)}
            for i, (slope, start) in enumerate(laws)
            for n in widths
        ]
    ).with_columns(rate_low=pl.col("rate") / 2, rate_high=math.inf, edge=pl.lit(None, pl.String))
    powers = pl.DataFrame(
        [
            {"rule": f"r{i}", "exponent": slope, "exponent_low": slope - 0.1,
             "exponent_high": math.inf, "intercept": start - 5 * slope, "theory": by_theory}
            for i, (slope, start) in enumerate(laws)
        ],
        schema_overrides={"theory": pl.Float64},
    )  # fmt: skip
    chart = charts.best_rate_vs_width(frame, powers, color="rule")
    fits, dotted = drawn(chart, "line")
    for i, (slope, start) in enumerate(laws):
        first, last = (row["rate"] for row in fits if row["rule"] == f"r{i}")
        assert first == pytest.approx(2.0**start)
        assert math.log2(last / first) == pytest.approx(3 * slope, abs=1e-9)
        expected = (
            []
            if by_theory is None
            else [2.0 ** (start + 0.1), 2.0 ** (start + 0.1 + 3 * by_theory)]
        )
        assert [row["rate"] for row in dotted if row["rule"] == f"r{i}"] == pytest.approx(expected)
    texts = [rows[0]["text"] for rows in drawn(chart, "text")[::2]]
    assert len(texts) == len(laws)
    for text, (slope, _) in zip(texts, laws, strict=True):
        assert float(text.split()[0].replace("−", "-")) == pytest.approx(slope, abs=0.00501)
        assert "open]" in text and ("theory" in text) == (by_theory is not None)
    # texts stand below every point: 15 pixels a line, within the panel
    (points,) = drawn(chart, "point")
    assert len(points) == 3 * len(laws)
    assert {row["width"] for row in points} == set(widths)


def test_texts_of_exponents_do_not_overlap():
    spec = charts.best_rate_vs_width(
        best(sweep()), fitted(sweep()), columns="parameterization"
    ).to_dict()
    for panel in spec["concat"]:
        at = [
            layer["encoding"]["y"]["value"]
            for layer in panel["layer"]
            if layer["mark"].get("type") == "text"
        ]
        assert len(at) == 4 and len(set(at)) == 2
        assert max(at) <= panel["height"] and max(at) - min(at) >= 14


def test_a_best_rate_at_an_edge_is_a_triangle_and_a_lost_one_is_named(drawn, subtitle):
    gone = [("mup", 128, rate, 0) for rate in RATES]
    runs = sweep(widths=(32, 64, 128, 4096), gone=gone)
    chart = charts.best_rate_vs_width(best(runs), columns="parameterization", color="rate_rule")
    (down,) = drawn(chart, "point", "standard", shape="triangle-down")
    assert [(row["width"], row["rate"]) for row in down] == [(4096, RATES[0])]
    assert "lowest (down)" in subtitle(chart)
    assert "muP, one global rate, width 128: all diverged" in subtitle(chart)
    assert 128 not in {row["width"] for rows in drawn(chart, "point", "muP") for row in rows}


def test_open_intervals_reach_the_frame_and_closed_ones_do_not(drawn, subtitle, spec_of):
    frame = pl.DataFrame(
        {"rate_rule": "full", "width": [32, 64, 128, 256], "rate": [0.02, 0.02, 0.02, 0.02],
         "rate_low": [0.01, 0.0, 0.01, 0.0], "rate_high": [0.03, 0.03, math.inf, math.inf],
         "edge": [None] * 4},
        schema_overrides={"edge": pl.String},
    )  # fmt: skip
    chart = charts.best_rate_vs_width(frame)
    (bars,) = drawn(chart, "rule")
    (points,) = drawn(chart, "point")
    spec = spec_of(chart)["concat"][0]["layer"]
    (low, high) = next(
        layer["encoding"]["y"]["scale"]["domain"]
        for layer in spec
        if "scale" in layer["encoding"].get("y", {})
    )
    ends = {row["width"]: (row["low"], row["high"]) for row in bars}
    expected = {32: (0.01, 0.03), 64: (low, 0.03), 128: (0.01, high)}
    assert ends.keys() == expected.keys()  # 256 is open at both ends: no bar
    for width, (a, b) in expected.items():
        assert ends[width] == (pytest.approx(a), pytest.approx(b))
    said = {row["width"]: row["rates"] for row in points}
    assert said[64] == "below the grid to 0.03" and said[256] == "none"
    assert "goes on beyond" in subtitle(chart)


def test_ranking_is_in_order_with_diverged_rules_last(drawn):
    gone = [("mup", 128, rate, 0) for rate in RATES]
    lower = pl.when(pl.col("rate_rule") == "full").then(0.5).otherwise(0.0)
    runs = sweep(gone=gone).with_columns(pl.col("final_validation_loss") - lower)
    frame = ranking(runs, BY, resamples=50)
    chart = charts.ranking(frame.sample(fraction=1, shuffle=True, seed=1))
    order = chart.to_dict()["layer"][0]["encoding"]["y"]["sort"]
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


def test_regrets_are_drawn_with_their_intervals_and_infinite_ones_at_the_top(drawn, subtitle):
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


def test_sensitivities_have_a_panel_for_each_factor(drawn, titles):
    frame = sensitivities(sweep(), BY, factors=(2, 4), resamples=50)
    chart = charts.sensitivities(frame.filter(parameterization="mup"))
    assert titles(chart) == ["factor 2", "factor 4"]
    (points,) = drawn(chart, "point", "factor 4")
    its = frame.filter(pl.col("increase").is_finite(), parameterization="mup", factor=4.0)
    assert sorted(row["value"] for row in points) == sorted(its["increase"])


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: charts.loss_by_width(sweep().drop("seed")), r"missing columns \['seed'\]"),
        (lambda: charts.loss_by_width(sweep().clear()), "no rows"),
        (lambda: charts.loss_by_width(sweep()), "4 runs share"),
        (lambda: charts.loss_by_width(sweep(), "width", "width"), "both 'width'"),
        (
            lambda: charts.loss_by_width(sweep(origin="mine"), "parameterization", "rate_rule"),
            r"unknown origin 'mine'; known: \['reference', 'yours'\]",
        ),
        (
            lambda: charts.best_rate_vs_width(best(sweep()), columns="parameterization", color="x"),
            r"missing columns \['x'\]",
        ),
        (lambda: charts.best_rate_vs_width(best(sweep())), "2 runs share"),
        (
            lambda: charts.best_rate_vs_width(
                best(sweep()).with_columns(rate=pl.lit(None, pl.Float64)), None, "parameterization"
            ),
            "no row has a rate",
        ),
        (lambda: charts.ranking(ranking(sweep(), BY, resamples=50).with_columns(
            width=pl.Series([32, 64, 64, 64]))), r"one width, the frame has \[32, 64\]"),
        (lambda: charts.regrets(regrets(sweep(), BY, resamples=50)), "2 runs share"),
        (
            lambda: charts.theory_rates(lines().with_columns(factor=0.0)),
            "factor must be finite and above 0, got 0",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_refused(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()
