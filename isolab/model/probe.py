r"""What every layer of a flax.nnx model takes in and gives out, seen in an ordinary forward pass.

flax's own :func:`flax.nnx.capture` sees outputs only, and no layer whose class inherits its
``__call__``; hence this one mechanism for coordinates, alignment and whatever else looks inside.

The model is not edited. A copy of it runs, and while it runs the classes of its modules have a
``__call__`` that leaves what it saw on the copy, as :class:`Seen` variables. Variables pass through
``nnx.jit``, ``nnx.remat`` and their like, and the copy is made wherever the caller traces, so a
probe works inside ``jax.jit``, ``jax.vmap`` and ``jax.lax.map`` alike.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx
from flax.errors import TraceContextError
from jax.extend.core import get_opaque_trace_state

from isolab.optimizers.dtypes import at_least_float32

OUTPUT = "logits"
"""The layer name of the model's own output."""

_Call = tuple[int, str, tuple[Any, ...], Any]  # order, path, inputs, output
# "to_nnx__": a linen module in nnx.bridge.ToNNX takes attributes of any other name for its own
_TAG = "to_nnx__isolab_probed"
_SEEN = "to_nnx__isolab_seen_"
_patching = threading.RLock()  # a class has one __call__, whoever looks through it


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["inputs", "output"], meta_fields=["order"]
)
@dataclass(frozen=True)
class Layer:
    """One call of one module; a pytree, so that a jitted function can return it."""

    inputs: tuple[Any, ...]  # the arguments that are arrays or pytrees of arrays, in order
    output: Any  # an array or a pytree of arrays
    order: int  # place among the calls seen, from 0; a module's own comes after its parts'


class Seen(nnx.Variable):  # type: ignore[type-arg]
    """What one call of a module took in and gave out; never trained."""


def activations(
    model: nnx.Module, *inputs: Any, call: Callable[..., Any] | None = None
) -> dict[str, Layer]:
    """Returns inputs and output of every layer of a model, in the order in which they were called.

    A layer is a module that holds a parameter, itself or in its parts, and is called as
    ``module(...)``. Seen are so:

    - every layer proper (``nnx.Linear``, ``nnx.Conv``, ``nnx.LayerNorm``, ``nnx.Embed``, ...),
      by its path, "blocks/0/mlp/up"; the second call of a shared one is "path#2";
    - what is built of layers, such as a block with its residual, unless it returns its last
      part's output unchanged;
    - the model itself, as "logits";
    - the modules in a linen model under ``nnx.bridge.ToNNX``, by their path in it;
    - where the model holds parameters of its own, outside of any layer, what it made of them for
      its first layer, under the first one's name: "embedding" for :class:`isolab.Transformer`.

    Not seen: other methods (``nnx.Embed.attend``), modules without parameters, the cell inside an
    ``nnx.RNN``, and layers called inside a transform of jax rather than of nnx
    (``jax.vmap(layer)``).

    Args:
        model: any flax.nnx module; it is left as it is (statistics and random counters too).
        *inputs: what it is called with.
        call: ``call(model, *inputs)`` runs the forward pass; default: ``model(*inputs)``.

    Raises:
        TypeError: the model is not an ``nnx.Module``.
        ValueError: it has no parameters, or none of its layers was called.

    Example:
        >>> mlp = nnx.Sequential(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), jnp.tanh)
        >>> seen = activations(mlp, jnp.ones((2, 3)))
        >>> {name: layer.output.shape for name, layer in seen.items()}
        {'layers/0': (2, 4), 'logits': (2, 4)}
        >>> bool((seen["logits"].output == jnp.tanh(seen["layers/0"].output)).all())
        True
    """
    if not isinstance(model, nnx.Module):
        raise TypeError(f"model is a {type(model).__name__}; allowed: a flax.nnx Module")
    copy = nnx.clone(model)
    layers = {path: module for path, module in nnx.iter_modules(copy) if _has_parameter(module)}
    loops = [path for path, module in layers.items() if isinstance(module, nnx.RNN)]
    if not layers:
        hint = "; call lazy_init first" if isinstance(model, nnx.bridge.ToNNX) else ""
        raise ValueError(f"{type(model).__name__} has no parameters (nnx.Param){hint}")
    for path, module in layers.items():
        # what a scan carries can keep nothing new
        if not any(len(path) > len(loop) and path[: len(loop)] == loop for loop in loops):
            setattr(module, _TAG, _path_name(path))  # static: it stays where a transform copies
    with _recording({type(module) for module in layers.values()}) as recorder:
        try:
            copy(*inputs) if call is None else call(copy, *inputs)
        except ValueError as error:
            if _SEEN not in str(error):
                raise
            recorder.hidden = True  # one value of each batch element, and no axis to keep it on
    calls = sorted(_calls(copy), key=lambda found: found[0])
    if recorder.hidden and not calls:
        raise ValueError(
            f"the layers of {type(model).__name__} were called inside jax.vmap or nnx.vmap of the"
            " model, where nothing can be kept: call the model on the whole batch"
        )
    if not calls:
        raise ValueError(
            f"no layer of {type(model).__name__} was called: a call is module(...), and it must"
            " use the model that it is given"
        )
    found: dict[str, Layer] = {}
    times: collections.Counter[str] = collections.Counter()
    for order, (_, name, taken, output) in enumerate(_own_parameters(copy, calls, inputs) + calls):
        times[name] += 1
        again = f"#{times[name]}" if times[name] > 1 else ""
        found[name + again] = Layer(taken, output, order)
    return found


