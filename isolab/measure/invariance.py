r"""Does an optimizer's update keep its size when a layer's inputs and outputs are transformed?

Tokens x and gradients g of one layer are drawn, then replaced by :math:`Px` and :math:`Qg`.  An
isometric rule gives updates with the same singular values.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
import polars as pl

from isolab.optimizers.catalog import optimizer
from isolab.optimizers.factors import Factors, block_second_moment

RULES: dict[str, tuple[str, bool]] = {
    "adam": ("adam", False),
    "muon": ("muon", False),
    "isoadam, gradient factors": ("isoadam", False),
    "isoadam": ("isoadam", True),
}
"""Shown name: optimizer, and whether it is given exact factors."""


CONDITIONS = (1, 3, 10, 30, 100)
"""Condition numbers of P and Q; 1 is an orthogonal transformation."""


def update_invariance(seed: int = 0) -> pl.DataFrame:
    """Measures the change of the update's singular values under random transformations.

    Returns:
        Columns ``optimizer`` (of :data:`RULES`), ``condition`` and ``relative_change``: the norm of
        the difference of the two updates' sorted singular values, over the norm of the first's.
        float64 throughout.
    """
    fan_in, fan_out, tokens = 24, 16, 1024
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(tokens, fan_in)) @ rng.normal(size=(fan_in, fan_in))
    g = np.tanh(x @ rng.normal(size=(fan_in, fan_out)) / 8) + rng.normal(size=(tokens, fan_out))
    rows = []
    with jax.enable_x64(True):
        for condition in CONDITIONS:
            P = _random_transformation(rng, fan_in, condition)
            Q = _random_transformation(rng, fan_out, condition)
            for rule in RULES:
                before, after = _spectrum(rule, x, g), _spectrum(rule, x @ P.T, g @ Q.T)
                change = np.linalg.norm(after - before) / np.linalg.norm(before)
                rows.append((rule, float(condition), float(change)))
    return pl.DataFrame(rows, ["optimizer", "condition", "relative_change"], orient="row")


def _random_transformation(rng: np.random.Generator, size: int, condition: float) -> Any:
    """Returns a random matrix with singular values log-spaced from 1 to ``1 / condition``."""
    left, _ = np.linalg.qr(rng.normal(size=(size, size)))
    right, _ = np.linalg.qr(rng.normal(size=(size, size)))
    return (left * np.logspace(0, -np.log10(condition), size)) @ right


def _spectrum(rule: str, x: Any, g: Any) -> Any:
    """Singular values of the first update of a layer with these tokens and gradients."""
    return np.linalg.svd(np.asarray(_first_update(rule, x, g)), compute_uv=False)


@functools.partial(jax.jit, static_argnums=0)
def _first_update(rule: str, x: jax.Array, g: jax.Array) -> jax.Array:
    name, exact = RULES[rule]
    grad = {"kernel": x.T @ g / len(x)}
    options = {"damping": 1e-13} if name == "isoadam" else {}
    tx = optimizer(name, 1.0, **options)
    factors = None
    if exact:
        factors = {"kernel": Factors(*(block_second_moment(its, its.shape[1]) for its in (x, g)))}
    updates, _ = tx.update(grad, tx.init(grad), grad, factors=factors)
    update: jax.Array = updates["kernel"]
    return update
