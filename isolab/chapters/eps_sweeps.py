"""Chapter 3's sweeps: maps of eps, and grids of rates under an eps."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

from isolab.chapters.grids import around, log2_centre
from isolab.sweeps.sweep import Sweep
from isolab.theory.parameterization import parameterization
from isolab.training.config import RunConfig

PARAMETERIZATION = "mean_field"
"""Of the chapter's runs, with per-layer rates: the best rate stays, and gradients fall the fastest
with the width, so that narrow models already show what eps does to wide ones."""
TINY_EPS = 1e-30
GRADIENT_RMS = {"standard": 1e-2, "ntk": 1.3e-3, "mup": 1.8e-3, "mean_field": 2.3e-4}
"""Of hidden matrices at initialization, width 32 and 1,024 tokens, first measurement."""
GRADIENT_WIDTH, DAMPS, RISES = 32, 0.75, 0.5
"""A large eps divides these matrices' updates by 1 + eps / RMS. In a first scan the best rate rose
by the power ``DAMPS`` of that, and by ``RISES`` octaves more for each octave of width, less than by
theory as other roles' gradients are larger. Grids of rates are laid so; a best rate at an edge is
told, so that a wrong guess cannot pass unseen.
"""


def large_eps(stands_in: float, scaling: str = PARAMETERIZATION) -> float:
    r"""Returns the eps that is to a gradient what 1e-8 is to one of a model so much wider.

    Hidden gradients go as :math:`n^{-g}`, so :math:`10^{-8} k^g` at width n stands in for 1e-8 at
    width k n.
    """
    return float(1e-8 * stands_in ** parameterization(scaling).gradient_exponent("hidden"))


def eps_map(
    at: RunConfig,
    epsilons: Sequence[float | None],
    per_layer: Sequence[float],
    **axes: Sequence[Any],
) -> Sweep:
    """Returns Adam's runs at every eps, the same for all layers or per layer, and Adam-atan2's."""
    layered = [Sweep(at, eps_rule=["per_layer"], eps=per_layer, **axes)] if per_layer else []
    return Sweep.union([Sweep(at, eps=epsilons, **axes), *layered, Sweep(atan2(at), **axes)])


def by_width(
    base: RunConfig, widths: Iterable[int], epsilons: Sequence[float], seeds: Sequence[int]
) -> Sweep:
    """Returns the map of eps and width, at the rate that is best without eps."""
    return Sweep.union(eps_map(at_width(base, n), epsilons, epsilons, seed=seeds) for n in widths)


def under(
    base: RunConfig,
    widths: Iterable[int],
    reach: int,
    seeds: Sequence[int],
    epsilons: Sequence[float | None] = (None,),
    large: float | None = None,
    above: int = 0,
) -> Sweep:
    """Returns grids of rates at every width: Adam at every eps (None: its default), Adam-atan2.

    Adam under a ``large`` eps has a grid of its own, with ``above`` more rates at its upper end.
    """
    parts = []
    for at in (at_width(base, width) for width in widths):
        parts.append(eps_map(at, epsilons, [], learning_rate=rates(at, reach), seed=seeds))
        if large is not None:
            higher = DAMPS * math.log2(1 + large / GRADIENT_RMS[base.parameterization])
            higher += RISES * math.log2(at.width / GRADIENT_WIDTH)
            higher_rates = rates(at, reach, higher, above)
            parts.append(Sweep(at, eps=[large], learning_rate=higher_rates, seed=seeds))
    return Sweep.union(parts)


def at_width(base: RunConfig, width: int) -> RunConfig:
    """Returns a run at a width, at the rate at the centre of its grid."""
    at = dataclasses.replace(base, width=width)
    return dataclasses.replace(at, learning_rate=around(log2_centre(at), 0)[0])


def atan2(config: RunConfig) -> RunConfig:
    """Returns the run under Adam-atan2."""
    return dataclasses.replace(config, optimizer="adam_atan2")


def rates(at: RunConfig, reach: int, higher: float = 0.0, above: int = 0) -> list[float]:
    """Returns a grid around a run's rate, or so many octaves higher."""
    return around(math.log2(at.learning_rate) + higher, reach, above)
