"""Chapter 2: do learning rates transfer across width?"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from isolab.analysis import optimum, ranking, transfer
from isolab.analysis.claim import Claim
from isolab.analysis.groups import ends
from isolab.chapters import grids
from isolab.chapters.chapter import Chapter, Evidence, Measurement, Question, claim_of
from isolab.chapters.grids import CENTRES, at_centre, log2_centre
from isolab.measure.alignment import measure as measure_alignment
from isolab.measure.coordinates import coordinate_check_runs
from isolab.measure.coordinates import slopes as coordinate_slopes
from isolab.measure.twins import equivalent_config
from isolab.model.fields import require
from isolab.optimizers.catalog import entry
from isolab.sweeps.sweep import Sweep
from isolab.theory.parameterization import parameterization
from isolab.theory.shifts import equivalence_classes
from isolab.training.config import RunConfig

SOURCE = "arXiv:2407.05872"
KIND = ["parameterization", "optimizer", "rate_rule"]
"""Columns that tell the rate sweeps apart."""
NAMES = {"standard": "Standard", "ntk": "NTK", "mup": "muP", "mean_field": "mean-field",
         "sgd": "SGD", "adam": "Adam", "adafactor": "Adafactor"}  # fmt: skip
SCALINGS = ("standard", "ntk", "mup", "mean_field")
RULES = ("global", "full", "none")
ROLES = ("embedding", "hidden", "readout")


@dataclass(frozen=True)
class Settings(grids.GridSettings):
    """What chapter 2 trains and measures.

    ``further`` trains every rule everywhere, two more seeds of Adam under per-layer rates, and
    changes of one role's rate.

    Attributes:
        parameterizations: "standard", under one global rate and per-layer rates, and others, under
            per-layer rates.
        optimizers: of :data:`isolab.chapters.grids.CENTRES`.
        check_widths, digits_widths: of the coordinate check, and of the MLP on digits.
        twins: optimizers of the runs that must be equal within a class of parameterizations.
    """

    parameterizations: tuple[str, ...] = ("standard", "mup")
    optimizers: tuple[str, ...] = ("adam",)
    check_widths: tuple[int, ...] = (32, 64, 128, 256)
    digits_widths: tuple[int, ...] = (64, 128, 256)
    twins: tuple[str, ...] = ("sgd", "adam")

    def __post_init__(self) -> None:
        super().__post_init__()
        grids.require_several(self, "check_widths", "digits_widths")
        compared = "a list with 'standard', to which the others are compared"
        require(self, "parameterizations", "standard" in self.parameterizations, compared)
        known = {name for _, name in CENTRES}
        require(self, "optimizers", known.issuperset(self.optimizers), f"of {sorted(known)}")


PRESETS = {
    "smoke": Settings(
        **grids.SMOKE,
        widths=(16, 32, 48),
        check_widths=(16, 32, 64),
        digits_widths=(64, 128),
        twins=("adam",),
    ),
    "laptop": Settings(),
    "full": Settings(
        **grids.FULL,
        widths=(128, 256, 512, 1024, 2048, 4096),
        parameterizations=SCALINGS,
        optimizers=("adam", "adafactor", "sgd"),
        reach=4,
        check_widths=(32, 64, 128, 256, 512, 1024, 2048, 4096),
        digits_widths=(64, 256, 1024, 4096),
        twins=("sgd", "adam", "adafactor"),
    ),
}


def sweeps(s: Settings) -> dict[str, Sweep]:
    """Returns grids of rates at every width, and what changes one thing in them."""
    base, widths, seeds, reach = s.base, sorted(set(s.widths)), s.seeds, s.reach
    if not s.further:
        rules = {"standard": ["global", "full"]}
        rates = Sweep.union(
            rate_grids(base, [name], s.optimizers, rules.get(name, ["full"]), widths, seeds, reach)
            for name in ["standard", *s.parameterizations]
        )
        return {"rates": rates, "twins": twins(s.twins)}

    def full(widths: Sequence[int], reach: int, **changes: Any) -> Sweep:
        found = rate_grids(base, ["standard", "mup"], ["adam"], ["full"], widths, seeds, reach)
        return Sweep.union([[dataclasses.replace(config, **changes) for config in found]])

    names = s.parameterizations
    return {
        "rates": rate_grids(base, names, s.optimizers, RULES, widths, seeds, reach)
        + rate_grids(base, names, ["adam"], ["full"], widths, [3, 4], reach),
        "embedding as prescribed": full(widths, reach),
        "embedding falls as 1/n": Sweep.union(
            full([width], reach, gamma_embedding=widths[0] / width) for width in widths
        ),
        "one role's constant": Sweep.union(
            full(widths[:1], reach if factor == 1 else 2, **{f"gamma_{role}": factor})
            for role in ROLES
            for factor in (0.25, 0.5, 1.0, 2.0, 4.0)
        ),
        "hidden as the others": full([widths[0], *widths[2:]], reach),
        "hidden at 1/4": full(widths[:1], 2, gamma_hidden=0.25)
        + Sweep.union(  # rates 4 times as high: the one that is lowered is the one that binds
            [dataclasses.replace(config, learning_rate=4 * config.learning_rate)]
            for config in full(widths[2:], 2, gamma_hidden=0.25)
        ),
    }


def _kind(*values: str) -> dict[str, Any]:
    return dict(zip(KIND, values, strict=True))


def rate_grids(
    base: RunConfig,
    scalings: Iterable[str],
    optimizers: Sequence[str],
    rules: Sequence[str],
    widths: Iterable[int],
    seeds: Sequence[int],
    reach: int,
) -> Sweep:
    """Returns grids of rates, ``reach`` to each side of :func:`log2_centre`."""
    return Sweep.union(
        Sweep(at, learning_rate=grids.around(log2_centre(at), reach), seed=seeds)
        for width in widths
        for rule in rules
        for optimizer in optimizers
        for scaling in scalings
        for at in [dataclasses.replace(base, width=width, **_kind(scaling, optimizer, rule))]
    )


def twins(optimizers: Sequence[str]) -> Sweep:
    """Returns short runs whose curves must be the same within a class of parameterizations.

    The width is a power of 4, so that every factor of
    :func:`isolab.measure.twins.equivalent_config` is a power of 2.
    """
    small = RunConfig(
        width=16, depth=1, context=32, mlp_ratio=1, batch_size=8, validation_windows=16,
        steps=40, evaluate_every=10, warmup_steps=4,
    )  # fmt: skip
    runs = []
    for optimizer in optimizers:
        for names in equivalence_classes(SCALINGS):
            eps = 1e-30 if optimizer == "adam" else None
            kind = {"parameterization": names[0], "optimizer": optimizer, "eps": eps}
            first = at_centre(small, **kind, base_width=small.width)
            first = dataclasses.replace(first, base_width=small.base_width)
            runs += [equivalent_config(first, name) for name in names]
    return Sweep.union([runs])


def tables(s: Settings) -> dict[str, Measurement]:
    """Returns the coordinate check and, in the reference, the alignment while training."""
    scalings, rules = (SCALINGS, RULES) if s.further else (("standard",), RULES[:2])
    pairs = [(name, rule) for name in scalings for rule in rules]
    found = {"coordinates": Measurement(coordinates, s.base, pairs, s.check_widths, s.seeds)}
    if s.further:
        found["alignment"] = Measurement(alignments, s.base, SCALINGS, s.widths, s.seeds[:2])
    return found


def coordinates(
    base: RunConfig, pairs: Iterable[tuple[str, str]], widths: Sequence[int], seeds: Sequence[int]
) -> pl.DataFrame:
    """Returns the coordinate check under Adam for pairs of a parameterization and a rate rule."""
    frames = []
    for scaling, rule in pairs:
        config = at_centre(base, **_kind(scaling, "adam", rule), batch_size=4, context=32)
        frame = coordinate_check_runs(config, widths, seeds=seeds)
        frames.append(frame.with_columns(parameterization=pl.lit(scaling), rate_rule=pl.lit(rule)))
    return pl.concat(frames)


def alignments(
    base: RunConfig, scalings: Iterable[str], widths: Sequence[int], seeds: Sequence[int]
) -> pl.DataFrame:
    """Returns the alignment of every matrix under Adam and full per-layer rates."""
    steps = sorted({0, 1, *(max(1, base.steps >> k) for k in range(6))})
    return pl.concat(
        measure_alignment(at, widths, steps, seeds).with_columns(
            parameterization=pl.lit(at.parameterization)
        )
        for at in (at_centre(base, **_kind(scaling, "adam", "full")) for scaling in scalings)
    )


def slopes(sizes: pl.DataFrame) -> pl.DataFrame:
    """Returns the powers of the width of a coordinate check's sizes, a pair after the other."""
    pair = ["parameterization", "rate_rule"]
    return pl.concat(
        coordinate_slopes(group).with_columns(parameterization=pl.lit(name), rate_rule=pl.lit(rule))
        for (name, rule), group in sizes.group_by(pair, maintain_order=True)
    )


