"""Files that appear whole or not at all, in a flat folder on a local disk or behind fsspec."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import fsspec
from fsspec.implementations.local import LocalFileSystem

from isolab.results.provenance import PACKAGE


class Entry(NamedTuple):
    """A file of a folder as listed; a changed size or time means that it must be read again."""

    name: str
    size: int  # bytes
    modified: int  # ns since the epoch, 0 where the filesystem does not say


def _local_entry(file: os.DirEntry[str]) -> Entry | None:
    try:
        stat = file.stat()
    except FileNotFoundError:  # removed since it was listed
        return None
    return Entry(file.name, stat.st_size, stat.st_mtime_ns) if file.is_file() else None


class Folder:
    """A flat folder of files, on the local disk or at any fsspec address.

    Methods raise OSError as the filesystem does, where they do not say otherwise.

    Raises:
        ValueError, ImportError: unknown protocol, or one whose package is not installed.

    Example:
        >>> folder = Folder("memory://doctest")
        >>> folder.write("a.txt", b"whole or not at all")
        >>> folder.read("a.txt"), [entry.size for entry in folder.entries().values()]
        (b'whole or not at all', [19])
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._fs: Any
        self._fs, self._root = fsspec.core.url_to_fs(self.path)
        self.local = isinstance(self._fs, LocalFileSystem)

    def __truediv__(self, name: str) -> str:
        return f"{self.path.rstrip('/')}/{name}"

    def entries(self) -> dict[str, Entry]:
        """Returns the stored files by name; an absent folder is an empty one."""
        try:
            if self.local:
                with os.scandir(self._root) as found:
                    every = [entry for file in found if (entry := _local_entry(file)) is not None]
            else:
                self._fs.invalidate_cache()
                infos = self._fs.ls(self._root, detail=True)
                every = [
                    Entry(PurePosixPath(info["name"]).name, info["size"], 0)
                    for info in infos
                    if info["type"] == "file"
                ]
        except FileNotFoundError:
            return {}
        return {entry.name: entry for entry in every}

    def read(self, name: str) -> bytes:
        """Returns the bytes of a file; FileNotFoundError if it vanished."""
        if self.local:
            return Path(self._root, name).read_bytes()
        return bytes(self._fs.cat_file(f"{self._root}/{name}"))

    def write(self, name: str, content: bytes) -> None:
        """Makes a file appear whole and durable, or raises OSError and leaves nothing behind."""
        if not self.local:
            self._fs.makedirs(self._root, exist_ok=True)
            self._fs.pipe_file(f"{self._root}/{name}", content)
            return
        root = Path(self._root)
        root.mkdir(parents=True, exist_ok=True)
        temporary = root / f".{name}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
        try:
            with open(temporary, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, root / name)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        with contextlib.suppress(OSError):  # not every system lets a folder be synced
            handle = os.open(root, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)

    def remove(self, name: str) -> None:
        """Removes a file that is no longer needed; one that cannot go may stay."""
        with contextlib.suppress(OSError):
            if self.local:
                os.unlink(Path(self._root, name))
            else:
                self._fs.rm_file(f"{self._root}/{name}")

    def set_aside(self, name: str) -> None:
        """Renames a damaged file out of the way (local disks only)."""
        if self.local:
            with contextlib.suppress(OSError):
                os.replace(Path(self._root, name), Path(self._root, name + ".damaged"))

    def sweep(self, entries: Iterable[Entry], seconds: float) -> None:
        """Removes the temporary files of writers that were killed longer ago than this."""
        for entry in entries:
            old = time.time() - entry.modified / 1e9 > seconds
            if self.local and old and entry.name.startswith(".") and entry.name.endswith(".tmp"):
                self.remove(entry.name)


def runs_folder() -> str:
    """Returns where runs are kept: ``$ISOLAB_RUNS``, or in this checkout or the user's data folder.

    That is ``data/runs`` of a checkout, and ``isolab/runs`` of the data folder for an installed
    package.
    """
    named = os.environ.get("ISOLAB_RUNS")
    if named:
        return named
    if (PACKAGE.parent / "pyproject.toml").is_file():
        return str(PACKAGE.parent / "data" / "runs")
    from platformdirs import user_data_path

    return str(user_data_path("isolab") / "runs")
