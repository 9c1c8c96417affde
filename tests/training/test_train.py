"""Training: the same bits twice, runs side by side, divergence, and what traced values do."""

from __future__ import annotations

import dataclasses
import functools
import math
import time

import jax
import numpy as np
import pytest

from isolab.model.corpus import load_corpus
from isolab.training.config import RunConfig
from isolab.training.program import compile_program, program_of
from isolab.training.train import train

CORPUS = "zipf_markov:vocab_size=16,length=20000"
BASE = RunConfig(
    width=16, base_width=16, depth=1, head_size=8, context=8, mlp_ratio=2, batch_size=4,
    learning_rate=0.01, steps=20, warmup_steps=2, evaluate_every=10, validation_windows=32,
    corpus=CORPUS,
)  # fmt: skip


def variant(**changes):
    return dataclasses.replace(BASE, **changes)


@functools.cache
def trained(*configs):
    return train(configs)


ISOADAM = [variant(optimizer="isoadam", iso_factors="exact", seed=seed) for seed in (0, 1)]


def curves(result):
    return [*result.curve_train_loss, *result.curve_validation_loss]


# --- one run ---


def test_the_same_config_gives_the_same_bits():
    (first,), (second,) = train([BASE]), train([BASE])
    assert curves(first) == curves(second)


def test_training_learns_and_stays_above_the_entropy_rate():
    (result,) = trained(variant(steps=200, learning_rate=0.03))
    loss, start = result.final_validation_loss, result.curve_validation_loss[0]
    entropy = load_corpus(CORPUS).entropy_rate
    # the unigram entropy bounds what can be learned without looking back at all
    counts = np.bincount(load_corpus(CORPUS).train)
    unigram = -np.sum(counts / counts.sum() * np.log(counts / counts.sum()))
    assert start > np.log(16)
    # 32 windows of 8 held-out tokens: standard error of about 1 nat / sqrt(256)
    assert entropy - 0.2 < loss < unigram - 0.05
    assert result.final_train_loss == result.curve_train_loss[-1] < start
    assert not result.diverged


def test_curve_has_a_point_at_the_start_and_after_every_interval():
    (result,) = trained(BASE)
    assert result.curve_step == [0, 10, 20]
    assert len(result.curve_train_loss) == len(result.curve_validation_loss) == 3
    assert result.step_seconds > 0
    assert result.config == BASE
    # at 0 the first batch's loss, of the untrained model: the validation loss but for sampling
    assert result.curve_train_loss[0] == pytest.approx(result.curve_validation_loss[0], abs=0.8)


def test_training_can_be_stopped():
    whole, ends = trained(BASE)[0], []
    (stopped,) = train(
        [BASE], on_snapshot=lambda snapshot: ends.append(snapshot.last), should_stop=lambda: True
    )
    assert ends == [False, True]
    assert stopped.curve_step == [0, 10]
    assert curves(stopped) == [*whole.curve_train_loss[:2], *whole.curve_validation_loss[:2]]


# --- runs side by side ---


def test_a_run_alone_equals_the_same_run_in_a_batch():
    runs = [variant(seed=s, learning_rate=r) for s, r in ((0, 0.01), (1, 0.01), (2, 0.1))]
    together = trained(*runs)
    for config, beside in zip(runs, together, strict=True):
        (alone,) = trained(config)
        # The program is compiled for the number of runs, and sums in another order: rounding,
        # 6e-8, which training amplifies. Runs in batches of one size agree to the bit, see below.
        np.testing.assert_allclose(curves(alone), curves(beside), rtol=1e-4)
    assert len({tuple(curves(result)) for result in together}) == 3


def test_place_and_neighbours_in_a_batch_do_not_change_a_bit():
    a, b, c = (variant(seed=s) for s in range(3))
    first, swapped = trained(a, b, c), trained(c, a, variant(learning_rate=0.1))
    assert curves(first[0]) == curves(swapped[1])
    assert curves(first[2]) == curves(swapped[0])


def test_runs_that_share_no_program_are_refused():
    for field, value in (("width", 32), ("optimizer", "lion"), ("steps", 40)):
        with pytest.raises(ValueError, match=f"train: runs of one batch must share {field}:"):
            train([BASE, variant(**{field: value})])
    with pytest.raises(ValueError, match="no configs"):
        train([])


def test_horizons_share_a_compiled_program():
    long = variant(steps=40, warmup_steps=5, learning_rate=0.003, seed=3, b1=0.5)
    assert program_of(long) == program_of(BASE) != program_of(variant(batch_size=2))
    trained(BASE)
    program = compile_program(program_of(BASE), 16)
    compiled = program.advance._cache_size()
    (result,) = trained(long)
    assert program.advance._cache_size() == compiled
    assert result.curve_step == [0, 10, 20, 30, 40]


def test_every_traced_hyperparameter_acts():
    changes = {
        "seed": 1, "learning_rate": 0.02, "b1": 0.5, "b2": 0.5, "eps": 1e-2, "weight_decay": 0.9,
        "gamma_embedding": 3.0, "gamma_hidden": 3.0, "gamma_readout": 3.0, "warmup_steps": 15,
    }  # fmt: skip
    base = variant(optimizer="adamw", weight_decay=0.1)
    runs = [base, *(dataclasses.replace(base, **{k: v}) for k, v in changes.items())]
    reference, *others = train(runs)
    for name, other in zip(changes, others, strict=True):
        change = abs(other.final_validation_loss - reference.final_validation_loss)
        assert change > 1e-5, f"{name} does nothing"
    # only the seed changes what is trained on and where it starts
    starts = {r.curve_validation_loss[0] for r in (reference, *others)}
    assert len(starts) == 2
    assert others[0].curve_validation_loss[0] != reference.curve_validation_loss[0]