def common_seeds(
    runs: pl.DataFrame, by: Sequence[str] = KIND, across: Sequence[str] = ("width",)
) -> pl.DataFrame:
    """Returns the runs of the seeds that every cell of a group has, of groups of several cells.

    Comparisons pair cells by seed; columns ``by`` tell groups apart, ``across`` their cells.
    """
    has, of = (pl.struct(across).n_unique().over(columns) for columns in ([*by, "seed"], [*by]))
    return runs.filter((has == of) & (of > 1))


def by_constant(runs: pl.DataFrame) -> pl.DataFrame:
    """Returns the runs with ``role`` and its constant ``gamma``; unchanged ones for every role."""
    return pl.concat(
        runs.filter(pl.col(f"gamma_{other}") == 1 for other in ROLES if other != role).with_columns(
            role=pl.lit(role), gamma=pl.col(f"gamma_{role}")
        )
        for role in ROLES
    )


def either(evidence: Evidence, name: str, values: dict[str, str]) -> pl.DataFrame:
    """Returns the runs of sweeps, with a column of a value for each, of their common seeds."""
    runs = pl.concat(
        evidence.runs(sweep).with_columns(pl.lit(value).alias(name))
        for sweep, value in values.items()
    )
    all_there = pl.col(name).n_unique().over("parameterization", "width") == len(values)
    return common_seeds(runs.filter(all_there), ["parameterization"], [name, "width"])


