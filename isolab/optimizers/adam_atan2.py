r"""Adam-atan2: Adam without epsilon (Everett et al., arXiv:2407.05872, section 4.3).

.. math:: W \leftarrow W - \eta\, a \operatorname{atan2}(\hat m, b \sqrt{\hat v})
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import GradientTransformation, ScalarOrSchedule

from isolab.optimizers.dtypes import Scalar, at_least_float32, scalar_as

UNIT_A = 4 / math.pi
"""With this ``a``, atan2(1, 1) maps to 1: the step of a gradient that never changes, as in Adam."""


class ScaleByAdamAtan2State(NamedTuple):
    """State of :func:`scale_by_adam_atan2`."""

    count: jax.Array  # type: ignore[assignment]  # (), int32
    mu: optax.Updates  # like params, moments' dtype
    nu: optax.Updates  # like params, moments' dtype


def scale_by_adam_atan2(
    b1: Scalar = 0.9,
    b2: Scalar = 0.95,
    *,
    a: Scalar = 1.0,
    b: Scalar = 1.0,
    moment_dtype: Any = None,
) -> GradientTransformation:
    r"""Rescales gradients by :math:`a \operatorname{atan2}(\hat m, b\sqrt{\hat v})`.

    The result is bounded by :math:`a \pi / 2` and does not change when the loss is multiplied by
    any constant; for a power of two not one bit changes, until :math:`g^2` underflows float32.
    atan2(0, 0) = 0: a parameter that never had a gradient does not move.

    Args:
        b1: decay of the first moment.
        b2: decay of the second moment.
        a: output scale; :data:`UNIT_A` maps atan2(1, 1) to 1.
        b: scale of the denominator; a / b is the slope for small ratios.
        moment_dtype: dtype of both moments; default float32, or float64 for float64 gradients.

    Returns:
        A transformation; updates have the gradient's dtype.  A leaf whose gradient is None is
        left alone.
    """

    def zeros(p: jax.Array) -> jax.Array:
        return jnp.zeros(p.shape, moment_dtype or at_least_float32(p.dtype))

    def init(params: optax.Params) -> ScaleByAdamAtan2State:
        return ScaleByAdamAtan2State(
            jnp.zeros((), jnp.int32), jax.tree.map(zeros, params), jax.tree.map(zeros, params)
        )

    def update(
        updates: optax.Updates, state: ScaleByAdamAtan2State, params: optax.Params | None = None
    ) -> tuple[optax.Updates, ScaleByAdamAtan2State]:
        del params
        count = optax.safe_increment(state.count)
        t = count.astype(jnp.float32)
        m_corrected = 1 - jnp.asarray(b1, jnp.float32) ** t
        v_corrected = 1 - jnp.asarray(b2, jnp.float32) ** t

        def average(decay: Scalar, new: Any, old: jax.Array, power: int) -> jax.Array:
            if new is None:
                return old
            wide = at_least_float32(old.dtype)
            kept = scalar_as(decay, wide) * old.astype(wide)
            added: jax.Array = scalar_as(1 - decay, wide) * new.astype(wide) ** power
            return (kept + added).astype(old.dtype)

        def step(grad: Any, m: jax.Array, v: jax.Array) -> Any:
            if grad is None:
                return None
            wide = at_least_float32(m.dtype)
            m_hat = m.astype(wide) / m_corrected.astype(wide)
            root_v_hat = jnp.sqrt(v.astype(wide) / v_corrected.astype(wide))
            angle = jnp.arctan2(m_hat, scalar_as(b, wide) * root_v_hat)  # no eps
            return (scalar_as(a, wide) * angle).astype(grad.dtype)

        def missing(leaf: Any) -> bool:
            return leaf is None

        mu = jax.tree.map(lambda g, m: average(b1, g, m, 1), updates, state.mu, is_leaf=missing)
        nu = jax.tree.map(lambda g, v: average(b2, g, v, 2), updates, state.nu, is_leaf=missing)
        scaled = jax.tree.map(step, updates, mu, nu, is_leaf=missing)
        return scaled, ScaleByAdamAtan2State(count, mu, nu)

    return GradientTransformation(init, update)


def adam_atan2(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.95,
    *,
    a: Scalar = 1.0,
    b: Scalar = 1.0,
    weight_decay: ScalarOrSchedule = 0.0,
    moment_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Adam-atan2 with decoupled weight decay.

    Example:
        >>> tx = adam_atan2(0.1)
        >>> params = jnp.array([1.0, 1.0])
        >>> updates, _ = tx.update(jnp.array([1e-6, 0.0]), tx.init(params), params)
        >>> updates.round(4)  # lr * atan2(1, 1), whatever the gradient's scale
        Array([-0.0785, -0.    ], dtype=float32)

    Reference: Everett et al., arXiv:2407.05872.
    """
    return optax.chain(
        scale_by_adam_atan2(b1, b2, a=a, b=b, moment_dtype=moment_dtype),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(learning_rate),
    )
