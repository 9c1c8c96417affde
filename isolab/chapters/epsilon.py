"""What chapter 3 runs: maps of eps, width and loss scale, and transfer under a large eps."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import polars as pl

from isolab.chapters.settings import require_several
from isolab.chapters.transfer import log2_centre
from isolab.measure.gradients import damped_shares, gradient_sizes, root_histogram, second_moments
from isolab.sweeps.sweep import Sweep
from isolab.theory.parameterization import parameterization
from isolab.training.config import RunConfig, with_later_fields

PARAMETERIZATION = "mean_field"
"""Of the chapter's runs, with per-layer rates: the best rate stays, and gradients fall the fastest
with the width, so that narrow models already show what eps does to wide ones."""

TINY_EPS = 1e-30

EPSILON: dict[str, dict[str, Any]] = {
    "smoke": {
        "widths": [16, 32],
        "depth": 1,
        "context": 32,
        "batch_size": 8,
        "steps": 20,
        "reach": 1,
        "seeds": [0, 1],
        "map_seeds": [0, 1],
        "log10_eps": [-3, -8],
        "log2_loss_scales": [40, 0, -40],
        "log10_eps_scaled": [-8],
        "log2_loss_scales_bfloat16": [0, -20],
        "stands_in": 10_000,
        "gradient_parameterizations": ["mup", "mean_field"],
        "gradient_widths": [16, 32],
        "gradient_step": 10,
        "processes": None,
    },
    "laptop": {
        "widths": [32, 64, 128],
        "depth": 2,
        "context": 64,
        "batch_size": 16,
        "steps": 70,
        "reach": 2,
        "seeds": [0, 1, 2],
        "map_seeds": [0, 1],
        "log10_eps": [-3, -4, -5, -8],
        "log2_loss_scales": [40, 0, -20, -40, -60, -80],
        "log10_eps_scaled": [-8],
        "log2_loss_scales_bfloat16": [20, 0, -20, -40],
        "stands_in": 10_000,
        "gradient_parameterizations": ["mean_field"],
        "gradient_widths": [32, 64, 128],
        "gradient_step": 20,
        "processes": "auto",
    },
    "full": {
        "widths": [128, 256, 512, 1024, 2048],
        "depth": 4,
        "context": 256,
        "batch_size": 64,
        "steps": 2000,
        "reach": 3,
        "seeds": [0, 1, 2],
        "map_seeds": [0, 1, 2],
        "log10_eps": [-2, -3, -4, -5, -6, -7, -8, -9, -10, -12, -14, -16, -18, -20],
        "log2_loss_scales": list(range(40, -85, -5)),
        "log10_eps_scaled": [-4, -6, -8, -10, -12, -16, -20],
        "log2_loss_scales_bfloat16": list(range(40, -85, -10)),
        "stands_in": 10_000,
        "gradient_parameterizations": ["standard", "ntk", "mup", "mean_field"],
        "gradient_widths": [64, 128, 256, 512, 1024, 2048, 4096],
        "gradient_step": 100,
        "processes": "auto",
    },
}
"""Chapter 3: the narrowest width is the base; ``reach`` rates to each side of a grid's centre;
every map holds eps = 0, and the one of loss scales ``TINY_EPS`` too; ``map_seeds`` are of the maps
that no claim is made on; ``stands_in`` is how many
times wider the models are that a large eps stands in for."""

GRADIENT_RMS = {"standard": 1e-2, "ntk": 1.3e-3, "mup": 1.8e-3, "mean_field": 2.3e-4}
"""Of hidden matrices at initialization, width 32 and 1,024 tokens, first measurement."""
GRADIENT_WIDTH, DAMPS, RISES = 32, 0.75, 0.5
"""A large eps divides these matrices' updates by 1 + eps / RMS. In a first scan the best rate rose
by the power ``DAMPS`` of that, and by ``RISES`` octaves more for each octave of width, less than by
theory as other roles' gradients are larger. Grids of rates are laid so; a best rate at an edge is
told, so that a wrong guess cannot pass unseen.
"""


@dataclass(frozen=True)
class EpsilonPlan:
    """Chapter 3's runs, checked and not yet trained.

    Attributes:
        base: what all runs share; width and base width are the narrowest.
        width_map: eps x width at one rate: Adam, Adam with eps per layer, Adam-atan2.
        scale_map: eps x loss scale, at the second width: the same, and Adam with ``TINY_EPS``.
        transfer: rates x widths: Adam at its default eps and at ``large_eps``, and Adam-atan2.
        bfloat16: loss scales at the base width, moments and all matrix products in bfloat16: Adam
            and Adam-atan2.
        large_eps: as large beside the gradient at width n as Adam's default at ``stands_in`` times
            n, by theory.
    """

    base: RunConfig
    width_map: Sweep
    scale_map: Sweep
    transfer: Sweep
    bfloat16: Sweep
    large_eps: float

    @property
    def sweep(self) -> Sweep:
        """All runs, each once."""
        return Sweep.union([self.width_map, self.scale_map, self.transfer, self.bfloat16])

    def __str__(self) -> str:
        widths = sorted({config.width for config in self.width_map})
        return f"{self.base.parameterization}, widths {widths}: {len(self.sweep)} runs"


def epsilon_plan(settings: SimpleNamespace) -> EpsilonPlan:
    """Returns chapter 3's runs; an impossible setting fails here, before any training.

    Args:
        settings: from :func:`choose` with :data:`EPSILON`.

    Raises:
        ValueError: fewer than two widths, gradient widths or seeds, no loss scale 1 (2**0), a
            reach or ``stands_in`` below 1, a gradient step outside the run, or what
            :class:`isolab.RunConfig` refuses.
    """
    require_several(settings, "widths", "gradient_widths", "seeds")
    for name in ("log2_loss_scales", "log2_loss_scales_bfloat16"):
        logs = getattr(settings, name)
        if 0 not in logs or len(set(logs)) < 2:
            raise ValueError(f"{name} is {logs}; allowed: 0 and one other or more")
    for name in ("reach", "stands_in"):
        if getattr(settings, name) < 1:
            raise ValueError(f"{name} is {getattr(settings, name)}; allowed: 1 or more")
    if not 1 <= settings.gradient_step <= settings.steps:
        raise ValueError(
            f"gradient_step is {settings.gradient_step}; allowed: 1 to steps ({settings.steps})"
        )
    widths = sorted(set(settings.widths))
    base = _base(widths[0], settings.depth, settings.context, settings.batch_size, settings.steps)
    epsilons = [*(10.0**k for k in settings.log10_eps), 0.0]
    scaled = [*(10.0**k for k in settings.log10_eps_scaled), TINY_EPS]
    scales = [2.0**k for k in settings.log2_loss_scales]
    scales_bfloat16 = [2.0**k for k in settings.log2_loss_scales_bfloat16]
    large = large_eps(settings.stands_in, base.parameterization)
    return EpsilonPlan(
        base,
        eps_by_width(base, widths, epsilons, settings.map_seeds),
        eps_by_scale(base, widths[1], scaled, scales, settings.seeds),
        transfer_under_eps(base, widths, large, settings.reach, settings.seeds),
        in_bfloat16(base, scales_bfloat16, settings.map_seeds),
        large,
    )


@dataclass(frozen=True)
class EpsilonReference:
    """The runs of chapter 3's reference results, by what they show: what two cores train in hours.

    Attributes:
        width_map: eps from 1e-2 to 1e-20 and 0, widths 32 to 256.
        scale_map: eps and loss scales 2^40 to 2^-80 at width 64.
        transfer: rates at widths 32 to 256: Adam at its default eps and a large one, Adam-atan2.
        transfer_mup: the same in muP, to width 128.
        tuned_eps: rates of Adam at its default eps and 1e-6 to 1e-4, and of Adam-atan2, widths 32
            to 128, five seeds.
        bfloat16: loss scales with bfloat16 moments, computed in float32 and in bfloat16.
        narrow_moments, narrow_compute: transfer with bfloat16 moments, and matrix products too.
        narrow_moments_map, narrow_compute_map: the map of widths likewise, with fewer eps.
        constants: rates of Adam-atan2 for pairs (a, b).
    """

    width_map: Sweep
    scale_map: Sweep
    transfer: Sweep
    transfer_mup: Sweep
    tuned_eps: Sweep
    bfloat16: Sweep
    narrow_moments: Sweep
    narrow_compute: Sweep
    narrow_moments_map: Sweep
    narrow_compute_map: Sweep
    constants: Sweep

    @property
    def sweep(self) -> Sweep:
        """All runs, each once."""
        return Sweep.union(getattr(self, field.name) for field in dataclasses.fields(self))


def epsilon_reference() -> EpsilonReference:
    """Returns the runs of chapter 3's reference results."""
    widths, seeds = [32, 64, 128, 256], [0, 1, 2]
    base = _base(widths[0], 2, 64, 16, 200)
    mup = dataclasses.replace(base, parameterization="mup")
    moments = dataclasses.replace(base, moment_dtype="bfloat16")
    compute = dataclasses.replace(moments, dtype="bfloat16")
    epsilons = [10.0**-k for k in (2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 18, 20)]
    few = [*epsilons[:7], 1e-12, 0.0]
    scaled = [1e-4, 1e-6, 1e-8, 1e-10, 1e-12, 1e-16, 1e-20, TINY_EPS, 0.0]
    large = large_eps(10_000)
    return EpsilonReference(
        width_map=eps_by_width(base, widths, [*epsilons, 0.0], seeds),
        scale_map=eps_by_scale(base, 64, scaled, _powers_of_two(10), seeds),
        transfer=transfer_under_eps(base, widths, large, 3, seeds),
        transfer_mup=transfer_under_eps(
            mup, widths[:3], large_eps(2_000_000, "mup"), 3, seeds, above=2
        ),
        tuned_eps=tuned_eps(base, widths[:3], [None, 1e-6, 1e-5, 1e-4], 3, [*seeds, 3, 4]),
        bfloat16=in_bfloat16(base, _powers_of_two(20), seeds, compute=("float32", "bfloat16")),
        narrow_moments=transfer_under_eps(moments, widths[:3], large, 2, seeds),
        narrow_compute=transfer_under_eps(compute, widths[:3], large, 2, seeds),
        narrow_moments_map=eps_by_width(moments, widths[:3], few, seeds),
        narrow_compute_map=eps_by_width(compute, widths[:3], few, seeds),
        constants=constants_of_atan2(
            base, [(1.0, 1.0), (4 / math.pi, 1.0), (2.0, 2.0), (4.0, 4.0)], 3, seeds
        ),
    )


