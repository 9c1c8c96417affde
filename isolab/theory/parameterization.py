r"""How a layer's multiplier, initial spread and learning rate follow the width.

A layer of a model of width :math:`n` computes :math:`n^{-a} W z` with
:math:`W \sim N(0, n^{-2b})` and is trained at a rate that goes as :math:`n^{-c}`. At
initialization the entries of its gradient go as :math:`n^{-g}`. A parameterization is the choice
of :math:`a` and :math:`b` for every role; :math:`g` and :math:`c` follow.

Roles:

- ``embedding``: its fan-in does not grow; ``hidden``: fan-in :math:`n`; ``readout``: fan-in
  :math:`n`, fan-out fixed;
- ``vector``: gains of normalization layers, one entry for each coordinate, created at 1; ``bias``:
  the same but created at 0; ``fixed``: the readout's bias, or whatever has no side that grows;
- ``tied``: one weight that is embedding and readout. Each use has its role's multiplier, the
  gradient is the sum of both, and the rate is the largest that is stable in both. Assumed is an
  initial spread :math:`n^{-b}` with the readout's :math:`b`, which matters to ``adafactor`` alone.
  At full alignment both uses want the same rate in muP, mean-field and Table 8; in standard and NTK
  the readout's holds, and moves the embedding's output by :math:`n^{-1}` and :math:`n^{-1/2}` only.

Rules, by the exponent :math:`d` of the size :math:`n^{-d}` of an update's entries:

- ``sgd``: :math:`d = c + g`, the gradient itself.
- ``adam``: :math:`d = c`, every optimizer whose steps have entries of size one before the rate.
- ``adafactor``: :math:`d = c + b`, steps measured against the parameter they change.
- ``spectral``: updates of hidden matrices have spectral norm one before the rate, as Muon's. They
  add up to entries of size one whatever their alignment with the input: :math:`c = -a`.
- ``whitened``: updates of hidden matrices have entries of size one, and singular values that are
  much alike, so :math:`n^{1/2}` each, as IsoAdam's: :math:`c = 1/2 - a`. Where few directions hold
  most of the update (far fewer tokens a step than :math:`n`) this tends to Adam's :math:`1 - a`.

In the last two the other roles are as in ``adam``; both are this project's own.

All of it is pure arithmetic on Python floats.

Reference: Everett et al., arXiv:2407.05872; ``mup_table8``: Yang et al., arXiv:2203.03466.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from types import MappingProxyType
from typing import Final, TypeAlias

MATRIX_ROLES: Final = ("embedding", "hidden", "readout")
ROLES: Final = (*MATRIX_ROLES, "vector")
"""Roles of isolab's own model."""
ALL_ROLES: Final = (*ROLES, "bias", "tied", "fixed")
RULES: Final = ("sgd", "adam", "adafactor")
"""Rules of the paper."""
_HIDDEN_REACH: Final = {"spectral": 0.0, "whitened": 0.5}  # of an update, whatever its alignment
ALL_RULES: Final = (*RULES, *_HIDDEN_REACH)
SAME: Final = 1e-9
"""Exponents are sums of a few typed numbers: those that differ by less differ by rounding."""

Alignment: TypeAlias = str | float | Mapping[str, float]

_ALIGNMENTS: Final = {"full": 1.0, "none": 0.5}
# An update of these roles meets one coordinate of its input at a time, so nothing adds up.
_FIXED_FAN_IN: Final = ("embedding", "vector", "bias", "fixed")
_USES: Final = {"tied": ("embedding", "readout")}


@dataclass(frozen=True)
class Scaling:
    """The exponents of one role: multiplier ``n**-a``, initial standard deviation ``n**-b``.

    Raises:
        ValueError: an exponent is not finite.
    """

    a: float
    b: float

    def __post_init__(self) -> None:
        for name, value in (("a", self.a), ("b", self.b)):
            if not math.isfinite(value):
                raise ValueError(f"exponent {name} must be finite, got {value!r}")


