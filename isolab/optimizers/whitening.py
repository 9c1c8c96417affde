"""One weight matrix of Iso: its factors, their roots, and its whitened first moment."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from isolab.optimizers.dtypes import Scalar, at_least_float32
from isolab.optimizers.linear import BlockRule, Factors, block_second_moment, block_sizes
from isolab.optimizers.moments import average, corrected


class MatrixState(NamedTuple):
    """Iso's state of one weight matrix; all float32 unless the weight is float64."""

    mu: jax.Array  # (fan_in, fan_out), first moment of the gradient
    factors: Factors  # (P, size, size) and (Q, size, size), second moments
    roots: Factors  # the same shapes, their inverse square roots


class Step(NamedTuple):
    """What one step does to every matrix."""

    due: jax.Array  # (), bool: factors and roots are refreshed
    old_share: jax.Array  # (), float32: of the factors' averages, in a refresh
    averaged: jax.Array  # (), float32: weight of the factors' averages
    correction: jax.Array  # (), float32: weight of the first moment's


def init_matrix(key: str, leaf: jax.Array, block_size: BlockRule) -> MatrixState:
    """Returns zeros for a matrix; ``key`` is its path, for the message of a ValueError."""
    if leaf.ndim != 2:
        raise ValueError(
            f"iso: {key} has shape {leaf.shape}; allowed: two dimensions."
            " Choose the parameters that it treats by `labels`"
        )
    fan_in, fan_out = leaf.shape
    n, m = block_sizes(fan_in, fan_out, block_size)
    dtype = at_least_float32(leaf.dtype)
    shapes = ((fan_in // n, n, n), (fan_out // m, m, m))
    # made twice: a buffer that occurs twice in a state cannot be donated
    factors, roots = (Factors(*(jnp.zeros(shape, dtype) for shape in shapes)) for _ in range(2))
    return MatrixState(jnp.zeros(leaf.shape, dtype), factors, roots)


def next_matrix(
    key: str,
    grad: jax.Array,
    old: MatrixState,
    new: Factors | None,
    step: Step,
    b1: Scalar,
    inverse_sqrt: Callable[[jax.Array], jax.Array],
) -> tuple[jax.Array, MatrixState]:
    """Returns one matrix's whitened first moment, and its state; ``new`` are exact factors."""
    dtype = old.mu.dtype
    g = grad.astype(dtype)
    mu = average(b1, old.mu, g)

    def refresh() -> tuple[Factors, Factors]:
        measured = _gradient_factors(g, old.factors) if new is None else new
        _check_shapes(key, measured, old.factors)
        means = [
            average(step.old_share, mean, one.astype(dtype))
            for mean, one in zip(old.factors, measured, strict=True)
        ]
        roots = [inverse_sqrt(corrected(mean, step.averaged)) for mean in means]
        return Factors(*means), Factors(*roots)

    factors, roots = jax.lax.cond(step.due, refresh, lambda: (old.factors, old.roots))
    u = whiten(corrected(mu, step.correction), roots).astype(grad.dtype)
    return u, MatrixState(mu, factors, roots)


def whiten(mu: jax.Array, roots: Factors) -> jax.Array:
    r"""Returns :math:`A^{-1/2} M B^{-1/2}` for block-diagonal roots.

    Args:
        mu: shape (fan_in, fan_out).
        roots: shapes (P, fan_in / P, fan_in / P) and (Q, fan_out / Q, fan_out / Q).
    """
    fan_in, fan_out = mu.shape
    P, N, _ = roots.input.shape
    Q, M, _ = roots.output.shape
    left_PxNxF: jax.Array = roots.input @ mu.reshape(P, N, fan_out)
    if Q == 1:
        whitened: jax.Array = left_PxNxF.reshape(fan_in, fan_out) @ roots.output[0]
        return whitened
    left_QxFxM = left_PxNxF.reshape(fan_in, Q, M).transpose(1, 0, 2)
    blocks_QxFxM: jax.Array = left_QxFxM @ roots.output
    return blocks_QxFxM.transpose(1, 0, 2).reshape(fan_in, fan_out)


def _gradient_factors(grad: jax.Array, like: Factors) -> Factors:
    """G G^T and G^T G; the scale of either is free, as U is sized afterwards."""
    fan_in, fan_out = grad.shape
    return Factors(
        block_second_moment(grad.T, like.input.shape[-1]) * fan_out,
        block_second_moment(grad, like.output.shape[-1]) * fan_in,
    )


def _check_shapes(key: str, new: Factors, old: Factors) -> None:
    for side in Factors._fields:
        got, wanted = getattr(new, side).shape, getattr(old, side).shape
        if got != wanted:
            raise ValueError(
                f"factors[{key!r}].{side} has shape {got}; the optimizer keeps {wanted}"
                " (measure_factors and the optimizer must have the same block_size)"
            )
