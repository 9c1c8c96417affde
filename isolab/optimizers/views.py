r"""How an array is seen as a matrix, or as a stack of matrices: inputs by outputs.

A view is optax's ``MuonDimensionNumbers``: the axes of the inputs and those of the outputs; every
other axis is a stack, of layers, experts or heads.  Where no view is given it is inferred from the
names along an array's path, its shape, and the biases and gains around it.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers as View

from isolab.optimizers.factors import BlockRule, block_sizes
from isolab.optimizers.labels import FALLBACK, MATRIX
from isolab.optimizers.leaves import by_path, is_function

__all__ = [
    "Labels", "Seen", "View", "fold", "resolve", "sides", "stack_axes", "structures", "unfold",
    "views",
]  # fmt: skip

Labels = Callable[[Any], Any] | Any
"""None, a function of the parameters, or a pytree by path: "matrix", "vector", a View or a Seen."""

_ARRAYS = {"kernel", "weight", "w"}  # the array of the layer named before it
_VECTORS = {
    "bias",
    "b",
    "scale",
    "gain",
    "offset",
    "shift",
    "beta",
    "gamma",
    "mean",
    "var",
    "alpha",
}
_GAINS = {"scale", "gain", "gamma"}
_EMBEDDINGS = {
    "embedding", "embed", "embeddings", "wte", "wpe", "positions", "token_embedding",
}  # fmt: skip
_READOUTS = {
    "readout", "head", "lm_head", "unembed", "unembedding", "logits", "classifier", "embed_out",
}  # fmt: skip
# of a layer, not of what holds it:
_EMBEDDING_LAYERS = {"embed_tokens", "embed_positions", "embed_in", "embedder", "pos", "shared"}
_READOUT_LAYERS = {"output", "decoder", "output_layer", "predictions", "score", "to_logits"}
_EMBEDDING_END = re.compile(r"(embedding|embeddings|embed|embedder|emb)$")
_READOUT_END = re.compile(
    r"(^logits_(dense|proj|projection|layer)|_(logits?|head|readout|classifier|unembed))$"
)
_QUERIES = {
    f"{before}{name}{after}"
    for name in ("query", "key", "value", "q", "k", "v", "qkv", "kv")
    for before, after in (("", ""), ("", "_proj"), ("w", ""), ("to_", ""))
}
_OUT = re.compile(r"(^|_)(w?o|out|output|proj)(_proj|_projection)?$")


class Seen(NamedTuple):
    """How one parameter is seen: ``view`` None for entrywise, and the reason in words."""

    view: View | None
    why: str


class _Array(NamedTuple):
    key: str  # its path
    names: tuple[str, ...]  # along the path, split at "/", lower case
    scope: tuple[str, ...]  # those before the layer's
    layer: str  # the layer's name, without a number at its end
    shape: tuple[int, ...]
    outputs_first: bool  # the ``weight`` of a module with attributes, as equinox and torch have it


def resolve(
    labels: Labels, params: Any, max_side: int | None = None, block_size: BlockRule = None
) -> dict[str, Seen]:
    """Returns how every parameter is seen, by path.

    Args:
        labels: None to infer; a function of ``params``; or a pytree, or beginning of one, of
            "matrix" (seen as its shape and neighbours tell), "vector" or None (entrywise), views,
            and :class:`Seen`; matched by path.  What it leaves out is inferred.
        params: the whole pytree, as the neighbours of an array tell what it is.
        max_side: matrices of which both sides are longer are entrywise; None for no bound.
        block_size: sides count as long as their blocks, see
            :func:`isolab.optimizers.factors.block_sizes`.

    Raises:
        ValueError: a label that is none of these or names no parameter; a "matrix" that cannot be
            one; a view that does not fit its array.
    """
    given = by_path(labels(params) if is_function(labels) else labels, is_leaf=_is_label)
    known = by_path(params, is_leaf=_is_gap)
    if labels is None:
        given = {}
    for path in given:
        if path and not any(key == path or key.startswith(f"{path}/") for key in known):
            raise ValueError(f"labels name {path!r}, no parameter; there are: {sorted(known)}")
    seen, arrays = {}, _arrays(params)
    for array, found, named in zip(arrays, *_inferred(arrays), strict=True):
        label = _nearest(array.key, given)
        if label == _INFER:
            found = named
        elif label in (FALLBACK, None):
            found = Seen(None, "by its label")
        elif isinstance(label, View | Seen):
            view, why = label if isinstance(label, Seen) else (label, "by its label")
            found = Seen(view and _checked(view, array), why)
        elif label != MATRIX:
            raise ValueError(
                f"label of {array.key!r} is {label!r}; allowed: {MATRIX!r}, {FALLBACK!r} or a view,"
                " optax.contrib.MuonDimensionNumbers"
            )
        elif found.view is None:
            raise ValueError(
                f"label of {array.key!r}, shape {array.shape}, is {MATRIX!r}, but it cannot be"
                f" seen as one ({found.why}); give a view, optax.contrib.MuonDimensionNumbers"
            )
        if found.view and max_side is not None:
            lengths = block_sizes(*sides(array.shape, found.view), block_size)
            if min(lengths) > max_side:
                found = Seen(None, f"both sides longer than max_side, {max_side}")
        seen[array.key] = found
    return seen


def views(params: Any, *, split_heads: bool = False) -> Any:
    """Returns the inferred labels of all parameters: what ``labels`` takes.

    Args:
        params: a pytree of arrays.
        split_heads: attention's query, key, value and output kernels of three dimensions are
            stacks of one matrix per head, instead of one matrix.

    Example:
        >>> kernel = jnp.zeros((16, 4, 2))
        >>> views({"query": {"kernel": kernel}})
        {'query': {'kernel': MuonDimensionNumbers(reduction_axis=(0,), output_axis=(1, 2))}}
        >>> views({"query": {"kernel": kernel}}, split_heads=True)
        {'query': {'kernel': MuonDimensionNumbers(reduction_axis=(0,), output_axis=(2,))}}
    """
    labels: list[Any] = []
    for view, why in resolve(None, params).values():
        if view is not None and split_heads and why.startswith("attention"):
            view = View(view.reduction_axis[-1:], view.output_axis[-1:])
        labels.append(FALLBACK if view is None else view)
    return jax.tree.unflatten(jax.tree.structure(params), labels)


def structures(params: Any) -> dict[str, Seen]:
    """Returns how every parameter would be seen if its layer's name did not count, by path."""
    arrays = _arrays(params)
    return {a.key: seen for a, seen in zip(arrays, _inferred(arrays)[0], strict=True)}


