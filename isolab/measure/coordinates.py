r"""The coordinate check: does a layer's output, or its change in training, grow with the width?

A few steps of training at several widths; per layer the root mean square of the activation and of
its change since step 0. A scheme of initial spreads, multipliers and rates is right where both
keep their size as the width grows: slopes of log rms against log width near 0. A slope above 0
blows up at some width; one below 0 means a layer that stops learning.

What theory says of isolab's own model (exponents in :mod:`isolab.theory.parameterization`):

- before training, embedding, hidden and normalized activations are flat in all four
  parameterizations;
- the logits go as :math:`n^{1/2 - a - b}` of the readout: flat in standard and NTK, falling as
  :math:`n^{-1/2}` in muP and mean-field, which is right: training brings them to size one;
- with per-layer rates at full alignment no hidden change grows. It is flat where updates are
  aligned with their inputs, as those of first steps are in the residual stream ("blocks/0"), and
  falls by up to :math:`n^{-1/2}` where they are less so: inputs of the first block share nothing
  but their tokens. With one rate for all, standard parameterization and Adam, changes grow as n;
- the first changes of the logits are flat in muP and mean-field, and in standard and NTK grow by up
  to :math:`n^{1/2}`: the last hidden layer moves along the untrained readout, whose entries times
  multiplier are that much larger. The exponents ask for each layer's own update to be stable, and
  leave this out.

The idea is that of the coordinate check of microsoft/mup; arXiv:2203.03466, appendix.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
import polars as pl
from flax import nnx

from isolab.analysis.groups import ends
from isolab.analysis.seeds import require_columns
from isolab.analysis.width_lines import width_slopes
from isolab.measure.observe import observe
from isolab.model.corpus import load_corpus, validation_windows
from isolab.model.fields import whole_number, whole_numbers
from isolab.model.probe import Layer, activations, in_order, rms
from isolab.training.config import RunConfig
from isolab.training.watch import ForwardModel, Observation

MakeModel: TypeAlias = Callable[[int, nnx.Rngs], nnx.Module]
Loss: TypeAlias = Callable[[Any, Any], jax.Array]
Optimizer: TypeAlias = (
    optax.GradientTransformation | Callable[[int, Any], optax.GradientTransformation]
)


def coordinate_check(
    make_model: MakeModel,
    widths: Sequence[int],
    *,
    loss: Loss,
    batch: Any,
    optimizer: Optimizer,
    steps: int = 4,
    seeds: Sequence[int] = (0, 1, 2),
) -> pl.DataFrame:
    r"""Trains a flax model for a few steps at several widths and measures every layer's output.

    .. math:: \mathrm{rms}(h_t), \quad \mathrm{rms}(h_t - h_0)

    h is seen on the first batch, at the same random numbers (dropout) at every step. Which layers
    there are, and how they are called: :func:`isolab.model.probe.activations`.

    Args:
        make_model: ``make_model(width, rngs)`` returns a new ``nnx.Module``; ``rngs`` is
            ``nnx.Rngs(seed)``.
        widths: two or more; a factor of 4 or more between the ends makes slopes worth reading.
        loss: ``loss(model, batch)``, a scalar to be minimized, or a tuple whose first is; it calls
            the model as it is trained.
        batch: what ``loss`` takes, or a list of such batches, one a step in turn. Widths must be
            able to share it.
        optimizer: an optax transformation, or a function ``optimizer(width, model)`` that returns
            one, called once a width with the first seed's model. It trains every ``nnx.Param``.
        steps: how many; 0 looks at the untrained model alone.
        seeds: one or more; three give :func:`slopes` an interval.

    Returns:
        polars.DataFrame, a row per width, seed, step and layer: ``width``, ``seed``, ``step`` (0:
        before training), ``layer``, ``order`` (of the call), ``activation_rms`` and
        ``change_rms`` (null at step 0), float64. A diverged run's values are inf or NaN.

    Raises:
        TypeError: ``make_model`` returns no ``nnx.Module``, or the optimizer is none.
        ValueError: impossible widths, steps or seeds; no parameters; no layer called; a loss that
            is not a scalar.

    Example:
        >>> def make_model(width, rngs):
        ...     return nnx.Sequential(
        ...         nnx.Linear(4, width, rngs=rngs), jnp.tanh, nnx.Linear(width, 1, rngs=rngs))
        >>> def loss(model, batch):
        ...     x, y = batch
        ...     return ((model(x) - y) ** 2).mean()
        >>> batch = jnp.eye(4), jnp.ones((4, 1))
        >>> frame = coordinate_check(make_model, [8, 32], loss=loss, batch=batch,
        ...     optimizer=optax.sgd(0.1), steps=2, seeds=[0])
        >>> frame.shape, frame["layer"].unique(maintain_order=True).to_list()
        ((18, 7), ['layers/0', 'layers/2', 'logits'])
    """
    widths = whole_numbers("widths", widths, 1, at_least=2)
    seeds = whole_numbers("seeds", seeds, 0)
    steps = whole_number("steps", steps, 0)
    batches = batch if isinstance(batch, list) else [batch]
    if not batches:
        raise ValueError("batch is []; allowed: a batch, or a list of one or more")

    @functools.partial(jax.jit, static_argnums=0)
    def outputs(graphdef: Any, randomness: Any, rest: Any, batch: Any) -> dict[str, Layer]:
        seen = activations(nnx.merge(graphdef, randomness, rest), batch, call=loss)
        return _without_inputs(seen)

    @nnx.jit
    def train(model: Any, optimizer: Any, batch: Any) -> None:
        gradient = nnx.grad(functools.partial(_scalar_loss, loss))
        optimizer.update(model, gradient(model, batch))

    rows: list[dict[str, Any]] = []
    for width in widths:
        rule = None
        for seed in seeds:
            model = make_model(width, nnx.Rngs(seed))
            if not isinstance(model, nnx.Module):
                raise TypeError(
                    f"make_model returned a {type(model).__name__} at width {width}; allowed: a"
                    " flax.nnx Module"
                )
            rule = rule or _transformation(optimizer, width, model)
            state = nnx.Optimizer(model, rule, wrt=nnx.Param)
            graphdef, randomness, rest = _split(model)
            now = first = outputs(graphdef, randomness, rest, batches[0])
            for step in range(steps + 1):
                if step:
                    train(model, state, batches[(step - 1) % len(batches)])
                    graphdef, _, rest = _split(model)
                    now = outputs(graphdef, randomness, rest, batches[0])
                labels = {"width": width, "seed": seed, "step": step}
                rows += [labels | row for row in _sizes(now, first, step)]
    return pl.DataFrame(rows, schema_overrides={"change_rms": pl.Float64}, infer_schema_length=None)


def coordinate_check_runs(
    config: RunConfig, widths: Sequence[int], seeds: Sequence[int]
) -> pl.DataFrame:
    """The coordinate check of isolab's own model, trained for 4 steps as a run's config says.

    Batches are a run's own, drawn from its corpus; activations are seen on as many held-out
    windows. The schedule is constant and without warm-up, since a few steps of any other would show
    the warm-up.

    Returns:
        polars.DataFrame, as :func:`coordinate_check`. "embedding" is the sum of both embeddings,
        with its multiplier; "blocks/0" the residual stream after the first block.
    """
    widths = whole_numbers("widths", widths, 1, at_least=2)
    brief = dataclasses.replace(
        config, steps=4, evaluate_every=1, schedule="constant", warmup_steps=0
    )
    tokens, _ = validation_windows(load_corpus(config.corpus), config.batch_size, config.context)
    function = functools.partial(_sizes_in_run, tokens=tokens)
    axes = {"width": widths, "seed": seeds}
    return observe(brief, axes, range(5), function, {"change_rms": pl.Float64})


def slopes(frame: pl.DataFrame) -> pl.DataFrame:
    """Returns how each layer's sizes go with the width, by a line per seed.

    See :func:`isolab.analysis.width_lines.width_slopes`, which says what is refused.

    Args:
        frame: from :func:`coordinate_check` or :func:`coordinate_check_runs`.

    Returns:
        polars.DataFrame, a row per layer, step and quantity: ``layer``, ``order``, ``step``,
        ``quantity`` ("activation", "change"), ``slope``, ``slope_low``, ``slope_high`` (float64)
        and ``note``.

    Example:
        >>> import polars as pl
        >>> frame = pl.DataFrame({"width": [8, 32], "seed": 0, "step": 1, "layer": "up", "order": 0,
        ...     "activation_rms": [1.0, 1.0], "change_rms": [0.5, 2.0]})
        >>> slopes(frame).select("quantity", "slope").rows()
        [('activation', 0.0), ('change', 1.0)]
    """
    index = ["width", "seed", "step", "layer", "order"]
    require_columns(frame, [*index, "activation_rms", "change_rms"])
    sizes = (
        frame.with_columns(pl.col("order").min().over("step", "layer"))
        .unpivot(["activation_rms", "change_rms"], index=index, variable_name="quantity")
        .with_columns(pl.col("quantity").str.strip_suffix("_rms"))
        .filter((pl.col("quantity") == "activation") | (pl.col("step") > 0))
    )
    found = width_slopes(sizes, ["step", "order", "layer", "quantity"], "value")
    return found.select("layer", "order", "step", "quantity", *ends("slope"), "note")


def _split(model: nnx.Module) -> tuple[Any, Any, Any]:
    """Returns graph, state of random numbers, and the rest, the states as they are now."""
    graphdef, *states = nnx.split(model, nnx.RngState, ...)
    randomness, rest = jax.tree.map(lambda x: x, states)  # a split shares the model's variables
    return graphdef, randomness, rest


@functools.partial(jax.jit, static_argnums=0)
def _outputs_of_run(model: ForwardModel, params: Any, tokens: jax.Array) -> dict[str, Layer]:
    return _without_inputs(activations(model(params), tokens))


def _without_inputs(seen: dict[str, Layer]) -> dict[str, Layer]:
    return {name: dataclasses.replace(layer, inputs=()) for name, layer in seen.items()}


def _scalar_loss(loss: Loss, model: Any, batch: Any) -> jax.Array:
    value = loss(model, batch)
    value = jnp.asarray(value[0] if isinstance(value, tuple) and value else value)
    if value.shape != () or not jnp.issubdtype(value.dtype, jnp.floating):
        raise ValueError(f"loss returned {value.dtype} of shape {value.shape}; allowed: a scalar")
    return value


def _sizes_in_run(seen: Observation, tokens: Any) -> list[dict[str, Any]]:
    now, first = (
        _outputs_of_run(seen.model, params, tokens) for params in (seen.params, seen.initial)
    )
    return _sizes(now, first, seen.step)


def _sizes(now: dict[str, Layer], first: dict[str, Layer], step: int) -> list[dict[str, Any]]:
    """Returns a row per layer: the rms of its output and of the output's change."""
    sizes = jax.device_get(_rms_of_both(now, first))
    return [
        {
            "layer": name,
            "order": layer.order,
            "activation_rms": float(sizes[name][0]),
            "change_rms": float(sizes[name][1]) if step else None,
        }
        for name, layer in in_order(now)
    ]


@jax.jit
def _rms_of_both(now: dict[str, Layer], first: dict[str, Layer]) -> dict[str, list[jax.Array]]:
    change = jax.tree.map(jnp.subtract, now, first)
    return {name: [rms(now[name].output), rms(change[name].output)] for name in now}


def _transformation(optimizer: Any, width: int, model: nnx.Module) -> Any:
    made = optimizer
    if callable(optimizer) and not isinstance(optimizer, optax.GradientTransformation):
        if next(iter(inspect.signature(optimizer).parameters), "") == "learning_rate":
            name = getattr(optimizer, "__name__", "it")
            raise TypeError(
                f"optimizer is {name}, which takes a rate; pass {name}(learning_rate), or a"
                " function of (width, model) that returns one"
            )
        made = optimizer(width, model)
    if isinstance(made, optax.MultiSteps):
        made = made.gradient_transformation()
    if not isinstance(made, optax.GradientTransformation):
        raise TypeError(
            f"optimizer gives a {type(made).__name__}; allowed: an optax transformation, or a"
            " function of (width, model) that returns one"
        )
    return made
