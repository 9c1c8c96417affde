"""What an optimizer does to each parameter, as a table."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax

from isolab.optimizers.leaves import by_path
from isolab.optimizers.views import Seen, View, sides, stack_axes

if TYPE_CHECKING:
    import polars as pl


def describe(optimizer: optax.GradientTransformation, params: Any) -> pl.DataFrame:
    """Returns what an optimizer does to each parameter, and why.

    Args:
        optimizer: any optax transformation, chained and wrapped as it may be.
        params: a pytree of arrays, or of their shapes (``jax.eval_shape``); nothing is computed.

    Returns:
        polars.DataFrame, a row per parameter: ``parameter`` (its path), ``shape``, ``matrices``
        (such as "3 x (64 x 256)"; null: entrywise), ``rule`` (the transformations that keep state
        for it, "adam" for optax's ScaleByAdamState), ``rate_factor`` (of its role's rate),
        ``state_bytes`` and ``why`` it is seen so.

    Example:
        >>> params = {"up": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
        >>> describe(optax.adam(0.1), params).select("parameter", "rule", "state_bytes").rows()
        [('up/bias', 'adam', 24), ('up/kernel', 'adam', 48)]
    """
    import polars as pl

    leaves = by_path(params)
    told = list(_told(optimizer.update))
    seen: dict[str, Seen] = {}
    factors = dict.fromkeys(leaves, 1.0)
    for update in told:
        seen |= update.seen(params) if hasattr(update, "seen") else {}
        for path, factor in getattr(update, "factors", {}).items():
            factors[path] = factors.get(path, 1.0) * float(factor)
    state = jax.eval_shape(optimizer.init, params)
    rules: dict[str, dict[str, int]] = {path: {} for path in leaves}
    for names, state_path, leaf in _state_leaves(state, "", ""):
        owner = max((p for p in leaves if f"/{p}/" in f"{state_path}/"), key=len, default=None)
        if owner is not None:
            size = math.prod(leaf.shape) * leaf.dtype.itemsize
            rules[owner][names] = rules[owner].get(names, 0) + size
    rows = []
    for path, leaf in leaves.items():
        its = seen.get(path, Seen(None, ""))
        rows.append({
            "parameter": path,
            "shape": str(jnp.shape(leaf)),
            "matrices": its.view and _in_words(jnp.shape(leaf), its.view),
            "rule": ", ".join(rules[path]) or "no state",
            "rate_factor": factors[path],
            "state_bytes": sum(rules[path].values()),
            "why": its.why,
        })  # fmt: skip
    return pl.DataFrame(rows, schema_overrides={"matrices": pl.String})


def _in_words(shape: tuple[int, ...], view: View) -> str:
    fan_in, fan_out = sides(shape, view)
    stack = [str(shape[axis]) for axis in stack_axes(len(shape), view)]
    matrix = f"{fan_in} x {fan_out}"
    return " x ".join([*stack, f"({matrix})"]) if stack else matrix


def _told(function: Any, known: set[int] | None = None) -> Iterator[Any]:
    """Yields the functions within an update that tell how they see parameters or scale rates."""
    known = set() if known is None else known
    if id(function) in known:
        return
    known.add(id(function))
    if hasattr(function, "seen") or hasattr(function, "factors"):
        yield function
    if isinstance(function, tuple | list):
        inner: Any = function
    elif isinstance(function, dict):
        inner = function.values()
    else:
        inner = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
        inner += [getattr(function, "func", None), getattr(function, "__wrapped__", None)]
        inner += getattr(getattr(function, "__self__", None), "__dict__", {}).values()
    for its in inner:
        if callable(its) or isinstance(its, tuple | list | dict):
            yield from _told(its, known)


def _state_leaves(state: Any, rule: str, path: str) -> Iterator[tuple[str, str, Any]]:
    """Yields each array of a state: the rule that keeps it, its path, and its shape."""
    name = type(state).__name__
    if name.endswith("State") and not rule.startswith("ScaleBy"):  # the outermost of these counts
        rule = name
    if isinstance(state, tuple | list | dict):
        fields = getattr(state, "_fields", range(len(state)))
        children = state if isinstance(state, dict) else dict(zip(fields, state, strict=True))
        for key, its in children.items():
            yield from _state_leaves(its, rule, f"{path}/{key}")
    else:
        for key, leaf in by_path(state).items():
            yield rule.removeprefix("ScaleBy").removesuffix("State").lower(), f"{path}/{key}", leaf
