"""Trees of parameters leaf by leaf: by path, and updates like the gradients where some are None."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax


def path_names(path: tuple[Any, ...]) -> list[str]:
    """Returns the names along a pytree path: dictionary keys, attributes and indices."""
    return [str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path]


def path_key(path: tuple[Any, ...]) -> str:
    """Returns one string for a pytree path; the ``value`` step of a flax variable is dropped."""
    names = path_names(path)
    return "/".join(names[:-1] if names and names[-1] == "value" else names)


def by_path(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
    """Returns the leaves of a tree by their path, in the tree's order.

    Example:
        >>> by_path({"layers": [{"kernel": 1}, {"kernel": 2}]})
        {'layers/0/kernel': 1, 'layers/1/kernel': 2}
    """
    flat = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
    return {path_key(path): leaf for path, leaf in flat}


def is_none(leaf: Any) -> bool:
    """Returns whether a leaf is None, for the ``is_leaf`` of ``jax.tree.map``."""
    return leaf is None


def widened(leaf: Any) -> Any:
    """Returns the leaf as an array of float32 or wider where it is a narrower float or a number."""
    array = leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf)
    narrow = jnp.issubdtype(array.dtype, jnp.floating) and array.dtype.itemsize < 4
    return array.astype(jnp.float32) if narrow else array


def like_gradients(
    inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Wraps a rule that expects every gradient, in float32 or wider.

    A leaf whose gradient is None gets None: its parameter stays, weight decay included, and its
    moments see a zero.  Every other update gets the dtype of its gradient.

    Example:
        >>> tx = like_gradients(optax.adam(0.5))
        >>> params = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(2)}
        >>> grads = {"a": jnp.full(2, 3.0, jnp.bfloat16), "b": None}
        >>> tx.update(grads, tx.init(params), params)[0]
        {'a': Array([-0.5, -0.5], dtype=bfloat16), 'b': None}
    """
    inner = optax.with_extra_args_support(inner)

    def init(params: optax.Params) -> Any:
        return inner.init(jax.tree.map(widened, params))

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, Any]:
        filled = updates
        if params is not None:
            filled = jax.tree.map(_filled, updates, params, is_leaf=is_none)
            params = jax.tree.map(widened, params)
        new, state = inner.update(jax.tree.map(widened, filled), state, params, **extra)
        return jax.tree.map(_like, updates, new, is_leaf=is_none), state

    return optax.GradientTransformationExtraArgs(init, update)


def _filled(grad: Any, param: Any) -> Any:
    return jnp.zeros_like(param) if grad is None and param is not None else grad


def _like(grad: Any, update: jax.Array) -> Any:
    return None if grad is None else update.astype(jnp.result_type(grad))
