r"""Per-layer learning rates for any model: an optax transformation made for a width.

Each parameter's update is multiplied by its role's factor :math:`\gamma_l (n / n_0)^{-c_l}`, so
that a rate tuned at the base width :math:`n_0` serves at width n.

Roles are looked up by path ("layers/0/kernel"), not by the place in a pytree: the same
transformation takes the parameters as a plain pytree, as an ``nnx.State`` and as the arrays that
``nnx.Optimizer`` hands on.

Reference: Everett et al., arXiv:2407.05872.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Final, TypeAlias

import jax
import optax
from flax import nnx

from isolab.optimizers.catalog import entry
from isolab.optimizers.catalog import optimizer as from_catalog
from isolab.optimizers.labels import FALLBACK, MATRIX
from isolab.optimizers.leaves import by_path, path_key
from isolab.theory.parameterization import ROLES, Alignment, Parameterization, per_layer_rates

FIXED: Final = "fixed"
"""Role of a parameter whose rate does not follow the width in any rule: a readout's bias."""

Roles: TypeAlias = Mapping[str, Any] | Callable[[str, Any], str | None] | Any
Optimizer: TypeAlias = (
    str | optax.GradientTransformation | Callable[..., optax.GradientTransformation]
)

_KNOWN: Final = (*ROLES, FIXED)
# A pattern that names a layer gives its matrix this role; the bias beside it has another.
_BIAS_ROLES: Final = {"embedding": "vector", "hidden": "vector", "readout": FIXED}


def per_layer_optimizer(
    model: Any,
    optimizer: Optimizer,
    learning_rate: optax.ScalarOrSchedule | None = None,
    *,
    width: float,
    base_width: float,
    roles: Roles = None,
    parameterization: Parameterization | str = "standard",
    alignment: Alignment = "full",
    gamma: Mapping[str, float] | None = None,
    rule: str | None = None,
    **hyperparameters: Any,
) -> optax.GradientTransformationExtraArgs:
    r"""Returns the optimizer for a width, from a rate tuned at a base width.

    Each update is multiplied by its role's :math:`\gamma_l (n / n_0)^{-c_l}`, weight decay that is
    part of the update included. At ``width == base_width`` and without ``gamma`` the updates are
    those of the plain optimizer, bit for bit.

    Args:
        model: an ``nnx.Module`` or ``nnx.State`` (its ``nnx.Param`` variables are meant), or a
            pytree of parameters; only paths, shapes and metadata are read.
        optimizer: a name of :data:`isolab.optimizers.CATALOG`; or a function such as
            ``optax.adamw`` that takes the rate and the hyperparameters; or an optax
            transformation that has its rate in it already.
        learning_rate: a number or schedule, tuned at ``base_width``; None for a transformation.
        width: n, the model's.
        base_width: n_0.
        roles: see :func:`parameter_roles`; None reads them from ``nnx.Param(value, role=...)``.
        parameterization: how the model is created and multiplied, by name or as exponents;
            "standard" is a spread of 1 / sqrt(fan_in) and no multipliers.
        alignment: see :func:`isolab.theory.parameterization.alignment_exponent`.
        gamma: constants by role, tuned at the base width.
        rule: "sgd", "adam" or "adafactor": what the size of the update follows. Read from the
            catalog for a name, needed otherwise.
        **hyperparameters: passed on to the optimizer.

    Raises:
        ValueError: a parameter has no role or an unknown one; a name, width, alignment or gamma is
            wrong; the rate or the rule is missing, or given where it has no place.

    Example:
        >>> import jax.numpy as jnp
        >>> params = {"in": jnp.ones((3, 256)), "mid": jnp.ones((256, 256))}
        >>> tx = per_layer_optimizer(params, "adam", 0.5, width=256, base_width=64,
        ...                          roles={"in": "embedding", "mid": "hidden"})
        >>> updates, _ = tx.update(params, tx.init(params), params)
        >>> jax.tree.map(lambda u: round(float(u[0, 0]), 3), updates)
        {'in': -0.5, 'mid': -0.125}

    Reference: Everett et al., arXiv:2407.05872.
    """
    role_of = parameter_roles(model, roles)
    built, rule = _built(optimizer, learning_rate, rule, role_of, hyperparameters)
    rates = per_layer_rates(parameterization, rule, width, base_width, alignment, gamma)
    return optax.with_extra_args_support(optax.chain(built, scale_by_role(rates, role_of)))


def scale_by_role(rates: Mapping[str, Any], roles: Any) -> optax.GradientTransformationExtraArgs:
    """Multiplies each parameter's update by its role's factor, in the update's dtype.

    Args:
        rates: factor by role, numbers or traced scalars; "fixed" is 1 where it is not named.
        roles: a pytree of roles like the parameters, or a role by path.

    Raises:
        ValueError: a role has no factor; in ``update``, a parameter has no role.

    Example:
        >>> import jax.numpy as jnp
        >>> tx = scale_by_role({"hidden": 0.25}, {"up": "hidden"})
        >>> tx.update({"up": jnp.ones(2)}, tx.init(None))[0]
        {'up': Array([0.25, 0.25], dtype=float32)}
    """
    factors = {FIXED: 1.0, **rates}
    role_of = by_path(roles, is_leaf=_is_variable)
    for path, role in role_of.items():
        if role not in factors:
            raise ValueError(f"parameter {path!r} has role {role!r}; known: {sorted(factors)}")

    def scaled(path: tuple[Any, ...], update: Any) -> Any:
        key = path_key(path)
        if key not in role_of:
            raise ValueError(
                f"parameter {key!r} has no role: it was not in the model that the roles were made "
                f"from; known: {sorted(role_of)}"
            )
        return (factors[role_of[key]] * update).astype(update.dtype)

    def update(updates: Any, params: Any = None) -> Any:
        del params
        return jax.tree_util.tree_map_with_path(scaled, updates)

    return optax.with_extra_args_support(optax.stateless(update))


