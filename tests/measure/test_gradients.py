"""Gradients are those that a run takes, and theory's exponents are found in them."""

from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isolab.analysis.width_lines import width_slopes
from isolab.measure.gradients import (
    SecondMoment,
    damped_shares,
    gradient_exponents,
    gradient_sizes,
    root_histogram,
    second_moments,
)
from isolab.training.config import RunConfig
from isolab.training.watch import ForwardModel, by_layer, watch

BASE = RunConfig(
    parameterization="mup", width=16, base_width=16, depth=1, head_size=8, context=8, mlp_ratio=2,
    batch_size=8, rate_rule="full", learning_rate=0.01, steps=4, warmup_steps=1, evaluate_every=1,
    validation_windows=1, corpus="zipf_markov:vocab_size=64,length=20000",
)  # fmt: skip


def by_role(config, tree):
    roles, leaves = ForwardModel.of(config, 64).roles, by_layer(tree)
    return {
        role: np.concatenate([np.ravel(x) for name, x in leaves.items() if roles[name] == role])
        for role in set(roles.values())
    }


def moments_after(config, steps):
    """The optimizer's own moments after so many steps of the run."""
    (seen,) = watch(config, [steps])
    return seen.state.opt_state[0][0]  # of the rule before the per-layer rates


def test_second_moments_are_those_that_the_optimizer_keeps():
    config = dataclasses.replace(BASE, b2=0.8)
    found = second_moments(config, [16], step=3)
    assert [moment.role for moment in found] == ["embedding", "hidden", "readout", "vector"]
    assert all(moment.config == config for moment in found)
    wanted = by_role(config, moments_after(config, 3).nu)
    for moment in found:
        roots = np.sort(np.sqrt(wanted[moment.role] / (1 - 0.8**3)))
        # another program: sums of float32 in another order, of gradients that are cancelled sums
        np.testing.assert_allclose(moment.root, roots, rtol=1e-3, atol=1e-6)
    assert (found[0].root == 0).any()  # tokens that were never seen


def test_gradients_are_those_of_the_runs_own_batches():
    # after one step m is (1 - b1) times the first gradient, whatever the loss scale
    config = dataclasses.replace(BASE, loss_scale=2.0**-10, seed=5)
    frame = gradient_sizes(config, [16], ["mup"], steps=[0, 2], seeds=[5, 6])
    assert frame.columns == ["parameterization", "width", "seed", "step", "role", "gradient_rms"]
    assert len(frame) == 2 * 2 * 4
    first = by_role(config, moments_after(config, 1).mu)
    for role, entries in first.items():
        (size,) = frame.filter(step=0, seed=5, role=role)["gradient_rms"]
        assert size == pytest.approx(np.sqrt(np.mean(entries**2)) / 0.1, rel=1e-4)
    assert frame["gradient_rms"].n_unique() == len(frame)  # seeds and steps differ


def test_measured_exponents_are_theorys():
    wide = dataclasses.replace(BASE, batch_size=32, context=16)
    frame = gradient_sizes(wide, [16, 128], ["mean_field"], [0], [0, 1, 2])
    found = gradient_exponents(frame)
    assert found["note"].unique().to_list() == [""]
    for row in found.iter_rows(named=True):
        # one seed's spread at these widths is about 0.1; gains are few and the noisiest
        away = 0.5 if row["role"] == "vector" else 0.25
        assert row["exponent"] == pytest.approx(row["theory"], abs=away), row
        assert row["exponent_low"] < row["exponent"] < row["exponent_high"]
    theory = dict(found.select("role", "theory").rows())
    assert theory == {"embedding": 1.0, "hidden": 1.5, "readout": 1.0, "vector": 1.0}


def gradients(power, seeds=3, widths=(32, 64, 128), noise=0.0):
    rng = np.random.default_rng(0)
    return pl.DataFrame(
        [
            {
                "parameterization": "mup", "step": 0, "role": "hidden", "width": n, "seed": s,
                "gradient_rms": 1e-3 * 2.0**s * n**-power * np.exp(noise * rng.normal()),
            }
            for n in widths
            for s in range(seeds)
        ]
    )  # fmt: skip


def test_exponents_are_slopes_turned_round():
    frame = gradients(1.0, noise=0.1)
    group = ["parameterization", "step", "role"]
    slope = width_slopes(frame, group, "gradient_rms").row(0, named=True)
    row = gradient_exponents(frame).row(0, named=True)
    ends = ("exponent_low", "exponent", "exponent_high")
    assert [-row[name] for name in ends] == [slope[f"slope{end}"] for end in ("_high", "", "_low")]
    assert row["exponent"] == pytest.approx(
        1.0, abs=0.2
    )  # a seed's noise of 0.1 over two doublings
    assert gradient_exponents(gradients(1.0)).row(0, named=True)["exponent"] == pytest.approx(1.0)


LOST = dataclasses.replace(BASE, optimizer="sgd", learning_rate=1e30)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gradient_sizes(BASE, [16], ["sp"], [0], [0]), "unknown parameterization 'sp'"),
        (lambda: second_moments(BASE, [16], 0), "step is 0; allowed: a whole number from 1 to 4"),
        (lambda: second_moments(LOST, [16], 3), "at width 16 is not finite: it diverged"),
    ],
)
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@settings(max_examples=30)
@given(st.lists(st.sampled_from([0.0, 1e-30, 3e-9, 1e-4, 2.5e-4, 1.0, 7.0]), min_size=1))
def test_every_parameter_is_counted_once_in_its_bin(values):
    root = np.sort(np.float32(values))
    frame = root_histogram([SecondMoment(BASE, "hidden", root)])
    assert frame["count"].sum() == len(values)
    for low, high, count in frame.select("log10_low", "log10_high", "count").rows():
        if low is None:
            assert count == (root == 0).sum()
            continue
        logs = np.log10(root[root > 0].astype(np.float64))
        assert count == ((logs >= low - 1e-9) & (logs < high - 1e-9)).sum()
        assert high - low == pytest.approx(1 / 4)


@settings(max_examples=30)
@given(st.lists(st.floats(2.0**-20, 8.0, width=32), min_size=1), st.floats(1e-6, 8))
def test_damped_is_a_step_less_than_half_of_the_one_without_eps(values, eps):
    root = np.sort(np.float32(values))
    (share,) = damped_shares([SecondMoment(BASE, "hidden", root)], [eps])["share"]
    halved = 1 / (root.astype(np.float64) + eps) < 0.5 / root.astype(np.float64)
    near = np.abs(root / eps - 1) < 1e-6  # equal but for rounding: either way
    assert halved[~near].sum() <= share * len(root) + 1e-9
    assert share * len(root) - 1e-9 <= (halved | near).sum()


def test_damped_follows_the_rule_of_eps_and_leaves_out_the_unseen():
    layered = dataclasses.replace(BASE, width=64, eps_rule="per_layer")  # muP: hidden eps / 4
    root = np.float32([0.0, 0.2, 0.3, 0.9, 2.0])
    pairs = [
        SecondMoment(c, "hidden", root) for c in (dataclasses.replace(BASE, width=64), layered)
    ]
    assert damped_shares(pairs, [1.0])["share"].to_list() == [0.75, 0.25]
    assert damped_shares(pairs, [0.0])["share"].to_list() == [0.0, 0.0]
    unseen = SecondMoment(BASE, "hidden", np.zeros(3, np.float32))
    assert damped_shares([unseen], [1.0])["share"].to_list() == [None]
