"""What chapter 2 runs: rate sweeps over widths, by parameterization, optimizer and rate rule."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

import polars as pl

from isolab.config import RunConfig
from isolab.optimizers.catalog import entry
from isolab.parameterization import ROLES, parameterization
from isolab.sweep import Sweep

CENTRES = {
    ("standard", "adam"): -5, ("ntk", "adam"): -3, ("mup", "adam"): -6, ("mean_field", "adam"): -3,
    ("standard", "sgd"): -2, ("ntk", "sgd"): 0, ("mup", "sgd"): 1, ("mean_field", "sgd"): 4,
    ("standard", "adafactor"): -4, ("ntk", "adafactor"): -4, ("mup", "adafactor"): -4,
    ("mean_field", "adafactor"): -4,
}  # fmt: skip
"""Log2 of the best rate at width 32 in a first scan of factor-2 grids; the grids are laid around
it, and a best rate at the edge of its grid is told, so that a wrong centre cannot pass unseen."""
CENTRE_WIDTH = 32


def log2_centre(
    scaling: str, optimizer: str, rule: str, width: int, base_width: int = CENTRE_WIDTH
) -> float:
    """Returns where a grid of log2 rates is centred.

    Under "global" it falls with the width by the largest stable exponent of any role; under "full"
    it stays; under "none" it falls half as fast as it would have to if alignment were full.
    """
    p, family = parameterization(scaling), entry(optimizer).rule
    start = CENTRES[scaling, optimizer] - _falls(scaling, optimizer) * math.log2(
        base_width / CENTRE_WIDTH
    )
    octaves = math.log2(width / base_width)
    if rule == "global":
        return start - _falls(scaling, optimizer) * octaves
    if rule == "full":
        return start
    roles = ("hidden", "readout")
    excess = max(p.rate_exponent(r, family) - p.rate_exponent(r, family, "none") for r in roles)
    return start - excess / 2 * octaves


def _falls(scaling: str, optimizer: str) -> float:
    p, family = parameterization(scaling), entry(optimizer).rule
    return max(p.rate_exponent(role, family) for role in ROLES if role != "vector")


def transfer_sweep(
    base: RunConfig,
    scalings: Sequence[str],
    optimizers: Sequence[str],
    rules: Sequence[str],
    widths: Iterable[int],
    seeds: Sequence[int],
    reach: int = 3,
) -> Sweep:
    """Returns factor-2 grids of rates at every width, around :func:`log2_centre`.

    At the base width all rules are one, "global": :func:`at_every_rule` copies its runs to the
    others.

    Args:
        base: what the runs share; its ``base_width`` is the narrowest of them.
        scalings: parameterizations.
        optimizers: names of :data:`isolab.optimizers.CATALOG` with a centre.
        rules: of "global", "full" and "none".
        widths: of the model.
        seeds: of every run.
        reach: rates to each side of the centre.

    Raises:
        ValueError: an optimizer without a centre, or what :class:`isolab.RunConfig` refuses.
    """
    for optimizer in optimizers:
        if ("standard", optimizer) not in CENTRES:
            known = sorted({name for _, name in CENTRES})
            raise ValueError(f"optimizer is {optimizer!r}; allowed in this chapter: {known}")
    cells = dict.fromkeys(
        (scaling, optimizer, "global" if width == base.base_width else rule, width)
        for width in widths
        for rule in rules
        for optimizer in optimizers
        for scaling in scalings
    )
    sweeps = []
    for scaling, optimizer, rule, width in cells:
        centre = round(log2_centre(scaling, optimizer, rule, width, base.base_width))
        sweeps.append(
            Sweep(
                dataclasses.replace(
                    base,
                    parameterization=scaling,
                    optimizer=optimizer,
                    rate_rule=rule,
                    width=width,
                ),
                learning_rate=[2.0**k for k in range(centre - reach, centre + reach + 1)],
                seed=seeds,
            )
        )
    return Sweep.union(sweeps)


def at_every_rule(runs: pl.DataFrame) -> pl.DataFrame:
    """Returns the runs with those at the base width copied to every rule of their kind.

    There all rate rules train alike, so the sweep holds them once, as "global".

    Args:
        runs: a row per run.
    """
    kind = ["parameterization", "optimizer"]
    at_base = runs.filter(
        (pl.col("width") == pl.col("base_width")) & (pl.col("rate_rule") == "global")
    )
    rules = runs.select(*kind, "rate_rule").unique(maintain_order=True)
    copied = at_base.drop("rate_rule").join(rules, on=kind).select(runs.columns)
    rest = runs.filter(pl.col("width") != pl.col("base_width"))
    return pl.concat([copied, rest])
