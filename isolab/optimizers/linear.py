"""The factors of a weight matrix, :math:`E[x x^T]` and :math:`E[g g^T]`, whole or in blocks."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from isolab.optimizers.dtypes import at_least_float32

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