def epsilon_gradients() -> pl.DataFrame:
    """Measures the reference's gradients: every parameterization, widths 32 to 512, at step 20."""
    base = _base(32, 2, 64, 16, 200)
    return gradient_sizes(base, [32, 64, 128, 256, 512], steps=[20])


def _powers_of_two(step: int) -> list[float]:
    """Returns loss scales from 2^40 to 2^-80."""
    return [2.0**k for k in range(40, -81, -step)]


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
    """Returns the map of eps and width, at the rate that is best without eps.

    At the base width eps per layer is one eps: :func:`at_every_eps_rule` copies its runs.
    """
    sweeps = []
    for width in widths:
        at = _at(base, width)
        rules = ["same"] if width == base.base_width else ["same", "per_layer"]
        sweeps.append(Sweep(at, eps_rule=rules, eps=epsilons, seed=seeds))
        sweeps.append(Sweep(_atan2(at), seed=seeds))
    return Sweep.union(sweeps)


def eps_by_scale(
    base: RunConfig,
    width: int,
    epsilons: Sequence[float],
    loss_scales: Sequence[float],
    seeds: Sequence[int],
) -> Sweep:
    """Returns the map of eps and loss scale at one width, wider than the base.

    Scales above 1 belong to it: float32 underflow, which ends Adam-atan2's invariance below, leaves
    as many decades above. Eps per layer is left out at ``TINY_EPS`` and 0: too small to differ.
    """
    at = _at(base, width)
    scaled: dict[str, Any] = {"loss_scale": loss_scales, "seed": seeds}
    layered = [eps for eps in epsilons if eps > TINY_EPS]
    per_layer = dataclasses.replace(at, eps_rule="per_layer")
    return Sweep.union(
        [
            Sweep(at, eps=epsilons, **scaled),
            Sweep(per_layer, eps=layered, **scaled) if layered else [],
            Sweep(_atan2(at), **scaled),
        ]
    )


