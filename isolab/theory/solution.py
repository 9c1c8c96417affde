r"""The largest stable learning rates of one choice of exponents, and what binds them.

A layer of role :math:`l` computes :math:`n^{-a_l} W z` with :math:`W \sim N(0, n^{-2 b_l})`, n the
width. At a rate of :math:`n^{-c_l}` its updates move its output by :math:`n^{-m_l}`, with the
margin

.. math:: m_l = a_l + d_l - \alpha_l, \qquad
    d_l = c_l + g_l \ (\mathrm{sgd}), \quad c_l \ (\mathrm{adam}), \quad
    c_l + b_l \ (\mathrm{adafactor})

so the smallest :math:`c_l` that keeps :math:`m_l \ge 0` is the largest stable rate. All of it
presumes a stable initialization: outputs of size one from the embedding and the hidden layers, and
logits that do not grow:

.. math:: a_e + b_e = 0, \qquad a_h + b_h = 1/2, \qquad a_r + b_r \ge 1/2

What the exponents leave out: a change of a layer's input is taken to meet that layer's initial
weights unaligned, so that it is passed on as the input itself is. The first steps of training are
aligned with the readout, though: they may move the logits by up to :math:`n^{1/2}` more than the
readout's own update does, which a readout with :math:`a_r + b_r = 1` (muP, mean-field) can bear.

Reference: Everett et al., arXiv:2407.05872. The text of the explanation, and the reading of one
rate for all roles, are this project's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import polars as pl

from isolab.theory.parameterization import MATRIX_ROLES, SAME, Parameterization, fraction_text

_INPUT_POWERS: Final = {"embedding": 0.0, "hidden": 0.5, "readout": 0.5}  # n random terms: sqrt(n)
_STABLE_SUMS: Final = {"embedding": "0", "hidden": "1/2", "readout": "1/2 or more"}
_RULES: Final = {
    "sgd": "SGD",
    "adam": "Adam",
    "adafactor": "Adafactor with parameter scaling",
    "spectral": "Muon, Adam beside it,",
    "whitened": "IsoAdam, Adam beside it,",
}
_FORMULAS: Final = {
    "sgd": "alpha - a - g",
    "adam": "alpha - a",
    "adafactor": "alpha - a - b",
    "spectral": "-a (hidden) and alpha - a (the others)",
    "whitened": "1/2 - a (hidden) and alpha - a (the others)",
}


@dataclass(frozen=True)
class Solution:
    """The largest stable rates of one choice of exponents; prints as an explanation.

    Made by :func:`isolab.theory.tables.solve`.

    Attributes:
        parameterization: a and b by role.
        rule: "sgd", "adam" or "adafactor".
        alpha: alignment exponent by role.
        g: exponent of the gradient by role; its entries go as n^-g at initialization.
        c: exponent of the largest stable rate by role, n^-c.
    """

    parameterization: Parameterization
    rule: str
    alpha: dict[str, float]
    g: dict[str, float]
    c: dict[str, float]

    @property
    def initial_powers(self) -> dict[str, float]:
        """The power of n of each role's output at initialization, its input being of size one."""
        p = self.parameterization
        return {role: _INPUT_POWERS[role] - p.weight_exponent(role) for role in MATRIX_ROLES}

    @property
    def unstable_roles(self) -> tuple[str, ...]:
        """Roles whose initial output grows with the width, or vanishes before the readout."""
        return tuple(
            role
            for role, power in self.initial_powers.items()
            if power > SAME or (role != "readout" and power < -SAME)
        )

    @property
    def margins(self) -> dict[str, float]:
        """Each role's margin at the largest stable rate that all share; the largest c is its c."""
        limit = max(self.c.values())
        return {role: limit - c for role, c in self.c.items()}

    @property
    def binding(self) -> tuple[str, ...]:
        """Roles that a larger common rate would make unstable: their margin is zero."""
        return tuple(role for role, margin in self.margins.items() if margin <= SAME)

    def table(self) -> pl.DataFrame:
        """Returns a row per role with columns role, a, b, alpha, g, c, power (of n: -c)."""
        rows = [
            (role, s.a, s.b, self.alpha[role], self.g[role], self.c[role], 0.0 - self.c[role])
            for role in MATRIX_ROLES
            for s in [self.parameterization.scaling(role)]
        ]
        names = ("a", "b", "alpha", "g", "c", "power")
        return pl.DataFrame(
            rows, {"role": pl.String} | dict.fromkeys(names, pl.Float64), orient="row"
        )

    def __str__(self) -> str:
        columns = ("role", "a", "b", "alpha", "g", "c", "rate", "initial output")
        lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
        for role, *exponents, power in self.table().iter_rows():
            powers = map(power_text, (power, self.initial_powers[role]))
            lines.append("| " + " | ".join([role, *map(fraction_text, exponents), *powers]) + " |")
        lines += [
            "",
            f"- {_RULES[self.rule]} at width n: a role's largest stable rate goes as n^-c, c = "
            f"{_FORMULAS[self.rule]}. Its updates then move the role's output by the same amount "
            "at every width.",
            f"- {self._initialization_text()}",
            f"- {self._common_rate_text()}",
        ]
        return "\n".join(lines)

    _repr_markdown_ = __str__

    def _initialization_text(self) -> str:
        if not self.unstable_roles:
            return "The initialization is stable."
        needed = ", ".join(f"{_STABLE_SUMS[role]} for {role}" for role in self.unstable_roles)
        return f"The initialization is not stable, so no rate is: a + b must be {needed}."

    def _common_rate_text(self) -> str:
        text = (
            f"One rate for all roles: {power_text(-max(self.c.values()))} at most, the limit of "
            f"{' and '.join(self.binding)}."
        )
        vanishing = {r: margin for r, margin in self.margins.items() if r not in self.binding}
        for role, margin in vanishing.items():
            text += f" It moves the output of {role} by {power_text(-margin)} only."
        if {"embedding", "hidden"} <= vanishing.keys():
            text += " At large width the readout alone learns, from its initial features."
        return text


def power_text(power: float) -> str:
    """Returns a power of the width as text.

    Example:
        >>> power_text(-0.5), power_text(1.0), power_text(0.0)
        ('n^(-1/2)', 'n', 'n^0')
    """
    text = fraction_text(power)
    return "n" if text == "1" else f"n^{text}" if text.isdigit() else f"n^({text})"
