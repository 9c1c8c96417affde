"""Compiled programs are kept on disk, so that the second start of a notebook compiles nothing."""

from __future__ import annotations

import functools
import os
from typing import Any

import jax

MIN_SECONDS = 0.1
"""Programs that compile faster are not kept: they would cost more files than time."""


@functools.cache
def keep_compiled_programs() -> str | None:
    """Switches on JAX's persistent compilation cache, unless the user has chosen for themselves.

    The user has chosen where ``JAX_COMPILATION_CACHE_DIR`` or the option of that name is set, or
    ``JAX_ENABLE_COMPILATION_CACHE`` is false.  Otherwise programs are kept in
    ``$ISOLAB_PROGRAMS``, by default ``isolab/programs`` of the user's cache folder.  JAX keys them
    by program, compiler, options and device, so that nothing stale is ever run; a folder that
    cannot be written only means compiling again.

    Returns:
        The folder, or None where the choice was left to the user.
    """
    options: Any = jax.config
    if options.jax_compilation_cache_dir is not None or not options.jax_enable_compilation_cache:
        return None
    folder = os.environ.get("ISOLAB_PROGRAMS")
    if folder is None:
        from platformdirs import user_cache_path

        folder = str(user_cache_path("isolab") / "programs")
    options.update("jax_compilation_cache_dir", folder)
    options.update("jax_persistent_cache_min_compile_time_secs", MIN_SECONDS)
    return folder
