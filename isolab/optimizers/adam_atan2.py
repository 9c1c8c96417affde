r"""Adam-atan2: Adam without epsilon (Everett et al., arXiv:2407.05872, section 4.3).

.. math:: W \leftarrow W - \eta\, a \operatorname{atan2}(\hat m, b \sqrt{\hat v})
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import GradientTransformation, ScalarOrSchedule

from isolab.optimizers.checks import check
from isolab.optimizers.decay import with_decay
from isolab.optimizers.dtypes import Scalar, at_least_float32, scalar_as
from isolab.optimizers.leaves import is_none, widened
from isolab.optimizers.moments import average, corrected, correction, zero_moments

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
        b1, b2: decay of the first and of the second moment.
        a: output scale; :data:`UNIT_A` maps atan2(1, 1) to 1.
        b: scale of the denominator; a / b is the slope for small ratios.
        moment_dtype: dtype of both moments; default float32, or float64 for float64 gradients.

    Returns:
        A transformation; updates have the gradient's dtype.  A leaf whose gradient is None is
        left alone.
    """
    check(b1=b1, b2=b2)

    def init(params: optax.Params) -> ScaleByAdamAtan2State:
        mu, nu = zero_moments(params, moment_dtype), zero_moments(params, moment_dtype)
        return ScaleByAdamAtan2State(jnp.zeros((), jnp.int32), mu, nu)

    def update(
        updates: optax.Updates, state: ScaleByAdamAtan2State, params: optax.Params | None = None
    ) -> tuple[optax.Updates, ScaleByAdamAtan2State]:
        del params
        count = optax.safe_increment(state.count)
        first, second = partial(_moment, b1, 1), partial(_moment, b2, 2)
        mu = jax.tree.map(first, updates, state.mu, is_leaf=is_none)
        nu = jax.tree.map(second, updates, state.nu, is_leaf=is_none)
        m_hat = jax.tree.map(partial(corrected, weight=correction(b1, count)), mu)
        v_hat = jax.tree.map(partial(corrected, weight=correction(b2, count)), nu)
        scaled = jax.tree.map(partial(_angle, a, b), updates, m_hat, v_hat, is_leaf=is_none)
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
    mask: Any = None,
    independent_weight_decay: ScalarOrSchedule | None = None,
    moment_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Adam-atan2 with decoupled weight decay, see :func:`isolab.optimizers.decay.with_decay`.

    Example:
        >>> tx = adam_atan2(0.1)
        >>> params = jnp.array([1.0, 1.0])
        >>> updates, _ = tx.update(jnp.array([1e-6, 0.0]), tx.init(params), params)
        >>> updates.round(4)  # lr * atan2(1, 1), whatever the gradient's scale
        Array([-0.0785, -0.    ], dtype=float32)

    Reference: Everett et al., arXiv:2407.05872.
    """
    rule = scale_by_adam_atan2(b1, b2, a=a, b=b, moment_dtype=moment_dtype)
    return with_decay(rule, learning_rate, weight_decay, mask, independent_weight_decay)


def _moment(decay: Scalar, power: int, grad: Any, old: jax.Array) -> jax.Array:
    if grad is None:
        return old
    wide = at_least_float32(old.dtype)
    return average(decay, old.astype(wide), widened(grad).astype(wide) ** power).astype(old.dtype)


def _angle(a: Scalar, b: Scalar, grad: Any, m_hat: jax.Array, v_hat: jax.Array) -> Any:
    if grad is None:
        return None
    angle = jnp.arctan2(m_hat, scalar_as(b, v_hat.dtype) * jnp.sqrt(v_hat))  # no eps
    return (scalar_as(a, angle.dtype) * angle).astype(jnp.result_type(grad))
