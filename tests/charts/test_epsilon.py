"""Charts of eps: maps that lose no cell, gradients, second moments and the update function."""

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
from isolab.analysis.epsilon import eps_lines
from isolab.charts import renderer
from isolab.charts.picture import size
from isolab.measure.gradients import SecondMoment, damped_shares, gradient_exponents, root_histogram
from isolab.theory.update_function import update_function
from isolab.training.config import RunConfig

EPSILONS = (1e-2, 1e-4, 1e-8, 1e-20, 0.0)
WIDTHS = (32, 64, 128)
ROLES = ("embedding", "hidden", "readout", "vector")


def cells(over="width", values=WIDTHS, lost=(), epsilons=EPSILONS):
    """A map of Adam with two rules of eps, and of Adam-atan2; ``lost``: (variant, eps, value)."""
    rows = [
        {"variant": variant, "eps": eps, over: value, "loss": 2.0 + i / 4 + 0.3 * j}
        for variant in ("adam", "adam, eps per layer")
        for (i, eps), (j, value) in itertools.product(enumerate(epsilons), enumerate(values))
    ]
    rows += [{"variant": "adam_atan2", "eps": None, over: value, "loss": 2.0} for value in values]
    for row in rows:
        gone = (row["variant"], row["eps"], row[over]) in lost
        row |= {"seeds": 3, "diverged": int(gone), "loss": math.inf if gone else row["loss"]}
    return pl.DataFrame(rows, infer_schema_length=None)


def gradients(names=("standard", "mean_field"), widths=(32, 64, 256), seeds=(0, 1)):
    return pl.DataFrame(
        [
            {
                "parameterization": name, "step": 0, "role": role, "width": n, "seed": s,
                "gradient_rms": 1e-3 * 2.0**s * 3.0**-i * n ** (-0.9 if role == "hidden" else -0.1),
            }
            for name, n, s in itertools.product(names, widths, seeds)
            for i, role in enumerate(ROLES)
        ]
    )  # fmt: skip


def moments():
    rng = np.random.default_rng(0)
    return [
        SecondMoment(
            RunConfig(width=width), role,
            np.sort(np.float32(np.append(10 ** rng.normal(-4, 1, 200) / width, [0.0] * zeros))),
        )
        for width in (32, 64)
        for role, zeros in (("embedding", 50), ("hidden", 0))
    ]  # fmt: skip


def lines(over="width", widths=(32, 64, 256)):
    its = gradients(("mean_field",), widths)
    if over == "width":
        return eps_lines(its, base_width=32)
    return eps_lines(its, 32, width=64, loss_scales=[1.0, 2.0**-20, 2.0**-60])


SCALES = (1.0, 2.0**-20, 2.0**-60)
EVERY = {
    "loss_by_eps": lambda: charts.loss_by_eps(
        cells(lost=[("adam", 0.0, 128)]), lines=lines(widths=WIDTHS)
    ),
    "loss_by_eps scale": lambda: charts.loss_by_eps(
        cells("loss_scale", SCALES), "loss_scale", lines("loss_scale")
    ),
    "loss_by_eps of one": lambda: charts.loss_by_eps(
        cells().filter(variant="adam_atan2"), columns=None
    ),
    "gradient_sizes": lambda: charts.gradient_sizes(gradients(), gradient_exponents(gradients())),
    "root_histogram": lambda: charts.root_histogram(root_histogram(moments()), [1e-8, 1e-4]),
    "damped_shares": lambda: charts.damped_shares(damped_shares(moments(), [1e-8, 1e-6, 1e-4])),
    "update_function": lambda: charts.update_function(update_function()),
}


@pytest.mark.parametrize("name", EVERY)
def test_every_chart_is_strict_json_and_drawn_by_both_vega_lites(name):
    import vl_convert

    chart = EVERY[name]()
    spec = chart.to_dict()
    json.dumps(spec, allow_nan=False)
    assert spec["title"]["text"]
    for rows in spec["datasets"].values():
        assert len(rows) <= 5000
        assert not {"nan", "inf", "-inf", "NaN"} & {str(v) for row in rows for v in row.values()}
    live = renderer.offline_bundle(spec)[0][renderer.VEGALITE_MIME]
    old = vl_convert.vegalite_to_png(live, vl_version="5.8")
    assert min(size(old)) > 200
    assert min(size(charts.to_png(chart))) > 400