def parameter_roles(model: Any, roles: Roles = None) -> dict[str, str]:
    """Returns the role of every parameter by its path.

    Args:
        model: an ``nnx.Module``, an ``nnx.State`` or a pytree of parameters.
        roles: one of

            - None: read from the metadata of the model's ``nnx.Param``;
            - a pytree of roles, like the parameters;
            - a mapping from paths, beginnings of paths ("encoder/layers") or shell patterns
              ("*/kernel") to roles, the first that fits being taken. A beginning or a pattern
              gives its role to matrices: a one-dimensional parameter that it takes in becomes
              "vector", or "fixed" where the role is "readout", as biases are. A whole path is
              taken at its word;
            - a function of path and array that returns a role.

    Returns:
        Path to role: "embedding" (fan-in does not grow), "hidden", "readout", "vector" (gains and
        biases of the features) or "fixed" (a rate that never follows the width).

    Raises:
        ValueError: parameters without a role or with an unknown one, a mapping's key that fits no
            parameter, a pytree of another shape, or a model without parameters.

    Example:
        >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
        >>> parameter_roles(model, {"*": "readout"})
        {'bias': 'fixed', 'kernel': 'readout'}
    """
    leaves = _leaves(model)
    if not leaves:
        raise ValueError(f"the model has no parameters: {type(model).__name__}")
    found = _found_roles(leaves, roles)
    missing = [path for path in leaves if found.get(path) is None]
    if missing:
        raise ValueError(
            f"no role for {', '.join(map(repr, missing))}; give one of {sorted(_KNOWN)} by "
            "nnx.Param(value, role=...) or by roles="
        )
    for path, role in found.items():
        if role not in _KNOWN:
            raise ValueError(
                f"parameter {path!r} has unknown role {role!r}; known: {sorted(_KNOWN)}"
            )
    return {path: str(found[path]) for path in leaves}


def _found_roles(leaves: dict[str, Any], roles: Roles) -> dict[str, Any]:
    if roles is None:
        return {
            path: leaf.get_metadata().get("role") if _is_variable(leaf) else None
            for path, leaf in leaves.items()
        }
    if callable(roles):
        return {path: roles(path, _array(leaf)) for path, leaf in leaves.items()}
    named = by_path(roles, is_leaf=_is_variable)
    if set(named) == set(leaves):
        return named
    patterns = isinstance(roles, Mapping) and all(isinstance(role, str) for role in roles.values())
    for name in roles if patterns else named:
        if not any(_fits(path, name) if patterns else path == name for path in leaves):
            raise ValueError(f"roles name {name!r}, no parameter; there are: {sorted(leaves)}")
    if not patterns:
        return named
    return {path: _matched(path, _array(leaf).ndim, roles) for path, leaf in leaves.items()}


def _matched(path: str, ndim: int, patterns: Mapping[str, str]) -> str | None:
    for pattern, role in patterns.items():
        if _fits(path, pattern):
            taken = path == pattern or ndim > 1
            return role if taken else _BIAS_ROLES.get(role, role)
    return None


def _fits(path: str, pattern: str) -> bool:
    return path == pattern or path.startswith(f"{pattern}/") or fnmatchcase(path, pattern)


def _built(
    optimizer: Optimizer,
    learning_rate: Any,
    rule: str | None,
    role_of: dict[str, str],
    hyperparameters: dict[str, Any],
) -> tuple[optax.GradientTransformation, str]:
    if isinstance(optimizer, optax.GradientTransformation):
        given = [*(["learning_rate"] if learning_rate is not None else []), *hyperparameters]
        if given:
            raise ValueError(
                f"{given[0]} was given with a transformation that has its own; pass a function "
                "that makes one, such as optax.adam"
            )
        return optimizer, _required_rule(rule)
    if learning_rate is None:
        raise ValueError("learning_rate is missing: a number or a schedule")
    if not isinstance(optimizer, str):
        return optimizer(learning_rate, **hyperparameters), _required_rule(rule)
    known = entry(optimizer)
    if rule not in (None, known.rule):
        raise ValueError(f"rule is {rule!r}; allowed for {optimizer!r}: {known.rule!r} or none")

    def label(path: tuple[Any, ...], leaf: Any) -> str:
        return MATRIX if role_of[path_key(path)] == "hidden" and leaf.ndim == 2 else FALLBACK

    labels = partial(jax.tree_util.tree_map_with_path, label)
    return from_catalog(optimizer, learning_rate, labels=labels, **hyperparameters), known.rule


def _required_rule(rule: str | None) -> str:
    if rule is None:
        raise ValueError(
            "rule is missing: 'sgd', 'adam' (steps of size one before the rate) or 'adafactor' "
            "(steps relative to the parameter's size)"
        )
    return rule


def _leaves(model: Any) -> dict[str, Any]:
    """Returns variables or arrays by path."""
    tree = nnx.state(model, nnx.Param) if isinstance(model, nnx.Module) else model
    leaves = by_path(tree, is_leaf=_is_variable)
    return {
        path: leaf
        for path, leaf in leaves.items()
        if isinstance(leaf, nnx.Param) or not _is_variable(leaf)
    }


def _is_variable(leaf: Any) -> bool:
    return isinstance(leaf, nnx.Variable)


def _array(leaf: Any) -> Any:
    return leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf
