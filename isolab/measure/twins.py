"""Runs of equivalent parameterizations (:mod:`isolab.theory.shifts`): their curves must agree."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import polars as pl

from isolab.analysis.seeds import require_columns, require_unique
from isolab.optimizers.catalog import entry
from isolab.theory.parameterization import MATRIX_ROLES
from isolab.theory.shifts import equivalence_shift
from isolab.training.config import RunConfig


def equivalent_config(config: RunConfig, parameterization: str) -> RunConfig:
    r"""Returns the run in another parameterization of its class whose curve must be the same.

    Initial draws and batches are the same; each role's gamma is multiplied by
    :math:`n_0^{2t}`, :math:`n_0^{t}` or 1 for SGD, Adam and Adafactor, with n_0 the width where
    one global rate is used, and the base width under per-layer rates, whose own power of n / n_0
    follows the parameterization.

    What limits the equality: rounding, unless the width (and the base width) is a power of 4, when
    every factor is a power of 2; and an ``eps`` added to gradients that are now smaller by
    :math:`n^t`, so make it tiny (1e-30) for Adam. Adam-atan2 has none.

    Raises:
        ValueError: the two are not equivalent; ``mlp_ratio`` is not 1, since each layer is scaled
            by its own fan-in and one gamma per role cannot follow two; or there is weight decay
            (but for Adafactor), which does not shrink with the gradients.

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

    Returns:
        A row per optimizer and pair: ``optimizer``, ``first``, ``second``, ``equivalent`` (by
        arithmetic) and ``difference``, the largest relative one, float64.

    Raises:
        ValueError: missing columns, or two runs of one optimizer and parameterization.
    """
    curves = ["curve_train_loss", "curve_validation_loss"]
    require_columns(runs, curves)
    require_unique(runs, ["optimizer", "parameterization"], "keep one run of each")
    rows = []
    for (optimizer,), group in runs.group_by("optimizer", maintain_order=True):
        losses = {
            name: np.array(its) for name, *its in group.select("parameterization", *curves).rows()
        }
        for first, second in itertools.combinations(losses, 2):
            apart = np.abs(losses[first] - losses[second]) / losses[first]
            same = bool(equivalence_shift(first, second))
            rows.append((optimizer, first, second, same, float(apart.max())))
    names = ["optimizer", "first", "second", "equivalent", "difference"]
    return pl.DataFrame(rows, schema=names, orient="row")
