"""The factors of a weight matrix, :math:`E[x x^T]` and :math:`E[g g^T]`, whole or in blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

from isolab.optimizers.dtypes import at_least_float32, exponent, power_of_two

BlockRule = Literal["shorter"] | int | None


class Factors(NamedTuple):
    """The pair of factors of one weight matrix, shape (fan_in, fan_out).

    Attributes:
        input: E[x x^T], shape (input blocks, size, size), float32.
        output: E[g g^T], shape (output blocks, size, size), float32.
    """

    input: Any
    output: Any


def block_sizes(fan_in: int, fan_out: int, rule: BlockRule) -> tuple[int, int]:
    """Returns the block lengths into which the two sides of a matrix are cut.

    Args:
        fan_in: rows of the matrix.
        fan_out: its columns.
        rule: ``None`` leaves both sides whole; ``"shorter"`` cuts the longer side into blocks as
            long as the shorter one; a number cuts every longer side into blocks of that length.
            A side that the length does not divide stays whole.

    Example:
        >>> block_sizes(64, 256, "shorter"), block_sizes(64, 256, None), block_sizes(64, 256, 128)
        ((64, 64), (64, 256), (64, 128))
    """
    if rule is None:
        return fan_in, fan_out
    if rule != "shorter" and (not isinstance(rule, int) or rule < 1):
        raise ValueError(
            f"block_size is {rule!r}; allowed: None, 'shorter', or an int of 1 or more"
        )
    size = min(fan_in, fan_out) if rule == "shorter" else rule
    n, m = (size if side % size == 0 else side for side in (fan_in, fan_out))
    return n, m


def block_second_moment(rows_TxD: jax.Array, block: int) -> jax.Array:
    """Returns the mean over tokens of the outer products of each block with itself.

    Args:
        rows_TxD: one token a row; float32, bfloat16 or float64.
        block: block length, a divisor of D.

    Returns:
        Shape (D / block, block, block), at least float32.
    """
    T, D = rows_TxD.shape
    dtype = at_least_float32(rows_TxD.dtype)
    if block == D:
        gram = jnp.matmul(rows_TxD.T, rows_TxD, preferred_element_type=dtype)[None]
    else:
        rows_PxTxB = rows_TxD.reshape(T, D // block, block).transpose(1, 0, 2)
        gram = jnp.matmul(rows_PxTxB.mT, rows_PxTxB, preferred_element_type=dtype)
    return gram / T


class Measure(NamedTuple):
    """What the backward pass of one product measures: static."""

    rows: tuple[tuple[int, ...], ...]  # the input's axes: of the stack, of tokens, of features
    columns: tuple[tuple[int, ...], ...]  # the output's
    share: float  # of the parameter's tokens
    tokens: int  # of all its products
    max_tokens: int | None
    patches: Any = None  # of a convolution: what makes its rows


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def tap(measure: Measure, y: jax.Array, x: jax.Array, factors: Factors, due: Any) -> jax.Array:
    """Returns y; the cotangent of ``factors`` is what is measured."""
    del measure, x, factors, due
    return y


def _tap_fwd(
    measure: Measure, y: jax.Array, x: jax.Array, factors: Factors, due: Any
) -> tuple[jax.Array, Any]:
    del measure
    return y, (x, factors, due)


def _tap_bwd(measure: Measure, residuals: Any, dy: jax.Array) -> Any:
    x, factors, due = residuals

    def moments() -> Factors:
        rows = x if measure.patches is None else _patches(x, measure.patches)
        a = _gram(rows, measure.rows, 1.0, measure, factors.input)
        b = _gram(dy, measure.columns, measure.tokens, measure, factors.output)
        return Factors(a, b)

    none = jax.tree.map(jnp.zeros_like, factors)
    return dy, None, moments() if due is None else jax.lax.cond(due, moments, lambda: none), None


tap.defvjp(_tap_fwd, _tap_bwd)


def _gram(
    rows: jax.Array,
    where: tuple[tuple[int, ...], ...],
    scale: float,
    measure: Measure,
    like: jax.Array | None,
) -> jax.Array | None:
    """Returns the product's share of the mean of rows' outer products, each row times ``scale``.

    Rows are brought to size one by a power of two, so that no square leaves float32's range.
    """
    if like is None:
        return None
    stack, tokens, features = where
    of_mesh = tuple(_varying(rows) - _varying(like))
    devices = math.prod(jax.lax.axis_size(name) for name in of_mesh)
    rows = rows.astype(like.dtype) * (scale if scale == 1.0 else scale * devices)
    size = exponent(jnp.max(jnp.abs(rows)))
    rows = _undivided(rows, tokens) * power_of_two(jnp.clip(-size, -126, 126), like.dtype)
    rows = rows.transpose(*stack, *tokens, *features)
    n, t = len(stack), len(tokens)
    leading, count = rows.shape[:n], math.prod(rows.shape[n : n + t])
    stride = max(1, count // measure.max_tokens) if measure.max_tokens else 1
    if stride > 1:
        rows = rows.reshape(*leading, count, -1)[(slice(None),) * n + (slice(None, None, stride),)]
        count, t = rows.shape[n], 1
    blocks = like.shape[-3:-1] if like.shape[-3] > 1 else like.shape[-1:]  # one is no batch
    rows = rows.reshape(*rows.shape[: n + t], *blocks)
    batch, along = (*range(n), *range(n + t, rows.ndim - 1)), tuple(range(n, n + t))
    replicated = PartitionSpec() if explicit_sharding(rows) else None
    gram = jax.lax.dot_general(
        rows, rows, ((along, along), (batch, batch)), out_sharding=replicated
    )
    unit = power_of_two(jnp.clip(size, -50, 60), like.dtype)
    gram = (gram * (measure.share / count) * unit * unit).reshape(like.shape)
    return jax.lax.pmean(gram, of_mesh) if of_mesh else gram


def _varying(value: jax.Array) -> frozenset[str]:
    """Returns the mesh's axes along which a value differs, within ``jax.shard_map``."""
    return frozenset(jax.typeof(value).manual_axis_type.varying)


def explicit_sharding(x: jax.Array) -> Any:
    """Returns how an array is divided along explicit axes of a mesh, or None."""
    sharding = jax.typeof(x).sharding
    explicit = not sharding.mesh.empty and AxisType.Explicit in sharding.mesh.axis_types
    return sharding if explicit and any(sharding.spec) else None


def _undivided(rows: jax.Array, tokens: Sequence[int]) -> jax.Array:
    """Returns rows that are divided over a mesh along tokens only."""
    sharding = explicit_sharding(rows)
    if sharding is None:
        return rows
    along = [its if axis in tokens else None for axis, its in enumerate(sharding.spec)]
    whole: jax.Array = jax.sharding.reshard(rows, PartitionSpec(*along))
    return whole


def _patches(x: jax.Array, patches: Any) -> jax.Array:
    """Returns a convolution's inputs as (batch, features in, *window, *places)."""
    window, options, (of_x, _, _) = patches
    x = x.transpose(of_x)  # batch, features, space
    cut = jax.lax.conv_general_dilated_patches(x, window, **dict(options))
    rows: jax.Array = cut.reshape(x.shape[0], x.shape[1], *window, *cut.shape[2:])
    return rows
