r"""Per-layer learning rates for any model: an optax transformation made for a width.

Each parameter's update is multiplied by its role's factor :math:`\gamma_l (n / n_0)^{-c_l}`, so
that a rate tuned at the base width :math:`n_0` serves at width n.

Roles are looked up by path ("layers/0/kernel"), not by the place in a pytree: the same
transformation takes the parameters as a plain pytree, as an ``nnx.State`` and as the arrays that
``nnx.Optimizer`` hands on. A "/" within a name is written "\\/" where paths are told; in a pattern
it may be either.

Reference: Everett et al., arXiv:2407.05872.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any, Final, TypeAlias

import jax
import optax
from flax import nnx

from isolab.optimizers.catalog import entry
from isolab.optimizers.catalog import optimizer as from_catalog
from isolab.optimizers.labels import FALLBACK, MATRIX
from isolab.optimizers.leaves import by_path, is_function, map_by_path
from isolab.optimizers.views import Seen, structures
from isolab.theory.parameterization import (
    ALL_ROLES,
    Alignment,
    Parameterization,
    per_layer_rates,
)

Roles: TypeAlias = Mapping[str, Any] | Callable[[str, Any], str | None] | Any
Optimizer: TypeAlias = (
    str
    | optax.GradientTransformation
    | optax.MultiSteps
    | Callable[..., optax.GradientTransformation]
)

_GAINS: Final = {"scale", "gain", "gamma", "g"}
_BIASES: Final = {"bias", "beta", "b", "offset"}
# Role of a hidden parameter that the optimizer treats entry by entry, as no matrix.
_ENTRYWISE: Final = "hidden, entrywise"


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
            transformation (``optax.MultiSteps`` too) that has its rate in it already.
        learning_rate: a number or schedule, tuned at ``base_width``; None for a transformation.
        width: n, the model's.
        base_width: n_0.
        roles: see :func:`parameter_roles`; None reads them from ``nnx.Param(value, role=...)``.
        parameterization: how the model is created and multiplied, by name or as exponents;
            "standard" is a spread of 1 / sqrt(fan_in) and no multipliers.
        alignment: see :func:`isolab.theory.parameterization.alignment_exponent`.
        gamma: constants by role, tuned at the base width.
        rule: "sgd", "adam", "adafactor", "spectral" or "whitened": what the size of the update
            follows, see :mod:`isolab.theory.parameterization`. Read from the catalog for a name,
            needed otherwise. A hidden parameter that the catalog's optimizer does not see as a
            matrix has the rate of "adam".
        **hyperparameters: passed on to the optimizer.

    Raises:
        ValueError: a parameter has no role or an unknown one; a name, width, alignment or gamma is
            wrong; the rate or the rule is missing, or given where it has no place.

    Example:
        >>> import jax
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
    labels = {
        path: MATRIX if role_of[path] == "hidden" and seen.view else FALLBACK
        for path, seen in _seen(model).items()
        if path in role_of
    }
    built, rule = _built(optimizer, learning_rate, rule, labels, hyperparameters)
    rates = per_layer_rates(parameterization, rule, width, base_width, alignment, gamma)
    if isinstance(optimizer, str) and entry(optimizer).takes_labels:
        beside = per_layer_rates(parameterization, "adam", width, base_width, alignment, gamma)
        rates[_ENTRYWISE] = beside["hidden"]
        for path, role in role_of.items():
            if role == "hidden" and labels[path] == FALLBACK:
                role_of[path] = _ENTRYWISE
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
    factors = {"fixed": 1.0, **rates}
    role_of = roles if _is_flat(roles) else by_path(roles)
    for path, role in role_of.items():
        if role not in factors:
            raise ValueError(f"parameter {path!r} has role {role!r}; known: {sorted(factors)}")

    def scaled(path: str, update: Any) -> Any:
        if path not in role_of:
            raise ValueError(
                f"parameter {path!r} has no role: it was not in the model that the roles were "
                f"made from; known: {sorted(role_of)}"
            )
        return (factors[role_of[path]] * update).astype(update.dtype)

    def update(updates: Any, params: Any = None) -> Any:
        del params
        return map_by_path(scaled, updates)

    # isolab.describe reads it
    update.factors = {path: factors[role] for path, role in role_of.items()}  # type: ignore[attr-defined]
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
              gives a matrix's role to matrices, stacks of them included. Other parameters that it
              takes in, those called so ("bias", "scale", ...) and those of one dimension, become
              "bias" or "vector", or "fixed" where the role is "readout". A whole path is taken at
              its word;
            - a function of path and array that returns a role.

    Returns:
        Path to role: "embedding" (fan-in does not grow), "hidden", "readout", "tied" (embedding
        and readout in one), "vector" (gains), "bias" (of the features) or "fixed" (a rate that
        never follows the width); see :mod:`isolab.theory.parameterization`.

    Raises:
        ValueError: parameters without a role or with an unknown one, a mapping's key that fits no
            parameter, a pytree of another shape, or a model without parameters.

    Example:
        >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
        >>> parameter_roles(model, {"*": "readout"})
        {'bias': 'fixed', 'kernel': 'readout'}
    """
    leaves = {
        path: leaf
        for path, leaf in by_path(_tree(model), is_leaf=_is_variable).items()
        if isinstance(leaf, nnx.Param) or not _is_variable(leaf)
    }
    if not leaves:
        raise ValueError(f"the model has no parameters: {type(model).__name__}")
    found = _found_roles(model, leaves, roles)
    missing = [path for path in leaves if found.get(path) is None]
    if missing:
        raise ValueError(
            f"no role for {', '.join(map(repr, missing))}; give one of {sorted(ALL_ROLES)} by "
            "nnx.Param(value, role=...) or by roles="
        )
    for path, role in found.items():
        if role not in ALL_ROLES:
            raise ValueError(
                f"parameter {path!r} has unknown role {role!r}; known: {sorted(ALL_ROLES)}"
            )
    return {path: str(found[path]) for path in leaves}


