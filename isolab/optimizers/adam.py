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

from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import GradientTransformation, ScalarOrSchedule

from isolab.optimizers.dtypes import Scalar, at_least_float32, scalar_as
from isolab.optimizers.moments import zero_moments


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

    def init(params: optax.Params) -> optax.ScaleByAdamState:
        mu, nu = zero_moments(params, moment_dtype), zero_moments(params, moment_dtype)
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), mu, nu)

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.ScaleByAdamState]:
        del params
        count = optax.safe_increment(state.count)
        grads = _wide(updates)
        mu = optax.tree.update_moment(grads, _wide(state.mu), b1, 1)
        nu = optax.tree.update_moment_per_elem_norm(grads, _wide(state.nu), b2, 2)
        mu, nu = optax.tree.cast_like(mu, state.mu), optax.tree.cast_like(nu, state.nu)
        scaled = jax.tree.map(
            _ratio,
            optax.tree.bias_correction(_wide(mu), b1, count),
            optax.tree.bias_correction(_wide(nu), b2, count),
            jax.tree.broadcast(eps, updates),
        )
        return scaled, optax.ScaleByAdamState(count, mu, nu)

    return GradientTransformation(init, update)


def adam(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.95,
    eps: Any = 1e-8,
    *,
    weight_decay: ScalarOrSchedule | None = None,
    moment_dtype: Any = None,
) -> GradientTransformation:
    """Adam by :func:`scale_by_adam`; with ``weight_decay``, which is decoupled, AdamW.

    Example:
        >>> tx = adam(0.5, eps=0.0)
        >>> params = jnp.array([1.0, 1.0])
        >>> tx.update(jnp.array([1e-6, 0.0]), tx.init(params), params)[0].round(4)
        Array([-0.5, -0. ], dtype=float32)
    """
    decay = [] if weight_decay is None else [optax.add_decayed_weights(weight_decay)]
    return optax.chain(
        scale_by_adam(b1, b2, eps, moment_dtype=moment_dtype),
        *decay,
        optax.scale_by_learning_rate(learning_rate),
    )


def _wide(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(at_least_float32(x.dtype)), tree)


def _ratio(m: jax.Array, v: jax.Array, eps: Scalar) -> jax.Array:
    below = jnp.sqrt(v) + scalar_as(eps, v.dtype)
    return jnp.where((m == 0) & (below == 0), jnp.zeros_like(m), m / below)
