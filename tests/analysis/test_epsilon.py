"""Maps of eps, decades of loss scale, and where eps equals a gradient, on runs of known truth."""

from __future__ import annotations

import itertools
import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isolab.analysis.epsilon import crossing_width, eps_lines, eps_map, flat_decades, variants


def scaled(offsets, seeds=3, spread=0.0, rng=None, **columns):
    """Runs by loss scale (log2) whose losses are a seed's own, plus the scale's offset."""
    rows = []
    for (k, offset), s in itertools.product(offsets.items(), range(seeds)):
        noise = spread * rng.normal() if k and rng is not None else 0.0
        row = {"optimizer": "adam", "eps": 1e-8, "loss_scale": 2.0**k, "seed": s} | columns
        rows.append(row | {"final_validation_loss": 2.0 + 0.1 * s + offset + noise})
    return pl.DataFrame(rows)


def test_variants_name_what_is_not_the_default():
    rows = [
        ("adam", "same", "float32", "float32", 1.0, 1.0),
        ("adam", "per_layer", "float32", "float32", 1.0, 1.0),
        ("adam", None, "bfloat16", None, None, None),
        ("adam_atan2", "same", "bfloat16", "bfloat16", 2.0, 0.5),
    ]
    names = ["optimizer", "eps_rule", "moment_dtype", "dtype", "atan2_a", "atan2_b"]
    found = variants(pl.DataFrame(rows, schema=names, orient="row"))
    assert found["variant"].to_list() == [
        "adam",
        "adam, eps per layer",
        "adam, bfloat16 moments",
        "adam_atan2, all in bfloat16, a = 2.0, b = 0.5",
    ]
    assert found["loss_scale"].to_list() == [1.0] * 4  # runs stored before there was one
    assert found.select(names[1:]).null_count().row(0) == (0,) * 5


def test_a_map_holds_means_and_divergence():
    rows = [
        ("adam", 1e-8, 32, 0, 2.0), ("adam", 1e-8, 32, 1, 3.0), ("adam", 0.0, 32, 0, 2.0),
        ("adam", 0.0, 32, 1, math.nan), ("adam_atan2", None, 32, 0, 1.5),
        ("adam", 1e-8, 64, 0, 1.0),
    ]  # fmt: skip
    names = ["optimizer", "eps", "width", "seed", "final_validation_loss"]
    found = eps_map(pl.DataFrame(rows, schema=names, orient="row"))
    assert found.columns == ["variant", "eps", "width", "loss", "seeds", "diverged"]
    assert found.rows() == [
        ("adam", 0.0, 32, math.inf, 2, 1),
        ("adam", 1e-8, 32, 2.5, 2, 0),
        ("adam", 1e-8, 64, 1.0, 1, 0),
        ("adam_atan2", None, 32, 1.5, 1, 0),
    ]


def test_decades_end_at_the_first_gap_on_either_side():
    offsets = {20: 0.5, 10: 0.01, 0: 0.0, -10: 0.0, -20: 0.02, -30: 0.5, -40: 0.0}
    row = flat_decades(scaled(offsets), margin=0.05).row(0, named=True)
    assert row["decades"] == pytest.approx(30 * math.log10(2))
    assert (row["from_scale"], row["to_scale"]) == (2.0**-20, 2.0**10)
    # no spread over seeds: the margin is met, or missed, for sure, and open up to the next scale
    assert row["decades_low"] == row["decades"]
    assert row["decades_high"] == pytest.approx(50 * math.log10(2))
    assert row["equal_decades"] == pytest.approx(10 * math.log10(2))
    assert row["equal_share"] == pytest.approx(2 / 6)
    assert (row["note"], row["reason"]) == ("", None)
    ends = flat_decades(scaled({0: 0.0, -40: 0.0}), margin=0.05).row(0, named=True)
    assert ends["decades_high"] == math.inf
    assert "flat down to the smallest scale tried, 9.1e-13" in ends["note"]