def _found_roles(model: Any, leaves: dict[str, Any], roles: Any) -> dict[str, Any]:
    if roles is None:
        return {
            path: leaf.get_metadata().get("role") if _is_variable(leaf) else None
            for path, leaf in leaves.items()
        }
    if is_function(roles):
        return {path: roles(path, _array(leaf)) for path, leaf in leaves.items()}
    patterns = _is_flat(roles)
    named = dict(roles) if patterns else by_path(roles)
    if set(named) == set(leaves):
        return named
    for name in named:
        if not any(_fits(path, name) if patterns else path == name for path in leaves):
            raise ValueError(f"roles name {name!r}, no parameter; there are: {sorted(leaves)}")
    if not patterns:
        return named
    seen = _seen(model)
    return {path: _matched(path, seen[path], named) for path in leaves}


def _is_flat(roles: Any) -> bool:
    """Says whether these are roles by path or pattern, rather than a nested tree of them."""
    return isinstance(roles, Mapping) and all(isinstance(role, str) for role in roles.values())


def _matched(path: str, seen: Seen, patterns: Mapping[str, str]) -> str | None:
    for pattern, role in patterns.items():
        if _fits(path, pattern):
            whole = pattern in _spellings(path)
            return role if whole else _role_of_part(path, seen, role)
    return None


def _fits(path: str, pattern: str) -> bool:
    return any(
        spelled == pattern or spelled.startswith(f"{pattern}/") or fnmatchcase(spelled, pattern)
        for spelled in _spellings(path)
    )


def _spellings(path: str) -> tuple[str, str]:
    return path, path.replace("\\/", "/")


def _role_of_part(path: str, seen: Seen, role: str) -> str:
    """Returns the role of a parameter in a layer whose matrix has the role given."""
    name = path.rpartition("/")[2].lower()
    matrix = seen.view is not None or seen.why.startswith("unknown")
    if role not in ("embedding", "hidden", "readout", "tied") or matrix:
        return role
    if role == "readout" and name not in _GAINS:
        return "fixed"
    return "bias" if name in _BIASES else "vector"


def _built(
    optimizer: Optimizer,
    learning_rate: Any,
    rule: str | None,
    labels: Mapping[str, Any],
    hyperparameters: dict[str, Any],
) -> tuple[optax.GradientTransformation, str]:
    if isinstance(optimizer, optax.MultiSteps):
        optimizer = optimizer.gradient_transformation()
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

    def labels_like(params: Any) -> Any:
        return map_by_path(lambda path, _: labels.get(path, FALLBACK), params)

    return from_catalog(optimizer, learning_rate, labels=labels_like, **hyperparameters), known.rule


def _required_rule(rule: str | None) -> str:
    if rule is None:
        raise ValueError(
            "rule is missing: 'sgd', 'adam' (steps of size one before the rate), 'adafactor' "
            "(steps relative to the parameter's size), 'spectral' (hidden steps of spectral norm "
            "one, as Muon's) or 'whitened' (hidden steps of size one and a flat spectrum)"
        )
    return rule


def _tree(model: Any) -> Any:
    return nnx.state(model, nnx.Param) if isinstance(model, nnx.Module) else model


def _seen(model: Any) -> dict[str, Seen]:
    """Returns how each array is seen as a matrix, whatever its layer is called."""
    return structures(jax.tree.map(_array, _tree(model), is_leaf=_is_variable))


def _is_variable(leaf: Any) -> bool:
    return isinstance(leaf, nnx.Variable)


def _array(leaf: Any) -> Any:
    return leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf
