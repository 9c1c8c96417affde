"""Chapter 3: must Adam's epsilon scale, or go?"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from isolab.analysis import epsilon, transfer
from isolab.analysis.claim import Claim, Estimate
from isolab.analysis.groups import ends
from isolab.analysis.ranking import ranking
from isolab.analysis.speedup import paired_difference
from isolab.chapters import eps_sweeps, grids
from isolab.chapters.chapter import Chapter, Evidence, Measurement, Question, claim_of
from isolab.chapters.eps_sweeps import GRADIENT_RMS, PARAMETERIZATION, TINY_EPS
from isolab.measure import gradients
from isolab.model.fields import require
from isolab.sweeps.sweep import Sweep
from isolab.training.config import RunConfig

SOURCE = "arXiv:2407.05872, section 4.3"
DECADES = 12.0
"""Of loss scale, over which Adam-atan2 must end on the same loss."""
MARGIN = 0.05
"""nats/byte: losses nearer to each other than this count as the same."""
STANDS_IN_MUP = 2_000_000  # widths that muP's large eps in the reference stands in for
CONSTANTS = ((1.0, 1.0), (4 / math.pi, 1.0), (2.0, 2.0), (4.0, 4.0))
"""Pairs (a, b) of Adam-atan2; a / b is the slope at small ratios."""
IN_BFLOAT16 = {"bfloat16 moments": "narrow_moments", "all in bfloat16": "narrow_compute"}


@dataclass(frozen=True)
class Settings(grids.GridSettings):
    """What chapter 3 trains and measures.

    ``seeds`` are of every run on which a claim is made; ``further`` adds a tuned eps, muP, transfer
    and maps in bfloat16, and Adam-atan2's constants.

    Attributes:
        map_seeds: of the other maps.
        log10_eps: of the map of widths, which holds eps = 0 too.
        log2_loss_scales, log10_eps_scaled: of the map at the second width, which holds
            :data:`TINY_EPS` too.
        log2_loss_scales_bfloat16: of the runs in bfloat16.
        stands_in: how many times wider the models are that the large eps stands in for.
        gradient_parameterizations, gradient_widths, gradient_step: of the gradients measured.
    """

    steps: int = 70
    map_seeds: tuple[int, ...] = (0, 1)
    log10_eps: tuple[int, ...] = (-3, -4, -5, -8)
    log2_loss_scales: tuple[int, ...] = (40, 0, -20, -40, -60, -80)
    log10_eps_scaled: tuple[int, ...] = (-8,)
    log2_loss_scales_bfloat16: tuple[int, ...] = (20, 0, -20, -40)
    stands_in: int = 10_000
    gradient_parameterizations: tuple[str, ...] = ("mean_field",)
    gradient_widths: tuple[int, ...] = (32, 64, 128)
    gradient_step: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        grids.require_several(self, "gradient_widths")
        for name in ("log2_loss_scales", "log2_loss_scales_bfloat16"):
            logs = getattr(self, name)
            require(self, name, 0 in logs and len(set(logs)) > 1, "0 and one other or more")
        require(self, "stands_in", self.stands_in >= 1, "1 or more")
        within = 1 <= self.gradient_step <= self.steps
        require(self, "gradient_step", within, f"1 to steps ({self.steps})")

    @property
    def base(self) -> RunConfig:
        """What all runs share; width and base width are the narrowest."""
        base = dataclasses.replace(super().base, parameterization=PARAMETERIZATION)
        return dataclasses.replace(base, rate_rule="full", evaluate_every=self.steps)

    @property
    def large_eps(self) -> float:
        """To the gradient at width n what 1e-8 is to the one at ``stands_in`` times n."""
        return eps_sweeps.large_eps(self.stands_in)


PRESETS = {
    "smoke": Settings(
        **grids.SMOKE,
        widths=(16, 32),
        log10_eps=(-3, -8),
        log2_loss_scales=(40, 0, -40),
        log2_loss_scales_bfloat16=(0, -20),
        gradient_parameterizations=("mup", "mean_field"),
        gradient_widths=(16, 32),
        gradient_step=10,
    ),
    "laptop": Settings(),
    "full": Settings(
        **grids.FULL,
        widths=(128, 256, 512, 1024, 2048),
        reach=3,
        map_seeds=(0, 1, 2),
        log10_eps=(-2, -3, -4, -5, -6, -7, -8, -9, -10, -12, -14, -16, -18, -20),
        log2_loss_scales=tuple(range(40, -85, -5)),
        log10_eps_scaled=(-4, -6, -8, -10, -12, -16, -20),
        log2_loss_scales_bfloat16=tuple(range(40, -85, -10)),
        gradient_parameterizations=tuple(GRADIENT_RMS),
        gradient_widths=(64, 128, 256, 512, 1024, 2048, 4096),
        gradient_step=100,
    ),
}


def sweeps(s: Settings) -> dict[str, Sweep]:
    """Returns maps of eps, width and loss scale, and grids of rates under several eps."""
    base, widths, seeds, large = s.base, sorted(set(s.widths)), s.seeds, s.large_eps
    epsilons = [10.0**k for k in s.log10_eps]
    scaled = [*(10.0**k for k in s.log10_eps_scaled), TINY_EPS, *([0.0] if s.further else [])]
    scales = [2.0**k for k in s.log2_loss_scales]
    narrow_scales = [2.0**k for k in s.log2_loss_scales_bfloat16]
    dtypes = ["float32", "bfloat16"] if s.further else ["bfloat16"]
    narrow = dataclasses.replace(eps_sweeps.at_width(base, widths[0]), moment_dtype="bfloat16")
    axes: dict[str, Any] = {"dtype": dtypes, "loss_scale": narrow_scales, "seed": s.map_seeds}
    found = {
        "width_map": eps_sweeps.by_width(base, widths, [*epsilons, 0.0], s.map_seeds),
        # Scales above 1 belong to it: float32 underflow, which ends Adam-atan2's invariance below,
        # leaves as many decades above. Tiny eps per layer are left out: too small to differ.
        "scale_map": eps_sweeps.eps_map(
            eps_sweeps.at_width(base, widths[1]),
            scaled,
            [eps for eps in scaled if eps > TINY_EPS],
            loss_scale=scales,
            seed=seeds,
        ),
        "transfer": eps_sweeps.under(base, widths, s.reach, seeds, large=large),
        "bfloat16": Sweep(narrow, **axes) + Sweep(eps_sweeps.atan2(narrow), **axes),
        "tuned_eps": eps_sweeps.under(base, widths, s.reach, seeds),
    }
    if not s.further:
        return found
    mup = dataclasses.replace(base, parameterization="mup")
    moments = dataclasses.replace(base, moment_dtype="bfloat16")
    compute = dataclasses.replace(moments, dtype="bfloat16")
    widths, few = widths[:3], [*epsilons[:7], 1e-12, 0.0]
    at, tuned = eps_sweeps.at_width(base, base.base_width), [None, 1e-6, 1e-5, 1e-4]
    pairs = {"atan2_a": [a for a, _ in CONSTANTS], "atan2_b": [b for _, b in CONSTANTS]}
    large_mup = eps_sweeps.large_eps(STANDS_IN_MUP, "mup")
    return found | {
        "tuned_eps": eps_sweeps.under(base, widths, s.reach, [*seeds, 3, 4], tuned),
        "transfer_mup": eps_sweeps.under(mup, widths, s.reach, seeds, large=large_mup, above=2),
        "narrow_moments": eps_sweeps.under(moments, widths, 2, seeds, large=large),
        "narrow_compute": eps_sweeps.under(compute, widths, 2, seeds, large=large),
        "narrow_moments_map": eps_sweeps.by_width(moments, widths, few, seeds),
        "narrow_compute_map": eps_sweeps.by_width(compute, widths, few, seeds),
        "constants": Sweep(
            eps_sweeps.atan2(at), pairs, learning_rate=eps_sweeps.rates(at, s.reach), seed=seeds
        ),
    }


def tables(s: Settings) -> dict[str, Measurement]:
    """Returns the gradients by width, and what eps is compared with in Adam's denominator."""
    base, widths, step = s.base, s.gradient_widths, s.gradient_step
    names, epsilons = s.gradient_parameterizations, [10.0**-k for k in range(2, 13)]
    return {
        "gradients": Measurement(
            gradients.gradient_sizes, base, widths, names, steps=[step], seeds=s.seeds
        ),
        "damping": Measurement(damping, base, widths, step, epsilons),
    }


