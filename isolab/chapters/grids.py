"""What the chapters share: presets, checks of settings, grids of rates, the claim on shifts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import polars as pl

from isolab.analysis.claim import Claim
from isolab.chapters.chapter import claim_of
from isolab.model.fields import require
from isolab.optimizers.catalog import entry
from isolab.theory.parameterization import parameterization
from isolab.training.config import RunConfig

CENTRES = {
    ("standard", "adam"): -5, ("ntk", "adam"): -3, ("mup", "adam"): -6, ("mean_field", "adam"): -3,
    ("standard", "sgd"): -2, ("ntk", "sgd"): 1, ("mup", "sgd"): 1, ("mean_field", "sgd"): 4,
    ("standard", "adafactor"): -4, ("ntk", "adafactor"): -4, ("mup", "adafactor"): -4,
    ("mean_field", "adafactor"): -4,
}  # fmt: skip
"""Log2 of the best rate at width 32 in a first scan of factor-2 grids; the grids are laid around
it, and a best rate at the edge of its grid is told, so that a wrong centre cannot pass unseen."""
CENTRE_WIDTH = 32
SMOKE_RUNS: dict[str, Any] = {"depth": 1, "context": 32, "batch_size": 8, "seeds": (0, 1)}
FULL_RUNS: dict[str, Any] = {"depth": 4, "context": 256, "batch_size": 64}
"""What presets of all chapters share."""
SMOKE = SMOKE_RUNS | {"steps": 20, "reach": 1, "processes": None}
FULL = FULL_RUNS | {"steps": 2000}
"""And of those with grids."""


def require_several(settings: Any, *names: str) -> None:
    """Raises ValueError, by name and value, where a list has fewer than two different members."""
    for name in names:
        several = len(set(getattr(settings, name))) > 1
        require(settings, name, several, "two different ones or more")


def lab_setting(parameterization: str, log2_rate: int) -> RunConfig:
    """Returns a lab's first setting: one of the reference runs, at width 64, base width 32."""
    return RunConfig(
        parameterization=parameterization, rate_rule="full", base_width=32, width=64,
        learning_rate=2.0**log2_rate, batch_size=16, steps=200, warmup_steps=20, evaluate_every=10,
    )  # fmt: skip


@dataclass(frozen=True)
class RunSettings:
    """What every chapter says of its runs."""

    depth: int = 2
    context: int = 64
    batch_size: int = 16
    seeds: tuple[int, ...] = (0, 1, 2)

    def __post_init__(self) -> None:
        require_several(self, "seeds")

    def run(self, width: int, steps: int, **more: Any) -> RunConfig:
        """Returns a run of so many steps, a tenth of them warm-up."""
        shape = {name: getattr(self, name) for name in ("depth", "context", "batch_size")}
        return RunConfig(width=width, steps=steps, warmup_steps=steps // 10, **shape, **more)


@dataclass(frozen=True)
class GridSettings(RunSettings):
    """What chapters 2 and 3 train.

    Attributes:
        widths: of the sweeps; the narrowest is the base, where all rules are one.
        reach: rates to each side of a grid's centre, a factor of 2 apart.
        processes: that train at the same time.
        further: also what the reference holds beyond the story.
    """

    widths: tuple[int, ...] = (32, 64, 128)
    steps: int = 200
    reach: int = 2
    processes: int | Literal["auto"] | None = "auto"
    further: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_several(self, "widths")
        require(self, "reach", self.reach >= 1, "1 or more rates to each side")

    @property
    def base(self) -> RunConfig:
        """What all runs share; width and base width are the narrowest."""
        every = self.steps // 2 if self.steps % 2 == 0 else self.steps
        narrowest = min(self.widths)
        return self.run(narrowest, self.steps, base_width=narrowest, evaluate_every=every)


def log2_centre(config: RunConfig) -> float:
    """Returns where the grid of log2 rates for a run's kind and width is centred.

    Under "global" it falls with the width by the largest stable exponent of any role; under "full"
    it stays; under "none" it falls half as fast as it would have to if alignment were full.
    """
    p, family = parameterization(config.parameterization), entry(config.optimizer).rule
    falls = p.global_rate_exponent(family)
    start = CENTRES[config.parameterization, config.optimizer]
    at_base = start - falls * math.log2(config.base_width / CENTRE_WIDTH)
    octaves = math.log2(config.width / config.base_width)
    if config.rate_rule == "global":
        return at_base - falls * octaves
    if config.rate_rule == "full":
        return at_base
    roles = ("hidden", "readout")
    excess = max(p.rate_exponent(r, family) - p.rate_exponent(r, family, "none") for r in roles)
    return at_base - excess / 2 * octaves


def around(centre: float, reach: int, above: int = 0) -> list[float]:
    """Returns rates 2**k, ``reach`` to each side of the rounded centre and ``above`` more above."""
    middle = round(centre)
    return [2.0**k for k in range(middle - reach, middle + reach + above + 1)]


def at_centre(base: RunConfig, **changes: Any) -> RunConfig:
    """Returns a changed run at the rate at the centre of its grid, unrounded."""
    config = dataclasses.replace(base, **changes)
    return dataclasses.replace(config, learning_rate=2.0 ** log2_centre(config))


def shift_claim(shifts: pl.DataFrame, where: Mapping[str, str], who: str, **claim: Any) -> Claim:
    """Makes a claim, as :func:`claim_of`, on how far the best rate moved; at most a factor of 2."""
    question = f"{who}: how many factors of 2 from the narrowest width's best rate lies that of"
    return claim_of(
        shifts, where, "grid_steps", question + " width {width:g}?", threshold=1.0, **claim
    )
