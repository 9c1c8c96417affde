"""Golden verdicts: every claim and quoted number of the chapters, from the reference runs alone.

``python -m isolab.chapters.golden`` writes them to ``data/reference/golden.json``; with
``--readme`` it writes README.md's sections of results from that file, with ``--check`` it says
which are stale.
Nothing is trained: seconds on one core.
"""

from __future__ import annotations

import json
import math
from functools import cache
from typing import Annotated, Any

import polars as pl
import typer

from isolab import chapters as presets
from isolab.analysis import epsilon, optimum, speedup, transfer
from isolab.analysis.claim import Claim
from isolab.chapters import epsilon_claims as about_epsilon
from isolab.chapters import golden_text, reference
from isolab.chapters import transfer_claims as about_transfer
from isolab.measure import coordinates, gradients, step_time
from isolab.results.provenance import PACKAGE

ROOT = PACKAGE.parent
GOLDEN = ROOT / "data" / "reference" / "golden.json"
README = ROOT / "README.md"

KINDS = list(presets.KIND)
LOSS = "final_validation_loss"
IN_BFLOAT16 = {"bfloat16 moments": "narrow_moments", "all in bfloat16": "narrow_compute"}


def speedup_claims() -> dict[str, Claim]:
    """Returns chapter 1's claims, as the notebook makes them from its own runs."""
    difference = _paired_difference()
    steps = _speedup()
    seconds = speedup.time_speedup(
        steps, *step_time.ratio(reference.load("step_time"), "adam", "isoadam")
    )
    abstract = "arXiv:2307.12979, abstract"
    return {
        "loss_difference": Claim(
            "At the same number of steps, is IsoAdam's best validation loss below Adam's?",
            measured=difference.mean,
            interval=difference.interval,
            threshold=0.0,
            direction="above",
            unit="nats/byte",
            source=abstract,
            inconclusive=difference.reason,
            prediction="Adam's loss less IsoAdam's is above 0",
        ),
        "steps": Claim(
            "How many times fewer steps does IsoAdam need for the same validation loss?",
            measured=steps.value,
            interval=steps.interval,
            threshold=1.1,
            direction="above",
            unit="times",
            source=abstract,
            inconclusive=steps.reason,
            prediction="more than 1.1 times",
        ),
        "time": Claim(
            "And how many times less time, on this machine?",
            measured=seconds.value,
            interval=seconds.interval,
            threshold=1.0,
            direction="above",
            unit="times",
            source="isolab; step times interleaved in one process",
            inconclusive=seconds.reason,
            prediction="more than 1",
        ),
    }


def transfer_claims() -> dict[str, Claim]:
    """Returns chapter 2's claims from the reference runs."""
    known = _plain_transfer()
    fitted, shifts = transfer.exponents(known, KINDS), transfer.worst_shift(known, KINDS)
    two = known.filter(pl.col("parameterization").is_in(["standard", "mup"]))
    differences = transfer.loss_differences(two, KINDS, {"parameterization": "standard"})
    claims = {
        f"exponent_standard_{name}": about_transfer.exponent_claim(fitted, "standard", name)
        for name in ("adam", "sgd", "adafactor")
    }
    for name in ("standard", "ntk", "mup", "mean_field"):
        claims[f"shift_{name}"] = about_transfer.shift_claim(shifts, name, "adam")
    return claims | {"standard_below_mup": about_transfer.loss_claim(differences, "mup", "adam")}


def epsilon_claims() -> dict[str, Claim]:
    """Returns chapter 3's claims from the reference runs."""
    shifts = transfer.worst_shift(_moved("transfer"), ["case"])
    return {
        "decades": about_epsilon.scale_claim(_flat("scale_map")),
        "shift_large_eps": about_epsilon.shift_claim(shifts, "adam, eps = 0.01", breaks=True),
        "shift_atan2": about_epsilon.shift_claim(shifts, "adam_atan2", breaks=False),
        "equivalent_default_eps": about_epsilon.equivalence_claim(
            _equivalence("adam_atan2", "default"), "eps = 1e-8"
        ),
        "equivalent_best_eps": about_epsilon.equivalence_claim(
            _equivalence("adam_atan2", "best"), "the best of four eps"
        ),
    }


def speedup_tables() -> dict[str, pl.DataFrame]:
    """Returns the numbers that README and chapter 1 quote."""
    runs, steps = _speedup_runs(), _speedup()
    cells = runs.filter(pl.col("steps") == pl.col("steps").max())
    times = reference.load("step_time")
    ratios = {name: step_time.ratio(times, name, "adam") for name in ("isoadam", "muon")}
    law = steps.law
    return {
        "losses": cells.group_by("optimizer", "steps", "learning_rate")
        .agg(pl.col(LOSS).mean().alias("loss"))
        .sort("optimizer", "learning_rate"),
        "horizons": pl.DataFrame(
            {"steps": steps.horizons, "rate": steps.rates, "loss": steps.losses}
        ),
        "challenger": pl.DataFrame(
            {
                "steps": [steps.challenger_steps],
                "rate": [steps.challenger_rate],
                "loss": [steps.challenger_loss],
                "baseline_steps": [steps.baseline_steps],
                "law_exponent": [None if law is None else law.exponent],
                "law_residual": [None if law is None else law.residual],
            }
        ),
        "step_time": pl.DataFrame(
            [(name, ratio, low, high) for name, (ratio, (low, high)) in ratios.items()],
            schema=["optimizer", "ratio_to_adam", "low", "high"],
            orient="row",
        ),
        "runs": _counted(runs),
    }


def transfer_tables() -> dict[str, pl.DataFrame]:
    """Returns the numbers that README and chapter 2 quote."""
    raw, known = reference.load("lr_transfer"), _plain_transfer()
    adam = known.filter(pl.col("optimizer") == "adam")
    fitted = transfer.exponents(known, KINDS).join(
        presets.predicted_exponents(known), on=KINDS, maintain_order="left"
    )
    full = adam.filter(pl.col("rate_rule") == "full")
    hidden, ablation = presets.tuned_runs(raw), presets.embedding_runs(raw)
    widths = hidden["width"].unique().sort()
    aligned = reference.load("alignment").group_by("parameterization", "kind", "role")
    alignment, last = pl.col("alignment"), pl.col("step") == pl.col("step").max()
    return {
        "optima": optimum.optima(adam, by=[*KINDS, "width"]).select(
            "parameterization", "rate_rule", "width", "rate", "loss"
        ),
        "exponents": fitted.select(*KINDS, "theory", *_with_ends("exponent"), "residual"),
        "shifts": transfer.worst_shift(full, KINDS).select(
            "parameterization", "width", *_with_ends("grid_steps")
        ),
        "regrets": transfer.regrets(full, KINDS)
        .filter(pl.col("width") == pl.col("width").max())
        .select("parameterization", "width", *_with_ends("regret")),
        "gamma": transfer.ranking(
            presets.gamma_runs(raw), ["parameterization", "role", "gamma"]
        ).select("parameterization", "role", "gamma", "width", "loss"),
        "hidden": pl.concat(
            transfer.ranking(hidden, ["parameterization", "hidden"], width=width).select(
                "parameterization", "hidden", "width", "loss"
            )
            for width in widths
        ),
        "embedding": transfer.ranking(ablation, ["parameterization", "embedding"]).select(
            "parameterization", "embedding", "width", *_with_ends("loss")
        ),
        "embedding_regrets": transfer.regrets(ablation, ["parameterization", "embedding"]).select(
            "parameterization", "embedding", "width", "grid_steps", *_with_ends("regret")
        ),
        "alignment": aligned.agg(
            alignment.filter(pl.col("step") == 0).mean().alias("first"),
            alignment.mean().alias("mean"),
            alignment.filter(last).mean().alias("last"),
        ),
        "slopes": _slopes(),
        "runs": _counted(raw),
    }


