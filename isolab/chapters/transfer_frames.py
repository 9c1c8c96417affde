"""Chapter 2's frames: the runs that a question compares, and what theory predicts of them."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from isolab.chapters.transfer import GAMMAS, TUNED_HIDDEN
from isolab.optimizers.catalog import entry
from isolab.theory.parameterization import parameterization

KIND = ("parameterization", "optimizer", "rate_rule")
"""Columns that tell the chapter's rate sweeps apart."""


def plain(runs: pl.DataFrame) -> pl.DataFrame:
    """Returns the runs in which no role's rate has a constant of its own."""
    return runs.filter(pl.all_horizontal(pl.col(f"gamma_{role}") == 1 for role in GAMMAS))


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
    return _common_seeds(pl.concat([copied, rest]), KIND)


def tuned_runs(runs: pl.DataFrame) -> pl.DataFrame:
    """Returns Adam's runs under full per-layer rates, hidden rates as the others or tuned.

    Args:
        runs: the reference runs, not yet reduced by :func:`plain`.

    Returns:
        The runs at widths where both are there, with a column ``hidden``: "as the others", or
        "1/4 of the others" (:data:`isolab.chapters.transfer.TUNED_HIDDEN`).
    """
    untouched = (pl.col("gamma_embedding") == 1) & (pl.col("gamma_readout") == 1)
    at_base = pl.col("width") == pl.col("base_width")
    full = untouched & (pl.col("optimizer") == "adam") & ((pl.col("rate_rule") == "full") | at_base)
    both = pl.concat(
        [
            runs.filter(full & (pl.col("gamma_hidden") == gamma)).with_columns(hidden=pl.lit(name))
            for gamma, name in ((1.0, "as the others"), (TUNED_HIDDEN, "1/4 of the others"))
        ]
    )
    tuned = both.filter(pl.col("hidden") == "1/4 of the others")
    there = tuned.select("parameterization", "width").unique()
    kept = both.join(there, on=["parameterization", "width"], how="semi", maintain_order="left")
    return _common_seeds(kept, ["parameterization"], ["hidden", "width"])


def predicted_exponents(runs: pl.DataFrame) -> pl.DataFrame:
    """Returns theory's power of the best rate's movement, at full alignment, for each kind of runs.

    Args:
        runs: a row per run; columns ``parameterization``, ``optimizer`` and ``rate_rule``.

    Returns:
        A row per kind with ``theory``: minus the largest exponent of any role under "global"; 0
        under "full"; for "none" null, as theory says only that those rates are too large.
    """
    rows = [
        (scaling, optimizer, rule, _predicted(scaling, optimizer, rule))
        for scaling, optimizer, rule in runs.select(KIND).unique(maintain_order=True).rows()
    ]
    types = dict.fromkeys(KIND, pl.String) | {"theory": pl.Float64}
    return pl.DataFrame(rows, schema=types, orient="row")


def embedding_runs(runs: pl.DataFrame) -> pl.DataFrame:
    """Returns Adam's runs under full rates, the embedding's as prescribed or falling.

    Args:
        runs: the reference runs, not yet reduced by :func:`plain`.

    Returns:
        The runs at widths where both are there, and at the base width twice, with a column
        ``embedding``: "as prescribed" or "falls as 1/n".
    """
    ratio = pl.col("base_width") / pl.col("width")
    untouched = (pl.col("gamma_hidden") == 1) & (pl.col("gamma_readout") == 1)
    adam = runs.filter((pl.col("optimizer") == "adam") & untouched)
    at_base = (pl.col("width") == pl.col("base_width")) & (pl.col("gamma_embedding") == 1)
    full = pl.col("rate_rule") == "full"
    falling = adam.filter((full & (pl.col("gamma_embedding") == ratio)) | at_base)
    prescribed = adam.filter((full & (pl.col("gamma_embedding") == 1)) | at_base)
    both = pl.concat(
        [
            prescribed.with_columns(embedding=pl.lit("as prescribed")),
            falling.with_columns(embedding=pl.lit("falls as 1/n")),
        ]
    )
    wider = falling.filter(pl.col("width") > pl.col("base_width"))
    there = wider.select("parameterization").unique()
    kept = both.join(there, on="parameterization", how="semi", maintain_order="left")
    return _common_seeds(kept, ["parameterization"], ["embedding", "width"])


def gamma_runs(runs: pl.DataFrame) -> pl.DataFrame:
    """Returns Adam's runs at the base width in which one role's constant, or none, is changed.

    Args:
        runs: the reference runs, not yet reduced by :func:`plain`.

    Returns:
        The runs with columns ``role`` and ``gamma``; the unchanged ones once a role, at 1.
    """
    at_base = runs.filter(
        (pl.col("width") == pl.col("base_width")) & (pl.col("optimizer") == "adam")
    )
    frames = []
    for role in GAMMAS:
        others = [pl.col(f"gamma_{other}") == 1 for other in GAMMAS if other != role]
        alone = at_base.filter(*others)
        frames.append(alone.with_columns(role=pl.lit(role), gamma=pl.col(f"gamma_{role}")))
    whole = pl.concat(frames)
    there = whole.filter(pl.col("gamma") != 1).select("parameterization").unique()
    kept = whole.join(there, on="parameterization", how="semi", maintain_order="left")
    return _common_seeds(kept, ["parameterization"], ["role", "gamma"])


def paired(runs: pl.DataFrame) -> pl.DataFrame:
    """Returns the runs of seeds that every parameterization has under an optimizer and a rule.

    Comparisons of parameterizations pair them by seed.
    """
    return _common_seeds(runs, ["optimizer", "rate_rule"], ["parameterization", "width"])


def _common_seeds(
    runs: pl.DataFrame, by: Sequence[str], across: Sequence[str] = ("width",)
) -> pl.DataFrame:
    """Keeps the seeds that every cell of a group has: comparisons pair the cells by seed."""
    group, cells = list(by), pl.struct(across).n_unique()
    return (
        runs.with_columns(cells.over([*group, "seed"]).alias("has"), cells.over(group).alias("of"))
        .filter(pl.col("has") == pl.col("of"))
        .drop("has", "of")
    )


def _predicted(scaling: str, optimizer: str, rule: str) -> float | None:
    if rule == "global":
        return 0.0 - parameterization(scaling).global_rate_exponent(entry(optimizer).rule)
    return 0.0 if rule == "full" else None
