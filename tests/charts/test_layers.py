"""Charts of layers: the coordinate check, its slopes, and alignment while training."""

from __future__ import annotations

import itertools
import json
import math

import polars as pl
import pytest

from isolab import charts
from isolab.charts import renderer
from isolab.charts.picture import size
from isolab.measure.coordinates import slopes

LAYERS = {"embedding": 0.0, "blocks/0/up": -0.5, "blocks/0/down": 0.5, "logits": 1.0}


def check(widths=(32, 64, 256), seeds=(0, 1), steps=(0, 1, 4)):
    """A coordinate check whose layers go as powers of the width, seeds a factor of 2 apart."""
    return pl.DataFrame(
        [
            {
                "parameterization": "mup",
                "width": width,
                "seed": seed,
                "step": step,
                "layer": layer,
                "order": order,
                "activation_rms": 2.0**seed * (width / 32) ** power,
                "change_rms": 0.1 * 2.0**seed * (width / 32) ** power if step else None,
            }
            for width, seed, step in itertools.product(widths, seeds, steps)
            for order, (layer, power) in enumerate(LAYERS.items())
        ]
    )


def aligned(steps=(0, 1, 2, 5, 10, 100), lost=()):
    """Alignments that rise from 1/2 towards 1, the more the wider; none of changes at step 0."""
    return pl.DataFrame(
        [
            {
                "width": width,
                "seed": seed,
                "step": step,
                "layer": layer,
                "role": "readout" if layer == "readout" else "hidden",
                "fan_in": width,
                "kind": kind,
                "alignment": math.nan
                if (layer, step) in lost
                else 0.5 + 0.4 * step / 100 + 0.01 * seed + 0.02 * (layer == "z"),
            }
            for width, seed, step in itertools.product((32, 64), (0, 1, 2), steps)
            for layer, kind in itertools.product(
                ("z", "readout", "a"), ("weights", "change", "update")
            )
            if step or kind == "weights"
        ],
    )


EVERY = {
    "coordinates": lambda: charts.coordinates(check()),
    "coordinates by step": lambda: charts.coordinates(check(), columns="step"),
    "coordinate_slopes": lambda: charts.coordinate_slopes(slopes(check())),
    "alignment by role": lambda: charts.alignment(aligned(), rows="role"),
}


@pytest.mark.parametrize("name", EVERY)
def test_every_chart_is_strict_json_with_titles_and_is_drawn_by_an_old_vega_lite(name):
    import vl_convert

    spec = EVERY[name]().to_dict()
    json.dumps(spec, allow_nan=False)
    for rows in spec["datasets"].values():
        assert len(rows) <= 5000
        assert not {"nan", "inf", "-inf", "NaN"} & {str(v) for row in rows for v in row.values()}
    assert spec["title"]["text"] and spec["title"]["subtitle"]
    bundle, _ = renderer.offline_bundle(spec, png=False)
    live = bundle[renderer.VEGALITE_MIME]
    assert min(size(vl_convert.vegalite_to_png(live, vl_version="5.8"))) > 200


def test_sizes_are_geometric_means_over_seeds_at_the_last_step(drawn, titles, spec_of):
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


def test_zero_and_lost_sizes_are_at_the_edges(drawn, subtitle):
    frame = check().with_columns(
        pl.when((pl.col("layer") == "logits") & (pl.col("width") == 64))
        .then(0.0)
        .when((pl.col("layer") == "embedding") & (pl.col("width") == 256) & (pl.col("seed") == 1))
        .then(math.nan)
        .otherwise("activation_rms")
        .alias("activation_rms")
    )
    chart = charts.coordinates(frame)
    zero, lost = drawn(chart, "point", "activation")
    assert [(row["layer"], row["width"]) for row in zero] == [("logits", 64)]
    assert [(row["layer"], row["width"]) for row in lost] == [("embedding", 256)]
    (rows,) = drawn(chart, "line", "activation")
    at = {(row["layer"], row["width"]) for row in rows}
    assert not at & {("logits", 64), ("embedding", 256)} and len(at) == 10
    assert "bottom edge: 0" in subtitle(chart) and "top edge: not finite" in subtitle(chart)


def test_steps_are_panels_and_nothing_has_changed_before_the_first(drawn, titles):
    chart = charts.coordinates(check(), columns="step")
    assert titles(chart) == [
        f"{what}; step {step}"
        for what in ("activation", "change since the start")
        for step in (0, 1, 4)
    ]
    assert drawn(chart, "text", "change since the start; step 0") == [[{"text": "no rows"}]]


def test_slopes_are_drawn_in_the_order_of_the_layers_with_their_intervals(drawn, spec_of):
    found = slopes(check()).filter(step=4)
    chart = charts.coordinate_slopes(slopes(check()))
    (points,) = drawn(chart, "circle", "activation")
    assert {row["layer"]: round(row["value"], 6) for row in points} == LAYERS
    zero, bars = drawn(chart, "rule", "activation")
    assert zero == [{"value": 0.0}]
    its = found.filter(quantity="activation").sort("order")
    assert [row["low"] for row in bars] == pytest.approx(its["slope_low"].to_list())
    assert [row["high"] for row in bars] == pytest.approx(its["slope_high"].to_list())
    y = spec_of(chart)["concat"][0]["layer"][1]["encoding"]["y"]
    assert y["sort"] == y["scale"]["domain"] == list(LAYERS)


def test_a_layer_without_a_slope_says_why_and_one_seed_has_no_bar(drawn, subtitle):
    frame = check(seeds=(0,)).with_columns(
        activation_rms=pl.when(pl.col("layer") == "logits").then(0.0).otherwise("activation_rms")
    )
    chart = charts.coordinate_slopes(slopes(frame))
    assert "logits, activation: no slope: at width 32, seed 0, it is 0" in subtitle(chart)
    assert len(drawn(chart, "circle", "activation")[0]) == 3
    assert drawn(chart, "rule", "activation")[1] == []


def test_alignments_are_means_with_bands_over_what_is_not_named(drawn, titles):
    frame = aligned()
    chart = charts.alignment(frame)
    assert titles(chart)[:2] == ["z; weights", "z; change of the weights"]  # not alphabetical
    (line,) = drawn(chart, "line", "z; weights")
    first = next(row for row in line if (row["width"], row["step"]) == (32, 0))
    assert first["mean"] == pytest.approx(0.53)
    assert (first["low"], first["high"]) == (pytest.approx(0.52), pytest.approx(0.54))
    assert first["values"] == 3
    roles = charts.alignment(frame, rows="role")
    (line,) = drawn(roles, "line", "hidden; weights")
    first = next(row for row in line if (row["width"], row["step"]) == (32, 0))
    assert first["mean"] == pytest.approx(0.52) and first["values"] == 6
    for rules in drawn(roles, "rule"):
        assert rules == [{"mean": 0.5}, {"mean": 1.0}]


def test_alignments_that_are_not_finite_are_counted(subtitle):
    said = subtitle(charts.alignment(aligned(lost={("a", 100)})))
    assert "18 values are not finite" in said  # 2 widths, 3 seeds, 3 kinds


@pytest.mark.parametrize(
    ("steps", "kind"), [((0, 1, 2, 5, 10, 100), "symlog"), ((0, 50, 100), None)]
)
def test_steps_that_crowd_at_the_start_have_a_log_axis(spec_of, steps, kind):
    chart = charts.alignment(aligned(steps), rows="role")
    x = spec_of(chart)["concat"][0]["layer"][1]["encoding"]["x"]
    assert x["scale"].get("type") == kind
    assert x["scale"]["domain"] == [0, 100]


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: charts.coordinates(check(), step=3), r"step is 3; the frame has \[0, 1, 4\]"),
        (lambda: charts.coordinates(check().drop("order")), r"missing columns \['order'\]"),
        (lambda: charts.coordinates(check().clear()), "no rows"),
        (lambda: charts.coordinates(pl.concat([check()] * 2)), "2 runs share"),
        (
            lambda: charts.coordinate_slopes(pl.concat([slopes(check())] * 2)),
            "2 runs share.*rows, columns or color",
        ),
        (lambda: charts.alignment(aligned(), rows="kind"), "both 'kind'"),
        (
            lambda: charts.alignment(aligned().with_columns(alignment=math.nan)),
            "no alignment of the frame is finite",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()
