"""Results on disk: content-addressed, append-only Parquet that several writers share without locks.

A folder (local, or any fsspec address) holds files of three kinds:

========================  ======================================================================
``<sha256>.parquet``      rows, one a run; the name is the SHA-256 of the file's bytes
``<sha256>.pruned``       a tombstone: rows ``(key, stored_at, pruned_at)`` of runs that are pruned
``<sha256>.*.damaged``    a file whose bytes did not match its name, set aside, never read again
========================  ======================================================================

Every file appears whole or not at all, and never changes afterwards. Each row carries the time
``stored_at`` (UTC, microseconds) of its append; where two processes stored the same run, the
earlier row is the run and the later one is ignored, so that what was read once is never replaced.

- *Append* writes one file: temporary name, fsync, rename (one whole object on an object store).
- *Compact* merges small files: the merged file is written before its parts are removed, and a
  reader drops the rows that it meets twice, so a kill at any point loses and doubles nothing.
- *Prune* is the appearance of one tombstone, so it happens as a whole or not at all; compaction
  then frees the space. A tombstone names rows, not keys: a run computed again is stored again.
  Tombstones outlive by a day the rows that they name, because a slow compaction may still write
  those rows again.
- *Damage* (truncation, zero bytes, flipped bits, a foreign file) is a content that does not match
  the name. A reader reports it by name and counts its runs as missing; the next append or
  compaction of the same Store renames the file to ``*.damaged`` (on a local disk; elsewhere it
  stays where it is).
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
from typing import cast

import polars as pl

from isolab.results.folder import Entry, Folder

ROWS, TOMBSTONE = ".parquet", ".pruned"
STORED_AT, PRUNED_AT = "stored_at", "pruned_at"  # Datetime("us"), UTC
HASH = re.compile("[0-9a-f]{64}")
SMALL_BYTES = 4 << 20  # files below this size are merged; about 10,000 runs
STALE_SECONDS = 24 * 60 * 60  # longer than any process keeps rows in memory before it writes them
READ_ATTEMPTS = 100  # listings tried while other processes compact under a reader


class StoreError(RuntimeError):
    """Raised when results cannot be written or read; says which path, and what is still safe."""


class StoreWarning(UserWarning):
    """Issued, with the file's name, for damage that was met and for upkeep that failed."""


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
        >>> store.missing(["d", "a"])
        ['d']
        >>> store.prune(pl.col("width") == 64)
        1
        >>> sorted(store.keys())
        ['a', 'c']
    """

    def __init__(self, path: str | os.PathLike[str], *, compact_at: int = 64) -> None:
        if compact_at < 2:
            raise ValueError(f"compact_at must be 2 or more, not {compact_at}")
        self.folder = Folder(path)
        self.compact_at = compact_at
        self._frames: dict[Entry, pl.DataFrame | None] = {}  # None: damaged
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
        name = self._write(frame.with_columns(_now().alias(STORED_AT)))
        try:
            entries = self.folder.entries()
            self.folder.sweep(entries.values(), STALE_SECONDS)
            small = [entry for entry in _rows(entries) if entry.size < SMALL_BYTES]
            if len(small) >= self.compact_at:
                self._merge(small, self._tombstones(entries))
        except (StoreError, OSError) as error:  # the batch is stored: upkeep can wait
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
        runs = self._read()
        if runs.width == 0:
            return pl.DataFrame(schema=dict.fromkeys(columns or ["key"], pl.String))
        try:
            if filter is not None:
                runs = runs.filter(filter)
            return runs.drop(STORED_AT) if columns is None else runs.select(columns)
        except pl.exceptions.ColumnNotFoundError as error:
            unknown = str(error).splitlines()[0]
            raise ValueError(f"no stored run has {unknown}; known: {runs.columns}") from error

    def keys(self) -> set[str]:
        """Returns the keys of all stored runs."""
        return set(self.runs(columns=["key"])["key"])

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Returns the keys that are not stored, in the order given, each once."""
        stored = self.keys()
        return [key for key in dict.fromkeys(keys) if key not in stored]

    def prune(self, filter: pl.Expr) -> int:
        """Removes the runs that match, all or (if killed or refused) none; returns how many.

        One that was killed after its tombstone, before it had freed the space, is finished by the
        next one.

        Raises:
            ValueError, StoreError: as for `runs`; nothing was removed.
        """
        doomed = self.runs(filter, ["key"])
        entries, frames = self._load()
        if doomed.height:
            rows = pl.concat(frame.select("key", STORED_AT) for frame in frames.values())
            pruned = rows.join(doomed, on="key", how="semi").with_columns(_now().alias(PRUNED_AT))
            self._write(pruned, TOMBSTONE)
        elif not _tombstone_entries(entries):
            return 0
        try:
            self.compact()
        except (StoreError, OSError) as error:  # the tombstone is stored: the runs are gone
            warnings.warn(f"pruned, but space not freed: {error}", StoreWarning, stacklevel=2)
        return doomed.height

    def compact(self) -> None:
        """Merges the small files, and those that hold pruned or repeated rows, into one.

        Raises:
            StoreError: the merged file could not be written; nothing stored is touched.
        """
        entries, frames = self._load()
        self._set_aside()
        self.folder.sweep(entries.values(), STALE_SECONDS)
        tombstones = self._tombstones(entries)
        live = _live(frames, tombstones).select("key", STORED_AT) if frames else pl.DataFrame()
        merged = [
            entry
            for entry, frame in frames.items()
            if entry.size < SMALL_BYTES
            or frame.join(live, on=["key", STORED_AT], how="semi").height < frame.height
        ]
        self._merge(merged, tombstones)
        for entry in _tombstone_entries(entries):
            frame = self._frames[entry]
            if frame is not None and _age_seconds(frame[PRUNED_AT]) > STALE_SECONDS:
                self.folder.remove(entry.name)

    def damaged(self) -> list[str]:
        """Returns the paths of the files whose content does not match their name."""
        entries, _ = self._load()
        every = [*_rows(entries), *_tombstone_entries(entries)]
        return [self.folder / entry.name for entry in every if self._frames[entry] is None]

    def _read(self) -> pl.DataFrame:
        """Returns the live rows; a frame without columns where nothing is stored."""
        entries, frames = self._load()
        state = frozenset(frames) | frozenset(_tombstone_entries(entries))
        if self._live is None or self._live[0] != state:
            rows = _live(frames, self._tombstones(entries)) if frames else pl.DataFrame()
            self._live = state, rows
        return self._live[1]

    def _load(self) -> tuple[dict[str, Entry], dict[Entry, pl.DataFrame]]:
        """Lists the folder and reads what is new in it; starts again if a file vanished."""
        for _ in range(READ_ATTEMPTS):
            entries = self._list()
            try:
                for entry in _tombstone_entries(entries):
                    self._frame(entry)
                read = {entry: self._frame(entry) for entry in _rows(entries)}
            except FileNotFoundError:  # compacted by another process since it was listed
                continue
            except OSError as error:
                raise StoreError(f"cannot read {self.folder.path!r}: {error}") from error
            present = set(entries.values())
            self._frames = {key: frame for key, frame in self._frames.items() if key in present}
            return entries, {entry: frame for entry, frame in read.items() if frame is not None}
        raise StoreError(f"{self.folder.path!r} changed {READ_ATTEMPTS} times while it was read")

    def _list(self) -> dict[str, Entry]:
        """Lists until no file vanishes between two listings.

        A single listing is not a snapshot: it can miss a merged file (made after its place in
        the folder was passed) and its parts as well (removed before theirs was reached).
        """
        before = self.folder.entries()
        while not before.keys() <= (now := self.folder.entries()).keys():
            before = now
        return now

    def _frame(self, entry: Entry) -> pl.DataFrame | None:
        """Returns a file's rows, or None (after a warning) if it is damaged."""
        if entry not in self._frames:
            content = self.folder.read(entry.name)
            if _matches(entry, content):
                self._frames[entry] = pl.read_parquet(io.BytesIO(content))
            else:
                self._frames[entry] = None
                lost = "its runs count as missing, to be computed again"
                if entry.name.endswith(TOMBSTONE):
                    lost = "runs that it pruned may be back"
                warnings.warn(
                    f"{self.folder / entry.name!r} is damaged: its {len(content):,} bytes do not "
                    f"match its name; {lost}",
                    StoreWarning,
                    stacklevel=2,
                )
        return self._frames[entry]

    def _tombstones(self, entries: dict[str, Entry]) -> list[pl.DataFrame]:
        """Returns the rows that were pruned; a tombstone that has just been retired is empty."""
        frames = []
        for entry in _tombstone_entries(entries):
            with contextlib.suppress(FileNotFoundError):
                frames.append(self._frame(entry))
        return [frame for frame in frames if frame is not None]

    def _merge(self, entries: Iterable[Entry], tombstones: list[pl.DataFrame]) -> None:
        """Rewrites files as one, without rows that are repeated among them or pruned."""
        frames: dict[Entry, pl.DataFrame] = {}
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):  # another process has merged it
                frame = self._frame(entry)
                if frame is not None:
                    frames[entry] = frame
        if not frames:
            return
        rows = _live(frames, tombstones)
        if len(frames) == 1 and rows.height == next(iter(frames.values())).height:
            return
        merged = self._write(rows) if rows.height else None
        for entry in frames:
            if entry.name != merged:
                self.folder.remove(entry.name)

    def _write(self, frame: pl.DataFrame, suffix: str = ROWS) -> str:
        """Writes a frame under the hash of its bytes and returns the file's name."""
        buffer = io.BytesIO()
        frame.write_parquet(buffer, compression="lz4")
        content = buffer.getvalue()
        name = hashlib.sha256(content).hexdigest() + suffix
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
        for entry in [entry for entry, frame in self._frames.items() if frame is None]:
            del self._frames[entry]
            with contextlib.suppress(FileNotFoundError):
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
        raise ValueError(f"cannot export to {target!r}: allowed are .csv and .parquet")
    try:
        Folder(target.removesuffix(name) or ".").write(name, buffer.getvalue())
    except OSError as error:
        raise StoreError(f"could not export to {target!r}: {error.strerror or error}") from error


