"""Training runs: configs to loss curves, one compiled scan per evaluation interval.

Runs that differ only in traced values (rate, seed, eps, betas, decay, gammas, loss scale, horizon)
share one compiled program and are trained together (:mod:`isolab.training.runs_axis`).  Between two
evaluations no Python runs.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.linalg  # noqa: F401  jaxlib calls its LAPACK, and a limit binds only what is loaded
from flax import nnx
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from isolab.model.corpus import Corpus, load_corpus, sample_batch, validation_windows
from isolab.model.transformer import Transformer, next_token_loss, roles
from isolab.optimizers.catalog import entry, optimizer
from isolab.optimizers.iso import growing_interval, refresh_due
from isolab.optimizers.labels import labels_from_roles
from isolab.optimizers.linear import Factor, FactorDue, factors_by_kernel, measure_factors
from isolab.optimizers.per_layer import scale_by_role
from isolab.training.compilation_cache import keep_compiled_programs
from isolab.training.config import TRACED, RunConfig
from isolab.training.devices import device_count, on_each, padded, split_runs
from isolab.training.interrupt import when_ready
from isolab.training.result import Result, result_of
from isolab.training.schedule import schedule_factor

Progress = Callable[["Report"], None]


class Report(NamedTuple):
    """What a progress callback receives after each evaluation interval."""

    step: int  # steps done
    steps: int  # steps in all
    train_loss: np.ndarray  # (runs,) mean over the interval
    validation_loss: np.ndarray  # (runs,)


class TrainState(NamedTuple):
    """What training carries from step to step."""

    params: Any  # nested dict of arrays
    opt_state: Any


class Snapshot(NamedTuple):
    """Runs in the midst of training, as one who watches receives them."""

    step: int  # steps done, from 0
    losses: np.ndarray  # (runs, steps since the last snapshot), of each step; (runs, 0) at 0
    validation_loss: np.ndarray  # (runs,)
    state: TrainState  # of all runs; the next step writes over it

    def run(self, place: int = 0) -> TrainState:
        """Returns a copy of one run's state, which stays valid."""
        state: TrainState = _one_run(self.state, place)
        return state


class Program(NamedTuple):
    """The functions that runs of one shape share; compiled, they take stacked runs."""

    init: Callable[..., Any]  # (traced, validation) -> (state, validation loss)
    advance: Callable[..., Any]  # (state, traced, step, tokens, validation) -> (state, losses, ...)


class Placement(NamedTuple):
    """Functions that say where a step's arrays lie on a mesh; by default nothing is said."""

    batch: Callable[[Any], Any] = lambda batch: batch  # (inputs, targets), each (B, L)
    state: Callable[[Any], Any] = lambda state: state  # a TrainState
    params: Callable[[Any], Any] = lambda params: params  # as the model's layers take them


ANYWHERE = Placement()

_VALUES = (
    "seed", "steps", "warmup_steps", "learning_rate", "loss_scale", "atan2_a", "atan2_b",
)  # fmt: skip  # of the traced fields, those that enter a program as they are


def make_model(config: RunConfig, vocab_size: int, key: jax.Array) -> Transformer:
    """Returns the run's freshly initialized model, measuring its factors if the optimizer asks."""
    model = Transformer(
        config.model_config(vocab_size), config.parameterization, rngs=nnx.Rngs(params=key)
    )
    if _measures(config):
        measure_factors(
            model,
            where=lambda _, layer: layer.kernel.get_metadata()["role"] == "hidden",
            block_size=_block_size(config),
            max_tokens=config.iso_tokens or None,
            scheduled=True,
        )
    return model


