"""How arrays are seen as matrices: inferred from the field's layers, given by labels, folded."""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from isolab.optimizers.views import View, fold, resolve, sides, unfold, views

ONE_BY_ONE = ((0,), (1,))
STACKED = ((1,), (2,))


def shapes(tree):
    """A tree of nested dicts whose shapes become arrays."""
    if isinstance(tree, dict):
        return {name: shapes(child) for name, child in tree.items()}
    return jnp.zeros(tree)


def state(make):
    return nnx.state(nnx.eval_shape(lambda: make(nnx.Rngs(0))), nnx.Param)


def scanned(rngs):
    @nnx.vmap
    def make(key):
        class Block(nnx.Module):
            def __init__(self, rngs):
                self.attention = nnx.MultiHeadAttention(4, 16, rngs=rngs)
                self.norm = nnx.LayerNorm(16, rngs=rngs)
                self.up = nnx.Linear(16, 16, use_bias=False, rngs=rngs)

        return Block(nnx.Rngs(key))

    return make(jax.random.split(jax.random.key(0), 3))


class LinenBlocks(linen.Module):
    @linen.compact
    def __call__(self, x):
        block = linen.scan(LinenBlock, variable_axes={"params": 0}, split_rngs={"params": True},
                           length=3)  # fmt: skip
        x, _ = block()(x, None)
        x = linen.Conv(4, (3, 3), use_bias=False)(x[:, :, None, None])
        return linen.Dense(7, name="logits_dense")(x)


class LinenBlock(linen.Module):
    @linen.compact
    def __call__(self, x, _):
        x = linen.LayerNorm(use_bias=False)(x)
        heads = linen.DenseGeneral((4, 2), use_bias=False, name="query")(x)
        x = linen.DenseGeneral(8, axis=(-2, -1), use_bias=False, name="attn_out_proj")(heads)
        return linen.Dense(8, use_bias=False)(x), None


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Weights:  # as equinox's and torch's modules have them
    weight: jax.Array
    bias: jax.Array


ATTENTION = {
    "query/kernel": ((0,), (1, 2)),
    "key/kernel": ((0,), (1, 2)),
    "value/kernel": ((0,), (1, 2)),
    "out/kernel": ((0, 1), (2,)),
}
CASES = {
    "linear": (lambda: state(lambda r: nnx.Linear(4, 6, rngs=r)), {"kernel": ONE_BY_ONE}),
    "attention": (lambda: state(lambda r: nnx.MultiHeadAttention(4, 16, rngs=r)), ATTENTION),
    "attention without biases": (
        lambda: state(lambda r: nnx.MultiHeadAttention(4, 8, use_bias=False, rngs=r)),
        ATTENTION,
    ),
    "cubes": (lambda: state(lambda r: nnx.MultiHeadAttention(4, 4, 16, rngs=r)), ATTENTION),
    "stacked": (
        lambda: state(scanned),
        {"up/kernel": STACKED}
        | {f"attention/{k}": tuple(tuple(i + 1 for i in a) for a in v)
           for k, v in ATTENTION.items()},
    ),
    "linen": (
        lambda: jax.eval_shape(LinenBlocks().init, jax.random.key(0), jnp.zeros((2, 8)))["params"],
        {
            "Conv_0/kernel": ((0, 1, 2), (3,)),
            "ScanLinenBlock_0/Dense_0/kernel": STACKED,
            "ScanLinenBlock_0/query/kernel": ((1,), (2, 3)),
            "ScanLinenBlock_0/attn_out_proj/kernel": ((1, 2), (3,)),
        },
    ),
    "conv": (
        lambda: state(lambda r: nnx.Conv(8, 16, (3, 3), rngs=r)),
        {"kernel": ((0, 1, 2), (3,))},
    ),
    "conv of one axis": (
        lambda: state(lambda r: nnx.Conv(8, 16, (3,), rngs=r)),
        {"kernel": ((0, 1), (2,))},
    ),
    "general": (
        lambda: state(lambda r: nnx.LinearGeneral((2, 3), (4, 5), axis=(-2, -1), rngs=r)),
        {"kernel": ((0, 1), (2, 3))},
    ),
    "einsum": (
        lambda: state(lambda r: nnx.Einsum("btd,edf->btef", (3, 8, 5), (3, 5), rngs=r)),
        {"kernel": STACKED},
    ),
    "experts": (lambda: shapes({"experts": {"w1": (3, 8, 5)}}), {"experts/w1": STACKED}),
    "outputs first": (
        lambda: {"mlp": Weights(jnp.zeros((6, 4)), jnp.zeros(6)),
                 "conv": Weights(jnp.zeros((6, 4, 3, 3)), jnp.zeros((6, 1, 1)))},
        {"mlp/weight": ((1,), (0,)), "conv/weight": ((1, 2, 3), (0,))},
    ),
    "a plain dictionary": (
        lambda: shapes({"w": (4, 6), "b": (6,), "thin": (4, 1), "cube": (2, 3, 4), "s": ()}),
        {"w": ONE_BY_ONE},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_layers_of_the_field_are_seen_as_matrices_and_nothing_else_is(case):
    make, wanted = CASES[case]
    found = resolve(None, make())
    assert {path: tuple(seen.view) for path, seen in found.items() if seen.view} == wanted


def test_reasons_are_told():
    params = shapes({
        "blocks": {"kernel": (3, 8, 8), "bias": (3, 8)},
        "query": {"kernel": (8, 4, 2)},
        "wte": {"embedding": (9, 8)},
        "own": (2, 3, 4),
    })  # fmt: skip
    assert {path: seen.why for path, seen in resolve(None, params).items()} == {
        "blocks/bias": "bias or gain by its name",
        "blocks/kernel": "a stack of 3, as its bias (3, 8) tells",
        "own": "unknown: 3 dimensions and no bias",
        "query/kernel": "attention's query",
        "wte/embedding": "embedding by its name",
    }
    bound = {path: seen.why for path, seen in resolve(None, params, max_side=7).items()}
    assert bound["blocks/kernel"] == "both sides longer than max_side, 7"


NAMES = """embedding Embed wte wpe positions pos_emb input_embedding tok_embeddings Embed_0
    embed_tokens lm_head head readout output logits_dense cls_head decoder gpt/~/lm_head
    classifier"""


@pytest.mark.parametrize("name", NAMES.split())
def test_embeddings_and_readouts_are_known_by_their_names(name):
    inner = {"kernel": (3, 4)}
    found = resolve(None, shapes({name: inner, f"{name}_mixer": inner}))
    seen = {path: bool(one.view) for path, one in found.items()}
    assert list(seen.values()) == [False, True]
    assert resolve(None, shapes({"decoder": {"mlp": inner}}))["decoder/mlp/kernel"].view
    attention = {"query": inner, "output": inner}
    assert resolve(None, shapes({"attention": attention}))["attention/output/kernel"].view


def test_heads_are_a_stack_where_asked():
    params = state(lambda r: nnx.MultiHeadAttention(4, 16, rngs=r))
    seen = resolve(views(params, split_heads=True), params)
    assert seen["query/kernel"].view == View((0,), (2,))
    assert seen["out/kernel"].view == View((1,), (2,))
    assert fold(jnp.zeros((16, 4, 5)), View((0,), (2,))).shape == (4, 16, 5)


PARAMS = shapes({"a": {"kernel": (3, 4), "bias": (4,)}, "b": {"kernel": (2, 3, 4)}})


@pytest.mark.parametrize(
    ("labels", "matrices"),
    [
        ({"a": "vector", "b": {"kernel": View(-3, (-2, -1))}}, {"b/kernel": ((0,), (1, 2))}),
        (lambda _: {"a": {"kernel": "matrix", "bias": None}}, {"a/kernel": ONE_BY_ONE}),
        (nnx.State({"b": {"kernel": nnx.Param("vector")}}), {"a/kernel": ONE_BY_ONE}),
        ("vector", {}),
    ],
)
def test_labels_are_matched_by_path_and_what_they_leave_out_is_inferred(labels, matrices):
    for params in (PARAMS, nnx.State(jax.tree.map(nnx.Param, PARAMS))):
        found = resolve(labels, params)
        assert {path: tuple(s.view) for path, s in found.items() if s.view} == matrices


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"a": {"kernal": "matrix"}}, "labels name 'a/kernal', no parameter; there are: ['a/bias'"),
        ({"a": "big"}, "label of 'a/bias' is 'big'; allowed: 'matrix', 'vector' or a view"),
        ({"b": "matrix"}, "label of 'b/kernel', shape (2, 3, 4), is 'matrix', but it cannot be"),
        ({"b": View(0, 3)}, "label of 'b/kernel' is MuonDimensionNumbers(reduction_axis=0,"),
        ({"b": View(0, -3)}, "which does not fit (2, 3, 4)"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        resolve(labels, PARAMS)


@settings(max_examples=20)
@given(order=st.permutations(range(4)), cuts=st.tuples(st.integers(0, 2), st.integers(0, 2)))
def test_unfold_undoes_fold_and_products_are_those_of_einsum(order, cuts):
    stack, inputs = order[: cuts[0]], order[cuts[0] : cuts[0] + 1 + cuts[1] % (3 - cuts[0])]
    view = View(tuple(inputs), tuple(order[cuts[0] + len(inputs) :]))
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 5))
    matrices = fold(jnp.asarray(x), view)
    assert matrices.shape == (*(x.shape[a] for a in sorted(stack)), *sides(x.shape, view))
    np.testing.assert_array_equal(unfold(matrices, view, x.shape), jnp.asarray(x))
    wanted = np.einsum(x, range(4), np.ones_like(x), range(4), sorted(stack))
    got = jnp.sum(matrices, axis=(-2, -1))
    np.testing.assert_allclose(got, wanted, rtol=1e-4)
