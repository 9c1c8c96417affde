"""Charts draw the numbers that the analysis gives, and lose no run."""

from __future__ import annotations

import base64
import itertools
import json
import math
import struct
import zlib
from typing import Any

import altair as alt
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isolab import charts
from isolab.analysis.optimum import at_best_rate, optimum
from isolab.analysis.power_law import fit_power_law
from isolab.analysis.speedup import speedup
from isolab.charts import renderer
from isolab.charts.picture import size, smaller

RATES = (0.001, 0.003, 0.01, 0.02, 0.04, 0.08, 0.16)
BEST = {"adam": (-5.3, 1.83), "isoadam": (-4.8, 1.56), "muon": (-4.3, 1.58)}


def sweep(
    best: dict[Any, tuple[float, float]] | None = None,
    seeds: int = 3,
    steps: int = 400,
    diverged: tuple[tuple[Any, float, int], ...] = (),
    column: str = "optimizer",
) -> pl.DataFrame:
    """A rate sweep with parabolas in log2(rate) and some noise, as the result frame has it."""
    rng = np.random.default_rng(0)
    rows = []
    for name, (x, low) in (best or BEST).items():
        for rate, seed in itertools.product(RATES, range(seeds)):
            away = math.log2(rate) - x
            gone = (name, rate, seed) in diverged
            loss = low + 0.03 * away**2 + 0.01 * rng.normal()
            rows.append(
                {
                    column: name,
                    "learning_rate": rate,
                    "seed": seed,
                    "steps": steps,
                    "final_validation_loss": math.inf if gone else loss,
                    "diverged": gone,
                }
            )
    return pl.DataFrame(rows)


