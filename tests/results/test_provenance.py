"""What travels with each row of results, and what must not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from isolab.results.provenance import git_revision, provenance


def test_provenance_names_the_versions_and_no_path() -> None:
    import jax

    found = provenance()
    assert found["jax_version"] == jax.__version__
    assert found["python_version"] == sys.version.split()[0]
    assert found["device"].startswith(jax.default_backend())
    assert found["device"].endswith(f" x{jax.device_count()}")
    assert all(found.values())
    assert not any(os.sep + "isolab" in value for value in found.values())


def test_git_revision_follows_the_packages_files(tmp_path: Path) -> None:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    package = tmp_path / "package"
    package.mkdir()
    (package / "module.py").write_text("x = 1\n")

    def git(*arguments: str) -> str:
        who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        command = ["git", "-C", str(tmp_path), *who, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert git_revision(package) == "unknown"
    git("init", "-q")
    assert git_revision(package) == "unknown"  # in a checkout that does not track it
    git("add", ".")
    assert git_revision(package) == "unknown"  # before the first commit
    git("commit", "-q", "-m", "first")
    assert git_revision(package) == git("rev-parse", "HEAD")
    (tmp_path / "notes.txt").write_text("outside of the package\n")
    assert git_revision(package) == git("rev-parse", "HEAD")
    (package / "module.py").write_text("x = 2\n")
    assert git_revision(package) == git("rev-parse", "HEAD") + "-dirty"


def test_git_revision_is_unknown_without_git(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_revision(tmp_path) == "unknown"
