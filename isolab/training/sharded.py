"""One run whose model is too large for one device: batch and state divided over a mesh.

    mesh (data, shards)    the batch is divided among all devices
                           parameters, moments and factors are divided along "shards"
                           and repeated along "data"

The compiler puts in the gathers and reductions.  The optimizer's state lies as the parameters do:
where an array is cut depends on its shape alone, so moments are cut where their parameter is, and
IsoAdam's factors and roots, which no parameter resembles, are cut as well.  ``iso_root="newton"``
is matrix products only, and divided too; each device repeats the eigendecompositions of "eigh".

Checkpoints are orbax's: written behind the training, each whole or not there.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from isolab.model.corpus import Corpus, load_corpus, validation_windows
from isolab.training.config import RunConfig
from isolab.training.program import Placement, Program, SingleRun, program_of, run_values
from isolab.training.train import Result, Snapshot, run_program

DATA, SHARDS = "data", "shards"
_BATCH = PartitionSpec((DATA, SHARDS))  # of (B, ...)
_LOSSES = ("train_losses", "validation_losses")


def train_sharded(
    config: RunConfig,
    mesh_shape: tuple[int, int] | None = None,
    corpus: Corpus | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    on_snapshot: Callable[[Snapshot], None] | None = None,
) -> Result:
    """Trains one run on all devices together, with the result of training it on one.

    It differs by rounding, as sums over the batch are made in another order.

    Args:
        config: what to run.
        mesh_shape: devices along (data, shards), e.g. (2, 4); default: (1, all devices).
        corpus: the corpus that the config names, if already loaded.
        checkpoint: a folder of this run alone.  If it holds a checkpoint, the run goes on from
            there, and ends on the same bits as one that was never interrupted.
        on_snapshot: called at step 0 and after each evaluation interval and its checkpoint; what
            it raises ends training.

    Raises:
        ValueError: a mesh that the devices do not fill, a batch or a number of validation windows
            that its devices do not divide, or a folder with checkpoints of another run.
    """
    mesh = make_mesh(mesh_shape)
    for name in ("batch_size", "validation_windows"):
        if getattr(config, name) % mesh.size:
            raise ValueError(
                f"{name} is {getattr(config, name)}; allowed: multiples of the mesh's"
                f" {mesh.size} devices"
            )
    corpus = corpus or load_corpus(config.corpus)
    program, arguments = sharded_arguments(config, corpus, mesh)
    result: Result
    if checkpoint is None:
        (result,) = run_program([config], program, arguments, on_snapshot)
        return result
    with contextlib.closing(Checkpoints(checkpoint, config.key(corpus.fingerprint))) as checkpoints:

        def save(snapshot: Snapshot) -> None:
            if snapshot.step:
                checkpoints.save(snapshot)
            if on_snapshot is not None:
                on_snapshot(snapshot)

        found = checkpoints.latest(_placed_state(program_of(config), corpus.vocab_size, mesh))
        (result,) = run_program([config], program, arguments, save, found)
        return result


class Checkpoints:
    """The checkpoints of one run in a folder, of which the last two are kept.

    ``save`` returns when the arrays are copied; the files appear under their step's number by one
    rename, and an error is raised by the next call.  What a killed process left unfinished is
    removed.

    Args:
        folder: made if it does not exist; for one run alone.
        key: the run's identity; a folder of another run is refused.
    """

    def __init__(self, folder: str | os.PathLike[str], key: str) -> None:
        self.folder = Path(folder).expanduser().absolute()
        self._key = key
        options = ocp.CheckpointManagerOptions(max_to_keep=2, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(self.folder, options=options)
        self.close = self._manager.close  # waits for what is being written

    def save(self, snapshot: Snapshot) -> None:
        """Starts to write a snapshot."""
        about = snapshot._asdict() | {"key": self._key}
        about |= {name: about[name].tolist() for name in _LOSSES}
        state = ocp.args.StandardSave(about.pop("state"))
        parts = ocp.args.Composite(state=state, about=ocp.args.JsonSave(about))
        self._manager.save(snapshot.step, args=parts)

    def latest(self, like: Any) -> Snapshot | None:
        """Returns the newest snapshot, or None where there is none.

        Args:
            like: a state, or its ShapeDtypeStructs with shardings: where the arrays shall lie.

        Raises:
            ValueError: the folder holds another run.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        about = self._manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))
        found = about["about"]
        if found["key"] != self._key:
            raise ValueError(
                f"{self.folder} holds checkpoints of another run; allowed: an empty folder, or one"
                " of the same config on the same corpus"
            )
        parts = ocp.args.Composite(state=ocp.args.StandardRestore(like))
        state = self._manager.restore(step, args=parts)["state"]
        # those of one run were listed without a runs axis once
        train, held_out = (np.atleast_2d(np.array(found[name], np.float32)) for name in _LOSSES)
        return Snapshot(step, state, train, held_out, found["seconds"])


