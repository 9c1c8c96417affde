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

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import polars as pl

from isolab.theory.numbers import SAME, finite, fraction_text, power_text
from isolab.theory.parameterization import MATRIX_ROLES, Parameterization

_INPUT_POWERS: Final = {"embedding": 0.0, "hidden": 0.5, "readout": 0.5}  # n random terms: sqrt(n)
_STABLE_SUMS: Final = {"embedding": "0", "hidden": "1/2", "readout": "1/2 or more"}
_RULES: Final = {"sgd": "SGD", "adam": "Adam", "adafactor": "Adafactor with parameter scaling"}
_FORMULAS: Final = {"sgd": "alpha - a - g", "adam": "alpha - a", "adafactor": "alpha - a - b"}


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
        return tuple(role for role, margin in self.margins.items() if abs(margin) <= SAME)

    @property
    def growing(self) -> tuple[str, ...]:
        """Roles whose updates move their output by more and more as the width grows: unstable."""
        return tuple(role for role, margin in self.margins.items() if margin < -SAME)

    @property
    def vanishing(self) -> tuple[str, ...]:
        """Roles whose updates move their output by less and less as the width grows."""
        return tuple(role for role, margin in self.margins.items() if margin > SAME)

    @property
    def stable(self) -> bool:
        """Whether no role grows."""
        return not self.growing

    @property
    def features_move(self) -> bool:
        """Whether the moves of the embedding or of the hidden layers do not vanish."""
        return not {"embedding", "hidden"} <= set(self.vanishing)


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
    def power(self) -> dict[str, float]:
        """The power of n with which each role's largest stable rate goes: -c."""
        return {role: 0.0 - c for role, c in self.c.items()}

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
        rows = [
            (role, s.a, s.b, self.alpha[role], self.g[role], self.c[role], self.power[role])
            for role in MATRIX_ROLES
            for s in [self.parameterization.scaling(role)]
        ]
        names = ("a", "b", "alpha", "g", "c", "power")
        return pl.DataFrame(
            rows, {"role": pl.String} | dict.fromkeys(names, pl.Float64), orient="row"
        )

    def explain(self) -> str:
        """Returns what limits the rates, one sentence or more a line."""
        return "\n".join(
            [
                f"{_RULES[self.rule]} at width n: a role's largest stable rate goes as n^-c, c = "
                f"{_FORMULAS[self.rule]}. Its updates then move the role's output by the same "
                "amount at every width.",
                self._initialization_text(),
                self._common_rate_text(),
            ]
        )

    def __str__(self) -> str:
        columns = ("role", "a", "b", "alpha", "g", "c", "rate", "initial output")
        lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
        for role, *exponents, power in self.table().iter_rows():
            powers = map(power_text, (power, self.initial_powers[role]))
            lines.append("| " + " | ".join([role, *map(fraction_text, exponents), *powers]) + " |")
        return "\n".join([*lines, "", *(f"- {line}" for line in self.explain().splitlines())])

    def _repr_markdown_(self) -> str:
        return str(self)

    def _initialization_text(self) -> str:
        if not self.unstable_roles:
            return "The initialization is stable."
        needed = ", ".join(f"{_STABLE_SUMS[role]} for {role}" for role in self.unstable_roles)
        return f"The initialization is not stable, so no rate is: a + b must be {needed}."

    def _common_rate_text(self) -> str:
        rates = self.global_rate
        text = (
            f"One rate for all roles: {power_text(-max(rates.c.values()))} at most, the limit of "
            f"{' and '.join(rates.binding)}."
        )
        for role in rates.vanishing:
            text += f" It moves the output of {role} by {power_text(-rates.margins[role])} only."
        if not rates.features_move:
            text += " At large width the readout alone learns, from its initial features."
        return text