@dataclass(frozen=True)
class Parameterization:
    r"""The exponents of every role, and what follows from them.

    ``vector`` is no field: a gain has no multiplier and is created at 1, so its
    :math:`a = b = 0` in every parameterization.

    Raises:
        ValueError: by every method, for a role, rule or alignment that is unknown or out of range,
            or a width that is not a positive number.

    Example:
        >>> mup = parameterization("mup")
        >>> mup.multiplier("readout", 64), mup.init_std("hidden", 64)
        (0.125, 0.125)
        >>> mup.rate_exponent("hidden", "adam"), mup.rate_exponent("readout", "adam")
        (1.0, 0.5)
    """

    name: str
    embedding: Scaling
    hidden: Scaling
    readout: Scaling

    def scaling(self, role: str) -> Scaling:
        """Returns the exponents of a role; "tied" has none of its own, but those of two."""
        if role in _USES:
            raise ValueError(f"{role!r} has two multipliers: ask for {' and '.join(_USES[role])}")
        matrices = {"embedding": self.embedding, "hidden": self.hidden, "readout": self.readout}
        return matrices.get(_checked_role(role), Scaling(0.0, 0.0))

    def weight_exponent(self, role: str) -> float:
        """Returns ``a + b``: initial weights times their multiplier go as ``n**-(a + b)``."""
        scaling = self.scaling(role)
        return scaling.a + scaling.b

    def multiplier(self, role: str, n: float) -> float:
        """Returns ``n**-a``, what a layer's output is multiplied by."""
        return float(_checked_width("n", n) ** -self.scaling(role).a)

    def init_std(self, role: str, n: float) -> float:
        """Returns ``n**-b``, the standard deviation of initial entries; a ``vector``'s value, 1."""
        return float(_checked_width("n", n) ** -self.scaling(role).b)

    def gradient_exponent(self, role: str) -> float:
        r"""Returns :math:`g`: the entries of a gradient go as :math:`n^{-g}` at initialization.

        The loss's gradient at an entry of the residual stream goes as
        :math:`n^{-(a_r + b_r)}`, r the readout: it came back through a matrix of fixed fan-out. A
        stable hidden layer (:math:`a_h + b_h = 1/2`) keeps that size. Each parameter then adds
        its own multiplier:

            readout: :math:`a_r`; hidden: :math:`a_h + a_r + b_r`; embedding:
            :math:`a_e + a_r + b_r`; vector, bias: :math:`a_r + b_r`; fixed: 0; tied: the smaller
            of embedding's and readout's.

        What stands after the embedding is this project's own reading (the paper leaves gains out):
        the gradient of a gain's entry is the stream's gradient at that entry, times an input of
        size one, the embedding's case at :math:`a = 0`. A gain that many heads share sums their
        gradients; that growth is not counted.
        """
        if role in _USES:
            return min(map(self.gradient_exponent, _USES[role]))
        a = self.scaling(role).a
        return a if role in ("readout", "fixed") else a + self.readout.a + self.readout.b

    def rate_exponent(self, role: str, rule: str, alignment: Alignment = "full") -> float:
        r"""Returns :math:`c` of the largest stable rate, :math:`n^{-c}`.

        An update moves a layer's output by :math:`n^{\alpha - a - d}`: stable where
        :math:`a + d \ge \alpha`.

        .. math:: c = \alpha - a - g \ (\mathrm{sgd}), \quad \alpha - a \ (\mathrm{adam}), \quad
            \alpha - a - b \ (\mathrm{adafactor})

        For hidden matrices :math:`c = -a` (spectral), :math:`1/2 - a` (whitened).

        For ``role`` in ``ALL_ROLES``, ``rule`` in ``ALL_RULES``; alignment as
        :func:`alignment_exponent`.
        """
        if rule not in ALL_RULES:
            raise ValueError(f"unknown rule {rule!r}; known: {sorted(ALL_RULES)}")
        if role == "hidden" and rule in _HIDDEN_REACH:
            return _HIDDEN_REACH[rule] - self.hidden.a
        uses = _USES.get(_checked_role(role), (role,))
        reach = max(alignment_exponent(use, alignment) - self.scaling(use).a for use in uses)
        if rule == "sgd":
            return reach - self.gradient_exponent(role)
        return reach - (self.scaling(uses[-1]).b if rule == "adafactor" else 0.0)

    def global_rate_exponent(self, rule: str, alignment: Alignment = "full") -> float:
        """Returns c of the largest stable rate, ``n**-c``, that all matrices share.

        Gains of normalization layers, ``vector``, are left out, as in the paper.
        """
        return max(self.rate_exponent(role, rule, alignment) for role in MATRIX_ROLES)

    def shifted(self, t: float | Mapping[str, float]) -> Parameterization:
        """Returns the equivalent parameterization with ``(a + t, b - t)`` in place of ``(a, b)``.

        It computes the same function and trains alike, see :mod:`isolab.theory.shifts`.

        One shift is for embedding, hidden and readout, a mapping for the roles named.  A gain is
        created at 1 and has no multiplier, so ``vector`` cannot be shifted.

        Example:
            >>> moved = parameterization("standard").shifted({"hidden": 0.5, "readout": 0.5})
            >>> moved.hidden == parameterization("ntk").hidden
            True
        """
        shifts = dict(t) if isinstance(t, Mapping) else dict.fromkeys(MATRIX_ROLES, t)
        moved = {}
        for role, shift in shifts.items():
            if role not in MATRIX_ROLES:
                raise ValueError(f"cannot shift role {role!r}; allowed: {sorted(MATRIX_ROLES)}")
            scaling = self.scaling(role)
            moved[role] = Scaling(scaling.a + shift, scaling.b - shift)
        return replace(self, name=f"{self.name}_shifted", **moved)


