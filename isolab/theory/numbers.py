"""Exponents as numbers and as text: when two are the same, and how people write them."""

from __future__ import annotations

import math
from fractions import Fraction
from numbers import Real
from typing import Any, Final

SAME: Final = 1e-9
"""Exponents are sums of a few typed numbers: those that differ by less differ by rounding."""


def finite(name: str, value: Any) -> float:
    """Returns the number as a float.

    Raises:
        ValueError: it is not a finite number.
    """
    if not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    return float(value)


def fraction_text(value: float) -> str:
    """Returns an exponent as people write it: a fraction where it is one of small numbers.

    Example:
        >>> fraction_text(-0.5), fraction_text(1.0), fraction_text(0.73)
        ('-1/2', '1', '0.73')
    """
    fraction = Fraction(value).limit_denominator(16)
    return str(fraction) if abs(fraction - Fraction(value)) <= SAME else f"{value:.4g}"


def power_text(power: float) -> str:
    """Returns a power of the width as text.

    Example:
        >>> power_text(-0.5), power_text(1.0), power_text(0.0)
        ('n^(-1/2)', 'n', 'n^0')
    """
    text = fraction_text(power)
    return "n" if text == "1" else f"n^{text}" if text.isdigit() else f"n^({text})"
