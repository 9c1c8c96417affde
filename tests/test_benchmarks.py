"""The benchmarks measure what they say; no test asserts a time."""

from __future__ import annotations

import dataclasses
import functools
import math
import types
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
from benchmarks import matmul, nanogpt, step_time, throughput
from benchmarks.__main__ import app
from benchmarks.plain_jax import PlainLoop, PlainTransformer
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from isolab.measure.step_time import (
    OPTIMIZERS,
    Interval,
    interleave,
    measure,
    ratio,
    representative_start,
    with_counters,
)
from isolab.model.corpus import load_corpus
from isolab.model.transformer import Transformer, TransformerConfig
from isolab.training.config import RunConfig

CORPUS = "zipf_markov:vocab_size=16,length=4000"
TINY = RunConfig(
    width=16, depth=1, head_size=8, context=8, batch_size=4, learning_rate=0.002, steps=8,
    evaluate_every=4, warmup_steps=0, validation_windows=2, corpus=CORPUS,
)  # fmt: skip


whole = st.integers(1, 1000).map(float)


@given(st.lists(st.tuples(whole, whole), min_size=1, max_size=6))
def test_calls_take_turns_and_the_first_turn_is_not_timed(
    rounds: list[tuple[float, float]],
) -> None:
    now, calls = 0.0, []
    durations = {
        name: iter([9e3, *own]) for name, own in zip("ab", zip(*rounds, strict=True), strict=True)
    }

    def work(name: str) -> None:
        nonlocal now
        calls.append(name)
        now += next(durations[name])

    work_of = {name: functools.partial(work, name) for name in "ab"}
    clock = types.SimpleNamespace(perf_counter=lambda: now)
    with mock.patch("isolab.measure.step_time.time", clock):
        seconds = interleave(work_of, len(rounds))
    assert calls == ["a", "b"] * (1 + len(rounds))
    # whole seconds: exact in float64
    assert np.stack([seconds["a"], seconds["b"]], 1).tolist() == [list(pair) for pair in rounds]


@pytest.mark.parametrize(("calls", "rounds"), [({}, 1), ({"a": lambda: None}, 0)])
def test_interleave_refuses_what_it_cannot_time(calls: Any, rounds: int) -> None:
    with pytest.raises(ValueError, match="allowed: 1 or more of each"):
        interleave(calls, rounds)


@given(st.lists(st.booleans(), min_size=1, max_size=300), st.data())
def test_representative_start_has_the_nearest_share(due: list[bool], data: st.DataObject) -> None:
    length = data.draw(st.integers(1, len(due)))
    start = representative_start(np.array(due), length)
    settled = min(100, len(due) - length) if len(due) > 100 else 0

    def distance(at: int) -> float:
        return abs(sum(due[at : at + length]) - np.mean(due) * length)

    assert settled <= start <= len(due) - length
    # 1e-9: np.mean(due) * length rounds.
    assert distance(start) <= min(map(distance, range(settled, len(due) - length + 1))) + 1e-9


def test_interval_trains_on_and_repeats_the_same_steps() -> None:
    config = dataclasses.replace(TINY, optimizer="isoadam")
    interval = Interval(config)
    losses = [interval() for _ in range(12)]
    counters = [x for x in jax.tree.leaves(interval._state) if x.shape == ()]
    assert counters and {int(x) for x in counters} <= {*range(interval.start + 5)}
    assert max(int(x) for x in counters) == interval.start + config.evaluate_every
    assert np.mean(losses[-4:]) < losses[0]  # it does train


def test_with_counters_moves_step_counters_and_nothing_else() -> None:
    state = {"count": jnp.int32(3), "scale": jnp.float32(3), "rows": jnp.arange(2)}
    moved = with_counters(state, 7)
    assert int(moved["count"]) == 7 and float(moved["scale"]) == 3.0
    np.testing.assert_array_equal(moved["rows"], [0, 1])


@pytest.mark.parametrize(
    "benchmark", [step_time, matmul, pytest.param(throughput, marks=pytest.mark.slow)]
)
def test_a_benchmark_measures_rounds_and_prints_a_table(benchmark: Any) -> None:
    frame = benchmark.measure([16], rounds=2, base=TINY, progress=False)
    assert set(frame["round"]) == {0, 1}
    numbers = frame.select(pl.selectors.float()).drop("^.*refresh_share$")
    assert all(column.is_finite().all() and column.min() > 0 for column in numbers)
    table = benchmark.table(frame)
    assert table.startswith("| width |") and "| 16 |" in table and "cores; jax" in table


