"""isolab: a workbook of optimizers and parameterizations on a tiny Transformer, in JAX.

    isoadam, iso, adam_atan2     optimizers, plain optax transformations
    parameterization             exponents of standard, NTK, muP and mean-field
    per_layer_rates              learning rates per role, relative to a base width
    per_layer_optimizer          an optimizer for your own model's width, with these rates
    coordinate_check             sizes of activations and of their changes, over widths
    Transformer                  the decoder-only model
    RunConfig, Sweep, run        what to train, and the frame of results
    load_corpus                  bytes to train on
    Lab                          sliders over stored runs, and a button that trains
    Claim                        a question, its number with an interval, and a verdict

Each is loaded, and JAX with it, when it is first asked for; so are ``isolab.optimizers`` and the
other modules.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# Not later: the function has the name of its module, which would take its place once imported.
from isolab.parameterization import parameterization, per_layer_rates

if TYPE_CHECKING:
    from isolab.analysis.claim import Claim
    from isolab.config import RunConfig
    from isolab.coordinates import coordinate_check
    from isolab.corpus import load_corpus
    from isolab.lab.lab import Lab
    from isolab.optimizers import adam_atan2, iso, isoadam
    from isolab.per_layer import per_layer_optimizer
    from isolab.sweep import Sweep, run
    from isolab.transformer import Transformer

_LATER = {
    "Claim": "isolab.analysis.claim",
    "Lab": "isolab.lab.lab",
    "RunConfig": "isolab.config",
    "Sweep": "isolab.sweep",
    "Transformer": "isolab.transformer",
    "adam_atan2": "isolab.optimizers",
    "coordinate_check": "isolab.coordinates",
    "iso": "isolab.optimizers",
    "isoadam": "isolab.optimizers",
    "load_corpus": "isolab.corpus",
    "per_layer_optimizer": "isolab.per_layer",
    "run": "isolab.sweep",
}
_MODULES = (
    "alignment", "analysis", "charts", "config", "coordinates", "corpus", "equivalence", "lab",
    "linear", "markov", "optimizers", "per_layer", "presets", "probe", "reference", "store",
    "sweep", "theory", "training", "transformer",
)  # fmt: skip

__all__ = [
    "Claim",
    "Lab",
    "RunConfig",
    "Sweep",
    "Transformer",
    "adam_atan2",
    "coordinate_check",
    "iso",
    "isoadam",
    "load_corpus",
    "parameterization",
    "per_layer_optimizer",
    "per_layer_rates",
    "run",
]


def __getattr__(name: str) -> Any:
    if name in _LATER:
        value = getattr(importlib.import_module(_LATER[name]), name)
        globals()[name] = value  # the next use costs nothing
        return value
    if name in _MODULES:
        return importlib.import_module(f"isolab.{name}")
    raise AttributeError(f"module 'isolab' has no attribute {name!r}; it has {__all__}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_MODULES})
