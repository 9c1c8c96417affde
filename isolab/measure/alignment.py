r"""Alignment exponents: how fast a product adds up with fan-in, measured while training.

.. math:: \alpha = \log_n \frac{\mathrm{rms}(W z)}{\mathrm{rms}(W)\,\mathrm{rms}(z)}

n is the fan-in. Entries without a relation to each other add up as :math:`\sqrt n`, so
:math:`\alpha = 1/2`; a matrix whose rows lie along z adds up as n, :math:`\alpha = 1`. Below 1/2
the two avoid each other. The layer's multiplier does not enter: W is the parameter itself.

Three matrices meet the same z, what enters the layer after step t:

- ``weights``: :math:`W_t`
- ``change``: :math:`W_t - W_0`, all that was learned
- ``update``: :math:`W_t - W_{t-1}`, the last step's

:math:`W_t z_t - W_s z_s = (W_t - W_s) z_t + W_s (z_t - z_s)`: z is taken after the step since that
is the z which the change of weights meets in the change of the layer's output.

Reference: Everett et al., arXiv:2407.05872.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl

from isolab.measure.observe import observe
from isolab.model.corpus import load_corpus, validation_windows
from isolab.model.probe import Layer, activations, in_order, rms
from isolab.optimizers.dtypes import at_least_float32
from isolab.training.config import RunConfig
from isolab.training.watch import ForwardModel, Observation, by_layer

KINDS = ("weights", "change", "update")
ROLES = ("hidden", "readout")
WINDOWS = 8


def alignment(weights: Any, inputs: Any) -> jax.Array:
    r"""Returns the alignment exponent of a matrix, (n, fan_out), with its inputs, (..., n).

    rms is over all entries, of all rows of z. Scaling either side changes nothing. By the
    Cauchy-Schwarz inequality :math:`\alpha \le 1`. A scalar, at least float32; NaN where either
    side is all zero, -inf where only Wz is.

    Raises:
        ValueError: the shapes do not fit, or n is 1, for which no exponent exists.

    Example:
        >>> float(alignment(jnp.ones((64, 8)), jnp.ones((4, 64))))
        1.0
        >>> w_key, z_key = jax.random.split(jax.random.key(0))
        >>> w, z = jax.random.normal(w_key, (1024, 256)), jax.random.normal(z_key, (64, 1024))
        >>> round(float(alignment(w, z)), 2)
        0.5
    """
    w, z = jnp.asarray(weights), jnp.asarray(inputs)
    if w.ndim != 2 or z.ndim < 1 or z.shape[-1] != w.shape[0] or w.shape[0] < 2:
        raise ValueError(
            f"weights have shape {w.shape} and inputs {z.shape}; allowed: (n, fan_out) and"
            " (..., n), n of 2 or more"
        )
    w, z = (_scaled(x.astype(at_least_float32(x.dtype))) for x in (w, z))
    product = jnp.matmul(z, w, precision=jax.lax.Precision.HIGHEST)
    return jnp.log(rms(product) / (rms(w) * rms(z))) / math.log(w.shape[0])


def measure(
    config: RunConfig, widths: Sequence[int], steps: Sequence[int], seeds: Sequence[int]
) -> pl.DataFrame:
    """Trains runs of a config and measures the alignment of every hidden and readout matrix.

    Embeddings are left out, as their fan-in does not grow (a row is looked up, nothing is added
    up), and so are gains. z is what enters the layer on :data:`WINDOWS` held-out windows.

    Returns:
        polars.DataFrame, as of :func:`observe`: ``layer`` ("blocks/0/mlp/up"), ``role``, ``fan_in``
        (the layer's own n), ``kind`` (at step 0 only weights) and ``alignment`` (float64; null
        where a matrix is zero or not finite).
    """
    inputs, _ = validation_windows(load_corpus(config.corpus), WINDOWS, config.context)
    function = functools.partial(_rows, inputs=inputs)
    axes = {"width": widths, "seed": seeds}
    return observe(config, axes, steps, function, {"alignment": pl.Float64})


def _rows(seen: Observation, inputs: Any) -> list[dict[str, Any]]:
    measured = _alignments(seen.model, seen.params, seen.initial, seen.previous, inputs)
    fan_in = {name: kernel.shape[0] for name, kernel in by_layer(seen.params).items()}
    return [
        {
            "layer": name,
            "role": seen.model.roles[name],
            "fan_in": fan_in[name],
            "kind": kind,
            "alignment": float(value) if np.isfinite(value) else None,
        }
        for name, layer in in_order(measured)
        for kind, value in zip(KINDS[: 3 if seen.step else 1], layer.output, strict=False)
    ]


@functools.partial(jax.jit, static_argnums=0)
def _alignments(
    model: ForwardModel, params: Any, initial: Any, previous: Any, inputs: jax.Array
) -> dict[str, Layer]:
    """Returns each matrix's alignments, one a kind, as the output of its layer."""
    seen = activations(model(params), inputs)
    first, before = by_layer(initial), by_layer(previous)
    measured = {}
    for name, w in by_layer(params).items():
        if model.roles[name] in ROLES:
            matrices = (w, w - first[name], w - before[name])
            exponents = [alignment(matrix, seen[name].inputs[0]) for matrix in matrices]
            measured[name] = Layer((), jnp.stack(exponents), seen[name].order)
    return measured


def _scaled(values: jax.Array) -> jax.Array:
    """Divides by the largest entry, so that squares neither overflow nor underflow."""
    largest = jnp.max(jnp.abs(values))
    return values / jnp.where(largest > 0, largest, 1)
