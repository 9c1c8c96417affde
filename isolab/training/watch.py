"""A real run, its parameters handed out at chosen steps."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from isolab.model.corpus import Corpus, load_corpus, validation_windows
from isolab.model.transformer import Transformer
from isolab.training.compilation_cache import keep_compiled_programs
from isolab.training.config import RunConfig
from isolab.training.program import program_of, run_values, single_run


class Moment(NamedTuple):
    """A run's parameters at one step, each a nested dict of arrays.

    Attributes:
        step: updates done, from 0.
        params: now.
        initial: at step 0.
        previous: before the last update; at step 0 they are ``params``.
    """

    step: int
    params: Any
    initial: Any
    previous: Any


def watch(
    config: RunConfig, steps: Sequence[int], corpus: Corpus | None = None
) -> Iterator[Moment]:
    """Trains the run as ever, and yields it at the steps asked for.

    Schedule, batches, rates and optimizer are the run's own, and the run goes no further than the
    last step.  Parameters are float32 arrays on the device, and stay valid after the next step.

    Args:
        config: the run; how often it evaluates does not matter here.
        steps: which steps, 0 (before training) to ``config.steps``.
        corpus: the one that the config names, if already loaded.

    Raises:
        ValueError: no steps, a step twice, or one outside the run.
    """
    wanted = checked_whole("steps", steps, 0, config.steps)
    corpus = corpus or load_corpus(config.corpus)
    config = dataclasses.replace(config, evaluate_every=1, validation_windows=1)
    init, advance = _compiled(program_of(config), corpus.vocab_size)
    traced, tokens = run_values(config), jnp.asarray(corpus.train)
    windows = held_out(corpus, 1, config.context)
    state = init(traced, windows)
    params = initial = previous = _copy(state.params)  # a step may write over its state
    for step in range(max(wanted) + 1):
        if step:
            if step in wanted:
                previous = params if step - 1 in wanted else _copy(state.params)
            state = advance(state, traced, jnp.int32(step - 1), tokens, windows)
        if step in wanted:
            params = _copy(state.params) if step else initial
            yield Moment(step, params, initial, previous)


def held_out(corpus: Corpus, count: int, context: int) -> tuple[jax.Array, jax.Array]:
    """Returns inputs and targets of held-out windows, the same in every run; (count, context)."""
    inputs, targets = validation_windows(corpus, count, context)
    return jnp.asarray(inputs, jnp.int32), jnp.asarray(targets, jnp.int32)


class ForwardModel:
    """Turns a run's parameters, a nested dict, into its model.

    The model neither measures factors nor recomputes blocks: no number of a forward pass changes.

    Attributes:
        shape: the model, its parameters without values.
    """

    def __init__(self, config: RunConfig, vocab_size: int) -> None:
        model_config = dataclasses.replace(config.model_config(vocab_size), remat=False)
        self.shape: Transformer = nnx.eval_shape(
            lambda: Transformer(model_config, config.parameterization, rngs=nnx.Rngs(0))
        )
        self._graphdef, self._empty = nnx.split(self.shape)

    def __call__(self, params: Any) -> Transformer:
        """Returns the model with these parameters; also under ``jax.jit``."""
        state = jax.tree.map(lambda x: x, self._empty)
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(self._graphdef, state)


def checked_whole(
    name: str, values: Sequence[int], low: int, high: int | None = None, at_least: int = 1
) -> list[int]:
    """Returns the values as a sorted list of plain ints.

    Raises:
        ValueError: not whole numbers of ``low`` to ``high``, too few, or one given twice.

    Example:
        >>> checked_whole("widths", [64, 32], low=1, at_least=2)
        [32, 64]
        >>> checked_whole("widths", [64], low=1, at_least=2)
        Traceback (most recent call last):
        ValueError: widths is [64]; allowed: 2 or more different whole numbers of 1 or more
    """
    reach = f"of {low} or more" if high is None else f"from {low} to {high}"
    listed = list(values) if isinstance(values, Sequence | range | np.ndarray) else None
    right = listed is not None and all(
        isinstance(v, int | np.integer)
        and not isinstance(v, bool)
        and low <= v
        and (high is None or v <= high)
        for v in listed
    )
    if not right or listed is None or len(set(listed)) != len(listed) or len(listed) < at_least:
        raise ValueError(
            f"{name} is {values!r}; allowed: {at_least} or more different whole numbers {reach}"
        )
    return sorted(map(int, listed))


@functools.lru_cache(maxsize=16)
def _compiled(static: RunConfig, vocab_size: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Returns a run's beginning and its step, compiled once for all runs that share a program.

    They return no losses, and the compiler leaves their forward pass out.
    """
    keep_compiled_programs()
    program = single_run(static, vocab_size)
    init = jax.jit(lambda *arguments: program.init(*arguments)[0])
    return init, jax.jit(lambda *arguments: program.advance(*arguments)[0], donate_argnums=0)


@jax.jit
def _copy(params: Any) -> Any:
    return jax.tree.map(jnp.copy, params)
