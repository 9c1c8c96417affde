"""Which optimizer rule a parameter gets: labels beside the parameters, as optax.partition wants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from isolab.optimizers.leaves import path_names

MATRIX = "matrix"  # gets the matrix rule: Iso, Muon
FALLBACK = "vector"  # gets the entrywise rule: Adam

_EMBEDDINGS = {"embedding", "embed", "embeddings", "wte", "wpe", "positions", "token_embedding"}
_READOUTS = {"readout", "head", "lm_head", "unembed", "unembedding", "logits", "classifier"}

Labels = Callable[[Any], Any] | Any


def hidden_matrices(params: Any) -> Any:
    """Returns ``"matrix"`` for two-dimensional hidden weights, ``"vector"`` for the rest.

    Without roles the layers that do not grow on one side are known only by name: a path component
    that *equals* one of flax's and the field's usual names of an embedding or a readout
    (``embedding``, ``wte``, ``lm_head``, ``head``, ...) is left to the fallback.  Pass labels made
    from roles, or a function of your own, where names do not tell.

    Example:
        >>> import jax.numpy as jnp
        >>> w = jnp.zeros((2, 2))
        >>> hidden_matrices({"up": {"kernel": w}, "lm_head": {"kernel": w}})
        {'lm_head': {'kernel': 'vector'}, 'up': {'kernel': 'matrix'}}
    """
    return jax.tree_util.tree_map_with_path(_label, params)


def labels_from_roles(roles: Any) -> Any:
    """Returns labels from a pytree of roles: ``"hidden"`` is a matrix, every other role is not."""
    return jax.tree.map(lambda role: MATRIX if role == "hidden" else FALLBACK, roles)


def _label(path: tuple[Any, ...], leaf: Any) -> str:
    named = {name.lower() for name in path_names(path)} & (_EMBEDDINGS | _READOUTS)
    return MATRIX if not named and leaf.ndim == 2 and min(leaf.shape) > 1 else FALLBACK
