"""Moments of gradients: exponential averages in float32 or wider, and their bias correction."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from isolab.optimizers.dtypes import Scalar, at_least_float32, scalar_as


def zero_moments(params: optax.Params, dtype: Any = None) -> Any:
    """Returns zeros that lie as the parameters do, of ``dtype`` or else of float32 or wider."""

    def zeros(param: Any) -> jax.Array:
        return jnp.zeros_like(param, dtype=dtype or at_least_float32(jnp.result_type(param)))

    return jax.tree.map(zeros, params)


def average(decay: Scalar, old: jax.Array, new: jax.Array) -> jax.Array:
    """Returns ``decay * old + (1 - decay) * new`` in their dtype."""
    return scalar_as(decay, new.dtype) * old + scalar_as(1 - decay, new.dtype) * new


def correction(decay: Scalar, count: jax.Array) -> jax.Array:
    """Returns ``1 - decay**count``, the weight of an average of so many steps; (), float32.

    Example:
        >>> correction(0.5, jnp.int32(2))
        Array(0.75, dtype=float32)
    """
    return 1 - jnp.asarray(decay, jnp.float32) ** count.astype(jnp.float32)


def corrected(moment: jax.Array, weight: jax.Array) -> jax.Array:
    """Returns ``moment / weight`` in float32 or wider."""
    wide = at_least_float32(moment.dtype)
    return moment.astype(wide) / weight.astype(wide)
