"""The files that install isolab say the same thing."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = ("test", "dev")  # those that requirements.lock and environment.yml install
LOCK = (ROOT / "requirements.lock").read_text()


def declared() -> dict[str, Requirement]:
    """Name to requirement: pyproject.toml's dependencies and those of EXTRAS."""
    optional = PROJECT["optional-dependencies"]
    texts = PROJECT["dependencies"] + [text for extra in EXTRAS for text in optional[extra]]
    requirements = [Requirement(text) for text in texts]
    assert len(requirements) == len({r.name for r in requirements}), "a package is named twice"
    return {canonicalize_name(r.name): r for r in requirements}


def locked() -> list[tuple[Requirement, list[str]]]:
    """Each pin of requirements.lock with its hashes."""
    entries = re.sub(r"\\\n", " ", re.sub(r"(?m)^\s*#.*\n?", "", LOCK)).strip().splitlines()
    split = [entry.split("--hash=") for entry in entries]
    return [(Requirement(pin), [h.strip() for h in hashes]) for pin, *hashes in split]


def conda() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "environment.yml").read_text())


def pip_lines() -> list[str]:
    (section,) = [d["pip"] for d in conda()["dependencies"] if isinstance(d, dict)]
    return section


def test_environment_names_what_pyproject_names_at_the_locked_versions() -> None:
    pins = {canonicalize_name(r.name): r for r, _ in locked()}
    wanted = {f"{name}{pins[name].specifier}" for name in declared()} | {"--editable ."}
    assert len(pip_lines()) == len(set(pip_lines())), "environment.yml has a line twice"
    missing, extra = wanted - set(pip_lines()), set(pip_lines()) - wanted
    assert not missing and not extra, (
        f"in environment.yml, under pip: add {sorted(missing)}, remove {sorted(extra)}"
    )


def test_environment_asks_for_pyprojects_python() -> None:
    others = [d for d in conda()["dependencies"] if isinstance(d, str)]
    assert others == [f"python {PROJECT['requires-python']}", "pip"]


def test_lock_holds_no_address() -> None:
    assert "://" not in LOCK
    assert not re.search(r"(?m)^\s*(-i|-f|-e|--index-url|--extra-index-url|--find-links)\b", LOCK)
    assert "@" not in re.sub(r"(?m)^\s*#.*$", "", LOCK)  # name @ address


def test_lock_pins_every_package_once_and_with_hashes() -> None:
    entries = locked()
    assert len(entries) > len(declared())
    for requirement, hashes in entries:
        assert re.fullmatch(r"==[^*,]+", str(requirement.specifier)), requirement
        assert hashes, f"{requirement} has no hash"
        for value in hashes:
            assert re.fullmatch(r"sha256:[0-9a-f]{64}", value), f"{requirement}: {value}"
    names = [canonicalize_name(requirement.name) for requirement, _ in entries]
    assert len(names) == len(set(names)), "one version for every Python: see tool.uv in pyproject"


@pytest.mark.parametrize("name", sorted(declared()))
def test_lock_satisfies_pyproject(name: str) -> None:
    (pin,) = [r for r, _ in locked() if canonicalize_name(r.name) == name]
    (version,) = [Version(s.version) for s in pin.specifier]
    assert declared()[name].specifier.contains(version), f"{pin} against {declared()[name]}"
    assert pin.marker is None, f"{pin} would be left out on some machines"


def test_make_lock_is_the_command_in_the_locks_header() -> None:
    command = LOCK.splitlines()[1].removeprefix("#").split()
    for extra in EXTRAS:
        assert command[command.index(extra) - 1] == "--extra"
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    (recipe,) = re.findall(r"(?m)^lock:.*\n\t@(.*)$", makefile)
    dropped = {"--quiet", "$(LOCK_FLAGS)"}
    assert [word for word in recipe.split() if word not in dropped] == command


def test_this_environment_is_the_locked_one() -> None:
    """What the other tests ran on is what the lock says, so their results are the lock's."""
    from importlib.metadata import version

    if Path(sys.prefix) != ROOT / ".venv":
        pytest.skip(f"runs in {sys.prefix}, not in the .venv that make keeps")
    for requirement, _ in locked():
        if requirement.marker is None or requirement.marker.evaluate():
            assert version(requirement.name) in requirement.specifier, requirement


def test_extras_for_accelerators_ask_for_the_jax_that_is_locked() -> None:
    (jax,) = [Requirement(t) for t in PROJECT["dependencies"] if Requirement(t).name == "jax"]
    for extra in ("cuda", "tpu"):
        (text,) = PROJECT["optional-dependencies"][extra]
        assert Requirement(text).name == "jax" and Requirement(text).extras
        assert Requirement(text).specifier == jax.specifier


def test_citation_and_changelog_know_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    versions = re.findall(r"(?m)^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text())
    assert versions[0] == "Unreleased" or versions[0] == PROJECT["version"]


def test_package_is_typed_and_licensed() -> None:
    assert (ROOT / "isolab" / "py.typed").is_file()
    licence = (ROOT / "LICENSE").read_text()
    assert "Apache License" in licence and "Version 2.0, January 2004" in licence
    assert "END OF TERMS AND CONDITIONS" in licence


def test_ci_calls_what_the_readme_tells() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    commands = [line for line in script.splitlines() if line and not line.startswith(("#", "set"))]
    assert commands[-1] == "exec make test"
    assert "make test" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("page", ["README.md", "CHANGELOG.md"])
def test_files_that_a_page_links_to_exist(page: str) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text(encoding="utf-8"))
    assert not [link for link in links if not (ROOT / link).exists()]