def epsilon_tables() -> dict[str, pl.DataFrame]:
    """Returns the numbers that README and chapter 3 quote."""
    measured = reference.load("gradients")
    by_width, by_scale = _map("width_map"), epsilon.eps_map(_part("scale_map"), "loss_scale")
    log2 = pl.col("loss_scale").log(2).round().cast(pl.Int64).alias("log2_scale")
    few = pl.col("eps").is_null() | pl.col("eps").is_in([0.0, presets.epsilon.TINY_EPS, 1e-8])
    hidden = measured.filter(pl.col("role") == "hidden")
    constants = epsilon.variants(_part("constants"))
    return {
        "width_map": by_width.select("variant", "eps", "width", "loss"),
        "scale_map": by_scale.filter(few & ~pl.col("variant").str.contains("layer")).select(
            "variant", "eps", log2, "loss", "diverged"
        ),
        "flat": _flat_said("scale_map"),
        "flat_bfloat16": _flat_said("bfloat16"),
        "rounding": _rounding(),
        "bfloat16_gap": pl.DataFrame(
            [(said, _gap(by_width, f"{part}_map", said)) for said, part in IN_BFLOAT16.items()],
            schema=["kind", "largest"],
            orient="row",
        ),
        "gradients": gradients.gradient_exponents(measured).select(
            "parameterization", "role", "theory", *_with_ends("exponent")
        ),
        "bite": epsilon.crossing_width(hidden).select(
            "parameterization",
            *_with_ends("width"),
            "theory_width",
            pl.col("beyond").log10().alias("decades_beyond"),
        ),
        "carried": pl.concat(
            transfer.regrets(_moved(part), ["parameterization", "case"]).select(
                pl.lit(part).alias("part"),
                *("parameterization", "case", "width"),
                *_with_ends("grid_steps"),
                *_with_ends("regret"),
            )
            for part in ("transfer", "transfer_mup", *IN_BFLOAT16.values())
        ),
        "constants": transfer.ranking(constants, ["variant"]).select("variant", "rate", "loss"),
        "best_eps": _tuned("best").group_by("width").agg(pl.col("eps").first()).sort("width"),
        "equivalences": pl.DataFrame(
            [
                (one, other, seeds, found.difference, *(found.interval or (None, None)))
                for one, other, seeds in (
                    ("default", "best", None),
                    ("adam_atan2", "default", 3),
                    ("adam_atan2", "best", 3),
                )
                for found in [_equivalence(one, other, seeds)]
            ],
            schema=["of", "against", "seeds", "difference", "low", "high"],
            orient="row",
        ),
        "runs": _counted(reference.load("epsilon")),
    }


def compute() -> dict[str, Any]:
    """Returns claims and tables of every chapter as strict JSON: an infinite number is null."""
    chapters = {
        "speedup": (speedup_claims, speedup_tables),
        "transfer": (transfer_claims, transfer_tables),
        "epsilon": (epsilon_claims, epsilon_tables),
    }
    return {
        name: {
            "claims": {key: claim.to_dict() for key, claim in claims().items()},
            "tables": {key: _columns(table) for key, table in tables().items()},
        }
        for name, (claims, tables) in chapters.items()
    }


def load() -> dict[str, Any]:
    """Returns the committed ``golden.json``."""
    found: dict[str, Any] = json.loads(GOLDEN.read_text(encoding="utf-8"))
    return found


def text(golden: dict[str, Any]) -> str:
    """Returns what ``golden.json`` holds: a line per claim's field and per column."""
    chapters = []
    for name, chapter in golden.items():
        groups = []
        for group, entries in chapter.items():
            items = (
                f"   {json.dumps(key)}: {{\n"
                + ",\n".join(f"    {json.dumps(k)}: {json.dumps(v)}" for k, v in entry.items())
                + "\n   }"
                for key, entry in entries.items()
            )
            groups.append(f"  {json.dumps(group)}: {{\n" + ",\n".join(items) + "\n  }")
        chapters.append(f" {json.dumps(name)}: {{\n" + ",\n".join(groups) + "\n }")
    return "{\n" + ",\n".join(chapters) + "\n}\n"


def main(
    readme: Annotated[bool, typer.Option(help="Write README's results from the file.")] = False,
    check: Annotated[bool, typer.Option(help="Say which of them are stale.")] = False,
) -> None:
    """Compute the golden verdicts, or bring README.md up to them."""
    if not (readme or check):
        GOLDEN.write_text(text(compute()), encoding="utf-8")
        return
    before, sections = README.read_text(encoding="utf-8"), golden_text.sections(load())
    stale = golden_text.stale(before, sections)
    if readme:
        README.write_text(golden_text.replaced(before, sections), encoding="utf-8")
    elif stale:
        typer.echo(f"README.md: stale sections {', '.join(stale)}; run make results", err=True)
        raise typer.Exit(1)


@cache
def _speedup_runs() -> pl.DataFrame:
    return reference.rows_of(reference.load("speedup"), presets.speedup_reference())


@cache
def _speedup() -> speedup.Speedup:
    runs = _speedup_runs()
    adam, isoadam = (runs.filter(pl.col("optimizer") == name) for name in ("adam", "isoadam"))
    return speedup.speedup(adam, isoadam.filter(pl.col("steps") == pl.col("steps").min()))


