r"""A linear layer that measures its own factors, :math:`E[x x^T]` and :math:`E[g g^T]`.

For ``y = x W`` with tokens as rows, ``x`` is the input at one token and ``g`` the gradient of that
token's loss with respect to ``y``.  The two factors come out of the ordinary backward pass: the
layer takes two zero-valued inputs (:class:`Factor` variables) that do not change its output, and
its custom derivative returns the factors as the cotangents of those inputs.

    loss and gradients          params  --grad-->  E[x g^T]
    the same backward pass      Factor  --grad-->  E[x x^T], E[g g^T]

A side may be cut into equal blocks; then only the diagonal blocks of its factor are measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import nnx

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


class Factor(nnx.Variable):  # type: ignore[type-arg]
    """A zero whose cotangent is a factor; never trained."""


class FactorDue(nnx.Variable):  # type: ignore[type-arg]
    """A boolean scalar: is this side's factor wanted in this step?"""


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


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def measured_matmul(
    x: jax.Array,
    kernel: jax.Array,
    factors: Factors,
    due: Factors | None = None,
    max_tokens: int | None = None,
) -> jax.Array:
    r"""Returns ``x @ kernel``; its derivative also measures the factors.

    The loss must be a *mean* over the N tokens of ``x`` (all leading axes): the cotangent of ``y``
    is then g / N at each token, and

    .. math:: A = \frac1N \sum_t x_t x_t^T, \qquad B = \frac1N \sum_t g_t g_t^T.

    Args:
        x: shape (..., fan_in).
        kernel: shape (fan_in, fan_out).
        factors: two zeros of shapes (blocks, size, size); their values are not read.
        due: two boolean scalars; a side that is not due costs nothing and gives zeros.
        max_tokens: measure on at most about so many evenly spaced tokens.

    Returns:
        Shape (..., fan_out).

    Source: isolab's reading of arXiv:2307.12979; the mechanism is isolab's own.
    """
    del factors, due, max_tokens
    return x @ kernel


def _measured_matmul_fwd(
    x: jax.Array,
    kernel: jax.Array,
    factors: Factors,
    due: Factors | None,
    max_tokens: int | None,
) -> tuple[jax.Array, Any]:
    return x @ kernel, (x, kernel, factors, due)


def _measured_matmul_bwd(max_tokens: int | None, residuals: Any, dy: jax.Array) -> Any:
    x, kernel, factors, due = residuals
    x_TxN, dy_TxM = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    tokens = x_TxN.shape[0]
    stride = 1 if max_tokens is None else max(1, tokens // max_tokens)

    due = due or Factors(None, None)
    measured = Factors(
        _measure(x_TxN, stride, 1, factors.input, due.input),
        _measure(dy_TxM, stride, tokens, factors.output, due.output),  # dy = g / tokens
    )
    dx = (dy_TxM @ kernel.T).reshape(x.shape).astype(x.dtype)
    dkernel = (x_TxN.T @ dy_TxM).astype(kernel.dtype)
    return dx, dkernel, measured, None


def _measure(rows_TxD: jax.Array, stride: int, scale: int, like: jax.Array, due: Any) -> jax.Array:
    """Returns the factor of one side, or zeros where it is not due."""

    def moment() -> jax.Array:
        sample = rows_TxD[::stride].astype(at_least_float32(rows_TxD.dtype))
        return block_second_moment(sample * scale, like.shape[-1]).astype(like.dtype)

    if due is None:
        return moment()
    measured: jax.Array = jax.lax.cond(due, moment, lambda: jnp.zeros_like(like))
    return measured


measured_matmul.defvjp(_measured_matmul_fwd, _measured_matmul_bwd)


class Linear(nnx.Linear):
    """``nnx.Linear`` with a multiplier, and able to measure its factors.

    Without factors attached it computes just what ``nnx.Linear`` does, at the same cost.
    :func:`measure_factors` attaches them, and turns an ``nnx.Linear`` into this class in place.
    """

    multiplier: float = 1.0
    max_tokens: int | None = None
    input_factor: Factor | None = None
    output_factor: Factor | None = None
    input_due: FactorDue | None = None
    output_due: FactorDue | None = None

    def __init__(self, *args: Any, multiplier: float = 1.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.multiplier = multiplier

    def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
        """Returns ``multiplier * inputs @ kernel + bias``, shape (..., out_features)."""
        if self.input_factor is None or self.output_factor is None:
            y: jax.Array = super().__call__(inputs, out_sharding)
            if self.multiplier == 1.0:
                return y
            if self.bias is None:
                return y * self.multiplier
            raise ValueError("a Linear with a bias takes multiplier 1.0 only")
        bias = None if self.bias is None else self.bias[...]
        x, kernel, bias = self.promote_dtype((inputs, self.kernel[...], bias), dtype=self.dtype)
        due = None
        if self.input_due is not None and self.output_due is not None:
            due = Factors(self.input_due[...], self.output_due[...])
        factors = Factors(self.input_factor[...], self.output_factor[...])
        y = measured_matmul(x, kernel, factors, due, self.max_tokens)
        if self.multiplier != 1.0:
            y = y * self.multiplier
        return y if bias is None else y + bias.reshape((1,) * (y.ndim - 1) + (-1,))


def measure_factors(
    model: nnx.Module,
    where: Callable[[tuple[Any, ...], nnx.Linear], bool] | None = None,
    block_size: BlockRule = None,
    max_tokens: int | None = None,
    scheduled: bool = False,
) -> list[tuple[Any, ...]]:
    """Makes every linear layer of a flax.nnx model report its factors; the model is not edited.

    Works in place on instances of ``nnx.Linear`` and of :class:`Linear`, wherever they sit;
    other subclasses are left alone, as their forward pass is their own.

    Args:
        model: any flax.nnx module.
        where: chooses layers by path and module; default: all.
        block_size: see :func:`block_sizes`.
        max_tokens: see :func:`measured_matmul`; default: all tokens.
        scheduled: also attach :class:`FactorDue` flags, so that a step can skip the measurement.

    Returns:
        The paths of the layers that now measure.

    Raises:
        ValueError: no layer fits.

    Example:
        >>> model = nnx.Sequential(nnx.Linear(3, 4, rngs=nnx.Rngs(0)))
        >>> measure_factors(model)
        [('layers', 0)]
        >>> loss = lambda m: (m(jnp.ones((2, 3))) ** 2).mean()
        >>> wanted = nnx.DiffState(0, nnx.Any(nnx.Param, Factor))
        >>> grads = nnx.grad(loss, argnums=wanted)(model)
        >>> grads["layers"][0]["input_factor"][...].shape
        (1, 3, 3)
    """
    paths = []
    for path, module in nnx.iter_modules(model):
        if not isinstance(module, nnx.Linear) or type(module) not in (nnx.Linear, Linear):
            continue
        if where is not None and not where(path, module):
            continue
        if type(module) is nnx.Linear:
            module.__class__ = Linear
        layer = cast(Linear, module)
        n, m = block_sizes(layer.in_features, layer.out_features, block_size)
        dtype = at_least_float32(layer.param_dtype)
        layer.input_factor = Factor(jnp.zeros((layer.in_features // n, n, n), dtype))
        layer.output_factor = Factor(jnp.zeros((layer.out_features // m, m, m), dtype))
        layer.max_tokens = max_tokens
        if scheduled:
            layer.input_due = FactorDue(jnp.ones((), bool))
            layer.output_due = FactorDue(jnp.ones((), bool))
        paths.append(path)
    if not paths:
        raise ValueError("measure_factors: the model has no nnx.Linear layer that fits")
    return paths


def factors_by_kernel(grads: Mapping[Any, Any]) -> dict[Any, Any]:
    """Moves each layer's two measured factors to the place of its kernel.

    Args:
        grads: nested mapping, the gradient with respect to the :class:`Factor` variables, e.g.
            ``nnx.to_pure_dict(grads)``: ``{..., "input_factor": A, "output_factor": B}``.

    Returns:
        The same nesting with ``{..., "kernel": Factors(A, B)}``: what ``isoadam`` takes as
        ``factors``.
    """
    if "input_factor" in grads and "output_factor" in grads:
        return {"kernel": Factors(_value(grads["input_factor"]), _value(grads["output_factor"]))}
    return {
        name: factors_by_kernel(child)
        for name, child in grads.items()
        if isinstance(child, Mapping)
    }


def _value(x: Any) -> Any:
    return x[...] if isinstance(x, nnx.Variable) else x