def make_optimizer(
    config: RunConfig, traced: dict[str, Any], parameter_roles: Any
) -> optax.GradientTransformationExtraArgs:
    """Returns the run's optimizer with its schedule and per-layer rates.

    Args:
        config: the static part.
        traced: values of the traced fields, numbers or scalars.
        parameter_roles: a pytree of roles, like the parameters.
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
            "refresh_every": _refresh_rule(config),
            "block_size": _block_size(config),
            "root": config.iso_root,
        }
    if config.optimizer == "isoadam":
        options["size"] = config.iso_size
    labels = labels_from_roles(parameter_roles)
    rule = optimizer(config.optimizer, learning_rate, labels=labels, **options)
    rates = {role: traced[f"rate_{role}"] for role in config.rates}
    return optax.with_extra_args_support(optax.chain(rule, scale_by_role(rates, parameter_roles)))


@threadpool_limits.wrap(limits=1, user_api="blas")  # type: ignore[untyped-decorator]  # see isolab.optimizers.matrix_roots
def train(
    configs: Sequence[RunConfig],
    corpus: Corpus | None = None,
    on_progress: Progress | None = None,
    should_stop: Callable[[], bool] | None = None,
    on_snapshot: Callable[[Snapshot], None] | None = None,
) -> list[Result]:
    """Trains runs that share a program, side by side, to the end of their schedules.

    Args:
        configs: equal in all but the traced fields; ``steps`` must be equal too, as the runs
            advance together.
        corpus: the corpus that the configs name, if already loaded.
        on_progress: called after each evaluation interval.
        should_stop: asked after each evaluation interval; True ends training early.
        on_snapshot: called at step 0 and after each evaluation interval; its time does not count
            as the runs'. What it raises ends training.

    Returns:
        One result a config, in order.  The same configs on the same machine give the same bits.
        Where the losses of all runs have become NaN, the rest of their curves is NaN, untrained.

    Raises:
        ValueError: no configs, or configs that cannot share a program.
    """
    runs, (static, steps) = len(configs), _shared_program(configs)
    program, (traced, tokens, validation) = arguments_of(configs, corpus)

    started = time.perf_counter()
    state, first = program.init(traced, validation)
    every = static.evaluate_every
    train_losses: list[np.ndarray] = []
    validation_losses = [np.asarray(first)[:runs]]
    step, beside = 0, 0.0  # seconds that were not training

    def show(losses: np.ndarray) -> None:
        nonlocal beside
        if on_snapshot is not None:
            begun = time.perf_counter()
            on_snapshot(Snapshot(step, losses, validation_losses[-1], state))
            beside += time.perf_counter() - begun

    show(np.zeros((runs, 0), np.float32))
    while step < steps:
        arguments = (state, traced, jnp.int32(step), tokens, validation)
        state, losses, held_out = when_ready(functools.partial(program.advance, *arguments))
        step += every
        train_losses.append(np.asarray(losses)[:runs])
        validation_losses.append(np.asarray(held_out)[:runs])
        if on_progress is not None:
            on_progress(Report(step, steps, train_losses[-1].mean(1), validation_losses[-1]))
        show(train_losses[-1])
        if should_stop is not None and should_stop():
            break
        if np.isnan(train_losses[-1][:, -1]).all() and np.isnan(validation_losses[-1]).all():
            rest = (steps - step) // every  # of the schedule: parameters that are NaN stay NaN
            train_losses += [np.full_like(train_losses[-1], np.nan)] * rest
            validation_losses += [np.full_like(validation_losses[-1], np.nan)] * rest
            break
    seconds = (time.perf_counter() - started - beside) / step / len(configs)
    return [
        result_of(config, np.concatenate([t[i] for t in train_losses]), every,
                  np.array([v[i] for v in validation_losses]), seconds)
        for i, config in enumerate(configs)
    ]  # fmt: skip


def arguments_of(
    configs: Sequence[RunConfig], corpus: Corpus | None = None
) -> tuple[Program, tuple[Any, Any, Any]]:
    """Returns the program of runs that share one, and its traced values, tokens and validation."""
    static = program_of(configs[0])
    corpus = corpus or load_corpus(static.corpus)
    devices = min(len(configs), device_count())
    program = compile_program(static, corpus.vocab_size, devices)
    traced = _stack_traced(padded(configs, devices))
    tokens = _device_tokens(corpus, devices)
    windows = validation_windows(corpus, static.validation_windows, static.context)
    validation = on_each(tuple(jnp.asarray(w, jnp.int32) for w in windows), devices)
    return program, (traced, tokens, validation)


def compile_program(static: RunConfig, vocab_size: int, devices: int = 1) -> Program:
    """Returns the compiled functions for every run with this static part.

    Args:
        static: a config whose traced fields hold their defaults, see :func:`program_of`.
        vocab_size: of the corpus.
        devices: how many local devices the runs are divided among; their number is a multiple.
    """
    keep_compiled_programs()
    return _compiled(static, vocab_size, devices)


@functools.lru_cache(maxsize=64)
def _compiled(static: RunConfig, vocab_size: int, devices: int) -> Program:
    run = single_run(static, vocab_size)
    axes = _run_axes(run.init, static)
    init = split_runs(run.init, (0, None), (axes, 0), devices)
    advance = split_runs(run.advance, (axes, 0, None, None, None), (axes, 0, 0), devices)
    return Program(jax.jit(init), jax.jit(advance, donate_argnums=0))


def single_run(static: RunConfig, vocab_size: int, place: Placement = ANYWHERE) -> Program:
    """Returns the same functions for one run, neither stacked nor compiled.

    Args:
        static: as for :func:`compile_program`.
        vocab_size: of the corpus.
        place: where the arrays of a step lie.
    """
    shape = nnx.eval_shape(lambda: make_model(static, vocab_size, jax.random.key(0)))
    parameter_roles = roles(shape)
    graphdef, *states = nnx.split(shape, nnx.Param, Factor, FactorDue, ...)
    params, factors, due, rest = states
    if jax.tree.leaves(rest):
        raise ValueError("the model holds state that is neither parameter nor factor")

    def objective(
        params_: Any, factors_: Any, due_: Any, inputs: jax.Array, targets: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        taken = place.params(params_)
        filled = [_filled(params, taken), _filled(factors, factors_), _filled(due, due_), rest]
        return next_token_loss(nnx.merge(graphdef, *filled), inputs, targets)

    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), nnx.to_pure_dict(factors))
    flags = nnx.to_pure_dict(due)

    def validation_loss(params_: Any, windows: tuple[jax.Array, jax.Array]) -> jax.Array:
        never = jax.tree.map(lambda _: jnp.zeros((), bool), flags)
        return objective(params_, zeros, never, *windows)[1]

    def init(traced: dict[str, Any], windows: Any) -> tuple[TrainState, jax.Array]:
        model_key, _ = keys(traced["seed"])
        model = make_model(static, vocab_size, model_key)
        fresh = nnx.to_pure_dict(nnx.state(model, nnx.Param))
        tx = make_optimizer(static, traced, parameter_roles)
        return TrainState(fresh, tx.init(fresh)), validation_loss(fresh, windows)

    def advance(
        state: TrainState, traced: dict[str, Any], start: jax.Array, tokens: jax.Array, windows: Any
    ) -> tuple[TrainState, jax.Array, jax.Array]:
        tx = make_optimizer(static, traced, parameter_roles)
        _, data_key = keys(traced["seed"])

        def scaled(*arguments: Any) -> tuple[jax.Array, jax.Array]:
            value, loss = objective(*arguments)
            return traced["loss_scale"] * value, loss

        def step(state: TrainState, t: jax.Array) -> tuple[TrainState, jax.Array]:
            batch = place.batch(batch_of(static, data_key, t, tokens))
            due_now = refresh_due(t, _refresh_rule(static))
            due_ = jax.tree.map(lambda _: due_now, flags)
            (_, loss), grads = jax.value_and_grad(scaled, argnums=(0, 1), has_aux=True)(
                state.params, zeros, due_, *batch
            )
            measured = factors_by_kernel(grads[1]) if flags else None
            updates, opt_state = tx.update(
                grads[0], state.opt_state, state.params, factors=measured
            )
            params_ = optax.apply_updates(state.params, updates)
            return place.state(TrainState(params_, opt_state)), loss

        state, losses = jax.lax.scan(step, state, start + jnp.arange(static.evaluate_every))
        return state, losses, validation_loss(state.params, windows)

    return Program(init, advance)


def program_of(config: RunConfig) -> RunConfig:
    """Returns the config with its traced fields at their defaults: equal for runs that batch."""
    defaults: dict[str, Any] = {
        f.name: f.default for f in dataclasses.fields(RunConfig) if f.name in TRACED
    }
    every = config.evaluate_every
    return dataclasses.replace(config, **defaults | {"steps": every, "warmup_steps": 0})


def _shared_program(configs: Sequence[RunConfig]) -> tuple[RunConfig, int]:
    if not configs:
        raise ValueError("train: no configs")
    static = program_of(configs[0])
    for config in configs[1:]:
        other = program_of(config)
        for field in dataclasses.fields(RunConfig):
            name = field.name
            if getattr(other, name) != getattr(static, name) or config.steps != configs[0].steps:
                name = name if config.steps == configs[0].steps else "steps"
                raise ValueError(
                    f"train: runs of one batch must share {name}:"
                    f" {getattr(configs[0], name)!r} and {getattr(config, name)!r}"
                )
    return static, configs[0].steps


def run_values(config: RunConfig) -> dict[str, jax.Array]:
    """Returns the values of one run's traced fields, scalars."""
    return {name: values[0] for name, values in _stack_traced([config]).items()}


