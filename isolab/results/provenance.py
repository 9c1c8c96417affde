"""Where a result came from: package versions, device and source revision, without machine names."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

UNKNOWN = "unknown"
PACKAGE = Path(__file__).resolve().parents[1]
"""The folder of isolab's own files; in a checkout its parent is the repository."""


@functools.cache
def provenance() -> Mapping[str, str]:
    """Returns what a result depends on beyond its config; gathered once per process.

    ``device`` is platform, kind and count, such as ``"gpu NVIDIA H100 80GB HBM3 x8"``,
    ``git_revision`` 40 hex digits, with ``-dirty`` where the package's files differ from it, and
    ``cpu`` the processor's model.  What cannot be found is ``"unknown"``: the revision of an
    installed package, for one.

    Example:
        >>> list(provenance())
        ['isolab_version', 'jax_version', 'device', 'git_revision', 'python_version', 'cpu']
    """
    import jax  # heavy, and needed by no other question here

    devices = jax.devices()
    names = dict.fromkeys([devices[0].platform, devices[0].device_kind])  # "cpu cpu" is "cpu"
    about = {
        "isolab_version": _version("isolab"),
        "jax_version": _version("jax"),
        "device": f"{' '.join(names)} x{len(devices)}",
        "git_revision": git_revision(PACKAGE),
        "python_version": platform.python_version(),
        "cpu": _cpu_model(),
    }
    return MappingProxyType(about)


def git_revision(folder: Path) -> str:
    """Returns the commit that holds a folder, with ``-dirty`` when the folder differs from it.

    ``"unknown"`` without git, outside of a checkout, and in a checkout that does not track the
    folder (a virtual environment inside of somebody's repository).
    """
    git = ["git", "-C", str(folder)]
    if not _output([*git, "ls-files", "--", "."]):
        return UNKNOWN
    revision = _output([*git, "rev-parse", "--verify", "HEAD"])
    changes = _output([*git, "status", "--porcelain", "--", "."])
    if not revision or changes is None:
        return UNKNOWN
    return f"{revision}-dirty" if changes else revision


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip().lower() == "model name" and value.strip():
                return value.strip()
    except OSError:  # not Linux
        brand = _output(["sysctl", "-n", "machdep.cpu.brand_string"]) if os.name == "posix" else ""
        if brand:
            return brand
    return platform.processor() or platform.machine() or UNKNOWN


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return UNKNOWN


def _output(command: list[str]) -> str | None:
    """Returns a command's output, or None if it is absent, fails or takes too long."""
    # Inside a git hook, GIT_DIR and its like point at another repository than the folder's.
    environment = {name: value for name, value in os.environ.items() if name[:4] != "GIT_"}
    environment["GIT_OPTIONAL_LOCKS"] = "0"  # asking must not write to the index
    try:
        found = subprocess.check_output(
            command, text=True, env=environment, timeout=10, stderr=subprocess.DEVNULL
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.strip()
