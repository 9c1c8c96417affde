"""What chapter 2 runs: rate sweeps over widths, by parameterization, optimizer and rate rule."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import polars as pl

from isolab.config import RunConfig
from isolab.optimizers.catalog import entry
from isolab.parameterization import ROLES, parameterization
from isolab.sweep import Sweep

TRANSFER: dict[str, dict[str, Any]] = {
    "smoke": {
        "widths": [16, 32, 48],
        "parameterizations": ["standard", "mup"],
        "optimizers": ["adam"],
        "depth": 1,
        "context": 32,
        "batch_size": 8,
        "steps": 20,
        "reach": 1,
        "seeds": [0, 1],
        "check_widths": [16, 32, 64],
        "alignment_widths": [16, 32],
    },
    "laptop": {
        "widths": [32, 64, 128],
        "parameterizations": ["standard", "mup"],
        "optimizers": ["adam"],
        "depth": 2,
        "context": 64,
        "batch_size": 16,
        "steps": 200,
        "reach": 2,
        "seeds": [0, 1, 2],
        "check_widths": [32, 64, 128, 256, 512, 1024],
        "alignment_widths": [32, 64, 128],
    },
    "full": {
        "widths": [128, 256, 512, 1024, 2048, 4096],
        "parameterizations": ["standard", "ntk", "mup", "mean_field"],
        "optimizers": ["adam", "adafactor", "sgd"],
        "depth": 4,
        "context": 256,
        "batch_size": 64,
        "steps": 2000,
        "reach": 4,
        "seeds": [0, 1, 2],
        "check_widths": [32, 64, 128, 256, 512, 1024, 2048, 4096],
        "alignment_widths": [128, 256, 512, 1024],
    },
}
"""Chapter 2: the narrowest width is the base; ``reach`` rates to each side of a grid's centre."""

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


@dataclass(frozen=True)
class TransferPlan:
    """Chapter 2's runs, checked and not yet trained.

    Attributes:
        base: what all runs share; width and base width are the narrowest.
        sweep: rates, widths and seeds: "global" and "full" for standard, "full" for the other
            parameterizations.
    """

    base: RunConfig
    sweep: Sweep

    def __str__(self) -> str:
        widths = sorted({config.width for config in self.sweep})
        return f"widths {widths}, base width {self.base.base_width}: {len(self.sweep)} runs"


def transfer_plan(settings: SimpleNamespace) -> TransferPlan:
    """Returns chapter 2's runs; an impossible setting fails here, before any training.

    Args:
        settings: from :func:`choose` with :data:`TRANSFER`.

    Raises:
        ValueError: fewer than two widths or seeds, no "standard" among the parameterizations, a
            reach below 1, or what :class:`isolab.RunConfig` refuses.
    """
    for name in ("widths", "seeds", "check_widths", "alignment_widths"):
        values = getattr(settings, name)
        if len(set(values)) < 2:
            raise ValueError(f"{name} is {values}; allowed: two different ones or more")
    if "standard" not in settings.parameterizations:
        raise ValueError(
            f"parameterizations is {settings.parameterizations}; allowed: a list with 'standard',"
            " to which the others are compared"
        )
    if settings.reach < 1:
        raise ValueError(f"reach is {settings.reach}; allowed: 1 or more rates to each side")
    widths = sorted(set(settings.widths))
    base = RunConfig(
        base_width=widths[0],
        width=widths[0],
        depth=settings.depth,
        context=settings.context,
        batch_size=settings.batch_size,
        steps=settings.steps,
        evaluate_every=settings.steps // 2 if settings.steps % 2 == 0 else settings.steps,
        warmup_steps=settings.steps // 10,
    )

    def sweep(scalings: list[str], rules: list[str]) -> Sweep:
        return transfer_sweep(
            base, scalings, settings.optimizers, rules, widths, settings.seeds, settings.reach
        )

    whole = sweep(["standard"], ["global", "full"])
    others = [name for name in settings.parameterizations if name != "standard"]
    return TransferPlan(base, whole + sweep(others, ["full"]) if others else whole)


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


def transfer_reference() -> Sweep:
    """Returns the runs of chapter 2's reference results: what two cores train in about two hours.

    Every parameterization, optimizer and rule at widths 32 to 256; the embedding's rate made to
    fall with the width as a hidden matrix's does (:func:`embedding_ablation`); and one role's rate
    at a time changed at the base width (:func:`gamma_sweep`).
    """
    base = RunConfig(
        base_width=32,
        width=32,
        batch_size=16,
        steps=200,
        evaluate_every=100,
        warmup_steps=20,
    )
    widths, seeds = [32, 64, 128, 256], [0, 1, 2]
    scalings = sorted({scaling for scaling, _ in CENTRES})
    optimizers = sorted({optimizer for _, optimizer in CENTRES})
    return Sweep.union(
        [
            transfer_sweep(base, scalings, optimizers, ["global", "full", "none"], widths, seeds),
            embedding_ablation(base, ["standard", "mup"], widths, seeds),
            gamma_sweep(base, ["standard", "mup"], seeds),
        ]
    )


def embedding_ablation(
    base: RunConfig, scalings: Sequence[str], widths: Iterable[int], seeds: Sequence[int]
) -> Sweep:
    """Returns Adam's runs under "full" whose embedding's rate has another factor n_base / n.

    With the prescribed rate an embedding's update keeps its size at every width; with this factor
    it shrinks as under one global rate that falls as a hidden matrix needs it.
    """
    wider = [width for width in widths if width != base.base_width]
    prescribed = transfer_sweep(base, scalings, ["adam"], ["full"], wider, seeds)
    falling = [
        dataclasses.replace(config, gamma_embedding=base.base_width / config.width)
        for config in prescribed
    ]
    return Sweep.union([falling])


def gamma_sweep(base: RunConfig, scalings: Sequence[str], seeds: Sequence[int]) -> Sweep:
    """Returns Adam's runs at the base width with one role's constant at 1/4, 1/2, 2 or 4."""
    tuned = transfer_sweep(base, scalings, ["adam"], ["global"], [base.base_width], seeds, reach=2)
    changes: list[dict[str, Any]] = [
        {f"gamma_{role}": factor}
        for role in ("embedding", "hidden", "readout")
        for factor in (0.25, 0.5, 2.0, 4.0)
    ]
    return Sweep.union(
        [dataclasses.replace(config, **change) for config in tuned] for change in changes
    )


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
