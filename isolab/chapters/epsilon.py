"""Chapter 3: must Adam's epsilon scale, or go?"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import polars as pl

from isolab.analysis import epsilon, transfer
from isolab.analysis.claim import Claim
from isolab.chapters.chapter import (
    Chapter,
    Evidence,
    Measurement,
    Question,
    claim_of,
    ends,
    lab_setting,
    require_several,
)
from isolab.chapters.transfer import log2_centre
from isolab.measure.gradients import (
    damped_shares,
    gradient_exponents,
    gradient_sizes,
    root_histogram,
    second_moments,
)
from isolab.sweeps.sweep import Sweep
from isolab.theory.parameterization import parameterization
from isolab.training.config import RunConfig

SOURCE = "arXiv:2407.05872, section 4.3"
PARAMETERIZATION = "mean_field"
"""Of the chapter's runs, with per-layer rates: the best rate stays, and gradients fall the fastest
with the width, so that narrow models already show what eps does to wide ones."""
TINY_EPS = 1e-30
DECADES = 12.0
"""Of loss scale, over which Adam-atan2 must end on the same loss."""
MARGIN = 0.05
"""nats/byte: losses nearer to each other than this count as the same."""
GRADIENT_RMS = {"standard": 1e-2, "ntk": 1.3e-3, "mup": 1.8e-3, "mean_field": 2.3e-4}
"""Of hidden matrices at initialization, width 32 and 1,024 tokens, first measurement."""
GRADIENT_WIDTH, DAMPS, RISES = 32, 0.75, 0.5
"""A large eps divides these matrices' updates by 1 + eps / RMS. In a first scan the best rate rose
by the power ``DAMPS`` of that, and by ``RISES`` octaves more for each octave of width, less than by
theory as other roles' gradients are larger. Grids of rates are laid so; a best rate at an edge is
told, so that a wrong guess cannot pass unseen.
"""
STANDS_IN_MUP = 2_000_000  # widths that muP's large eps in the reference stands in for
CONSTANTS = ((1.0, 1.0), (4 / math.pi, 1.0), (2.0, 2.0), (4.0, 4.0))
"""Pairs (a, b) of Adam-atan2; a / b is the slope at small ratios."""
IN_BFLOAT16 = {"bfloat16 moments": "narrow_moments", "all in bfloat16": "narrow_compute"}


@dataclass(frozen=True)
class Settings:
    """What chapter 3 trains and measures.

    Attributes:
        widths: the narrowest is the base of the per-layer rates.
        depth, context, batch_size, steps: of every run.
        reach: rates to each side of a grid's centre, a factor of 2 apart.
        seeds: of every run on which a claim is made.
        map_seeds: of the other maps.
        log10_eps: of the map of widths, which holds eps = 0 too.
        log2_loss_scales: of the map at the second width.
        log10_eps_scaled: of that map, which holds :data:`TINY_EPS` too.
        log2_loss_scales_bfloat16: of the runs in bfloat16.
        stands_in: how many times wider the models are that the large eps stands in for.
        gradient_parameterizations, gradient_widths, gradient_step: of the gradients measured.
        processes: that train at the same time.
        further: also what the reference holds beyond the story: a tuned eps, muP, transfer and maps
            in bfloat16, Adam-atan2's constants.

    Raises:
        ValueError: fewer than two widths, gradient widths or seeds, no loss scale 1 (2**0), a
            reach or ``stands_in`` below 1, or a gradient step outside the run.
    """

    widths: tuple[int, ...] = (32, 64, 128)
    depth: int = 2
    context: int = 64
    batch_size: int = 16
    steps: int = 70
    reach: int = 2
    seeds: tuple[int, ...] = (0, 1, 2)
    map_seeds: tuple[int, ...] = (0, 1)
    log10_eps: tuple[int, ...] = (-3, -4, -5, -8)
    log2_loss_scales: tuple[int, ...] = (40, 0, -20, -40, -60, -80)
    log10_eps_scaled: tuple[int, ...] = (-8,)
    log2_loss_scales_bfloat16: tuple[int, ...] = (20, 0, -20, -40)
    stands_in: int = 10_000
    gradient_parameterizations: tuple[str, ...] = ("mean_field",)
    gradient_widths: tuple[int, ...] = (32, 64, 128)
    gradient_step: int = 20
    processes: int | Literal["auto"] | None = "auto"
    further: bool = False

    def __post_init__(self) -> None:
        require_several(self, "widths", "gradient_widths", "seeds")
        for name in ("log2_loss_scales", "log2_loss_scales_bfloat16"):
            logs = getattr(self, name)
            if 0 not in logs or len(set(logs)) < 2:
                raise ValueError(f"{name} is {list(logs)}; allowed: 0 and one other or more")
        for name in ("reach", "stands_in"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: 1 or more")
        if not 1 <= self.gradient_step <= self.steps:
            raise ValueError(
                f"gradient_step is {self.gradient_step}; allowed: 1 to steps ({self.steps})"
            )

    @property
    def base(self) -> RunConfig:
        """What all runs share; width and base width are the narrowest."""
        return RunConfig(
            parameterization=PARAMETERIZATION,
            rate_rule="full",
            base_width=min(self.widths),
            width=min(self.widths),
            depth=self.depth,
            context=self.context,
            batch_size=self.batch_size,
            steps=self.steps,
            evaluate_every=self.steps,
            warmup_steps=self.steps // 10,
        )

    @property
    def large_eps(self) -> float:
        """To the gradient at width n what 1e-8 is to the one at ``stands_in`` times n."""
        return large_eps(self.stands_in)


PRESETS = {
    "smoke": Settings(
        widths=(16, 32),
        depth=1,
        context=32,
        batch_size=8,
        steps=20,
        reach=1,
        seeds=(0, 1),
        log10_eps=(-3, -8),
        log2_loss_scales=(40, 0, -40),
        log2_loss_scales_bfloat16=(0, -20),
        gradient_parameterizations=("mup", "mean_field"),
        gradient_widths=(16, 32),
        gradient_step=10,
        processes=None,
    ),
    "laptop": Settings(),
    "full": Settings(
        widths=(128, 256, 512, 1024, 2048),
        depth=4,
        context=256,
        batch_size=64,
        steps=2000,
        reach=3,
        map_seeds=(0, 1, 2),
        log10_eps=(-2, -3, -4, -5, -6, -7, -8, -9, -10, -12, -14, -16, -18, -20),
        log2_loss_scales=tuple(range(40, -85, -5)),
        log10_eps_scaled=(-4, -6, -8, -10, -12, -16, -20),
        log2_loss_scales_bfloat16=tuple(range(40, -85, -10)),
        gradient_parameterizations=("standard", "ntk", "mup", "mean_field"),
        gradient_widths=(64, 128, 256, 512, 1024, 2048, 4096),
        gradient_step=100,
    ),
}


def sweeps(s: Settings) -> dict[str, Sweep]:
    """Returns maps of eps, width and loss scale, and grids of rates under several eps."""
    base, widths, seeds, large = s.base, sorted(set(s.widths)), s.seeds, s.large_eps
    epsilons = [10.0**k for k in s.log10_eps]
    scaled = [*(10.0**k for k in s.log10_eps_scaled), TINY_EPS, *([0.0] if s.further else [])]
    scales, narrow_scales = (
        [2.0**k for k in logs] for logs in (s.log2_loss_scales, s.log2_loss_scales_bfloat16)
    )
    dtypes = ["float32", "bfloat16"] if s.further else ["bfloat16"]
    narrow = dataclasses.replace(_at(base, widths[0]), moment_dtype="bfloat16")
    axes: dict[str, Any] = {"dtype": dtypes, "loss_scale": narrow_scales, "seed": s.map_seeds}
    found = {
        "width_map": eps_by_width(base, widths, [*epsilons, 0.0], s.map_seeds),
        "scale_map": eps_by_scale(_at(base, widths[1]), scaled, scales, seeds),
        "transfer": under_eps(base, widths, [None], s.reach, seeds, large),
        "bfloat16": Sweep(narrow, **axes) + Sweep(_atan2(narrow), **axes),
        "tuned_eps": under_eps(base, widths, [None], s.reach, seeds),
    }
    if not s.further:
        return found
    mup = dataclasses.replace(base, parameterization="mup")
    moments = dataclasses.replace(base, moment_dtype="bfloat16")
    compute = dataclasses.replace(moments, dtype="bfloat16")
    widths, few = widths[:3], [*epsilons[:7], 1e-12, 0.0]
    at, tuned = _at(base, base.base_width), [None, 1e-6, 1e-5, 1e-4]
    pairs = {"atan2_a": [a for a, _ in CONSTANTS], "atan2_b": [b for _, b in CONSTANTS]}
    large_mup = large_eps(STANDS_IN_MUP, "mup")
    return found | {
        "tuned_eps": under_eps(base, widths, tuned, s.reach, [*seeds, 3, 4]),
        "transfer_mup": under_eps(mup, widths, [None], s.reach, seeds, large_mup, above=2),
        "narrow_moments": under_eps(moments, widths, [None], 2, seeds, large),
        "narrow_compute": under_eps(compute, widths, [None], 2, seeds, large),
        "narrow_moments_map": eps_by_width(moments, widths, few, seeds),
        "narrow_compute_map": eps_by_width(compute, widths, few, seeds),
        "constants": Sweep(_atan2(at), pairs, learning_rate=_rates(at, s.reach), seed=seeds),
    }


def large_eps(stands_in: float, scaling: str = PARAMETERIZATION, eps: float = 1e-8) -> float:
    r"""Returns the eps that is to a gradient what ``eps`` is to one of a model so much wider.

    Hidden gradients go as :math:`n^{-g}`, so :math:`\epsilon\, k^g` at width n stands in for
    :math:`\epsilon` at width k n.

    Example:
        >>> large_eps(10_000, "mup")
        0.0001
    """
    return float(eps * stands_in ** parameterization(scaling).gradient_exponent("hidden"))


def eps_by_width(
    base: RunConfig, widths: Iterable[int], epsilons: Sequence[float], seeds: Sequence[int]
) -> Sweep:
    """Returns the map of eps and width, at the rate that is best without eps."""
    parts = []
    for at in (_at(base, width) for width in widths):
        parts.append(Sweep(at, eps_rule=["same", "per_layer"], eps=epsilons, seed=seeds))
        parts.append(Sweep(_atan2(at), seed=seeds))
    return Sweep.union(parts)


def eps_by_scale(
    at: RunConfig, epsilons: Sequence[float], loss_scales: Sequence[float], seeds: Sequence[int]
) -> Sweep:
    """Returns the map of eps and loss scale at one width, wider than the base.

    Scales above 1 belong to it: float32 underflow, which ends Adam-atan2's invariance below, leaves
    as many decades above. Eps per layer is left out at ``TINY_EPS`` and 0: too small to differ.
    """
    axes: dict[str, Any] = {"loss_scale": loss_scales, "seed": seeds}
    parts = [Sweep(at, eps=epsilons, **axes), Sweep(_atan2(at), **axes)]
    if layered := [eps for eps in epsilons if eps > TINY_EPS]:
        parts.insert(1, Sweep(at, eps_rule=["per_layer"], eps=layered, **axes))
    return Sweep.union(parts)


def under_eps(
    base: RunConfig,
    widths: Iterable[int],
    epsilons: Sequence[float | None],
    reach: int,
    seeds: Sequence[int],
    large: float | None = None,
    above: int = 0,
) -> Sweep:
    """Returns grids of rates at every width: Adam at every eps (None: its default), Adam-atan2.

    Adam under a ``large`` eps has a grid of its own, with ``above`` more rates at its upper end.
    """
    parts = []
    for at in (_at(base, width) for width in widths):
        axes: dict[str, Any] = {"learning_rate": _rates(at, reach), "seed": seeds}
        parts += [Sweep(at, eps=epsilons, **axes), Sweep(_atan2(at), **axes)]
        if large is not None:
            higher = DAMPS * math.log2(1 + large / GRADIENT_RMS[base.parameterization])
            higher += RISES * math.log2(at.width / GRADIENT_WIDTH)
            rates = _rates(at, reach, higher, above)
            parts.append(Sweep(at, eps=[large], learning_rate=rates, seed=seeds))
    return Sweep.union(parts)


def _at(base: RunConfig, width: int) -> RunConfig:
    centre = log2_centre(base.parameterization, "adam", "full", width, base.base_width)
    return dataclasses.replace(base, width=width, learning_rate=2.0 ** round(centre))


def _atan2(config: RunConfig) -> RunConfig:
    return dataclasses.replace(config, optimizer="adam_atan2")


def _rates(at: RunConfig, reach: int, higher: float = 0.0, above: int = 0) -> list[float]:
    """Returns a grid around a run's rate, or so many octaves higher."""
    middle = round(math.log2(at.learning_rate) + higher)
    return [2.0**k for k in range(middle - reach, middle + reach + above + 1)]


def tables(s: Settings) -> dict[str, Measurement]:
    """Returns the gradients by width, and what eps is compared with in Adam's denominator."""
    epsilons = [10.0**-k for k in range(2, 13)]
    return {
        "gradients": Measurement(
            gradient_sizes,
            s.base,
            s.gradient_widths,
            s.gradient_parameterizations,
            steps=[s.gradient_step],
            seeds=s.seeds,
        ),
        "damping": Measurement(damping, s.base, s.gradient_widths, s.gradient_step, epsilons),
    }


def damping(
    config: RunConfig, widths: Sequence[int], step: int, epsilons: Sequence[float]
) -> pl.DataFrame:
    r"""Measures :math:`\sqrt{\hat v}` at one step of a run at every width.

    Returns:
        The rows of :func:`isolab.measure.gradients.root_histogram`, and below them those of
        :func:`isolab.measure.gradients.damped_shares`, which alone have an ``eps``.
    """
    moments = second_moments(config, widths, step)
    return pl.concat([root_histogram(moments), damped_shares(moments, epsilons)], how="diagonal")


def claims(evidence: Evidence) -> dict[str, Claim]:
    """Asks for the range of equal losses, for transfer under a large eps, and for equivalence.

    Thresholds and margins were fixed before the runs.
    """
    shifts = transfer.worst_shift(epsilon.cases(evidence.runs("transfer")), ["case"])
    large = epsilon.eps_text(evidence.settings.large_eps)
    shift = "{}: how many factors of 2 from the narrowest width's best rate lies that of width"
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
        ),
        "shift_large_eps": claim_of(
            shifts,
            {"case": f"adam, eps = {large}"},
            "grid_steps",
            shift.format(f"Adam, eps = {large}") + " {width:g}?",
            threshold=1.0,
            unit="factors of 2",
            source=SOURCE,
            prediction="more than one: transfer breaks",
        ),
        "shift_atan2": claim_of(
            shifts,
            {"case": "adam_atan2"},
            "grid_steps",
            shift.format("Adam-atan2") + " {width:g}?",
            threshold=1.0,
            direction="within",
            unit="factors of 2",
            source=SOURCE,
            prediction="none: the rate transfers",
        ),
    }
    for name, words in (("default", "eps = 1e-8"), ("best", "the best of four eps")):
        if name == "default" or evidence.settings.further:
            same = equivalent(evidence, "adam_atan2", name)
            found[f"equivalent_{name}_eps"] = Claim(
                f"At its best rate, by how much does Adam-atan2 end above Adam with {words}?",
                measured=same.mean,
                interval=same.interval,
                threshold=same.margin,
                direction="within",
                unit="nats/byte",
                source=SOURCE,
                inconclusive=same.reason,
                prediction="by nothing: the two are equivalent",
            )
    return found


@functools.lru_cache(maxsize=8)
def flat(evidence: Evidence, name: str) -> pl.DataFrame:
    """Returns over how many decades of loss scale the final loss of each case stays the same."""
    return epsilon.flat_decades(epsilon.cases(evidence.runs(name)), MARGIN, ["variant", "case"])


def tuned(evidence: Evidence, name: str, seeds: int | None = None) -> pl.DataFrame:
    """Returns the runs of Adam at the "default" or the "best" eps, or of a case, at every width."""
    runs = epsilon.cases(evidence.runs("tuned_eps"))
    runs = runs if seeds is None else runs.filter(pl.col("seed") < seeds)
    if name == "best":
        return epsilon.at_best_eps(runs.filter(optimizer="adam"))
    return runs.filter(case="adam, eps = 1e-8" if name == "default" else name)


@functools.lru_cache(maxsize=8)
def equivalent(
    evidence: Evidence, one: str, other: str, seeds: int | None = None
) -> epsilon.TostResult:
    """Compares runs of :func:`tuned` by two one-sided tests."""
    first, second = tuned(evidence, one, seeds), tuned(evidence, other, seeds)
    return epsilon.tost(first, second, MARGIN, across=["width"])


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
    if not scales:
        return epsilon.eps_lines(sizes, s.base.base_width, ending=ending)
    values = sorted(2.0**k for k in s.log2_loss_scales)
    return epsilon.eps_lines(sizes, s.base.base_width, width=widths[1], loss_scales=values)


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
        found = equivalent(evidence, one, other, seeds)
        low, high = found.interval or (None, None)
        equivalences.append(
            {"of": one, "against": other, "seeds": seeds, "difference": found.mean,
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
        "gradients": gradient_exponents(measured).select(
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
        "constants": transfer.ranking(constants, ["variant"]).select("variant", "rate", "loss"),
        "best_eps": tuned(evidence, "best")
        .group_by("width")
        .agg(pl.col("eps").first())
        .sort("width"),
        "equivalences": pl.DataFrame(equivalences),
        "runs": evidence.counted(),
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
        lab_setting("mean_field", -3),
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
        gradient_parameterizations=PRESETS["full"].gradient_parameterizations,
        gradient_widths=(32, 64, 128, 256, 512),
        further=True,
    ),
    folder="epsilon",
)
