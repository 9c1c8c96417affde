"""Settings that every test runs under."""

from __future__ import annotations

import contextlib
import signal

import jax
import pytest
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


@pytest.fixture
def compilations():
    """Returns a context that yields the names of the programs that JAX compiles within it.

    A program counts whether the compiler makes it or finds it in the cache on disk; one that this
    process has at hand does not.
    """

    @contextlib.contextmanager
    def listening():
        programs = []

        def listen(event, duration, fun_name=None, **_):
            if event == "/jax/core/compile/backend_compile_duration":
                programs.append(fun_name)

        jax.monitoring.register_event_duration_secs_listener(listen)
        try:
            yield programs
        finally:
            jax.monitoring.unregister_event_duration_listener(listen)

    return listening
