"""Runs on disk: one Parquet file a batch, named by its hash, that several processes share.

A folder (local, or any fsspec address) holds ``<sha256>.parquet``: rows, one a run; the name is the
SHA-256 of the file's bytes. A file appears whole or not at all and never changes afterwards. A row
carries the time ``stored_at`` (UTC, microseconds) of its append; where two processes stored the
same run, the earlier row is the run, so that what was read once is never replaced.

- *Append* writes one file: temporary name, fsync, rename. It waits for nobody.
- *Compact* and *prune* write the rows that stay to one new file, which names in its metadata the
  files that it replaces: those are no longer read, so that a kill at any moment loses nothing,
  doubles nothing and prunes all or nothing. A lock file keeps other processes from doing so at the
  same time. Behind fsspec there is none: prune while nobody else writes, or a compaction that had
  read the pruned runs before may bring them back.
- *Damage* (truncation, flipped bits, a foreign file) is a content that does not match the name. A
  reader reports the file and counts its runs as missing; the next append or compaction of the same
  Store renames it to ``*.damaged``.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import io
import os
import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple, cast

import polars as pl
from filelock import Timeout

from isolab.results.folder import Entry, Folder

ROWS = ".parquet"
TOMBSTONE = ".pruned"  # (key, stored_at) of pruned rows; isolab wrote them before it had a lock
STORED_AT = "stored_at"  # Datetime("us"), UTC
REPLACES = "isolab_replaces"  # in a file's metadata: names, separated by spaces
HASH = re.compile("[0-9a-f]{64}")
SMALL_BYTES = 4 << 20  # files below this size are merged; about 10,000 runs
STALE_SECONDS = 24 * 60 * 60  # longer than a writer takes over a temporary file
LOCK_SECONDS = 60  # waited for another process that compacts or prunes
READ_ATTEMPTS = 100  # listings tried while other processes compact under a reader


class StoreError(RuntimeError):
    """Raised when results cannot be written or read; says which path, and what is still safe."""


class StoreWarning(UserWarning):
    """Issued, with the file's name, for damage that was met and for upkeep that failed."""


class File(NamedTuple):
    """What a file holds."""

    rows: pl.DataFrame | None  # None: damaged
    replaces: frozenset[str] = frozenset()  # files whose rows are in this one, or pruned


