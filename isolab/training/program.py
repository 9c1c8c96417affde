"""The compiled functions of a run: its start, and an evaluation interval of its training.

Runs that differ only in traced values (rate, seed, eps, betas, decay, gammas, loss scale, horizon)
share one program and are trained together (:mod:`isolab.training.runs_axis`).  An interval is one
scan over its steps, so that no Python runs within it.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from isolab.model.corpus import Corpus, load_corpus, sample_batch, validation_windows
from isolab.model.transformer import Transformer, next_token_loss, roles
from isolab.optimizers.catalog import entry, optimizer
from isolab.optimizers.iso import growing_interval, refresh_due
from isolab.optimizers.labels import labels_from_roles
from isolab.optimizers.leaves import by_path
from isolab.optimizers.per_layer import scale_by_role
from isolab.optimizers.products import value_grad_factors
from isolab.training.config import TRACED, RunConfig
from isolab.training.runs_axis import device_count, on_each, over_runs, padded

_INTEGERS = ("seed", "steps", "warmup_steps")
_VALUES = (*_INTEGERS, "learning_rate", "loss_scale", "atan2_a", "atan2_b")
"""Of the traced fields, those that enter a program as they are."""


class TrainState(NamedTuple):
    """What training carries from step to step."""

    params: Any  # nested dict of arrays
    opt_state: Any


class Program(NamedTuple):
    """The compiled functions that runs of one shape share; they take stacked runs."""

    init: Callable[..., Any]  # (traced, validation) -> (state, validation loss)
    advance: Callable[..., Any]  # (state, traced, step, tokens, validation) -> (state, losses, ...)


class Placement(NamedTuple):
    """Functions that say where a step's arrays lie on a mesh; by default nothing is said."""

    batch: Callable[[Any], Any] = lambda batch: batch  # (inputs, targets), each (B, L)
    state: Callable[[Any], Any] = lambda state: state  # a TrainState
    params: Callable[[Any], Any] = lambda params: params  # as the model's layers take them


def make_model(config: RunConfig, vocab_size: int, key: jax.Array) -> Transformer:
    """Returns the run's freshly initialized model."""
    rngs = nnx.Rngs(params=key)
    return Transformer(config.model_config(vocab_size), config.parameterization, rngs=rngs)


def make_optimizer(
    config: RunConfig, traced: dict[str, Any], parameter_roles: Any
) -> optax.GradientTransformationExtraArgs:
    """Returns the run's optimizer with its schedule and per-layer rates.

    ``traced`` are the values of the traced fields, numbers or scalars; roles are nested like the
    parameters.
    """

    def learning_rate(count: Any) -> jax.Array:
        factor = schedule_factor(config.schedule, count, traced["steps"], traced["warmup_steps"])
        rate: jax.Array = traced["learning_rate"] * factor
        return rate

    options: dict[str, Any] = {name: traced[name] for name in _hyperparameters(config)}
    if config.epsilons:
        options["eps"] = jax.tree.map(lambda role: traced[f"eps_{role}"], parameter_roles)
    if entry(config.optimizer).takes_moment_dtype:
        options["moment_dtype"] = jnp.dtype(config.moment_dtype)
    if config.optimizer == "adam_atan2":
        options |= {"a": traced["atan2_a"], "b": traced["atan2_b"]}
    if config.optimizer in ("iso", "isoadam"):
        options |= {
            "damping": config.iso_damping,
            "refresh_every": refresh_rule(config),
            "block_size": _block_size(config),
            "root": config.iso_root,
        }
    if config.optimizer == "isoadam":
        options["size"] = config.iso_size
    labels = labels_from_roles(parameter_roles)
    rule = optimizer(config.optimizer, learning_rate, labels=labels, **options)
    rates = {role: traced[f"rate_{role}"] for role in config.rates}
    return optax.with_extra_args_support(optax.chain(rule, scale_by_role(rates, parameter_roles)))


def schedule_factor(kind: str, step: Any, steps: Any, warmup_steps: Any) -> jax.Array:
    """Returns the factor on the peak rate at ``step`` (0 for the first update).

    Linear warm-up to 1 over ``warmup_steps``, then a cosine or a straight line to 0 at ``steps``,
    or 1 for "constant".

    Example:
        >>> [round(float(schedule_factor("linear", t, 6, 2)), 2) for t in range(6)]
        [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    """
    t = jnp.asarray(step, jnp.float32)
    warm = jnp.minimum(1.0, (t + 1) / jnp.maximum(warmup_steps, 1))
    done = jnp.clip((t - warmup_steps) / jnp.maximum(steps - warmup_steps, 1), 0.0, 1.0)
    decay = {
        "constant": jnp.ones_like(done),
        "linear": 1 - done,
        "cosine": 0.5 * (1 + jnp.cos(jnp.pi * done)),
    }[kind]
    return warm * decay


def program_of(config: RunConfig) -> RunConfig:
    """Returns the config with its traced fields at their defaults: equal for runs that batch."""
    defaults: dict[str, Any] = {
        f.name: f.default for f in dataclasses.fields(RunConfig) if f.name in TRACED
    }
    every = config.evaluate_every
    return dataclasses.replace(config, **defaults | {"steps": every, "warmup_steps": 0})


def arguments_of(
    configs: Sequence[RunConfig], corpus: Corpus | None = None
) -> tuple[Program, tuple[Any, Any, Any]]:
    """Returns the program of runs that share one, and its traced values, tokens and validation."""
    static = program_of(configs[0])
    corpus = corpus or load_corpus(static.corpus)
    devices = min(len(configs), device_count())
    program = compile_program(static, corpus.vocab_size, devices)
    traced = stack_traced(padded(configs, devices))
    windows = validation_windows(corpus, static.validation_windows, static.context)
    validation = on_each(jax.device_put(windows), devices)
    return program, (traced, device_tokens(corpus, devices), validation)


@functools.lru_cache(maxsize=64)
def compile_program(static: RunConfig, vocab_size: int, devices: int = 1) -> Program:
    """Returns the compiled functions for every run with this static part, see `program_of`.

    The runs are divided among local devices; their number is a multiple of the devices'.
    """
    keep_compiled_programs()
    run = SingleRun(static, vocab_size)
    stacked = jax.tree.map(_is_stacked, run.abstract_state())
    init = over_runs(run.init, (True, False), (stacked, True), devices)
    arguments = (stacked, True, False, False, False)
    advance = over_runs(run.advance, arguments, (stacked, True, True), devices)
    return Program(jax.jit(init), jax.jit(advance, donate_argnums=0))


def _is_stacked(leaf: Any) -> bool:
    """A step counter (a whole scalar) that runs share keeps what depends on it a conditional."""
    return leaf.shape != () or not jnp.issubdtype(leaf.dtype, jnp.integer)


