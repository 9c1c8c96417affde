"""Trees of parameters leaf by leaf: by path, and updates like the gradients where some are None."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from flax.core.meta import AxisMetadata

_BOXES = (nnx.Variable, AxisMetadata)


def path_names(path: tuple[Any, ...]) -> list[str]:
    """Returns the names along a pytree path: dictionary keys, attributes and indices."""
    return [str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path]


def path_key(path: tuple[Any, ...]) -> str:
    r"""Returns one string for a pytree path: names joined by "/", one within a name as "\/"."""
    return "/".join(re.sub(r"[\\/]", r"\\\g<0>", name) for name in path_names(path))


def by_path(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
    r"""Returns the leaves of a tree by their path, in the tree's order.

    A flax variable or box of metadata is passed through: its own ``value`` is no step of a path.

    Example:
        >>> by_path({"layers": [{"kernel": 1}, {"kernel": 2}], "a/b": 3})
        {'a\\/b': 3, 'layers/0/kernel': 1, 'layers/1/kernel': 2}
    """
    found: dict[str, Any] = {}

    def stop(leaf: Any) -> bool:
        return isinstance(leaf, _BOXES) or (is_leaf is not None and is_leaf(leaf))

    for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=stop):
        inside = [(path, leaf)]
        if isinstance(leaf, _BOXES) and not (is_leaf and is_leaf(leaf)):
            steps = jax.tree_util.tree_leaves_with_path(leaf, is_leaf=is_leaf)
            inside = [((*path, *step[1:]), value) for step, value in steps]
        found |= {path_key(whole): value for whole, value in inside}
    return found


def map_by_path(function: Callable[[str, Any], Any], tree: Any) -> Any:
    """Returns the tree with ``function(path, leaf)`` in place of every leaf.

    Example:
        >>> map_by_path(lambda path, leaf: f"{path}: {leaf}", {"a": [1, None]})
        {'a': ['a/0: 1', None]}
    """
    new = [function(path, leaf) for path, leaf in by_path(tree).items()]
    return jax.tree.unflatten(jax.tree.structure(tree), new)


def is_function(value: Any) -> bool:
    """Returns whether a value is a function, and no pytree that can be called, as equinox has."""
    return callable(value) and bool(jax.tree_util.all_leaves([value]))


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
