"""What each chapter runs under each preset, and the check of what its reader changed.

``smoke`` takes seconds (continuous integration), ``laptop`` minutes on two cores, ``full`` hours on
an accelerator.  A chapter's parameters cell overrides single values; None keeps the preset's.
"""

from isolab.presets.settings import PRESETS, choose, rates
from isolab.presets.speedup import SPEEDUP, SpeedupPlan, speedup_plan
from isolab.presets.transfer import (
    TRANSFER,
    TransferPlan,
    at_every_rule,
    transfer_plan,
    transfer_reference,
    transfer_sweep,
)

__all__ = [
    "PRESETS",
    "SPEEDUP",
    "TRANSFER",
    "SpeedupPlan",
    "TransferPlan",
    "at_every_rule",
    "choose",
    "rates",
    "speedup_plan",
    "transfer_plan",
    "transfer_reference",
    "transfer_sweep",
]