_ALL: Final = (
    Parameterization("standard", Scaling(0.0, 0.0), Scaling(0.0, 0.5), Scaling(0.0, 0.5)),
    Parameterization("ntk", Scaling(0.0, 0.0), Scaling(0.5, 0.0), Scaling(0.5, 0.0)),
    Parameterization("mup", Scaling(-0.5, 0.5), Scaling(0.0, 0.5), Scaling(0.5, 0.5)),
    Parameterization("mean_field", Scaling(0.0, 0.0), Scaling(0.5, 0.0), Scaling(1.0, 0.0)),
)
PARAMETERIZATIONS: Final[Mapping[str, Parameterization]] = MappingProxyType(
    {p.name: p for p in _ALL}
)
"""The paper's four."""

_TABLE_8: Final = Parameterization(
    "mup_table8", Scaling(0.0, 0.0), Scaling(0.0, 0.5), Scaling(1.0, 0.0)
)
_NAMED: Final = {**PARAMETERIZATIONS, _TABLE_8.name: _TABLE_8}


def parameterization(name: str | Parameterization) -> Parameterization:
    """Returns a parameterization by name, or as it is given.

    Args:
        name: "standard", "ntk", "mup" or "mean_field", as in Everett et al.; or "mup_table8", muP
            as Table 8 of arXiv:2203.03466 (microsoft/mup) writes it. There input weights and biases
            have an initial variance of 1 / fan_in, fixed (a = b = 0), hidden weights 1 / fan_in
            (a = 0, b = 1/2), output weights 1 under a multiplier 1 / fan_in (a = 1, b = 0). Its
            rates follow: 1, 1/n and 1 for Adam, n, 1 and n for SGD. It is equivalent to the other
            muP; input and output weights have one spread and one rate, so they can be tied. The
            multiplier is relative to a base width in mup, n itself here: a constant factor. mup
            divides attention logits by the head's size; here heads do not grow.

    Example:
        >>> parameterization("ntk").gradient_exponent("hidden")
        1.0
    """
    if isinstance(name, Parameterization):
        return name
    if name not in _NAMED:
        raise ValueError(f"unknown parameterization {name!r}; known: {sorted(_NAMED)}")
    return _NAMED[name]


