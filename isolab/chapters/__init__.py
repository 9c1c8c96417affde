"""What each chapter runs under each preset, and the check of what its reader changed.

``smoke`` takes seconds (continuous integration), ``laptop`` minutes on two cores, ``full`` hours on
an accelerator.  A chapter's parameters cell overrides single values; None keeps the preset's.
"""

from isolab.chapters.epsilon import (
    EPSILON,
    EpsilonPlan,
    EpsilonReference,
    at_every_eps_rule,
    damping,
    epsilon_gradients,
    epsilon_plan,
    epsilon_reference,
)
from isolab.chapters.settings import PRESETS, choose, rates
from isolab.chapters.speedup import (
    SPEEDUP,
    SpeedupPlan,
    speedup_plan,
    speedup_reference,
    speedup_step_time,
)
from isolab.chapters.start import START
from isolab.chapters.transfer import (
    TRANSFER,
    TransferPlan,
    alignments,
    coordinates,
    transfer_alignment,
    transfer_coordinates,
    transfer_plan,
    transfer_reference,
    transfer_sweep,
    twin_sweep,
)
from isolab.chapters.transfer_frames import (
    KIND,
    at_every_rule,
    embedding_runs,
    gamma_runs,
    paired,
    plain,
    predicted_exponents,
    tuned_runs,
)

__all__ = [
    "EPSILON",
    "KIND",
    "PRESETS",
    "SPEEDUP",
    "START",
    "TRANSFER",
    "EpsilonPlan",
    "EpsilonReference",
    "SpeedupPlan",
    "TransferPlan",
    "alignments",
    "at_every_eps_rule",
    "at_every_rule",
    "choose",
    "coordinates",
    "damping",
    "embedding_runs",
    "epsilon_gradients",
    "epsilon_plan",
    "epsilon_reference",
    "gamma_runs",
    "paired",
    "plain",
    "predicted_exponents",
    "rates",
    "speedup_plan",
    "speedup_reference",
    "speedup_step_time",
    "transfer_alignment",
    "transfer_coordinates",
    "transfer_plan",
    "transfer_reference",
    "transfer_sweep",
    "tuned_runs",
    "twin_sweep",
]
