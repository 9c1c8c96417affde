r"""How large gradients are, by role and width, and what epsilon makes of them.

Adam divides by :math:`\sqrt{\hat v} + \epsilon`. Gradients go as :math:`n^{-g}` with the width n
(:meth:`isolab.theory.parameterization.Parameterization.gradient_exponent`), so an epsilon that did
nothing at one width rules at another: a parameter with :math:`\sqrt{\hat v} < \epsilon` gets less
than half of the update that it would get without epsilon.

All is measured on real runs' own batches, with their loss scale: what their optimizer sees.

Reference: Everett et al., arXiv:2407.05872, section 4.3.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl

from isolab.analysis.width_lines import width_slopes
from isolab.measure.observe import observe
from isolab.model.fields import whole_number, whole_numbers
from isolab.model.probe import rms
from isolab.model.transformer import next_token_loss
from isolab.optimizers.adam import scale_by_adam
from isolab.optimizers.catalog import CATALOG
from isolab.theory.parameterization import ROLES, parameterization
from isolab.training.config import RunConfig
from isolab.training.watch import ForwardModel, Observation, by_layer, watch


class SecondMoment(NamedTuple):
    r"""Adam's :math:`\sqrt{\hat v}` of all parameters of one role, in a run at its width.

    root: (parameters,) float32, ascending; 0 where there never was a gradient.
    """

    config: RunConfig
    role: str
    root: np.ndarray


def gradient_sizes(
    config: RunConfig,
    widths: Sequence[int],
    parameterizations: Sequence[str],
    steps: Sequence[int],
    seeds: Sequence[int],
) -> pl.DataFrame:
    """Measures each role's ``gradient_rms`` at steps of real runs, by :func:`observe`.

    Taken on the batch of the update that comes next, over all parameters of the ``role``, those
    without a gradient included, times ``config.loss_scale``.
    """
    axes = {"parameterization": parameterizations, "width": widths, "seed": seeds}
    return observe(config, axes, steps, _sizes)


def _sizes(seen: Observation) -> list[dict[str, Any]]:
    sizes = _gradient_rms(seen.model, seen.params, seen.batch, seen.config.loss_scale)
    return [{"role": role, "gradient_rms": float(sizes[role])} for role in ROLES]


@functools.partial(jax.jit, static_argnums=0)
def _gradient_rms(
    model: ForwardModel, params: Any, batch: Any, loss_scale: Any
) -> dict[str, jax.Array]:
    leaves = _by_role(model, _gradient(model, params, batch, loss_scale))
    return {role: rms(leaves[role]) for role in ROLES}


@functools.partial(jax.jit, static_argnums=0)
def _gradient(model: ForwardModel, params: Any, batch: Any, loss_scale: Any) -> Any:
    """Returns the gradient that a run's optimizer sees, nested as the parameters are."""

    def objective(params: Any) -> jax.Array:
        value: jax.Array = loss_scale * next_token_loss(model(params), *batch)[0]
        return value

    return jax.grad(objective)(params)


def _by_role(model: ForwardModel, tree: Any) -> dict[str, list[Any]]:
    """Returns the leaves of what is nested as the parameters are, by role."""
    layers = by_layer(tree).items()
    return {role: [x for name, x in layers if model.roles[name] == role] for role in ROLES}


def gradient_exponents(gradients: pl.DataFrame) -> pl.DataFrame:
    r"""Fits :math:`\mathrm{rms} \sim n^{-g}` to :func:`gradient_sizes`, beside what theory says.

    Returns:
        polars.DataFrame, a row per parameterization, step and role: ``parameterization``, ``step``,
        ``role``, ``exponent`` (g) with its interval, ``theory`` (g at initialization) and ``note``,
        as of :func:`isolab.analysis.width_lines.width_slopes`.

    Example:
        >>> import polars as pl
        >>> frame = pl.DataFrame({"parameterization": "mup", "width": [32, 64], "seed": 0,
        ...     "step": 0, "role": "hidden", "gradient_rms": [0.5, 0.25]})
        >>> gradient_exponents(frame).select("exponent", "theory").rows()
        [(1.0, 1.0)]
    """
    group = ["parameterization", "step", "role"]
    found = width_slopes(gradients, group, "gradient_rms")
    theory = [
        parameterization(name).gradient_exponent(role)
        for name, role in found.select("parameterization", "role").rows()
    ]
    return found.select(
        *group,
        exponent=-pl.col("slope"),
        exponent_low=-pl.col("slope_high"),
        exponent_high=-pl.col("slope_low"),
        theory=pl.Series(theory, dtype=pl.Float64),
        note="note",
    )


