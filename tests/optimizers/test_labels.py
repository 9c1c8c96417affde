"""Which rule a parameter gets, from names and from roles."""

from __future__ import annotations

import jax.numpy as jnp
import pytest
from flax import nnx

from isolab.optimizers import isoadam
from isolab.optimizers.labels import (
    FALLBACK,
    MATRIX,
    hidden_matrices,
    labels_from_roles,
)
from isolab.optimizers.leaves import by_path

W = jnp.zeros((3, 4))


@pytest.mark.parametrize("shape", [(3, 4), (4,), (), (2, 3, 4), (1, 4), (4, 1)])
def test_only_proper_matrices_are_matrices(shape):
    label = MATRIX if shape == (3, 4) else FALLBACK
    assert hidden_matrices({"layer": {"kernel": jnp.zeros(shape)}}) == {"layer": {"kernel": label}}


@pytest.mark.parametrize(
    "name", ["embedding", "Embed", "wte", "wpe", "positions", "head", "lm_head", "readout"]
)
def test_embeddings_and_readouts_are_known_by_a_whole_name(name):
    assert hidden_matrices({name: {"kernel": W}}) == {name: {"kernel": FALLBACK}}
    longer = {f"{name}_mixer": {"kernel": W}}
    assert hidden_matrices(longer) == {f"{name}_mixer": {"kernel": MATRIX}}


def test_labels_of_roles_and_paths_without_the_value_step_of_flax_variables():
    roles = {"a": "hidden", "b": ["embedding", "readout", "vector"]}
    assert labels_from_roles(roles) == {"a": MATRIX, "b": [FALLBACK] * 3}
    for leaf in (W, nnx.Param(W)):
        assert list(by_path({"layers": [{"kernel": leaf}]})) == ["layers/0/kernel"]


@pytest.mark.parametrize("as_function", [False, True])
def test_labels_choose_the_rule(as_function):
    params = {"a": W, "b": W}
    labels = {"a": MATRIX, "b": FALLBACK}
    tx = isoadam(1.0, labels=(lambda _: labels) if as_function else labels)
    grads = {"a": jnp.outer(jnp.arange(1.0, 4), jnp.ones(4)), "b": jnp.full((3, 4), 1e-3)}
    updates, _ = tx.update(grads, tx.init(params), params)
    # Adam's first step is the sign; Iso's has the rank of its gradient and so keeps its rows apart
    assert jnp.allclose(updates["b"], -1, rtol=1e-4)
    assert jnp.allclose(updates["a"][2] / updates["a"][0], 3, rtol=1e-3)
