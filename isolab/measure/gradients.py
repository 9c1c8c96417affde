r"""How large gradients are, by role and width, and what epsilon makes of them.

Adam divides by :math:`\sqrt{\hat v} + \epsilon`. Gradients go as :math:`n^{-g}` with the width n
(:meth:`isolab.theory.parameterization.Parameterization.gradient_exponent`), so an epsilon that did
nothing
at one width rules at another: a parameter with :math:`\sqrt{\hat v} < \epsilon` gets less than half
of the update that it would get without epsilon.

All of it is measured at steps of real runs (:func:`isolab.training.watch.watch`), on the run's own
batches, with its loss scale: what its optimizer sees.

Reference: Everett et al., arXiv:2407.05872, section 4.3.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from isolab.analysis.seeds import check_confidence, seed_interval
from isolab.analysis.width_lines import size_tables, width_lines
from isolab.model.corpus import Corpus, load_corpus
from isolab.model.probe import rms
from isolab.model.transformer import next_token_loss, roles
from isolab.optimizers.adam import scale_by_adam
from isolab.optimizers.catalog import CATALOG
from isolab.theory.parameterization import PARAMETERIZATIONS, ROLES, parameterization
from isolab.training.config import RunConfig
from isolab.training.program import batch_of, keys
from isolab.training.watch import ForwardModel, checked_whole, watch

if TYPE_CHECKING:
    import polars as pl


GROUP = ("parameterization", "step", "role")
"""Columns that tell apart what :func:`gradient_sizes` measures at several widths."""


class SecondMoment(NamedTuple):
    r"""Adam's :math:`\sqrt{\hat v}` of all parameters of one role.

    Attributes:
        config: the run at its width.
        role: of :data:`isolab.theory.parameterization.ROLES`.
        root: (parameters,) float32, ascending; 0 where there never was a gradient.
    """

    config: RunConfig
    role: str
    root: np.ndarray


def gradient_sizes(
    config: RunConfig,
    widths: Sequence[int],
    parameterizations: Sequence[str] = tuple(PARAMETERIZATIONS),
    steps: Sequence[int] = (0,),
    seeds: Sequence[int] = (0, 1, 2),
) -> pl.DataFrame:
    """Measures the root mean square of each role's gradient at steps of real runs.

    Args:
        config: the run; its width, parameterization and seed are replaced.
        widths: multiples of ``config.head_size``.
        parameterizations: names.
        steps: updates done before the gradient is taken, 0 (at initialization) to
            ``config.steps``; its batch is the one that the next update takes.
        seeds: one or more.

    Returns:
        polars.DataFrame, a row per run, step and role: ``parameterization``, ``width``, ``seed``,
        ``step``, ``role``, ``gradient_rms`` (float64; over all parameters of the role, those
        without a gradient included, times ``config.loss_scale``).

    Raises:
        ValueError: impossible widths, steps, seeds or parameterizations, by name and value.
    """
    import polars as pl

    widths, seeds = checked_whole("widths", widths, 1), checked_whole("seeds", seeds, 0)
    steps = checked_whole("steps", steps, 0, config.steps)
    corpus = load_corpus(config.corpus)
    tokens = jnp.asarray(corpus.train)
    runs = [
        dataclasses.replace(config, parameterization=name, width=width)
        for name in parameterizations
        for width in widths
    ]

    def measured(run: RunConfig) -> list[tuple[Any, ...]]:
        gradient, by_role = _gradient(run, corpus.vocab_size)
        sizes = jax.jit(lambda *now: _sizes(by_role(gradient(*now))))
        rows: list[tuple[Any, ...]] = []
        for seed in seeds:
            for moment in watch(dataclasses.replace(run, seed=seed), steps, corpus):
                found = jax.device_get(sizes(moment.params, seed, moment.step, tokens))
                rows += [
                    (run.parameterization, run.width, seed, moment.step, role, float(found[role]))
                    for role in ROLES
                ]
        return rows

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # most of it is compiling, on one core each
        found = list(pool.map(measured, runs))
    return pl.DataFrame(
        list(itertools.chain.from_iterable(found)),
        schema={
            "parameterization": pl.String, "width": pl.Int64, "seed": pl.Int64, "step": pl.Int64,
            "role": pl.String, "gradient_rms": pl.Float64,
        },
        orient="row",
    )  # fmt: skip


def gradient_exponents(gradients: pl.DataFrame, confidence: float = 0.95) -> pl.DataFrame:
    r"""Fits how each role's gradient shrinks with the width, beside what theory says.

    .. math:: \mathrm{rms} \sim n^{-g}

    Args:
        gradients: from :func:`gradient_sizes`; two widths or more.
        confidence: of the interval over seeds.

    Returns:
        polars.DataFrame, a row per parameterization, step and role: ``parameterization``, ``step``,
        ``role``, ``exponent`` (g), ``exponent_low``, ``exponent_high`` (infinite for one seed),
        ``theory`` (g at initialization), ``residual`` (rms misfit of the line, in log2 units) and
        ``note``. Nulls, and a note, where a gradient is 0 or not finite.

    Raises:
        ValueError: missing columns, no rows, one width, seeds or widths that are missing somewhere,
            an unknown parameterization or role, or a confidence out of (0, 1).

    Example:
        >>> import polars as pl
        >>> frame = pl.DataFrame({"parameterization": "mup", "width": [32, 64], "seed": 0,
        ...     "step": 0, "role": "hidden", "gradient_rms": [0.5, 0.25]})
        >>> gradient_exponents(frame).select("exponent", "theory").rows()
        [(1.0, 1.0)]
    """
    import polars as pl

    check_confidence(confidence)
    rows = []
    for name, sizes, widths in size_tables(gradients, GROUP, "gradient_rms"):
        theory = parameterization(name["parameterization"]).gradient_exponent(name["role"])
        row: dict[str, Any] = name | {"theory": theory, "note": ""}
        try:
            lines = width_lines(sizes, widths)
        except ValueError as error:
            if len(widths) < 2:
                raise
            rows.append(row | {"note": f"no exponent: {error}"})
            continue
        low, high = seed_interval(lines.slopes, confidence)
        fitted = {"exponent": -float(lines.slopes.mean()), "residual": lines.residual}
        note = "one seed: no interval" if len(sizes) == 1 else ""
        ends = {"exponent_low": -high, "exponent_high": -low}
        rows.append(row | fitted | ends | {"note": note})
    numbers = ["exponent", "exponent_low", "exponent_high", "theory", "residual"]
    schema: dict[str, Any] = {"parameterization": pl.String, "step": pl.Int64, "role": pl.String}
    schema |= dict.fromkeys(numbers, pl.Float64) | {"note": pl.String}
    return pl.DataFrame([dict.fromkeys(schema) | row for row in rows], schema=schema)


def second_moments(
    config: RunConfig, widths: Sequence[int], step: int, corpus: Corpus | None = None
) -> list[SecondMoment]:
    r"""Measures :math:`\sqrt{\hat v}`, the denominator of update number ``step``.

    v is computed from the run's gradients as Adam keeps it, whatever the run's optimizer is: with
    the run's ``b2``, or Adam's default where it has none.

    Args:
        config: the run; its width is replaced.
        widths: multiples of ``config.head_size``.
        step: 1 to ``config.steps``; takes the gradient of every step before it.
        corpus: the one that the config names, if already loaded.

    Raises:
        ValueError: impossible widths or step, by name and value.
    """
    widths = checked_whole("widths", widths, 1)
    (step,) = checked_whole("step", [step], 1, config.steps)
    corpus = corpus or load_corpus(config.corpus)
    tokens = jnp.asarray(corpus.train)
    found = []
    for run in [dataclasses.replace(config, width=width) for width in widths]:
        gradient, by_role = _gradient(run, corpus.vocab_size)
        b2 = run.hyperparameters.get("b2", CATALOG["adam"].defaults["b2"])
        rule = scale_by_adam(b2=b2, moment_dtype=jnp.dtype(run.moment_dtype))
        keep = jax.jit(lambda state, *now, g=gradient, r=rule: r.update(g(*now), state)[1])
        state: Any = None
        for moment in watch(run, range(step), corpus):
            state = rule.init(moment.params) if state is None else state
            state = keep(state, moment.params, run.seed, moment.step, tokens)
        corrected = 1 - b2**step
        for role, leaves in by_role(jax.device_get(state.nu)).items():
            entries = np.concatenate([np.asarray(leaf, np.float32).ravel() for leaf in leaves])
            found.append(SecondMoment(run, role, np.sort(np.sqrt(entries / np.float32(corrected)))))
    return found


def root_histogram(moments: Sequence[SecondMoment], bins_per_decade: int = 4) -> pl.DataFrame:
    r"""Counts parameters by :math:`\sqrt{\hat v}`, in bins of equal width in its log10.

    Args:
        moments: from :func:`second_moments`.
        bins_per_decade: 1 or more.

    Returns:
        polars.DataFrame, a row per width, role and bin that is not empty: ``width``, ``role``,
        ``log10_low``, ``log10_high`` (null: exactly 0, parameters that never had a gradient) and
        ``count``.

    Raises:
        ValueError: no moments, a root that is not finite, or an impossible number of bins.

    Example:
        >>> moment = SecondMoment(RunConfig(), "hidden", np.float32([0.0, 2e-4, 3e-4, 0.5]))
        >>> root_histogram([moment], 1).select("log10_low", "log10_high", "count").rows()
        [(None, None, 1), (-4.0, -3.0, 2), (-1.0, 0.0, 1)]
    """
    import polars as pl

    (bins,) = checked_whole("bins_per_decade", [bins_per_decade], 1)
    _check_moments(moments)
    rows: list[tuple[Any, ...]] = []
    for config, role, root in moments:
        zeros = int((root == 0).sum())
        rows += [(config.width, role, None, None, zeros)] if zeros else []
        each = np.floor(np.log10(root[root > 0].astype(np.float64)) * bins).astype(int)
        rows += [
            (config.width, role, low / bins, (low + 1) / bins, int(count))
            for low, count in zip(*np.unique(each, return_counts=True), strict=True)
        ]
    return pl.DataFrame(
        rows,
        schema={
            "width": pl.Int64, "role": pl.String, "log10_low": pl.Float64,
            "log10_high": pl.Float64, "count": pl.Int64,
        },
        orient="row",
    )  # fmt: skip


def damped_shares(moments: Sequence[SecondMoment], epsilons: Sequence[float]) -> pl.DataFrame:
    r"""Returns the share of parameters whose update eps more than halves: those below it.

    .. math:: \frac{|m|}{\sqrt{\hat v} + \epsilon} < \frac12 \frac{|m|}{\sqrt{\hat v}}
        \iff \sqrt{\hat v} < \epsilon

    Parameters that never had a gradient do not count: they do not move at any eps.

    Args:
        moments: from :func:`second_moments`.
        epsilons: 0 or more; at ``eps_rule="per_layer"`` each role's is that times its factor.

    Returns:
        polars.DataFrame, a row per width, role and eps: ``width``, ``role``, ``eps``, ``share`` (0
        to 1; null where no parameter of the role had a gradient).

    Raises:
        ValueError: no moments, a root that is not finite, or an eps that is negative or not finite.

    Example:
        >>> moment = SecondMoment(RunConfig(), "hidden", np.float32([0.0, 1e-9, 1e-3, 1e-3]))
        >>> damped_shares([moment], [1e-8, 1e-2])["share"].round(3).to_list()
        [0.333, 1.0]
    """
    import polars as pl

    _check_moments(moments)
    bad = [eps for eps in epsilons if not 0 <= eps < float("inf")]
    if bad or not len(epsilons):
        raise ValueError(f"epsilons is {epsilons!r}; allowed: one number or more, each 0 or more")
    rows: list[tuple[Any, ...]] = []
    for config, role, root in moments:
        moved = root[root > 0]
        for eps in epsilons:
            below = np.searchsorted(moved, eps * config.eps_factors[role])
            rows.append((config.width, role, eps, below / len(moved) if len(moved) else None))
    schema = {"width": pl.Int64, "role": pl.String, "eps": pl.Float64, "share": pl.Float64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def _gradient(
    config: RunConfig, vocab_size: int
) -> tuple[Callable[..., Any], Callable[[Any], dict[str, list[Any]]]]:
    """Returns gradient(params, seed, step, tokens), as the run takes it, and its leaves by role."""
    model = ForwardModel(config, vocab_size)
    names = jax.tree.leaves(roles(model.shape))

    def loss(params: Any, inputs: jax.Array, targets: jax.Array) -> jax.Array:
        return config.loss_scale * next_token_loss(model(params), inputs, targets)[0]

    def gradient(params: Any, seed: Any, step: Any, tokens: jax.Array) -> Any:
        _, data_key = keys(seed)
        return jax.grad(loss)(params, *batch_of(config, data_key, step, tokens))

    def by_role(tree: Any) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {role: [] for role in ROLES}
        for role, leaf in zip(names, jax.tree.leaves(tree), strict=True):
            found[role].append(leaf)
        return found

    return gradient, by_role


def _sizes(leaves: dict[str, list[Any]]) -> dict[str, jax.Array]:
    return {role: rms(of) for role, of in leaves.items()}


def _check_moments(moments: Sequence[SecondMoment]) -> None:
    if not moments:
        raise ValueError("moments is empty; allowed: one or more, from second_moments")
    for config, role, root in moments:
        if not np.isfinite(root).all():
            raise ValueError(
                f"sqrt(v) of {role} at width {config.width} is not finite: it diverged"
            )
