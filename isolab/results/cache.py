"""Made once, then read from the disk: bytes by what they depend on, and frames of measurements.

Entries lie in a folder beneath the runs, each with a checksum. A damaged entry is made again, and a
folder that cannot be written only means making again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from typing import Any, TypeVar

import polars as pl

from isolab.results.folder import Folder, runs_folder
from isolab.results.provenance import PACKAGE, provenance

Frames = TypeVar("Frames", pl.DataFrame, tuple[pl.DataFrame, ...])

MEASUREMENTS = "measurements"  # the folder of `cached`
MOST = 500  # entries of a folder; beyond them the older half goes


def cached_bytes(folder: str, parts: Any, make: Callable[[], bytes]) -> bytes:
    """Returns what ``make`` returns, from the disk where it was made there before.

    Args:
        folder: name of a folder beneath the runs.
        parts: all that the bytes depend on, as JSON can write it.
        make: called where nothing sound is stored for these parts.
    """
    name = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    place = Folder(f"{runs_folder().rstrip('/')}/{folder}")
    with contextlib.suppress(OSError):
        content, _, checksum = place.read(name).rpartition(b"\n")
        if hashlib.sha256(content).hexdigest().encode() == checksum:
            return content
    content = make()
    with contextlib.suppress(OSError):
        place.write(name, content + b"\n" + hashlib.sha256(content).hexdigest().encode())
        entries = sorted(place.entries().values(), key=lambda entry: entry.modified)
        for entry in entries[: len(entries) - MOST // 2] if len(entries) > MOST else ():
            place.remove(entry.name)
    return content


def cached(measure: Callable[..., Frames], *arguments: Any, **options: Any) -> Frames:
    """Returns what a measurement returns, from the disk where it was made there before.

    A measurement depends on its function and arguments, on the corpora of its runs, on JAX's
    version, the device and the processor, and on the code of all of isolab.

    Args:
        measure: a function of isolab that returns a frame, or a tuple of frames.
        *arguments: of ``measure``: RunConfigs, and what JSON can write.
        **options: likewise.

    Raises:
        TypeError: an argument that is neither a RunConfig nor JSON.

    Example:
        >>> from isolab.theory.update_function import update_function
        >>> cached(update_function, points=3).equals(update_function(points=3))
        True
    """
    name = f"{measure.__module__}.{measure.__qualname__}"
    called = json.dumps([arguments, options], default=functools.partial(_plain, name))
    about = {k: v for k, v in provenance().items() if k != "git_revision"}
    parts = [name, called, about, _code()]
    content = cached_bytes(MEASUREMENTS, parts, lambda: _packed(measure(*arguments, **options)))
    return _unpacked(content)  # type: ignore[return-value]  # as it was packed


def _plain(name: str, value: Any) -> Any:
    """Returns a config as JSON can write it, and the fingerprint of its corpus."""
    from isolab.model.corpus import load_corpus
    from isolab.training.config import RunConfig

    if isinstance(value, RunConfig):
        return [dataclasses.asdict(value), load_corpus(value.corpus).fingerprint]
    raise TypeError(
        f"{name}: an argument is {value!r}; allowed: RunConfigs, and lists, tuples, dicts, numbers,"
        " strings, booleans and None"
    )


@functools.cache
def _code() -> str:
    """Returns a hash of all of isolab's sources."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(f"{path.relative_to(PACKAGE).as_posix()}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _packed(frames: pl.DataFrame | tuple[pl.DataFrame, ...]) -> bytes:
    """Returns a zip archive: ``frame``, or ``0``, ``1``, ... of a tuple, as Parquet."""
    whole = io.BytesIO()
    named = {"frame": frames} if isinstance(frames, pl.DataFrame) else dict(enumerate(frames))
    with zipfile.ZipFile(whole, "w") as archive:
        for name, frame in named.items():
            part = io.BytesIO()
            frame.write_parquet(part)
            archive.writestr(str(name), part.getvalue())
    return whole.getvalue()


def _unpacked(content: bytes) -> pl.DataFrame | tuple[pl.DataFrame, ...]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = archive.namelist()
        frames = [pl.read_parquet(io.BytesIO(archive.read(name))) for name in names]
    return frames[0] if names == ["frame"] else tuple(frames)
