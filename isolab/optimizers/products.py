r"""Exact factors of any model, and how its arrays are seen as matrices: read off its products.

A loss is traced to the list of its operations (a jaxpr).  Where a parameter is multiplied with an
activation, the operation itself says which of the array's axes are summed over (its inputs), which
are not (its outputs), and which go along (a stack of layers, experts or heads).  That holds for
flax.nnx, linen, equinox, haiku and plain JAX alike, through jit, scan, remat, vmap and tied layers.

For each product y = x W with tokens t the same backward pass also gives

.. math:: A = \frac1N \sum_t x_t x_t^T, \qquad B = \frac1N \sum_t g_t g_t^T,

g the gradient of a token's own loss, where the loss is the *mean* over the N tokens.  An array in
several products has the mean over the tokens of all.  Under ``jax.shard_map`` N counts the tokens
of all devices.

Source: isolab's reading of arXiv:2307.12979; the mechanism is isolab's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from isolab.optimizers.factors import BlockRule, Factors, Measure, tap
from isolab.optimizers.iso import LARGEST_SIDE
from isolab.optimizers.leaves import by_path, map_by_path
from isolab.optimizers.views import Seen, View, resolve
from isolab.optimizers.whitening import zero_factors


class Product(NamedTuple):
    """How a parameter is multiplied.

    Attributes:
        view: the axes of its inputs and outputs, ascending; the others are a stack.
        tokens: N, how many rows its inputs have in all its products.
    """

    view: View
    tokens: int


def products(function: Callable[..., Any], params: Any, *args: Any) -> dict[str, Product]:
    """Returns how ``function(params, *args)`` multiplies its parameters, by path.

    Nothing is computed; ``params`` and ``args`` may hold shapes (``jax.eval_shape``) as arrays.

    Left out: a parameter that two products see as different matrices, and one that is cut before it
    is multiplied, or multiplied within a while loop, a branch or a function with a derivative of
    its own.

    Example:
        >>> params = {"up": jnp.ones((3, 2, 4)), "bias": jnp.ones((2, 4))}
        >>> def loss(params, x):
        ...     return jnp.einsum("bd,dhk->bhk", x, params["up"]).mean() + params["bias"].sum()
        >>> products(loss, params, jnp.ones((5, 3)))["up"].view
        MuonDimensionNumbers(reduction_axis=(0,), output_axis=(1, 2))
    """
    leaves, structure = jax.tree.flatten((params, args))
    arrays = [i for i, leaf in enumerate(leaves) if hasattr(leaf, "shape")]
    found: dict[str, Product] = {}

    def trace(values: list[Any]) -> None:
        filled = leaves.copy()
        for i, value in zip(arrays, values, strict=True):
            filled[i] = value
        params, args = jax.tree.unflatten(structure, filled)
        found.update(_products(_traced(function, params, args)[0], params))

    jax.eval_shape(trace, [leaves[i] for i in arrays])
    return found


def product_views(function: Callable[..., Any], params: Any, *args: Any) -> Any:
    """Returns the ``labels`` of iso, isoadam and muon that a model's own products give.

    A parameter is a matrix if :func:`products` finds its view, and its name is not that of an
    embedding or a readout; every other one is entrywise.

    Args:
        function: a loss, ``function(params, *args)``, or anything that runs the whole model.
        params, args: as of :func:`products`.

    Returns:
        A pytree like ``params`` of :class:`~isolab.optimizers.views.Seen`: a view, or None, and
        the reason.

    Example:
        >>> params = {"up": jnp.ones((3, 2, 4)), "lm_head": jnp.ones((8, 5))}
        >>> def model(params, x):
        ...     return jnp.einsum("bd,dhk->bhk", x, params["up"]).reshape(-1, 8) @ params["lm_head"]
        >>> product_views(model, params, jnp.ones((5, 3)))["lm_head"]
        Seen(view=None, why='readout by its name')
    """
    found, named = products(function, params, *args), resolve(None, params)

    def label(path: str, _: Any) -> Seen:
        view, why = named[path]
        by_name = any(word in why for word in ("embedding", "readout"))
        if path in found and not by_name:
            return Seen(found[path].view, "by its product")
        known = view is None and not why.startswith("unknown")
        return named[path] if known else Seen(None, "in no product, or in two that differ")

    return map_by_path(label, params)


def value_grad_factors(
    function: Callable[..., Any],
    where: Any = None,
    *,
    has_aux: bool = False,
    block_size: BlockRule = None,
    max_side: int | None = LARGEST_SIDE,
    max_tokens: int | None = None,
) -> Callable[..., Any]:
    """As ``jax.value_and_grad`` of a loss, with the factors of its weight matrices as a third.

    Args:
        function: ``function(params, *args)``, a scalar loss that is a mean over tokens, or with
            ``has_aux`` a pair of it and anything.
        where: what to measure: paths, such as ["layers/0/kernel"], or labels, as
            :func:`product_views` returns them, whose views are meant; default: every product.
        has_aux: as ``jax.value_and_grad`` has it.
        block_size: as :func:`isolab.optimizers.factors.block_sizes` and the optimizer have it.
        max_side: a longer block is not measured, as the optimizer leaves it unwhitened.
        max_tokens: measure each product on at most about so many evenly spaced tokens.

    Returns:
        A function of ``params, *args, due=None`` that returns the value (with ``has_aux`` a pair),
        the gradients, and a pytree like ``params`` with :class:`~isolab.optimizers.factors.Factors`
        where they are measured and None elsewhere, each of shape (*stack, blocks, size, size),
        float32 or wider: what the update of ``isoadam`` takes as ``factors``.  Where ``due``, a
        boolean scalar, is False they are zeros at no cost: see
        :func:`isolab.optimizers.iso.refresh_due`.

    Raises:
        ValueError: when called, if a path of ``where`` is in no product, or no parameter is.

    Example:
        >>> def loss(params, x):
        ...     return ((x @ params["w"]) ** 2).mean()
        >>> value, grads, factors = value_grad_factors(loss)({"w": jnp.ones((2, 3))}, jnp.eye(2))
        >>> factors["w"].input
        Array([[[0.5, 0. ],
                [0. , 0.5]]], dtype=float32)
    """

    def call(params: Any, *args: Any, due: Any = None) -> Any:
        jaxpr, shape = _traced(function, params, args)
        known = _products(jaxpr, params)
        paths = _paths(known, where)
        missing = [path for path in paths if path not in known]
        if missing or not paths:
            what = f"{missing[0]!r} is in no product" if missing else "no parameter is in a product"
            raise ValueError(f"{what}; in products are: {sorted(known)}")
        leaves = by_path(params)
        zeros = {
            path: zero_factors(leaves[path], known[path].view, block_size, max_side)
            for path in paths
        }

        def run(params: Any, zeros: dict[str, Factors]) -> Any:
            measured = {
                path: (known[path].tokens, max_tokens, its, due) for path, its in zeros.items()
            }
            return jax.tree.unflatten(shape, _run(jaxpr, params, measured, []))

        value, (grads, found) = jax.value_and_grad(run, (0, 1), has_aux=has_aux)(params, zeros)
        factors = map_by_path(lambda path, _: found.get(path), params)
        return value, grads, factors

    return call


def _paths(known: dict[str, Product], where: Any) -> list[str]:
    if where is None or (
        isinstance(where, list | tuple) and all(isinstance(p, str) for p in where)
    ):
        return list(known if where is None else where)
    labels = by_path(where, is_leaf=lambda leaf: isinstance(leaf, View | Seen))
    return [
        path
        for path, label in labels.items()
        if isinstance(label, View) or (isinstance(label, Seen) and label.view)
    ]


class _Kernel(NamedTuple):
    """A value that is a parameter but for the order, merging and slicing of its axes."""

    path: str
    axes: tuple[tuple[int, ...], ...]  # for each axis of the value, the parameter's
    sliced: tuple[int, ...] = ()  # the parameter's axes that scans have cut away
    times: int = 1  # how often a scan repeats its product
    tokens: int = 1  # of all its products
    max_tokens: int | None = None
    factors: Factors | None = None  # zeros; None: not measured
    due: Any = None


_Operand: TypeAlias = tuple[Any, _Kernel | None]
_Found: TypeAlias = list[tuple[str, Product]]


def _traced(function: Callable[..., Any], params: Any, args: tuple[Any, ...]) -> tuple[Any, Any]:
    """Returns the operations of ``function(params, *args)``, and the structure of its result."""

    def of_params(params: Any) -> Any:
        # made anew: flax's variables can be changed only in the trace in which they were made
        return function(params, *jax.tree.map(lambda leaf: leaf, args))

    jaxpr, shape = jax.make_jaxpr(of_params, return_shape=True)(params)
    return jaxpr, jax.tree.structure(shape)


def _products(jaxpr: Any, params: Any) -> dict[str, Product]:
    found: _Found = []
    jax.eval_shape(lambda params: _run(jaxpr, params, None, found), params)
    merged: dict[str, Product | None] = {}
    for path, (view, tokens) in found:
        known = merged.setdefault(path, Product(view, 0))
        alike = known if known and known.view == view else None
        merged[path] = alike and Product(view, alike.tokens + tokens)
    return {path: product for path, product in merged.items() if product is not None}


def _run(
    jaxpr: Any, params: Any, measured: dict[str, tuple[Any, ...]] | None, found: _Found
) -> list[Any]:
    """Returns the leaves of the result; lists the products of what is measured, None: of all."""
    operands: list[_Operand] = []
    for path, leaf in by_path(params).items():
        axes = tuple((axis,) for axis in range(jnp.ndim(leaf)))
        chosen = len(axes) > 1 and (measured is None or path in measured)
        options = measured[path] if chosen and measured else ()
        operands.append((leaf, _Kernel(path, axes, (), 1, *options) if chosen else None))
    return [value for value, _ in _evaluate(jaxpr.jaxpr, jaxpr.consts, operands, found)]


def _evaluate(
    jaxpr: Any, consts: Sequence[Any], operands: Sequence[_Operand], found: _Found
) -> list[_Operand]:
    """Evaluates operations, with what is known of each value."""
    constants = [(value, None) for value in consts]
    pairs = zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *operands], strict=True)
    known: dict[Any, _Operand] = dict(pairs)

    def read(var: Any) -> _Operand:
        return (var.val, None) if isinstance(var, Literal) else known[var]

    for eqn in jaxpr.eqns:
        inputs = [read(var) for var in eqn.invars]
        rule = _RULES.get(eqn.primitive.name)
        with eqn.ctx.manager:
            kernel = next((kernel for _, kernel in inputs if kernel is not None), None)
            if rule is None or kernel is None:
                results: list[_Operand] = [(value, None) for value in _bind(eqn, inputs)]
            else:
                results = rule(eqn, inputs, kernel, found)
        known |= dict(zip(eqn.outvars, results, strict=True))
    return [read(var) for var in jaxpr.outvars]


def _bind(eqn: Any, operands: Sequence[_Operand]) -> list[Any]:
    values = [value for value, _ in operands]
    result = eqn.primitive.bind(*values, **eqn.primitive.get_bind_params(eqn.params))
    return list(result) if eqn.primitive.multiple_results else [result]


def _same_axes(
    eqn: Any, operands: Sequence[_Operand], kernel: _Kernel, found: _Found
) -> list[_Operand]:
    """A cast, a multiplication with one number, or a division by one."""
    numbers = [value for value, known in operands if known is None]
    first = operands[0][1] is not None or eqn.primitive.name == "mul"  # 1 / W is no W
    same = first and len(numbers) == len(operands) - 1 and all(jnp.ndim(n) == 0 for n in numbers)
    return [(*_bind(eqn, operands), kernel if same else None)]


def _transposed(
    eqn: Any, operands: Sequence[_Operand], kernel: _Kernel, found: _Found
) -> list[_Operand]:
    axes = tuple(kernel.axes[axis] for axis in eqn.params["permutation"])
    return [(*_bind(eqn, operands), kernel._replace(axes=axes))]


def _reshaped(
    eqn: Any, operands: Sequence[_Operand], kernel: _Kernel, found: _Found
) -> list[_Operand]:
    """Axes that are merged, or come and go with length one; one that is cut is not followed."""
    ((value, _),) = operands[:1]
    (result,) = _bind(eqn, operands)
    left = [its for its in zip(value.shape, kernel.axes, strict=True) if its[0] != 1]
    axes: list[tuple[int, ...]] = []
    for length in result.shape:
        size, merged = 1, tuple[int, ...]()
        while left and size < length:
            n, its = left.pop(0)
            size, merged = size * n, merged + its
        axes.append(merged)
        if size != length:
            return [(result, None)]
    return [(result, kernel._replace(axes=tuple(axes)))]


def _called(
    eqn: Any, operands: Sequence[_Operand], kernel: _Kernel, found: _Found
) -> list[_Operand]:
    """A function within: of ``jax.jit``, which is dissolved, or of ``jax.checkpoint``."""
    inner = eqn.params["jaxpr"]
    jaxpr, consts = getattr(inner, "jaxpr", inner), getattr(inner, "consts", ())
    if "prevent_cse" not in eqn.params:
        return _evaluate(jaxpr, consts, operands, found)

    def within(values: list[Any]) -> list[Any]:
        again = [(value, kernel) for value, (_, kernel) in zip(values, operands, strict=True)]
        return [value for value, _ in _evaluate(jaxpr, consts, again, found)]

    options = {name: eqn.params[name] for name in ("prevent_cse", "policy")}
    results = jax.checkpoint(within, **options)([value for value, _ in operands])
    return [(value, None) for value in results]


def _scanned(
    eqn: Any, operands: Sequence[_Operand], kernel: _Kernel, found: _Found
) -> list[_Operand]:
    """A scan over layers, each with its slice of a kernel, or over time with one kernel."""
    p, body = eqn.params, eqn.params["jaxpr"]
    first, last = p["num_consts"], p["num_consts"] + p["num_carry"]
    shared = [
        (value, kernel and kernel._replace(times=kernel.times * p["length"]))
        for value, kernel in operands[:first]
    ]
    carry, xs = ([value for value, _ in its] for its in (operands[first:last], operands[last:]))
    kernels = [kernel and _slice_of(kernel) for _, kernel in operands[last:]]
    zeros = [kernel and kernel.factors for kernel in kernels]

    def step(carry: list[Any], slices: tuple[list[Any], list[Factors | None]]) -> Any:
        sliced = [
            (value, kernel and kernel._replace(factors=its))
            for value, kernel, its in zip(slices[0], kernels, slices[1], strict=True)
        ]
        inputs = [*shared, *((value, None) for value in carry), *sliced]
        values = [value for value, _ in _evaluate(body.jaxpr, body.consts, inputs, found)]
        return values[: len(carry)], values[len(carry) :]

    options = {name: p[name] for name in ("length", "reverse", "unroll")}
    carry, ys = jax.lax.scan(step, carry, (xs, zeros), **options)
    return [(value, None) for value in (*carry, *ys)]


def _slice_of(kernel: _Kernel) -> _Kernel | None:
    """Returns what a scan over a kernel's first axis sees.

    Factors lie as the parameter's axes do, and a scan takes slices of their first: axes that are
    merged, or come after one that is left, are not followed.
    """
    first, *axes = kernel.axes
    if len(first) != 1 or first[0] <= max(kernel.sliced, default=-1):
        return None
    return kernel._replace(axes=tuple(axes), sliced=(*kernel.sliced, *first))


def _multiplied(
    eqn: Any, operands: Sequence[_Operand], kernel: _Kernel, found: _Found
) -> list[_Operand]:
    """A kernel times something else, along any axes."""
    (y,) = _bind(eqn, operands)
    at = 0 if operands[0][1] is not None else 1
    (w, _), (x, other) = operands[at], operands[1 - at]
    summed, batch = eqn.params["dimension_numbers"]
    begin = len(batch[0])
    w_free, x_free = (
        [axis for axis in range(its.ndim) if axis not in {*summed[side], *batch[side]}]
        for its, side in ((w, at), (x, 1 - at))
    )
    # the result's axes: batch, then those of the first operand, then those of the second
    middle = begin + len(w_free if at == 0 else x_free)
    ranges = [tuple(range(begin, middle)), tuple(range(middle, y.ndim))]
    inputs, rows = _in_order(kernel, summed[at], summed[1 - at])
    outputs, columns = _in_order(kernel, w_free, ranges[at])
    stack, x_stack = _in_order(kernel, batch[at], batch[1 - at])
    _, y_stack = _in_order(kernel, batch[at], range(begin))
    in_order = not stack or stack[0] > max(kernel.sliced, default=-1)
    if other is None and inputs and outputs and in_order:
        where = (x_stack, tuple(x_free), rows), (y_stack, ranges[1 - at], columns)
        tokens = math.prod(x.shape[axis] for axis in x_free)
        y = _tapped(kernel, View(inputs, outputs), where, tokens, y, x, found)
    return [(y, None)]


def _convolved(
    eqn: Any, operands: Sequence[_Operand], kernel: _Kernel, found: _Found
) -> list[_Operand]:
    """A convolution: its rows are the patches that the kernel meets."""
    (y,) = _bind(eqn, operands)
    (x, other), (w, _) = operands
    p, (_, of_w, of_y) = eqn.params, eqn.params["dimension_numbers"]
    grouped = p["feature_group_count"] != 1 or p["batch_group_count"] != 1
    if other is None and not grouped and all(kernel.axes):
        names = ("window_strides", "padding", "lhs_dilation", "rhs_dilation")
        options = tuple((name, tuple(p[name])) for name in names)
        window = tuple(w.shape[axis] for axis in of_w[2:])
        inputs, features = _in_order(kernel, of_w[1:], range(1, len(of_w)))
        outputs, _ = _in_order(kernel, of_w[:1], (0,))
        tokens = (0, *range(len(of_w), 2 * len(of_w) - 2))
        where = ((), tokens, features), ((), (of_y[0], *of_y[2:]), of_y[1:2])
        patches = window, options, p["dimension_numbers"]
        count = y.size // y.shape[of_y[1]]
        view = View(inputs, outputs)
        y = _tapped(kernel, view, where, count, y, x, found, patches)
    return [(y, None)]


def _in_order(
    kernel: _Kernel, axes: Sequence[int], places: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the parameter's axes that these of a kernel are, ascending, and their places."""
    both = sorted((kernel.axes[axis], place) for axis, place in zip(axes, places, strict=True))
    both = [its for its in both if its[0]]
    return tuple(axis for its, _ in both for axis in its), tuple(place for _, place in both)


def _tapped(
    kernel: _Kernel,
    view: View,
    where: tuple[Any, Any],
    tokens: int,
    y: Any,
    x: Any,
    found: _Found,
    patches: Any = None,
) -> Any:
    """Returns y; notes the product, and has its backward pass measure factors."""
    found.append((kernel.path, Product(view, tokens * kernel.times)))
    if kernel.factors is None:
        return y
    share = tokens / kernel.tokens
    measure = Measure(*where, share, kernel.tokens, kernel.max_tokens, patches)
    return tap(measure, y, x, kernel.factors, kernel.due)


_RULES: dict[str, Callable[..., list[_Operand]]] = {
    "convert_element_type": _same_axes,
    **dict.fromkeys(("copy", "pvary", "reshard", "sharding_constraint"), _same_axes),
    "mul": _same_axes,
    "div": _same_axes,
    "transpose": _transposed,
    "reshape": _reshaped,
    "squeeze": _reshaped,
    "jit": _called,
    "closed_call": _called,
    "checkpoint": _called,
    "remat2": _called,
    "scan": _scanned,
    "dot_general": _multiplied,
    "conv_general_dilated": _convolved,
}
