r"""Which parameterizations train alike: those that differ by a shift from b to a.

Moving :math:`t` from the initial spread to the multiplier, :math:`(a, b) \to (a + t, b - t)`,
leaves :math:`n^{-a} W` as it was: the weights W are :math:`n^t` times larger, their gradients
:math:`n^t` times smaller. Training stays the same, step by step, where the rate follows:

.. math:: c \to c - 2t \ (\mathrm{sgd}), \qquad c - t \ (\mathrm{adam,\ spectral,\ whitened}),
    \qquad c \ (\mathrm{adafactor})

Two parameterizations are equivalent where :math:`a + b` agrees in every role.

Reference: Everett et al., arXiv:2407.05872.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from isolab.theory.parameterization import (
    MATRIX_ROLES,
    PARAMETERIZATIONS,
    SAME,
    Parameterization,
    fraction_text,
    parameterization,
)

_RATE_SHIFTS: Final = {
    "sgd": 2.0,
    "adam": 1.0,
    "adafactor": 0.0,
    "spectral": 1.0,
}  # of c, in units of -t


@dataclass(frozen=True)
class Shift:
    """What carries one parameterization to another; true where they are equivalent."""

    shifts: dict[str, float] | None  # t by role, or None where no shift does it
    reason: str  # what differs, or that nothing does

    def __bool__(self) -> bool:
        return self.shifts is not None

    def rate_powers(self, rule: str) -> dict[str, float]:
        """Returns the power of n by role with which each rate must change: 2t, t or 0.

        Raises:
            ValueError: the two are not equivalent, or the rule is unknown.
        """
        if self.shifts is None:
            raise ValueError(f"no rates make the two train alike: {self.reason}")
        if rule not in _RATE_SHIFTS:
            raise ValueError(f"unknown rule {rule!r}; known: {sorted(_RATE_SHIFTS)}")
        return {role: _RATE_SHIFTS[rule] * t for role, t in self.shifts.items()}


def equivalence_shift(p: Parameterization | str, q: Parameterization | str) -> Shift:
    """Returns the shifts t that carry p to q, or the reason why there are none.

    Example:
        >>> equivalence_shift("standard", "ntk").shifts
        {'embedding': 0.0, 'hidden': 0.5, 'readout': 0.5}
        >>> print(equivalence_shift("standard", "mup").reason)
        a + b of the readout is 1/2 in standard and 1 in mup
    """
    p, q = parameterization(p), parameterization(q)
    differences = [
        f"a + b of the {role} is {fraction_text(p.weight_exponent(role))} in {p.name} and "
        f"{fraction_text(q.weight_exponent(role))} in {q.name}"
        for role in MATRIX_ROLES
        if abs(p.weight_exponent(role) - q.weight_exponent(role)) > SAME
    ]
    if differences:
        return Shift(None, "; ".join(differences))
    shifts = {role: q.scaling(role).a - p.scaling(role).a for role in MATRIX_ROLES}
    return Shift(shifts, f"a + b of every role is the same in {p.name} and {q.name}")


def equivalence_classes(
    parameterizations: Iterable[Parameterization | str] = tuple(PARAMETERIZATIONS),
) -> list[tuple[str, ...]]:
    """Returns the names of parameterizations, grouped by which are equivalent.

    Example:
        >>> equivalence_classes()
        [('standard', 'ntk'), ('mup', 'mean_field')]
    """
    classes: list[list[Parameterization]] = []
    for p in map(parameterization, parameterizations):
        for members in classes:
            if equivalence_shift(members[0], p):
                members.append(p)
                break
        else:
            classes.append([p])
    return [tuple(p.name for p in members) for members in classes]
