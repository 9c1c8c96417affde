"""Charts of a look inside: what is drawn, what is named instead, what a screen reader hears."""

from __future__ import annotations

import itertools

import numpy as np
import polars as pl
import pytest

from isolab.charts import layers_inside, spectra

LAYERS = pl.DataFrame(
    {
        "step": [40] * 4,
        "layer": ["embedding", "blocks/0/mlp_norm", "blocks/0/mlp/up", "readout"],
        "role": ["embedding", "vector", "hidden", "readout"],
        "update_rms": [0.1, 0.0, 0.3, 0.4],
        "relative_update": [0.002, 0.0, 0.03, 0.4],
        "alignment": [None, None, 0.75, -0.25],
    }
)


def falling(size, sharpness):
    return np.arange(1, size + 1) ** -float(sharpness)


def spectra_frame(size=300):
    rows = []
    names = itertools.product((0, 1), ("attention/qkv", "mlp/down"), ("input", "output"))
    for power, (block, matrix, side) in enumerate(names, start=1):
        for index, value in enumerate(falling(size, power), start=1):
            rows.append((f"blocks/{block}/{matrix}", side, index, value))
    return pl.DataFrame(rows, ["layer", "side", "index", "eigenvalue"], orient="row")


def panels(chart, spec_of):
    """Returns the rows of each panel's points, by the panel's title."""
    spec = spec_of(chart)
    found = {}
    for panel in spec["hconcat"]:
        *_, layer = panel["layer"]
        data = layer.get("data") or panel["data"]
        found[panel["title"]["text"]] = spec["datasets"][data["name"]]
    return found


def test_layers_are_drawn_where_they_can_be_and_named_where_not(spec_of, subtitle):
    chart = layers_inside(LAYERS)
    sizes, along = panels(chart, spec_of).values()
    assert [(row["layer"], row["size"]) for row in sizes] == [
        ("embedding", 0.002), ("blocks/0/mlp/up", 0.03), ("readout", 0.4),
    ]  # fmt: skip
    assert [(row["layer"], row["drawn"]) for row in along] == [
        ("blocks/0/mlp/up", 0.75), ("readout", 0.0),
    ]  # fmt: skip
    assert along[1]["alignment"] == -0.25  # as the tooltip tells
    said = subtitle(chart)
    assert "Nothing that can be drawn: blocks/0/mlp_norm." in said
    assert "below 0 is drawn at 0" in said
    spec = spec_of(chart)
    assert spec["title"]["text"] == "Inside the layers, step 40"
    assert "largest 0.4, readout" in spec["description"]
    assert "Smallest change 0.002, embedding" in spec["description"]
    # every layer has its line, in the order of the frame, whether or not it has a point
    axes = [panel["layer"][-1]["encoding"]["y"]["scale"]["domain"] for panel in spec["hconcat"]]
    assert axes == [LAYERS["layer"].to_list()] * 2


def test_a_deep_model_leaves_its_norms_out(spec_of, subtitle):
    deep = pl.concat(
        LAYERS.with_columns(pl.format("{}/{}", pl.lit(i), "layer").alias("layer")) for i in range(7)
    )
    chart = layers_inside(deep)
    assert "The norms' gains are left out." in subtitle(chart)
    (sizes, _) = panels(chart, spec_of).values()
    assert {row["role"] for row in sizes} == {"embedding", "hidden", "readout"}


def test_frames_without_a_look_are_refused():
    with pytest.raises(ValueError, match=r"the frame has steps \[40, 41\]; allowed: one look"):
        layers_inside(pl.concat([LAYERS, LAYERS.with_columns(pl.col("step") + 1)]))
    with pytest.raises(ValueError, match="no rows"):
        layers_inside(LAYERS.clear())
    with pytest.raises(ValueError, match="relative_update"):
        layers_inside(LAYERS.drop("relative_update"))
    with pytest.raises(ValueError, match="no eigenvalue of the frame is finite"):
        spectra(spectra_frame(3).with_columns(eigenvalue=pl.lit(np.nan)))


def test_spectra_keep_their_shape_in_few_points(spec_of, subtitle):
    frame = spectra_frame()
    chart = spectra(frame, note="blocks 0, 1 of 9 only")
    drawn = panels(chart, spec_of)
    assert list(drawn) == ["input", "output"]
    rows = pl.DataFrame([row for panel in drawn.values() for row in panel])
    assert len(rows) < 8 * 45 < len(frame)
    for (layer, side), its in rows.group_by("layer", "side"):
        whole = frame.filter(pl.col("layer") == layer, pl.col("side") == side)
        assert [its["index"].min(), its["index"].max()] == [1, 300]
        kept = whole.join(its.select("index"), on="index", how="semi")["eigenvalue"]
        np.testing.assert_array_equal(its.sort("index")["eigenvalue"], kept)
        gaps = its["index"].sort().log().diff().drop_nulls()
        assert gaps.max() < 0.75  # log 2, the first, or little more
    assert rows["drawn"].min() == 1e-7
    said = subtitle(chart)
    assert "Blocks 0, 1 of 9 only." in said
    assert "below 1e-07, rounding" in said
    # of i^-1 to i^-8, 100 to 1 are above a hundredth
    assert "From 1 to" in spec_of(chart)["description"]


def test_spectra_tell_matrices_by_colour_and_blocks_by_dashes(spec_of):
    (first, second) = spec_of(spectra(spectra_frame(5)))["hconcat"]
    for panel in (first, second):
        lines = panel["layer"][0]["encoding"]
        assert lines["color"]["scale"]["domain"] == ["qkv", "down"]
        assert lines["strokeDash"]["scale"]["domain"] == ["0", "1"]
        assert len(set(map(str, lines["strokeDash"]["scale"]["range"]))) == 2
        assert len(set(lines["color"]["scale"]["range"])) == 2