def test_a_noisy_scale_is_not_surely_flat():
    away = pl.when(pl.col("loss_scale") < 1).then(0.05 * (pl.col("seed") - 1)).otherwise(0.0)
    flat = scaled({0: 0.0, -10: 0.0, -20: 0.0})
    noisy = flat.with_columns(pl.col("final_validation_loss") + away)
    # differences of -0.05, 0 and 0.05: their mean's interval is 0 +- 4.303 * 0.05 / sqrt(3)
    row = flat_decades(noisy, margin=0.12).row(0, named=True)
    assert row["decades"] == pytest.approx(20 * math.log10(2)) and row["decades_low"] == 0.0
    assert row["decades_high"] == math.inf and row["equal_share"] == pytest.approx(1 / 3)
    assert flat_decades(noisy, margin=0.13)["decades_low"].to_list() == [row["decades"]]


def lost(runs, scale, seeds):
    """The same runs, those of a loss scale and seeds diverged."""
    at = (pl.col("loss_scale") == scale) & pl.col("seed").is_in(seeds)
    loss = pl.when(at).then(math.nan).otherwise("final_validation_loss")
    return runs.with_columns(loss.alias("final_validation_loss"))


def test_divergence_ends_flatness_and_leaves_nothing_to_compare_with_at_scale_1():
    runs = scaled({0: 0.0, -10: 0.0, -20: 0.0})
    row = flat_decades(lost(runs, 2.0**-20, [1]), margin=1.0).row(0, named=True)
    assert row["decades"] == row["decades_low"] == pytest.approx(10 * math.log10(2))
    assert row["decades_high"] == pytest.approx(20 * math.log10(2))
    assert row["equal_share"] == pytest.approx(5 / 6)
    row = flat_decades(lost(runs, 1.0, [0, 1, 2]), margin=1.0).row(0, named=True)
    assert row["decades"] is None and "diverged" in row["reason"]


def test_groups_are_told_apart_and_one_seed_has_no_interval():
    flat = {0: 0.0, -10: 0.0}
    alone = scaled(flat, seeds=1, optimizer="adam_atan2", eps=None)
    runs = pl.concat([scaled({0: 0.0, -10: 1.0}), scaled(flat, eps=1e-30), alone])
    found, one_seed = flat_decades(runs, 0.1), "one seed: no interval"
    assert found.select("case", pl.col("decades") > 0, "reason").rows() == [
        ("adam, eps = 1e-30", True, None), ("adam, eps = 1e-8", False, None),
        ("adam_atan2", True, one_seed),
    ]  # fmt: skip
    assert found["decades_low"][2] == 0.0


@settings(max_examples=25)
@given(st.lists(st.sampled_from([0.0, 0.04, 0.2]), min_size=2, max_size=6), st.integers(2, 4))
def test_low_number_and_high_are_in_order(offsets, seeds):
    offsets = {0: 0.0} | {-10 * (i + 1): offset for i, offset in enumerate(offsets)}
    rng = np.random.default_rng(len(offsets))
    row = flat_decades(scaled(offsets, seeds, 0.01, rng), margin=0.05).row(0, named=True)
    assert row["decades_low"] <= row["decades"] <= row["decades_high"]
    assert row["equal_decades"] <= row["decades"]


def gradients(power=1.0, seeds=3, widths=(32, 64, 128), spread=0.1, name="mup", role="hidden"):
    return pl.DataFrame(
        [
            {
                "parameterization": name, "step": 0, "role": role, "width": n, "seed": s,
                "gradient_rms": 1e-3 * (n / 32) ** -power * 2.0 ** (spread * (s - (seeds - 1) / 2)),
            }
            for n in widths
            for s in range(seeds)
        ]
    )  # fmt: skip


@settings(max_examples=25)
@given(power=st.floats(0.3, 2), size=st.floats(-4, 6))
def test_the_line_crosses_eps_where_it_must(power, size):
    frame = gradients(power).with_columns(pl.col("gradient_rms") * 10.0**size)
    row = crossing_width(frame).row(0, named=True)
    wanted = 32 * (1e5 * 10.0**size) ** (1 / power)
    assert row["width"] == pytest.approx(wanted, rel=1e-6)
    assert row["width_low"] < row["width"] < row["width_high"]
    assert row["beyond"] == pytest.approx(row["width"] / 128)
    # a line is exact here, and muP's hidden exponent 1: theory goes on from width 128
    seeds = np.mean(2.0 ** (0.1 * np.arange(-1, 2)))
    at_128 = 1e5 * 10.0**size * 4**-power * seeds
    assert row["theory_width"] == pytest.approx(128 * at_128, rel=1e-6)


