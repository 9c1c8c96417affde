r"""What a run looks like inside: how far a step moves each layer, along what, and its factors.

One more step is taken from the run's state, on the batch that comes next and with all that the
optimizer remembers, but at the peak rate: the schedule is left out, so that steps and runs compare,
and the end, where the schedule reaches 0, is no exception.  The run itself is left as it is.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from isolab.measure.alignment import ROLES, alignment
from isolab.model.corpus import Corpus, load_corpus, validation_windows
from isolab.model.probe import Layer, activations, in_order, rms
from isolab.model.transformer import next_token_loss
from isolab.optimizers.factors import Factors
from isolab.optimizers.leaves import by_path
from isolab.optimizers.products import value_grad_factors
from isolab.training.config import RunConfig
from isolab.training.program import (
    SingleRun,
    TrainState,
    device_tokens,
    keep_compiled_programs,
    program_of,
    run_values,
)
from isolab.training.watch import ForwardModel, by_layer

TOKENS = 1024
"""Held-out tokens on which layers are measured, about."""

LARGEST_SIDE = 512
"""Factors of longer sides are left out of the spectra: one of 1024 takes a second."""

MOST_BLOCKS = 4
"""Blocks whose spectra are measured; of a deeper model, that many evenly spaced ones."""

SIDES = ("input E[x x^T]", "output E[g g^T]")


class Inside(NamedTuple):
    """What a run looks like inside.

    Attributes:
        step: updates that the run had done.
        layers: a row per parameter, from the input on: ``step``, ``layer`` ("blocks/0/mlp/up"),
            ``role``, ``update_rms`` (root mean square of the next step's change of the parameter,
            at the peak rate), ``relative_update`` (that over the parameter's own; null where it is
            all zero), ``alignment`` (exponent of that change with what enters the layer, see
            :mod:`isolab.measure.alignment`; null for what is no hidden or readout matrix, and for
            a change of zero); null also where a number is not finite.
        spectra: of each hidden matrix's factors on the held-out batch, whatever the optimizer, a
            row per eigenvalue: ``layer``, ``side`` (one of ``SIDES``), ``index`` (from 1, the
            largest) and ``eigenvalue`` (over the largest).
        note: what is left out of the spectra, in words; or nothing.
    """

    step: int
    layers: pl.DataFrame
    spectra: pl.DataFrame
    note: str = ""


@threadpool_limits.wrap(limits=1, user_api="blas")  # type: ignore[untyped-decorator]  # see isolab.optimizers.matrix_roots
def inspect_run(
    config: RunConfig, state: TrainState, step: int, corpus: Corpus | None = None
) -> Inside:
    """Looks inside a run.

    Args:
        state: one run's, as of :meth:`isolab.training.train.Snapshot.run` or
            :class:`isolab.training.watch.Observation`; it is left as it is.
        step: updates done.
        corpus: the one that the config names, if already loaded.
    """
    corpus = corpus or load_corpus(config.corpus)
    traced = run_values(dataclasses.replace(config, warmup_steps=0))
    windows = validation_windows(corpus, _window_count(config), config.context)
    found = _program(config, corpus)(state, traced, jnp.int32(step), device_tokens(corpus), windows)
    layers, factors = jax.device_get(found)
    model = ForwardModel.of(config, corpus.vocab_size)
    _, note = _measured_sides(model)
    return Inside(step, _layer_frame(model, layers, step), _spectra_frame(layers, factors), note)


def prepare_inspection(config: RunConfig, corpus: Corpus | None = None) -> None:
    """Compiles ahead what :func:`inspect_run` needs for this run."""
    _program(config, corpus or load_corpus(config.corpus))


def _program(config: RunConfig, corpus: Corpus) -> Any:
    constant = dataclasses.replace(
        config, schedule="constant", evaluate_every=1, validation_windows=1
    )
    return _compiled(program_of(constant), corpus.vocab_size, corpus.train.size)


@functools.lru_cache(maxsize=16)
def _compiled(static: RunConfig, vocab_size: int, token_count: int) -> Any:
    """Returns the compiled (state, traced, step, tokens, windows) -> (layers, factors)."""
    keep_compiled_programs()
    model, run = ForwardModel.of(static, vocab_size), SingleRun(static, vocab_size)

    def inspect(state: TrainState, traced: Any, step: Any, tokens: Any, windows: Any) -> Any:
        after, _, _ = run.advance(state, traced, step, tokens, windows)
        layers = _layers(model, state.params, after.params, windows[0])
        return layers, _factors(model, state.params, windows)

    shape = jax.ShapeDtypeStruct((_window_count(static), static.context), jnp.int32)
    traced = run_values(static)
    state = run.abstract_state()
    step = jax.ShapeDtypeStruct((), jnp.int32)
    tokens = jax.ShapeDtypeStruct((token_count,), jnp.uint8)
    return jax.jit(inspect).lower(state, traced, step, tokens, (shape, shape)).compile()


def _layers(model: ForwardModel, params: Any, stepped: Any, inputs: jax.Array) -> dict[str, Layer]:
    """Returns the numbers of each layer's change, as the output of the layer."""
    seen, after = activations(model(stepped), inputs), by_layer(stepped)
    layers = {}
    for name, value in by_layer(params).items():
        change = after[name] - value
        numbers = {"update_rms": rms(change), "relative_update": rms(change) / rms(value)}
        if model.roles[name] in ROLES:
            numbers["alignment"] = alignment(change, seen[name].inputs[0])
        layers[name] = Layer((), numbers, seen[name].order if name in seen else 0)
    return layers


