"""A claim: a question with a number, a threshold fixed before the run, and a verdict.

The verdict comes from the interval, never from the number alone. With the allowed set S being
everything above, below or within the threshold:

- reproduced: the whole interval lies in S;
- not reproduced: no point of the interval lies in S;
- inconclusive: part of it does, or a reason to judge nothing was given, such as a best learning
  rate at the edge of its grid.

A prediction that is one number, an exponent for instance, is a claim that the interval contains it:
reproduced where it does, and inconclusive where it also contains the rival's number, as an interval
that is wide enough contains anything.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MIME = "application/vnd.isolab.claim+json"
DIRECTIONS = ("above", "below", "within", "contains")

# Mid-tone Okabe-Ito colours, at least 3:1 on white and on dark; the word carries the meaning.
_BAR = {"reproduced": "#009E73", "not reproduced": "#D55E00", "inconclusive": "#8C8C8C"}


@dataclass(frozen=True)
class Claim:
    """One question, our number and its interval, the threshold and the verdict.

    In a notebook it shows itself as one block, readable in light and dark, in re-opened notebooks
    and in exported pages; ``application/vnd.isolab.claim+json`` carries the same for machines.

    Args:
        question: what is asked, in words.
        measured: our number; None only with an ``inconclusive`` reason.
        interval: (low, high) over seeds; an infinite end is open. None as for ``measured``.
        threshold: fixed before the run. With "within", a number t means [-t, t], and a pair means
            [low, high], ends included.
        direction: "above", "below" or "within": where the threshold puts a reproduction; or
            "contains": the interval must contain the threshold.
        unit: of the three numbers.
        source: paper, section or figure.
        inconclusive: a reason that forces the verdict "inconclusive".
        prediction: what was expected before the run, in words.
        confidence: of the interval.
        rival: with "contains", what another theory predicts: the interval must not contain it.

    Raises:
        ValueError: for an empty question, an unknown direction, a NaN, an interval with low above
            high, a threshold of the wrong shape, or a missing number without a reason.

    Example:
        >>> claim = Claim("Does IsoAdam reach Adam's loss in fewer steps?", 1.6, (1.4, 1.9), 1.1)
        >>> claim.verdict
        'reproduced'
        >>> Claim("And twice as fast?", 1.6, (1.4, 1.9), 2.0).verdict
        'not reproduced'
        >>> Claim("At least 1.5 times?", 1.6, (1.4, 1.9), 1.5).verdict
        'inconclusive'
    """

    question: str
    measured: float | None
    interval: tuple[float, float] | None
    threshold: float | tuple[float, float]
    direction: str = "above"
    unit: str = ""
    source: str = ""
    inconclusive: str | None = None
    prediction: str = ""
    confidence: float = 0.95
    rival: float | None = None

    def __post_init__(self) -> None:
        if not self.question.strip():
            raise ValueError("question is empty: say what is asked")
        if self.direction not in DIRECTIONS:
            raise ValueError(f"unknown direction {self.direction!r}; known: {list(DIRECTIONS)}")
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence must lie between 0 and 1, got {self.confidence}")
        if self.inconclusive is not None and not self.inconclusive.strip():
            raise ValueError("inconclusive is an empty reason: give the reason, or None")
        if (self.measured is None or self.interval is None) and self.inconclusive is None:
            raise ValueError(
                f"measured is {self.measured} and interval {self.interval}: give both, or say in "
                "inconclusive why there is none"
            )
        if self.measured is not None:
            object.__setattr__(self, "measured", _number("measured", self.measured))
        if self.interval is not None:
            object.__setattr__(self, "interval", _pair("interval", self.interval))
        if self.direction == "contains" and self.rival is None:
            raise ValueError("direction 'contains' needs a rival: a number that would be as good")
        if self.rival is not None:
            if self.direction != "contains":
                raise ValueError(f"rival {self.rival} goes with direction 'contains' only")
            object.__setattr__(self, "rival", _number("rival", self.rival))
        if isinstance(self.threshold, tuple | list):
            if self.direction != "within":
                raise ValueError(
                    f"threshold {self.threshold} is a pair; direction {self.direction!r} needs a "
                    "number, only 'within' takes a pair"
                )
            object.__setattr__(self, "threshold", _pair("threshold", self.threshold))
        else:
            threshold = _number("threshold", self.threshold)
            if self.direction == "within" and threshold < 0:
                raise ValueError(f"threshold of 'within' must be 0 or above, got {threshold}")
            object.__setattr__(self, "threshold", threshold)

    @property
    def verdict(self) -> str:
        """Returns "reproduced", "not reproduced" or "inconclusive"."""
        if self.inconclusive is not None or self.interval is None:
            return "inconclusive"
        low, high = self.interval
        if self.direction == "contains":
            held, rivalled = (
                low <= value <= high  # type: ignore[operator]  # both are numbers here
                for value in (self.threshold, self.rival)
            )
            return "not reproduced" if not held else "inconclusive" if rivalled else "reproduced"
        if isinstance(self.threshold, tuple):
            at_least, at_most = self.threshold
        else:
            at_least, at_most = -self.threshold, self.threshold
        if self.direction == "above":
            inside, outside = low > at_most, high <= at_most
        elif self.direction == "below":
            inside, outside = high < at_most, low >= at_most
        else:
            inside, outside = low >= at_least and high <= at_most, high < at_least or low > at_most
        return "reproduced" if inside else "not reproduced" if outside else "inconclusive"

    @property
    def reason(self) -> str | None:
        """Returns why the verdict is inconclusive, or None where it is not."""
        if self.inconclusive is not None:
            return self.inconclusive
        if self.verdict == "inconclusive" and self.direction == "contains":
            return f"the interval also contains {_format(self.rival or 0.0)}, the rival prediction"
        if self.verdict == "inconclusive":
            return "the interval holds values on both sides of the threshold"
        return None

    def _lines(self) -> list[tuple[str, str]]:
        lines = [("predicted", self.prediction)] if self.prediction else []
        measured = self.measured
        ours = "no number" if measured is None else self._with_unit(_format(measured))
        if self.interval is not None:
            low, high = map(_format, self.interval)
            ours += f" ({100 * self.confidence:g}% interval {low} to {high})"
        lines.append(("measured", ours))
        if isinstance(self.threshold, tuple):
            limit = " to ".join(map(_format, self.threshold))
        else:
            sign = "±" if self.direction == "within" else ""
            limit = sign + _format(self.threshold)
        if self.rival is not None:
            limit += f" and not {_format(self.rival)}"
        lines.append(("threshold", self._with_unit(f"{self.direction} {limit}")))
        if self.source:
            lines.append(("source", self.source))
        lines.append(("verdict", self.verdict + (f": {self.reason}" if self.reason else "")))
        return lines

    def _with_unit(self, number: str) -> str:
        return f"{number} {self.unit}".rstrip()

    def __str__(self) -> str:
        lines = [self.question, *(f"  {name:<10} {text}" for name, text in self._lines())]
        return "\n".join(lines)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        return {"text/plain": str(self), "text/html": self._html(), MIME: self.to_dict()}

    def _html(self) -> str:
        # No table (JupyterLab stripes those) and no text colour: it inherits the theme's.
        rows = []
        for name, text in self._lines():
            body = html.escape(text)
            if name == "verdict":
                body = f"<b>{html.escape(self.verdict)}</b>" + body[len(self.verdict) :]
            rows.append(
                '<div style="display: flex"><span style="flex: 0 0 6em; opacity: 0.75">'
                f"{name}</span> <span>{body}</span></div>"
            )
        return (
            f'<div class="isolab-claim" style="border-left: 5px solid {_BAR[self.verdict]}; '
            'padding: 4px 12px; margin: 6px 0; max-width: 52em; line-height: 1.5">'
            f"<div><b>{html.escape(self.question)}</b></div>{''.join(rows)}</div>"
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns the claim as strict JSON; an infinite number is null, as JSON has none."""
        pair = self.threshold if isinstance(self.threshold, tuple) else None
        return {
            "question": self.question,
            "measured": _finite(self.measured),
            "interval": None if self.interval is None else [_finite(v) for v in self.interval],
            "threshold": [_finite(v) for v in pair] if pair else _finite(self.threshold),
            "direction": self.direction,
            "rival": _finite(self.rival),
            "unit": self.unit,
            "source": self.source,
            "prediction": self.prediction,
            "confidence": self.confidence,
            "verdict": self.verdict,
            "reason": self.reason,
        }


def interval_of(row: Mapping[str, Any], name: str) -> tuple[float, float] | None:
    """Returns columns ``<name>_low`` and ``<name>_high`` of an analysis's row, None if null."""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return None if low is None or high is None else (low, high)


def reason_of(row: Mapping[str, Any], name: str) -> str | None:
    """Returns why a claim on ``name`` of an analysis's row must be inconclusive, or None."""
    missing = row[name] is None or interval_of(row, name) is None
    return row["reason"] or (f"no number: {row['note'] or 'not measured'}" if missing else None)


def _number(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a number, got {value!r}") from None
    if math.isnan(number):
        raise ValueError(f"{name} is NaN: give a number")
    return number


def _pair(name: str, value: Any) -> tuple[float, float]:
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise ValueError(f"{name} must be a pair (low, high), got {value!r}")
    low, high = _number(f"{name}'s low end", value[0]), _number(f"{name}'s high end", value[1])
    if low > high:
        raise ValueError(f"{name} has its low end {low:g} above its high end {high:g}")
    return low, high


def _format(value: float) -> str:
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:.4g}"


def _finite(value: Any) -> float | None:
    return None if value is None or math.isinf(value) else float(value)