def sides(shape: tuple[int, ...], view: View) -> tuple[int, int]:
    """Returns fan-in and fan-out of the matrices of which an array of this shape is a stack."""
    fan_in, fan_out = (math.prod(shape[axis] for axis in axes) for axes in view)
    return fan_in, fan_out


def stack_axes(ndim: int, view: View) -> tuple[int, ...]:
    """Returns the axes that are neither inputs nor outputs."""
    return tuple(axis for axis in range(ndim) if axis not in (*view[0], *view[1]))


def fold(x: jax.Array, view: View) -> jax.Array:
    """Returns the array as its matrices, shape (stack..., fan_in, fan_out)."""
    stack = stack_axes(x.ndim, view)
    shape = (*(x.shape[axis] for axis in stack), *sides(x.shape, view))
    return x.transpose(*stack, *view[0], *view[1]).reshape(shape)


def unfold(matrices: jax.Array, view: View, shape: tuple[int, ...]) -> jax.Array:
    """Returns the array whose :func:`fold` this is."""
    order = (*stack_axes(len(shape), view), *view[0], *view[1])
    whole = matrices.reshape([shape[axis] for axis in order])
    return whole.transpose([order.index(axis) for axis in range(len(shape))])


_INFER = object()


def _is_label(leaf: Any) -> bool:
    return leaf is None or isinstance(leaf, View | Seen)


def _is_gap(leaf: Any) -> bool:
    return leaf is None or isinstance(leaf, optax.MaskedNode)


def _nearest(path: str, given: Mapping[str, Any]) -> Any:
    """Returns the label of the path, or of its longest beginning that has one."""
    while path and path not in given:
        path = path.rpartition("/")[0]
    return given.get(path, _INFER)


def _checked(view: View, array: _Array) -> View:
    """Returns the view with tuples of axes counted from the first."""
    ndim = len(array.shape)
    pair = [(axes,) if isinstance(axes, int) else tuple(axes) for axes in view]
    named = [*pair[0], *pair[1]]
    if not all(-ndim <= axis < ndim for axis in named) or len({a % ndim for a in named}) < len(
        named
    ):
        raise ValueError(f"label of {array.key!r} is {view}, which does not fit {array.shape}")
    inputs, outputs = (tuple(axis % ndim for axis in axes) for axes in pair)
    return View(inputs, outputs)


def _arrays(params: Any) -> tuple[_Array, ...]:
    arrays = []
    raw = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for path, (key, leaf) in zip(raw, by_path(params).items(), strict=True):
        names = tuple(re.split(r"\\?/", key.lower()))
        end = len(names) - (2 if len(names) > 1 and names[-1] in _ARRAYS else 1)
        layer = re.sub(r"_?\d+$", "", names[end])
        attribute = len(path) > 0 and isinstance(path[-1], jax.tree_util.GetAttrKey)
        first = attribute and names[-1] == "weight"
        arrays.append(_Array(key, names, names[:end], layer, jnp.shape(leaf), first))
    return tuple(arrays)


@functools.lru_cache(maxsize=64)
def _inferred(arrays: tuple[_Array, ...]) -> tuple[list[Seen], list[Seen]]:
    """Returns how arrays are seen by their structure, and by that and by their layers' names."""
    around = _Neighbours(arrays)
    structure = [_structure(array, around) for array in arrays]
    pairs = zip(arrays, structure, strict=True)
    return structure, [_unless_named(array, found, around) for array, found in pairs]


class _Neighbours:
    """What the other arrays of a tree tell about one."""

    def __init__(self, arrays: tuple[_Array, ...]):
        self.biases = {a.names[:-1]: a.shape for a in arrays if a.names[-1] in ("bias", "b")}
        self.attention = {array.scope for array in arrays if array.layer in _QUERIES}
        self.within: dict[tuple[str, ...], list[_Array]] = {}
        for array in arrays:
            for end in range(len(array.names)):
                self.within.setdefault(array.names[:end], []).append(array)
        self.stacks = {scope: _stack_by_gains(inside) for scope, inside in self.within.items()}

    def stack(self, array: _Array) -> tuple[int | None, str]:
        """Returns how many axes are stacked by the nearest gains, and which; or None."""
        for end in reversed(range(len(array.names))):
            if found := self.stacks[array.names[:end]]:
                return found
        return None, ""


def _stack_by_gains(inside: list[_Array]) -> tuple[int, str] | None:
    """Returns the depth of a stack: a gain has one axis of its own, all share the stacked ones."""
    gain = next((a for a in inside if a.names[-1] in _GAINS and a.shape), None)
    if gain is None:
        return None
    first = gain.shape[:-1]
    same = all(array.shape[: len(first)] == first for array in inside)
    return (len(first) if same else 0), f"{gain.names[-1]} {gain.shape}"


def _unless_named(array: _Array, found: Seen, around: _Neighbours) -> Seen:
    """Returns ``found``, or entrywise for an embedding or a readout by the names on its path."""
    if found.view is None or found.why.startswith("attention"):
        return found
    if min(sides(array.shape, found.view)) == 1:
        return Seen(None, "one row or column")
    layer, names = array.layer, {re.sub(r"_\d+$", "", name) for name in array.names}
    if names & _EMBEDDINGS or layer in _EMBEDDING_LAYERS or _EMBEDDING_END.search(layer):
        return Seen(None, "embedding by its name")
    readout = names & _READOUTS or layer in _READOUT_LAYERS or _READOUT_END.search(layer)
    if readout and array.scope not in around.attention:
        return Seen(None, "readout by its name")
    return found


