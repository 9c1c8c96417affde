"""Chapter 1: is IsoAdam faster than Adam?"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

import polars as pl

from isolab.analysis import speedup
from isolab.analysis.claim import Claim
from isolab.chapters.chapter import Chapter, Evidence, Measurement, Question
from isolab.chapters.grids import FULL_RUNS, SMOKE_RUNS, RunSettings
from isolab.measure import invariance, step_time
from isolab.model.fields import require
from isolab.sweeps.sweep import Sweep
from isolab.training.config import RunConfig

SOURCE = "arXiv:2307.12979, abstract"


@dataclass(frozen=True)
class Settings(RunSettings):
    """What chapter 1 trains and times.

    Attributes:
        horizons: steps of Adam's full schedules; IsoAdam has the longest, and a quarter of it.
        log2_rates_adam, log2_rates_isoadam: rates are 2**k for k in these half-open ranges.
        timing_rounds: rounds in which the optimizers' steps are timed in turns.
    """

    width: int = 64
    batch_size: int = 32
    horizons: tuple[int, ...] = (100, 200, 400)
    evaluate_every: int = 50
    log2_rates_adam: tuple[int, ...] = (-7, -3)
    log2_rates_isoadam: tuple[int, ...] = (-6, -2)
    timing_rounds: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "horizons", len(set(self.horizons)) >= 3, "three or more, in steps")
        for name in ("log2_rates_adam", "log2_rates_isoadam"):
            ends = getattr(self, name)
            several = len(ends) == 2 and ends[1] - ends[0] >= 3  # so that one can have neighbours
            require(self, name, several, "[start, stop) with three rates or more")

    @property
    def base(self) -> RunConfig:
        """What all runs share."""
        return self.run(self.width, max(self.horizons), evaluate_every=self.evaluate_every)


PRESETS = {
    "smoke": Settings(
        **SMOKE_RUNS,
        width=16,
        horizons=(20, 40, 80),
        evaluate_every=20,
        log2_rates_adam=(-6, -2),
        timing_rounds=2,
    ),
    "laptop": Settings(),
    "full": Settings(
        **FULL_RUNS,
        width=256,
        horizons=(1000, 2000, 4000, 8000),
        evaluate_every=250,
        log2_rates_adam=(-10, -4),
        log2_rates_isoadam=(-10, -4),
        seeds=(0, 1, 2, 3, 4),
    ),
}


def sweeps(s: Settings) -> dict[str, Sweep]:
    """Returns both optimizers' runs: rates, seeds and horizons, each a schedule of its own."""
    horizons = sorted(s.horizons)
    runs = [
        Sweep(
            s.base,
            {"steps": steps, "warmup_steps": [n // 10 for n in steps]},
            optimizer=[optimizer],
            learning_rate=[2.0**k for k in range(*log2_rates)],
            seed=s.seeds,
        )
        for optimizer, steps, log2_rates in (
            ("adam", horizons, s.log2_rates_adam),
            ("isoadam", [horizons[-1] // 4, horizons[-1]], s.log2_rates_isoadam),
        )
    ]
    return {"horizons": Sweep.union(runs)}


def tables(s: Settings) -> dict[str, Measurement]:
    """Returns the step times of Adam, IsoAdam and Muon, and the check of invariance."""
    timing = [(s.width, s.batch_size, 17)]  # width, sequences, steps of an interval
    return {
        "step_time": Measurement(step_time.measure, timing, rounds=s.timing_rounds, base=s.base),
        "invariance": Measurement(invariance.update_invariance),
    }


def claims(evidence: Evidence) -> dict[str, Claim]:
    """Asks for the loss at equal steps, the steps and the time to the same loss."""
    runs = evidence.runs("horizons")
    longest = runs.filter(pl.col("steps") == pl.col("steps").max())
    adam, isoadam = (longest.filter(optimizer=name) for name in ("adam", "isoadam"))
    steps, times = fewer_steps(evidence), evidence.table("step_time")
    seconds = speedup.time_speedup(steps, *step_time.ratio(times, "adam", "isoadam"))
    return {
        "loss_difference": speedup.paired_difference(adam, isoadam).claim(
            "At the same number of steps, is IsoAdam's best validation loss below Adam's?",
            threshold=0.0,
            unit="nats/byte",
            source=SOURCE,
            prediction="Adam's loss less IsoAdam's is above 0",
        ),
        "steps": steps.claim(
            "How many times fewer steps does IsoAdam need for the same validation loss?",
            threshold=1.1,
            unit="times",
            source=SOURCE,
            prediction="more than 1.1 times",
        ),
        "time": seconds.claim(
            "And how many times less time, on this machine?",
            threshold=1.0,
            unit="times",
            source="isolab; step times interleaved in one process",
            prediction="more than 1",
        ),
    }


@functools.lru_cache(maxsize=4)
def fewer_steps(evidence: Evidence) -> speedup.Speedup:
    """Returns how many times fewer steps IsoAdam needs, by a power law through Adam's horizons."""
    runs = evidence.runs("horizons")
    adam, isoadam = (runs.filter(optimizer=name) for name in ("adam", "isoadam"))
    return speedup.speedup(adam, isoadam.filter(pl.col("steps") == pl.col("steps").min()))


def numbers(evidence: Evidence) -> dict[str, pl.DataFrame]:
    """Returns the numbers that README and the notebook quote."""
    runs, steps, rows = evidence.runs("horizons"), fewer_steps(evidence), []
    for name in ("isoadam", "muon"):
        ratio, (low, high) = step_time.ratio(evidence.table("step_time"), name, "adam")
        rows.append({"optimizer": name, "ratio_to_adam": ratio, "low": low, "high": high})
    challenger = {
        "steps": steps.challenger_steps,
        "rate": steps.challenger_rate,
        "loss": steps.challenger_loss,
        "baseline_steps": steps.baseline_steps,
        "law_exponent": steps.law and steps.law.exponent,
        "law_residual": steps.law and steps.law.residual,
    }
    return {
        "losses": runs.filter(pl.col("steps") == pl.col("steps").max())
        .group_by("optimizer", "steps", "learning_rate")
        .agg(pl.col("final_validation_loss").mean().alias("loss"))
        .sort("optimizer", "learning_rate"),
        "horizons": pl.DataFrame(
            {"steps": steps.horizons, "rate": steps.rates, "loss": steps.losses}
        ),
        "challenger": pl.DataFrame([challenger]),
        "step_time": pl.DataFrame(rows),
    }


CHAPTER = Chapter(
    "speedup",
    PRESETS,
    Question(
        "Chapter 1: which optimizer, at which rate?",
        "Give each optimizer its best rate before you compare them.",
        ("optimizer", "learning_rate"),
        ("width", "steps", "parameterization", "rate_rule", "seed", "corpus"),
        dataclasses.replace(Settings().base, learning_rate=2.0**-5, evaluate_every=20),
        line="optimizer",
    ),
    sweeps,
    tables,
    claims,
    numbers,
    reference=Settings(seeds=(0, 1, 2, 3, 4), timing_rounds=15),
    folder="speedup",
)