def test_step_times_are_over_adams_of_the_same_round() -> None:
    frame = measure([(16, 4, 4)], rounds=2, base=TINY, progress=False)
    assert frame.select("optimizer", "width", "tokens", "round").rows() == [
        (name, 16, 32, number) for name in OPTIMIZERS for number in (0, 1)
    ]
    adam = frame.filter(optimizer="adam")["step_ms"].to_list()
    expected = [ms / under for ms, under in zip(frame["step_ms"], adam * 3, strict=True)]
    assert frame["ratio_to_adam"].to_list() == pytest.approx(expected, rel=1e-12)  # rounding
    median, (low, high) = ratio(frame, "muon", "adam")
    assert (low, high) == (min(expected[4:]), max(expected[4:]))
    assert median == pytest.approx((low + high) / 2)
    with pytest.raises(ValueError, match="'sgd' was not timed"):
        ratio(frame, "sgd", "adam")


@pytest.mark.parametrize("config", [TransformerConfig(), TransformerConfig(16, 32, 3, context=8)])
def test_training_flops_follow_the_formula(config: TransformerConfig) -> None:
    model = nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0)))
    kernels = [
        leaf.size
        for path, leaf in jax.tree_util.tree_leaves_with_path(nnx.state(model, nnx.Param))
        if "kernel" in jax.tree_util.keystr(path)
    ]
    attention = 12 * config.depth * config.context * config.width
    tokens = 5 * config.context
    assert matmul.training_flops(config, 5) == tokens * (6 * sum(kernels) + attention)


def test_forward_products_are_the_flops_that_xla_counts() -> None:
    config = TransformerConfig(width=64)
    model = Transformer(config, rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(model)
    tokens = jnp.zeros((2, config.context), jnp.int32)
    compiled = jax.jit(lambda p: nnx.merge(graphdef, p)(tokens)).lower(params).compile()
    counted = compiled.cost_analysis()["flops"]
    # XLA also counts norms, softmax and GELU: a twentieth here, and never less than the products.
    assert 1.0 <= counted / (matmul.training_flops(config, 2) / 3) < 1.1


def test_plain_loop_is_our_model_in_size_and_trains() -> None:
    corpus = load_corpus(CORPUS)
    loop = PlainLoop(TINY, corpus)
    losses, held_out = loop.train(60)
    # Flax's readout starts at 1/sqrt(fan_in): logits of variance 1 add half a nat or so.
    assert abs(losses[0] - math.log(corpus.vocab_size)) < 1.0
    assert held_out < losses[0]
    ours = nnx.eval_shape(
        lambda: Transformer(TINY.model_config(corpus.vocab_size), rngs=nnx.Rngs(0))
    )
    theirs = nnx.eval_shape(lambda: PlainTransformer(TINY, corpus.vocab_size, nnx.Rngs(0)))
    assert shapes(ours) == shapes(theirs)


def shapes(model: nnx.Module) -> list[tuple[int, ...]]:
    return sorted(leaf.shape for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def test_nanogpt_starts_near_log_v_and_trains() -> None:
    pytest.importorskip("torch")
    corpus = load_corpus(CORPUS)
    training = nanogpt.TorchTraining(TINY, corpus)
    losses = training.advance(60)
    # Logits are sums of 16 products of standard deviation 0.02: the loss is log V to 0.08^2 / 2,
    # and the batch's mean logit of its targets moves it by about as much as their own size.
    assert abs(losses[0] - math.log(corpus.vocab_size)) < 0.1
    assert np.mean(losses[-5:]) < losses[0] - 0.1


def test_nanogpt_is_our_function_at_equal_weights() -> None:
    torch = pytest.importorskip("torch")
    config = TransformerConfig(16, 32, 2, context=8)
    ours = Transformer(config, rngs=nnx.Rngs(0))
    theirs = nanogpt.make_model(config)
    with torch.no_grad():
        flat = {
            ".".join(map(str, path)): np.asarray(leaf[...])
            for path, leaf in nnx.to_flat_state(nnx.state(ours, nnx.Param))
        }
        names = {"attention.qkv": "qkv", "attention.out": "out", "mlp.up": "up", "mlp.down": "down"}
        moved = {}
        for name, value in flat.items():
            for old, new in names.items():
                name = name.replace(old, new)
            name = name.replace(".kernel", ".weight").replace(".scale", ".weight")
            if name in ("embedding", "positions"):
                name, value = f"{name}.weight", value.T
            moved[name] = torch.from_numpy((value.T if value.ndim == 2 else value).copy())
        theirs.load_state_dict(moved)
        tokens = np.random.default_rng(0).integers(16, size=(3, 8))
        logits = theirs(torch.from_numpy(tokens)).numpy()
    # Float32, two layers; LayerNorm's epsilon is 1e-6 in flax and 1e-5 in torch.
    np.testing.assert_allclose(logits, ours(jnp.asarray(tokens)), atol=1e-3)


def test_command_refuses_an_unknown_name_and_lists_the_known() -> None:
    outcome = CliRunner().invoke(app, ["stepp_time"])
    assert outcome.exit_code == 2
    assert "stepp_time" in outcome.output and "throughput" in outcome.output
