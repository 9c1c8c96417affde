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
from numbers import Real
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
        measured: our number; None only with an ``inconclusive`` reason.
        interval: (low, high) over seeds; an infinite end is open. None as for ``measured``.
        threshold: fixed before the run. With "within", a number t means [-t, t], ends included.
        direction: "above", "below" or "within": where the threshold puts a reproduction; or
            "contains": the interval must contain the threshold.
        unit: of the three numbers; source: paper, section or figure.
        inconclusive: a reason that forces the verdict "inconclusive".
        prediction: what was expected before the run, in words.
        rival: with "contains", what another theory predicts: the interval must not contain it.
        origin: whose runs it was made from, such as "reference".

    Raises:
        ValueError: for an empty question, an unknown direction, what is no number, an interval with
            low above high, or a missing number without a reason.

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
    threshold: float
    direction: str = "above"
    unit: str = ""
    source: str = ""
    inconclusive: str | None = None
    prediction: str = ""
    confidence: float = 0.95
    rival: float | None = None
    origin: str = ""

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
        if (self.rival is not None) != (self.direction == "contains"):
            raise ValueError(
                f"rival is {self.rival} and direction {self.direction!r}: 'contains', and only "
                "that, needs a rival"
            )
        low, high = (None, None) if self.interval is None else self.interval
        for name, value in (
            ("measured", self.measured), ("interval's low end", low), ("threshold", self.threshold),
            ("interval's high end", high), ("rival", self.rival),
        ):  # fmt: skip
            if value is not None and not (isinstance(value, Real) and not math.isnan(value)):
                raise ValueError(f"{name} is {value!r}; allowed: a number")
        if low is not None and high is not None and low > high:
            raise ValueError(f"interval has its low end {low:g} above its high end {high:g}")
        if self.direction == "within" and self.threshold < 0:
            raise ValueError(f"threshold of 'within' must be 0 or above, got {self.threshold}")

    @property
    def verdict(self) -> str:
        """Returns "reproduced", "not reproduced" or "inconclusive"."""
        if self.inconclusive is not None or self.interval is None:
            return "inconclusive"
        (low, high), limit = self.interval, self.threshold
        if self.direction == "contains":
            outside = not low <= limit <= high
            inside = not outside and (self.rival is None or not low <= self.rival <= high)
        elif self.direction == "above":
            inside, outside = low > limit, high <= limit
        elif self.direction == "below":
            inside, outside = high < limit, low >= limit
        else:
            inside, outside = -limit <= low and high <= limit, high < -limit or low > limit
        return "reproduced" if inside else "not reproduced" if outside else "inconclusive"

    @property
    def reason(self) -> str | None:
        """Returns why the verdict is inconclusive, or None where it is not."""
        if self.inconclusive is not None or self.verdict != "inconclusive":
            return self.inconclusive
        if self.rival is not None:
            return f"the interval also contains {_format(self.rival)}, the rival prediction"
        return "the interval holds values on both sides of the threshold"

    def to_dict(self) -> dict[str, Any]:
        """Returns the claim as strict JSON; an infinite number is null, as JSON has none."""
        origin = {"origin": self.origin} if self.origin else {}
        names = ("question", "measured", "interval", "threshold", "direction", "rival", "unit",
                 "source", "prediction", "confidence", "verdict", "reason")  # fmt: skip
        return {name: _json_value(getattr(self, name)) for name in names} | origin

    def __str__(self) -> str:
        lines = [self.question, *(f"  {name:<10} {text}" for name, text in self._lines().items())]
        return "\n".join(lines)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        return {"text/plain": str(self), "text/html": self._html(), MIME: self.to_dict()}

    def _lines(self) -> dict[str, str]:
        unit = f" {self.unit}".rstrip()
        ours = "no number" if self.measured is None else _format(self.measured) + unit
        if self.interval is not None:
            low, high = map(_format, self.interval)
            ours += f" ({100 * self.confidence:g}% interval {low} to {high})"
        limit = ("±" if self.direction == "within" else "") + _format(self.threshold)
        if self.rival is not None:
            limit += f" and not {_format(self.rival)}"
        lines = {
            "runs": self.origin,
            "predicted": self.prediction,
            "measured": ours,
            "threshold": f"{self.direction} {limit}{unit}",
            "source": self.source,
            "verdict": self.verdict + (f": {self.reason}" if self.reason else ""),
        }
        return {name: text for name, text in lines.items() if text}

    def _html(self) -> str:
        # No table (JupyterLab stripes those) and no text colour: it inherits the theme's.
        lines = {name: html.escape(text) for name, text in self._lines().items()}
        lines["verdict"] = lines["verdict"].replace(self.verdict, f"<b>{self.verdict}</b>", 1)
        rows = "".join(
            '<div style="display: flex"><span style="flex: 0 0 6em; opacity: 0.75">'
            f"{name}</span> <span>{text}</span></div>"
            for name, text in lines.items()
        )
        return (
            f'<div class="isolab-claim" style="border-left: 5px solid {_BAR[self.verdict]}; '
            'padding: 4px 12px; margin: 6px 0; max-width: 52em; line-height: 1.5">'
            f"<div><b>{html.escape(self.question)}</b></div>{rows}</div>"
        )


@dataclass(frozen=True)
class Estimate:
    """A number and its interval over seeds, both None where ``reason`` says why there is none.

    reason: why a verdict must be inconclusive, or None; it can come with a number, such as one that
    rests on a best rate at the edge of its grid.
    """

    value: float | None
    interval: tuple[float, float] | None
    reason: str | None

    @classmethod
    def of(cls, row: Mapping[str, Any], name: str) -> Estimate:
        """Returns that of columns ``<name>``, ``_low``, ``_high``, ``note`` and ``reason``."""
        value, low, high = row[name], row[f"{name}_low"], row[f"{name}_high"]
        if low is None or high is None:
            why = row["reason"] or f"no number: {row['note'] or 'not measured'}"
            return cls(None, None, why)
        return cls(value, (low, high), row["reason"])

    def claim(self, question: str, threshold: float, **more: Any) -> Claim:
        """Returns the claim on it; ``more`` are other arguments of :class:`Claim`."""
        return Claim(
            question, self.value, self.interval, threshold, inconclusive=self.reason, **more
        )


def _format(value: float) -> str:
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:.4g}"


def _json_value(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_json_value(its) for its in value]
    return None if isinstance(value, float) and math.isinf(value) else value
