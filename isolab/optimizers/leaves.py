"""Updates leaf by leaf like the gradients: none where a gradient is missing, and of its dtype."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax


def like_gradients(
    inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Wraps a rule that expects every gradient, and whose updates may have its moments' dtype.

    A leaf whose gradient is None gets None: its parameter stays, weight decay included, and its
    moments see a zero.  Every other update gets the dtype of its gradient.

    Example:
        >>> tx = like_gradients(optax.adam(0.5, mu_dtype=jnp.float32))
        >>> params = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(2)}
        >>> grads = {"a": jnp.full(2, 3.0, jnp.bfloat16), "b": None}
        >>> tx.update(grads, tx.init(params), params)[0]
        {'a': Array([-0.5, -0.5], dtype=bfloat16), 'b': None}
    """
    inner = optax.with_extra_args_support(inner)

    def missing(leaf: Any) -> bool:
        return leaf is None

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, Any]:
        filled = updates
        if params is not None:
            filled = jax.tree.map(
                lambda g, p: jnp.zeros_like(p) if g is None else g, updates, params, is_leaf=missing
            )
        new, state = inner.update(filled, state, params, **extra)
        new = jax.tree.map(
            lambda g, u: None if g is None else u.astype(g.dtype), updates, new, is_leaf=missing
        )
        return new, state

    return optax.GradientTransformationExtraArgs(inner.init, update)
