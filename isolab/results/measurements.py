"""Measurements are kept on disk, as runs are, so that a notebook's second run takes seconds.

A run is kept by its config (:mod:`isolab.results.store`); a measurement, of gradients or of step
times, by the function that made it, its arguments, isolab's own code, and the machine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
from collections.abc import Callable
from typing import Any, TypeVar

import polars as pl

from isolab.model.corpus import load_corpus
from isolab.results.folder import Folder, runs_folder
from isolab.results.provenance import PACKAGE, provenance
from isolab.training.config import RunConfig

Frames = TypeVar("Frames", pl.DataFrame, tuple[pl.DataFrame, ...])

FOLDER = "measurements"
"""Beneath the folder of runs."""


def kept(measure: Callable[..., Frames], *arguments: Any, **options: Any) -> Frames:
    """Returns what a measurement returns, from the disk where it was made there before.

    The code of all of isolab is part of the key, so that a frame of other code is never shown; so
    are JAX's version, the device and the processor.  A file that is damaged is measured anew, and a
    folder that cannot be written only means measuring again.

    Args:
        measure: a function of isolab that returns a frame, or a tuple of frames.
        *arguments: of ``measure``: RunConfigs, and what JSON can write.
        **options: likewise.

    Raises:
        TypeError: an argument that is neither a RunConfig nor JSON.

    Example:
        >>> from isolab.theory.update_function import update_function
        >>> kept(update_function, points=3).equals(update_function(points=3))
        True
    """
    name = _key(measure, arguments, options)
    folder = Folder(f"{runs_folder().rstrip('/')}/{FOLDER}")
    with contextlib.suppress(OSError, ValueError, pl.exceptions.PolarsError):
        return _unpacked(folder.read(name))  # type: ignore[return-value]  # as it was packed
    frames = measure(*arguments, **options)
    with contextlib.suppress(OSError):
        folder.write(name, _packed(frames))
    return frames


def _key(measure: Callable[..., Any], arguments: Any, options: Any) -> str:
    corpora: list[str] = []

    def plain(value: Any) -> Any:
        if not isinstance(value, RunConfig):
            raise TypeError(
                f"{measure.__qualname__}: an argument is {value!r}; allowed: RunConfigs, and lists,"
                " tuples, dicts, numbers, strings, booleans and None"
            )
        corpora.append(load_corpus(value.corpus).fingerprint)
        return dataclasses.asdict(value)

    called = json.dumps([arguments, options], default=plain, sort_keys=True)
    about = {k: v for k, v in provenance().items() if k != "git_revision"}
    parts = [f"{measure.__module__}.{measure.__qualname__}", called, corpora, about, _code()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@functools.cache
def _code() -> str:
    """Returns a hash of all of isolab's sources."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(f"{path.relative_to(PACKAGE).as_posix()}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _packed(frames: pl.DataFrame | tuple[pl.DataFrame, ...]) -> bytes:
    """Returns one file: a line of JSON with a checksum and the sizes, then each frame's Parquet."""
    parts = []
    for frame in (frames,) if isinstance(frames, pl.DataFrame) else frames:
        buffer = io.BytesIO()
        frame.write_parquet(buffer)
        parts.append(buffer.getvalue())
    body = b"".join(parts)
    about = {
        "sha256": hashlib.sha256(body).hexdigest(),
        "bytes": [len(part) for part in parts],
        "tuple": not isinstance(frames, pl.DataFrame),
    }
    return json.dumps(about).encode() + b"\n" + body


def _unpacked(content: bytes) -> pl.DataFrame | tuple[pl.DataFrame, ...]:
    first, _, body = content.partition(b"\n")
    about = json.loads(first)
    if hashlib.sha256(body).hexdigest() != about["sha256"]:
        raise ValueError("damaged")
    frames, start = [], 0
    for size in about["bytes"]:
        frames.append(pl.read_parquet(io.BytesIO(body[start : start + size])))
        start += size
    return tuple(frames) if about["tuple"] else frames[0]
