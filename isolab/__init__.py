"""isolab: a workbook of optimizers and parameterizations on a tiny Transformer, in JAX.

    isoadam, iso, adam_atan2     optimizers, plain optax transformations
    parameterization             exponents of standard, NTK, muP and mean-field
    per_layer_rates              learning rates per role, relative to a base width
    per_layer_optimizer          an optimizer for your own model's width, with these rates
    value_grad_factors           gradients of a loss, and exact factors for iso and isoadam
    product_views                which arrays of your own model are matrices, read off its products
    describe                     what an optimizer does to each parameter, as a table
    coordinate_check             sizes of activations and of their changes, over widths
    Transformer                  the decoder-only model
    RunConfig, Sweep, run        what to train, and the frame of results
    load_corpus                  bytes to train on
    Lab                          sliders over stored runs, and a button that trains
    Claim                        a question, its number with an interval, and a verdict

Each is loaded, and JAX with it, when it is first asked for; so are the rooms,
``isolab.optimizers`` and the others.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from isolab.theory.parameterization import parameterization, per_layer_rates

if TYPE_CHECKING:
    from isolab.analysis.claim import Claim
    from isolab.lab.lab import Lab
    from isolab.measure.coordinates import coordinate_check
    from isolab.model.corpus import load_corpus
    from isolab.model.transformer import Transformer
    from isolab.optimizers import adam_atan2, iso, isoadam
    from isolab.optimizers.describe import describe
    from isolab.optimizers.per_layer import per_layer_optimizer
    from isolab.optimizers.products import product_views, value_grad_factors
    from isolab.sweeps.sweep import Sweep, run
    from isolab.training.config import RunConfig

_LATER = {
    "Claim": "isolab.analysis.claim",
    "Lab": "isolab.lab.lab",
    "RunConfig": "isolab.training.config",
    "Sweep": "isolab.sweeps.sweep",
    "Transformer": "isolab.model.transformer",
    "adam_atan2": "isolab.optimizers",
    "coordinate_check": "isolab.measure.coordinates",
    "describe": "isolab.optimizers.describe",
    "iso": "isolab.optimizers",
    "isoadam": "isolab.optimizers",
    "load_corpus": "isolab.model.corpus",
    "per_layer_optimizer": "isolab.optimizers.per_layer",
    "product_views": "isolab.optimizers.products",
    "run": "isolab.sweeps.sweep",
    "value_grad_factors": "isolab.optimizers.products",
}
_ROOMS = (
    "analysis", "chapters", "charts", "cli", "lab", "measure", "model", "optimizers", "results",
    "sweeps", "theory", "training",
)  # fmt: skip

__all__ = [
    "Claim",
    "Lab",
    "RunConfig",
    "Sweep",
    "Transformer",
    "adam_atan2",
    "coordinate_check",
    "describe",
    "iso",
    "isoadam",
    "load_corpus",
    "parameterization",
    "per_layer_optimizer",
    "per_layer_rates",
    "product_views",
    "run",
    "value_grad_factors",
]


def __getattr__(name: str) -> Any:
    if name in _LATER:
        value = getattr(importlib.import_module(_LATER[name]), name)
        globals()[name] = value  # the next use costs nothing
        return value
    if name in _ROOMS:
        return importlib.import_module(f"isolab.{name}")
    raise AttributeError(f"module 'isolab' has no attribute {name!r}; it has {__all__}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_ROOMS})
