"""Text that a run's model writes, byte by byte."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from isolab.model.corpus import Corpus, load_corpus
from isolab.training.config import RunConfig
from isolab.training.program import keep_compiled_programs
from isolab.training.watch import ForwardModel

PROMPT = b"def "
TEMPERATURE = 0.8
SEED = 0  # of the draws


def write(config: RunConfig, params: Any, length: int = 200, corpus: Corpus | None = None) -> str:
    r"""Returns the prompt and so many bytes that the model writes after it.

    Each byte is drawn with probability :math:`\propto \exp(\mathrm{logit} / T)` and sees the last
    ``config.context`` bytes. One compiled loop draws them all. ``params`` are a nested dict as in
    :class:`isolab.training.program.TrainState`; bytes that are no UTF-8 are replaced by U+FFFD.

    Raises:
        ValueError: the model's outputs are not finite.
    """
    corpus = corpus or load_corpus(config.corpus)
    seen = PROMPT[-config.context :]
    window = jnp.array([*seen, *[0] * (config.context - len(seen))], jnp.int32)
    scalars = jnp.int32(len(seen)), jnp.float32(TEMPERATURE), jnp.uint32(SEED)
    draw = _compiled(ForwardModel.of(config, corpus.vocab_size), length)
    drawn, finite = draw(params, window, *scalars)
    if not finite:
        raise ValueError(
            "params give outputs that are not finite, so nothing can be drawn: did the run diverge?"
        )
    return (PROMPT + bytes(drawn.tolist())).decode("utf-8", errors="replace")


def prepare_writing(config: RunConfig, length: int = 200, corpus: Corpus | None = None) -> None:
    """Compiles ahead what :func:`write` needs for this run and length."""
    corpus = corpus or load_corpus(config.corpus)
    _compiled(ForwardModel.of(config, corpus.vocab_size), length)


def is_text(corpus: Corpus) -> bool:
    """Says whether the symbols of a corpus are the bytes of a text."""
    return corpus.vocab_size == 256 and corpus.entropy_rate is None


@functools.lru_cache(maxsize=16)
def _compiled(model: ForwardModel, length: int) -> Any:
    """Returns the compiled :func:`_draw` of one model and length."""
    keep_compiled_programs()
    shape: Any = jax.ShapeDtypeStruct
    params = jax.tree.map(lambda leaf: shape(leaf.shape, leaf.dtype), model.shapes)
    scalars = (shape((), dtype) for dtype in (jnp.int32, jnp.float32, jnp.uint32))
    window = shape((model.config.context,), jnp.int32)
    draw = jax.jit(functools.partial(_draw, model, length))
    return draw.lower(params, window, *scalars).compile()


def _draw(
    model: ForwardModel, length: int, params: Any, window: Any, filled: Any, temperature: Any,
    seed: Any,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """Returns the bytes drawn, int32 (length,), and whether all outputs were finite."""
    forward, context = model(params), model.config.context

    def next_byte(carry: Any, key: jax.Array) -> Any:
        window, filled, finite = carry
        # What comes after the filled part is not seen: attention is causal.
        logits = forward(window[None])[0, filled - 1]
        finite &= jnp.isfinite(logits).all()
        byte = jax.random.categorical(key, logits / temperature).astype(jnp.int32)
        full = filled == context
        window = jnp.where(full, jnp.roll(window, -1), window)
        window = window.at[jnp.where(full, context - 1, filled)].set(byte)
        return (window, jnp.minimum(filled + 1, context), finite), byte

    keys = jax.random.split(jax.random.key(seed), length)
    (_, _, finite), drawn = jax.lax.scan(next_byte, (window, filled, jnp.array(True)), keys)
    return drawn, finite
