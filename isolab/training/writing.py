"""Text that a run's model writes, byte by byte."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from isolab.model.corpus import Corpus, load_corpus
from isolab.training.compilation_cache import keep_compiled_programs
from isolab.training.config import RunConfig
from isolab.training.watch import ForwardModel

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
    _check_whole("length", length, 1, MOST_BYTES)
    _check_whole("seed", seed, 0, 2**32 - 1)
    if not (isinstance(temperature, int | float) and 0 < temperature < math.inf):
        raise ValueError(f"temperature is {temperature!r}; allowed: a finite number above 0")
    seen = given[-config.context :]
    window = jnp.array([*seen, *[0] * (config.context - len(seen))], jnp.int32)
    writer = _compiled(_written_by(config), corpus.vocab_size, length)
    if _shapes(params) != _shapes(writer.params):
        raise ValueError(
            f"params are those of another model than one of width {config.width}, depth"
            f" {config.depth}, context {config.context}, mlp_ratio {config.mlp_ratio} and"
            f" {corpus.vocab_size} symbols; allowed: the parameters of this run"
        )
    drawn, finite = writer.draw(
        params, window, jnp.int32(len(seen)), jnp.float32(temperature), jnp.uint32(seed)
    )
    if not finite:
        raise ValueError(
            "params give outputs that are not finite, so nothing can be drawn: did the run diverge?"
        )
    return (given + bytes(drawn.tolist())).decode("utf-8", errors="replace")


def prepare_writing(config: RunConfig, length: int = 200, corpus: Corpus | None = None) -> None:
    """Compiles ahead what :func:`write` needs for this run and length."""
    corpus = corpus or load_corpus(config.corpus)
    _compiled(_written_by(config), corpus.vocab_size, length)


def is_text(corpus: Corpus) -> bool:
    """Says whether the symbols of a corpus are the bytes of a text.

    Example:
        >>> is_text(load_corpus("zipf_markov:length=1000"))
        False
    """
    return corpus.vocab_size == 256 and corpus.entropy_rate is None


class _Writer(NamedTuple):
    draw: Any  # compiled
    params: Any  # shapes of those that it takes


@functools.lru_cache(maxsize=16)
def _compiled(config: RunConfig, vocab_size: int, length: int) -> _Writer:
    keep_compiled_programs()
    model_of = ForwardModel(config, vocab_size)
    context = config.context

    def draw(params: Any, window: Any, filled: Any, temperature: Any, seed: Any) -> Any:
        model = model_of(params)

        def next_byte(carry: Any, key: jax.Array) -> Any:
            window, filled, finite = carry
            # What comes after the filled part is not seen: attention is causal.
            logits = model(window[None])[0, filled - 1]
            finite &= jnp.isfinite(logits).all()
            byte = jax.random.categorical(key, logits / temperature).astype(jnp.int32)
            full = filled == context
            window = jnp.where(full, jnp.roll(window, -1), window)
            window = window.at[jnp.where(full, context - 1, filled)].set(byte)
            return (window, jnp.minimum(filled + 1, context), finite), byte

        keys = jax.random.split(jax.random.key(seed), length)
        (_, _, finite), drawn = jax.lax.scan(next_byte, (window, filled, jnp.array(True)), keys)
        return drawn, finite

    def shape(dtype: Any, *sizes: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, dtype)

    scalars = [shape(dtype) for dtype in (jnp.int32, jnp.float32, jnp.uint32)]
    params = jax.tree.map(
        lambda leaf: shape(leaf.dtype, *leaf.shape),
        nnx.to_pure_dict(nnx.state(model_of.shape, nnx.Param)),
    )
    arguments = (params, shape(jnp.int32, context), *scalars)
    return _Writer(jax.jit(draw).lower(*arguments).compile(), params)


def _shapes(params: Any) -> Any:
    return jax.tree.map(lambda leaf: (tuple(leaf.shape), str(leaf.dtype)), params)


def _written_by(config: RunConfig) -> RunConfig:
    """Returns a config that is equal for runs whose models are of one shape and multipliers."""
    model = dataclasses.asdict(config.model_config(vocab_size=1))
    del model["vocab_size"]
    return RunConfig(parameterization=config.parameterization, **model)


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


def _check_whole(name: str, value: int, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{name} is {value!r}; allowed: a whole number from {low} to {high}")
