"""What holds of every chart: it is drawn by all Vega-Lites, keeps its colours, refuses nonsense."""

from __future__ import annotations

import collections
import itertools
import json
import math

import altair as alt
import polars as pl
import pytest
import vl_convert
from charts import samples
from charts.samples import BOTH_ORIGINS, BY, EVERY, INSIDE, sweep, transfer

from isolab import charts
from isolab.charts import renderer
from isolab.measure.gradients import damped_shares

ALL = EVERY | {f"{name} of both origins": make for name, make in BOTH_ORIGINS.items()}
OLDEST = "5.8"  # that vl-convert has; JupyterLab's own is 5.6


def colours(chart):
    """Returns the scale of each layer that has colours."""
    spec = chart.to_dict()
    layers = [layer for panel in spec.get("concat", [spec]) for layer in panel["layer"]]
    return [its["encoding"]["color"]["scale"] for its in layers if "color" in its["encoding"]]


def repeated_signals(group):
    """Returns the names that two signals of one group share, and of the groups within."""
    names = collections.Counter(signal["name"] for signal in group.get("signals", []))
    twice = [name for name, count in names.items() if count > 1]
    return twice + [name for mark in group.get("marks", []) for name in repeated_signals(mark)]


@pytest.mark.parametrize("name", ALL)
def test_every_chart_is_strict_json_with_titles_and_drawn_by_an_old_vega_lite(name):
    """No parameter is declared twice, and two origins are told apart."""
    spec = ALL[name]().to_dict()  # checked against the schema
    json.dumps(spec, allow_nan=False)
    for rows in spec["datasets"].values():
        assert 0 < len(rows) <= 5000
        assert not {"nan", "inf", "-inf", "NaN"} & {str(v) for row in rows for v in row.values()}
    assert spec["title"]["text"]
    layers = [layer for panel in spec.get("concat", [spec]) for layer in panel["layer"]]
    unnamed = {"ranking": "y", "coordinate_slopes": "y", "layers_inside": "xy", "spectra": "y"}
    for along in set("xy") - set(unnamed.get(name.split()[0], "")):
        assert any(its["encoding"].get(along, {}).get("title") for its in layers)
    views = [view for its in spec.get("params", []) for view in its["views"]]
    holders = [layer for layer in layers if layer.get("name") in views]
    assert len(holders) == len(set(views))
    assert not any("point" in layer["mark"] for layer in holders)
    live = renderer.offline_bundle(spec, png=False)[0][renderer.VEGALITE_MIME]
    assert min(renderer.size(vl_convert.vegalite_to_png(live, vl_version=OLDEST))) > 150
    assert repeated_signals(vl_convert.vegalite_to_vega(live, vl_version=OLDEST)) == []
    vl_convert.vegalite_to_vega(spec, vl_version="6.4")
    if name.endswith("both origins"):
        rows = itertools.chain(*spec["datasets"].values())
        assert {row["origin"] for row in rows if row.get("origin")} == {"reference", "yours"}
        hollow = any(its["mark"].get("filled") is False for its in layers)
        dashed = any(its["mark"].get("strokeDash") == [5, 3] for its in layers)
        panels = [panel["title"]["text"] for panel in spec.get("concat", [])]
        said = "Dashed and hollow: reference" in " ".join(spec["title"].get("subtitle", []))
        assert ((hollow or dashed) and said) or any("yours" in heading for heading in panels)


def test_an_optimizer_has_one_colour_in_every_chart():
    fixed = charts.OPTIMIZER_COLOURS
    assert len(set(fixed.values())) == len(fixed)
    for name in ("loss_vs_rate", "loss_curves", "loss_vs_steps", "step_time", "invariance"):
        (scale, *more) = colours(EVERY[name]())
        assert all(its == scale for its in more)
        assert scale["range"] == [fixed[name] for name in scale["domain"]]
    mixed = charts.loss_vs_rate(sweep({"adam": (-5, 1), "mine": (-5, 2), "other": (-5, 3)}))
    assert len(set(colours(mixed)[0]["range"])) == 3


