"""The chapters' verdicts follow the runs that they are given."""

from __future__ import annotations

import math

import polars as pl
import pytest

from isolab.chapters import epsilon, transfer

SEEDS = (0, 1, 2)


class Evidence:
    """Runs by sweep, and settings, in the place of a chapter's."""

    def __init__(self, settings, **runs):
        self.settings, self.runs = settings, runs.__getitem__


def parabolas(kinds, widths=(32, 64, 128)):
    """Losses whose best rate moves by so many factors of 2 an octave of width, by kind."""
    return pl.DataFrame(
        [
            kind | {"width": width, "learning_rate": 2.0**k, "seed": seed,
                    "final_validation_loss": low + (k - moves * math.log2(width / 32)) ** 2 / 20
                    + 0.001 * seed}
            for kind, moves, low in kinds
            for width in widths
            for k in range(-5, 6)
            for seed in SEEDS
        ]
    )  # fmt: skip


def rates(standard_global, standard_full, mup_full, mup_low):
    kinds = [
        ({"parameterization": name, "optimizer": "adam", "rate_rule": rule}, moves, low)
        for name, rule, moves, low in (
            ("standard", "global", standard_global, 2.0),
            ("standard", "full", standard_full, 2.0),
            ("mup", "full", mup_full, mup_low),
        )
    ]
    return Evidence(transfer.Settings(), rates=parabolas(kinds))


@pytest.mark.parametrize(
    ("evidence", "verdicts"),
    [
        (rates(-1.0, 0.1, -0.2, 2.2), ["reproduced"] * 4),
        (rates(-0.5, 0.8, -0.9, 1.9), ["not reproduced"] * 4),
    ],
)
def test_chapter_2_judges_powers_shifts_and_losses(evidence, verdicts):
    found = transfer.claims(evidence)
    names = ["exponent_standard_adam", "shift_standard", "shift_mup", "standard_below_mup"]
    assert [*found] == names
    assert [claim.verdict for claim in found.values()] == verdicts
    assert found["exponent_standard_adam"].measured == pytest.approx(
        -1.0 if verdicts[0] == "reproduced" else -0.5, abs=0.01
    )


def scales(losses):
    return pl.DataFrame(
        [
            {"optimizer": optimizer, "eps": eps, "loss_scale": scale, "seed": seed,
             "final_validation_loss": loss + 0.01 * seed}
            for (optimizer, eps), of in losses.items()
            for scale, loss in zip((1.0, 1e-5, 1e-10, 1e-15), of, strict=True)
            for seed in SEEDS
        ]
    )  # fmt: skip


def under_eps(damped, atan2, above, flat):
    kinds = [
        ({"parameterization": "mean_field", "optimizer": optimizer, "eps": eps}, moves, 2.0 + more)
        for optimizer, eps, moves, more in (
            ("adam", 1e-8, 0.0, 0.0),
            ("adam", 0.01, damped, 0.0),
            ("adam_atan2", None, atan2, above),
        )
    ]  # fmt: skip
    runs = parabolas(kinds)
    tuned = runs.filter((pl.col("eps") != 0.01) | pl.col("eps").is_null())
    maps = scales({("adam_atan2", None): flat, ("adam", 1e-8): (2.0, 2.2, 4.0, 5.5)})
    return Evidence(epsilon.Settings(), transfer=runs, tuned_eps=tuned, scale_map=maps)


@pytest.mark.parametrize(
    ("evidence", "verdict"),
    [
        (under_eps(1.5, 0.1, 0.0, (2.0, 2.0, 2.0, 2.0)), "reproduced"),
        (under_eps(0.2, 1.0, 0.1, (2.0, 2.2, 4.0, 5.5)), "not reproduced"),
    ],
)
def test_chapter_3_judges_scales_shifts_and_equivalence(evidence, verdict):
    found = epsilon.claims(evidence)
    names = ["decades", "shift_large_eps", "shift_atan2", "equivalent_default_eps"]
    assert [*found] == names
    assert {claim.verdict for claim in found.values()} == {verdict}
    assert "Adam-atan2" in found["shift_atan2"].question


def test_diverged_at_scale_one_is_inconclusive():
    evidence = under_eps(1.5, 0.1, 0.0, (math.inf, 2.0, 2.0, 2.0))
    claim = epsilon.claims(evidence)["decades"]
    assert claim.verdict == "inconclusive" and "diverged" in claim.reason
