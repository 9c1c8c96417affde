"""Training runs: configs to loss curves, one compiled scan per evaluation interval.

Runs that differ only in traced values (rate, seed, eps, betas, decay, gammas, horizon) share one
compiled program and are trained side by side, vmapped.  Between two evaluations no Python runs.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from isolab.config import TRACED, RunConfig
from isolab.corpus import Corpus, load_corpus, sample_batch, validation_windows
from isolab.linear import Factor, FactorDue, factors_by_kernel, measure_factors
from isolab.optimizers.catalog import entry, optimizer
from isolab.optimizers.iso import growing_interval, refresh_due
from isolab.optimizers.labels import labels_from_roles
from isolab.transformer import Transformer, next_token_loss, roles

Progress = Callable[["Report"], None]


@dataclass(frozen=True)
class Result:
    """One run's outcome.

    Attributes:
        config: what was run.
        curve_step: steps of the curve's points, from 0.
        curve_train_loss: mean over the interval that ends there (at 0: first batch), nats/token.
        curve_validation_loss: nats/token, on the same held-out windows for every run.
        divergence_step: first step (counted from 1) whose loss was not finite, or first evaluation
            from which the validation loss stayed above its start; None for a run that went well.
        step_seconds: wall time of its batch, per step and run.
    """

    config: RunConfig
    curve_step: list[int]
    curve_train_loss: list[float]
    curve_validation_loss: list[float]
    divergence_step: int | None
    step_seconds: float

    @property
    def diverged(self) -> bool:
        """Whether the run diverged; it then ranks last, with an infinite final loss."""
        return self.divergence_step is not None

    @property
    def final_validation_loss(self) -> float:
        """Validation loss at the end, nats/token; infinite for a diverged run."""
        return math.inf if self.diverged else self.curve_validation_loss[-1]

    @property
    def final_train_loss(self) -> float:
        """Mean training loss of the last interval, nats/token; infinite for a diverged run."""
        return math.inf if self.diverged else self.curve_train_loss[-1]


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


class Program(NamedTuple):
    """The compiled functions that runs of one shape share; all take stacked runs."""

    init: Callable[..., Any]  # (traced, validation) -> (state, validation loss)
    advance: Callable[..., Any]  # (state, traced, step, tokens, validation) -> (state, losses, ...)


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


def scale_by_role(
    rates: dict[str, Any], parameter_roles: Any
) -> optax.GradientTransformationExtraArgs:
    """Multiplies each parameter's update by its role's factor.

    Args:
        rates: factor by role; numbers or traced scalars.
        parameter_roles: a pytree of roles, like the parameters.
    """

    def update(updates: Any, params: Any = None) -> Any:
        del params
        return jax.tree.map(lambda role, u: rates[role] * u, parameter_roles, updates)

    return optax.with_extra_args_support(optax.stateless(update))


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

    options: dict[str, Any] = {name: traced[name] for name in config.hyperparameters}
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
    fixed = dataclasses.replace(
        config, gamma_embedding=1.0, gamma_hidden=1.0, gamma_readout=1.0
    ).rates
    rates = {role: rate * traced.get(f"gamma_{role}", 1.0) for role, rate in fixed.items()}
    return optax.with_extra_args_support(optax.chain(rule, scale_by_role(rates, parameter_roles)))


@threadpool_limits.wrap(limits=1, user_api="blas")  # type: ignore[untyped-decorator]  # see isolab.optimizers.matrix_roots
def train(
    configs: Sequence[RunConfig],
    corpus: Corpus | None = None,
    on_progress: Progress | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> list[Result]:
    """Trains runs that share a program, side by side, to the end of their schedules.

    Args:
        configs: equal in all but the traced fields; ``steps`` must be equal too, as the runs
            advance together.
        corpus: the corpus that the configs name, if already loaded.
        on_progress: called after each evaluation interval.
        should_stop: asked after each evaluation interval; True ends training early.

    Returns:
        One result a config, in order.  The same configs on the same machine give the same bits.

    Raises:
        ValueError: no configs, or configs that cannot share a program.
    """
    static, steps = _shared_program(configs)
    corpus = corpus or load_corpus(static.corpus)
    program = compile_program(static, corpus.vocab_size)
    traced = _stack_traced(configs)
    tokens = _device_tokens(corpus)
    windows = validation_windows(corpus, static.validation_windows, static.context)
    validation = tuple(jnp.asarray(w, jnp.int32) for w in windows)

    started = time.perf_counter()
    state, first = program.init(traced, validation)
    every = static.evaluate_every
    train_losses: list[np.ndarray] = []
    validation_losses = [np.asarray(first)]
    step = 0
    while step < steps:
        start = jnp.int32(step)
        state, losses, held_out = program.advance(state, traced, start, tokens, validation)
        step += every
        train_losses.append(np.asarray(losses))  # waits for the device
        validation_losses.append(np.asarray(held_out))
        if on_progress is not None:
            on_progress(Report(step, steps, train_losses[-1].mean(1), validation_losses[-1]))
        if should_stop is not None and should_stop():
            break
    seconds = (time.perf_counter() - started) / step / len(configs)
    return [
        _result(config, np.concatenate([t[i] for t in train_losses]), every,
                np.array([v[i] for v in validation_losses]), seconds)
        for i, config in enumerate(configs)
    ]  # fmt: skip


@functools.lru_cache(maxsize=64)
def compile_program(static: RunConfig, vocab_size: int) -> Program:
    """Returns the compiled functions for every run with this static part.

    Args:
        static: a config whose traced fields hold their defaults, see :func:`program_of`.
        vocab_size: of the corpus.
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
        filled = [_filled(params, params_), _filled(factors, factors_), _filled(due, due_), rest]
        return next_token_loss(nnx.merge(graphdef, *filled), inputs, targets)

    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), nnx.to_pure_dict(factors))
    flags = nnx.to_pure_dict(due)

    def validation_loss(params_: Any, windows: tuple[jax.Array, jax.Array]) -> jax.Array:
        never = jax.tree.map(lambda _: jnp.zeros((), bool), flags)
        return objective(params_, zeros, never, *windows)[1]

    def init(traced: dict[str, Any], windows: Any) -> tuple[TrainState, jax.Array]:
        model_key, _ = _keys(traced["seed"])
        model = make_model(static, vocab_size, model_key)
        fresh = nnx.to_pure_dict(nnx.state(model, nnx.Param))
        tx = make_optimizer(static, traced, parameter_roles)
        return TrainState(fresh, tx.init(fresh)), validation_loss(fresh, windows)

    def advance(
        state: TrainState, traced: dict[str, Any], start: jax.Array, tokens: jax.Array, windows: Any
    ) -> tuple[TrainState, jax.Array, jax.Array]:
        tx = make_optimizer(static, traced, parameter_roles)
        _, data_key = _keys(traced["seed"])

        def step(state: TrainState, t: jax.Array) -> tuple[TrainState, jax.Array]:
            key = jax.random.fold_in(data_key, t)
            batch = sample_batch(tokens, key, static.batch_size, static.context)
            due_now = refresh_due(t, _refresh_rule(static))
            due_ = jax.tree.map(lambda _: due_now, flags)
            (_, loss), grads = jax.value_and_grad(objective, argnums=(0, 1), has_aux=True)(
                state.params, zeros, due_, *batch
            )
            measured = factors_by_kernel(grads[1]) if flags else None
            updates, opt_state = tx.update(
                grads[0], state.opt_state, state.params, factors=measured
            )
            return TrainState(optax.apply_updates(state.params, updates), opt_state), loss

        state, losses = jax.lax.scan(step, state, start + jnp.arange(static.evaluate_every))
        return state, losses, validation_loss(state.params, windows)

    axes = _run_axes(init, static, vocab_size)
    return Program(
        jax.jit(jax.vmap(init, in_axes=(0, None), out_axes=(axes, 0))),
        jax.jit(
            jax.vmap(advance, in_axes=(axes, 0, None, None, None), out_axes=(axes, 0, 0)),
            donate_argnums=0,
        ),
    )


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