def _paired_difference() -> speedup.PairedDifference:
    runs = _speedup_runs()
    longest = runs.filter(pl.col("steps") == pl.col("steps").max())
    adam, isoadam = (longest.filter(pl.col("optimizer") == name) for name in ("adam", "isoadam"))
    return speedup.paired_difference(adam, isoadam)


@cache
def _plain_transfer() -> pl.DataFrame:
    return presets.at_every_rule(presets.plain(reference.load("lr_transfer")))


def _slopes() -> pl.DataFrame:
    """Returns the least and the largest power with which a layer's change goes with the width."""
    cells = ["parameterization", "rate_rule"]
    rows = []
    for cell, group in reference.load("coordinates").group_by(cells, maintain_order=True):
        found = coordinates.slopes(group).filter(pl.col("quantity") == "change")["slope"]
        rows.append((*cell, found.min(), found.max()))
    return pl.DataFrame(rows, schema=[*cells, "least", "most"], orient="row").sort(cells)


@cache
def _part(name: str) -> pl.DataFrame:
    return reference.rows_of(reference.load("epsilon"), getattr(presets.epsilon_reference(), name))


@cache
def _moved(name: str) -> pl.DataFrame:
    return epsilon.cases(_part(name))


def _map(name: str) -> pl.DataFrame:
    return epsilon.eps_map(presets.at_every_eps_rule(_part(name)))


@cache
def _flat(name: str) -> pl.DataFrame:
    return epsilon.flat_decades(_moved(name), about_epsilon.MARGIN, ["variant", "case"])


def _flat_said(name: str) -> pl.DataFrame:
    ends = pl.col("from_scale", "to_scale").log(2).round().cast(pl.Int64)
    return _flat(name).select("case", "decades", ends.name.prefix("log2_"), "equal_decades")


def _tuned(name: str, seeds: int | None = None) -> pl.DataFrame:
    """Returns Adam's runs at the "default" or the "best" eps, or those of a case."""
    runs = _moved("tuned_eps")
    if seeds is not None:
        runs = runs.filter(pl.col("seed") < seeds)
    if name == "best":
        return epsilon.at_best_eps(runs.filter(pl.col("optimizer") == "adam"))
    case = "adam, eps = 1e-8" if name == "default" else name
    return runs.filter(pl.col("case") == case)


def _equivalence(one: str, other: str, seeds: int | None = None) -> epsilon.TostResult:
    """Compares runs of :func:`_tuned`, of the first so many seeds alone (None: of all)."""
    first, second = _tuned(one, seeds), _tuned(other, seeds)
    return epsilon.tost(first, second, about_epsilon.MARGIN, across=["width"])


def _gap(by_width: pl.DataFrame, part: str, said: str) -> float:
    """Returns the largest difference of a map in bfloat16 to float32's, over common cells."""
    narrow = _map(part).with_columns(pl.col("variant").str.replace(f", {said}", "", literal=True))
    both = narrow.join(by_width, on=["variant", "eps", "width"], nulls_equal=True, suffix="_wide")
    return float((both["loss"] - both["loss_wide"]).abs().max())  # type: ignore[arg-type]


def _rounding() -> pl.DataFrame:
    """Returns how far a seed's loss lies from its own without eps, where eps is far too small."""
    runs = _part("width_map").filter(
        (pl.col("optimizer") == "adam") & (pl.col("eps_rule") == "same") & (pl.col("eps") <= 1e-12)
    )
    none = runs.filter(pl.col("eps") == 0).select("width", "seed", pl.col(LOSS).alias("none"))
    away = runs.join(none, on=["width", "seed"]).with_columns((pl.col(LOSS) - pl.col("none")).abs())
    return away.group_by("width").agg(pl.col(LOSS).max().alias("largest")).sort("width")


def _counted(runs: pl.DataFrame) -> pl.DataFrame:
    hours = (pl.col("step_seconds") * pl.col("steps")).sum() / 3600
    return runs.select(
        pl.len().alias("runs"), pl.col("seed").n_unique().alias("seeds"), hours.alias("hours")
    )


def _with_ends(name: str) -> list[str]:
    return [name, f"{name}_low", f"{name}_high"]


def _columns(table: pl.DataFrame) -> dict[str, list[Any]]:
    keys = [name for name, kind in table.schema.items() if kind == pl.String]
    ordered = table.sort(keys, maintain_order=True) if keys else table
    return {
        name: [
            None if isinstance(value, float) and not math.isfinite(value) else value
            for value in column
        ]
        for name, column in ordered.to_dict(as_series=False).items()
    }


if __name__ == "__main__":
    typer.run(main)