def with_curves(runs: pl.DataFrame, points: int = 21) -> pl.DataFrame:
    """The same runs with curves that fall from 5.5; a diverged one rises and ends in NaN."""
    steps = np.linspace(0, 400, points).round().astype(int)
    validation = []
    for row in runs.iter_rows(named=True):
        end = 2.0 if row["diverged"] else row["final_validation_loss"]
        curve = end + (5.5 - end) * np.exp(-steps / 40)
        if row["diverged"]:
            curve[points // 2 :] += np.arange(points - points // 2)
            curve[-4:] = [np.nan, np.inf, np.nan, np.nan]
        validation.append(curve.astype(np.float32).tolist())
    return runs.with_columns(
        pl.Series("curve_step", [steps.tolist()] * len(runs)),
        pl.Series("curve_validation_loss", validation),
        pl.Series("curve_train_loss", [[v - 0.1 for v in its] for its in validation]),
    )


def horizons() -> pl.DataFrame:
    """Adam at four horizons, IsoAdam at one."""
    adam = [
        sweep({"adam": (-5.3, 1.3 + 16 * steps**-0.57)}, steps=steps)
        for steps in (200, 400, 800, 1600)
    ]
    return pl.concat([*adam, sweep({"isoadam": (-4.8, 1.3 + 11 * 400**-0.6)})])


def times() -> pl.DataFrame:
    """Step times with three repeats."""
    return pl.DataFrame(
        [
            {"optimizer": name, "width": width, "step_ms": over * width**1.5 / 500 * repeat}
            for name, over in {"adam": 1.0, "isoadam": 1.2, "muon": 1.3}.items()
            for width in (32, 64, 128)
            for repeat in (0.9, 1.0, 1.2)
        ]
    )


def changes() -> pl.DataFrame:
    """Changes of updates, with one that is exactly 0."""
    rng = np.random.default_rng(1)
    sizes = {("adam", "inputs"): 0.5, ("isoadam", "inputs"): 2e-6, ("adam", "loss"): 1e-2}
    rows = [
        {"optimizer": name, "condition": kind, "relative_change": value * math.exp(rng.normal())}
        for (name, kind), value in sizes.items()
        for _ in range(5)
    ]
    zero = {"optimizer": "adam_atan2", "condition": "loss", "relative_change": 0.0}
    return pl.DataFrame([*rows, zero, zero])


EVERY = {
    "loss_vs_rate": lambda: charts.loss_vs_rate(
        sweep(diverged=(("adam", 0.16, 0), ("adam", 0.16, 1)))
    ),
    "loss_vs_rate by width": lambda: charts.loss_vs_rate(
        sweep({32: (-5.0, 2.0), 128: (-7.0, 1.7)}, column="width"), color="width"
    ),
    "loss_curves": lambda: charts.loss_curves(
        at_best_rate(with_curves(sweep()), ["optimizer"]), y="train"
    ),
    "loss_curves diverged": lambda: charts.loss_curves(
        with_curves(
            sweep(diverged=(("adam", 0.04, 1),)).filter(pl.col("learning_rate") == 0.04)
        )
    ),
    "loss_vs_steps": lambda: charts.loss_vs_steps(horizons()),
    "step_time": lambda: charts.step_time(times()),
    "invariance": lambda: charts.invariance(changes()),
}  # fmt: skip


def layers(chart: alt.TopLevelMixin, mark: str, **with_mark: Any) -> list[list[dict[str, Any]]]:
    """The rows of every layer of one mark, in order."""
    spec = chart.to_dict()
    found = []
    for layer in spec["layer"]:
        its = layer["mark"] if isinstance(layer["mark"], dict) else {"type": layer["mark"]}
        if its["type"] == mark and all(its.get(k) == v for k, v in with_mark.items()):
            found.append(spec["datasets"][layer.get("data", spec.get("data"))["name"]])
    return found


def edge_marks(chart: alt.TopLevelMixin) -> list[tuple[Any, ...]]:
    """What is drawn at the top edge: (group, rate, seed, kind)."""
    rows = itertools.chain(*layers(chart, "point"))
    return sorted(
        (row["optimizer"], row["learning_rate"], row["seed"], row["at the top edge"])
        for row in rows
        if "at the top edge" in row
    )


@pytest.mark.parametrize("name", EVERY)
def test_every_chart_is_strict_json_with_titles_and_few_rows(name):
    spec = EVERY[name]().to_dict()
    json.dumps(spec, allow_nan=False)
    for rows in spec["datasets"].values():
        assert len(rows) <= 5000
        assert not {"nan", "inf", "-inf", "NaN"} & {str(v) for row in rows for v in row.values()}
    for panel in spec.get("hconcat", [spec]):
        assert panel["title"]["text"]
        titles = [
            layer["encoding"][axis].get("title")
            for layer in panel["layer"]
            for axis in "xy"
            if axis in layer["encoding"] and "type" in layer["encoding"][axis]
        ]
        assert any(titles)
        assert "untitled" not in titles


@pytest.mark.parametrize("name", EVERY)
def test_every_chart_is_drawn_by_both_vega_lites(name):
    import vl_convert

    bundle, _ = renderer.offline_bundle(EVERY[name]().to_dict())
    live = bundle[renderer.VEGALITE_MIME]
    # The oldest that vl-convert has; JupyterLab's own is 5.6.
    old = vl_convert.vegalite_to_png(live, vl_version="5.8")
    assert min(size(old)) > 200
    assert min(size(base64.b64decode(bundle["image/png"]))) > 400


@given(
    st.dictionaries(
        st.sampled_from(list(charts.OPTIMIZER_COLOURS)),
        st.tuples(st.floats(-9, -3.5), st.floats(0.5, 3)),
        min_size=1,
        max_size=4,
    )
)
@settings(max_examples=20)
def test_the_diamond_lies_at_the_best_rate(best):
    runs = sweep(best)
    (diamonds,) = layers(charts.loss_vs_rate(runs), "point", shape="diamond")
    assert len(diamonds) == len(best)
    for row in diamonds:
        found = optimum(runs.filter(pl.col("optimizer") == row["optimizer"]))
        assert (row["learning_rate"], row["loss"]) == (found.rate, found.loss)
        assert row["label"].startswith(f"{found.rate:.2g}")
        assert ("edge" in row["label"]) == (found.edge is not None)
        assert row["low"] <= row["learning_rate"] <= row["high"]
        assert row["low"] >= min(RATES) and row["high"] <= max(RATES)


@given(
    st.sets(
        st.tuples(st.sampled_from(list(BEST)), st.sampled_from(RATES), st.integers(0, 2)),
        max_size=63,
    )
)
@settings(max_examples=20)
def test_every_run_is_drawn_once_and_diverged_ones_at_the_top(gone):
    runs = sweep(diverged=tuple(gone))
    chart = charts.loss_vs_rate(runs)
    (points,) = layers(chart, "circle")
    marks = edge_marks(chart)
    assert [mark[:3] for mark in marks if mark[3] == "diverged"] == sorted(gone)
    drawn = [(row["optimizer"], row["learning_rate"], row["seed"]) for row in points]
    assert sorted(drawn + [mark[:3] for mark in marks]) == sorted(
        runs.select("optimizer", "learning_rate", "seed").rows()
    )
    (means,) = layers(chart, "line")
    whole = {(name, rate) for name in BEST for rate in RATES} - {mark[:2] for mark in gone}
    assert {(row["optimizer"], row["learning_rate"]) for row in means} == whole


def test_a_line_breaks_where_a_seed_diverged():
    chart = charts.loss_vs_rate(sweep({"adam": BEST["adam"]}, diverged=(("adam", 0.02, 1),)))
    (means,) = layers(chart, "line")
    segments = {row["learning_rate"]: row["segment"] for row in means}
    assert segments[0.001] == segments[0.01] != segments[0.04] == segments[0.16]


def test_a_run_far_above_does_not_flatten_the_rest():
    runs = sweep().with_columns(
        pl.when((pl.col("learning_rate") == 0.16) & (pl.col("optimizer") == "adam"))
        .then(50.0)
        .otherwise("final_validation_loss")
        .alias("final_validation_loss")
    )
    chart = charts.loss_vs_rate(runs)
    above = [mark for mark in edge_marks(chart) if mark[3] == "above the axis"]
    assert {mark[:2] for mark in above} >= {("adam", 0.16)}
    (domain,) = {
        tuple(layer["encoding"]["y"]["scale"]["domain"])
        for layer in chart.to_dict()["layer"]
        if "scale" in layer["encoding"].get("y", {})
    }
    assert domain[1] < 5


def test_a_sweep_without_a_best_rate_says_so():
    spec = charts.loss_vs_rate(sweep().filter(pl.col("learning_rate") < 0.005)).to_dict()
    said = " ".join(spec["title"]["subtitle"])
    assert "optimizer muon: no best rate" in said and "at least 3 rates" in said
    every = tuple((name, rate, 0) for name in BEST for rate in RATES)
    said = " ".join(charts.loss_vs_rate(sweep(diverged=every)).to_dict()["title"]["subtitle"])
    assert "has a seed that diverged" in said


def test_labels_of_close_optima_do_not_overlap():
    chart = charts.loss_vs_rate(sweep({"adam": (-5.0, 1.5), "muon": (-5.0, 1.5)}, seeds=2))
    heights = {
        row["optimizer"]: layer["mark"]["dy"]
        for layer in chart.to_dict()["layer"]
        if layer["mark"].get("type") == "text"
        for row in chart.to_dict()["datasets"][layer["data"]["name"]]
    }
    assert abs(heights["adam"] - heights["muon"]) >= 12


def test_curves_are_means_over_seeds_that_did_not_diverge():
    runs = with_curves(sweep(diverged=(("adam", 0.04, 1),)).filter(pl.col("learning_rate") == 0.04))
    chart = charts.loss_curves(runs)
    lines = layers(chart, "line")
    means, dashed = lines[0], lines[1]
    finite = runs.filter(~pl.col("diverged") & (pl.col("optimizer") == "adam"))
    expected = np.mean(finite["curve_validation_loss"].to_list(), axis=0)
    found = [row["mean"] for row in means if row["optimizer"] == "adam"]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    band = next(row for row in means if row["optimizer"] == "adam" and row["step"] == 400)
    ends = [its[-1] for its in finite["curve_validation_loss"].to_list()]
    assert (band["low"], band["high"]) == (min(ends), max(ends))
    assert {row["seed"] for row in dashed} == {1}
    (crosses,) = layers(chart, "point")
    assert [(row["seed"], row["step"]) for row in crosses] == [(1, 400 - 4 * 20)]


def test_long_curves_are_thinned_and_keep_their_end():
    runs = at_best_rate(with_curves(sweep(), points=4001), ["optimizer"])
    runs = runs.with_columns(
        pl.Series("curve_step", [list(range(4001))] * len(runs), dtype=pl.List(pl.Int32))
    )
    means = layers(charts.loss_curves(runs), "line")[0]
    assert 2500 < len(means) <= 5000
    assert {row["optimizer"] for row in means if row["step"] == 4000} == set(BEST)


def test_fitted_curve_and_speedup_are_the_analysis_ones():
    runs = horizons()
    adam, isoadam = (runs.filter(pl.col("optimizer") == name) for name in ("adam", "isoadam"))
    found = speedup(adam, isoadam)
    chart = charts.loss_vs_steps(runs, speedup=found)
    (curve,) = layers(chart, "line")
    law = fit_power_law(found.horizons, found.losses)
    for row in curve:
        assert row["fitted"] == pytest.approx(float(law.loss(row["steps"])))
    (rule,) = layers(chart, "rule")
    assert rule[0]["steps"] == 400
    assert rule[0]["to"] == pytest.approx(400 * found.value)
    # The rule ends on the curve.
    assert float(law.loss(rule[0]["to"])) == pytest.approx(rule[0]["loss"])
    assert f"{found.value:.2f}×" in " ".join(chart.to_dict()["title"]["subtitle"])


def test_a_missing_speedup_gives_its_reason():
    runs = horizons()
    runs = runs.filter(pl.col("steps") <= 400)
    adam, isoadam = (runs.filter(pl.col("optimizer") == name) for name in ("adam", "isoadam"))
    spec = charts.loss_vs_steps(runs, speedup=speedup(adam, isoadam)).to_dict()
    assert "No speedup: the challenger's loss" in " ".join(spec["title"]["subtitle"])


def test_step_times_are_medians_and_ratios():
    spec = charts.step_time(times()).to_dict()
    rows = [row for its in spec["datasets"].values() for row in its]
    for row in rows:
        over = {"adam": 1.0, "isoadam": 1.2, "muon": 1.3}[row["optimizer"]]
        assert row["ratio"] == pytest.approx(over)
        assert row["median"] == pytest.approx(over * row["width"] ** 1.5 / 500)
        assert row["low"] == pytest.approx(0.9 * row["median"])
        assert row["high"] == pytest.approx(1.2 * row["median"])
    assert len(spec["hconcat"]) == 2
    assert "hconcat" not in charts.step_time(times(), baseline="sgd").to_dict()


def test_exact_zeros_are_drawn_at_the_left_edge():
    chart = charts.invariance(changes())
    (zeros,) = layers(chart, "point")
    (points,) = layers(chart, "circle")
    (zero,) = zeros
    assert (zero["optimizer"], zero["draws"]) == ("adam_atan2", 2)
    assert len(points) == 15 and min(row["change"] for row in points) > 0
    assert charts.invariance(changes().filter(pl.col("relative_change") == 0)).to_dict()


def test_an_optimizer_has_one_colour_in_every_chart():
    assert len(set(charts.OPTIMIZER_COLOURS.values())) == len(charts.OPTIMIZER_COLOURS)
    for make in EVERY.values():
        text = json.dumps(make().to_dict())
        for domain, colours in _colour_scales(json.loads(text)):
            for name, colour in zip(domain, colours, strict=True):
                assert charts.OPTIMIZER_COLOURS[name] == colour
    mixed = charts.loss_vs_rate(sweep({"adam": (-5, 1), "mine": (-5, 2), "other": (-5, 3)}))
    ((_, colours), *_) = _colour_scales(mixed.to_dict())
    assert len(set(colours)) == 3


def _colour_scales(node: Any) -> list[tuple[list[str], list[str]]]:
    found = []
    if isinstance(node, dict):
        scale = (
            node.get("color", {}).get("scale", {}) if isinstance(node.get("color"), dict) else {}
        )
        if "range" in scale:
            found.append((scale["domain"], scale["range"]))
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            found += _colour_scales(child)
    return found


def test_charts_side_by_side_keep_their_own_zoom():
    both = alt.hconcat(charts.loss_vs_rate(sweep()), charts.loss_vs_rate(sweep(seeds=2))).to_dict()
    names = [parameter["name"] for parameter in both["params"]]
    assert len(names) == len(set(names)) == 4
    assert json.dumps(both).count('"bind": "scales"') == 2


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: charts.loss_vs_rate(sweep().drop("seed")), r"missing columns \['seed'\]"),
        (lambda: charts.loss_vs_rate(sweep().clear()), "no rows"),
        (lambda: charts.loss_vs_rate(pl.concat([sweep()] * 2)), "2 runs share"),
        (lambda: charts.loss_curves(with_curves(sweep())), "7 runs share.*at_best_rate"),
        (lambda: charts.loss_curves(with_curves(sweep()), y="test"), "unknown y 'test'; known"),
        (lambda: charts.step_time(times().with_columns(step_ms=0.0)), "finite and above 0, got 0"),
        (
            lambda: charts.invariance(changes().with_columns(relative_change=math.inf)),
            "finite and 0 or above, got inf",
        ),
        (
            lambda: charts.loss_vs_rate(sweep().with_columns(learning_rate=-pl.col("seed") - 1.0)),
            "share|must be positive",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


@pytest.fixture
def renderers():
    before = alt.renderers.active
    yield alt.renderers
    alt.renderers.enable(before)


def test_offline_bundle_has_version_5_and_a_picture_of_its_width(renderers):
    charts.enable_offline_renderer()
    charts.enable_offline_renderer()
    chart = charts.loss_vs_rate(sweep())
    bundle, metadata = chart._repr_mimebundle_()
    live = bundle["application/vnd.vegalite.v5+json"]
    assert live["$schema"].endswith("/vega-lite/v5.json")
    assert live["config"]["background"] == "#FFFFFF"
    picture = base64.b64decode(bundle["image/png"])
    assert size(picture)[0] // 2 == metadata["image/png"]["width"]
    # Twice the plot's 480 by 320, and something around it.
    assert 2 * 480 < size(picture)[0] < 2 * 800 and 2 * 320 < size(picture)[1] < 2 * 520
    assert bundle["text/plain"] == "<chart: Loss against learning rate>"
    assert not any("v6" in kind for kind in bundle)
    assert charts.to_png(chart) == picture
    without, metadata = charts.offline_bundle(chart.to_dict(), png=False)
    assert "image/png" not in without and metadata == {}


def test_a_charts_own_configuration_wins():
    chart = charts.loss_vs_rate(sweep()).configure_axis(labelFontSize=20)
    config = renderer.styled(chart.to_dict())["config"]
    assert config["axis"]["labelFontSize"] == 20
    assert config["axis"]["titleFontSize"] == renderer.CONFIG["axis"]["titleFontSize"]


def _pixels(png: bytes) -> np.ndarray:
    """RGB of a PNG with 8 bits a channel and filters 0 or 1, decoded on its own."""
    at, packed = 8, b""
    while at < len(png):
        length, name = struct.unpack(">I4s", png[at : at + 8])
        body = png[at + 8 : at + 8 + length]
        assert struct.unpack(">I", png[at + 8 + length : at + 12 + length])[0] == zlib.crc32(
            name + body
        )
        if name == b"IHDR":
            width, height, _, kind, *_ = struct.unpack(">IIBBBBB", body)
        packed += body if name == b"IDAT" else b""
        at += 12 + length
    depth = {2: 3, 6: 4}[kind]
    raw, out = zlib.decompress(packed), np.zeros((height, width, depth), np.uint8)
    for row in range(height):
        line = np.frombuffer(raw, np.uint8, width * depth, row * (width * depth + 1) + 1)
        line = line.reshape(width, depth)
        out[row] = (
            np.add.accumulate(line, dtype=np.uint8) if raw[row * (width * depth + 1)] else line
        )
    return out[..., :3]


def test_the_picture_is_smaller_and_the_same():
    import vl_convert

    spec = renderer.styled(charts.loss_vs_rate(sweep()).to_dict())
    plain = vl_convert.vegalite_to_png(spec, vl_version="6.4", scale=2)
    packed = smaller(plain)
    np.testing.assert_array_equal(_pixels(plain), _pixels(packed))
    assert len(packed) < 0.5 * len(plain)
    assert smaller(packed) == packed
    clear = vl_convert.vegalite_to_png(
        {**spec, "config": spec["config"] | {"background": "transparent"}}, vl_version="6.4"
    )
    assert smaller(clear) == clear
    with pytest.raises(ValueError, match="not a PNG"):
        smaller(b"GIF89a..")
