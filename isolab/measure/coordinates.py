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
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from isolab.analysis.seeds import check_confidence, require_columns, seed_interval
from isolab.analysis.width_lines import width_lines
from isolab.model.corpus import load_corpus
from isolab.model.probe import Layer, activations, rms
from isolab.training.config import RunConfig
from isolab.training.watch import ForwardModel, checked_whole, held_out, watch

if TYPE_CHECKING:
    import polars as pl

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
        loss: ``loss(model, batch)``, a scalar to be minimized; it calls the model as it is trained.
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
    widths = checked_whole("widths", widths, 1, at_least=2)
    seeds = checked_whole("seeds", seeds, 0)
    (steps,) = checked_whole("steps", [steps], 0)
    batches = batch if isinstance(batch, list) else [batch]
    if not batches:
        raise ValueError("batch is []; allowed: a batch, or a list of one or more")
    rows: list[dict[str, Any]] = []
    for width in widths:
        look = jax.jit(_looking(loss), static_argnums=0)
        train = nnx.jit(_training(loss))
        rule = None
        for seed in seeds:
            model = _checked_model(make_model(width, nnx.Rngs(seed)), width)
            rule = rule or _transformation(optimizer, width, model)
            state = nnx.Optimizer(model, rule, wrt=nnx.Param)
            graphdef, randomness, rest = _split(model)
            first = look(graphdef, randomness, rest, batches[0])
            rows += _rows(width, seed, 0, first, first)
            for step in range(steps):
                train(model, state, batches[step % len(batches)])
                graphdef, _, rest = _split(model)
                now = look(graphdef, randomness, rest, batches[0])
                rows += _rows(width, seed, step + 1, now, first)
    return _frame(rows)


def coordinate_check_runs(
    config: RunConfig,
    widths: Sequence[int],
    *,
    steps: int = 4,
    seeds: Sequence[int] = (0, 1, 2),
    windows: int | None = None,
) -> pl.DataFrame:
    """The coordinate check of isolab's own model, trained as a run's config says.

    Batches are a run's own, drawn from its corpus; activations are seen on held-out windows. The
    schedule is constant and without warm-up, since a few steps of any other would show the warm-up.

    Args:
        config: the run; its ``width``, ``seed``, ``steps`` and schedule are replaced.
        widths: two or more, multiples of ``config.head_size``.
        steps: how many; 0 looks at the untrained model alone.
        seeds: one or more.
        windows: how many held-out windows of ``config.context`` tokens; None: ``batch_size``.

    Returns:
        polars.DataFrame, as :func:`coordinate_check`. "embedding" is the sum of both embeddings,
        with its multiplier; "blocks/0" the residual stream after the first block.

    Raises:
        ValueError: impossible widths, steps, seeds or windows, by name, value and what is allowed.
    """
    widths = checked_whole("widths", widths, 1, at_least=2)
    seeds = checked_whole("seeds", seeds, 0)
    (steps,) = checked_whole("steps", [steps], 0)
    (windows,) = checked_whole("windows", [config.batch_size if windows is None else windows], 1)
    brief = dataclasses.replace(
        config, steps=max(steps, 1), evaluate_every=1, schedule="constant", warmup_steps=0
    )
    sized = [dataclasses.replace(brief, width=width) for width in widths]
    corpus = load_corpus(config.corpus)
    tokens, _ = held_out(corpus, windows, config.context)
    rows: list[dict[str, Any]] = []
    for at_width in sized:
        model = ForwardModel(at_width, corpus.vocab_size)
        look = jax.jit(lambda params, m=model: _outputs(activations(m(params), tokens)))
        for seed in seeds:
            first = None
            for moment in watch(dataclasses.replace(at_width, seed=seed), range(steps + 1), corpus):
                now = look(moment.params)
                first = now if first is None else first
                rows += _rows(at_width.width, seed, moment.step, now, first)
    return _frame(rows)


def slopes(frame: pl.DataFrame, confidence: float = 0.95) -> pl.DataFrame:
    r"""Returns how each layer's sizes go with the width, with an interval over seeds.

    .. math:: \mathrm{rms} \sim n^{\mathrm{slope}}

    A seed's slope is the least-squares line of log2(rms) on log2(width); the slope is their mean
    and its interval Student's t over seeds.

    Args:
        frame: from :func:`coordinate_check` or :func:`coordinate_check_runs`.
        confidence: of the interval.

    Returns:
        polars.DataFrame, a row per layer, step and quantity: ``layer``, ``order``, ``step``,
        ``quantity`` ("activation", "change"), ``slope``, ``slope_low``, ``slope_high`` (float64)
        and ``note``. One seed has no spread: its interval is (-inf, inf). Where a size is 0 or not
        finite, or a width lacks the layer, there is no slope (null), and ``note`` says where.

    Raises:
        ValueError: missing columns, no rows, one width only, or a confidence out of (0, 1).

    Example:
        >>> import polars as pl
        >>> frame = pl.DataFrame({"width": [8, 32], "seed": 0, "step": 1, "layer": "up", "order": 0,
        ...     "activation_rms": [1.0, 1.0], "change_rms": [0.5, 2.0]})
        >>> slopes(frame).select("quantity", "slope").rows()
        [('activation', 0.0), ('change', 1.0)]
    """
    import polars as pl

    check_confidence(confidence)
    columns = ["width", "seed", "step", "layer", "order", "activation_rms", "change_rms"]
    require_columns(frame, columns)
    widths = frame["width"].unique().sort().to_list()
    if len(widths) < 2:
        raise ValueError(f"a slope needs at least 2 widths, got {widths}: add widths")
    seeds = frame["seed"].unique().sort().to_list()
    rows = []
    groups = frame.sort("step", "order").group_by("step", "layer", maintain_order=True)
    for (step, layer), group in groups:
        for quantity in ("activation", "change"):
            if quantity == "change" and step == 0:
                continue
            sizes = {
                (width, seed): size
                for width, seed, size in group.select("width", "seed", f"{quantity}_rms").rows()
            }
            slope, low, high, note = _slope(sizes, widths, seeds, confidence)
            rows.append(
                {
                    "layer": layer, "order": group["order"].min(), "step": step,
                    "quantity": quantity, "slope": slope, "slope_low": low, "slope_high": high,
                    "note": note,
                }
            )  # fmt: skip
    schema = {
        "layer": pl.String, "order": pl.Int64, "step": pl.Int64, "quantity": pl.String,
        "slope": pl.Float64, "slope_low": pl.Float64, "slope_high": pl.Float64, "note": pl.String,
    }  # fmt: skip
    return pl.DataFrame(rows, schema=schema)


