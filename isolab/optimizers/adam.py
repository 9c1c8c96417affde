r"""Adam whose epsilon may differ from parameter to parameter and may be 0.

.. math:: W \leftarrow W - \eta\, \frac{\hat m}{\sqrt{\hat v} + \epsilon}

Three things differ from :func:`optax.scale_by_adam`; elsewhere it gives the same bits:

- ``eps`` may be a pytree, one for each parameter.
- 0 / 0 is 0.  A parameter that never had a gradient (the embedding of a token that was never seen)
  has m = v = 0; at eps = 0 optax's rule turns it, and with it the run, into NaN.  m / 0 with m not
  0, which float32 gives where :math:`g^2` underflows, stays infinite: such a run diverges.
- Both moments are kept in ``moment_dtype``, and the step is taken from them as they are kept.

Reference: Kingma and Ba, arXiv:1412.6980.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import GradientTransformation, ScalarOrSchedule

from isolab.optimizers.checks import check
from isolab.optimizers.decay import with_decay
from isolab.optimizers.dtypes import Scalar, at_least_float32, scalar_as
from isolab.optimizers.leaves import widened
from isolab.optimizers.moments import corrected, correction, zero_moments


def scale_by_adam(
    b1: Scalar = 0.9, b2: Scalar = 0.95, eps: Any = 1e-8, *, moment_dtype: Any = None
) -> GradientTransformation:
    r"""Rescales gradients by :math:`\hat m / (\sqrt{\hat v} + \epsilon)`, 0 where both are 0.

    Args:
        b1, b2: decay of the first and of the second moment.
        eps: a number, or a pytree of numbers like the parameters; 0 or more.
        moment_dtype: dtype of both moments; default float32, or float64 for float64 gradients.

    Returns:
        A transformation with the state of optax's; updates have the moments' arithmetic, float32 or
        wider.

    Example:
        >>> tx = scale_by_adam(eps=0.0)
        >>> grads = jnp.array([1e-6, 0.0])
        >>> tx.update(grads, tx.init(grads))[0].round(4)
        Array([1., 0.], dtype=float32)
    """
    check(b1=b1, b2=b2, eps=eps)

    def init(params: optax.Params) -> optax.ScaleByAdamState:
        mu, nu = zero_moments(params, moment_dtype), zero_moments(params, moment_dtype)
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), mu, nu)

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.ScaleByAdamState]:
        del params
        count = optax.safe_increment(state.count)
        mu = jax.tree.map(partial(_moment, b1, 1), updates, state.mu)
        nu = jax.tree.map(partial(_moment, b2, 2), updates, state.nu)
        m_hat = jax.tree.map(partial(corrected, weight=correction(b1, count)), mu)
        v_hat = jax.tree.map(partial(corrected, weight=correction(b2, count)), nu)
        scaled = jax.tree.map(_ratio, m_hat, v_hat, jax.tree.broadcast(eps, updates))
        return scaled, optax.ScaleByAdamState(count, mu, nu)

    return GradientTransformation(init, update)


def adam(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.95,
    eps: Any = 1e-8,
    *,
    weight_decay: ScalarOrSchedule | None = None,
    mask: Any = None,
    independent_weight_decay: ScalarOrSchedule | None = None,
    moment_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Adam by :func:`scale_by_adam`; with ``weight_decay``, which is decoupled, AdamW.

    Args:
        learning_rate: a number, a traced scalar, or a schedule.
        b1, b2, eps, moment_dtype: see :func:`scale_by_adam`.
        weight_decay, mask, independent_weight_decay: see
            :func:`isolab.optimizers.decay.with_decay`.

    Example:
        >>> tx = adam(0.5, eps=0.0)
        >>> params = jnp.array([1.0, 1.0])
        >>> tx.update(jnp.array([1e-6, 0.0]), tx.init(params), params)[0].round(4)
        Array([-0.5, -0. ], dtype=float32)
    """
    rule = scale_by_adam(b1, b2, eps, moment_dtype=moment_dtype)
    return with_decay(rule, learning_rate, weight_decay, mask, independent_weight_decay)


def _moment(decay: Scalar, power: int, grad: Any, old: jax.Array) -> jax.Array:
    wide = at_least_float32(old.dtype)
    new, kept = scalar_as(1 - decay, wide), scalar_as(decay, wide)
    raised: jax.Array = widened(grad).astype(wide) ** power
    return (new * raised + kept * old.astype(wide)).astype(old.dtype)


def _ratio(m: jax.Array, v: jax.Array, eps: Scalar) -> jax.Array:
    below = jnp.sqrt(v) + scalar_as(eps, v.dtype)
    return jnp.where((m == 0) & (below == 0), jnp.zeros_like(m), m / below)
