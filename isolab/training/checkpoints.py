"""Checkpoints of one run in a folder, by orbax: written behind the training, whole or not."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from isolab.training.train import Snapshot

_LOSSES = ("train_losses", "validation_losses")


class Checkpoints:
    """The checkpoints of one run.

    ``save`` returns when the arrays are copied; files are written behind the training and appear
    under their step's number by one rename.  What a killed process left unfinished is removed.
    The last two are kept.

    Args:
        folder: made if it does not exist; for one run alone.
        key: the run's identity; a folder of another run is refused.

    Example:
        >>> import tempfile, jax.numpy as jnp
        >>> losses = np.ones((1, 5)), np.ones((1, 2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with Checkpoints(folder, key="a") as checkpoints:
        ...         checkpoints.save(Snapshot(5, {"w": jnp.ones(2)}, *losses, seconds=0.1))
        ...     with Checkpoints(folder, key="a") as checkpoints:
        ...         found = checkpoints.latest(like={"w": jnp.zeros(2)})
        >>> found.step, found.state["w"].tolist(), found.train_losses.shape
        (5, [1.0, 1.0], (1, 5))
    """

    def __init__(self, folder: str | os.PathLike[str], key: str) -> None:
        import orbax.checkpoint as ocp

        self.folder = Path(folder).expanduser().absolute()
        self._key = key
        options = ocp.CheckpointManagerOptions(max_to_keep=2, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def save(self, snapshot: Snapshot) -> None:
        """Starts to write a snapshot; an error of the one before is raised here."""
        import orbax.checkpoint as ocp

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
        import orbax.checkpoint as ocp

        step = self._manager.latest_step()
        if step is None:
            return None
        about = self._manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))
        fields = dict(about["about"])
        if fields.pop("key") != self._key:
            raise ValueError(
                f"{self.folder} holds checkpoints of another run; allowed: an empty folder, or one"
                " of the same config on the same corpus"
            )
        restored = self._manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(like))
        )
        for name in _LOSSES:  # those of one run were listed without a runs axis once
            fields[name] = np.atleast_2d(np.array(fields[name], np.float32))
        return Snapshot(state=restored["state"], **fields)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._manager.close()  # waits for what is being written
