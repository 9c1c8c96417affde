"""What charts look like: colours by meaning, values in words, titles, marks and the configuration.

An optimizer has the same colour in every chart, and so has a parameterization, a rate rule, a role
or an origin; the lab's charts take theirs from here too.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import polars as pl

Spec = dict[str, Any]
"""A piece of a Vega-Lite specification."""

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
_OTHERS = ("adam", "isoadam", "muon", "adam_atan2", "iso", "adamw", "adafactor", "sgd")
OTHER_COLOURS = [OPTIMIZER_COLOURS[name] for name in _OTHERS]
VIRIDIS = ["#440154", "#414487", "#2A788E", "#22A884", "#7AD151", "#B8A000"]  # last darkened
ORIGIN_RAMPS = {"reference": ("#08306B", "#6BAED6"), "yours": ("#7F2704", "#FD8D3C")}
"""First and last shade of numbers, where a chart shows both origins."""

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
    name: colour
    for column in ("parameterization", "role", "origin", "quantity")
    for name, colour in zip(NAMES[column].values(), OTHER_COLOURS, strict=False)
} | dict(zip(NAMES["rate_rule"].values(), ("#000000", "#D55E00", "#0072B2"), strict=True))
TITLES = {
    "final_validation_loss": "final validation loss (nats/token)",
    "final_train_loss": "final training loss (nats/token)",
}

WIDTH, HEIGHT = 480, 320
PANEL_HEIGHT = 210

LINE: Spec = {"type": "line", "clip": True, "strokeWidth": 2}
BAND: Spec = {"type": "area", "clip": True, "line": False}
BAR: Spec = {"type": "rule", "clip": True, "strokeWidth": 2}
POINT: Spec = {"type": "point", "clip": True, "filled": True, "size": 36}
TEXT: Spec = {"type": "text", "fontSize": 12, "fontWeight": "bold"}
DASHED: Spec = {"type": "rule", "color": "#666666", "strokeDash": [4, 3]}
CROSS = "M-0.9,-0.9L0.9,0.9M-0.9,0.9L0.9,-0.9"
DASH = [5, 3]  # of reference runs, beside the reader's own
# Vega writes 1e+1 and 1e-7; the plus only confuses.
TICK_1E = "replace(format(datum.value, '.0e'), '+', '')"

# A white card with dark text: the one picture must be readable in light and dark themes, and on a
# transparent ground no single text colour is.
CONFIG: Spec = {
    "background": "#FFFFFF",
    "padding": 12,
    "font": "Helvetica, Arial, sans-serif",
    "view": {"stroke": "#DDDDDD"},
    "axis": {
        "labelColor": "#333333",
        "titleColor": "#222222",
        "labelFontSize": 12,
        "titleFontSize": 13,
        "titleFontWeight": "normal",
        "titlePadding": 8,
        "gridColor": "#EEEEEE",
        "domainColor": "#888888",
        "tickColor": "#888888",
    },
    "legend": {
        "labelColor": "#333333",
        "titleColor": "#222222",
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "bold",
        "symbolSize": 90,
        "symbolOpacity": 1,
        "labelLimit": 260,
    },
    "title": {
        "anchor": "start",
        "color": "#222222",
        "fontSize": 15,
        "subtitleColor": "#555555",
        "subtitleFontSize": 12,
        "subtitlePadding": 4,
        "offset": 12,
    },
    "header": {"labelColor": "#333333", "titleColor": "#222222", "labelFontSize": 12},
}


def panel_width(count: int) -> int:
    """Returns the pixels that a panel is wide, of so many side by side."""
    return {1: WIDTH, 2: 320}.get(count, 210)


def words(column: str) -> str:
    """Returns a column's name in words."""
    return column.replace("_", " ")


def title_of(column: str) -> str:
    """Returns a column's axis title, with its unit where it has one."""
    return TITLES.get(column, words(column))


def spelled(frame: pl.DataFrame) -> pl.DataFrame:
    """Returns the frame with the values of :data:`NAMES` in words, sorted in that order."""
    for column, names in NAMES.items():
        if column in frame.columns and frame.schema[column] == pl.String:
            in_words = frame[column].replace(names)
            known = list(names.values())
            others = [v for v in in_words.drop_nulls().unique().sort() if v not in known]
            frame = frame.with_columns(in_words.cast(pl.Enum(known + others)))
    return frame


def signed(number: float, digits: int = 2) -> str:
    """Returns a number, without decimals if it has none, with a minus sign as wide as a digit."""
    text = f"{number:.{digits}f}" if number != round(number) else f"{number:.0f}"
    negative = text.startswith("-") and float(text) != 0
    return "−" * negative + text.removeprefix("-")


def fraction(number: float) -> str:
    """Returns a number as a fraction of eighths or simpler, or with two decimals if it is none."""
    near = Fraction(number).limit_denominator(8)
    return str(near).replace("-", "−") if abs(number - near) < 1e-4 else signed(number)


def value_text(value: Any, column: str = "") -> str:
    """Returns a name as it is, and a number after its column's name: "width 64"."""
    return value if isinstance(value, str) else f"{words(column)} {value:g}".lstrip()


def summarized(notes: Sequence[str], most: int = 3) -> list[str]:
    """Returns the first notes and the number of the others."""
    more = len(notes) - most
    return [*notes[:most], *([f"and {more} more like this"] if more > 0 else [])]


def colours_of(values: pl.Series) -> dict[str, str]:
    """Returns the colour of each name: fixed ones, and the remaining ones in alphabetical order."""
    fixed = OPTIMIZER_COLOURS | NAMED_COLOURS
    levels = values.unique().sort().to_list()
    taken = {fixed[v] for v in levels if v in fixed}
    free = [c for c in OTHER_COLOURS if c not in taken] or OTHER_COLOURS
    unknown = [v for v in levels if v not in fixed]
    own = fixed | {v: free[i % len(free)] for i, v in enumerate(unknown)}
    return {v: own[v] for v in levels}


def ramp(first: str, last: str, count: int) -> list[str]:
    """Returns so many colours from one to another."""
    ends = [[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in (first, last)]
    parts = [i / max(count - 1, 1) for i in range(count)]
    mixed = [[round(a + (b - a) * t) for a, b in zip(*ends, strict=True)] for t in parts]
    return [f"#{r:02X}{g:02X}{b:02X}" for r, g, b in mixed]
