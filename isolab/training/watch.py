"""Training a run as ever while its parameters, state and batches are looked at on the way."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from isolab.model.corpus import Corpus, load_corpus, validation_windows
from isolab.model.fields import whole_numbers
from isolab.model.transformer import Transformer, TransformerConfig, roles
from isolab.training.config import RunConfig
from isolab.training.program import (
    SingleRun,
    TrainState,
    batch_of,
    device_tokens,
    filled,
    keep_compiled_programs,
    keys,
    program_of,
    run_values,
)


@dataclasses.dataclass(frozen=True)
class ForwardModel:
    """Turns a run's parameters, a nested dict, into its model.

    Equal and hashable by value, so that compiled functions may take it as a static argument.  The
    model neither measures factors nor recomputes blocks: no number of a forward pass changes.
    """

    config: TransformerConfig
    parameterization: str

    @classmethod
    def of(cls, config: RunConfig, vocab_size: int) -> ForwardModel:
        """Returns that of a run on a corpus of so many symbols."""
        model = dataclasses.replace(config.model_config(vocab_size), remat=False)
        return cls(model, config.parameterization)

    @functools.cached_property
    def shape(self) -> Transformer:
        """The model, its parameters without values."""
        make = functools.partial(Transformer, self.config, self.parameterization)
        model: Transformer = nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0)))
        return model

    @functools.cached_property
    def shapes(self) -> Any:
        """The parameters without values, a nested dict."""
        return nnx.to_pure_dict(nnx.state(self.shape, nnx.Param))

    @functools.cached_property
    def roles(self) -> dict[str, str]:
        """The role of every parameter by its layer's name, in the order of :func:`by_layer`."""
        return by_layer(roles(self.shape))

    def __call__(self, params: Any) -> Transformer:
        """Returns the model with these parameters; also under ``jax.jit``."""
        graphdef, empty = nnx.split(self.shape)
        return nnx.merge(graphdef, filled(empty, params))


class Observation(NamedTuple):
    """A run after some of its steps; its arrays stay valid while the run goes on."""

    config: RunConfig
    step: int  # updates done, from 0
    model: ForwardModel  # turns parameters into the model
    state: TrainState  # parameters are a nested dict of float32 arrays
    initial: Any  # parameters at step 0
    previous: Any  # parameters before the last update; at step 0 the initial ones
    tokens: jax.Array  # the corpus's training tokens, on the device

    @property
    def params(self) -> Any:
        """The parameters now."""
        return self.state.params

    @property
    def batch(self) -> tuple[jax.Array, jax.Array]:
        """Inputs and targets of the update that comes next, int32 (batch_size, context) each."""
        found: tuple[jax.Array, jax.Array]
        found = _batch(program_of(self.config), self.config.seed, self.step, self.tokens)
        return found


def watch(
    config: RunConfig, steps: Sequence[int], corpus: Corpus | None = None
) -> Iterator[Observation]:
    """Trains the run as ever, and yields it at the steps asked for.

    Schedule, batches, rates and optimizer are the run's own, and the run goes no further than the
    last step.  ``corpus`` is the one that the config names, if already loaded.

    Raises:
        ValueError: no steps, a step twice, or one outside the run.
    """
    wanted = whole_numbers("steps", steps, 0, config.steps)
    corpus = corpus or load_corpus(config.corpus)
    brief = dataclasses.replace(config, evaluate_every=1, validation_windows=1)
    init, advance = _compiled(program_of(brief), corpus.vocab_size)
    model = ForwardModel.of(config, corpus.vocab_size)
    traced, tokens = run_values(brief), device_tokens(corpus)
    windows = jax.device_put(validation_windows(corpus, 1, config.context))
    state = init(traced, windows)
    initial = previous = state.params
    for step in range(wanted[-1] + 1):
        if step:
            previous = state.params
            state = advance(state, traced, jnp.int32(step - 1), tokens, windows)
        if step in wanted:
            yield Observation(config, step, model, state, initial, previous, tokens)


def by_layer(params: Any, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
    """Returns a nested dict like a run's parameters as one of layers, in the leaves' order.

    Kernels and gains go by the path of their layer, other parameters by their own; ``is_leaf`` is
    as in ``jax.tree.leaves``.

    Example:
        >>> by_layer({"blocks": {0: {"mlp": {"up": {"kernel": 1}}}}, "embedding": 2})
        {'blocks/0/mlp/up': 1, 'embedding': 2}
    """
    found = {}
    for path, leaf in jax.tree.leaves_with_path(params, is_leaf):
        names = [str(part.key) for part in path]
        found["/".join(names[:-1] if names[-1] in ("kernel", "scale") else names)] = leaf
    return found


@functools.lru_cache(maxsize=16)
def _compiled(static: RunConfig, vocab_size: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Returns a run's beginning and its step, which return no losses: no forward pass for these."""
    keep_compiled_programs()
    run = SingleRun(static, vocab_size)
    init = jax.jit(lambda *arguments: run.init(*arguments)[0])
    return init, jax.jit(lambda *arguments: run.advance(*arguments)[0])


@functools.partial(jax.jit, static_argnums=0)
def _batch(static: RunConfig, seed: Any, step: Any, tokens: Any) -> tuple[jax.Array, jax.Array]:
    _, data_key = keys(seed)
    return batch_of(static, data_key, step, tokens)
