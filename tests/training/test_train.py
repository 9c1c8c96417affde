"""Training: the same bits twice, runs side by side, divergence, and what traced values do."""

from __future__ import annotations

import dataclasses
import math
import time

import jax
import numpy as np
import pytest
from training.tiny import CORPUS, RUNS, TINY, curves, trained, variant

from isolab.model.corpus import load_corpus
from isolab.training.program import compile_program, program_of
from isolab.training.train import train

FIVE = [variant(seed=seed, learning_rate=0.01 * (1 + seed)) for seed in range(RUNS)]


# --- one run ---


def test_the_same_config_gives_the_same_bits_to_be_read_at_the_start_and_after_every_interval():
    (first,), (second,) = train([TINY]), train([TINY])
    assert curves(first) == curves(second)
    assert first.curve_step == [0, 10, 20]
    assert len(first.curve_train_loss) == len(first.curve_validation_loss) == 3
    assert first.step_seconds > 0 and first.config == TINY
    # at 0 the first batch's loss, of the untrained model: the validation loss but for sampling
    assert first.curve_train_loss[0] == pytest.approx(first.curve_validation_loss[0], abs=0.8)


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


# --- runs side by side ---


def test_a_run_alone_equals_the_same_run_in_a_batch():
    for config, beside in zip(FIVE, trained(*FIVE), strict=True):
        (alone,) = train([config])
        # The program is compiled for the number of runs, and sums in another order: rounding,
        # 6e-8, which training amplifies. Runs in batches of one size agree to the bit, see below.
        np.testing.assert_allclose(curves(alone), curves(beside), rtol=1e-4)
    assert len({tuple(curves(result)) for result in trained(*FIVE)}) == RUNS


def test_place_and_neighbours_in_a_batch_do_not_change_a_bit():
    a, b, c = FIVE[:3]
    first, swapped = trained(*FIVE), trained(c, a, variant(learning_rate=0.1))
    assert curves(first[0]) == curves(swapped[1])
    assert curves(first[2]) == curves(swapped[0])
    assert curves(first[1]) == curves(trained(b)[0])


def test_runs_that_share_no_program_are_refused():
    for field, value in (("width", 32), ("optimizer", "lion"), ("steps", 40)):
        with pytest.raises(ValueError, match=f"train: runs of one batch must share {field}:"):
            train([TINY, variant(**{field: value})])
    with pytest.raises(ValueError, match="no configs"):
        train([])


def test_horizons_share_a_compiled_program():
    long = variant(steps=40, warmup_steps=5, learning_rate=0.003, seed=3, b1=0.5)
    assert program_of(long) == program_of(TINY) != program_of(variant(batch_size=2))
    trained(TINY)
    program = compile_program(program_of(TINY), 16)
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


def test_hyperparameters_written_out_and_rates_by_rule_are_the_same_runs():
    explicit, base = trained(variant(b1=0.9, b2=0.95, eps=1e-8), TINY)
    assert curves(explicit) == curves(base)
    # hidden and readout at width 16 = 2 * base_width: adam's factor is 1 / 2 at full alignment
    ruled = variant(rate_rule="full", base_width=8)
    by_gamma = variant(gamma_hidden=0.5, gamma_readout=0.5)
    assert ruled.rates == by_gamma.rates
    assert curves(trained(ruled)[0]) == curves(trained(by_gamma)[0]) != curves(base)


def test_isoadam_learns_from_the_start_and_the_batches_of_adam():
    adam = trained(*FIVE[:2])
    configs = [variant(optimizer="isoadam", iso_factors="exact", seed=seed) for seed in (0, 1)]
    for result, other in zip(trained(*configs), adam, strict=True):
        for start in ("curve_validation_loss", "curve_train_loss"):
            found, wanted = getattr(result, start)[0], getattr(other, start)[0]
            assert found == pytest.approx(wanted, rel=1e-6)
        assert not result.diverged
        assert result.final_validation_loss < result.curve_validation_loss[0] - 0.05
        assert result.final_validation_loss != other.final_validation_loss


