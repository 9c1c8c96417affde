"""Two rules under one optimizer: one for matrices, an entrywise one for all else."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from isolab.optimizers.factors import BlockRule, Factors
from isolab.optimizers.leaves import by_path
from isolab.optimizers.views import Labels, Seen, View, resolve


class ByViewState(NamedTuple):
    """State of :func:`by_view`; each rule sees ``optax.MaskedNode`` where the other works."""

    matrices: Any
    rest: Any


def by_view(
    make_rule: Callable[[dict[str, View]], optax.GradientTransformation],
    entrywise: optax.GradientTransformation,
    labels: Labels = None,
    max_side: int | None = None,
    block_size: BlockRule = None,
) -> optax.GradientTransformationExtraArgs:
    """Returns a rule that treats matrices in one way, and all other parameters in another.

    Args:
        make_rule: returns the rule of matrices from their views by path.
        entrywise: the rule of the rest.
        labels, max_side, block_size: see :func:`isolab.optimizers.views.resolve`.

    ``update(grads, state, params, factors=None)``: ``factors`` has :class:`Factors` at paths of
    parameters; those of matrices are passed on to their rule.

    Raises:
        ValueError: in ``update``, factors at a path that is no parameter's, or that are not
            :class:`Factors`.
    """
    entrywise = optax.with_extra_args_support(entrywise)
    make_rule({})  # hyperparameters that it refuses are refused now

    def rule_of(seen: Mapping[str, Seen]) -> optax.GradientTransformationExtraArgs:
        views = {path: one.view for path, one in seen.items() if one.view is not None}
        return optax.with_extra_args_support(make_rule(views))

    def init(params: optax.Params) -> ByViewState:
        seen = resolve(labels, params, max_side, block_size)
        _warn_of_unknown(params, seen)
        matrices, rest = _split(params, seen)
        return ByViewState(rule_of(seen).init(matrices), entrywise.init(rest))

    def update(
        updates: optax.Updates,
        state: ByViewState,
        params: optax.Params | None = None,
        *,
        factors: Any = None,
        **extra: Any,
    ) -> tuple[optax.Updates, ByViewState]:
        seen = resolve(labels, updates if params is None else params, max_side, block_size)
        theirs = (None, None) if params is None else _split(params, seen)
        matrices, rest = _split(updates, seen)
        if factors is not None:
            extra["factors"] = _matched(factors, matrices, seen)
        matrices, state_m = rule_of(seen).update(matrices, state.matrices, theirs[0], **extra)
        rest, state_r = entrywise.update(rest, state.rest, theirs[1], **extra)
        new = by_path(matrices) | by_path(rest)
        whole = jax.tree.unflatten(jax.tree.structure(updates), [new[p] for p in by_path(updates)])
        return whole, ByViewState(state_m, state_r)

    # isolab.describe asks for it
    update.seen = lambda params: resolve(labels, params, max_side, block_size)  # type: ignore[attr-defined]
    return optax.GradientTransformationExtraArgs(init, update)


def is_factors(leaf: Any) -> bool:
    """Says whether a leaf is a pair of factors, for the ``is_leaf`` of ``jax.tree.map``."""
    return isinstance(leaf, Factors)


def _split(tree: Any, seen: Mapping[str, Seen]) -> tuple[Any, Any]:
    """Returns the tree of the matrices and that of the rest, masked where the other has a leaf."""
    leaves, structure = by_path(tree), jax.tree.structure(tree)
    masked = optax.MaskedNode()
    pairs = [
        (masked, leaf) if seen[path].view is None else (leaf, masked)
        for path, leaf in leaves.items()
    ]
    matrices, rest = (jax.tree.unflatten(structure, [pair[i] for pair in pairs]) for i in (0, 1))
    return matrices, rest


def _matched(factors: Any, matrices: Any, seen: Mapping[str, Seen]) -> Any:
    """Returns a tree like the matrices' with their factors, None where there are none."""
    given = by_path(factors, is_leaf=is_factors)
    for path, leaf in given.items():
        if path not in seen or not is_factors(leaf):
            raise ValueError(
                f"factors have {path!r}, which is no parameter; there are: {sorted(seen)}"
            )
    leaves = [given.get(path) for path in by_path(matrices)]
    return jax.tree.unflatten(jax.tree.structure(matrices), leaves)


def _warn_of_unknown(params: Any, seen: Mapping[str, Seen]) -> None:
    """Warns if most weights in arrays of two dimensions or more are of no known kind."""
    sizes = {path: math.prod(jnp.shape(leaf)) for path, leaf in by_path(params).items()
             if jnp.ndim(leaf) > 1}  # fmt: skip
    unknown = [path for path in sizes if seen[path].why.startswith("unknown")]
    if 2 * sum(sizes[path] for path in unknown) > sum(sizes.values()):
        warnings.warn(
            f"most weights get the entrywise rule, as it is not known how they are matrices:"
            f" {', '.join(unknown)}. labels= says it, isolab.product_views(loss, params, *args)"
            " finds it out, and isolab.describe shows the rule of every parameter.",
            stacklevel=3,
        )