@settings(max_examples=10)
@given(
    st.sets(
        st.tuples(st.sampled_from(["adam", "adam, eps per layer"]), st.sampled_from(EPSILONS),
                  st.sampled_from(WIDTHS)), max_size=29,
    )
)  # fmt: skip
def test_every_cell_is_drawn_once_and_lost_ones_with_a_cross(drawn, subtitle, lost):
    chart = charts.loss_by_eps(cells(lost=lost))
    found = [row for rows in drawn(chart, "rect") for row in rows]
    assert len(found) == len(cells()) == len({(r["variant"], r["eps"], r["width"]) for r in found})
    crosses = [r for rows in drawn(chart, "text", text="×") for r in rows]
    assert {(r["variant"], r["eps"], r["width"]) for r in crosses} == lost
    assert ("a seed diverged" in subtitle(chart)) == bool(lost)
    for row in found:
        assert row["right"] > row["left"] and row["top"] > row["bottom"]


def test_columns_go_up_with_eps_and_no_eps_spans_them(drawn, titles):
    chart = charts.loss_by_eps(cells())
    assert titles(chart) == ["adam", "adam, eps per layer", "adam_atan2"]
    (adam,) = drawn(chart, "rect", "adam")
    middles = [r["middle"] for r in sorted(adam, key=lambda r: r["eps"]) if r["width"] == 32]
    assert middles[0] == 0 and middles == sorted(middles) and len(set(middles)) == len(EPSILONS)
    (atan2,) = drawn(chart, "rect", "adam_atan2")
    assert {(r["left"], r["right"]) for r in atan2} == {
        (min(r["left"] for r in adam), max(r["right"] for r in adam))
    }
    heights = {r["width"]: r["height"] for r in adam}
    assert heights[32] < heights[64] < heights[128]


def test_numbers_are_the_losses_and_high_ones_share_a_colour(drawn, spec_of, subtitle):
    tall = cells().with_columns(
        pl.when((pl.col("eps") == 1e-2) & (pl.col("width") == 32)).then(50.0).otherwise("loss")
        .alias("loss")
    )  # fmt: skip
    chart = charts.loss_by_eps(tall)
    texts = [r for rows in drawn(chart, "text") for r in rows]
    assert {(r["number"], f"{r['loss']:.2f}") for r in texts if r["eps"] is not None} == {
        (f"{x:.2f}", f"{x:.2f}") for x in tall.filter(pl.col("eps").is_not_null())["loss"]
    }
    assert {r["number"] for r in texts if r["eps"] is None} == {"2.00, no eps"}
    assert "have the colour of" in subtitle(chart)
    scale = spec_of(chart)["concat"][0]["layer"][0]["encoding"]["color"]["scale"]
    assert scale["domain"][0] == 2.0 and scale["domain"][1] < 10 and scale["clamp"]


def test_cells_that_did_not_run_are_named(subtitle):
    assert "not run" not in subtitle(charts.loss_by_eps(cells()))
    assert "White: not run." in subtitle(charts.loss_by_eps(cells()[1:]))


@settings(max_examples=20)
@given(st.floats(-9, -1.5), st.integers(0, 2))
def test_a_line_passes_the_cells_of_its_eps(drawn, log, i):
    """A line of one eps stands at its column, or between its neighbours' in proportion."""
    flat = pl.DataFrame({"variant": "adam", "role": "hidden", "width": [32, 128], "eps": 10.0**log})
    chart = charts.loss_by_eps(cells(), lines=flat)
    (adam,) = drawn(chart, "rect", "adam")
    places = {r["eps"]: r["middle"] for r in adam}
    rows = drawn(chart, "line", "adam", color="black")[0]
    known = sorted(math.log10(e) for e in EPSILONS if e)
    wanted = np.interp(log, known, [places[e] for e in sorted(EPSILONS) if e])
    if log <= known[-1]:
        assert {round(r["left"], 6) for r in rows} == {round(float(wanted), 6)}
    heights = [r["bottom"] for r in rows]
    assert min(heights) == 0 and max(heights) == 2 and EPSILONS[i] is not None


