"""Chapter 3's claims pick their row, and their verdicts follow its interval."""

import math

import polars as pl
import pytest

from isolab.analysis import epsilon, transfer
from isolab.chapters import epsilon_claims


def runs(losses_by_scale):
    """Runs of two seeds, by optimizer and loss scale."""
    return pl.DataFrame(
        [
            {
                "optimizer": optimizer,
                "eps": eps,
                "loss_scale": scale,
                "seed": seed,
                "final_validation_loss": loss + 0.01 * seed,
            }
            for (optimizer, eps), of in losses_by_scale.items()
            for scale, loss in of.items()
            for seed in (0, 1)
        ]
    )


def test_a_flat_row_is_reproduced_and_a_broken_one_is_not():
    scales = [1.0, 1e-5, 1e-10, 1e-15]
    flat = epsilon.flat_decades(
        runs(
            {
                ("adam_atan2", None): dict.fromkeys(scales, 2.0),
                ("adam", 1e-8): dict(zip(scales, [2.0, 2.2, 4.0, 5.5], strict=True)),
            }
        ),
        epsilon_claims.MARGIN,
    )
    assert epsilon_claims.scale_claim(flat).verdict == "reproduced"
    assert epsilon_claims.scale_claim(flat).measured == pytest.approx(15)
    assert epsilon_claims.scale_claim(flat, "adam").verdict == "not reproduced"
    with pytest.raises(ValueError, match=r"0 rows of variant 'lion'; needed: one"):
        epsilon_claims.scale_claim(flat, "lion")


def test_diverged_at_scale_one_is_inconclusive():
    flat = epsilon.flat_decades(
        runs({("adam_atan2", None): {1.0: math.inf, 0.5: 2.0}}), epsilon_claims.MARGIN
    )
    claim = epsilon_claims.scale_claim(flat)
    assert claim.verdict == "inconclusive" and "diverged" in claim.reason


def sweep(moves):
    """Parabolas of the loss whose best rate moves by so many factors of 2 an octave of width."""
    return pl.DataFrame(
        [
            {
                "optimizer": optimizer,
                "eps": eps,
                "width": width,
                "learning_rate": 2.0**k,
                "seed": seed,
                "final_validation_loss": 2
                + (k - (move + 0.01 * seed) * (width / 32 - 1)) ** 2 / 20,
            }
            for (optimizer, eps), move in moves.items()
            for width in (32, 64, 96)
            for k in range(-3, 7)
            for seed in (0, 1, 2)
        ]
    )


def test_transfer_breaks_or_holds():
    shifts = transfer.worst_shift(
        epsilon.cases(sweep({("adam", 0.01): 1.5, ("adam_atan2", None): 0.1})), ["case"]
    )
    broken = epsilon_claims.shift_claim(shifts, "adam, eps = 0.01", breaks=True)
    assert broken.verdict == "reproduced" and broken.measured == pytest.approx(3.02, abs=0.01)
    assert epsilon_claims.shift_claim(shifts, "adam_atan2", breaks=False).verdict == "reproduced"
    assert epsilon_claims.shift_claim(shifts, "adam_atan2", breaks=True).verdict == "not reproduced"
    assert "Adam-atan2" in epsilon_claims.shift_claim(shifts, "adam_atan2", breaks=False).question


def test_equivalence_needs_its_interval_within_the_margin():
    both = sweep({("adam", 1e-8): 0.0, ("adam_atan2", None): 0.0})
    adam = both.filter(optimizer="adam")
    atan2 = both.filter(optimizer="adam_atan2")
    same = epsilon.tost(atan2, adam, epsilon_claims.MARGIN, across=["width"])
    assert epsilon_claims.equivalence_claim(same, "eps = 1e-8").verdict == "reproduced"
    worse = atan2.with_columns(pl.col("final_validation_loss") + 0.1)
    other = epsilon.tost(worse, adam, epsilon_claims.MARGIN, across=["width"])
    assert epsilon_claims.equivalence_claim(other, "eps = 1e-8").verdict == "not reproduced"


def test_the_best_eps_is_chosen_in_each_group_and_a_diverged_one_never():
    frame = pl.DataFrame(
        [
            (32, 1e-8, 0.1, 2.0), (32, 1e-8, 0.2, 2.5), (32, 1e-4, 0.1, 2.1), (32, 1e-4, 0.2, 1.9),
            (64, 1e-8, 0.1, 1.8), (64, 1e-4, 0.1, math.nan), (64, 1e-4, 0.2, math.inf),
        ],
        schema=["width", "eps", "learning_rate", "final_validation_loss"],
        orient="row",
    )  # fmt: skip
    kept = epsilon.at_best_eps(frame)
    assert kept.select("width", "eps").unique(maintain_order=True).rows() == [
        (32, 1e-4),
        (64, 1e-8),
    ]
    assert len(kept) == 3
    with pytest.raises(ValueError, match="no runs"):
        epsilon.at_best_eps(frame.clear())
