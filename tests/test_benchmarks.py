"""The benchmarks measure what they say; no test asserts a time."""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
from benchmarks import matmul, nanogpt, step_time, throughput
from benchmarks.__main__ import app
from benchmarks.plain_jax import PlainLoop, PlainTransformer
from benchmarks.report import markdown
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from isolab import charts
from isolab.measure.interval import Interval, representative_start, with_counters
from isolab.measure.timing import interleave
from isolab.model.corpus import load_corpus
from isolab.model.transformer import Transformer, TransformerConfig
from isolab.training.config import RunConfig

CORPUS = "zipf_markov:vocab_size=16,length=4000"
TINY = RunConfig(
    width=16,
    depth=1,
    head_size=8,
    context=8,
    batch_size=4,
    learning_rate=0.002,
    steps=8,
    evaluate_every=4,
    warmup_steps=0,
    validation_windows=2,
    corpus=CORPUS,
)


class Clock:
    """Time that passes only when work is done."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def __call__(self) -> float:
        return self.now

    def worker(self, name: str, durations: Iterator[float]) -> Callable[[], None]:
        def work() -> None:
            self.calls.append(name)
            self.now += next(durations)

        return work


def test_interleave_takes_turns_and_leaves_the_warm_up_out() -> None:
    clock = Clock()
    work = {
        "a": clock.worker("a", iter([100.0, 1.0, 2.0, 6.0])),
        "b": clock.worker("b", iter([100.0, 4.0, 4.0, 4.0])),
    }
    timings = interleave(work, rounds=3, units={"b": 2}, clock=clock)
    assert clock.calls == ["a", "b"] * 4
    assert timings.seconds == {"a": (1.0, 2.0, 6.0), "b": (2.0, 2.0, 2.0)}
    assert timings.median("a") == 2.0
    assert timings.ratio("a", "b") == (1.0, 0.5, 3.0)


whole = st.integers(1, 1000).map(float)


@given(st.lists(st.tuples(whole, whole), min_size=1, max_size=6), st.integers(0, 2))
def test_ratios_are_of_the_same_round(rounds: list[tuple[float, float]], warm_up: int) -> None:
    clock = Clock()
    first, second = zip(*rounds, strict=True)
    work = {
        "a": clock.worker("a", itertools.chain([9e3] * warm_up, first)),
        "b": clock.worker("b", itertools.chain([9e3] * warm_up, second)),
    }
    timings = interleave(work, len(rounds), warm_up=warm_up, clock=clock)
    ratios = [a / b for a, b in rounds]  # whole seconds: exact in float64
    assert timings.ratio("a", "b") == (statistics.median(ratios), min(ratios), max(ratios))


def test_a_machine_that_slows_down_changes_times_but_not_ratios() -> None:
    clock = Clock()
    slowdown = [1.0, 8.0, 64.0]  # powers of two: exact
    work = {
        name: clock.worker(name, iter([own * s for s in slowdown]))
        for name, own in {"a": 3.0, "b": 2.0}.items()
    }
    timings = interleave(work, rounds=3, warm_up=0, clock=clock)
    assert max(timings.seconds["a"]) == 64 * min(timings.seconds["a"])
    assert set(timings.ratios("a", "b")) == {1.5}


@pytest.mark.parametrize("arguments", [{"rounds": 0}, {"rounds": 1, "warm_up": -1}])
def test_interleave_refuses_what_it_cannot_time(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="allowed"):
        interleave({"a": lambda: None}, **arguments)
    with pytest.raises(ValueError, match="no callables"):
        interleave({}, rounds=1)


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


@pytest.fixture(scope="module")
def step_times() -> pl.DataFrame:
    return step_time.measure([(16, 4, 4)], rounds=2, base=TINY, progress=False)


def test_step_time_gives_a_row_per_optimizer_and_round(step_times: pl.DataFrame) -> None:
    assert step_times.height == 2 * len(step_time.OPTIMIZERS)
    assert set(step_times["optimizer"]) == {"adam", "isoadam", "muon"}
    assert set(step_times.select("width", "tokens").rows()) == {(16, 32)}
    assert step_times["step_ms"].min() > 0
    for _, turn in step_times.group_by("round"):
        times = dict(turn.select("optimizer", "step_ms").rows())
        for name, ratio in turn.select("optimizer", "ratio_to_adam").rows():
            assert ratio == pytest.approx(times[name] / times["adam"], rel=1e-12)  # rounding


def test_step_times_table_and_chart(step_times: pl.DataFrame) -> None:
    wider = step_times.with_columns(width=pl.lit(32, pl.Int64), step_ms=pl.col("step_ms") + 500)
    lines = step_time.table(pl.concat([step_times, wider])).splitlines()
    assert lines[0].startswith("| width | tokens a step | adam, ms | isoadam, ms | muon, ms |")
    assert [line.split(" | ")[:2] for line in lines[2:4]] == [["| 16", "32"], ["| 32", "32"]]
    assert float(lines[3].split(" | ")[2]) > 500
    assert "cores; jax" in lines[-1]
    assert "isoadam" in charts.step_time(step_times).to_json()


def test_step_time_cases_cover_the_widths_asked_for() -> None:
    assert step_time.cases_at([256, 32]) == [(32, 32, 17), (256, 32, 17), (256, 256, 9)]


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


def test_matmul_rates_are_consistent() -> None:
    frame = matmul.measure([16], rounds=2, base=TINY, progress=False)
    assert frame.height == 2 and frame["square"].min() > frame["step"].max() > 0
    for row in frame.iter_rows(named=True):
        assert row["utilization"] == pytest.approx(row["step"] / row["square"], rel=1e-12)
    assert matmul.table(frame).startswith("| width |")


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


@pytest.mark.slow
def test_throughput_rows_and_table() -> None:
    frame = throughput.measure([16], rounds=2, steps=3, base=TINY, progress=False)
    assert frame["width"].to_list() == [16, 16]
    for row in frame.iter_rows(named=True):
        assert row["step_speedup"] == pytest.approx(row["loop_ms"] / row["run_ms"], rel=1e-12)
        expected = row["loop_run_seconds"] / row["sweep_run_seconds"]
        assert row["sweep_speedup"] == pytest.approx(expected, rel=1e-12)
    assert "sweep / loop" in throughput.table(frame)


def test_nanogpt_has_as_many_parameters_as_ours() -> None:
    pytest.importorskip("torch")
    for config in (TransformerConfig(), TransformerConfig(16, 32, 3, context=8)):
        ours = nnx.eval_shape(lambda config=config: Transformer(config, rngs=nnx.Rngs(0)))
        theirs = nanogpt.make_model(config)
        # torch keeps (fan_out, fan_in): compare as unordered pairs.
        assert sorted(tuple(sorted(p.shape)) for p in theirs.parameters()) == sorted(
            tuple(sorted(shape)) for shape in shapes(ours)
        )


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


@pytest.mark.slow
def test_command_prints_the_table_of_what_was_chosen() -> None:
    outcome = CliRunner().invoke(app, ["matmul", "--width", "16", "--rounds", "1"])
    assert outcome.exit_code == 0, outcome.output
    assert "## matmul" in outcome.output and "| 16 |" in outcome.output
    assert "step_time" not in outcome.output


def test_missing_torch_is_said() -> None:
    if nanogpt.available():
        pytest.skip("torch is installed")
    outcome = CliRunner().invoke(app, ["nanogpt"])
    assert outcome.exit_code == 0 and nanogpt.MISSING in outcome.output


def test_markdown_aligns_cells_with_the_header() -> None:
    lines = markdown(["a", "b"], [[1, 2.25], ["x", "y"]]).splitlines()
    assert lines == ["| a | b |", "|---|---|", "| 1 | 2.2 |", "| x | y |"]
