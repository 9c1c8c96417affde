"""RunConfig: what it refuses, and what its key and its row stand for."""

from __future__ import annotations

import dataclasses
import json
import math
import re

import numpy as np
import pytest

from isolab.optimizers import CATALOG
from isolab.training.config import RunConfig

FIELDS = [field.name for field in dataclasses.fields(RunConfig)]
COUNT, ZERO, POSITIVE = "a whole number of 1 or more", "0 or more", "a number above 0"

IMPOSSIBLE = [
    *((name, value, COUNT) for name in ("width", "depth", "head_size", "context", "mlp_ratio",
      "base_width", "steps", "batch_size", "evaluate_every", "validation_windows")
      for value in (0, -16)),
    *((name, 2.5, "a whole number") for name in ("width", "steps", "seed", "iso_refresh")),
    *((name, True, "a whole number") for name in ("width", "steps", "seed")),
    *((name, value, POSITIVE) for name in ("learning_rate", "gamma_embedding", "gamma_hidden",
      "gamma_readout", "loss_scale", "atan2_a", "atan2_b") for value in (0.0, -1.0)),
    *(("loss_scale", value, "2**-126 to 2**127, as in float32") for value in (1e-40, 1e39)),
    *(("eps", value, "0, or 2**-126 to 2**127 for every role") for value in (1e-40, 1e39)),
    ("eps_rule", "by_role", "one of ('same', 'per_layer')"),
    ("moment_dtype", "float16", "one of ('float32', 'bfloat16')"),
    *((name, 2.0, "1.0, as adam has no arctangent") for name in ("atan2_a", "atan2_b")),
    *((name, value, "a finite number") for name in ("learning_rate", "z_loss", "iso_damping", "b1")
      for value in (math.nan, math.inf)),
    *((name, -1, ZERO) for name in ("iso_refresh", "iso_tokens")),
    *(("seed", value, "a whole number from 0 to 2**31 - 1") for value in (-1, 2**31)),
    ("iso_damping", -1e-9, ZERO),
    ("z_loss", -1.0, ZERO),
    *((name, value, "from 0 to below 1") for name in ("b1", "b2") for value in (1.0, -0.1)),
    ("eps", -1e-8, ZERO),
    ("learning_rate", "0.1", "a number"),
    ("learning_rate", None, "a number"),
    ("qk_norm", 1, "True or False"),
    ("remat", "no", "True or False"),
    ("corpus", 3, "text"),
    ("optimizer", None, "text"),
    ("width", 24, "multiples of head_size (16)"),
    ("dtype", "float16", "one of ('float32', 'bfloat16')"),
    ("rate_rule", "half", "one of ('global', 'full', 'none')"),
    ("schedule", "step", "one of ('cosine', 'linear', 'constant')"),
    ("iso_size", "big", "one of ('rms', 'graft')"),
    ("iso_factors", "none", "one of ('exact', 'gradient')"),
    ("iso_blocks", "longer", "one of ('whole', 'shorter')"),
    ("iso_root", "svd", "one of ('eigh', 'newton')"),
    ("warmup_steps", 401, "0 to 400"),
    ("warmup_steps", -1, "0 to 400"),
    ("steps", 410, "multiples of evaluate_every (50)"),
    ("weight_decay", 0.1, "None, as adam has no weight_decay"),
    *((name, "x", "known") for name in ("optimizer", "parameterization")),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value", "allowed"), IMPOSSIBLE)
def test_impossible_values_are_refused_by_field_value_and_what_is_allowed(field, value, allowed):
    known = f"unknown {field} {value!r}; known: ["
    message = known if allowed == "known" else f"{field} is {value!r}; allowed: {allowed}"
    with pytest.raises(ValueError, match=re.escape(message)):
        RunConfig(**{field: value})


def test_every_field_is_refused_something():
    assert {field for field, _, _ in IMPOSSIBLE} == set(FIELDS)


OTHER = {
    "parameterization": "mup", "rate_rule": "full", "base_width": 32, "width": 32, "depth": 1,
    "head_size": 8, "context": 32, "mlp_ratio": 2, "qk_norm": True, "z_loss": 1e-4,
    "dtype": "bfloat16", "remat": True, "optimizer": "isoadam", "learning_rate": 0.02, "b1": 0.8,
    "b2": 0.9, "eps": 1e-6, "weight_decay": 0.2, "eps_rule": "per_layer",
    "moment_dtype": "bfloat16", "atan2_a": 2.0, "atan2_b": 2.0, "loss_scale": 2.0**-80,
    "gamma_embedding": 2.0, "gamma_hidden": 2.0,
    "gamma_readout": 2.0, "iso_size": "graft", "iso_factors": "gradient", "iso_blocks": "whole",
    "iso_root": "newton", "iso_refresh": 17, "iso_tokens": 512, "iso_damping": 0.25,
    "schedule": "linear", "warmup_steps": 7, "steps": 800, "batch_size": 8, "evaluate_every": 25,
    "validation_windows": 17, "corpus": "zipf_markov:length=5000", "seed": 5,
}  # fmt: skip


@pytest.mark.parametrize("field", FIELDS)
def test_key_changes_with_every_field(field):
    optimizer = "adam_atan2" if field.startswith("atan2") else "adamw"
    base = RunConfig(optimizer=optimizer, width=128)  # not the base width, where rules are one
    changed = dataclasses.replace(base, **{field: OTHER[field]})
    assert len({changed.key("a"), base.key("a"), base.key("b")}) == 3
    assert changed.row()[field] == OTHER[field]
    assert list(changed.row()) == FIELDS and json.loads(json.dumps(changed.row())) == changed.row()


def test_rules_are_one_at_the_base_width_and_keys_of_the_old_names_are_still_known():
    at_base = [
        RunConfig(rate_rule=rate_rule, eps_rule=eps_rule)
        for eps_rule in ("same", "per_layer")
        for rate_rule in ("global", "full", "none")
    ]
    assert len({config.key("a") for config in at_base}) == 1
    assert len(set(at_base[-1].keys("a"))) == 6
    assert len(RunConfig(optimizer="muon", rate_rule="full").keys("a")) == 3
    assert RunConfig(width=128).keys("a") == [RunConfig(width=128).key("a")]


def test_a_field_added_later_leaves_the_keys_of_stored_runs():
    @dataclasses.dataclass(frozen=True)
    class Later(RunConfig):
        added: float = 1.0

    assert Later(seed=3).key("a") == RunConfig(seed=3).key("a")
    assert Later(seed=3, added=2.0).key("a") != RunConfig(seed=3).key("a")


def test_keys_of_stored_runs_stay():
    # as computed before loss_scale, eps_rule, moment_dtype, atan2_a and atan2_b were fields
    assert re.fullmatch("2c13ca600e68386b[0-9a-f]{48}", RunConfig().key("a"))
    atan2 = RunConfig(optimizer="adam_atan2", width=32, seed=3)
    assert atan2.key("b").startswith("942ee8465093cfe0")
    # Muon's per-layer rates at other widths were Adam's when this was its key
    muon = RunConfig(optimizer="muon", rate_rule="full", width=128)
    assert not muon.key("b").startswith("72483336f4f56021")


def test_numbers_of_numpy_are_taken_for_what_they_are():
    config = RunConfig(width=np.int64(32), seed=np.uint32(3), learning_rate=np.float32(0.5))
    same = RunConfig(width=32, seed=3, learning_rate=0.5)
    assert config == same and config.key("a") == same.key("a")


@pytest.mark.parametrize("optimizer", sorted(set(CATALOG) - {"adam", "adamw"}))
def test_what_an_optimizer_does_not_have_is_refused_before_training(optimizer):
    with pytest.raises(ValueError, match=f"allowed: 'same', as {optimizer} has no eps for each"):
        RunConfig(optimizer=optimizer, eps_rule="per_layer")
    if optimizer == "adam_atan2":
        assert RunConfig(optimizer=optimizer, moment_dtype="bfloat16", atan2_a=2).atan2_a == 2.0
    else:
        with pytest.raises(ValueError, match=f"'float32', as {optimizer} has no moments of anoth"):
            RunConfig(optimizer=optimizer, moment_dtype="bfloat16")


def test_eps_per_layer_shrinks_as_gradients_do():
    config = RunConfig(parameterization="mean_field", width=64, base_width=16, eps=1e-4)
    assert config.epsilons == dict.fromkeys(("embedding", "hidden", "readout", "vector"), 1e-4)
    layered = dataclasses.replace(config, eps_rule="per_layer").epsilons
    # g is 1, 3/2 and 1 by the paper, and 1 for gains, as for the embedding
    assert layered == pytest.approx(
        {"embedding": 1e-4 / 4, "hidden": 1e-4 / 8, "readout": 1e-4 / 4, "vector": 1e-4 / 4}
    )
    assert dataclasses.replace(config, eps_rule="per_layer", width=16).epsilons == config.epsilons
    assert set(dataclasses.replace(config, eps=0.0).epsilons.values()) == {0.0}
    assert RunConfig(optimizer="muon").epsilons == RunConfig(optimizer="sgd").epsilons == {}
    with pytest.raises(ValueError, match="for every role"):  # 1e-37 / 8 is no number of float32's
        dataclasses.replace(config, eps_rule="per_layer", eps=5e-38)


@pytest.mark.parametrize("name", sorted(CATALOG))
def test_a_default_means_the_same_written_out_or_not(name):
    config = RunConfig(optimizer=name)
    written = dataclasses.replace(config, **config.hyperparameters)
    assert written.key("a") == config.key("a")
    assert written.row() == config.row()
    defaults = CATALOG[name].defaults
    assert {k: config.row()[k] for k in config.hyperparameters} == {
        k: defaults[k] for k in ("b1", "b2", "eps", "weight_decay") if k in defaults
    }
    for alien in {"b1", "b2", "eps", "weight_decay"} - set(defaults):
        assert config.row()[alien] is None


def test_whole_numbers_are_numbers():
    assert RunConfig(learning_rate=1) == RunConfig(learning_rate=1.0)
    assert RunConfig(learning_rate=1).key("a") == RunConfig(learning_rate=1.0).key("a")
    assert type(RunConfig(learning_rate=1).learning_rate) is float


def test_rates_follow_rule_and_gammas():
    config = RunConfig(width=256, base_width=64, gamma_hidden=3.0)
    assert config.rates == {"embedding": 1.0, "hidden": 3.0, "readout": 1.0, "vector": 1.0}
    full = dataclasses.replace(config, rate_rule="full").rates
    assert full == pytest.approx({"embedding": 1, "hidden": 3 / 4, "readout": 1 / 4, "vector": 1})
    none = dataclasses.replace(config, rate_rule="none").rates
    assert none == pytest.approx({"embedding": 1, "hidden": 3 / 2, "readout": 1 / 2, "vector": 1})
    sgd = dataclasses.replace(config, rate_rule="full", optimizer="sgd").rates
    # gradients of hidden and embedding weights shrink as n^-1/2, the readout's do not
    assert sgd == pytest.approx({"embedding": 2, "hidden": 3 / 2, "readout": 1 / 4, "vector": 2})