EMBEDDING = {"embedding as prescribed": "as prescribed", "embedding falls as 1/n": "falls as 1/n"}
HIDDEN = {"hidden as the others": "as the others", "hidden at 1/4": "1/4 of the others"}


def exponents(runs: pl.DataFrame) -> pl.DataFrame:
    """Returns :func:`isolab.analysis.transfer.exponents` with ``theory``, at full alignment.

    Under "global" minus the largest exponent of any role; 0 under "full"; null for "none", as
    theory says only that those rates are too large.
    """
    kinds = runs.select(KIND).unique(maintain_order=True)
    theory = [
        global_power(scaling, optimizer) if rule == "global" else {"full": 0.0}.get(rule)
        for scaling, optimizer, rule in kinds.rows()
    ]
    kinds = kinds.with_columns(pl.Series("theory", theory, pl.Float64))
    return transfer.exponents(runs, KIND).join(kinds, on=KIND, maintain_order="left")


def global_power(scaling: str, optimizer: str, alignment: str = "full") -> float:
    """Returns theory's power of the width of the best global rate."""
    family = entry(optimizer).rule
    return 0.0 - parameterization(scaling).global_rate_exponent(family, alignment)


def claims(evidence: Evidence) -> dict[str, Claim]:
    """Asks for the power of the best global rate, what stays per layer, and which ends lower.

    An interval must contain the power at full alignment and not the one at no alignment.
    Thresholds were fixed before the runs.
    """
    s, runs, found = evidence.settings, common_seeds(evidence.runs("rates")), {}
    fitted, shifts = exponents(runs), transfer.worst_shift(runs, KIND)
    for name in s.optimizers:
        full, none = (global_power("standard", name, alignment) for alignment in ("full", "none"))
        found[f"exponent_standard_{name}"] = claim_of(
            fitted,
            _kind("standard", name, "global"),
            "exponent",
            f"Standard, {NAMES[name]}, one global rate: with what power of the width does the best"
            " rate move?",
            threshold=full,
            direction="contains",
            rival=none,
            source=SOURCE,
            prediction=f"{full:g} by full alignment, {none:g} by none",
        )
    optimizer = "adam" if "adam" in s.optimizers else s.optimizers[0]
    for name in s.parameterizations:
        found[f"shift_{name}"] = grids.shift_claim(
            shifts,
            _kind(name, optimizer, "full"),
            f"{NAMES[name]}, {NAMES[optimizer]}, per-layer rates",
            direction="within",
            unit="grid steps",
            source=SOURCE,
            prediction="none: the rate transfers, within one grid step",
        )
    if "mup" in s.parameterizations:
        two = runs.filter(pl.col("parameterization").is_in(["standard", "mup"]))
        found["standard_below_mup"] = claim_of(
            ranking.loss_differences(two, KIND, {"parameterization": "standard"}),
            _kind("mup", optimizer, "full"),
            "difference",
            "By how much does the standard parameterization end below muP at width {width}, both"
            f" with per-layer rates ({NAMES[optimizer]})?",
            threshold=0.0,
            unit="nats/byte",
            source=SOURCE,
            prediction="its loss is lower",
        )
    return found


