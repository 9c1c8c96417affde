"""Files that appear whole or not at all, in a flat folder on a local disk or behind fsspec."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import fsspec
from filelock import FileLock
from fsspec.implementations.local import LocalFileSystem

from isolab.results.provenance import PACKAGE


class Entry(NamedTuple):
    """A file of a folder as listed; a changed size or time means that it must be read again."""

    name: str
    size: int  # bytes
    modified: float  # seconds since the epoch, 0 behind fsspec


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
            self._fs.invalidate_cache()
            infos = self._fs.ls(self._root, detail=True)
        except FileNotFoundError:
            return {}
        if [info["name"] for info in infos] == [self._root]:
            raise NotADirectoryError(f"{self.path!r} is a file; allowed: a folder")
        files = {PurePosixPath(i["name"]).name: i for i in infos if i["type"] != "directory"}
        times = {name: info["mtime"] if self.local else 0.0 for name, info in files.items()}
        return {name: Entry(name, info["size"], times[name]) for name, info in files.items()}

    def read(self, name: str) -> bytes:
        """Returns the bytes of a file; FileNotFoundError if it vanished."""
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
        """Removes a file; one that is not there is no error."""
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(f"{self._root}/{name}")

    def set_aside(self, name: str) -> None:
        """Renames a damaged file to ``*.damaged``."""
        self._fs.mv(f"{self._root}/{name}", f"{self._root}/{name}.damaged")

    def lock(self, seconds: float) -> contextlib.AbstractContextManager[object]:
        """Returns a lock that one process at a time holds; behind fsspec it holds nobody back.

        Entering raises filelock.Timeout, an OSError, after so many seconds of waiting.
        """
        if not self.local:
            return contextlib.nullcontext()
        return FileLock(Path(self._root, ".lock"), timeout=seconds)

    def remove_temporary(self, seconds: float) -> None:
        """Removes the files that writers were killed over longer ago than this."""
        for entry in self.entries().values():
            if entry.name.endswith(".tmp") and time.time() - entry.modified > seconds:
                self.remove(entry.name)


def runs_folder() -> str:
    """Returns where runs are stored: ``$ISOLAB_RUNS``, or in this checkout or the user's folder.

    That is ``data/runs`` of a checkout, and ``isolab/runs`` of the user's data folder for an
    installed package.
    """
    named = os.environ.get("ISOLAB_RUNS")
    if named:
        return named
    if (PACKAGE.parent / "pyproject.toml").is_file():
        return str(PACKAGE.parent / "data" / "runs")
    from platformdirs import user_data_path

    return str(user_data_path("isolab") / "runs")