class SingleRun:
    """The functions of a :class:`Program` for one run, neither stacked nor compiled.

    Args:
        static: as for :func:`compile_program`.
        vocab_size: of the corpus.
        place: where the arrays of a step lie.
    """

    def __init__(self, static: RunConfig, vocab_size: int, place: Placement | None = None) -> None:
        self.static, self.vocab_size, self.place = static, vocab_size, place or Placement()
        shape = nnx.eval_shape(lambda: make_model(static, vocab_size, jax.random.key(0)))
        self.roles = roles(shape)
        self.graphdef, *states = nnx.split(shape, nnx.Param, ...)
        self.shape, rest = states
        if jax.tree.leaves(rest):
            raise ValueError("the model holds state that is no parameter")
        exact = entry(static.optimizer).takes_factors and static.iso_factors == "exact"
        self.measured = [path for path, role in by_path(self.roles).items() if role == "hidden"]
        self.measured = self.measured if exact else []

    def init(self, traced: dict[str, Any], windows: Any) -> tuple[TrainState, jax.Array]:
        """Returns the state at step 0, and its validation loss."""
        model_key, _ = keys(traced["seed"])
        model = make_model(self.static, self.vocab_size, model_key)
        fresh = nnx.to_pure_dict(nnx.state(model, nnx.Param))
        tx = make_optimizer(self.static, traced, self.roles)
        return TrainState(fresh, tx.init(fresh)), self._validation_loss(fresh, windows)

    def abstract_state(self) -> Any:
        """Returns the shapes and dtypes of the state."""
        window = jax.ShapeDtypeStruct((1, self.static.context), jnp.int32)
        return jax.eval_shape(self.init, run_values(self.static), (window, window))[0]

    def advance(
        self, state: TrainState, traced: dict[str, Any], start: jax.Array, tokens: jax.Array,
        windows: Any,
    ) -> tuple[TrainState, jax.Array, jax.Array]:  # fmt: skip
        """Returns the state after an interval, its steps' losses, and the validation loss."""
        tx = make_optimizer(self.static, traced, self.roles)
        _, data_key = keys(traced["seed"])
        step = functools.partial(self._step, tx, traced["loss_scale"], data_key, tokens)
        steps = start + jnp.arange(self.static.evaluate_every)
        state, losses = jax.lax.scan(step, state, steps)
        return state, losses, self._validation_loss(state.params, windows)

    def _step(
        self, tx: Any, loss_scale: Any, data_key: Any, tokens: Any, state: TrainState, t: jax.Array
    ) -> tuple[TrainState, jax.Array]:
        batch = self.place.batch(batch_of(self.static, data_key, t, tokens))

        def scaled(params: Any, *batch: jax.Array) -> tuple[jax.Array, jax.Array]:
            value, loss = self._objective(params, *batch)
            return loss_scale * value, loss

        factors = None
        if self.measured:
            (_, loss), grads, factors = value_grad_factors(
                scaled, self.measured, has_aux=True, block_size=_block_size(self.static),
                max_side=None, max_tokens=self.static.iso_tokens or None,
            )(state.params, *batch, due=refresh_due(t, refresh_rule(self.static)))  # fmt: skip
        else:
            (_, loss), grads = jax.value_and_grad(scaled, has_aux=True)(state.params, *batch)
        updates, opt_state = tx.update(grads, state.opt_state, state.params, factors=factors)
        params = optax.apply_updates(state.params, updates)
        return self.place.state(TrainState(params, opt_state)), loss

    def _objective(
        self, params: Any, inputs: jax.Array, targets: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        model = nnx.merge(self.graphdef, filled(self.shape, self.place.params(params)))
        return next_token_loss(model, inputs, targets)

    def _validation_loss(self, params: Any, windows: tuple[jax.Array, jax.Array]) -> jax.Array:
        return self._objective(params, *windows)[1]


def filled(like: nnx.State[Any, Any], values: Any) -> nnx.State[Any, Any]:
    """Returns a state like another, which it leaves alone, with values of a nested dict."""
    state: nnx.State[Any, Any] = jax.tree.map(lambda x: x, like)
    nnx.replace_by_pure_dict(state, values)
    return state


def run_values(config: RunConfig) -> dict[str, jax.Array]:
    """Returns the values of one run's traced fields, scalars."""
    return {name: values[0] for name, values in stack_traced([config]).items()}


def stack_traced(configs: Sequence[RunConfig]) -> dict[str, jax.Array]:
    """Returns the values of the runs' traced fields by name, shape (runs,), int32 or float32."""
    rows = [
        {name: getattr(config, name) for name in _VALUES}
        | {name: config.hyperparameters[name] for name in _hyperparameters(config)}
        | {f"rate_{role}": rate for role, rate in config.rates.items()}
        | {f"eps_{role}": eps for role, eps in config.epsilons.items()}
        for config in configs
    ]
    return {
        name: jnp.asarray(
            [row[name] for row in rows], jnp.int32 if name in _INTEGERS else jnp.float32
        )
        for name in rows[0]
    }


@functools.lru_cache(maxsize=4)
def device_tokens(corpus: Corpus, devices: int = 1) -> jax.Array:
    """Returns the corpus's training tokens on each device."""
    tokens: jax.Array = on_each(jnp.asarray(corpus.train), devices)
    return tokens


def keys(seed: Any) -> tuple[jax.Array, jax.Array]:
    """Returns the keys of a run's initialization and of its batches."""
    model_key, data_key = jax.random.split(jax.random.key(seed))
    return model_key, data_key


def batch_of(
    config: RunConfig, data_key: jax.Array, step: Any, tokens: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns inputs and targets, (B, L) each, of the update that follows ``step`` updates."""
    key = jax.random.fold_in(data_key, step)
    return sample_batch(tokens, key, config.batch_size, config.context)


def refresh_rule(config: RunConfig) -> Any:
    """Returns IsoAdam's refresh interval, see :func:`isolab.optimizers.iso.refresh_due`."""
    return config.iso_refresh or growing_interval()


def _hyperparameters(config: RunConfig) -> list[str]:
    """Names of those that are one number for all parameters."""
    return [name for name in config.hyperparameters if name != "eps" or not config.epsilons]


def _block_size(config: RunConfig) -> Any:
    return "shorter" if config.iso_blocks == "shorter" else None


@functools.cache
def keep_compiled_programs() -> None:
    """Switches on JAX's persistent compilation cache, unless the user has chosen for themselves.

    The user has chosen where ``JAX_COMPILATION_CACHE_DIR`` or the option of that name is set, or
    ``JAX_ENABLE_COMPILATION_CACHE`` is false.  Otherwise programs are kept in
    ``$ISOLAB_PROGRAMS``, by default ``isolab/programs`` of the user's cache folder.  JAX keys them
    by program, compiler, options and device, so that nothing stale is ever run; a folder that
    cannot be written only means compiling again.
    """
    options: Any = jax.config
    if options.jax_compilation_cache_dir is not None or not options.jax_enable_compilation_cache:
        return
    folder = os.environ.get("ISOLAB_PROGRAMS")
    if folder is None:
        from platformdirs import user_cache_path

        folder = str(user_cache_path("isolab") / "programs")
    options.update("jax_compilation_cache_dir", folder)
    options.update("jax_persistent_cache_min_compile_time_secs", 0.1)  # fewer, larger files
