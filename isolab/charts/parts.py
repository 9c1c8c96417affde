"""What the charts share: colours, axes, tooltips, labels and the cleaning of frames."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, Literal

import altair as alt
import numpy as np
import polars as pl

from isolab.analysis.seeds import require_columns

# Okabe-Ito, its yellow darkened to an olive that shows on white, and a grey.
OPTIMIZER_COLOURS = {
    "adam": "#0072B2",
    "isoadam": "#D55E00",
    "muon": "#009E73",
    "adam_atan2": "#CC79A7",
    "adamw": "#56B4E9",
    "iso": "#E69F00",
    "sgd": "#7F7F7F",
    "lion": "#8A8A00",
    "adafactor": "#000000",
}
OTHER_COLOURS = [
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
    "#7F7F7F",
]

# Values that mean little to a reader as they are stored, in the order in which they are drawn.
NAMES = {
    "parameterization": {
        "standard": "standard",
        "ntk": "NTK",
        "mup": "muP",
        "mean_field": "mean-field",
    },
    "rate_rule": {
        "global": "one global rate",
        "full": "per layer, full alignment",
        "none": "per layer, no alignment",
    },
    "alignment": {"full": "full alignment", "none": "no alignment"},
    "rule": {"sgd": "SGD", "adam": "Adam", "adafactor": "Adafactor"},
    "kind": {"weights": "weights", "change": "change of the weights", "update": "last update"},
    "quantity": {"activation": "activation", "change": "change since the start"},
    "role": {role: role for role in ("embedding", "hidden", "readout", "vector")},
    "origin": {"reference": "reference", "yours": "yours"},
}
# Parameterizations, rate rules, roles and origins look the same in every chart too.
NAMED_COLOURS = {
    "standard": "#0072B2",
    "NTK": "#D55E00",
    "muP": "#009E73",
    "mean-field": "#CC79A7",
    "one global rate": "#000000",
    "per layer, full alignment": "#D55E00",
    "per layer, no alignment": "#0072B2",
    "embedding": "#0072B2",
    "hidden": "#D55E00",
    "readout": "#009E73",
    "vector": "#CC79A7",
    "reference": "#0072B2",
    "yours": "#D55E00",
    "activation": "#0072B2",
    "change since the start": "#D55E00",
}

TITLES = {
    "final_validation_loss": "final validation loss (nats/token)",
    "final_train_loss": "final training loss (nats/token)",
    "steps": "steps of the full schedule",
    "eps": "epsilon",
    "b1": "β₁",
    "b2": "β₂",
}
WIDTH, HEIGHT = 480, 320
EDGE_MARK = "at the top edge"
MAX_ROWS = 5000  # Altair's own limit for one data set

_SHAPES = {
    "diverged": "M-0.9,-0.9L0.9,0.9M-0.9,0.9L0.9,-0.9",
    "above the axis": "triangle-up",
}

# Altair gives equal parameters equal names, and would link charts that are shown side by side.
_NUMBERS = itertools.count(1)

Faded = Callable[[float], Any]


def words(column: str) -> str:
    """Returns a column's name in words.

    Example:
        >>> words("learning_rate")
        'learning rate'
    """
    return column.replace("_", " ")


def title_of(column: str) -> str:
    """Returns a column's axis title, with its unit where it has one."""
    return TITLES.get(column, words(column))


def spelled(frame: pl.DataFrame) -> pl.DataFrame:
    """Returns the frame with the values of :data:`NAMES` in words, sorted in that order.

    Example:
        >>> spelled(pl.DataFrame({"parameterization": ["mup", "ntk"]})).to_series().sort().to_list()
        ['NTK', 'muP']
    """
    for column, names in NAMES.items():
        if column in frame.columns and frame.schema[column] == pl.String:
            said = frame[column].replace(names)
            known = list(names.values())
            others = [v for v in said.drop_nulls().unique().sort() if v not in known]
            frame = frame.with_columns(said.cast(pl.Enum(known + others)))
    return frame


def signed(number: float, digits: int = 2) -> str:
    """Returns a number with a minus sign as wide as its digits.

    Example:
        >>> signed(-1), signed(0.256)
        ('−1', '0.26')
    """
    text = f"{number:.{digits}f}" if number != round(number) else f"{number:.0f}"
    negative = text.startswith("-") and float(text) != 0
    return "−" * negative + text.removeprefix("-")


def fraction(number: float) -> str:
    """Returns a number as a fraction of eighths or simpler, or with two decimals if it is none.

    Example:
        >>> fraction(-0.5), fraction(1), fraction(0.123)
        ('−1/2', '1', '0.12')
    """
    near = Fraction(number).limit_denominator(8)
    return str(near).replace("-", "−") if abs(number - near) < 1e-4 else signed(number)


