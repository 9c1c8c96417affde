"""Losses of one's own model with several optimizers, each at several learning rates."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
import polars as pl
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from isolab.optimizers.products import value_grad_factors
from isolab.training.program import keep_compiled_programs, schedule_factor


@threadpool_limits.wrap(limits=1, user_api="blas")  # type: ignore[untyped-decorator]  # as train
def losses_by_rate(
    loss: Callable[..., tuple[jax.Array, Any]],
    create: Callable[[int], tuple[Any, Any]],
    batches: Callable[[int], Any],
    held_out: Any,
    optimizers: Mapping[str, Callable[[optax.Schedule], optax.GradientTransformation]],
    rates: Mapping[str, Sequence[float]],
    seeds: Sequence[int] = (0, 1, 2),
    labels: Any = None,
) -> pl.DataFrame:
    """Trains any model with each optimizer at each of its rates, from the same seeds.

    The rate rises over the first tenth of the steps and then falls to zero in a straight line.
    Every optimizer is given exact factors, which one that has no use for them ignores. The runs of
    an optimizer are one compiled program, one after another.

    Args:
        loss: ``loss(params, rest, batch, train)`` returns the mean loss of a batch's tokens, and
            the new ``rest``; ``train`` is True or False, False on what is held out.
        create: from a seed the parameters, a pytree of arrays, and the rest of the model's state,
            such as random keys and statistics, or None.
        batches: from a seed a pytree of arrays whose first axis is the step.
        held_out: a pytree of arrays whose first axis is the batch.
        optimizers: by name, what makes an optax transformation from a rate, a schedule.
        rates: peak rates by the same names.
        seeds: of the parameters and batches.
        labels: of what factors are measured, see :func:`isolab.product_views`; None: of every
            matrix in a product.

    Returns:
        polars.DataFrame, a row per run: ``optimizer``, ``learning_rate``, ``seed`` and
        ``final_validation_loss``, on what is held out; NaN or infinite where the run diverged. What
        :func:`isolab.analysis.optimum.optima` and :func:`isolab.charts.loss_vs_rate` take.

    Raises:
        ValueError: optimizers and rates have different names.

    Example:
        >>> frame = losses_by_rate(
        ...     lambda w, rest, x, train: (((x @ w - 1) ** 2).mean(), rest),
        ...     create=lambda seed: (jnp.zeros((2, 1)), None),
        ...     batches=lambda seed: jax.random.normal(jax.random.key(seed), (20, 8, 2)),
        ...     held_out=jnp.ones((1, 8, 2)),
        ...     optimizers={"sgd": optax.sgd},
        ...     rates={"sgd": [0.01, 0.1]},
        ...     seeds=[0],
        ... )
        >>> frame.columns
        ['optimizer', 'learning_rate', 'seed', 'final_validation_loss']
    """
    if set(optimizers) != set(rates):
        raise ValueError(f"rates are of {sorted(rates)}; allowed: of {sorted(optimizers)}")
    keep_compiled_programs()
    starts = [(*create(seed), batches(seed)) for seed in seeds]
    stacked = jax.tree.map(lambda *its: jnp.stack(its), *starts)
    held_out = jax.tree.map(jnp.asarray, held_out)
    frames = []
    for name, make in optimizers.items():
        run = partial(_final_loss, loss, make, labels, held_out)
        runs = list(itertools.product(range(len(seeds)), rates[name]))
        places, peaks = (jnp.asarray(column) for column in zip(*runs, strict=True))
        losses = jax.jit(partial(_one_after_another, run))(stacked, places, peaks)
        rows = [(name, rate, seeds[at]) for at, rate in runs]
        frame = pl.DataFrame(rows, ["optimizer", "learning_rate", "seed"], orient="row")
        frames.append(frame.with_columns(final_validation_loss=pl.Series(losses.tolist())))
    return pl.concat(frames)


def _one_after_another(run: Any, starts: Any, places: jax.Array, peaks: jax.Array) -> Any:
    def one(which: tuple[jax.Array, jax.Array]) -> Any:
        return run(jax.tree.map(lambda its: its[which[0]], starts), which[1])

    return jax.lax.map(one, (places, peaks))


def _final_loss(
    loss: Any, make: Any, labels: Any, held_out: Any, start: tuple[Any, ...], peak: Any
) -> Any:
    """Returns the loss on what is held out after a run at one peak rate."""
    params, rest, batches = start
    steps = len(jax.tree.leaves(batches)[0])
    tx = optax.with_extra_args_support(
        make(lambda count: peak * schedule_factor("linear", count, steps, steps // 10))
    )
    measure = value_grad_factors(partial(loss, train=True), labels, has_aux=True)

    def step(carry: tuple[Any, ...], batch: Any) -> tuple[tuple[Any, ...], None]:
        params, rest, state = carry
        (_, rest), grads, factors = measure(params, rest, batch)
        updates, state = tx.update(grads, state, params, factors=factors)
        return (optax.apply_updates(params, updates), rest, state), None

    (params, rest, _), _ = jax.lax.scan(step, (params, rest, tx.init(params)), batches)
    return jax.lax.map(lambda batch: loss(params, rest, batch, train=False)[0], held_out).mean()