def damping(
    config: RunConfig, widths: Sequence[int], step: int, epsilons: Sequence[float]
) -> pl.DataFrame:
    """Returns histograms of Adam's denominator at a step, and shares damped, which have an eps."""
    moments = gradients.second_moments(config, widths, step)
    shares = gradients.damped_shares(moments, epsilons)
    return pl.concat([gradients.root_histogram(moments), shares], how="diagonal")


def claims(evidence: Evidence) -> dict[str, Claim]:
    """Asks for the range of equal losses, for transfer under a large eps, and for equivalence.

    Thresholds and margins were fixed before the runs.
    """
    shifts = transfer.worst_shift(epsilon.cases(evidence.runs("transfer")), ["case"])
    adam = f"adam, eps = {epsilon.eps_text(evidence.settings.large_eps)}"
    found = {
        "decades": claim_of(
            flat(evidence, "scale_map"),
            {"variant": "adam_atan2"},
            "decades",
            "Over how many decades of loss scale does Adam-atan2 end on the same loss?",
            threshold=DECADES,
            unit="decades",
            source=SOURCE,
            prediction="all that float32 holds: no update changes until gradients underflow",
        )
    }
    for name, case, direction, prediction in (
        ("large_eps", adam, "above", "more than one: transfer breaks"),
        ("atan2", "adam_atan2", "within", "none: the rate transfers"),
    ):
        found[f"shift_{name}"] = grids.shift_claim(
            shifts,
            {"case": case},
            case.replace("adam", "Adam").replace("_", "-"),
            direction=direction,
            unit="factors of 2",
            source=SOURCE,
            prediction=prediction,
        )
    for name, words in (("default", "eps = 1e-8"), ("best", "the best of four eps")):
        if name == "default" or evidence.settings.further:
            found[f"equivalent_{name}_eps"] = difference(evidence, "adam_atan2", name).claim(
                f"At its best rate, by how much does Adam-atan2 end above Adam with {words}?",
                threshold=MARGIN,
                direction="within",
                unit="nats/byte",
                source=SOURCE,
                prediction="by nothing: the two are equivalent",
            )
    return found


