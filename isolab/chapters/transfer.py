"""What chapter 2 runs: rate sweeps over widths, by parameterization, optimizer and rate rule."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import polars as pl

from isolab.chapters.settings import require_several
from isolab.measure.alignment import measure as measure_alignment
from isolab.measure.coordinates import coordinate_check_runs
from isolab.measure.twins import equivalent_config
from isolab.optimizers.catalog import entry
from isolab.sweeps.sweep import Sweep
from isolab.theory.parameterization import parameterization
from isolab.theory.shifts import equivalence_classes
from isolab.training.config import RunConfig

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
        "digits_widths": [64, 128],
        "twins": ["adam"],
        "processes": None,
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
        "check_widths": [32, 64, 128, 256],
        "digits_widths": [64, 128, 256],
        "twins": ["sgd", "adam"],
        "processes": "auto",
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
        "digits_widths": [64, 256, 1024, 4096],
        "twins": ["sgd", "adam", "adafactor"],
        "processes": "auto",
    },
}
"""Chapter 2: the narrowest width is the base; ``reach`` rates to each side of a grid's centre."""

CENTRES = {
    ("standard", "adam"): -5, ("ntk", "adam"): -3, ("mup", "adam"): -6, ("mean_field", "adam"): -3,
    ("standard", "sgd"): -2, ("ntk", "sgd"): 1, ("mup", "sgd"): 1, ("mean_field", "sgd"): 4,
    ("standard", "adafactor"): -4, ("ntk", "adafactor"): -4, ("mup", "adafactor"): -4,
    ("mean_field", "adafactor"): -4,
}  # fmt: skip
"""Log2 of the best rate at width 32 in a first scan of factor-2 grids; the grids are laid around
it, and a best rate at the edge of its grid is told, so that a wrong centre cannot pass unseen."""
CENTRE_WIDTH = 32
GAMMAS = ("embedding", "hidden", "readout")
SCALINGS = ("standard", "ntk", "mup", "mean_field")


def log2_centre(
    scaling: str, optimizer: str, rule: str, width: int, base_width: int = CENTRE_WIDTH
) -> float:
    """Returns where a grid of log2 rates is centred.

    Under "global" it falls with the width by the largest stable exponent of any role; under "full"
    it stays; under "none" it falls half as fast as it would have to if alignment were full.
    """
    p, family = parameterization(scaling), entry(optimizer).rule
    falls = p.global_rate_exponent(family)
    start = CENTRES[scaling, optimizer] - falls * math.log2(base_width / CENTRE_WIDTH)
    octaves = math.log2(width / base_width)
    if rule == "global":
        return start - falls * octaves
    if rule == "full":
        return start
    roles = ("hidden", "readout")
    excess = max(p.rate_exponent(r, family) - p.rate_exponent(r, family, "none") for r in roles)
    return start - excess / 2 * octaves


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
    require_several(settings, "widths", "seeds", "check_widths", "digits_widths")
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

    Every parameterization, optimizer and rule at widths 32 to 256, three seeds each and five where
    transfer is judged (Adam with full per-layer rates); the embedding's rate made to
    fall with the width as a hidden matrix's does (:func:`embedding_ablation`); one role's rate at a
    time changed at the base width (:func:`gamma_sweep`); and the best such change at larger widths
    (:func:`tuned_sweep`).
    """
    base, widths, seeds = REFERENCE, [32, 64, 128, 256], [0, 1, 2]
    optimizers = sorted({optimizer for _, optimizer in CENTRES})
    return Sweep.union(
        [
            transfer_sweep(base, SCALINGS, optimizers, ["global", "full", "none"], widths, seeds),
            transfer_sweep(base, SCALINGS, ["adam"], ["full"], widths, [3, 4]),
            embedding_ablation(base, ["standard", "mup"], widths, seeds),
            gamma_sweep(base, ["standard", "mup"], seeds),
            tuned_sweep(base, ["standard", "mup"], [128, 256], seeds),
        ]
    )


def twin_sweep(optimizers: Sequence[str] = ("sgd", "adam", "adafactor")) -> Sweep:
    """Returns short runs whose curves must be the same within a class of parameterizations.

    One for each optimizer and parameterization: the first of its class at the centre of its grid,
    the second as :func:`isolab.measure.twins.equivalent_config` says.  The width is a power of 4,
    so that every factor is a power of 2.
    """
    runs = []
    for optimizer in optimizers:
        for names in equivalence_classes(SCALINGS):
            start = RunConfig(
                parameterization=names[0],
                optimizer=optimizer,
                learning_rate=2.0 ** log2_centre(names[0], optimizer, "full", 16, 16),
                eps=1e-30 if optimizer == "adam" else None,
                width=16, depth=1, context=32, mlp_ratio=1, batch_size=8, validation_windows=16,
                steps=40, evaluate_every=10, warmup_steps=4,
            )  # fmt: skip
            runs += [equivalent_config(start, name) for name in names]
    return Sweep.union([runs])


REFERENCE = RunConfig(
    base_width=32, width=32, batch_size=16, steps=200, evaluate_every=100, warmup_steps=20
)
"""What chapter 2's reference runs share."""