# --- divergence ---


def test_a_diverged_run_is_kept_and_leaves_its_neighbours_alone():
    broken = variant(learning_rate=1e30)
    good, bad, other = trained(FIVE[0], broken, FIVE[2])
    assert bad.diverged
    assert 1 < bad.divergence_step <= 5  # the first update has been made before the second loss
    assert bad.final_validation_loss == bad.final_train_loss == math.inf
    for result, calm in ((good, trained(*FIVE)[0]), (other, trained(*FIVE)[2])):
        assert not result.diverged
        assert curves(result) == curves(calm)


def test_a_batch_whose_runs_have_all_diverged_ends_early_with_the_same_rows():
    healthy = variant(steps=40)
    broken = [dataclasses.replace(healthy, learning_rate=1e30, seed=s) for s in range(RUNS)]
    seen = []
    ended = train(broken, on_snapshot=lambda snapshot: seen.append(snapshot.step))
    beside = train([*broken[:-1], healthy], on_snapshot=lambda snapshot: seen.append(snapshot.step))
    assert seen == [0, 10, 0, 10, 20, 30, 40]
    for alone, neighbour in zip(ended[:-1], beside[:-1], strict=True):
        assert alone.curve_step == neighbour.curve_step == [0, 10, 20, 30, 40]
        np.testing.assert_array_equal(curves(alone), curves(neighbour))
        assert 1 < alone.divergence_step == neighbour.divergence_step <= 5
    assert not beside[-1].diverged


# --- watching ---


def test_snapshots_show_each_run_and_change_no_bit():
    seen, states = [], []

    def watch(snapshot):
        seen.append(snapshot._replace(state=None))
        states.append([snapshot.run(place) for place in range(RUNS)])

    watched = train(FIVE, on_snapshot=watch)
    assert [curves(result) for result in watched] == [curves(result) for result in trained(*FIVE)]
    assert [snapshot.step for snapshot in seen] == [0, 10, 20]
    assert [snapshot.losses.shape for snapshot in seen] == [(RUNS, 0), (RUNS, 10), (RUNS, 10)]
    for place, result in enumerate(watched):
        validation = [float(snapshot.validation_loss[place]) for snapshot in seen]
        assert validation == result.curve_validation_loss
        means = [float(snapshot.losses[place].mean()) for snapshot in seen[1:]]
        np.testing.assert_allclose(means, result.curve_train_loss[1:], rtol=1e-6)
    # Training writes over its state; a copy stays what it was.
    weights = [np.asarray(runs[0].params["embedding"]) for runs in states]
    assert weights[0].shape == (16, 16)
    assert not (weights[0] == weights[1]).any()
    counters = [[x for x in jax.tree.leaves(runs[0].opt_state) if not x.ndim] for runs in states]
    assert [{int(count) for count in its} for its in counters] == [{0}, {10}, {20}]
    for place in (0, RUNS - 1):
        alone = []
        train([FIVE[place]], on_snapshot=lambda snapshot, alone=alone: alone.append(snapshot.run()))
        # as for losses of a run alone and in a batch, above
        for mine, its in zip(*map(jax.tree.leaves, (states[-1][place], alone[-1])), strict=True):
            np.testing.assert_allclose(mine, its, rtol=1e-3, atol=1e-4)


def test_the_time_of_a_watcher_is_not_the_runs_and_what_it_raises_ends_training():
    def watch(snapshot):
        time.sleep(0.1)
        if snapshot.step == 20:
            raise LookupError("enough")

    begun = time.perf_counter()
    (watched,) = train([TINY], on_snapshot=lambda snapshot: time.sleep(0.1))
    assert watched.step_seconds * TINY.steps <= time.perf_counter() - begun - 0.3
    with pytest.raises(LookupError, match="enough"):
        train([TINY], on_snapshot=watch)