@functools.lru_cache(maxsize=8)
def flat(evidence: Evidence, name: str) -> pl.DataFrame:
    """Returns over how many decades of loss scale the final loss of each case stays the same."""
    return epsilon.flat_decades(evidence.runs(name), MARGIN)


def tuned(evidence: Evidence, name: str, seeds: int | None = None) -> pl.DataFrame:
    """Returns the runs of Adam at the "default" or the "best" eps, or of a case, at every width."""
    runs = epsilon.cases(evidence.runs("tuned_eps"))
    runs = runs if seeds is None else runs.filter(pl.col("seed") < seeds)
    if name == "best":
        return epsilon.at_best_eps(runs.filter(optimizer="adam"))
    return runs.filter(case="adam, eps = 1e-8" if name == "default" else name)


def difference(evidence: Evidence, one: str, other: str, seeds: int | None = None) -> Estimate:
    """Returns how far runs of :func:`tuned` end above others, at each width's best rates."""
    return paired_difference(tuned(evidence, one, seeds), tuned(evidence, other, seeds))


def carried(runs: pl.DataFrame) -> pl.DataFrame:
    """Returns how far the best rate moved at every width, and what the base's costs there."""
    return transfer.regrets(epsilon.cases(runs), ["parameterization", "case"]).select(
        "parameterization", "case", "width", *ends("grid_steps"), *ends("regret")
    )


def gradient_lines(evidence: Evidence, scales: bool = False, ending: str = "") -> pl.DataFrame:
    """Returns the eps that equals a role's gradient, for the map of widths or of loss scales."""
    s, widths = evidence.settings, sorted(evidence.settings.widths)
    sizes = evidence.table("gradients").filter(
        pl.col("width") <= widths[-1], parameterization=PARAMETERIZATION
    )
    lines = epsilon.eps_lines(sizes, s.base.base_width, ending)
    if not scales:
        return lines
    values = pl.DataFrame({"loss_scale": sorted(2.0**k for k in s.log2_loss_scales)})
    eps = pl.col("eps") * pl.col("loss_scale")  # which multiplies the gradient
    at_width = lines.filter(width=widths[1]).join(values, how="cross")
    return at_width.select("variant", "role", "loss_scale", eps)


def numbers(evidence: Evidence) -> dict[str, pl.DataFrame]:
    """Returns the numbers that README and the notebook quote."""
    measured = evidence.table("gradients")
    by_width = epsilon.eps_map(evidence.runs("width_map"))
    by_scale = epsilon.eps_map(evidence.runs("scale_map"), "loss_scale")
    log2 = pl.col("loss_scale").log(2).round().cast(pl.Int64).alias("log2_scale")
    few = pl.col("eps").is_null() | pl.col("eps").is_in([0.0, TINY_EPS, 1e-8])
    scales = pl.col("from_scale", "to_scale").log(2).round().cast(pl.Int64).name.prefix("log2_")
    flats = [
        flat(evidence, name).select("case", "decades", scales, "equal_decades")
        for name in ("scale_map", "bfloat16")
    ]
    gaps = [
        {"kind": kind, "largest": _gap(by_width, evidence.runs(f"{name}_map"), kind)}
        for kind, name in IN_BFLOAT16.items()
    ]
    equivalences = []
    for one, other, seeds in (
        ("default", "best", None), ("adam_atan2", "default", 3), ("adam_atan2", "best", 3)
    ):  # fmt: skip
        found = difference(evidence, one, other, seeds)
        low, high = found.interval or (None, None)
        equivalences.append(
            {"of": one, "against": other, "seeds": seeds, "difference": found.value,
             "low": low, "high": high}
        )  # fmt: skip
    constants = epsilon.variants(evidence.runs("constants"))
    return {
        "width_map": by_width.select("variant", "eps", "width", "loss"),
        "scale_map": by_scale.filter(few & ~pl.col("variant").str.contains("layer")).select(
            "variant", "eps", log2, "loss", "diverged"
        ),
        "flat": flats[0],
        "flat_bfloat16": flats[1],
        "rounding": _rounding(evidence.runs("width_map")),
        "bfloat16_gap": pl.DataFrame(gaps),
        "gradients": gradients.gradient_exponents(measured).select(
            "parameterization", "role", "theory", *ends("exponent")
        ),
        "bite": epsilon.crossing_width(measured.filter(role="hidden")).select(
            "parameterization",
            *ends("width"),
            "theory_width",
            pl.col("beyond").log10().alias("decades_beyond"),
        ),
        "carried": pl.concat(
            carried(evidence.runs(name)).select(pl.lit(name).alias("part"), pl.all())
            for name in ("transfer", "transfer_mup", *IN_BFLOAT16.values())
        ),
        "constants": ranking(constants, ["variant"]).select("variant", "rate", "loss"),
        "best_eps": tuned(evidence, "best")
        .group_by("width")
        .agg(pl.col("eps").first())
        .sort("width"),
        "equivalences": pl.DataFrame(equivalences),
    }


def _gap(by_width: pl.DataFrame, narrow: pl.DataFrame, kind: str) -> float:
    """Returns the largest difference of a map in bfloat16 to float32's, over common cells."""
    cells = epsilon.eps_map(narrow).with_columns(
        pl.col("variant").str.replace(f", {kind}", "", literal=True)
    )
    both = cells.join(by_width, on=["variant", "eps", "width"], nulls_equal=True, suffix="_wide")
    return float((both["loss"] - both["loss_wide"]).abs().max())  # type: ignore[arg-type]


def _rounding(runs: pl.DataFrame) -> pl.DataFrame:
    """Returns how far a seed's loss lies from its own without eps, where eps is far too small."""
    runs = runs.filter(pl.col("eps") <= 1e-12, optimizer="adam", eps_rule="same")
    loss = pl.col("final_validation_loss")
    none = runs.filter(eps=0).select("width", "seed", loss.alias("none"))
    away = runs.join(none, on=["width", "seed"]).with_columns((loss - pl.col("none")).abs())
    return away.group_by("width").agg(loss.max().alias("largest")).sort("width")


CHAPTER = Chapter(
    "epsilon",
    PRESETS,
    Question(
        "Chapter 3: when does epsilon matter?",
        "Raise eps, widen the model or shrink the loss until Adam stops learning; then Adam-atan2.",
        ("eps", "width", "loss_scale", "optimizer"),
        ("eps_rule", "learning_rate", "parameterization", "rate_rule", "steps", "seed", "corpus"),
        grids.lab_setting("mean_field", -3),
        x="eps",
        line="variant",
    ),
    sweeps,
    tables,
    claims,
    numbers,
    reference=Settings(
        widths=(32, 64, 128, 256),
        steps=200,
        reach=3,
        map_seeds=(0, 1, 2),
        log10_eps=PRESETS["full"].log10_eps,
        log2_loss_scales=tuple(range(40, -81, -10)),
        log10_eps_scaled=PRESETS["full"].log10_eps_scaled,
        log2_loss_scales_bfloat16=tuple(range(40, -81, -20)),
        gradient_parameterizations=tuple(GRADIENT_RMS),
        gradient_widths=(32, 64, 128, 256, 512),
        further=True,
    ),
    folder="epsilon",
)
