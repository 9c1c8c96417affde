"""The axis of the runs: many runs by one run's function, spread over this process's devices.

Each device trains its own runs, and none talk.  On an accelerator they are vmapped, on a CPU they
are trained one by one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

T = TypeVar("T")
RUNS = "runs"


def device_count() -> int:
    """Returns how many devices train runs: all local ones, or one if a default device is set."""
    chosen = jax.config.jax_default_device  # type: ignore[attr-defined]  # not in jax's stubs
    return 1 if chosen is not None else jax.local_device_count()


def padded(items: Sequence[T], devices: int) -> list[T]:
    """Returns the items, the last one repeated until every device has as many.

    Example:
        >>> padded("abcde", 4)
        ['a', 'b', 'c', 'd', 'e', 'e', 'e', 'e']
    """
    return [*items, *[items[-1]] * (-len(items) % devices)]


def runs_mesh(devices: int) -> Mesh:
    """Returns the first local devices in a row, the mesh axis "runs"."""
    return Mesh(np.array(jax.local_devices()[:devices]), (RUNS,))


def on_each(value: Any, devices: int) -> Any:
    """Returns a pytree of arrays with a whole copy on each device; as it is for one device."""
    if devices == 1:
        return value
    return jax.device_put(value, NamedSharding(runs_mesh(devices), PartitionSpec()))


def split_runs(
    function: Callable[..., Any], in_axes: tuple[Any, ...], out_axes: tuple[Any, ...], devices: int
) -> Callable[..., Any]:
    """Returns ``over_runs(function, in_axes, out_axes)``, its runs divided among the devices.

    Each device works on its runs alone: there is no collective, and what the compiler could not
    divide by itself (an eigendecomposition) is divided too.  One device has them all, undivided.

    Args:
        function: of one run.
        in_axes: 0 where runs are stacked, None where they share a value; pytrees of these.
        out_axes: likewise; a shared result must not depend on the run.
        devices: how many; the number of runs is a multiple of it.
    """
    batched = over_runs(function, in_axes, out_axes)
    if devices == 1:
        return batched
    return jax.shard_map(
        batched,
        mesh=runs_mesh(devices),
        in_specs=_specs(in_axes),
        out_specs=_specs(out_axes),
        # shared results are equal by construction; the check would want every zero that a loop
        # starts from marked as different on each device
        check_vma=False,
    )


def _specs(axes: Any) -> Any:
    return jax.tree.map(
        lambda axis: PartitionSpec() if axis is None else PartitionSpec(RUNS),
        axes,
        is_leaf=lambda axis: axis is None,
    )


def over_runs(
    function: Callable[..., Any], in_axes: tuple[Any, ...], out_axes: tuple[Any, ...]
) -> Callable[..., Any]:
    """Returns ``jax.vmap(function, in_axes, out_axes)``, as a loop of one program on a CPU.

    An accelerator is filled by runs side by side.  A CPU is not: XLA multiplies a batch of small
    matrices more slowly than one after another (a vmap over one run took 1.8 times the step of the
    same program without it at widths 32 and 64, and 1.4 times at 256).  The loop also makes a run's
    bits independent of its batch.

    Args:
        function: of one run.
        in_axes: 0 where runs are stacked, None where they share a value; pytrees of these.
        out_axes: likewise; a shared result must not depend on the run.
    """
    if jax.default_backend() != "cpu":
        return jax.vmap(function, in_axes, out_axes)

    @functools.wraps(function)  # JAX names the program by it, as vmap's
    def one_by_one(*args: Any) -> Any:
        leaves, treedef = jax.tree.flatten(args)
        axes = _axes_of(in_axes, args)
        stacked = [leaf for leaf, axis in zip(leaves, axes, strict=True) if axis == 0]

        def run(mine: list[jax.Array]) -> Any:
            own = iter(mine)
            pairs = zip(leaves, axes, strict=True)
            filled = [next(own) if axis == 0 else leaf for leaf, axis in pairs]
            return function(*jax.tree.unflatten(treedef, filled))

        results, resultdef = jax.tree.flatten(jax.lax.map(run, stacked))
        shared = _axes_of(out_axes, jax.tree.unflatten(resultdef, results))
        chosen = [r if axis == 0 else r[0] for r, axis in zip(results, shared, strict=True)]
        return jax.tree.unflatten(resultdef, chosen)

    return one_by_one


def _axes_of(axes: Any, values: Any) -> list[int | None]:
    """The axis of every leaf, where ``axes`` may stand for whole subtrees."""
    full = jax.tree.broadcast(axes, values, is_leaf=lambda axis: axis is None)
    structure: Any = jax.tree.structure(values)
    return list(structure.flatten_up_to(full))
