r"""What a run looks like inside: how far a step moves each layer, along what, and its factors.

A look takes one more step from a copy of the run's state, on the batch that comes next and with all
that the optimizer remembers, but at the peak rate: the schedule is left out, so that moments and
runs compare, and the end, where the schedule reaches 0, is no exception.  The run itself goes on as
if nobody had looked.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from isolab.measure.alignment import ROLES, alignment
from isolab.model.corpus import Corpus, load_corpus
from isolab.model.probe import activations, rms
from isolab.model.transformer import next_token_loss, roles
from isolab.optimizers.linear import Factor, Linear, factors_by_kernel, measure_factors
from isolab.training.compilation_cache import keep_compiled_programs
from isolab.training.config import RunConfig
from isolab.training.program import TrainState, program_of, run_values, single_run
from isolab.training.watch import ForwardModel, held_out

if TYPE_CHECKING:
    import polars as pl

TOKENS = 1024
"""Held-out tokens on which a look is taken, about."""

LARGEST_SIDE = 512
"""Factors of longer sides are left out of the spectra: one of 1024 takes a second."""

MOST_BLOCKS = 4
"""Blocks whose spectra are measured; of a deeper model, that many evenly spaced ones."""

SIDES = ("input E[x x^T]", "output E[g g^T]")


class Inside(NamedTuple):
    """A look inside a run.

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
        config: the run.
        state: one run's, as of :meth:`isolab.training.train.Snapshot.run`; it is left as it is.
        step: updates done.
        corpus: the one that the config names, if already loaded.
    """
    corpus = corpus or load_corpus(config.corpus)
    look = _look_of(config, corpus)
    found = look.program(
        state, _traced(config), jnp.int32(step), _tokens(corpus), _windows(corpus, config)
    )
    layers, factors = jax.device_get(found)
    return Inside(step, look.layer_frame(layers, step), look.spectra_frame(factors), look.note)


def prepare_inspection(config: RunConfig, corpus: Corpus | None = None) -> None:
    """Compiles ahead what :func:`inspect_run` needs for this run."""
    _look_of(config, corpus or load_corpus(config.corpus))


class _Look:
    """The compiled look of runs that share a program, and how to read what it returns.

    Attributes:
        program: (state, traced, step, tokens, windows) -> (numbers by layer, factors by layer).
        note: see :class:`Inside`.
    """

    def __init__(self, static: RunConfig, vocab_size: int, token_count: int) -> None:
        keep_compiled_programs()
        self._model = ForwardModel(static, vocab_size)
        self._step = single_run(static, vocab_size)
        named = _flat(roles(self._model.shape))
        self._roles = {_layer_name(path): role for path, role in named.items()}
        self._hidden, self.note = self._measured(static.depth)
        count = _window_count(static)
        shape = jax.ShapeDtypeStruct((count, static.context), jnp.int32)
        traced = run_values(static)
        state, _ = jax.eval_shape(self._step.init, traced, (shape, shape))
        self._order: dict[str, int] = {}  # filled where the program is traced
        arguments = (
            state,
            traced,
            jax.ShapeDtypeStruct((), jnp.int32),
            jax.ShapeDtypeStruct((token_count,), jnp.uint8),
            (shape, shape),
        )
        self.program = jax.jit(self._look).lower(*arguments).compile()

    def layer_frame(self, found: dict[str, dict[str, Any]], step: int) -> pl.DataFrame:
        """Returns ``layers`` of :class:`Inside`."""
        import polars as pl

        rows = [
            {
                "step": step,
                "layer": name,
                "role": self._roles[name],
                **{column: _number(value) for column, value in found[name].items()},
            }
            for name in sorted(found, key=lambda name: (self._order.get(name, 0), name))
        ]
        schema = {
            "step": pl.Int64, "layer": pl.String, "role": pl.String, "update_rms": pl.Float64,
            "relative_update": pl.Float64, "alignment": pl.Float64,
        }  # fmt: skip
        return pl.DataFrame(rows, schema=schema)

    def spectra_frame(self, factors: dict[str, dict[str, Any]]) -> pl.DataFrame:
        """Returns ``spectra`` of :class:`Inside`; a factor of zeros or not finite has no rows."""
        import polars as pl

        schema = {
            "layer": pl.String, "side": pl.String, "index": pl.Int64, "eigenvalue": pl.Float64,
        }  # fmt: skip
        frames = [pl.DataFrame(schema=schema)]
        names = sorted(factors, key=lambda name: self._order[name])
        for name, side in itertools.product(names, SIDES):
            if side not in factors[name]:
                continue
            factor = np.asarray(factors[name][side], np.float64)
            if not np.isfinite(factor).all() or not factor.any():
                continue
            values = np.linalg.eigvalsh(factor)[::-1]
            values = np.maximum(values / values[0], 0.0)  # below 0 by rounding only
            columns = {"layer": name, "side": side, "index": range(1, len(values) + 1)}
            frames.append(pl.DataFrame(columns | {"eigenvalue": values}, schema=schema))
        return pl.concat(frames)

    def _measured(self, depth: int) -> tuple[dict[str, tuple[int, int]], str]:
        """Returns which hidden matrices are measured, with their shapes, and what is left out."""
        last, count = depth - 1, min(depth, MOST_BLOCKS)
        blocks = [round(i * last / max(count - 1, 1)) for i in range(count)]
        measured: dict[str, tuple[int, int]] = {}
        long = set()
        for path, module in nnx.iter_modules(self._model.shape):
            name = "/".join(map(str, path))
            if not isinstance(module, Linear) or self._roles[name] != "hidden":
                continue
            sides = ("input", module.in_features), ("output", module.out_features)
            if path[1] in blocks:
                long |= {f"{side} of {path[-1]}" for side, size in sides if size > LARGEST_SIDE}
                if min(module.in_features, module.out_features) <= LARGEST_SIDE:
                    measured[name] = module.in_features, module.out_features
        notes = []
        if len(blocks) < depth:
            notes.append(f"blocks {', '.join(map(str, blocks))} of {depth} only")
        if long:
            notes.append(f"without sides longer than {LARGEST_SIDE}: {', '.join(sorted(long))}")
        return measured, "; ".join(notes)

    def _look(
        self, state: TrainState, traced: Any, step: jax.Array, tokens: jax.Array, windows: Any
    ) -> tuple[dict[str, dict[str, jax.Array]], dict[str, dict[str, jax.Array]]]:
        after, _, _ = self._step.advance(state, traced, step, tokens, windows)
        before, moved = _flat(state.params), _flat(after.params)
        seen = activations(self._model(after.params), windows[0])
        self._order = {name: layer.order for name, layer in seen.items()}
        layers: dict[str, dict[str, jax.Array]] = {}
        for path, value in before.items():
            name, change = _layer_name(path), moved[path] - value
            numbers = {"update_rms": rms(change), "relative_update": rms(change) / rms(value)}
            if self._roles[name] in ROLES:
                numbers["alignment"] = alignment(change, seen[name].inputs[0])
            layers[name] = numbers
        return layers, self._factors(state.params, windows)

    def _factors(
        self, params: Any, windows: tuple[jax.Array, jax.Array]
    ) -> dict[str, dict[str, jax.Array]]:
        if not self._hidden:
            return {}
        model, (inputs, targets) = self._model(params), windows
        measure_factors(model, where=lambda path, _: "/".join(map(str, path)) in self._hidden)
        graphdef, zeros, *rest = nnx.split(model, Factor, ...)

        def loss(factors: Any) -> jax.Array:
            objective, _ = next_token_loss(nnx.merge(graphdef, factors, *rest), inputs, targets)
            return objective

        measured = factors_by_kernel(nnx.to_pure_dict(jax.grad(loss)(zeros)))
        by_name = {_layer_name(path): pair for path, pair in _flat(measured, leaf=tuple).items()}
        return {
            name: {
                side: matrix[0]
                for side, matrix, size in zip(SIDES, by_name[name], sizes, strict=True)
                if size <= LARGEST_SIDE
            }
            for name, sizes in self._hidden.items()
        }


def _look_of(config: RunConfig, corpus: Corpus) -> _Look:
    constant = dataclasses.replace(
        config, schedule="constant", evaluate_every=1, validation_windows=1
    )
    return _compiled(program_of(constant), corpus.vocab_size, corpus.train.size)


@functools.lru_cache(maxsize=16)
def _compiled(static: RunConfig, vocab_size: int, token_count: int) -> _Look:
    return _Look(static, vocab_size, token_count)


def _traced(config: RunConfig) -> dict[str, jax.Array]:
    return run_values(dataclasses.replace(config, warmup_steps=0))


@functools.lru_cache(maxsize=4)
def _tokens(corpus: Corpus) -> jax.Array:
    return jnp.asarray(corpus.train)


def _window_count(config: RunConfig) -> int:
    return max(1, TOKENS // config.context)


def _windows(corpus: Corpus, config: RunConfig) -> tuple[jax.Array, jax.Array]:
    return held_out(corpus, _window_count(config), config.context)


def _flat(nested: Any, leaf: type | None = None) -> dict[tuple[str, ...], Any]:
    """Returns a nested dict as one of paths."""
    is_leaf = None if leaf is None else lambda node: isinstance(node, leaf)
    found, _ = jax.tree.flatten_with_path(nested, is_leaf=is_leaf)
    return {tuple(str(key.key) for key in path): value for path, value in found}


def _layer_name(path: tuple[str, ...]) -> str:
    """Returns the name of a parameter's layer; what lies in no layer has its own."""
    return "/".join(path[:-1] if path[-1] in ("kernel", "scale") else path)


def _number(value: Any) -> float | None:
    number = float(value)
    return number if np.isfinite(number) else None
