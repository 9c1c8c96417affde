"""How well a learning rate transfers across widths, in numbers with intervals over seeds.

Every function takes the frame of a sweep, a row per run, and ``by``, the columns that tell its
groups apart; it returns a frame with a row per group, or per group and width, whose ``note`` says
what to know and whose ``reason``, where it is not null, why a claim on it must be inconclusive.

======================================================  ============================================
:func:`~isolab.analysis.exponent.exponents`             metric 1: power of the width with which the
                                                        best rate moves, and the fit's residual
:func:`~isolab.analysis.regret.regrets`                 metric 2: what the base width's best rate
                                                        costs at the others
:func:`~isolab.analysis.regret.worst_shift`             grid steps from it at the largest width
:func:`~isolab.analysis.regret.sensitivities`           metric 3: what a factor off the best costs
:func:`~isolab.analysis.width_limit.limits`,            metric 4: loss extrapolated to infinite
:func:`~isolab.analysis.width_limit.penalties`          width, and against a reference
:func:`~isolab.analysis.ranking.ranking`,               losses at the largest width, each at its own
:func:`~isolab.analysis.ranking.loss_differences`       best rate, and against a reference
======================================================  ============================================

Reference: the metrics follow Kalra and Barkeshli, arXiv:2605.21486.
"""

from __future__ import annotations

from isolab.analysis.exponent import exponents
from isolab.analysis.ranking import loss_differences, ranking
from isolab.analysis.regret import regrets, sensitivities, worst_shift
from isolab.analysis.width_limit import limits, penalties

__all__ = [
    "exponents",
    "limits",
    "loss_differences",
    "penalties",
    "ranking",
    "regrets",
    "sensitivities",
    "worst_shift",
]