def _factors(model: ForwardModel, params: Any, windows: Any) -> dict[str, dict[str, jax.Array]]:
    """Returns the factors of hidden matrices by layer and side, (size, size) each."""
    sides, _ = _measured_sides(model)
    if not sides:
        return {}

    def loss(params: Any) -> jax.Array:
        return next_token_loss(model(params), *windows)[0]

    kernels = [f"{name}/kernel" for name in sides]
    _, _, factors = value_grad_factors(loss, kernels, max_side=LARGEST_SIDE)(params)
    pairs = by_path(factors, is_leaf=lambda node: isinstance(node, Factors))
    return {
        name: {
            side: x[0]
            for side, x in zip(SIDES, pairs[f"{name}/kernel"], strict=True)
            if side in measured
        }
        for name, measured in sides.items()
    }


@functools.lru_cache(maxsize=16)
def _measured_sides(model: ForwardModel) -> tuple[dict[str, list[str]], str]:
    """Returns which sides of which hidden matrices are measured, and what is left out."""
    depth = model.config.depth
    count = min(depth, MOST_BLOCKS)
    blocks = [round(i * (depth - 1) / max(count - 1, 1)) for i in range(count)]
    measured: dict[str, list[str]] = {}
    left_out = set()
    for name, kernel in by_layer(model.shapes).items():
        if model.roles[name] != "hidden" or int(name.split("/")[1]) not in blocks:
            continue
        for side, size in zip(SIDES, kernel.shape, strict=True):
            if size <= LARGEST_SIDE:
                measured.setdefault(name, []).append(side)
            else:
                left_out.add(f"{side.split()[0]} of {name.split('/')[-1]}")
    notes = []
    if len(blocks) < depth:
        notes.append(f"blocks {', '.join(map(str, blocks))} of {depth} only")
    if left_out:
        notes.append(f"without sides longer than {LARGEST_SIDE}: {', '.join(sorted(left_out))}")
    return measured, "; ".join(notes)


def _layer_frame(model: ForwardModel, layers: dict[str, Layer], step: int) -> pl.DataFrame:
    """Returns ``layers`` of :class:`Inside`."""
    numbers = ("update_rms", "relative_update", "alignment")
    rows = [
        {"step": step, "layer": name, "role": model.roles[name]}
        | {column: _finite(layer.output.get(column, np.nan)) for column in numbers}
        for name, layer in in_order(layers)
    ]
    return pl.DataFrame(rows, schema_overrides=dict.fromkeys(numbers, pl.Float64))


def _spectra_frame(
    layers: dict[str, Layer], factors: dict[str, dict[str, np.ndarray]]
) -> pl.DataFrame:
    """Returns ``spectra`` of :class:`Inside`; a factor of zeros or not finite has no rows."""
    schema = {"layer": pl.String, "side": pl.String, "index": pl.Int64, "eigenvalue": pl.Float64}
    frames = [pl.DataFrame(schema=schema)]
    for (name, _), side in itertools.product(in_order(layers), SIDES):
        factor = np.asarray(factors.get(name, {}).get(side, 0.0), np.float64)
        if not np.isfinite(factor).all() or not factor.any():
            continue
        values = np.linalg.eigvalsh(factor)[::-1]
        values = np.maximum(values / values[0], 0.0)  # below 0 by rounding only
        columns = {"layer": name, "side": side, "index": range(1, len(values) + 1)}
        frames.append(pl.DataFrame(columns | {"eigenvalue": values}, schema=schema))
    return pl.concat(frames)


def _window_count(config: RunConfig) -> int:
    return max(1, TOKENS // config.context)


def _finite(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