def _check(frame: pl.DataFrame) -> None:
    """Raises ValueError unless the frame is a batch of runs."""
    if frame.height == 0:
        raise ValueError("a batch needs one run at least; this frame has no rows")
    if frame.schema.get("key") != pl.String:
        raise ValueError(f"a batch needs a string column 'key'; found {dict(frame.schema)}")
    if STORED_AT in frame.columns:
        raise ValueError(f"column {STORED_AT!r} is the store's own; drop it before appending")
    if frame["key"].null_count():
        raise ValueError(f"every run needs a key; {frame['key'].null_count()} are null")
    if frame["key"].n_unique() < frame.height:
        repeated = frame["key"].filter(frame["key"].is_duplicated())[0]
        raise ValueError(f"keys must be unique in a batch; {repeated!r} is repeated")


def _rows(entries: dict[str, Entry]) -> list[Entry]:
    return [entries[name] for name in sorted(entries) if name.endswith(ROWS)]


def _tombstone_entries(entries: dict[str, Entry]) -> list[Entry]:
    return [entries[name] for name in sorted(entries) if name.endswith(TOMBSTONE)]


def _now() -> pl.Expr:
    return pl.lit(datetime.datetime.now(datetime.UTC).replace(tzinfo=None), pl.Datetime("us"))