def _slope(
    sizes: dict[tuple[int, int], float | None],
    widths: Sequence[int],
    seeds: Sequence[int],
    confidence: float,
) -> tuple[float | None, float | None, float | None, str]:
    table = np.array([[sizes.get((w, s)) for w in widths] for s in seeds], np.float64)
    wrong = ~(np.isfinite(table) & (table > 0))
    if wrong.any():
        seed, width = np.argwhere(wrong)[0]
        value = table[seed, width]
        what = "is missing" if (widths[width], seeds[seed]) not in sizes else f"is {value:g}"
        return (
            None,
            None,
            None,
            f"no slope: at width {widths[width]}, seed {seeds[seed]}, it {what}",
        )
    each = width_lines(table, widths).slopes
    note = "" if len(seeds) > 1 else "one seed: no interval"
    return float(each.mean()), *seed_interval(each, confidence), note


def _split(model: nnx.Module) -> tuple[Any, Any, Any]:
    """Returns graph, state of random numbers, and the rest, the states as they are now."""
    graphdef, *states = nnx.split(model, nnx.RngState, ...)
    randomness, rest = jax.tree.map(lambda x: x, states)  # a split shares the model's variables
    return graphdef, randomness, rest


def _looking(loss: Loss) -> Callable[..., dict[str, Layer]]:
    def look(graphdef: Any, randomness: Any, rest: Any, batch: Any) -> dict[str, Layer]:
        model = nnx.merge(graphdef, randomness, rest)
        return _outputs(activations(model, batch, call=loss))

    return look


def _training(loss: Loss) -> Callable[..., None]:
    def scalar_loss(model: Any, batch: Any) -> jax.Array:
        value = jnp.asarray(loss(model, batch))
        if value.shape != () or not jnp.issubdtype(value.dtype, jnp.floating):
            raise ValueError(
                f"loss returned {value.dtype} of shape {value.shape}; allowed: a scalar"
            )
        return value

    def train(model: Any, optimizer: Any, batch: Any) -> None:
        optimizer.update(model, nnx.grad(scalar_loss)(model, batch))

    return train


def _outputs(seen: dict[str, Layer]) -> dict[str, Layer]:
    return {name: dataclasses.replace(layer, inputs=()) for name, layer in seen.items()}


@jax.jit
def _sizes(now: dict[str, Layer], first: dict[str, Layer]) -> dict[str, list[jax.Array]]:
    """Returns the rms of every layer's output and of its change."""
    change = jax.tree.map(jnp.subtract, now, first)
    return {name: [rms(now[name].output), rms(change[name].output)] for name in now}


def _rows(
    width: int, seed: int, step: int, now: dict[str, Layer], first: dict[str, Layer]
) -> list[dict[str, Any]]:
    sizes = jax.device_get(_sizes(now, first))
    return [
        {
            "width": width,
            "seed": seed,
            "step": step,
            "layer": name,
            "order": layer.order,
            "activation_rms": float(sizes[name][0]),
            "change_rms": float(sizes[name][1]) if step else None,
        }
        for name, layer in sorted(now.items(), key=lambda item: item[1].order)
    ]


def _frame(rows: list[dict[str, Any]]) -> pl.DataFrame:
    import polars as pl

    schema = {
        "width": pl.Int64, "seed": pl.Int64, "step": pl.Int64, "layer": pl.String,
        "order": pl.Int64, "activation_rms": pl.Float64, "change_rms": pl.Float64,
    }  # fmt: skip
    return pl.DataFrame(rows, schema=schema)


def _checked_model(model: Any, width: int) -> nnx.Module:
    if not isinstance(model, nnx.Module):
        raise TypeError(
            f"make_model returned a {type(model).__name__} at width {width}; allowed: a flax.nnx"
            " Module"
        )
    return model


def _transformation(optimizer: Any, width: int, model: nnx.Module) -> Any:
    if isinstance(optimizer, optax.GradientTransformation):
        return optimizer
    made = optimizer(width, model) if callable(optimizer) else optimizer
    if not isinstance(made, optax.GradientTransformation):
        raise TypeError(
            f"optimizer gives a {type(made).__name__}; allowed: an optax transformation, or a"
            " function of (width, model) that returns one"
        )
    return made
