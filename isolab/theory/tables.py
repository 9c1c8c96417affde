"""The theory's exponents as frames, and a solver for any exponents that a reader types.

Everything is computed from a, b and the alignment with
:class:`isolab.theory.parameterization.Parameterization`; nothing is looked up. What the exponents
mean is explained in :mod:`isolab.theory.solution`.

Reference: Everett et al., arXiv:2407.05872.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

import polars as pl

from isolab.theory.numbers import finite, fraction_text
from isolab.theory.parameterization import (
    MATRIX_ROLES,
    PARAMETERIZATIONS,
    RULES,
    Alignment,
    Parameterization,
    Scaling,
    alignment_exponent,
    parameterization,
    per_layer_rates,
)
from isolab.theory.solution import Solution

Pair: TypeAlias = tuple[float, float] | Scaling

_TEXTS: Final = ("parameterization", "rule", "alignment", "role")


def exponents(
    parameterizations: Iterable[Parameterization | str] = tuple(PARAMETERIZATIONS),
    rules: Iterable[str] = RULES,
    alignments: Iterable[str | float] = ("full", "none"),
) -> pl.DataFrame:
    r"""Returns every cell of the table of exponents, computed from the rule.

    Args:
        parameterizations: parameterizations or their names.
        rules: of "sgd", "adam" and "adafactor".
        alignments: "full", "none" or numbers in [1/2, 1].

    Returns:
        A row per parameterization, rule, alignment and role (embedding, hidden, readout), with
        float64 columns a, b, g, the exponent c of the largest stable rate :math:`n^{-c}`, and its
        ``power`` of n, -c.

    Raises:
        ValueError: a name is unknown or an alignment out of range.

    Example:
        >>> exponents(["mup"], ["adam"], ["full"])["power"].to_list()
        [-0.5, -1.0, -0.5]

    Reference: Everett et al., arXiv:2407.05872.
    """
    rows = [
        (*cell, role, p.scaling(role).a, p.scaling(role).b, p.gradient_exponent(role), c, 0.0 - c)
        for p, alignment, cell in _cells(parameterizations, rules, alignments)
        for role in MATRIX_ROLES
        for c in [p.rate_exponent(role, cell[1], alignment)]
    ]
    return _frame(rows, ("a", "b", "g", "c", "power"))


def rate_lines(
    widths: Sequence[float],
    base_width: float,
    parameterizations: Iterable[Parameterization | str] = tuple(PARAMETERIZATIONS),
    rules: Iterable[str] = RULES,
    alignments: Iterable[str | float] = ("full", "none"),
) -> pl.DataFrame:
    r"""Returns each role's factor on the rate, :math:`(n / n_0)^{-c}`, over widths.

    Args:
        widths: n, positive.
        base_width: n_0, where every factor is 1.
        parameterizations, rules, alignments: as of :func:`exponents`.

    Returns:
        A row per parameterization, rule, alignment, role and width, with float64 columns width and
        factor.

    Raises:
        ValueError: a name is unknown, an alignment out of range, or a width not positive.

    Example:
        >>> lines = rate_lines([64, 256], 64, ["standard"], ["adam"], ["full"])
        >>> lines.filter(pl.col("role") == "hidden")["factor"].to_list()
        [1.0, 0.25]
    """
    rows = [
        (*cell, role, float(width), factors[role])
        for p, alignment, cell in _cells(parameterizations, rules, alignments)
        for width in widths
        for factors in [per_layer_rates(p, cell[1], width, base_width, alignment)]
        for role in MATRIX_ROLES
    ]
    return _frame(rows, ("width", "factor"))


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
        >>> mean_field.power, mean_field.global_rate.binding
        ({'embedding': 0.0, 'hidden': 0.0, 'readout': 0.5}, ('embedding', 'hidden'))
    """
    if rule not in RULES:
        raise ValueError(f"unknown rule {rule!r}; known: {sorted(RULES)}")
    if isinstance(alignment, Mapping):
        for role, value in alignment.items():
            finite(f"alignment of {role}", value)
    elif not isinstance(alignment, str):
        finite("alignment", alignment)
    pairs = zip(MATRIX_ROLES, (embedding, hidden, readout), strict=True)
    p = Parameterization("typed", *(_scaling(role, pair) for role, pair in pairs))
    alpha = {role: alignment_exponent(role, alignment) for role in MATRIX_ROLES}
    g = {role: p.gradient_exponent(role) for role in MATRIX_ROLES}
    c = {role: p.rate_exponent(role, rule, alpha) for role in MATRIX_ROLES}
    return Solution(p, rule, alpha, g, c)


def _cells(
    parameterizations: Iterable[Parameterization | str],
    rules: Iterable[str],
    alignments: Iterable[str | float],
) -> Iterator[tuple[Parameterization, str | float, tuple[str, str, str]]]:
    rules, alignments = tuple(rules), tuple(alignments)
    for p in map(parameterization, parameterizations):
        for rule in rules:
            for alignment in alignments:
                text = alignment if isinstance(alignment, str) else fraction_text(alignment)
                yield p, alignment, (p.name, rule, text)


def _frame(rows: list[tuple[Any, ...]], numbers: Sequence[str]) -> pl.DataFrame:
    schema = dict.fromkeys(_TEXTS, pl.String) | dict.fromkeys(numbers, pl.Float64)
    return pl.DataFrame(rows, schema, orient="row")


def _scaling(role: str, pair: Any) -> Scaling:
    if isinstance(pair, Scaling):
        return pair
    if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
        raise ValueError(f"{role} must be a pair (a, b) of numbers, got {pair!r}")
    return Scaling(finite(f"a of {role}", pair[0]), finite(f"b of {role}", pair[1]))
