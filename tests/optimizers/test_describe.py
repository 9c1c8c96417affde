"""The table of what an optimizer does to each parameter."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
import pytest

import isolab
from isolab.optimizers.leaves import by_path

PARAMS = {
    "embed": {"embedding": jnp.ones((11, 8))},
    "blocks": {
        "query": {"kernel": jnp.ones((3, 8, 2, 4)), "bias": jnp.ones((3, 2, 4))},
        "up": {"kernel": jnp.ones((3, 8, 20)), "bias": jnp.ones((3, 20))},
    },
    "odd": jnp.ones((2, 3, 4)),
}
WRAPPERS = {
    "plain": lambda tx: tx,
    "chained": lambda tx: optax.chain(optax.clip_by_global_norm(1.0), tx),
    "wrapped": lambda tx: optax.MultiSteps(
        optax.apply_if_finite(tx, 3), 2
    ).gradient_transformation(),
}


def rows_of(tx, params=PARAMS):
    frame = isolab.describe(tx, params)
    assert frame["parameter"].to_list() == list(by_path(params))
    return {row.pop("parameter"): row for row in frame.to_dicts()}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_rules_views_and_reasons_through_any_wrapper(wrap):
    rows = rows_of(wrap(isolab.isoadam(0.1)))
    query = rows["blocks/query/kernel"]
    assert query["rule"].startswith("isoadam") and query["matrices"] == "3 x (8 x 8)"
    assert rows["blocks/up/kernel"]["matrices"] == "3 x (8 x 20)"
    bias = rows["blocks/query/bias"]
    assert bias["matrices"] is None and bias["rule"].startswith("adam")
    assert bias["why"] == "bias or gain by its name"
    assert "embedding" in rows["embed/embedding"]["why"]
    assert rows["odd"]["rule"].startswith("adam") and rows["odd"]["why"].startswith("unknown")


def test_state_bytes_are_those_of_the_state():
    for tx in (isolab.isoadam(0.1), optax.adam(0.1), optax.sgd(0.1)):
        state = jax.eval_shape(tx.init, PARAMS)
        arrays = [leaf for leaf in jax.tree.leaves(state) if leaf.shape]
        total = sum(leaf.size * leaf.dtype.itemsize for leaf in arrays)
        rows = rows_of(tx).values()
        scalars = 4 * len(PARAMS["blocks"])  # of each matrix, its unit of size
        assert total <= sum(row["state_bytes"] for row in rows) <= total + scalars
    assert {row["rule"] for row in rows} == {"no state"}


def test_rates_per_layer_and_shapes_in_place_of_arrays():
    shapes = jax.eval_shape(lambda: PARAMS)
    roles = {"embed": "embedding", "blocks": "hidden", "odd": "readout"}
    tx = isolab.per_layer_optimizer(shapes, "adam", 0.1, width=64, base_width=16, roles=roles)
    rows = rows_of(tx, shapes)
    factors = {path: row["rate_factor"] for path, row in rows.items()}
    assert factors["blocks/up/kernel"] == 0.25 and factors["embed/embedding"] == 1.0