def transfer_under_eps(
    base: RunConfig,
    widths: Iterable[int],
    large: float,
    reach: int,
    seeds: Sequence[int],
    above: int = 0,
) -> Sweep:
    """Returns factor-2 grids of rates at every width: Adam at two eps, and Adam-atan2.

    Under the large eps the grid has ``above`` more rates at its upper end.
    """
    sweeps = []
    for width in widths:
        at = _at(base, width)
        centre = math.log2(at.learning_rate)
        higher = centre + DAMPS * math.log2(1 + large / GRADIENT_RMS[base.parameterization])
        higher += RISES * math.log2(width / GRADIENT_WIDTH)
        usual = {"learning_rate": _grid(centre, reach), "seed": seeds}
        sweeps.append(Sweep(at, **usual))
        sweeps.append(Sweep(_atan2(at), **usual))
        sweeps.append(Sweep(at, eps=[large], learning_rate=_grid(higher, reach, above), seed=seeds))
    return Sweep.union(sweeps)


def tuned_eps(
    base: RunConfig,
    widths: Iterable[int],
    epsilons: Sequence[float | None],
    reach: int,
    seeds: Sequence[int],
) -> Sweep:
    """Returns grids of rates at every width: Adam at every eps (None: its default), Adam-atan2."""
    sweeps = []
    for at in [_at(base, width) for width in widths]:
        axes: dict[str, Any] = {
            "learning_rate": _grid(math.log2(at.learning_rate), reach),
            "seed": seeds,
        }
        sweeps += [Sweep(at, eps=epsilons, **axes), Sweep(_atan2(at), **axes)]
    return Sweep.union(sweeps)