def numbers(evidence: Evidence) -> dict[str, pl.DataFrame]:
    """Returns the numbers that README and the notebook quote."""
    runs = common_seeds(evidence.runs("rates"))
    adam = runs.filter(optimizer="adam")
    full = adam.filter(rate_rule="full")
    hidden, embedding = either(evidence, "hidden", HIDDEN), either(evidence, "embedding", EMBEDDING)
    aligned = evidence.table("alignment").group_by("parameterization", "kind", "role")
    alignment, last = pl.col("alignment"), pl.col("step") == pl.col("step").max()
    changes = slopes(evidence.table("coordinates")).filter(quantity="change")
    name, pair = "parameterization", ["parameterization", "rate_rule"]
    of = [name, "embedding"]
    return {
        "optima": optimum.optima(adam, by=[*KIND, "width"]).select(*pair, "width", "rate", "loss"),
        "exponents": exponents(runs).select(*KIND, "theory", *ends("exponent"), "residual"),
        "shifts": transfer.worst_shift(full, KIND).select(name, "width", *ends("grid_steps")),
        "regrets": transfer.regrets(full, KIND)
        .filter(pl.col("width") == pl.col("width").max())
        .select(name, "width", *ends("regret")),
        "gamma": ranking.ranking(
            by_constant(evidence.runs("one role's constant")), [name, "role", "gamma"]
        ).select(name, "role", "gamma", "width", "loss"),
        "hidden": pl.concat(
            ranking.ranking(hidden.filter(width=width), [name, "hidden"])
            for width in hidden["width"].unique().sort()
        ).select(name, "hidden", "width", "loss"),
        "embedding": ranking.ranking(embedding, of).select(*of, "width", *ends("loss")),
        "embedding_regrets": transfer.regrets(embedding, of).select(
            *of, "width", "grid_steps", *ends("regret")
        ),
        "alignment": aligned.agg(
            alignment.filter(pl.col("step") == 0).mean().alias("first"),
            alignment.mean().alias("mean"),
            alignment.filter(last).mean().alias("last"),
        ),
        "slopes": changes.group_by(pair)
        .agg(pl.col("slope").min().alias("least"), pl.col("slope").max().alias("most"))
        .sort(pair),
    }


CHAPTER = Chapter(
    "transfer",
    PRESETS,
    Question(
        "Chapter 2: does the best rate stay as the width grows?",
        "Find the best rate at a narrow width, keep it, and widen the model.",
        ("width", "learning_rate", "parameterization", "rate_rule"),
        ("optimizer", "steps", "seed", "corpus"),
        grids.lab_setting("mup", -6),
    ),
    sweeps,
    tables,
    claims,
    numbers,
    reference=Settings(
        widths=(32, 64, 128, 256),
        parameterizations=SCALINGS,
        optimizers=("adam", "sgd", "adafactor"),
        reach=3,
        check_widths=(32, 64, 128, 256, 512, 1024),
        twins=(),
        further=True,
    ),
    folder="lr_transfer",
)