def _latest(times: pl.Series) -> datetime.datetime:
    return cast(datetime.datetime, times.max()).replace(tzinfo=datetime.UTC)


def _age_seconds(times: pl.Series) -> float:
    return (datetime.datetime.now(datetime.UTC) - _latest(times)).total_seconds()


def _matches(entry: Entry, content: bytes) -> bool:
    return hashlib.sha256(content).hexdigest() == PurePosixPath(entry.name).stem


def _kind(dtype: pl.DataType) -> tuple[int, object]:
    """Returns what dtypes of one column must share: how deep a list, and of what."""
    depth = 0
    while isinstance(dtype, pl.List):
        depth, dtype = depth + 1, cast(pl.DataType, dtype.inner)
    return depth, "number" if dtype.is_numeric() else dtype


def _check_types(frames: dict[Entry, pl.DataFrame]) -> None:
    """Raises StoreError where files disagree beyond nulls and kinds of number."""
    first: dict[str, tuple[pl.DataType, Entry]] = {}
    for entry, frame in frames.items():
        for column, dtype in frame.schema.items():
            if _kind(dtype)[1] == pl.Null:  # a batch that has no value in this column
                continue
            known, other = first.setdefault(column, (dtype, entry))
            if _kind(known) != _kind(dtype):
                raise StoreError(
                    f"column {column!r} is {known} in {other.name} and {dtype} in {entry.name}; "
                    "move one of the files out of the store"
                )


def _live(frames: dict[Entry, pl.DataFrame], tombstones: list[pl.DataFrame]) -> pl.DataFrame:
    """Returns each run once (its earliest row that was not pruned), sorted by key.

    Columns follow the newest file, so that a column added lately has its place.
    """
    newest_first = sorted(frames.values(), key=lambda f: _latest(f[STORED_AT]), reverse=True)
    _check_types(frames)
    rows = pl.concat(newest_first, how="diagonal_relaxed")
    if tombstones:
        rows = rows.join(pl.concat(tombstones), on=["key", STORED_AT], how="anti")
    rows = rows.sort("key", STORED_AT, maintain_order=True)
    return rows.unique("key", keep="first", maintain_order=True)