class Store:
    """Runs on disk, safe with several writers; a run is a row with a unique ``key``.

    Args:
        path: a folder or any fsspec address; made by the first append.
        compact_at: an append that leaves this many small files merges them into one.

    Example:
        >>> import tempfile
        >>> store = Store(tempfile.mkdtemp())
        >>> _ = store.append(pl.DataFrame({"key": ["a", "b"], "width": [32, 64]}))
        >>> _ = store.append(pl.DataFrame({"key": ["b", "c"], "width": [64, 128]}))
        >>> store.runs(pl.col("width") > 32)["key"].to_list()
        ['b', 'c']
        >>> store.prune(pl.col("width") == 64)
        1
        >>> sorted(store.keys())
        ['a', 'c']
    """

    def __init__(self, path: str | os.PathLike[str], *, compact_at: int = 64) -> None:
        if compact_at < 2:
            raise ValueError(f"compact_at is {compact_at}; allowed: 2 or more")
        self.folder = Folder(path)
        self.compact_at = compact_at
        self._files: dict[Entry, File] = {}
        self._live: tuple[frozenset[Entry], pl.DataFrame] | None = None

    def append(self, frame: pl.DataFrame) -> str:
        """Stores a batch of runs and returns its file's path; afterwards it survives any kill.

        Args:
            frame: a row per run; ``key`` (str, unique, no nulls) and any other columns.

        Raises:
            ValueError: no rows, keys that are absent, null, repeated or not strings.
            StoreError: the batch could not be written; nothing stored before is touched.
        """
        _check(frame)
        self._set_aside()
        now = datetime.datetime.now(datetime.UTC).replace(tzinfo=None)
        name = self._write(frame.with_columns(pl.lit(now, pl.Datetime("us")).alias(STORED_AT)))
        try:
            entries = self.folder.entries().values()
            small = [e for e in entries if e.name.endswith(ROWS) and e.size < SMALL_BYTES]
            if len(small) >= self.compact_at:
                self._rewrite(None, seconds=0)
        except Timeout:  # another process is at it
            pass
        except (StoreError, OSError, NotImplementedError) as error:  # the batch is stored
            warnings.warn(f"could not compact: {error}", StoreWarning, stacklevel=2)
        return self.folder / name

    def runs(
        self, filter: pl.Expr | None = None, columns: Sequence[str] | None = None
    ) -> pl.DataFrame:
        """Returns the stored runs, each once, sorted by key; columns a file lacks are null.

        Args:
            filter: a boolean polars expression over the columns, and over ``stored_at`` (UTC).
            columns: the columns wanted; all but ``stored_at`` when not given.

        Raises:
            ValueError: a column that no stored run has (an empty store takes any).
            StoreError: files that cannot be read, or whose columns have irreconcilable types.
        """
        rows = self._live_runs(self._load())
        if rows.width == 0:
            return pl.DataFrame(schema=dict.fromkeys(columns or ["key"], pl.String))
        return _select(rows, filter, columns or [c for c in rows.columns if c != STORED_AT])

    def keys(self) -> set[str]:
        """Returns the keys of all stored runs."""
        return set(self.runs(columns=["key"])["key"])

    def prune(self, filter: pl.Expr) -> int:
        """Removes the runs that match, all or (if killed or refused) none; returns how many.

        Raises:
            ValueError: as for `runs`; nothing was removed.
            StoreError: likewise, or the rows that stay could not be written, or another process
                holds the lock; nothing was removed.
        """
        return self._upkeep(filter)

    def compact(self) -> None:
        """Merges small files into one, and frees the space of runs that are stored twice.

        Raises:
            StoreError: as for `prune`; nothing stored is touched.
        """
        self._set_aside()
        self._upkeep(None)

    def damaged(self) -> list[str]:
        """Returns the paths of the files whose content does not match their name."""
        self._load()
        return [self.folder / e.name for e, file in self._files.items() if file.rows is None]

    def _live_runs(self, frames: dict[Entry, pl.DataFrame]) -> pl.DataFrame:
        """Returns each run of these files, which are merged once for one state of the folder."""
        state = frozenset(self._files)
        if self._live is None or self._live[0] != state:
            self._live = state, _merged(frames)
        return self._live[1]

    def _load(self) -> dict[Entry, pl.DataFrame]:
        """Reads what is new in the folder; returns the rows of the files that count.

        A single listing is no snapshot: it can miss a merged file (made after its place in the
        folder was passed) and its parts as well (removed before theirs was reached). So the folder
        is listed until nothing vanishes between two listings, nor before it is read.
        """
        for _ in range(READ_ATTEMPTS):
            try:
                before, entries = self.folder.entries(), self.folder.entries()
                if before.keys() <= entries.keys():
                    names = [name for name in sorted(entries) if name.endswith((ROWS, TOMBSTONE))]
                    self._files = {entries[name]: self._file(entries[name]) for name in names}
                    return self._counted()
            except FileNotFoundError:
                continue
            except OSError as error:
                raise StoreError(f"cannot read {self.folder.path!r}: {error}") from error
        raise StoreError(f"{self.folder.path!r} changed {READ_ATTEMPTS} times while it was read")

    def _file(self, entry: Entry) -> File:
        """Returns what a file holds, read once; warns if it is damaged."""
        if entry in self._files:
            return self._files[entry]
        content = self.folder.read(entry.name)
        if not _matches(entry, content):
            warnings.warn(
                f"{self.folder / entry.name!r} is damaged: its {len(content):,} bytes do not match "
                "its name; its runs count as missing, to be computed again",
                StoreWarning,
                stacklevel=2,
            )
            return File(None)
        replaces = pl.read_parquet_metadata(io.BytesIO(content)).get(REPLACES, "")
        return File(pl.read_parquet(io.BytesIO(content)), frozenset(replaces.split()))

    def _counted(self) -> dict[Entry, pl.DataFrame]:
        """Returns the rows of the files that are neither damaged nor replaced by another."""
        replaced = self._replaced()
        sound = {e: file.rows for e, file in self._files.items() if file.rows is not None}
        counted = {e: rows for e, rows in sound.items() if e.name not in replaced}
        pruned = [counted.pop(e) for e in list(counted) if e.name.endswith(TOMBSTONE)]
        if pruned:
            gone, row = pl.concat(pruned), ["key", STORED_AT]
            counted = {e: rows.join(gone, on=row, how="anti") for e, rows in counted.items()}
        return counted

    def _replaced(self) -> set[str]:
        """Returns the names of the files that are still there, but in another by now."""
        names = {name for file in self._files.values() for name in file.replaces}
        return names & {entry.name for entry in self._files}

    def _upkeep(self, filter: pl.Expr | None) -> int:
        """Rewrites; raises StoreError where that is not possible."""
        try:
            return self._rewrite(filter, LOCK_SECONDS) if self.folder.entries() else 0
        except (OSError, NotImplementedError) as error:  # the latter: a disk without locks
            raise StoreError(f"cannot rewrite {self.folder.path!r}: {error}") from error

    def _rewrite(self, filter: pl.Expr | None, seconds: float) -> int:
        """Writes one file in place of several, without repeated rows and the runs that match.

        Without a filter small files are merged. Returns how many runs matched.
        """
        with self.folder.lock(seconds):
            frames = self._load()
            live, matched = self._live_runs(frames), 0
            if filter is not None and live.width:
                gone = _select(live, filter, ["key"])
                live, matched = live.join(gone, on="key", how="anti"), gone.height
            tombstones = [e.name for e in self._files if e.name.endswith(TOMBSTONE)]
            old = {
                entry: rows
                for entry, rows in frames.items()
                if tombstones
                or (filter is None and entry.size < SMALL_BYTES)
                or _among(rows, live).height < rows.height
            }
            replaced = self._replaced()
            empty = [entry.name for entry, rows in frames.items() if rows.is_empty()]
            rows = _among(_merged(old), live)
            if len(old) > 1 or rows.height < sum(map(len, old.values())) or (old and tombstones):
                replaced |= {entry.name for entry in old}
                written = self._write(rows, replaced)
                empty += [] if rows.height else [written]
            try:  # what is replaced goes before the file that says so
                for name in [*sorted(replaced - set(empty)), *tombstones, *empty]:
                    self.folder.remove(name)
                self.folder.remove_temporary(STALE_SECONDS)
            except OSError as error:
                warnings.warn(f"could not free space: {error}", StoreWarning, stacklevel=4)
            return matched

    def _write(self, frame: pl.DataFrame, replaces: Iterable[str] = ()) -> str:
        """Writes a frame under the hash of its bytes and returns the file's name."""
        buffer = io.BytesIO()
        frame.write_parquet(buffer, compression="lz4", metadata={REPLACES: " ".join(replaces)})
        content = buffer.getvalue()
        name = hashlib.sha256(content).hexdigest() + ROWS
        try:
            self.folder.write(name, content)
        except OSError as error:
            raise StoreError(
                f"could not store {frame.height:,} rows ({len(content):,} bytes) in "
                f"{self.folder.path!r}: {error.strerror or error}; what was stored before is "
                "untouched, and no part of this batch was left behind"
            ) from error
        return name

    def _set_aside(self) -> None:
        """Renames the damaged files that were reported, not files that the store never wrote."""
        for entry in [entry for entry, file in self._files.items() if file.rows is None]:
            del self._files[entry]
            with contextlib.suppress(OSError):
                restored = _matches(entry, self.folder.read(entry.name))
                if not restored and HASH.fullmatch(PurePosixPath(entry.name).stem):
                    self.folder.set_aside(entry.name)