def alignment_exponent(role: str, alignment: Alignment = "full") -> float:
    r"""Returns :math:`\alpha`: a layer's output adds its update up as :math:`n^\alpha`.

    That is 0 for embedding, vector, bias and fixed, whose fan-in does not grow, unless a mapping
    says otherwise. ``alignment`` is ``"full"`` (1), ``"none"`` (1/2), a number in [1/2, 1] for
    hidden and readout, or a mapping from roles to measured numbers in [0, 1].

    Example:
        >>> alignment_exponent("hidden", "none"), alignment_exponent("embedding", "none")
        (0.5, 0.0)
    """
    grows = _checked_role(role) not in _FIXED_FAN_IN
    if isinstance(alignment, Mapping):
        for key, value in alignment.items():
            _checked_role(key)
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"alignment of {key!r} must lie in [0, 1], got {value!r}")
        if grows and role not in alignment:
            raise ValueError(
                f"alignment has no number for role {role!r}; it names {sorted(alignment)}"
            )
        return float(alignment.get(role, 0.0))
    if isinstance(alignment, str) and alignment not in _ALIGNMENTS:
        raise ValueError(
            f"unknown alignment {alignment!r}; allowed: {sorted(_ALIGNMENTS)}, a number in "
            "[0.5, 1] or a mapping from roles to numbers in [0, 1]"
        )
    alpha = _ALIGNMENTS[alignment] if isinstance(alignment, str) else float(alignment)
    if not 0.5 <= alpha <= 1.0:
        raise ValueError(f"alignment must lie in [0.5, 1], got {alignment!r}")
    return alpha if grows else 0.0


_by_name = parameterization  # under the name that per_layer_rates gives to its argument


def per_layer_rates(
    parameterization: Parameterization | str,
    rule: str,
    width: float,
    base_width: float,
    alignment: Alignment = "full",
    gamma: Mapping[str, float] | None = None,
) -> dict[str, float]:
    r"""Returns each role's factor on the global rate, :math:`\gamma_l (n / n_0)^{-c_l}`.

    At the base width the factors are the constants ``gamma`` alone, so what was tuned there
    stays as it was.

    Args:
        parameterization: a parameterization or its name.
        rule: one of ``ALL_RULES``, the family of the optimizer's update size.
        width: n.
        base_width: n_0, the width at which the global rate and gamma were tuned.
        alignment: see :func:`alignment_exponent`.
        gamma: constants by role, 1 where not named.

    Raises:
        ValueError: a name is unknown, a width or a constant is not positive and finite, or the
            alignment is out of range.

    Example:
        >>> rates = per_layer_rates("standard", "adam", width=256, base_width=64)
        >>> {role: rate for role, rate in rates.items() if rate != 1}
        {'hidden': 0.25, 'readout': 0.25, 'tied': 0.25}

    Reference: Everett et al., arXiv:2407.05872.
    """
    p = _by_name(parameterization)
    constants = dict.fromkeys(ALL_ROLES, 1.0)
    for role, value in (gamma or {}).items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"gamma of {role!r} must be positive and finite, got {value!r}")
        constants[_checked_role(role)] = float(value)
    ratio = _checked_width("width", width) / _checked_width("base_width", base_width)
    return {
        role: constant * ratio ** -p.rate_exponent(role, rule, alignment)
        for role, constant in constants.items()
    }


def fraction_text(value: float) -> str:
    """Returns an exponent as people write it: a fraction where it is one of small numbers.

    Example:
        >>> fraction_text(-0.5), fraction_text(1.0), fraction_text(0.73)
        ('-1/2', '1', '0.73')
    """
    fraction = Fraction(value).limit_denominator(16)
    return str(fraction) if abs(fraction - Fraction(value)) <= SAME else f"{value:.4g}"


def _checked_role(role: str) -> str:
    if role not in ALL_ROLES:
        raise ValueError(f"unknown role {role!r}; known: {sorted(ALL_ROLES)}")
    return role


def _checked_width(name: str, value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a positive number, got {value!r}")
    return float(value)