def test_traced_and_written_out_hyperparameters_agree():
    explicit = variant(b1=0.9, b2=0.95, eps=1e-8)
    assert curves(trained(explicit)[0]) == curves(trained(BASE)[0])


def test_seed_fixes_start_and_batches_for_every_optimizer():
    (adam,) = trained(BASE)
    isoadam = trained(*ISOADAM)[0]
    assert isoadam.curve_validation_loss[0] == pytest.approx(
        adam.curve_validation_loss[0], rel=1e-6
    )
    assert isoadam.curve_train_loss[0] == pytest.approx(adam.curve_train_loss[0], rel=1e-6)
    assert isoadam.final_validation_loss != adam.final_validation_loss


def test_isoadam_learns_side_by_side():
    for result in trained(*ISOADAM):
        assert not result.diverged
        assert result.final_validation_loss < result.curve_validation_loss[0] - 0.05


# --- divergence ---


def test_a_diverged_run_is_kept_and_leaves_its_neighbours_alone():
    healthy = variant(optimizer="sgd", learning_rate=0.05)
    broken = dataclasses.replace(healthy, learning_rate=1e30)
    tall = dataclasses.replace(healthy, learning_rate=0.06)
    good, bad, other = trained(healthy, broken, tall)
    assert bad.diverged
    assert 1 < bad.divergence_step <= 5  # the first update has been made before the second loss
    assert bad.final_validation_loss == bad.final_train_loss == math.inf
    assert not good.diverged
    assert not other.diverged
    calm = trained(healthy, tall, dataclasses.replace(healthy, seed=5))[0]
    assert curves(good) == curves(calm)


def test_a_batch_whose_runs_have_all_diverged_ends_early_with_the_same_rows():
    healthy = variant(optimizer="sgd", learning_rate=0.05, steps=40)
    broken = [dataclasses.replace(healthy, learning_rate=1e30, seed=s) for s in range(3)]
    seen = []
    ended = train(broken, on_snapshot=lambda snapshot: seen.append(snapshot.step))
    beside = train([*broken[:2], healthy], on_snapshot=lambda snapshot: seen.append(snapshot.step))
    assert seen == [0, 10, 0, 10, 20, 30, 40]
    for alone, neighbour in zip(ended[:2], beside[:2], strict=True):
        assert alone.curve_step == neighbour.curve_step == [0, 10, 20, 30, 40]
        np.testing.assert_array_equal(curves(alone), curves(neighbour))
        assert 1 < alone.divergence_step == neighbour.divergence_step <= 5
    assert not beside[2].diverged


# --- rates ---


def test_per_layer_rates_are_the_gammas_they_stand_for():
    # hidden and readout at width 16 = 2 * base_width: adam's factor is 1 / 2 at full alignment
    ruled = variant(rate_rule="full", base_width=8)
    by_gamma = variant(gamma_hidden=0.5, gamma_readout=0.5)
    assert ruled.rates == by_gamma.rates
    np.testing.assert_allclose(curves(trained(ruled)[0]), curves(trained(by_gamma)[0]), rtol=1e-5)


# --- watching ---


def test_snapshots_show_the_run_and_change_no_bit():
    seen, states = [], []

    def watch(snapshot):
        seen.append(snapshot._replace(state=None))
        states.append(snapshot.run())

    (watched,) = train([BASE], on_snapshot=watch)
    assert curves(watched) == curves(trained(BASE)[0])
    assert [snapshot.step for snapshot in seen] == [0, 10, 20]
    assert [snapshot.losses.shape for snapshot in seen] == [(1, 0), (1, 10), (1, 10)]
    validation = [float(snapshot.validation_loss[0]) for snapshot in seen]
    assert validation == watched.curve_validation_loss
    means = [float(snapshot.losses.mean()) for snapshot in seen[1:]]
    np.testing.assert_allclose(means, watched.curve_train_loss[1:], rtol=1e-6)
    # Training writes over its state; a copy stays what it was.
    weights = [np.asarray(state.params["embedding"]) for state in states]
    assert weights[0].shape == (16, 16)
    assert not (weights[0] == weights[1]).any()
    counters = [[x for x in jax.tree.leaves(state.opt_state) if not x.ndim] for state in states]
    assert [{int(count) for count in its} for its in counters] == [{0}, {10}, {20}]


def test_a_snapshot_holds_each_run_of_a_batch():
    pair = [BASE, variant(seed=1)]
    last = {}

    def watch(snapshot):
        last.update({place: snapshot.run(place) for place in range(2)})

    together = train(pair, on_snapshot=watch)
    for place in range(2):
        alone = []
        train([pair[place]], on_snapshot=lambda snapshot, kept=alone: kept.append(snapshot.run()))
        # as for losses of a run alone and in a batch, above
        for mine, its in zip(*map(jax.tree.leaves, (last[place], alone[-1])), strict=True):
            np.testing.assert_allclose(mine, its, rtol=1e-3, atol=1e-4)
    assert curves(together[0]) != curves(together[1])


def test_the_time_of_a_watcher_is_not_the_runs():
    begun = time.perf_counter()
    (watched,) = train([BASE], on_snapshot=lambda snapshot: time.sleep(0.1))
    looks = BASE.steps // BASE.evaluate_every + 1
    assert watched.step_seconds * BASE.steps <= time.perf_counter() - begun - 0.1 * looks


def test_what_a_watcher_raises_ends_training():
    def watch(snapshot):
        if snapshot.step == 10:
            raise LookupError("enough")

    with pytest.raises(LookupError, match="enough"):
        train([BASE], on_snapshot=watch)
