"""One parameter of Iso: the factors of its matrices, their roots, and its whitened first moment."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from isolab.optimizers.dtypes import at_least_float32, exponent, power_of_two
from isolab.optimizers.factors import (
    BlockRule,
    Factors,
    block_second_moment,
    block_sizes,
    explicit_sharding,
)
from isolab.optimizers.moments import average, corrected
from isolab.optimizers.views import View, fold, sides, stack_axes, unfold


class MatrixState(NamedTuple):
    """Iso's state of one parameter, beside its first moment; float32 unless that is float64.

    P and Q count the blocks of inputs and outputs; a side that is not whitened has None.
    """

    factors: Factors  # (stack..., P, size, size) and (stack..., Q, size, size), second moments
    roots: Factors  # the same shapes, their inverse square roots
    unit: jax.Array  # (), power of two by which gradients are multiplied before they are squared
    size: jax.Array  # (stack...), by which U must be multiplied to be free of the gradient's scale


class Step(NamedTuple):
    """What one step does to every matrix."""

    due: jax.Array  # (), bool: factors and roots are refreshed
    old_share: jax.Array  # (), float32: of the factors' averages, in a refresh
    averaged: jax.Array  # (), float32: weight of the factors' averages
    correction: jax.Array  # (), float32: weight of the first moment's
    scale_free: bool  # U is multiplied by its size


def init_matrix(
    leaf: jax.Array, view: View, block_size: BlockRule, max_side: int | None
) -> MatrixState:
    """Returns zeros for a parameter, as of :func:`zero_factors`."""
    # made twice: a buffer that occurs twice in a state cannot be donated
    factors, roots = (zero_factors(leaf, view, block_size, max_side) for _ in range(2))
    dtype = at_least_float32(leaf.dtype)
    stack = [leaf.shape[axis] for axis in stack_axes(leaf.ndim, view)]
    return MatrixState(factors, roots, jnp.zeros((), dtype), jnp.ones(stack, dtype))


def zero_factors(
    leaf: jax.Array, view: View, block_size: BlockRule, max_side: int | None
) -> Factors:
    """Returns zeros for a parameter's factors; None for a side whose blocks are too long."""
    stack = [leaf.shape[axis] for axis in stack_axes(leaf.ndim, view)]
    lengths, dtype = sides(leaf.shape, view), at_least_float32(leaf.dtype)
    shapes = [
        None if max_side is not None and n > max_side else (*stack, side // n, n, n)
        for side, n in zip(lengths, block_sizes(*lengths, block_size), strict=True)
    ]
    return Factors(*(None if shape is None else jnp.zeros(shape, dtype) for shape in shapes))


def blocks(state: MatrixState) -> tuple[int, int]:
    """Returns P and Q; 1 for a side that is not whitened."""
    P, Q = (1 if factor is None else factor.shape[-3] for factor in state.factors)
    return P, Q


def next_matrix(
    grad: jax.Array,
    mu: jax.Array,
    old: MatrixState,
    new: Factors,
    view: View,
    step: Step,
    inverse_sqrt: Callable[[jax.Array], jax.Array],
) -> tuple[jax.Array, MatrixState]:
    """Returns a parameter's whitened first moment, (stack..., fan_in, fan_out), and its state.

    Args:
        grad, mu: the gradient, and the average of it that is whitened.
        new: exact factors; None for a side where the gradient's take their place.
    """
    formed = [one is None and kept is not None for one, kept in zip(new, old.factors, strict=True)]
    unit = _unit(grad, old.unit) if any(formed) else jnp.ones_like(old.unit)

    def refresh() -> tuple[Factors, Factors, jax.Array]:
        measured = new
        if any(formed):
            g = fold(replicated(grad), view) * unit
            of_gradient = zip(new, _gradient_factors(g, old.factors), strict=True)
            measured = Factors(*(theirs if one is None else one for one, theirs in of_gradient))
        means = [
            None if kept is None else average(step.old_share, kept, one.astype(kept.dtype))
            for kept, one in zip(old.factors, measured, strict=True)
        ]
        hats = [None if mean is None else corrected(mean, step.averaged) for mean in means]
        roots = [None if hat is None else inverse_sqrt(hat) for hat in hats]
        return Factors(*means), Factors(*roots), _size(hats, formed, old.size)

    def keep() -> tuple[Factors, Factors, jax.Array]:
        return old.factors, old.roots, old.size

    factors, roots, size = jax.lax.cond(step.due, refresh, keep)
    matrices = fold(replicated(corrected(mu, step.correction)), view)
    u = whiten(matrices * unit if any(formed) else matrices, roots)
    if step.scale_free and any(formed):
        u = u * size[..., None, None]
    return u, MatrixState(factors, roots, unit, size)


def back(u: jax.Array, view: View, grad: jax.Array) -> jax.Array:
    """Returns matrices as an array with the gradient's shape, dtype and, on a mesh, place."""
    update, sharding = unfold(u, view, grad.shape).astype(grad.dtype), explicit_sharding(grad)
    return update if sharding is None else jax.sharding.reshard(update, sharding)


def whiten(mu: jax.Array, roots: Factors) -> jax.Array:
    r"""Returns :math:`A^{-1/2} M B^{-1/2}` for block-diagonal roots; a root of None is left out.

    Args:
        mu: shape (stack..., fan_in, fan_out).
        roots: shapes (stack..., P, N, N) and (stack..., Q, M, M), with P N = fan_in.
    """
    *stack, fan_in, fan_out = mu.shape
    if roots.input is not None:
        P, N = roots.input.shape[-3:-1]
        left_PxNxF: jax.Array = roots.input @ mu.reshape(*stack, P, N, fan_out)
        mu = left_PxNxF.reshape(*stack, fan_in, fan_out)
    if roots.output is None:
        return mu
    Q, M = roots.output.shape[-3:-1]
    if Q == 1:
        whitened: jax.Array = mu @ roots.output[..., 0, :, :]
        return whitened
    right_QxFxM = mu.reshape(*stack, fan_in, Q, M).swapaxes(-3, -2)
    blocks_QxFxM: jax.Array = right_QxFxM @ roots.output
    return blocks_QxFxM.swapaxes(-3, -2).reshape(*stack, fan_in, fan_out)


def _gradient_factors(g: jax.Array, like: Factors) -> Factors:
    """G G^T and G^T G of each matrix."""
    fan_in, fan_out = g.shape[-2:]

    def moment(rows: jax.Array, kept: jax.Array | None, count: int) -> jax.Array | None:
        if kept is None:
            return None
        each = partial(block_second_moment, block=kept.shape[-1])
        for _ in rows.shape[:-2]:
            each = jax.vmap(each)
        return each(rows) * count

    return Factors(moment(g.mT, like.input, fan_out), moment(g, like.output, fan_in))


def _size(hats: list[jax.Array | None], formed: list[bool], like: jax.Array) -> jax.Array:
    """Returns what makes U free of the gradient's scale: a formed factor has its square in it."""
    whole = [hat for hat in hats if hat is not None]
    if not any(formed) or len(whole) < 2:
        return jnp.ones_like(like)
    hat = whole[formed.index(False)] if False in formed else whole[0]
    return jnp.sqrt(jnp.trace(hat, axis1=-2, axis2=-1).sum(-1))


def _unit(grad: jax.Array, old: jax.Array) -> jax.Array:
    """Returns a power of two by which squares neither under- nor overflow.

    It takes the first gradient that is not zero to about one, or is 1 where that is near enough.
    """
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(grad))).astype(old.dtype)
    power = exponent(largest)
    far = jnp.where((power < -20) | (power > 6), jnp.clip(-power, -126, 126), 0)
    return jnp.where((old == 0) & (largest > 0), power_of_two(far, old.dtype), old)


def replicated(x: jax.Array) -> jax.Array:
    """Returns the array whole on each device of a mesh of explicit axes."""
    sharding = explicit_sharding(x)
    if sharding is None:
        return x
    whole: jax.Array = jax.sharding.reshard(x, NamedSharding(sharding.mesh, PartitionSpec()))
    return whole
