r"""The largest stable learning rates of one choice of exponents, and why, in words.

A layer of role :math:`l` computes :math:`n^{-a_l} W z` with :math:`W \sim N(0, n^{-2 b_l})`, n the
width. At a rate of :math:`n^{-c_l}` its updates move its output by :math:`n^{-m_l}`, with the
margin

.. math:: m_l = a_l + d_l - \alpha_l, \qquad
    d_l = c_l + g_l \ (\mathrm{sgd}), \quad c_l \ (\mathrm{adam}), \quad
    c_l + b_l \ (\mathrm{adafactor})

so the smallest :math:`c_l` that keeps :math:`m_l \ge 0` is the largest stable rate. All of it
presumes a stable start: outputs of size one from the embedding and the hidden layers, and logits
that do not grow:

.. math:: a_e + b_e = 0, \qquad a_h + b_h = 1/2, \qquad a_r + b_r \ge 1/2

What the exponents leave out: a change of a layer's input is taken to meet that layer's initial
weights unaligned, so that it is passed on as the input itself is. The first steps of training are
aligned with the readout, though: they may move the logits by up to :math:`n^{1/2}` more than the
readout's own update does, which a readout with :math:`a_r + b_r = 1` (muP, mean-field) can bear.

Reference: Everett et al., arXiv:2407.05872. The words of the explanation, and the reading of one
rate for all roles, are this project's own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from numbers import Real
from typing import Any, Final

import polars as pl

from isolab.theory.parameterization import Parameterization

MATRIX_ROLES: Final = ("embedding", "hidden", "readout")

_SAME: Final = 1e-9  # exponents are sums of a few typed numbers: nearer than this is rounding
_INPUT_POWERS: Final = {"embedding": 0.0, "hidden": 0.5, "readout": 0.5}  # n random terms: sqrt(n)
_RULES: Final = {"sgd": "SGD", "adam": "Adam", "adafactor": "Adafactor with parameter scaling"}
_FORMULAS: Final = {"sgd": "alpha - a - g", "adam": "alpha - a", "adafactor": "alpha - a - b"}
_SEPARATE: Final = (
    "With each role at its own largest stable rate every layer moves its output by an amount that "
    "does not depend on the width: nothing blows up, and nothing stands still."
)
_LAYERS: Final = {
    "embedding": "the embedding",
    "hidden": "each hidden layer",
    "readout": "the readout",
}


@dataclass(frozen=True)
class Rates:
    """What rates of n^-c do, role by role.

    Attributes:
        c: the rate's exponent.
        margins: updates move the role's own output by n^-margin: 0 is the edge of stability, below
            it the move grows with the width, above it the move vanishes.
    """

    c: dict[str, float]
    margins: dict[str, float]

    @property
    def binding(self) -> tuple[str, ...]:
        """Roles at the edge: a rate larger by any power of n would make them unstable."""
        return tuple(role for role, margin in self.margins.items() if abs(margin) <= _SAME)

    @property
    def growing(self) -> tuple[str, ...]:
        """Roles whose updates move their output by more and more as the width grows."""
        return tuple(role for role, margin in self.margins.items() if margin < -_SAME)

    @property
    def vanishing(self) -> tuple[str, ...]:
        """Roles whose updates move their output by less and less as the width grows."""
        return tuple(role for role, margin in self.margins.items() if margin > _SAME)

    @property
    def stable(self) -> bool:
        """Whether no role grows."""
        return not self.growing

    @property
    def non_trivial(self) -> bool:
        """Whether the updates of some role move its output by an amount that does not vanish."""
        return len(self.vanishing) < len(self.margins)

    @property
    def features_move(self) -> bool:
        """Whether they do so in the embedding or the hidden layers, not in the readout alone."""
        return not {"embedding", "hidden"} <= set(self.vanishing)


@dataclass(frozen=True)
class Solution:
    """The largest stable rates of one choice of exponents; prints as an explanation.

    Made by :func:`isolab.theory.tables.solve`.

    Attributes:
        parameterization: a and b by role.
        rule: "sgd", "adam" or "adafactor".
        alpha: alignment exponent by role.
        g: exponent of the gradient by role; its entries go as n^-g at the start.
        c: exponent of the largest stable rate by role, n^-c.
    """

    parameterization: Parameterization
    rule: str
    alpha: dict[str, float]
    g: dict[str, float]
    c: dict[str, float]

    @property
    def power(self) -> dict[str, float]:
        """The power of n with which each role's largest stable rate goes: -c."""
        return {role: 0.0 - c for role, c in self.c.items()}

    @property
    def initial_powers(self) -> dict[str, float]:
        """The power of n with which each role's output goes at the start, its input of size one."""
        return {
            role: _INPUT_POWERS[role] - sum(exponents_of(self.parameterization, role))
            for role in MATRIX_ROLES
        }

    @property
    def unstable_roles(self) -> tuple[str, ...]:
        """Roles whose output grows with the width at the start, or vanishes before the readout."""
        powers = self.initial_powers
        return tuple(
            role
            for role in MATRIX_ROLES
            if powers[role] > _SAME or (role != "readout" and powers[role] < -_SAME)
        )

    @property
    def stable_at_initialization(self) -> bool:
        """Whether a + b is 0 in the embedding, 1/2 in hidden layers, 1/2 or more in the readout."""
        return not self.unstable_roles

    @property
    def per_layer(self) -> Rates:
        """Each role at its own largest stable rate: every margin is zero."""
        return self.judge(self.c)

    @property
    def global_rate(self) -> Rates:
        """The largest stable rate that all roles share: its c is the largest of theirs."""
        return self.judge(max(self.c.values()))

    def judge(self, c: float | Mapping[str, float]) -> Rates:
        """Returns what rates of ``n**-c`` would do.

        Args:
            c: one exponent for all roles, or one for each of embedding, hidden and readout.

        Raises:
            ValueError: an exponent is missing, or not a finite number.
        """
        chosen = dict(c) if isinstance(c, Mapping) else dict.fromkeys(MATRIX_ROLES, c)
        if set(chosen) != set(MATRIX_ROLES):
            raise ValueError(f"c names {sorted(chosen)}; needed: {sorted(MATRIX_ROLES)}")
        chosen = {role: finite(f"c of {role}", chosen[role]) for role in MATRIX_ROLES}
        p, rule, alpha = self.parameterization, self.rule, self.alpha
        margins = {r: p.stability_margin(r, rule, chosen[r], alpha) for r in MATRIX_ROLES}
        return Rates(chosen, margins)

    def table(self) -> pl.DataFrame:
        """Returns a row per role with columns role, a, b, alpha, g, c, power."""
        p = self.parameterization
        rows = [
            (role, *exponents_of(p, role), self.alpha[role], self.g[role], self.c[role], power)
            for role, power in self.power.items()
        ]
        names = ("a", "b", "alpha", "g", "c", "power")
        return pl.DataFrame(
            rows, {"role": pl.String} | dict.fromkeys(names, pl.Float64), orient="row"
        )

    def explain(self) -> str:
        """Returns the explanation in plain sentences, one paragraph a line."""
        return "\n".join(_paragraphs(self))

    def __str__(self) -> str:
        return self.explain()

    def _repr_markdown_(self) -> str:
        columns = ("role", "a", "b", "alpha", "g", "c", "rate")
        lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
        for row in self.table().iter_rows(named=True):
            cells = [row["role"], *(fraction_text(row[name]) for name in columns[1:-1])]
            lines.append("| " + " | ".join([*cells, power_text(row["power"])]) + " |")
        return "\n".join([*lines, "", *(f"- {text}" for text in _paragraphs(self))])


