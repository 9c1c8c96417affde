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
from collections.abc import Callable
from typing import Any

import polars as pl

from isolab.results.folder import Folder, runs_folder
from isolab.results.provenance import PACKAGE, provenance

MEASUREMENTS = "measurements"  # the folder of `cached`
MOST = 500  # entries of a folder; beyond them the older half goes


def cached_bytes(folder: str, parts: Any, make: Callable[[], bytes]) -> bytes:
    """Returns what ``make`` returns, from a folder beneath the runs where it was made before.

    ``parts`` are all that the bytes depend on, as JSON can write it.
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


def cached(measure: Callable[..., pl.DataFrame], *arguments: Any, **options: Any) -> pl.DataFrame:
    """Returns what a measurement returns, from the disk where it was made there before.

    A measurement depends on its function and arguments, on the corpora of its runs, on JAX's
    version, the device and the processor, and on the code of all of isolab.

    Args:
        measure: a function of isolab that returns a frame.
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

    def make() -> bytes:
        content = io.BytesIO()
        measure(*arguments, **options).write_parquet(content)
        return content.getvalue()

    return pl.read_parquet(cached_bytes(MEASUREMENTS, [name, called, about, _code()], make))


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
