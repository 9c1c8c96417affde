"""What a user would write: the same model in plain flax.nnx, optax.adam, one jitted step a call."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from isolab.model.corpus import Corpus, validation_windows
from isolab.training.config import RunConfig


class PlainBlock(nnx.Module):
    """Pre-LayerNorm attention and MLP on (B, L, D) activations."""

    def __init__(self, width: int, heads: int, mlp_ratio: int, rngs: nnx.Rngs):
        self.heads = heads
        self.attention_norm = nnx.LayerNorm(width, use_bias=False, rngs=rngs)
        self.qkv = nnx.Linear(width, 3 * width, use_bias=False, rngs=rngs)
        self.out = nnx.Linear(width, width, use_bias=False, rngs=rngs)
        self.mlp_norm = nnx.LayerNorm(width, use_bias=False, rngs=rngs)
        self.up = nnx.Linear(width, mlp_ratio * width, use_bias=False, rngs=rngs)
        self.down = nnx.Linear(mlp_ratio * width, width, use_bias=False, rngs=rngs)

    def __call__(self, x_BxLxD: jax.Array) -> jax.Array:
        """Returns the residual stream, (B, L, D)."""
        B, L, D = x_BxLxD.shape
        qkv = self.qkv(self.attention_norm(x_BxLxD)).reshape(B, L, 3, self.heads, -1)
        y = jax.nn.dot_product_attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], is_causal=True)
        x_BxLxD = x_BxLxD + self.out(y.reshape(B, L, D))
        return x_BxLxD + self.down(nnx.gelu(self.up(self.mlp_norm(x_BxLxD))))


class PlainTransformer(nnx.Module):
    """The model of :class:`isolab.Transformer` with flax's own layers and initializers."""

    def __init__(self, config: RunConfig, vocab_size: int, rngs: nnx.Rngs):
        width = config.width
        self.embedding = nnx.Embed(vocab_size, width, rngs=rngs)
        self.positions = nnx.Embed(config.context, width, rngs=rngs)
        self.blocks = nnx.List(
            [
                PlainBlock(width, width // config.head_size, config.mlp_ratio, rngs)
                for _ in range(config.depth)
            ]
        )
        self.final_norm = nnx.LayerNorm(width, use_bias=False, rngs=rngs)
        self.readout = nnx.Linear(width, vocab_size, use_bias=False, rngs=rngs)

    def __call__(self, tokens_BxL: jax.Array) -> jax.Array:
        """Returns logits, (B, L, V)."""
        x_BxLxD = self.embedding(tokens_BxL)
        x_BxLxD = x_BxLxD + self.positions(jnp.arange(tokens_BxL.shape[1]))[None]
        for block in self.blocks:
            x_BxLxD = block(x_BxLxD)
        return self.readout(self.final_norm(x_BxLxD))


class PlainLoop:
    """Python's loop over a jitted step, batches drawn by NumPy; parameters are donated.

    The losses stay on the device until the end, so that the loop does not wait in each step.
    """

    def __init__(self, config: RunConfig, corpus: Corpus) -> None:
        self.config, self.corpus = config, corpus
        self._shape = nnx.split(
            nnx.eval_shape(lambda: PlainTransformer(config, corpus.vocab_size, nnx.Rngs(0)))
        )[0]
        self._optimizer = optax.adam(config.learning_rate, b1=0.9, b2=0.95)
        self._init = jax.jit(self._fresh)
        self._step = jax.jit(self._trained, donate_argnums=(0, 1))
        self._evaluate = jax.jit(self._loss)
        self._held_out = [
            jnp.asarray(w)
            for w in validation_windows(corpus, config.validation_windows, config.context)
        ]
        self._state: Any = None

    def train(self, steps: int, seed: int = 0) -> tuple[list[float], float]:
        """Trains a fresh model; returns each step's loss and the validation loss, nats/token."""
        self._state = self._init(seed)
        losses = self.advance(steps)
        return losses, float(self._evaluate(self._state[0], *self._held_out))

    def advance(self, steps: int) -> list[float]:
        """Trains on from where it stands, and returns each step's loss."""
        if self._state is None:
            self._state = self._init(0)
        draw = np.random.default_rng(0)
        tokens, context = self.corpus.train, self.config.context
        losses = []
        for _ in range(steps):
            starts = draw.integers(len(tokens) - context, size=self.config.batch_size)
            batch = tokens[starts[:, None] + np.arange(context + 1)].astype(np.int32)
            *self._state, loss = self._step(*self._state, batch[:, :-1], batch[:, 1:])
            losses.append(loss)
        return [float(loss) for loss in losses]

    def _fresh(self, seed: Any) -> tuple[Any, Any]:
        model = PlainTransformer(
            self.config, self.corpus.vocab_size, nnx.Rngs(jax.random.key(seed))
        )
        params = nnx.state(model)
        return params, self._optimizer.init(params)

    def _loss(self, params: Any, inputs: jax.Array, targets: jax.Array) -> jax.Array:
        logits = nnx.merge(self._shape, params)(inputs)
        losses: jax.Array = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        return losses.mean()

    def _trained(
        self, params: Any, state: Any, inputs: jax.Array, targets: jax.Array
    ) -> tuple[Any, Any, jax.Array]:
        loss, grads = jax.value_and_grad(self._loss)(params, inputs, targets)
        updates, state = self._optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss
