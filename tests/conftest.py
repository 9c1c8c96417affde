"""Settings that every test runs under."""

from __future__ import annotations

import signal

import jax
from hypothesis import HealthCheck, settings

# A shape that broadcasts by accident is an error: NumPy would add the missing axes in silence.
jax.config.update("jax_numpy_rank_promotion", "raise")

# Fresh inputs on every run, and a line that replays the one that failed. No time limit holds on a
# loaded machine: the first call of a jitted function compiles.
settings.register_profile(
    "isolab",
    deadline=None,
    derandomize=False,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("isolab")

# A shell's background job starts with Ctrl-C ignored, and its children inherit that: hear it again.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