def in_order(seen: dict[str, Layer]) -> list[tuple[str, Layer]]:
    """Returns layers in the order in which they were called, which a jitted function loses."""
    return sorted(seen.items(), key=lambda item: item[1].order)


def rms(values: Any) -> jax.Array:
    """Returns the root mean square over all entries of an array or a pytree of arrays, a scalar."""
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(values)]
    leaves = [leaf.astype(at_least_float32(leaf.dtype)) for leaf in leaves]
    squares = sum(jnp.sum(jnp.square(leaf)) for leaf in leaves)
    return jnp.sqrt(squares / sum(leaf.size for leaf in leaves))


def _calls(model: nnx.Module) -> Iterator[_Call]:
    for path, module in nnx.iter_modules(model):
        for name, value in vars(module).items():
            if name.startswith(_SEEN):
                order, *inside = name.removeprefix(_SEEN).split("/")
                inputs, output = value.get_value()
                yield int(order), _path_name((*path, *inside)), inputs, output


def _own_parameters(model: nnx.Module, calls: list[_Call], inputs: Any) -> list[_Call]:
    """What a model makes of parameters of its own before its first layer, as one more call."""
    own = sorted(name for name, value in vars(model).items() if isinstance(value, nnx.Param))
    _, path, taken, _ = calls[0]
    if not own or path == OUTPUT or not taken or not _is_real(taken[0]):
        return []
    given = {id(leaf) for leaf in jax.tree.leaves(inputs)}
    return [] if id(taken[0]) in given else [(-1, own[0], (), taken[0])]


def _path_name(path: tuple[Any, ...]) -> str:
    return "/".join(map(str, path)) or OUTPUT


def _linen_recorder(within: list[tuple[str, Any, Any]]) -> Callable[..., Any]:
    """Returns an interceptor that appends what linen's modules take in and give out."""
    outside = get_opaque_trace_state()

    def intercept(function: Any, args: Any, kwargs: Any, context: Any) -> Any:
        output = function(*args, **kwargs)
        path = context.module.path
        called = context.method_name == "__call__" and context.module.variables.get("params")
        # inside a scan or remat values cannot be kept
        if path and called and get_opaque_trace_state() == outside:
            within.append(("/" + "/".join(path), _taken(args, kwargs), output))
        return output

    return intercept


def _taken(args: Any, kwargs: Any) -> tuple[Any, ...]:
    return tuple(value for value in (*args, *kwargs.values()) if _is_arrays(value))


@contextlib.contextmanager
def _recording(classes: Iterable[type]) -> Iterator[_Recorder]:
    """Within the block, calls of modules of these classes go through one recorder."""
    recorder = _Recorder()
    with _patching, contextlib.ExitStack() as former:
        for cls in classes:
            if any("__call__" in vars(base) for base in cls.__mro__):  # a metaclass has one too
                former.callback(_restore, cls, vars(cls).get("__call__"))
                setattr(cls, "__call__", recorder.through(cls.__call__))  # noqa: B010
        yield recorder


def _restore(cls: Any, own: Any) -> None:
    if own is None:
        del cls.__call__
    else:
        cls.__call__ = own


class _Recorder:
    """Calls modules and leaves what they took in and gave out on those that are tagged."""

    def __init__(self) -> None:
        self._order = itertools.count()
        self._running: set[int] = set()
        self._last: Any = None
        self.hidden = False  # a call inside a transform that keeps nothing

    def through(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a ``__call__`` that leaves what it saw."""

        @functools.wraps(original)
        def __call__(module: Any, *args: Any, **kwargs: Any) -> Any:
            name = getattr(module, _TAG, None)
            if name is None or id(module) in self._running:  # another model; super().__call__
                return original(module, *args, **kwargs)
            self._running.add(id(module))
            within: list[tuple[str, Any, Any]] = []  # path, inputs and output of linen's modules
            try:
                if isinstance(module, nnx.bridge.ToNNX):
                    with linen.intercept_methods(_linen_recorder(within)):
                        output = original(module, *args, **kwargs)
                else:
                    output = original(module, *args, **kwargs)
            finally:
                self._running.discard(id(module))
            for path, taken, made in [*within, ("", _taken(args, kwargs), output)]:
                if _is_real(made) and ((name == OUTPUT and not path) or made is not self._last):
                    self._last = made
                    try:
                        setattr(module, f"{_SEEN}{next(self._order)}{path}", Seen((taken, made)))
                    except TraceContextError:
                        # a jax transform (not nnx's) around the call: what is inside stays inside
                        self.hidden = True
            return output

        return __call__


def _has_parameter(module: nnx.Module) -> bool:
    return bool(jax.tree.leaves(nnx.state(module, nnx.Param)))


def _is_arrays(value: Any) -> bool:
    leaves = jax.tree.leaves(value)
    return bool(leaves) and all(isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves)


def _is_real(value: Any) -> bool:
    """Is it an array, or a pytree of arrays, of floating point numbers?"""
    return _is_arrays(value) and all(
        jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(value)
    )
