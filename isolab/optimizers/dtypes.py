"""Dtypes that stay what they are: moments of at least float32, scalars that widen nothing."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

Scalar = float | jax.Array
"""A number or a traced scalar."""


def at_least_float32(dtype: Any) -> Any:
    """Returns float64 for float64, else float32.

    Example:
        >>> at_least_float32(jnp.bfloat16), at_least_float32(jnp.float64)
        (dtype('float32'), dtype('float64'))
    """
    return jnp.dtype("float64" if jnp.dtype(dtype) == jnp.dtype("float64") else "float32")


def scalar_as(value: Scalar, dtype: Any) -> Scalar:
    """Returns a scalar that leaves ``dtype`` as it is when multiplied with it.

    A Python number does so already; an array (a traced hyperparameter) would widen a narrower
    dtype, or be refused under ``jax.numpy_dtype_promotion("strict")``.

    Example:
        >>> scalar_as(0.5, jnp.bfloat16), scalar_as(jnp.float32(0.5), jnp.bfloat16).dtype
        (0.5, dtype(bfloat16))
    """
    return value.astype(dtype) if isinstance(value, jax.Array) else value


def exponent(x: jax.Array) -> jax.Array:
    """Returns the whole part of log2 of positive numbers; below all exponents for 0.

    Example:
        >>> exponent(jnp.array([1.0, 12.0, 0.3])).tolist()
        [0, 3, -2]
    """
    info = jnp.finfo(x.dtype)
    return (jax.lax.bitcast_convert_type(x, f"int{info.bits}") >> info.nmant) - info.maxexp + 1


def power_of_two(k: jax.Array, dtype: Any) -> jax.Array:
    """Returns 2**k exactly; k within the exponents of ``dtype``."""
    info = jnp.finfo(dtype)
    power: jax.Array = jax.lax.bitcast_convert_type((k + info.maxexp - 1) << info.nmant, dtype)
    return power