def _structure(array: _Array, around: _Neighbours) -> Seen:
    shape, ndim, name = array.shape, len(array.shape), array.names[-1]
    if name in _VECTORS or re.search(r"_(bias|scale|gain)$", name):
        return Seen(None, "bias or gain by its name")
    if ndim < 2:
        return Seen(None, "a number" if ndim == 0 else "one dimension")
    query, out = array.layer in _QUERIES, bool(_OUT.search(array.layer))
    attention = query or (out and array.scope in around.attention)
    stack, gain = around.stack(array)
    bias = around.biases.get(array.names[:-1], ())
    fitting = sorted(_by_bias(array, bias), key=lambda view: len(stack_axes(ndim, view)))
    if fitting:
        agreed = [view for view in fitting if len(stack_axes(ndim, view)) == stack]
        view = (agreed or (fitting if attention else fitting[::-1]))[0]
        depth, why = len(stack_axes(ndim, view)), f"as its bias {bias} tells"
        if depth:
            why = f"{_stack_of(shape[:depth])}, {why}"
    else:
        depth = max(stack or 0, ndim - 3 if attention else 0)
        view, why = _by_names(array, depth, query, attention and out)
        if view is None:
            return Seen(None, why)
        if stack:
            why += f", as {gain} tells"
    if attention and ndim - depth == 3:
        why = f"attention's {array.layer}"
    return Seen(view, "two dimensions" if ndim == 2 and not array.outputs_first else why)


def _by_bias(array: _Array, bias: tuple[int, ...]) -> list[View]:
    """Returns the views for which kernel and bias have the same stack and outputs."""
    shape, ndim = array.shape, len(array.shape)
    while len(bias) > 1 and bias[-1] == 1:
        bias = bias[:-1]
    inputs = ndim - len(bias)  # how many axes
    last, first = [], []
    for stack in range(len(bias)) if inputs > 0 else ():
        if shape[:stack] != bias[:stack]:
            continue
        if shape[stack + inputs :] == bias[stack:]:
            last.append(_view(stack, stack + inputs, ndim))
        if shape[stack : len(bias)] == bias[stack:]:
            first.append(View(tuple(range(len(bias), ndim)), tuple(range(stack, len(bias)))))
    return (first or last) if array.outputs_first else (last or first)


def _by_names(array: _Array, stack: int, query: bool, out: bool) -> tuple[View | None, str]:
    """Returns a view where no bias tells: of attention, experts, convolutions, plain matrices."""
    ndim, own = len(array.shape), len(array.shape) - stack
    stacked = _stack_of(array.shape[:stack]) if stack else ""
    if own < 2:
        return None, f"{stacked} vectors"
    if own == 2 and not array.outputs_first:
        return _view(stack, stack + 1, ndim), stacked
    if own == 3 and (query or out):
        return _view(stack, stack + (1 if query else 2), ndim), ""
    if any("expert" in name or name == "moe" for name in array.names):
        return _view(ndim - 2, ndim - 1, ndim), "experts by their name"
    if array.outputs_first:
        return View(tuple(range(stack + 1, ndim)), (stack,)), "outputs first, as a module's weight"
    if "conv" in array.layer or own == 4:
        return _view(stack, ndim - 1, ndim), "a convolution's"
    return None, f"unknown: {ndim} dimensions and no bias"


def _stack_of(lengths: tuple[int, ...]) -> str:
    return f"a stack of {' x '.join(map(str, lengths))}"


def _view(first: int, cut: int, last: int) -> View:
    return View(tuple(range(first, cut)), tuple(range(cut, last)))