def test_lines_are_drawn_in_their_own_panels(drawn):
    chart = charts.loss_by_eps(cells(), lines=lines(widths=WIDTHS).filter(role="hidden"))
    adam, layered = (
        drawn(chart, "line", name, color="black")[0] for name in ("adam", "adam, eps per layer")
    )
    # falls by 0.9 * log10(4) decades, of the four from one column to the next
    assert adam[0]["left"] - adam[-1]["left"] == pytest.approx(0.9 * math.log10(4) / 4)
    # per layer hardly: the drawn exponent is 0.9, theory's 3/2
    assert layered[0]["left"] < layered[-1]["left"]
    assert drawn(chart, "line", "adam_atan2", color="black") == []


def test_fitted_powers_stand_at_the_ends(drawn, titles):
    found = gradient_exponents(gradients())
    chart = charts.gradient_sizes(gradients(), found)
    assert titles(chart) == ["standard", "mean-field"]
    said = {
        (r["parameterization"], r["role"]): r["power"]
        for rows in drawn(chart, "text")
        for r in rows
    }
    assert said["standard", "hidden"] == "−0.90 (−1/2)"
    assert said["mean-field", "hidden"] == "−0.90 (−3/2)"
    assert said["standard", "readout"] == "−0.10 (0)"
    points = [r for rows in drawn(chart, "circle") for r in rows]
    assert len(points) == len(gradients())
    fitted, theory = drawn(chart, "line", "standard")
    first = next(r for r in theory if r["role"] == "hidden" and r["width"] == 32)
    last = next(r for r in theory if r["role"] == "hidden" and r["width"] == 256)
    assert first["by theory"] == pytest.approx(first["size"])
    assert last["by theory"] / first["by theory"] == pytest.approx(8**-0.5)
    assert fitted


def test_a_histogram_is_shares_with_zeros_at_the_edge(drawn, subtitle):
    histogram = root_histogram(moments())
    chart = charts.root_histogram(histogram, [1e-8])
    steps = drawn(chart, "line", "hidden")[0]
    for width in (32, 64):
        its = [r["share"] for r in steps if r["width"] == width]
        assert sum(its) == pytest.approx(1.0) and its[0] == its[-1] == 0.0
    zeros = [r for rows in drawn(chart, "point") for r in rows]
    assert {(r["role"], r["width"], r["share"]) for r in zeros} == {
        ("embedding", 32, 0.2), ("embedding", 64, 0.2),
    }  # fmt: skip
    assert "exactly 0" in subtitle(chart)
    (rule,) = drawn(chart, "rule", "hidden")
    assert rule[0]["log10"] == pytest.approx(-8) and rule[0]["said"] == "1e-8"


def test_shares_at_eps_0_are_left_out(drawn):
    chart = charts.damped_shares(damped_shares(moments(), [0.0, 1e-6, 1e-4]))
    rows = [r for its in drawn(chart, "line") for r in its]
    assert {r["eps"] for r in rows} == {1e-6, 1e-4} and len(rows) == 2 * 2 * 2


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: charts.loss_by_eps(cells().clear()), "no rows"),
        (lambda: charts.loss_by_eps(pl.concat([cells()] * 2)), "2 runs share"),
        (lambda: charts.loss_by_eps(cells(values=(0, 32))), "width must be positive"),
        (lambda: charts.loss_by_eps(cells(epsilons=(-1.0, 1e-8))), "eps must be 0 or above"),
        (lambda: charts.loss_by_eps(cells(), "loss_scale"), "missing columns"),
        (
            lambda: charts.loss_by_eps(cells().filter(variant="adam"), columns=None, lines=lines()),
            "lines need panels",
        ),
        (
            lambda: charts.loss_by_eps(cells(), lines=lines().with_columns(variant=pl.lit("sgd"))),
            r"lines are of \['sgd'\]; panels are of \['adam'",
        ),
        (
            lambda: charts.loss_by_eps(cells(), lines=lines().with_columns(role=pl.lit("bias"))),
            "unknown role 'bias'; known",
        ),
        (
            lambda: charts.gradient_sizes(
                gradients(), gradient_exponents(gradients()), columns=None
            ),
            "2 runs share",
        ),
        (lambda: charts.root_histogram(root_histogram(moments()), [0.0]), "eps must be positive"),
        (lambda: charts.damped_shares(damped_shares(moments(), [0.0])), "no share at an eps"),
        (
            lambda: charts.update_function(update_function().with_columns(update=math.inf)),
            "must be finite",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()