def test_the_interval_over_seeds_is_that_of_the_logarithm():
    row = crossing_width(gradients(1.0, spread=1.0)).row(0, named=True)
    # crossings a factor of 2 apart: s = 1 in log2, t(2) = 4.303
    half = 4.302653 / math.sqrt(3)
    assert math.log2(row["width"] / row["width_low"]) == pytest.approx(half, rel=1e-5)
    assert math.log2(row["width_high"] / row["width"]) == pytest.approx(half, rel=1e-5)
    uneven = gradients(0.2).with_columns(
        pl.col("gradient_rms") * (pl.col("width") / 32) ** (0.15 * (pl.col("seed") - 1))
    )
    row = crossing_width(uneven).row(0, named=True)  # the slope may be 0
    assert row["width"] < row["width_high"] == math.inf


@pytest.mark.parametrize(
    ("frame", "factor", "note"),
    [
        (gradients(), 1, "extrapolated 4.4 decades beyond width 128"),
        (gradients(), 2e-5, "within the measured widths"),
        (gradients(), 1e-6, "extrapolated below width 32"),
        (gradients(seeds=1), 2e-5, "within the measured widths; one seed: no interval"),
        (
            gradients(0.0, name="standard", role="readout"),
            1,
            "the gradient does not fall with the width at every seed: no such width",
        ),
    ],
)
def test_a_note_tells_how_far_the_extrapolation_reaches(frame, factor, note):
    frame = frame.with_columns(pl.col("gradient_rms") * factor)
    row = crossing_width(frame).row(0, named=True)
    assert row["note"] == note
    if "one seed" in note or "not fall" in note:
        assert (row["width_low"], row["width_high"]) == (0.0, math.inf)
    if "not fall" in note:
        assert row["width"] == row["theory_width"] == math.inf


def test_lines_of_a_map():
    frame = gradients(1.0, seeds=1)
    lines = eps_lines(frame, base_width=32)
    assert lines.filter(variant="adam").select("width", "eps").rows() == [
        (32, pytest.approx(1e-3)), (64, pytest.approx(5e-4)), (128, pytest.approx(2.5e-4)),
    ]  # fmt: skip
    # per layer eps falls as the gradient does
    assert lines.filter(variant="adam, eps per layer")["eps"].to_list() == pytest.approx([1e-3] * 3)
    narrow = {"moment_dtype": "bfloat16", "dtype": "bfloat16", "optimizer": "adam"}
    named = variants(pl.DataFrame([narrow, narrow | {"eps_rule": "per_layer"}]))["variant"]
    assert set(eps_lines(frame, 32, ending=", all in bfloat16")["variant"]) == set(named)


ZERO = gradients().with_columns(gradient_rms=0.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: eps_map(pl.concat([scaled({0: 0.0})] * 2), "loss_scale"), "2 runs share"),
        (lambda: eps_map(scaled({0: 0.0})), r"missing columns \['width'\]"),
        (lambda: eps_map(scaled({0: 0.0}).clear(), "loss_scale"), "no runs"),
        (lambda: flat_decades(scaled({0: 0.0}), 0.1), "needs 1 and another one"),
        (lambda: flat_decades(scaled({-1: 0.0, -2: 0.0}), 0.1), "needs 1 and another one"),
        (lambda: flat_decades(scaled({0: 0.0, -1: 0.0})[1:], 0.1), "unequal seeds"),
        (lambda: crossing_width(gradients(widths=(32,))), "needs at least 2 widths"),
        (lambda: crossing_width(ZERO), "at width 32, seed 0, it is 0: a gradient must be positive"),
        (lambda: eps_lines(ZERO, 32), "at width 32, seed 0, it is 0: a gradient must be positive"),
        (lambda: eps_lines(pl.concat([gradients(), gradients(name="ntk")]), 32), "keep one param"),
    ],
)
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
