"""Optimizers by name, each a plain optax transformation, with the defaults that a run uses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from isolab.optimizers.adam import adam
from isolab.optimizers.adam_atan2 import adam_atan2
from isolab.optimizers.checks import check
from isolab.optimizers.decay import with_decay
from isolab.optimizers.dtypes import Scalar
from isolab.optimizers.iso import iso, isoadam
from isolab.optimizers.leaves import by_path, like_gradients
from isolab.optimizers.partition import by_view
from isolab.optimizers.views import Labels, View, sides

Builder = Callable[..., optax.GradientTransformation]


@dataclass(frozen=True)
class Entry:
    """One optimizer of the catalog.

    Attributes:
        build: makes the transformation from a learning rate and the hyperparameters below.
        rule: how the size of its update follows the width: "sgd", "adam", "adafactor",
            "spectral" or "whitened"; see :mod:`isolab.theory.parameterization`.
        defaults: hyperparameters that it has, with the values used when none is given.
        takes_labels: it treats hidden matrices apart from the rest.
        takes_factors: its update reads exact factors.
        takes_eps_by_parameter: ``eps`` may be a pytree like the parameters.
        takes_moment_dtype: it keeps both moments in the ``moment_dtype`` that it is given.
    """

    build: Builder
    rule: str
    defaults: dict[str, float]
    takes_labels: bool = False
    takes_factors: bool = False
    takes_eps_by_parameter: bool = False
    takes_moment_dtype: bool = False


def _sgd(learning_rate: Any, *, b1: Scalar, **decay: Any) -> Any:
    check(b1=b1)
    return with_decay(optax.trace(decay=b1), learning_rate, **decay)


def _adafactor(learning_rate: Any, *, weight_decay: Scalar) -> Any:
    """Factors every matrix; optax's own bound of 128 would change the rule at some width."""
    check(learning_rate=learning_rate)
    return like_gradients(
        optax.adafactor(learning_rate, min_dim_size_to_factor=2, weight_decay_rate=weight_decay)
    )


def _lion(learning_rate: Any, *, b1: Scalar, b2: Scalar, **decay: Any) -> Any:
    check(b1=b1, b2=b2)
    return with_decay(optax.scale_by_lion(b1, b2), learning_rate, **decay)


def _muon(
    learning_rate: Any,
    *,
    b1: Scalar,
    b2: Scalar,
    momentum: Scalar,
    eps: Scalar,
    labels: Labels,
    **decay: Any,
) -> Any:
    """Muon for hidden matrices, AdamW with Nesterov's momentum at the same rate for the rest."""
    check(b1=b1, b2=b2, momentum=momentum, eps=eps)

    def rule(views: dict[str, View]) -> optax.GradientTransformation:
        def numbers(tree: Any) -> Any:
            return jax.tree.unflatten(jax.tree.structure(tree), [views[p] for p in by_path(tree)])

        def by_shape(updates: Any, params: Any = None) -> Any:
            del params
            return jax.tree.map(_scaled_by_shape, updates, numbers(updates))

        return optax.chain(
            optax.contrib.scale_by_muon(
                beta=momentum, eps=eps, weight_dimension_numbers=numbers
            ),
            optax.stateless(by_shape),
        )  # fmt: skip

    rest = optax.scale_by_adam(b1, b2, eps, nesterov=True)
    return with_decay(by_view(rule, rest, labels), learning_rate, **decay)


def _scaled_by_shape(update: jax.Array, view: View) -> jax.Array:
    """As optax.contrib.muon has it: for an update's effect to follow the width."""
    fan_in, fan_out = sides(update.shape, view)
    return jnp.sqrt(jnp.maximum(1, fan_out / fan_in)) * update


_BETAS = {"b1": 0.9, "b2": 0.95}

CATALOG: dict[str, Entry] = {
    "sgd": Entry(_sgd, "sgd", {"b1": 0.9, "weight_decay": 0.0}),
    "adam": Entry(
        adam, "adam", {**_BETAS, "eps": 1e-8}, takes_eps_by_parameter=True,
        takes_moment_dtype=True,
    ),
    "adamw": Entry(
        adam, "adam", {**_BETAS, "eps": 1e-8, "weight_decay": 0.1}, takes_eps_by_parameter=True,
        takes_moment_dtype=True,
    ),
    "adafactor": Entry(_adafactor, "adafactor", {"weight_decay": 0.0}),
    "lion": Entry(_lion, "adam", {"b1": 0.9, "b2": 0.99, "weight_decay": 0.0}),
    "muon": Entry(
        _muon,
        "spectral",
        {**_BETAS, "momentum": 0.95, "eps": 1e-8, "weight_decay": 0.0},
        takes_labels=True,
    ),
    "iso": Entry(
        iso, "whitened", {**_BETAS, "eps": 1e-8, "weight_decay": 0.0}, takes_labels=True,
        takes_factors=True,
    ),
    "isoadam": Entry(
        isoadam, "whitened", {**_BETAS, "eps": 1e-8, "weight_decay": 0.0}, takes_labels=True,
        takes_factors=True,
    ),
    "adam_atan2": Entry(
        adam_atan2, "adam", {**_BETAS, "weight_decay": 0.0}, takes_moment_dtype=True
    ),
}  # fmt: skip


def entry(name: str) -> Entry:
    """Returns the catalog's entry.

    Raises:
        ValueError: unknown name; the message lists the known ones.
    """
    if name not in CATALOG:
        raise ValueError(f"unknown optimizer {name!r}; known: {sorted(CATALOG)}")
    return CATALOG[name]


def optimizer(
    name: str,
    learning_rate: optax.ScalarOrSchedule,
    *,
    labels: Labels = None,
    **hyperparameters: Any,
) -> optax.GradientTransformationExtraArgs:
    """Returns the named optimizer as an optax transformation.

    Args:
        name: a key of :data:`CATALOG`.
        learning_rate: a number, a traced scalar or a schedule.
        labels: which parameters are hidden matrices, for the optimizers that ask; see
            :func:`isolab.isoadam`.
        **hyperparameters: override the entry's defaults, or pass on to its builder.

    Raises:
        ValueError: unknown name, or a common hyperparameter that this optimizer does not have.

    Example:
        >>> import jax.numpy as jnp
        >>> tx = optimizer("lion", 0.5, weight_decay=0.0)
        >>> updates, _ = tx.update(jnp.array([2.0]), tx.init(jnp.ones(1)), jnp.ones(1))
        >>> updates
        Array([-0.5], dtype=float32)
    """
    chosen = entry(name)
    everywhere = {key for other in CATALOG.values() for key in other.defaults}
    alien = sorted(set(hyperparameters) & everywhere - set(chosen.defaults))
    if alien:
        raise ValueError(f"{name} has no {alien[0]}; it has: {sorted(chosen.defaults)}")
    arguments = {**chosen.defaults, **hyperparameters}
    if chosen.takes_labels:
        arguments["labels"] = labels
    return optax.with_extra_args_support(chosen.build(learning_rate, **arguments))
