"""Text that a run's model writes, byte by byte."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from isolab.model.corpus import Corpus, load_corpus
from isolab.training.compilation_cache import keep_compiled_programs
from isolab.training.config import RunConfig
from isolab.training.watch import ForwardModel
from isolab.training.whole_numbers import whole_number

MOST_BYTES = 100_000


def write(
    config: RunConfig,
    params: Any,
    prompt: str = "def ",
    length: int = 200,
    temperature: float = 0.8,
    seed: int = 0,
    corpus: Corpus | None = None,
) -> str:
    r"""Returns the prompt and what the model writes after it.

    Each byte is drawn with probability :math:`\propto \exp(\mathrm{logit} / T)` and sees the last
    ``config.context`` bytes. One compiled loop draws them all.

    Args:
        config: the run.
        params: its parameters, a nested dict as in :class:`isolab.training.program.TrainState`.
        prompt: where to begin, one character or more; of a long one, all but the last
            ``config.context`` bytes are not seen.
        length: bytes to draw.
        temperature: T, above 0; towards 0 only the likeliest byte is left.
        seed: of the draws; the same seed gives the same text.
        corpus: the one that the config names, if already loaded.

    Returns:
        Prompt and text; bytes that are no UTF-8 are replaced by U+FFFD.

    Raises:
        ValueError: an impossible argument, by name, value and what is allowed; a prompt with bytes
            that the corpus does not have; a model whose outputs are not finite.
    """
    corpus = corpus or load_corpus(config.corpus)
    given = _checked_prompt(prompt, corpus)
    length = whole_number("length", length, 1, MOST_BYTES)
    seed = whole_number("seed", seed, 0, 2**32 - 1)
    if not (isinstance(temperature, int | float) and 0 < temperature < math.inf):
        raise ValueError(f"temperature is {temperature!r}; allowed: a finite number above 0")
    model = ForwardModel.of(config, corpus.vocab_size)
    if _shapes(params) != _shapes(model.shapes):
        raise ValueError(
            f"params are those of another model than one of width {config.width}, depth"
            f" {config.depth}, context {config.context}, mlp_ratio {config.mlp_ratio} and"
            f" {corpus.vocab_size} symbols; allowed: the parameters of this run"
        )
    seen = given[-config.context :]
    window = jnp.array([*seen, *[0] * (config.context - len(seen))], jnp.int32)
    scalars = jnp.int32(len(seen)), jnp.float32(temperature), jnp.uint32(seed)
    drawn, finite = _compiled(model, length)(params, window, *scalars)
    if not finite:
        raise ValueError(
            "params give outputs that are not finite, so nothing can be drawn: did the run diverge?"
        )
    return (given + bytes(drawn.tolist())).decode("utf-8", errors="replace")


def prepare_writing(config: RunConfig, length: int = 200, corpus: Corpus | None = None) -> None:
    """Compiles ahead what :func:`write` needs for this run and length."""
    corpus = corpus or load_corpus(config.corpus)
    _compiled(ForwardModel.of(config, corpus.vocab_size), length)


def is_text(corpus: Corpus) -> bool:
    """Says whether the symbols of a corpus are the bytes of a text.

    Example:
        >>> is_text(load_corpus("zipf_markov:length=1000"))
        False
    """
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


def _shapes(params: Any) -> Any:
    return jax.tree.map(lambda leaf: (tuple(leaf.shape), str(leaf.dtype)), params)


def _checked_prompt(prompt: str, corpus: Corpus) -> bytes:
    if not isinstance(prompt, str) or not prompt:
        raise ValueError(f"prompt is {prompt!r}; allowed: a text of one character or more")
    given = prompt.encode("utf-8", errors="replace")
    if max(given) >= corpus.vocab_size:
        raise ValueError(
            f"prompt {prompt!r} holds byte {max(given)}; allowed, as corpus {corpus.name!r} has"
            f" {corpus.vocab_size} symbols: bytes below {corpus.vocab_size}"
        )
    return given