def export(frame: pl.DataFrame, path: str | os.PathLike[str]) -> None:
    """Writes runs to a ``.csv`` or ``.parquet`` file (or fsspec address), whole or not at all.

    In CSV, a list (a curve) is its numbers separated by spaces.

    Raises:
        ValueError: another suffix.
        StoreError: the file could not be written.
    """
    target, buffer = os.fspath(path), io.BytesIO()
    name = target.replace(os.sep, "/").rpartition("/")[2]
    suffix = PurePosixPath(name).suffix
    if suffix == ".parquet":
        frame.write_parquet(buffer)
    elif suffix == ".csv":
        lists = [column for column, dtype in frame.schema.items() if dtype == pl.List]
        text = [pl.col(column).cast(pl.List(pl.String)).list.join(" ") for column in lists]
        frame.with_columns(text).write_csv(buffer)
    else:
        raise ValueError(f"cannot export to {target!r}; allowed: .csv and .parquet")
    try:
        Folder(target.removesuffix(name) or ".").write(name, buffer.getvalue())
    except OSError as error:
        raise StoreError(f"could not export to {target!r}: {error.strerror or error}") from error


def _check(frame: pl.DataFrame) -> None:
    """Raises ValueError unless the frame is a batch of runs."""
    if frame.schema.get("key") != pl.String or STORED_AT in frame.columns:
        raise ValueError(
            f"a batch's columns are {frame.schema}; allowed: 'key' of strings, and any others but"
            f" {STORED_AT!r}"
        )
    keys = frame["key"]
    bad = keys.filter(keys.is_null() | keys.is_duplicated())
    if len(bad) or keys.is_empty():
        raise ValueError(
            f"a batch of {len(keys)} rows with keys {bad.unique().to_list()} null or repeated;"
            " allowed: 1 row or more, each with a key of its own"
        )


def _matches(entry: Entry, content: bytes) -> bool:
    return hashlib.sha256(content).hexdigest() == PurePosixPath(entry.name).stem


def _select(rows: pl.DataFrame, filter: pl.Expr | None, columns: Sequence[str]) -> pl.DataFrame:
    """Returns columns of the rows that match; ValueError for columns that are not there."""
    try:
        return (rows if filter is None else rows.filter(filter)).select(columns)
    except pl.exceptions.ColumnNotFoundError as error:
        unknown = str(error).splitlines()[0]
        raise ValueError(f"no stored run has {unknown}; known: {rows.columns}") from error


def _kind(dtype: pl.DataType) -> str:
    """Returns what dtypes of one column must share."""
    if isinstance(dtype, pl.List):
        return f"list of {_kind(cast(pl.DataType, dtype.inner))}"
    return "number" if dtype.is_numeric() else str(dtype)


def _check_types(frames: dict[Entry, pl.DataFrame]) -> None:
    """Raises StoreError where files disagree beyond nulls and kinds of number."""
    kinds: dict[str, dict[str, str]] = {}
    for entry, frame in frames.items():
        for column, dtype in frame.schema.items():
            kind = _kind(dtype)
            if not kind.endswith("Null"):  # a batch that has no value in this column
                kinds.setdefault(column, {}).setdefault(kind, entry.name)
    for column, files in kinds.items():
        if len(files) > 1:
            found = " and ".join(f"{kind} in {name}" for kind, name in files.items())
            raise StoreError(f"column {column!r} is {found}; move one of the files elsewhere")


def _merged(frames: dict[Entry, pl.DataFrame]) -> pl.DataFrame:
    """Returns each run once, its earliest row, sorted by key.

    Columns follow the newest file, so that a column added lately has its place.
    """
    if not frames:
        return pl.DataFrame()
    _check_types(frames)
    never = datetime.datetime.min
    newest = sorted(frames.values(), key=lambda f: f[STORED_AT].max() or never, reverse=True)
    rows = pl.concat(newest, how="diagonal_relaxed").sort("key", STORED_AT, maintain_order=True)
    return rows.unique("key", keep="first", maintain_order=True)


def _among(rows: pl.DataFrame, live: pl.DataFrame) -> pl.DataFrame:
    """Returns the rows, not just the keys, that are among the live ones."""
    return rows.join(live, on=["key", STORED_AT], how="semi") if rows.width else rows