def second_moments(config: RunConfig, widths: Sequence[int], step: int) -> list[SecondMoment]:
    r"""Measures :math:`\sqrt{\hat v}`, the denominator of update number ``step``, 1 or more.

    v is computed from the run's gradients as Adam keeps it, whatever the run's optimizer is: with
    the run's ``b2``, or Adam's default where it has none.

    Raises:
        ValueError: impossible widths or step, by name and value, or a run that diverged.
    """
    step = whole_number("step", step, 1, config.steps)
    found = []
    for width in whole_numbers("widths", widths, 1):
        run = dataclasses.replace(config, width=width)
        b2 = run.hyperparameters.get("b2", CATALOG["adam"].defaults["b2"])
        rule = scale_by_adam(b2=b2, moment_dtype=jnp.dtype(run.moment_dtype))
        update = jax.jit(lambda gradient, state, rule=rule: rule.update(gradient, state)[1])
        state: Any = None
        for seen in watch(run, range(step)):
            state = rule.init(seen.params) if state is None else state
            gradient = _gradient(seen.model, seen.params, seen.batch, run.loss_scale)
            state = update(gradient, state)
        for role, leaves in _by_role(seen.model, jax.device_get(state.nu)).items():
            entries = np.concatenate([np.asarray(leaf, np.float32).ravel() for leaf in leaves])
            root = np.sort(np.sqrt(entries / np.float32(1 - b2**step)))
            if not np.isfinite(root).all():
                raise ValueError(f"sqrt(v) of {role} at width {width} is not finite: it diverged")
            found.append(SecondMoment(run, role, root))
    return found


def root_histogram(moments: Sequence[SecondMoment]) -> pl.DataFrame:
    r"""Counts parameters by :math:`\sqrt{\hat v}`, in bins of a quarter of a decade.

    Returns:
        polars.DataFrame, a row per width, role and bin that is not empty: ``width``, ``role``,
        ``log10_low``, ``log10_high`` (null: exactly 0, parameters that never had a gradient) and
        ``count``.

    Example:
        >>> moment = SecondMoment(RunConfig(), "hidden", np.float32([0.0, 2e-4, 3e-4, 0.5]))
        >>> root_histogram([moment]).select("log10_low", "log10_high", "count").rows()
        [(None, None, 1), (-3.75, -3.5, 2), (-0.5, -0.25, 1)]
    """
    rows: list[tuple[Any, ...]] = []
    for config, role, root in moments:
        zeros = int((root == 0).sum())
        rows += [(config.width, role, None, None, zeros)] if zeros else []
        each = np.floor(np.log10(root[root > 0].astype(np.float64)) * 4).astype(int)
        rows += [
            (config.width, role, low / 4, (low + 1) / 4, int(count))
            for low, count in zip(*np.unique(each, return_counts=True), strict=True)
        ]
    floats = dict.fromkeys(["log10_low", "log10_high"], pl.Float64)
    schema = {"width": pl.Int64, "role": pl.String, **floats, "count": pl.Int64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def damped_shares(moments: Sequence[SecondMoment], epsilons: Sequence[float]) -> pl.DataFrame:
    r"""Returns the share of parameters whose update eps more than halves: those below it.

    .. math:: \frac{|m|}{\sqrt{\hat v} + \epsilon} < \frac12 \frac{|m|}{\sqrt{\hat v}}
        \iff \sqrt{\hat v} < \epsilon

    Parameters that never had a gradient do not count: they do not move at any eps. At
    ``eps_rule="per_layer"`` each role's eps is the given one times its factor.

    Returns:
        polars.DataFrame, a row per width, role and eps: ``width``, ``role``, ``eps``, ``share`` (0
        to 1; null where no parameter of the role had a gradient).

    Example:
        >>> moment = SecondMoment(RunConfig(), "hidden", np.float32([0.0, 1e-9, 1e-3, 1e-3]))
        >>> damped_shares([moment], [1e-8, 1e-2])["share"].round(3).to_list()
        [0.333, 1.0]
    """
    rows: list[tuple[Any, ...]] = []
    for config, role, root in moments:
        moved = root[root > 0]
        for eps in epsilons:
            below = np.searchsorted(moved, eps * config.eps_factors[role])
            rows.append((config.width, role, eps, below / len(moved) if len(moved) else None))
    schema = {"width": pl.Int64, "role": pl.String, "eps": pl.Float64, "share": pl.Float64}
    return pl.DataFrame(rows, schema=schema, orient="row")