def coordinates(
    base: RunConfig, cells: Iterable[tuple[str, str]], widths: Sequence[int], seeds: Sequence[int]
) -> pl.DataFrame:
    """Returns the coordinate check under Adam for pairs of a parameterization and a rate rule.

    Each at the centre of its grid of rates; batches of 4 windows of 32 tokens, which show sizes as
    well as larger ones.
    """
    frames = []
    for scaling, rule in cells:
        config = dataclasses.replace(
            base,
            parameterization=scaling,
            rate_rule=rule,
            learning_rate=2.0 ** log2_centre(scaling, "adam", "full", base.width, base.base_width),
            batch_size=4,
            context=32,
        )
        frame = coordinate_check_runs(config, widths, seeds=seeds)
        frames.append(frame.with_columns(parameterization=pl.lit(scaling), rate_rule=pl.lit(rule)))
    return pl.concat(frames)


def alignments(
    base: RunConfig,
    scalings: Iterable[str],
    widths: Sequence[int],
    seeds: Sequence[int],
    points: int = 6,
) -> pl.DataFrame:
    """Returns the alignment of every matrix under Adam and full per-layer rates.

    Measured at step 0 and at so many powers of two of the run's length, with the rate at the
    centre of its grid.
    """
    steps = sorted({0, 1, *(max(1, base.steps >> k) for k in range(points))})
    frames = []
    for scaling in scalings:
        config = dataclasses.replace(
            base,
            parameterization=scaling,
            rate_rule="full",
            learning_rate=2.0 ** log2_centre(scaling, "adam", "full", base.width, base.base_width),
        )
        frame = measure_alignment(config, widths, steps, seeds)
        frames.append(frame.with_columns(parameterization=pl.lit(scaling)))
    return pl.concat(frames)


def transfer_coordinates() -> pl.DataFrame:
    """Returns the reference coordinate check: every parameterization and rule to width 1024."""
    cells = [(scaling, rule) for scaling in SCALINGS for rule in ("global", "full", "none")]
    return coordinates(REFERENCE, cells, [32, 64, 128, 256, 512, 1024], [0, 1, 2])


def transfer_alignment() -> pl.DataFrame:
    """Returns the reference alignments: every parameterization, widths 32 to 256."""
    return alignments(REFERENCE, SCALINGS, [32, 64, 128, 256], [0, 1])


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


TUNED_HIDDEN = 0.25
"""The constant of hidden rates that was best at the base width, of 1/4 to 4."""


def tuned_sweep(
    base: RunConfig, scalings: Sequence[str], widths: Iterable[int], seeds: Sequence[int]
) -> Sweep:
    """Returns Adam's runs under "full" with hidden rates at :data:`TUNED_HIDDEN` of the others.

    The grid is a factor of 4 higher, as the rate that is lowered is the one that binds.
    """
    wider = transfer_sweep(base, scalings, ["adam"], ["full"], widths, seeds, reach=2)
    tuned = [
        dataclasses.replace(
            config, gamma_hidden=TUNED_HIDDEN, learning_rate=4 * config.learning_rate
        )
        for config in wider
    ]
    return Sweep.union([tuned])


def gamma_sweep(base: RunConfig, scalings: Sequence[str], seeds: Sequence[int]) -> Sweep:
    """Returns Adam's runs at the base width with one role's constant at 1/4, 1/2, 2 or 4."""
    tuned = transfer_sweep(base, scalings, ["adam"], ["global"], [base.base_width], seeds, reach=2)
    changes: list[dict[str, Any]] = [
        {f"gamma_{role}": factor} for role in GAMMAS for factor in (0.25, 0.5, 2.0, 4.0)
    ]
    return Sweep.union(
        [dataclasses.replace(config, **change) for config in tuned] for change in changes
    )
