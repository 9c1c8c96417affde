"""A decoder-only Transformer whose matrices are created and multiplied as a parameterization says.

Pre-LayerNorm, learned positions, GELU, no biases, untied readout; heads keep their size while the
width grows.  Shape letters: B batch, L context, T = B * L tokens, D width, H heads, K head size,
F MLP width, V vocabulary.  Between layers activations are T x D: two-dimensional arrays keep every
product with a weight a plain matrix product, which is what XLA's CPU backend does well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import unflatten_dict

from isolab.model.fields import Count, NonNegative, check, require
from isolab.theory.parameterization import Parameterization, parameterization

Dtype: TypeAlias = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class TransformerConfig:
    """Shape of the model and its options.

    Attributes:
        vocab_size: V.
        width: D, a multiple of ``head_size``.
        depth: number of blocks.
        head_size: K; the number of heads is D / K.
        context: L, the longest sequence.
        mlp_ratio: F / D.
        qk_norm: LayerNorm on queries and keys, per head.
        z_loss: weight of the mean squared log-partition in the loss.
        dtype: compute dtype of the matrix products, "float32" or "bfloat16"; parameters, norms,
            softmax and loss are float32.
        remat: recompute each block in the backward pass instead of storing it.

    Raises:
        ValueError: an impossible value; the message names the field, the value and what is allowed.
    """

    vocab_size: Count = 256
    width: Count = 64
    depth: Count = 2
    head_size: Count = 16
    context: Count = 64
    mlp_ratio: Count = 4
    qk_norm: bool = False
    z_loss: NonNegative = 0.0
    dtype: Dtype = "float32"
    remat: bool = False

    def __post_init__(self) -> None:
        check(self)
        whole = self.width % self.head_size == 0
        require(self, "width", whole, f"multiples of head_size ({self.head_size})")


class Attention(nnx.Module):
    """Causal multi-head self-attention; queries, keys and values are one matrix, (D, 3D)."""

    def __init__(self, config: TransformerConfig, scaling: Parameterization, rngs: nnx.Rngs):
        D = config.width
        self.qkv = _linear(D, 3 * D, "hidden", config, scaling, rngs)
        self.out = _linear(D, D, "hidden", config, scaling, rngs)
        self.head_size = config.head_size
        self.query_norm = _norm(config.head_size, rngs) if config.qk_norm else None
        self.key_norm = _norm(config.head_size, rngs) if config.qk_norm else None

    def __call__(self, x_TxD: jax.Array, batch: int) -> jax.Array:
        """Returns each token's sum of values, weighted by attention within its sequence; (T, D)."""
        T, D = x_TxD.shape
        L, K = T // batch, self.head_size
        qkv_Bx3xHxLxK = self.qkv(x_TxD).reshape(batch, L, 3, D // K, K).transpose(0, 2, 3, 1, 4)
        q_BxHxLxK, k_BxHxLxK, v_BxHxLxK = (qkv_Bx3xHxLxK[:, i] for i in range(3))
        if self.query_norm is not None and self.key_norm is not None:
            q_BxHxLxK = self.query_norm(q_BxHxLxK).astype(v_BxHxLxK.dtype)
            k_BxHxLxK = self.key_norm(k_BxHxLxK).astype(v_BxHxLxK.dtype)
        scores_BxHxLxL = q_BxHxLxK @ k_BxHxLxK.mT * K**-0.5
        scores_BxHxLxL = scores_BxHxLxL.astype(jnp.float32)
        causal_LxL = jnp.tril(jnp.ones((1, 1, L, L), bool))
        weights_BxHxLxL = jax.nn.softmax(jnp.where(causal_LxL, scores_BxHxLxL, -1e30))
        y_BxHxLxK = weights_BxHxLxL.astype(v_BxHxLxK.dtype) @ v_BxHxLxK
        return self.out(y_BxHxLxK.transpose(0, 2, 1, 3).reshape(T, D))


class MLP(nnx.Module):
    """GELU (tanh form) between two matrices, (D, F) and (F, D)."""

    def __init__(self, config: TransformerConfig, scaling: Parameterization, rngs: nnx.Rngs):
        D, F = config.width, config.mlp_ratio * config.width
        self.up = _linear(D, F, "hidden", config, scaling, rngs)
        self.down = _linear(F, D, "hidden", config, scaling, rngs)

    def __call__(self, x_TxD: jax.Array) -> jax.Array:
        """Returns ``gelu(x @ up) @ down``, (T, D)."""
        return self.down(jax.nn.gelu(self.up(x_TxD)))


class Block(nnx.Module):
    """Attention and MLP, each after a LayerNorm and beside a residual."""

    def __init__(self, config: TransformerConfig, scaling: Parameterization, rngs: nnx.Rngs):
        self.attention_norm = _norm(config.width, rngs)
        self.attention = Attention(config, scaling, rngs)
        self.mlp_norm = _norm(config.width, rngs)
        self.mlp = MLP(config, scaling, rngs)

    def __call__(self, x_TxD: jax.Array, batch: int) -> jax.Array:
        """Returns the residual stream after both parts, (T, D)."""
        x_TxD = x_TxD + self.attention(self.attention_norm(x_TxD), batch)
        return x_TxD + self.mlp(self.mlp_norm(x_TxD))


class Transformer(nnx.Module):
    """The decoder-only Transformer.

    Args:
        config: shape and options.
        scaling: a parameterization or its name; n is the width for embeddings and the layer's own
            fan-in for the other matrices (a constant factor for the MLP's second matrix).
        rngs: ``nnx.Rngs(seed)``, or ``nnx.Rngs(params=key)`` with a traced key.

    Example:
        >>> model = Transformer(TransformerConfig(width=32), "mup", rngs=nnx.Rngs(0))
        >>> model(jnp.zeros((2, 64), jnp.int32)).shape
        (2, 64, 256)
    """

    def __init__(
        self,
        config: TransformerConfig,
        scaling: Parameterization | str = "standard",
        *,
        rngs: nnx.Rngs,
    ):
        scaling = parameterization(scaling)
        V, L, D = config.vocab_size, config.context, config.width
        self.config = config
        self.embedding_multiplier = scaling.multiplier("embedding", D)
        std = scaling.init_std("embedding", D)
        self.embedding, self.positions = (
            nnx.Param(std * jax.random.normal(rngs.params(), (rows, D)), role="embedding")
            for rows in (V, L)
        )
        self.blocks = nnx.List([Block(config, scaling, rngs) for _ in range(config.depth)])
        self.final_norm = _norm(D, rngs)
        self.readout = _linear(D, V, "readout", config, scaling, rngs)

    def __call__(self, tokens_BxL: jax.Array) -> jax.Array:
        """Returns next-token logits, float32, shape (B, L, V).

        Raises:
            ValueError: the sequence is longer than the context.
        """
        B, L = tokens_BxL.shape
        if self.config.context < L:
            raise ValueError(
                f"tokens have length {L}; allowed: up to the context, {self.config.context}"
            )
        x_BxLxD = self.embedding[...][tokens_BxL] + self.positions[None, :L]
        x_TxD = (self.embedding_multiplier * x_BxLxD).reshape(B * L, -1).astype(self.config.dtype)
        call = nnx.remat(Block.__call__, static_argnums=2) if self.config.remat else Block.__call__
        for block in self.blocks:
            x_TxD = call(block, x_TxD, B)
        logits_TxV = self.readout(self.final_norm(x_TxD))
        return logits_TxV.astype(jnp.float32).reshape(B, L, -1)


def next_token_loss(
    model: Transformer, tokens_BxL: jax.Array, targets_BxL: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns (objective, loss), both in nats per token, float32 scalars.

    ``loss`` is the mean cross-entropy; ``objective`` adds ``z_loss`` times the mean squared
    log-partition and is what training differentiates.
    """
    logits_BxLxV = model(tokens_BxL)
    partition_BxL = jax.nn.logsumexp(logits_BxLxV, axis=-1)
    target_BxLx1 = jnp.take_along_axis(logits_BxLxV, targets_BxL[..., None], axis=-1)
    loss = jnp.mean(partition_BxL - target_BxLx1[..., 0])
    if model.config.z_loss:
        return loss + model.config.z_loss * jnp.mean(partition_BxL**2), loss
    return loss, loss


def roles(model: nnx.Module) -> dict[str, Any]:
    """Returns the role of every parameter, nested as the parameters are.

    The nesting is that of ``nnx.to_pure_dict(nnx.state(model, nnx.Param))``.  Roles are metadata of
    the parameters: ``nnx.Param(value, role="hidden")``.

    Raises:
        ValueError: a parameter has no role; the message names it.
    """
    flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
    found = {path: param.get_metadata().get("role") for path, param in flat}
    for path, role in found.items():
        if role is None:
            raise ValueError(
                f"parameter {'/'.join(map(str, path))} has no role; make it with"
                " nnx.Param(value, role=...), or give roles by a label function"
            )
    nested: dict[str, Any] = unflatten_dict(found)  # type: ignore[no-untyped-call]
    return nested


class Linear(nnx.Linear):
    """``nnx.Linear`` whose output is multiplied by a number."""

    multiplier: float = 1.0

    def __init__(self, *args: Any, multiplier: float = 1.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if multiplier != 1.0 and self.bias is not None:
            raise ValueError("a Linear with a bias takes multiplier 1.0 only")
        self.multiplier = multiplier

    def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
        """Returns ``multiplier * inputs @ kernel + bias``, shape (..., out_features)."""
        y: jax.Array = super().__call__(inputs, out_sharding)
        return y if self.multiplier == 1.0 else y * self.multiplier


def _norm(size: int, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(size, use_bias=False, scale_metadata={"role": "vector"}, rngs=rngs)


def _linear(
    fan_in: int,
    fan_out: int,
    role: str,
    config: TransformerConfig,
    scaling: Parameterization,
    rngs: nnx.Rngs,
) -> Linear:
    return Linear(
        fan_in,
        fan_out,
        use_bias=False,
        dtype=jnp.dtype(config.dtype),
        kernel_init=jax.nn.initializers.normal(scaling.init_std(role, fan_in)),
        kernel_metadata={"role": role},
        multiplier=scaling.multiplier(role, fan_in),
        rngs=rngs,
    )
