"""Final losses against the length of the schedule."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import altair as alt
import numpy as np
import polars as pl

from isolab.analysis.optimum import at_best_rate
from isolab.analysis.power_law import fit_power_law
from isolab.analysis.seeds import require_columns
from isolab.charts.parts import (
    bound,
    colour,
    finish,
    finite,
    label,
    log_axis,
    padded,
    tip,
    title_of,
)

if TYPE_CHECKING:
    from isolab.analysis.speedup import Speedup


def loss_vs_steps(
    runs: pl.DataFrame,
    color: str = "optimizer",
    speedup: Speedup | None = None,
    steps: str = "steps",
    rate: str = "learning_rate",
    loss: str = "final_validation_loss",
    seed: str = "seed",
    title: str = "Loss against length of the schedule",
) -> alt.LayerChart:
    """Draws final losses against horizons, each with its own full schedule and its best rate.

    The curve is :func:`~isolab.analysis.power_law.fit_power_law`'s through the seed means. With
    ``speedup``, a dashed line runs from the challenger's point to the baseline's curve.

    Args:
        runs: a row per run; ``color``, ``steps``, ``rate``, ``loss`` and ``seed``.

    Raises:
        ValueError: for missing columns, no rows, or no horizon with a finite loss.
    """
    require_columns(runs, [color, steps, rate, loss, seed])
    notes, kept = [], []
    for (group, horizon), its in runs.sort(color, steps).group_by(
        [color, steps], maintain_order=True
    ):
        try:
            kept.append(at_best_rate(its, [color, steps], rate, loss, seed))
        except ValueError as error:
            notes.append(f"{group} at {horizon} steps is not drawn: {error}")
    if not kept:
        raise ValueError("no horizon can be drawn: " + ("; ".join(notes) or "the frame is empty"))
    points = finite(pl.concat(kept), [color, steps, rate, seed], {"loss": loss})
    means = (
        points.group_by(color, steps)
        .agg(pl.col("loss").mean().alias("mean"), pl.col(rate).first(), pl.len().alias("seeds"))
        .sort(color, steps)
    )
    laws, said = _laws(means, color, steps)
    hue, pick, faded = colour(points[color], color)
    x = log_axis(steps, points[steps], f"{title_of(steps)} (log2 axis)", format=",d")
    lowest, highest = bound(points["loss"], "min"), bound(points["loss"], "max")
    y = alt.Y("loss:Q", title=title_of(loss)).scale(padded(lowest, highest))
    where = [tip(color), tip(steps, ",d"), tip(rate, ".4~g", "best rate of the grid")]
    layers = [
        alt.Chart(points)
        .mark_circle(clip=True, size=36)
        .encode(
            x=x,
            y=y,
            color=hue,
            opacity=faded(0.5),
            tooltip=[*where, tip(seed), tip("loss", ".4f")],
        ),
        alt.Chart(means)
        .mark_point(filled=True, size=90, stroke="white", strokeWidth=1)
        .encode(
            x=x,
            y=alt.Y("mean:Q"),
            color=hue,
            opacity=faded(1),
            tooltip=[*where, tip("mean", ".4f", "mean loss"), tip("seeds")],
        ),
    ]
    if not laws.is_empty():
        law = alt.Chart(laws).mark_line(clip=True, strokeWidth=2)
        layers.insert(
            0,
            law.encode(
                x=x,
                y=alt.Y("fitted:Q"),
                color=hue,
                opacity=faded(0.9),
                tooltip=[tip(color), tip("law")],
            ),
        )
    if speedup is not None and speedup.value is None:
        notes.append(f"No speedup: {speedup.reason}")
    elif speedup is not None:
        layers += _speedup_layers(speedup, x, steps)
        said = [f"Speedup in steps: {_speedup_text(speedup)}", *said]
        notes += [speedup.reason] if speedup.reason else []
    return finish(layers, title, said + notes, pick)


def _laws(means: pl.DataFrame, color: str, steps: str) -> tuple[pl.DataFrame, list[str]]:
    """Returns fitted curves, 60 points a group of 2 horizons or more, and what to say of them."""
    frames, notes = [], []
    for (group,), its in means.group_by([color], maintain_order=True):
        if len(its) < 2:
            continue
        try:
            law = fit_power_law(its[steps].to_numpy(), its["mean"].to_numpy())
        except ValueError as error:
            notes.append(f"{group}: {error}")
            continue
        at = np.geomspace(bound(its[steps], "min"), bound(its[steps], "max"), 60)
        text = f"{law.limit:.3f} + {law.scale:.3g} T^-{law.exponent:.3f}"
        notes.append(f"{group}: L(T) = {text}, residual {law.residual:.4f} nats")
        frames.append(
            pl.DataFrame({steps: at, "fitted": law.loss(at)}).with_columns(
                pl.lit(group).alias(color), pl.lit(text).alias("law")
            )
        )
    return (pl.concat(frames) if frames else pl.DataFrame()), notes


def _speedup_text(speedup: Speedup) -> str:
    text = f"{speedup.value:.2f}×"
    if speedup.interval is None or speedup.seeds < 2:
        return text
    low, high = speedup.interval
    ends = ["open" if low == 0 else f"{low:.2f}", "open" if math.isinf(high) else f"{high:.2f}"]
    return f"{text} (95% interval {ends[0]} to {ends[1]})"


def _speedup_layers(speedup: Speedup, x: alt.X, steps: str) -> list[alt.Chart]:
    assert speedup.value is not None and speedup.baseline_steps is not None
    row: dict[str, Any] = {
        steps: float(speedup.challenger_steps),
        "to": speedup.baseline_steps,
        "middle": math.sqrt(speedup.challenger_steps * speedup.baseline_steps),
        "loss": speedup.challenger_loss,
        "label": f"{speedup.value:.2f}×",
        "speedup in steps": _speedup_text(speedup),
    }
    drawn = alt.Chart(pl.DataFrame([row])).encode(
        y=alt.Y("loss:Q"), tooltip=[tip("speedup in steps"), tip("loss", ".4f")]
    )
    rule = drawn.mark_rule(strokeDash=[4, 3], strokeWidth=2, color="#333333")
    return [
        rule.encode(x=x, x2="to:Q"),
        *label(drawn.encode(x=alt.X("middle:Q")), "label", dy=-11, color="#222222", size=14),
    ]
