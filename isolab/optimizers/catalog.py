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
from isolab.optimizers.dtypes import Scalar
from isolab.optimizers.iso import iso, isoadam
from isolab.optimizers.labels import MATRIX, Labels, hidden_matrices
from isolab.optimizers.leaves import like_gradients

Builder = Callable[..., optax.GradientTransformation]


@dataclass(frozen=True)
class Entry:
    """One optimizer of the catalog.

    Attributes:
        build: makes the transformation from a learning rate and the hyperparameters below.
        rule: how the size of its update follows the width: "sgd", "adam" or "adafactor"; see
            :mod:`isolab.theory.parameterization`.
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


def _sgd(learning_rate: Any, *, b1: Scalar, weight_decay: Scalar) -> Any:
    return optax.chain(
        optax.trace(decay=b1),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(learning_rate),
    )


def _adam(learning_rate: Any, **hyperparameters: Any) -> Any:
    """Adam, or with ``weight_decay`` AdamW; the state is that of optax's."""
    return like_gradients(adam(learning_rate, **hyperparameters))


def _adafactor(learning_rate: Any, *, weight_decay: Scalar) -> Any:
    """Factors every matrix; optax's own bound of 128 would change the rule at some width."""
    return like_gradients(
        optax.adafactor(learning_rate, min_dim_size_to_factor=2, weight_decay_rate=weight_decay)
    )


def _lion(learning_rate: Any, *, b1: Scalar, b2: Scalar, weight_decay: Scalar) -> Any:
    return like_gradients(optax.lion(learning_rate, b1, b2, weight_decay=weight_decay))


def _muon(
    learning_rate: Any,
    *,
    b1: Scalar,
    b2: Scalar,
    momentum: Scalar,
    eps: Scalar,
    weight_decay: Scalar,
    labels: Labels,
) -> Any:
    """Muon for hidden matrices, AdamW at the same rate for the rest."""

    def dimension_numbers(params: Any) -> Any:
        wanted = labels(params) if callable(labels) else labels
        numbers = optax.contrib.MuonDimensionNumbers()
        return jax.tree.map(lambda label: numbers if label == MATRIX else None, wanted)

    return like_gradients(
        optax.contrib.muon(
            learning_rate,
            beta=momentum,
            eps=eps,
            weight_decay=weight_decay,
            adam_b1=b1,
            adam_b2=b2,
            adam_weight_decay=weight_decay,
            muon_weight_dimension_numbers=dimension_numbers,
            mu_dtype=jnp.float32,
        )
    )


_BETAS = {"b1": 0.9, "b2": 0.95}

CATALOG: dict[str, Entry] = {
    "sgd": Entry(_sgd, "sgd", {"b1": 0.9, "weight_decay": 0.0}),
    "adam": Entry(
        _adam, "adam", {**_BETAS, "eps": 1e-8}, takes_eps_by_parameter=True,
        takes_moment_dtype=True,
    ),
    "adamw": Entry(
        _adam, "adam", {**_BETAS, "eps": 1e-8, "weight_decay": 0.1}, takes_eps_by_parameter=True,
        takes_moment_dtype=True,
    ),
    "adafactor": Entry(_adafactor, "adafactor", {"weight_decay": 0.0}),
    "lion": Entry(_lion, "adam", {"b1": 0.9, "b2": 0.99, "weight_decay": 0.0}),
    "muon": Entry(
        _muon,
        "adam",
        {**_BETAS, "momentum": 0.95, "eps": 1e-8, "weight_decay": 0.0},
        takes_labels=True,
    ),
    "iso": Entry(
        iso, "adam", {**_BETAS, "eps": 1e-8, "weight_decay": 0.0}, takes_labels=True,
        takes_factors=True,
    ),
    "isoadam": Entry(
        isoadam, "adam", {**_BETAS, "eps": 1e-8, "weight_decay": 0.0}, takes_labels=True,
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
    labels: Labels = hidden_matrices,
    **hyperparameters: Any,
) -> optax.GradientTransformationExtraArgs:
    """Returns the named optimizer as an optax transformation.

    Args:
        name: a key of :data:`CATALOG`.
        learning_rate: a number, a traced scalar or a schedule.
        labels: which parameters are hidden matrices, for the optimizers that ask.
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