def in_bfloat16(
    base: RunConfig,
    loss_scales: Sequence[float],
    seeds: Sequence[int],
    compute: Sequence[str] = ("bfloat16",),
) -> Sweep:
    """Returns loss scales at the base width with bfloat16 moments, and matrix products in these."""
    at = dataclasses.replace(_at(base, base.base_width), moment_dtype="bfloat16")
    axes: dict[str, Any] = {"dtype": compute, "loss_scale": loss_scales, "seed": seeds}
    return Sweep(at, **axes) + Sweep(_atan2(at), **axes)


def constants_of_atan2(
    base: RunConfig, constants: Sequence[tuple[float, float]], reach: int, seeds: Sequence[int]
) -> Sweep:
    """Returns rates at the base width for pairs (a, b); a / b is the slope at small ratios."""
    at = _at(base, base.base_width)
    pairs = {"atan2_a": [a for a, _ in constants], "atan2_b": [b for _, b in constants]}
    rates = _grid(math.log2(at.learning_rate), reach)
    return Sweep(_atan2(at), pairs, learning_rate=rates, seed=seeds)


def damping(
    config: RunConfig, widths: Sequence[int], step: int, epsilons: Sequence[float]
) -> tuple[pl.DataFrame, pl.DataFrame]:
    r"""Measures :math:`\sqrt{\hat v}` at one step of a run at every width.

    Returns:
        The frames of :func:`isolab.measure.gradients.root_histogram` and
        :func:`isolab.measure.gradients.damped_shares`.

    Raises:
        ValueError: as :func:`isolab.measure.gradients.second_moments`.
    """
    moments = second_moments(config, widths, step)
    return root_histogram(moments), damped_shares(moments, epsilons)


def at_every_eps_rule(runs: pl.DataFrame) -> pl.DataFrame:
    """Returns the runs with those at the base width that have an eps copied to eps per layer.

    There both rules train alike, so that the sweep holds them once, as "same".

    Args:
        runs: a row per run.
    """
    runs = with_later_fields(runs, ["eps_rule"])
    alike = (pl.col("width") == pl.col("base_width")) & (pl.col("eps_rule") == "same")
    copied = runs.filter(alike & (pl.col("optimizer") == "adam"))
    return pl.concat([runs, copied.with_columns(pl.lit("per_layer").alias("eps_rule"))])


def _base(width: int, depth: int, context: int, batch_size: int, steps: int) -> RunConfig:
    return RunConfig(
        parameterization=PARAMETERIZATION,
        rate_rule="full",
        base_width=width,
        width=width,
        depth=depth,
        context=context,
        batch_size=batch_size,
        steps=steps,
        evaluate_every=steps,
        warmup_steps=steps // 10,
    )


def _at(base: RunConfig, width: int) -> RunConfig:
    centre = log2_centre(base.parameterization, "adam", "full", width, base.base_width)
    return dataclasses.replace(base, width=width, learning_rate=2.0 ** round(centre))


def _atan2(config: RunConfig) -> RunConfig:
    return dataclasses.replace(config, optimizer="adam_atan2")


def _grid(centre: float, reach: int, above: int = 0) -> list[float]:
    middle = round(centre)
    return [2.0**k for k in range(middle - reach, middle + reach + above + 1)]
