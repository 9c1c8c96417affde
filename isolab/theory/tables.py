"""The theory's exponents as frames, and a solver for any exponents that a reader types.

Everything is computed from a, b and the alignment with
:class:`isolab.theory.parameterization.Parameterization`; nothing is looked up. What the exponents
mean is explained in :mod:`isolab.theory.solution`.

Reference: Everett et al., arXiv:2407.05872.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from numbers import Real
from typing import Any, Final, TypeAlias

import polars as pl

from isolab.theory.parameterization import (
    MATRIX_ROLES,
    PARAMETERIZATIONS,
    RULES,
    Alignment,
    Parameterization,
    Scaling,
    alignment_exponent,
)
from isolab.theory.solution import Solution

Pair: TypeAlias = tuple[float, float] | Scaling

_CELL: Final = ("parameterization", "rule", "alignment", "role")


def exponents() -> pl.DataFrame:
    r"""Returns every cell of the table of exponents, computed from the rule.

    Returns:
        A row per parameterization, rule, alignment ("full", "none") and role (embedding, hidden,
        readout), with float64 columns a, b, g, the exponent c of the largest stable rate
        :math:`n^{-c}`, and its ``power`` of n, -c.

    Example:
        >>> cell = {"parameterization": "mup", "rule": "adam", "alignment": "full"}
        >>> exponents().filter(**cell)["power"].to_list()
        [-0.5, -1.0, -0.5]
    """
    rows = [
        (p.name, rule, alignment, role, p.scaling(role).a, p.scaling(role).b,
         p.gradient_exponent(role), c, 0.0 - c)
        for p, rule, alignment, role in itertools.product(
            PARAMETERIZATIONS.values(), RULES, ("full", "none"), MATRIX_ROLES
        )
        for c in [p.rate_exponent(role, rule, alignment)]
    ]  # fmt: skip
    schema = dict.fromkeys(_CELL, pl.String) | dict.fromkeys("abgc", pl.Float64)
    return pl.DataFrame(rows, schema | {"power": pl.Float64}, orient="row")


def rate_lines(widths: Sequence[float], base_width: float) -> pl.DataFrame:
    r"""Returns each role's factor on the rate, :math:`(n / n_0)^{-c}`, over widths.

    At ``base_width``, :math:`n_0`, every factor is 1.

    Returns:
        A row per parameterization, rule, alignment, role and width, with float64 columns width and
        factor.

    Raises:
        ValueError: a width is not a positive number.

    Example:
        >>> cell = {"parameterization": "standard", "rule": "adam", "alignment": "full"}
        >>> rate_lines([64, 256], 64).filter(**cell, role="hidden")["factor"].to_list()
        [1.0, 0.25]
    """
    for width in (base_width, *widths):
        if not 0 < width < math.inf:
            raise ValueError(f"width must be a positive number, got {width!r}")
    points = pl.DataFrame({"width": widths}, {"width": pl.Float64})
    factor = (pl.col("width") / base_width).pow(pl.col("power"))
    return exponents().join(points, how="cross").select(*_CELL, "width", factor=factor)


def solve(
    embedding: Pair = (0.0, 0.0),
    hidden: Pair = (0.0, 0.5),
    readout: Pair = (0.0, 0.5),
    alignment: Alignment = "full",
    rule: str = "adam",
) -> Solution:
    """Returns the largest stable rates for any exponents; printed, it says what binds them.

    Args:
        embedding, hidden, readout: (a, b) of each role; the defaults are the standard ones.
        alignment: "full" (1), "none" (1/2), a number in [1/2, 1], or a mapping from roles to
            numbers in [0, 1]; see :func:`isolab.theory.parameterization.alignment_exponent`.
        rule: "sgd", "adam" or "adafactor".

    Raises:
        ValueError: an exponent is not a finite number, the alignment is out of range, or the rule
            is unknown.

    Example:
        >>> mean_field = solve((0, 0), (1 / 2, 0), (1, 0), alignment="none", rule="adam")
        >>> mean_field.c, mean_field.binding
        ({'embedding': 0.0, 'hidden': 0.0, 'readout': -0.5}, ('embedding', 'hidden'))
    """
    pairs = zip(MATRIX_ROLES, (embedding, hidden, readout), strict=True)
    p = Parameterization("typed", *(_scaling(role, pair) for role, pair in pairs))
    alpha = {role: alignment_exponent(role, alignment) for role in MATRIX_ROLES}
    g = {role: p.gradient_exponent(role) for role in MATRIX_ROLES}
    c = {role: p.rate_exponent(role, rule, alpha) for role in MATRIX_ROLES}
    return Solution(p, rule, alpha, g, c)


def _scaling(role: str, pair: Any) -> Scaling:
    if isinstance(pair, Scaling):
        return pair
    if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
        raise ValueError(f"{role} must be a pair (a, b) of numbers, got {pair!r}")
    for name, value in zip("ab", pair, strict=True):
        if not isinstance(value, Real) or not math.isfinite(value):
            raise ValueError(f"{name} of {role} must be a finite number, got {value!r}")
    return Scaling(*map(float, pair))