def summarized(notes: Sequence[str], most: int = 3) -> list[str]:
    """Returns the first notes and the number of the others."""
    more = len(notes) - most
    return [*notes[:most], *([f"and {more} more like this"] if more > 0 else [])]


def finite(
    frame: pl.DataFrame,
    columns: Sequence[str],
    values: dict[str, str],
    lossless: bool = False,
    zero: bool = False,
) -> pl.DataFrame:
    """Keeps ``columns`` and ``values`` (new name -> column), infinity and NaN turned into null.

    Args:
        lossless: raise instead, also at negative values, and at 0 unless ``zero``.

    Raises:
        ValueError: for missing columns, no rows, or as ``lossless`` says.
    """
    require_columns(frame, [*columns, *values.values()])
    if frame.is_empty():
        raise ValueError("nothing to draw: the frame has no rows")
    kept = frame.select(
        *dict.fromkeys(columns),
        *(
            pl.when(pl.col(column).cast(pl.Float64).is_finite())
            .then(pl.col(column).cast(pl.Float64))
            .alias(name)
            for name, column in values.items()
        ),
    )
    for name, column in values.items() if lossless else ():
        low = pl.col(name) < 0 if zero else pl.col(name) <= 0
        bad = frame.filter(kept.select(pl.col(name).is_null() | low).to_series())
        if not bad.is_empty():
            allowed = "finite and 0 or above" if zero else "finite and above 0"
            raise ValueError(f"{column} must be {allowed}, got {bad[column][0]}")
    return kept


def duplicates(frame: pl.DataFrame, columns: Sequence[str], advice: str = "") -> None:
    """Raises ValueError where several rows share ``columns``: their mean would mix settings."""
    columns = list(dict.fromkeys(columns))
    twice = frame.group_by(columns).len().filter(pl.col("len") > 1).sort(columns)
    if not twice.is_empty():
        row = twice.row(0, named=True)
        count = row.pop("len")
        advice = advice or "keep one configuration, or colour by the column that differs"
        raise ValueError(f"{count} runs share {row}: {advice}")


def thinned(frame: pl.DataFrame, column: str) -> pl.DataFrame:
    """Keeps every k-th value of ``column`` and its last, at most :data:`MAX_ROWS` rows."""
    if len(frame) <= MAX_ROWS:
        return frame
    values = frame[column].unique().sort()
    stride = math.ceil(len(frame) / (MAX_ROWS - len(frame) / len(values)))
    kept = pl.DataFrame(values.gather_every(stride).append(values[-1:]).unique())
    return frame.join(kept, on=column, how="semi", maintain_order="left")


def colour(values: pl.Series, column: str) -> tuple[alt.Color, alt.Parameter, Faded]:
    """Returns a colour encoding, the legend's selection, and opacities that follow it.

    Numbers are shades from dark to light; optimizers and the values of :data:`NAMES` have their own
    colours; other names take the remaining colours in alphabetical order.
    """
    levels = values.unique().sort().to_list()
    if values.dtype.is_numeric():
        scale = alt.Scale(domain=levels, scheme=alt.SchemeParams(name="viridis", extent=[0, 0.85]))
    else:
        fixed = OPTIMIZER_COLOURS | NAMED_COLOURS
        taken = {fixed[v] for v in levels if v in fixed}
        free = [c for c in OTHER_COLOURS if c not in taken] or OTHER_COLOURS
        unknown = [v for v in levels if v not in fixed]
        own = fixed | {v: free[i % len(free)] for i, v in enumerate(unknown)}
        scale = alt.Scale(domain=levels, range=[own[v] for v in levels])
    name = f"pick_{next(_NUMBERS)}"
    pick = alt.selection_point(name=name, fields=[column], bind="legend", toggle="true")
    kind = "O" if values.dtype.is_numeric() else "N"
    encoding = alt.Color(f"{column}:{kind}", title=words(column), scale=scale)

    def faded(opacity: float) -> Any:
        # What alt.when(pick) gives, at a fortieth of its time.
        return alt.OpacityValue(min(opacity, 0.07), condition={"param": name, "value": opacity})

    return encoding, pick, faded


def shown(marks: pl.Series) -> alt.Shape:
    """Returns the shape encoding, with a legend, of the edge marks that occur."""
    domain = [name for name in _SHAPES if name in marks]
    return alt.Shape(
        f"{EDGE_MARK}:N",
        scale=alt.Scale(domain=domain, range=[_SHAPES[name] for name in domain]),
        title=EDGE_MARK if len(domain) > 1 or "above the axis" in domain else "run",
    )