def exponents_of(p: Parameterization, role: str) -> tuple[float, float]:
    """Returns (a, b) of a role."""
    return p.scaling(role).a, p.scaling(role).b


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
    return str(fraction) if abs(fraction - Fraction(value)) <= _SAME else f"{value:.4g}"


def power_text(power: float) -> str:
    """Returns a power of the width in words.

    Example:
        >>> power_text(-0.5), power_text(1.0), power_text(0.0)
        ('n^(-1/2)', 'n', 'n^0')
    """
    text = fraction_text(power)
    return "n" if text == "1" else f"n^{text}" if text.isdigit() else f"n^({text})"


def _paragraphs(solution: Solution) -> list[str]:
    stable = solution.stable_at_initialization
    return [
        f"{_RULES[solution.rule]} at width n. Updates add up over a layer's inputs as n^alpha and "
        "are multiplied by n^-a. A rate is the largest stable one where they move the layer's "
        "output by the same amount at every width; a larger power of n moves it by more and more.",
        *(_start(solution, role) for role in MATRIX_ROLES),
        "The start is stable."
        if stable
        else "The start is not stable, and the rates below presume one that is: change a or b of "
        f"{_listed(solution.unstable_roles)} first.",
        *(_rate(solution, role) for role in MATRIX_ROLES),
        *([_SEPARATE] if stable else []),
        _common_rate(solution),
    ]