def _stack_traced(configs: Sequence[RunConfig]) -> dict[str, jax.Array]:
    def values(config: RunConfig) -> dict[str, Any]:
        numbers, rates, epsilons = config.hyperparameters, config.rates, config.epsilons
        return (
            {name: getattr(config, name) for name in _VALUES}
            | {name: numbers[name] for name in _hyperparameters(config)}
            | {f"rate_{role}": rate for role, rate in rates.items()}
            | {f"eps_{role}": eps for role, eps in epsilons.items()}
        )

    rows = [values(config) for config in configs]
    integers = ("seed", "steps", "warmup_steps")
    return {
        name: jnp.asarray(
            [row[name] for row in rows], jnp.int32 if name in integers else jnp.float32
        )
        for name in rows[0]
    }


@functools.lru_cache(maxsize=4)
def _device_tokens(corpus: Corpus, devices: int = 1) -> jax.Array:
    tokens: jax.Array = on_each(jnp.asarray(corpus.train), devices)
    return tokens


def _run_axes(init: Any, static: RunConfig) -> Any:
    """Axes of the runs in a TrainState: 0, but None for step counters, which all runs share.

    A shared counter keeps the conditionals that depend on it conditionals under vmap.
    """
    window = jax.ShapeDtypeStruct((1, static.context), jnp.int32)
    state, _ = jax.eval_shape(init, run_values(static), (window, window))

    def axis(leaf: Any) -> int | None:
        return None if leaf.shape == () and jnp.issubdtype(leaf.dtype, jnp.integer) else 0

    return jax.tree.map(axis, state)


@jax.jit
def _one_run(state: Any, place: Any) -> Any:
    """Takes a run out of a TrainState, copying also the counters, which all runs share."""
    return jax.tree.map(lambda leaf: leaf[place] if leaf.ndim else jnp.copy(leaf), state)


def _filled(like: nnx.State[Any, Any], values: Any) -> nnx.State[Any, Any]:
    state: nnx.State[Any, Any] = jax.tree.map(lambda x: x, like)
    nnx.replace_by_pure_dict(state, values)
    return state


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


def _hyperparameters(config: RunConfig) -> list[str]:
    """Names of those that are one number for all parameters."""
    return [name for name in config.hyperparameters if name != "eps" or not config.epsilons]


def _measures(config: RunConfig) -> bool:
    return entry(config.optimizer).takes_factors and config.iso_factors == "exact"


def _block_size(config: RunConfig) -> Any:
    return "shorter" if config.iso_blocks == "shorter" else None


def _refresh_rule(config: RunConfig) -> Any:
    return config.iso_refresh or growing_interval()
