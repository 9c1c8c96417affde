"""A look inside a run while it trains: what a step does to each layer, and the factors' spectra."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import altair as alt
import polars as pl

from isolab.charts.parts import NAMED_COLOURS, OTHER_COLOURS, bound, finite, tip

_NAMES = 95  # pixels for the names of layers
_MOST_LAYERS = 26  # names that there is room for
_LEAST = 1e-7  # float32 tells no smaller eigenvalue of a factor from 0
_POINTS = 40  # of a spectrum, evenly spaced on the log axis
_SHAPES = {"embedding": "square", "hidden": "circle", "readout": "diamond", "vector": "triangle-up"}
_DASHES = [[1, 0], [6, 2], [2, 2], [8, 2, 2, 2]]
_KINDS = {"qkv": 0, "out": 1, "up": 2, "down": 3}  # the four matrices of a block, by colour


def layers_inside(frame: pl.DataFrame, title: str | None = None) -> alt.HConcatChart:
    """Draws, per layer from the input down, how far a step moves it and along its inputs or not.

    Left: root mean square of a step's change over that of the parameter; right: the change's
    alignment with what enters the layer, 1/2 none and 1 full. What cannot be drawn is named.

    Args:
        frame: ``step``, ``layer``, ``role``, ``relative_update`` and ``alignment``, a row per
            layer, as ``layers`` of :class:`isolab.measure.inside.Inside`.
        title: in place of the step.

    Raises:
        ValueError: for missing columns, no rows, or rows of several steps.
    """
    values = {"size": "relative_update", "alignment": "alignment"}
    points = finite(frame, ["step", "layer", "role"], values)
    step = _only_step(points)
    notes = ["At the peak rate. Right: 1/2, no alignment; 1, full."]
    if len(points) > _MOST_LAYERS:
        points = points.filter(pl.col("role") != "vector")
        notes.append("The norms' gains are left out.")
    names = points["layer"].to_list()
    points = points.with_columns(
        pl.when(pl.col("size") > 0).then("size").alias("size"),
        pl.col("alignment").clip(0.0, 1.0).alias("drawn"),
    )
    if (points["alignment"] < 0).any():
        notes.append("An alignment below 0 is drawn at 0.")
    lost = points.filter(pl.col("size").is_null())["layer"].to_list()
    if lost:
        notes.append(f"Nothing that can be drawn: {_listed(lost)}.")
    height = len(names) * (14 if len(names) <= _MOST_LAYERS else 11)
    shapes = {role: its for role, its in _SHAPES.items() if role in points["role"]}
    color = _scaled("role", {role: NAMED_COLOURS[role] for role in shapes})
    shape = alt.Shape("role:N", title=None, legend=_legend(), scale=_scale(shapes))
    tips = [tip("layer"), tip("role"), tip("size", ".2e", "change over size")]
    tips.append(tip("alignment", ".3f"))

    def panel(x: alt.X, heading: str, left: bool, rules: Sequence[float]) -> alt.LayerChart:
        axis = alt.Axis(
            labels=left, ticks=False, domain=False, grid=True,
            minExtent=_NAMES if left else 0, labelLimit=_NAMES, labelFontSize=10,
            labelExpr="replace(datum.label, 'blocks/', '')",
        )  # fmt: skip
        y = alt.Y("layer:N", title=None, axis=axis).scale(domain=names)
        column = x["shorthand"].removesuffix(":Q")
        its = points.filter(pl.col(column).is_not_null())
        dots = alt.Chart(its).mark_point(filled=True, size=45, opacity=1)
        dots = dots.encode(x=x, y=y, color=color, shape=shape, tooltip=tips)
        lines = alt.Chart(pl.DataFrame({column: list(rules)}, schema={column: pl.Float64}))
        rule = lines.mark_rule(color="#666666", strokeDash=[4, 3]).encode(x=x)
        return _layered([rule, dots]).properties(
            title=_heading(heading), width=118 if left else 78, height=max(height, 60)
        )

    low, high = _decades(points["size"])
    ticks = [10.0**k for k in range(low, high + 1)]
    sizes = alt.X("size:Q", title=None, axis=alt.Axis(values=ticks, format="~g")).scale(
        type="log", domain=[ticks[0], ticks[-1]], nice=False
    )
    along = alt.X("drawn:Q", title=None, axis=alt.Axis(values=[0, 0.5, 1], format="~g")).scale(
        domain=[0, 1.02], nice=False
    )
    panels = [
        panel(sizes, "change of a step / size", left=True, rules=[]),
        panel(along, "alignment", left=False, rules=[0.5, 1.0]),
    ]
    whole = alt.hconcat(*panels, spacing=8).resolve_scale(color="shared", shape="shared")
    ends = points.sort("size", nulls_last=True)
    description = (
        f"Per layer after {step} steps: relative size of a step's change, and its alignment."
        f" Smallest change {_said(ends, 0)}; largest {_said(ends.drop_nulls('size'), -1)}."
    )
    return _finished(whole, title or f"Inside the layers, step {step}", notes, description)


def spectra(
    frame: pl.DataFrame, title: str = "Spectra of the factors", note: str = ""
) -> alt.HConcatChart:
    """Draws eigenvalues of each hidden matrix's two factors, over the largest, by their place.

    A steep line: few directions hold all of what enters the layer (or of its gradients), and a step
    that whitens, as IsoAdam's, differs most from one that does not. Colour: which matrix; dashes:
    which block.

    Args:
        frame: ``layer``, ``side``, ``index`` and ``eigenvalue``, as ``spectra`` of
            :class:`isolab.measure.inside.Inside`.
        title: of the chart.
        note: said below the title, such as what was left out.

    Raises:
        ValueError: for missing columns, no rows, or no eigenvalue that is finite.
    """
    points = finite(frame, ["layer", "side", "index"], {"eigenvalue": "eigenvalue"})
    points = points.filter(pl.col("eigenvalue").is_not_null())
    if points.is_empty():
        raise ValueError("nothing to draw: no eigenvalue of the frame is finite")
    path = pl.col("layer").str.split("/")
    points = points.with_columns(
        path.list.last().alias("matrix"),
        path.list.get(1, null_on_oob=True).fill_null("none").alias("block"),
    )
    points = _thinned(points)
    under = points.filter(pl.col("eigenvalue") < _LEAST).height
    points = points.with_columns(pl.col("eigenvalue").clip(_LEAST, 1.0).alias("drawn"))
    matrices = points["matrix"].unique(maintain_order=True).to_list()
    hues = {m: OTHER_COLOURS[_KINDS.get(m, 4 + i) % 8] for i, m in enumerate(matrices)}
    blocks = sorted(points["block"].unique(), key=lambda name: (len(name), name))
    dashes: dict[str, Any] = {b: _DASHES[i % len(_DASHES)] for i, b in enumerate(blocks)}
    color = _scaled("matrix", hues, symbolType="stroke", symbolStrokeWidth=1.6)
    legend = _legend(
        symbolType="stroke", symbolStrokeColor="black", symbolStrokeWidth=1.6, symbolSize=150,
        titleOrient="left", titleFontSize=10,
    )  # fmt: skip
    dash = alt.StrokeDash("block:N", title="block", legend=legend, scale=_scale(dashes))
    powers = range(round(math.log10(_LEAST)), 1)
    y = alt.Y("drawn:Q", title=None).scale(type="log", domain=[_LEAST, 1.0], nice=False)
    largest = bound(points["index"], "max")
    places = [2.0**k for k in range(0, 12, 2) if 2.0**k <= largest]
    x = alt.X("index:Q", title="place", axis=alt.Axis(values=places, format="~g")).scale(
        type="log", base=2, domain=[1.0, max(largest, 2.0)], nice=False
    )
    tips = [tip("layer"), tip("side"), tip("index", "d", "place"), tip("eigenvalue", ".2e")]
    panels: list[alt.LayerChart] = []
    for side in points["side"].unique(maintain_order=True):
        axis = alt.Axis(values=[10.0**k for k in powers][::2], format="~e", labels=not panels)
        its = alt.Chart(points.filter(pl.col("side") == side)).encode(
            x=x, y=y.axis(axis), detail="layer:N", tooltip=tips
        )
        lines = its.mark_line(clip=True, strokeWidth=1.6).encode(color=color, strokeDash=dash)
        dots = its.mark_circle(clip=True, size=40, opacity=0)  # for the tooltip
        panels.append(
            _layered([lines, dots]).properties(title=_heading(side), width=120, height=150)
        )
    whole = alt.hconcat(*panels, spacing=10).resolve_scale(color="shared", strokeDash="shared")
    notes = ["Over the largest eigenvalue, on a held-out batch."]
    notes += [f"{note[0].upper()}{note[1:]}."] if note else []
    if under:
        notes.append(f"At the bottom: below {_LEAST:.0e}, rounding.")
    wide = points.filter(pl.col("eigenvalue") >= 0.01).group_by("layer", "side")
    counts = wide.agg(pl.col("index").max())["index"]
    description = (
        "Eigenvalues of the input and output factors of hidden matrices, falling with their place."
        f" From {bound(counts, 'min', 0):.0f} to {bound(counts, 'max', 0):.0f} eigenvalues of a"
        " factor are a hundredth of its largest or more."
    )
    return _finished(whole, title, notes, description)


def _only_step(points: pl.DataFrame) -> int:
    steps = points["step"].unique().sort().to_list()
    if len(steps) != 1:
        raise ValueError(f"the frame has steps {steps}; allowed: one look, of one step")
    return int(steps[0])


def _thinned(points: pl.DataFrame) -> pl.DataFrame:
    """Keeps about ``_POINTS`` places of each spectrum, even on a log axis, and its ends."""
    groups = ["layer", "side"]
    last = pl.col("index").max().over(groups)
    slot = (pl.col("index").log() / last.log().clip(lower_bound=1e-9) * _POINTS).round()
    first = pl.col("index").cum_count().over([*groups, "slot"]) == 1
    kept = points.with_columns(slot.alias("slot")).filter(first | (pl.col("index") == last))
    return kept.drop("slot")


def _decades(sizes: pl.Series) -> tuple[int, int]:
    """Returns the powers of ten around positive sizes, two or more apart."""
    low = math.floor(math.log10(bound(sizes, "min", 1e-3)))
    high = math.ceil(math.log10(bound(sizes, "max", 1e-1)))
    return low, max(high, low + 1)


def _scale(values: dict[str, Any]) -> alt.Scale:
    return alt.Scale(domain=list(values), range=list(values.values()))


def _scaled(column: str, colours: dict[str, str], **legend: Any) -> alt.Color:
    return alt.Color(f"{column}:N", title=None, legend=_legend(**legend), scale=_scale(colours))


def _legend(**options: Any) -> alt.Legend:
    look: dict[str, Any] = {"orient": "bottom", "direction": "horizontal", "columns": 4}
    look |= {"labelFontSize": 10, "columnPadding": 6, "symbolSize": 60}
    return alt.Legend(**look | options)


def _heading(text: str) -> alt.TitleParams:
    return alt.TitleParams(text, fontSize=11.5, offset=6, frame="group")


def _layered(layers: Sequence[alt.Chart]) -> alt.LayerChart:
    chart = alt.layer(*layers)
    assert isinstance(chart, alt.LayerChart)  # not a facet: no layer has one
    return chart


def _finished(
    whole: alt.HConcatChart, title: str, notes: Sequence[str], description: str
) -> alt.HConcatChart:
    lines = [line for note in notes for line in textwrap.wrap(note, 54)]
    heading = alt.TitleParams(title, subtitle=lines, fontSize=13, subtitleFontSize=11)
    finished: alt.HConcatChart = whole.properties(title=heading, description=description)
    return finished


def _said(points: pl.DataFrame, place: int) -> str:
    if points.is_empty() or points["size"][place] is None:
        return "unknown"
    return f"{points['size'][place]:.2g}, {points['layer'][place]}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
