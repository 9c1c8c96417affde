"""The names that isolab gives, and what importing it costs."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import isolab


@pytest.mark.parametrize("name", isolab.__all__)
def test_every_public_name_is_there_and_documented(name):
    found = getattr(isolab, name)
    assert inspect.isclass(found) or inspect.isfunction(found)
    own = found.__doc__
    assert own and len(own.strip().splitlines()[0]) > 20
    assert not own.startswith(f"{name}(")  # what dataclass writes when nobody did
    assert found.__module__.startswith("isolab.")


def test_dir_lists_the_public_names_and_unknown_ones_are_refused():
    assert set(isolab.__all__) <= set(dir(isolab))
    assert list(isolab.__all__) == sorted(isolab.__all__)
    with pytest.raises(AttributeError, match="module 'isolab' has no attribute 'Sweeep'"):
        _ = isolab.Sweeep


def fresh(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout


HEAVY = ("altair", "polars", "scipy.stats", "matplotlib", "IPython", "ipywidgets", "datasets")


@pytest.mark.parametrize(
    "imports",
    ["import isolab", "from isolab import isoadam, iso, adam_atan2, RunConfig, Transformer"],
)
def test_importing_loads_nothing_that_draws_or_tabulates(imports):
    # flax loads IPython itself, where it is installed
    listed = "; import sys; print(' '.join(sys.modules))"
    loaded, before = (
        set(fresh(code + listed).split()) for code in (imports, "import jax, optax, flax.nnx")
    )
    assert "isolab" in loaded
    assert not (loaded - before) & set(HEAVY)


def test_star_import_gives_every_name_and_names_do_not_change_when_their_modules_are_loaded():
    code = "from isolab import *; import isolab; print(set(isolab.__all__) <= set(globals()))"
    assert fresh(code).strip() == "True"
    code = (
        "import isolab, isolab.theory.parameterization, isolab.optimizers.iso, isolab.sweeps.sweep;"
        "print(callable(isolab.parameterization), callable(isolab.iso), callable(isolab.run))"
    )
    assert fresh(code).split() == ["True"] * 3