def make_mesh(shape: tuple[int, int] | None = None) -> Mesh:
    """Returns a mesh (data, shards) of the first devices; default: all devices along "shards"."""
    devices = jax.devices()
    shape = shape or (1, len(devices))
    if len(shape) != 2 or min(shape) < 1 or math.prod(shape) > len(devices):
        raise ValueError(
            f"mesh_shape is {shape}; allowed: two numbers of 1 or more, their product at most the"
            f" {len(devices)} devices"
        )
    return Mesh(np.array(devices[: math.prod(shape)]).reshape(shape), (DATA, SHARDS))


def sharded_arguments(
    config: RunConfig, corpus: Corpus, mesh: Mesh
) -> tuple[Program, tuple[Any, Any, Any]]:
    """Returns a run's program on a mesh, and its traced values, tokens and validation there."""
    program = _compile_sharded(program_of(config), corpus.vocab_size, mesh)
    whole, rows = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, _BATCH)
    traced = jax.device_put(run_values(config), whole)
    tokens = jax.device_put(corpus.train, whole)
    windows = validation_windows(corpus, config.validation_windows, config.context)
    return program, (traced, tokens, jax.device_put(windows, rows))


def partition(shape: tuple[int, ...], shards: int) -> PartitionSpec:
    """Returns where an array is cut: along its longest side that the shards divide, if any.

    Example:
        >>> [tuple(partition(shape, 8)) for shape in ((64, 256), (64, 12), (3, 5))]
        [(None, 'shards'), ('shards',), ()]
    """
    sides = [side for side, n in enumerate(shape) if n and n % shards == 0]
    if not sides or shards == 1:
        return PartitionSpec()
    longest = max(sides, key=lambda side: shape[side])
    return PartitionSpec(*[None] * longest, SHARDS)


def _placed_state(static: RunConfig, vocab_size: int, mesh: Mesh) -> Any:
    """Returns the shapes, dtypes and shardings of a run's TrainState on a mesh."""

    def placed(leaf: Any) -> Any:
        sharding = NamedSharding(mesh, partition(leaf.shape, mesh.shape[SHARDS]))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(placed, SingleRun(static, vocab_size).abstract_state())


@functools.lru_cache(maxsize=8)
def _compile_sharded(static: RunConfig, vocab_size: int, mesh: Mesh) -> Program:
    shardings = jax.tree.map(lambda leaf: leaf.sharding, _placed_state(static, vocab_size, mesh))
    whole, rows = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, _BATCH)
    place = Placement(
        batch=lambda batch: jax.lax.with_sharding_constraint(batch, rows),
        state=lambda state: jax.lax.with_sharding_constraint(state, shardings),
        params=_gather(whole, shardings.params),
    )
    run = SingleRun(static, vocab_size, place)
    return Program(
        jax.jit(run.init, out_shardings=(shardings, whole)),
        jax.jit(run.advance, out_shardings=(shardings, whole, whole), donate_argnums=0),
    )


def _gather(whole: NamedSharding, cut: Any) -> Callable[[Any], Any]:
    """Returns a function that gathers parameters; their gradients are cut as they were."""

    @jax.custom_vjp
    def gather(params: Any) -> Any:
        return jax.lax.with_sharding_constraint(params, whole)

    gather.defvjp(
        lambda params: (gather(params), None),
        lambda _, grads: (jax.lax.with_sharding_constraint(grads, cut),),
    )
    return gather