def test_charts_side_by_side_keep_their_own_zoom():
    pair = alt.hconcat(charts.loss_vs_rate(sweep()), charts.loss_vs_rate(sweep(seeds=2))).to_dict()
    names = [parameter["name"] for parameter in pair["params"]]
    assert len(names) == len(set(names)) == 4
    assert json.dumps(pair).count('"bind": "scales"') == 2


FRAME = samples.cells()
REFUSED = {
    r"missing columns \['seed'\]": lambda: charts.loss_by_width(transfer().drop("seed")),
    "no rows": lambda: charts.loss_vs_rate(sweep().clear()),
    "2 runs share": lambda: charts.loss_vs_rate(pl.concat([sweep()] * 2)),
    "learning_rate must be finite and above 0": lambda: charts.loss_vs_rate(
        sweep().with_columns(pl.col("learning_rate") - 0.01)
    ),
    "4 runs share.*as rows or columns": lambda: charts.loss_by_width(transfer()),
    "rows and columns are both 'width'": lambda: charts.loss_by_width(transfer(), "width", "width"),
    r"unknown origin 'mine'; known: \['reference', 'yours'\]": lambda: charts.loss_by_width(
        transfer().with_columns(origin=pl.lit("mine")), *BY
    ),
    "7 runs share.*at_best_rate": lambda: charts.loss_curves(samples.with_curves(sweep())),
    "finite and 0 or above, got inf": lambda: charts.invariance(
        samples.changes().with_columns(relative_change=math.inf)
    ),
    "no row has a rate": lambda: charts.best_rate_vs_width(
        samples.best(transfer()).with_columns(rate=pl.lit(None, pl.Float64)), pl.DataFrame(), BY[0]
    ),
    r"one width, the frame has \[32, 64\]": lambda: charts.ranking(
        pl.DataFrame({"width": [32, 64], "rate_rule": "full"})
    ),
    "no alignment of the frame is finite": lambda: charts.alignment(
        samples.aligned().with_columns(alignment=math.nan)
    ),
    "width must be finite and above 0": lambda: charts.loss_by_eps(samples.cells(values=(0, 32))),
    "eps must be finite and 0 or": lambda: charts.loss_by_eps(samples.cells(epsilons=(-1.0, 1e-8))),
    r"lines are of \['sgd'\]; panels are of \['adam'": lambda: charts.loss_by_eps(
        FRAME, lines=samples.eps_curves().with_columns(variant=pl.lit("sgd"))
    ),
    "unknown role 'bias'; known": lambda: charts.loss_by_eps(
        FRAME, lines=samples.eps_curves().with_columns(role=pl.lit("bias"))
    ),
    "no share at an eps": lambda: charts.damped_shares(damped_shares(samples.moments(), [0.0])),
    r"the frame has steps \[40, 41\]; allowed: one step": lambda: charts.layers_inside(
        pl.concat([INSIDE, INSIDE.with_columns(pl.col("step") + 1)])
    ),
    "no eigenvalue of the frame is finite": lambda: charts.spectra(
        samples.spectra(3).with_columns(eigenvalue=pl.lit(math.nan))
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_drawn_is_refused(message):
    with pytest.raises(ValueError, match=message):
        REFUSED[message]()


def test_a_picture_is_drawn_once_and_another_chart_anew(tmp_path, monkeypatch):
    calls = []

    def counted(name, real):
        return lambda *given, **options: calls.append(name) or real(*given, **options)

    for name in ("vegalite_to_png", "vegalite_to_svg"):
        drawn = counted(name, getattr(renderer.vl_convert, name))
        monkeypatch.setattr(renderer.vl_convert, name, drawn)
    monkeypatch.setenv("ISOLAB_RUNS", str(tmp_path))
    point = {"mark": "point", "encoding": {"x": {"field": "a", "type": "quantitative"}}}
    one, two = ({**point, "data": {"values": [{"a": a}]}} for a in (1, 2))
    first = renderer.to_png(one)
    assert first.startswith(b"\x89PNG") and renderer.to_png(one) == first != renderer.to_png(two)
    assert renderer.to_svg(one) == renderer.to_svg(one) and renderer.to_svg(one)[:4] == "<svg"
    assert calls == ["vegalite_to_png"] * 2 + ["vegalite_to_svg"]
    assert len(list((tmp_path / renderer.FOLDER).iterdir())) == 3