def _stack_traced(configs: Sequence[RunConfig]) -> dict[str, jax.Array]:
    rows = [config.row() for config in configs]
    integers = ("seed", "steps", "warmup_steps")
    return {
        name: jnp.asarray(
            [row[name] for row in rows], jnp.int32 if name in integers else jnp.float32
        )
        for name in TRACED
        if rows[0][name] is not None
    }


@functools.lru_cache(maxsize=4)
def _device_tokens(corpus: Corpus) -> jax.Array:
    return jnp.asarray(corpus.train)


def _run_axes(init: Any, static: RunConfig, vocab_size: int) -> Any:
    """Axes of the runs in a TrainState: 0, but None for step counters, which all runs share.

    A shared counter keeps the conditionals that depend on it conditionals under vmap.
    """
    traced = jax.tree.map(lambda x: x[0], _stack_traced([static]))
    window = jax.ShapeDtypeStruct((1, static.context), jnp.int32)
    state, _ = jax.eval_shape(init, traced, (window, window))

    def axis(leaf: Any) -> int | None:
        return None if leaf.shape == () and jnp.issubdtype(leaf.dtype, jnp.integer) else 0

    return jax.tree.map(axis, state)


def _filled(like: nnx.State[Any, Any], values: Any) -> nnx.State[Any, Any]:
    state: nnx.State[Any, Any] = jax.tree.map(lambda x: x, like)
    nnx.replace_by_pure_dict(state, values)
    return state


def _keys(seed: Any) -> tuple[jax.Array, jax.Array]:
    model_key, data_key = jax.random.split(jax.random.key(seed))
    return model_key, data_key


def _measures(config: RunConfig) -> bool:
    return entry(config.optimizer).takes_factors and config.iso_factors == "exact"


def _block_size(config: RunConfig) -> Any:
    return "shorter" if config.iso_blocks == "shorter" else None


def _refresh_rule(config: RunConfig) -> Any:
    return config.iso_refresh or growing_interval()


def _result(
    config: RunConfig, losses: np.ndarray, every: int, held_out: np.ndarray, seconds: float
) -> Result:
    means = losses.reshape(-1, every).mean(1)
    return Result(
        config,
        [every * i for i in range(len(held_out))],
        [float(losses[0]), *map(float, means)],
        [float(v) for v in held_out],
        divergence_step(losses, held_out, every),
        seconds,
    )


def divergence_step(losses: np.ndarray, held_out: np.ndarray, every: int) -> int | None:
    """Returns the step at which a run diverged, or None.

    Args:
        losses: training loss of each step, shape (steps,).
        held_out: validation losses from step 0 on, each ``every`` steps.
        every: steps between two validation losses.

    Example:
        >>> divergence_step(np.array([2.0, np.nan]), np.array([2.0, np.nan]), 2)
        2
        >>> divergence_step(np.ones(6), np.array([5.0, 6.0, 4.0, 7.0]), 2)
        6
    """
    broken = np.flatnonzero(~np.isfinite(losses))
    if broken.size:
        return int(broken[0]) + 1
    above = ~(held_out <= held_out[0])
    if not above[-1]:
        return None
    below = np.flatnonzero(~above)
    return int(below[-1] + 1) * every