def _start(solution: Solution, role: str) -> str:
    power = solution.initial_powers[role]
    total = fraction_text(sum(exponents_of(solution.parameterization, role)))
    output = {"embedding": "its output", "hidden": "each layer's output", "readout": "the logits"}
    subject = f"At the start, {role}: a + b = {total}"
    if abs(power) <= _SAME:
        size = "stay of size one" if role == "readout" else "stays of size one"
        return f"{subject}, so {output[role]} {size}."
    verb = "grow" if power > 0 else "shrink"
    moves = f"{output[role]} {verb if role == 'readout' else verb + 's'} as {power_text(power)}"
    if role not in solution.unstable_roles:
        return f"{subject}, so {moves}: at large width they start at zero, which does no harm."
    allowed = fraction_text(_INPUT_POWERS[role]) + (" or more" if role == "readout" else "")
    side = "too small" if power > 0 else "too large"
    return f"{subject} is {side}, so {moves}: it must be {allowed}."


def _rate(solution: Solution, role: str) -> str:
    a, b = exponents_of(solution.parameterization, role)
    values = {"alpha": solution.alpha[role], "a": a, "b": b, "g": solution.g[role]}
    formula = _FORMULAS[solution.rule]
    texts = [fraction_text(values[name]) for name in formula.split(" - ")]
    numbers = " - ".join(f"({text})" if text.startswith("-") else text for text in texts)
    c = solution.c[role]
    return (
        f"Largest stable rate, {role}: {power_text(-c)}, since c = {formula} = {numbers} = "
        f"{fraction_text(c)}."
    )


def _common_rate(solution: Solution) -> str:
    rates = solution.global_rate
    limit = f"One rate for all roles: {power_text(-max(rates.c.values()))} at most."
    if not rates.vanishing:
        return f"{limit} Every role sets that limit, so one rate costs nothing here."
    binding = _sentence(_listed(rates.binding))
    texts = [limit, f"{binding} {'sets' if len(rates.binding) == 1 else 'set'} that limit."]
    for role in rates.vanishing:
        texts.append(
            f"{_sentence(_LAYERS[role])} could take {power_text(-solution.c[role])}; at the common "
            f"rate its updates move its output by {power_text(-rates.margins[role])}, which "
            "vanishes as the width grows."
        )
    if not rates.features_move:
        texts.append(
            "So at large width only the readout learns, from features that stay as they were at "
            "the start."
        )
    return " ".join(texts)


def _listed(roles: Sequence[str]) -> str:
    words = [_LAYERS[role] for role in roles]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]