def log_domain(column: str, values: pl.Series) -> list[float]:
    """Returns the ends of a log axis, a little beyond the lowest and highest value.

    Raises:
        ValueError: for a value that is not a positive number.
    """
    levels = values.cast(pl.Float64)
    bad = levels.filter(levels.is_null() | ~levels.is_finite() | (levels <= 0))
    if len(bad):
        raise ValueError(f"{column} must be positive and finite, got {bad[0]}")
    low, high = bound(levels, "min"), bound(levels, "max")
    pad = (high / low) ** 0.05 if high > low else 1.5
    return [low / pad, high * pad]


def log_axis(column: str, values: pl.Series, title: str, format: str = ".3~g") -> alt.X:
    """Returns a log2 x axis with a tick at every value, thinned to ten.

    Raises:
        ValueError: for a value that is not a positive number.
    """
    domain = log_domain(column, values)
    levels = values.cast(pl.Float64).unique().sort()
    ticks = levels.gather_every(math.ceil(len(levels) / 10)).to_list()
    scale = alt.Scale(type="log", base=2, domain=domain, nice=False)
    axis = alt.Axis(values=ticks, format=format, labelOverlap=True, labelSeparation=6, grid=True)
    return alt.X(f"{column}:Q", title=title, scale=scale, axis=axis)


def bound(values: pl.Series, which: Literal["min", "max"], default: float = math.nan) -> float:
    """Returns the lowest or highest number of a series, or ``default`` where it has none."""
    numbers = values.cast(pl.Float64).drop_nulls()
    if numbers.is_empty():
        return default
    return float(np.min(numbers.to_numpy()) if which == "min" else np.max(numbers.to_numpy()))


def ceiling(means: pl.Series, losses: pl.Series) -> float:
    """Returns where to cut the loss axis: the highest loss, unless it would flatten the rest.

    It would where it lies more than 5 times as far above the lowest mean as the median mean does.
    """
    highest = bound(losses, "max", default=1.0)
    best = bound(means, "min", default=highest)
    middle = float(np.median(means.to_numpy())) if len(means) else highest
    return min(highest, best + 5 * (middle - best)) if middle > best else highest


def padded(
    bottom: float, top: float, rows: float = 0, labels: int = 1, height: int = HEIGHT
) -> alt.Scale:
    """Returns a linear scale with room for ``labels`` lines below and ``rows`` edge marks above."""
    span = max(top - bottom, 0.02 * abs(top), 1e-6)
    above = 14 + 12 * rows if rows else 8
    below = 15 + 13 * labels
    unit = span / (height - above - below)
    return alt.Scale(domain=[bottom - below * unit, top + above * unit], nice=False, zero=False)


def tip(column: str, format: str | None = None, name: str | None = None) -> alt.Tooltip:
    """Returns a tooltip entry; ``format`` makes it a number."""
    title = name or words(column)
    if format is None:
        return alt.Tooltip(f"{column}:N", title=title)
    return alt.Tooltip(f"{column}:Q", title=title, format=format)


def label(
    chart: alt.Chart,
    column: str,
    dy: int,
    color: str | None = None,
    size: int = 12,
    align: str = "center",
    dx: int = 0,
) -> list[alt.Chart]:
    """Returns a text on a white halo, so that it reads over lines."""
    font: Any = {"fontSize": size, "fontWeight": "bold", "dx": dx, "dy": dy, "align": align}
    text = alt.Text(f"{column}:N")
    halo = chart.mark_text(stroke="white", strokeWidth=4, strokeJoin="round", **font)
    ink = chart.mark_text(**font | ({"color": color} if color else {}))
    return [halo.encode(text=text), ink.encode(text=text)]


def finish(
    layers: Sequence[alt.Chart],
    title: str,
    notes: Sequence[str],
    pick: alt.Parameter | None,
    zoom: bool = True,
) -> alt.LayerChart:
    """Returns the layers as one chart, with title, subtitle, selection and zoom."""
    first, *rest = layers
    if pick is not None:
        first = first.add_params(pick)
    if zoom:
        name, wheel = f"zoom_{next(_NUMBERS)}", "wheel![event.shiftKey]"
        first = first.add_params(alt.selection_interval(name=name, bind="scales", zoom=wheel))
    lines = [line for note in notes for line in textwrap.wrap(note, 92)]
    heading = alt.TitleParams(title, subtitle=lines) if lines else alt.TitleParams(title)
    chart = alt.layer(first, *rest)
    assert isinstance(chart, alt.LayerChart)  # not a facet: no layer has one
    return chart.properties(title=heading, width=WIDTH, height=HEIGHT)
