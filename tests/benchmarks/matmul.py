r"""The model's floating-point rate over the machine's own float32 matrix-product rate.

Counted per token of a training step, as computed (masked scores included):

.. math:: 6 N + 12\, d L D

N: elements of the matrices that multiply activations, :math:`d (4 + 2 r) D^2 + D V`, each used in
three products of two operations (forward; backward for the input and for the weight); the second
term: scores and weighted values of d layers, two products of :math:`2 L D` operations, times three.
Norms, softmax, GELU, the embedding and the optimizer count as nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import polars as pl
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from benchmarks import report
from isolab.measure.step_time import Interval, interleave
from isolab.model.corpus import load_corpus
from isolab.model.transformer import TransformerConfig
from isolab.training.config import RunConfig

WIDTHS = (32, 64, 128, 256)
SQUARE = 1024
"""Size of the square product that stands for the machine at its best."""


def products(model: TransformerConfig) -> list[tuple[int, int, int]]:
    """Returns (fan_in, fan_out, how many) of the model's matrix products with weights.

    Example:
        >>> products(TransformerConfig(width=32, depth=2))
        [(32, 96, 2), (32, 32, 2), (32, 128, 2), (128, 32, 2), (32, 256, 1)]
    """
    D, F, depth = model.width, model.mlp_ratio * model.width, model.depth
    blocks = [(D, 3 * D), (D, D), (D, F), (F, D)]
    return [(n, m, depth) for n, m in blocks] + [(D, model.vocab_size, 1)]


def training_flops(model: TransformerConfig, batch_size: int) -> int:
    """Returns floating-point operations of one training step; see the module for the formula.

    Example:
        >>> training_flops(TransformerConfig(width=64), batch_size=32) / 1e9
        1.610612736
    """
    tokens = batch_size * model.context
    matrices = sum(n * m * count for n, m, count in products(model))
    attention = 12 * model.depth * model.context * model.width
    return tokens * (6 * matrices + attention)


@threadpool_limits.wrap(limits=1, user_api="blas")  # type: ignore[untyped-decorator]  # as train
def measure(
    widths: Sequence[int] = WIDTHS,
    rounds: int = 5,
    base: RunConfig | None = None,
    progress: bool = True,
) -> pl.DataFrame:
    """Times Adam's training step and plain matrix products in turn.

    Args:
        widths: of the model.
        rounds: timed turns.
        base: the run that the widths vary; its ``evaluate_every`` steps are timed at once.
        progress: show a bar.

    Returns:
        A row per width and round: ``width``, ``round``, and in GFLOP/s ``step`` (the model's),
        ``products`` (the model's products with weights, forward and backward, nothing else) and
        ``square`` (one product of 1,024 x 1,024 matrices: the machine's rate); ``utilization`` is
        step over square.
    """
    base = base or RunConfig(learning_rate=0.002, evaluate_every=10)
    vocab_size = load_corpus(base.corpus).vocab_size
    frames = []
    for width in widths:
        config = dataclasses.replace(base, width=width)
        model = config.model_config(vocab_size)
        tokens = config.batch_size * config.context
        shapes = [(tokens, n, m) for n, m, count in products(model) for _ in range(count)]
        flops = {
            "step": training_flops(model, config.batch_size) * config.evaluate_every,
            "products": sum(6 * t * n * m for t, n, m in shapes) * config.evaluate_every,
            "square": 2 * SQUARE**3 * 4,
        }
        calls: dict[str, Callable[[], object]] = {
            "step": Interval(config),
            "products": _linear_layers(shapes, config.evaluate_every),
            "square": _square(SQUARE, 4),
        }
        seconds = interleave(calls, rounds, f"width {width}" if progress else None)
        rate = {name: flops[name] / seconds[name] / 1e9 for name in calls}
        columns = {"width": width, "round": range(rounds), **rate}
        frames.append(pl.DataFrame(columns | {"utilization": rate["step"] / rate["square"]}))
    return pl.concat(frames)


def table(frame: pl.DataFrame) -> str:
    """Returns :func:`measure`'s frame as a Markdown table, with the machine below it."""
    columns = {
        "training step, GFLOP/s": report.median("step"),
        "its products alone": report.median("products"),
        f"{SQUARE} x {SQUARE}": report.median("square"),
        "step / its products [min-max]": report.spread("of_products"),
        "step / square [min-max]": report.spread("utilization"),
    }
    frame = frame.with_columns(of_products=pl.col("step") / pl.col("products"))
    return report.table(frame, {"width": "width"}, columns)


def _linear_layers(shapes: Sequence[tuple[int, int, int]], times: int) -> Callable[[], object]:
    """All products of linear layers, forward, and backward for input and weight, ``times`` over.

    Within one program, as in training: a call of its own would also time fresh memory for outputs.
    Each turn takes the last one's results, so that none can be left out; weights are
    semi-orthogonal and stay, so that values neither grow nor fade.
    """
    keys = jax.random.split(jax.random.key(0), 3 * len(shapes)).reshape(len(shapes), 3)
    operands = [
        (
            jax.random.normal(x_key, (tokens, n)),
            jax.nn.initializers.orthogonal()(w_key, (n, m)),
            jax.random.normal(dy_key, (tokens, m)),
        )
        for (tokens, n, m), (x_key, w_key, dy_key) in zip(shapes, keys, strict=True)
    ]

    def turn(_: Any, layers: Any) -> Any:
        return [(dy @ w.T, w + 0.0 * (x.T @ dy), x @ w) for x, w, dy in layers]

    compiled = jax.jit(lambda layers: jax.lax.fori_loop(0, times, turn, layers))
    return lambda: jax.block_until_ready(compiled(operands))


def _square(size: int, times: int) -> Callable[[], object]:
    """A product of two square matrices, ``times`` over within one program."""
    x = jax.nn.initializers.orthogonal()(jax.random.key(0), (size, size))
    compiled = jax.jit(lambda x: jax.lax.fori_loop(0, times, lambda _, y: y @ x, x))
    return lambda: jax.block_until_ready(compiled(x))
