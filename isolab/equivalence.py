r"""Which parameterizations train alike: those that differ by a shift from b to a.

Moving :math:`t` from the initial spread to the multiplier, :math:`(a, b) \to (a + t, b - t)`,
leaves :math:`n^{-a} W` as it was: the weights W are :math:`n^t` times larger, their gradients
:math:`n^t` times smaller. Training stays the same, step by step, where the rate follows:

.. math:: c \to c - 2t \ (\mathrm{sgd}), \qquad c - t \ (\mathrm{adam}), \qquad
    c \ (\mathrm{adafactor})

Two parameterizations are equivalent where :math:`a + b` agrees in every role.

Reference: Everett et al., arXiv:2407.05872.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import polars as pl

from isolab.analysis.seeds import require_columns
from isolab.config import RunConfig
from isolab.optimizers.catalog import entry
from isolab.parameterization import (
    PARAMETERIZATIONS,
    RULES,
    Parameterization,
    parameterization,
)
from isolab.solution import MATRIX_ROLES, exponents_of, fraction_text

_SAME: Final = 1e-9  # exponents are sums of a few typed numbers: nearer than this is rounding
_POWERS: Final = {"sgd": 2.0, "adam": 1.0, "adafactor": 0.0}


@dataclass(frozen=True)
class Shift:
    """What carries one parameterization to another; true where they are equivalent.

    Attributes:
        shifts: t by role, or None where no shift does it.
        reason: what differs, or that nothing does, in words.
    """

    shifts: dict[str, float] | None
    reason: str

    def __bool__(self) -> bool:
        return self.shifts is not None

    def rate_powers(self, rule: str) -> dict[str, float]:
        """Returns the power of n by role with which each rate must change: 2t, t or 0.

        Raises:
            ValueError: the two are not equivalent, or the rule is unknown.
        """
        if self.shifts is None:
            raise ValueError(f"no rates make the two train alike: {self.reason}")
        if rule not in RULES:
            raise ValueError(f"unknown rule {rule!r}; known: {sorted(RULES)}")
        return {role: _POWERS[rule] * t for role, t in self.shifts.items()}


def equivalence_shift(p: Parameterization | str, q: Parameterization | str) -> Shift:
    """Returns the shifts t that carry p to q, or the reason why there are none.

    Args:
        p: a parameterization or its name.
        q: the same.

    Raises:
        ValueError: a name is unknown.

    Example:
        >>> equivalence_shift("standard", "ntk").shifts
        {'embedding': 0.0, 'hidden': 0.5, 'readout': 0.5}
        >>> print(equivalence_shift("standard", "mup").reason)
        a + b of the readout is 1/2 in standard and 1 in mup

    Reference: Everett et al., arXiv:2407.05872.
    """
    p, q = (parameterization(x) if isinstance(x, str) else x for x in (p, q))
    differences = [
        f"a + b of the {role} is {fraction_text(ours)} in {p.name} and {fraction_text(theirs)} in "
        f"{q.name}"
        for role in MATRIX_ROLES
        for ours, theirs in ((sum(exponents_of(p, role)), sum(exponents_of(q, role))),)
        if abs(ours - theirs) > _SAME
    ]
    if differences:
        return Shift(None, "; ".join(differences))
    shifts = {role: q.scaling(role).a - p.scaling(role).a for role in MATRIX_ROLES}
    return Shift(shifts, f"a + b of every role is the same in {p.name} and {q.name}")


def equivalence_classes(
    parameterizations: Iterable[Parameterization | str] = tuple(PARAMETERIZATIONS),
) -> list[tuple[str, ...]]:
    """Returns the names of parameterizations, grouped by which are equivalent.

    Raises:
        ValueError: a name is unknown.

    Example:
        >>> equivalence_classes()
        [('standard', 'ntk'), ('mup', 'mean_field')]
    """
    classes: list[list[Parameterization]] = []
    for named in parameterizations:
        p = parameterization(named) if isinstance(named, str) else named
        home = next((group for group in classes if equivalence_shift(group[0], p)), None)
        if home is None:
            classes.append([p])
        else:
            home.append(p)
    return [tuple(p.name for p in group) for group in classes]


def equivalent_config(config: RunConfig, parameterization: str) -> RunConfig:
    r"""Returns the run in another parameterization of its class whose curve must be the same.

    Initial draws and batches are the same; each role's gamma is multiplied by
    :math:`n_0^{2t}`, :math:`n_0^{t}` or 1 for SGD, Adam and Adafactor, with n_0 the width where
    one global rate is used, and the base width under per-layer rates, whose own power of n / n_0
    follows the parameterization.

    What limits the equality: rounding, unless the width (and the base width) is a power of 4, when
    every factor is a power of 2; and an ``eps`` added to gradients that are now smaller by
    :math:`n^t`, so make it tiny (1e-30) for Adam. Adam-atan2 has none.

    Args:
        config: the run, with ``mlp_ratio`` 1 and, but for Adafactor, no weight decay.
        parameterization: the other's name.

    Raises:
        ValueError: the two are not equivalent; ``mlp_ratio`` is not 1, since each layer is scaled
            by its own fan-in and one gamma per role cannot follow two; or there is weight decay,
            which does not shrink with the gradients.

    Example:
        >>> config = RunConfig(optimizer="adam", mlp_ratio=1, width=64)
        >>> equivalent_config(config, "ntk").gamma_hidden
        8.0
    """
    shift = equivalence_shift(config.parameterization, parameterization)
    rule = entry(config.optimizer).rule
    if not shift:
        raise ValueError(
            f"no run in {parameterization!r} has the curve of one in {config.parameterization!r}: "
            f"{shift.reason}"
        )
    powers = shift.rate_powers(rule)
    if config.parameterization == parameterization:
        return config
    if config.mlp_ratio != 1:
        raise ValueError(
            f"mlp_ratio is {config.mlp_ratio}; allowed: 1, as the MLP's second matrix has fan-in "
            "mlp_ratio * width and one factor for all hidden layers cannot fit both"
        )
    decay = config.hyperparameters.get("weight_decay", 0.0)
    if decay and rule != "adafactor":
        raise ValueError(
            f"weight_decay is {decay}; allowed: 0, as the decay of larger weights at another rate "
            "is not the same decay"
        )
    n = config.width if config.rate_rule == "global" else config.base_width
    changes: dict[str, Any] = {"parameterization": parameterization}
    for role in MATRIX_ROLES:
        name = f"gamma_{role}"
        changes[name] = getattr(config, name) * n ** powers[role]
    return dataclasses.replace(config, **changes)


def curve_differences(runs: pl.DataFrame) -> pl.DataFrame:
    r"""Returns how far apart the curves of parameterizations are, pair by pair.

    .. math:: \max_t |L_p(t) - L_q(t)| / L_p(t)

    over the points of the training and the validation curve.

    Args:
        runs: a row per optimizer and parameterization, as of :func:`isolab.run`.

    Returns:
        A row per optimizer and pair: ``optimizer``, ``first``, ``second``, ``equivalent`` (by
        arithmetic) and ``difference``, the largest relative one, float64.

    Raises:
        ValueError: missing columns, or two runs of one optimizer and parameterization.
    """
    curves = ["curve_train_loss", "curve_validation_loss"]
    require_columns(runs, ["optimizer", "parameterization", *curves])
    rows = []
    for (optimizer,), group in runs.group_by(["optimizer"], maintain_order=True):
        names = group["parameterization"].to_list()
        if len(set(names)) < len(names):
            raise ValueError(f"{optimizer} has two runs of one parameterization: {names}")
        losses = {
            row["parameterization"]: np.array([row[curve] for curve in curves])
            for row in group.iter_rows(named=True)
        }
        for first, second in itertools.combinations(names, 2):
            apart = np.abs(losses[first] - losses[second]) / losses[first]
            same = bool(equivalence_shift(first, second))
            rows.append((optimizer, first, second, same, float(apart.max())))
    names = ["optimizer", "first", "second", "equivalent", "difference"]
    return pl.DataFrame(rows, schema=names, orient="row")
