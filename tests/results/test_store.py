"""The store under real kills, full disks, damaged files and several processes at once."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import polars as pl
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

import isolab.results.store
from isolab.results.store import Store, StoreError, StoreWarning, export

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(isolab.results.store.__file__).parents[1])}

CHILDREN: list[subprocess.Popen[bytes]] = []

# A child process starts in a quarter of a second where `isolab` itself is not run, which loads jax.
BARE = """
import importlib.util, sys, types
bare = types.ModuleType("isolab")
bare.__path__ = importlib.util.find_spec("isolab").submodule_search_locations
sys.modules["isolab"] = bare
"""

# What a child process runs. Its rows follow from their keys alone, so that the parent knows them.
ROWS = """
import sys, random
import polars as pl
from isolab.results.store import Store

def rows(numbers):
    return pl.DataFrame({
        "key": [f"run-{n:05d}" for n in numbers],
        "width": [2 ** (n % 8) for n in numbers],
        "curve_step": [list(range(n % 5)) for n in numbers],
        "final_validation_loss": [n / 7 for n in numbers],
    }, schema_overrides={"key": pl.String, "curve_step": pl.List(pl.Int32)})

def say(text):
    print(text, flush=True)
"""
exec(ROWS, namespace := {})
rows = namespace["rows"]

SWEEP = (
    ROWS
    + """
path, total, batch = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
store = Store(path, compact_at=4)
say("ready")
missing = [int(key[4:]) for key in sorted({*rows(range(total))["key"]} - store.keys())]
while missing:
    chunk, missing = missing[:batch], missing[batch:]
    store.append(rows(chunk))
    say(" ".join(map(str, chunk)))
    if random.random() < 0.05:
        store.compact()
"""
)

PRUNE = (
    ROWS
    + """
store = Store(sys.argv[1], compact_at=4)
say("ready")
for width in sorted(store.runs(columns=["width"])["width"].unique()):
    store.prune(pl.col("width") == width)
    say(width)
"""
)


def start(script: str, *arguments: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-W", "error", "-c", BARE + script, *map(str, arguments)]
    pipe = subprocess.PIPE
    # Unbuffered, or reading the first line would take later ones from `communicate`.
    child = subprocess.Popen(command, env=ENVIRONMENT, stdout=pipe, stderr=pipe, bufsize=0)
    CHILDREN.append(child)
    return child


@pytest.fixture(autouse=True)
def no_child_outlives_its_test() -> Iterator[None]:
    yield
    while CHILDREN:
        with CHILDREN.pop() as child:  # closes its pipes and waits
            child.kill()


def finish(child: subprocess.Popen[bytes]) -> list[str]:
    """Waits for a child that was killed or ran to its end; returns its complete lines."""
    out, err = child.communicate(timeout=60)
    assert child.returncode in (0, -signal.SIGKILL), err.decode()
    return [line for line in out.decode().split("\n")[:-1] if line != "ready"]


def wait_until_ready(child: subprocess.Popen[bytes]) -> None:
    assert child.stdout is not None and child.stderr is not None
    assert child.stdout.readline() == b"ready\n", child.stderr.read().decode()


def files(path: Path, suffix: str = ".parquet") -> list[Path]:
    return sorted(file for file in path.iterdir() if file.name.endswith(suffix))


def seeded() -> random.Random:
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    return random.Random(seed)


@contextmanager
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_kills_at_random_moments_lose_nothing(tmp_path: Path) -> None:
    """Two processes at once run one sweep, compacting as they go; 24 of them are killed."""
    draw, total, kills, sweeps = seeded(), 600, 0, 0
    while kills < 24:
        path = tmp_path / f"sweep-{sweeps}"
        sweeps += 1
        acknowledged: set[int] = set()
        while True:
            pair = [start(SWEEP, path, total, draw.randint(1, 4)) for _ in range(2)]
            if kills < 24:
                for child in pair:
                    wait_until_ready(child)
                    time.sleep(draw.uniform(0, 0.1))
                    child.kill()
            said = [finish(child) for child in pair]
            kills += sum(child.returncode == -signal.SIGKILL for child in pair)
            acknowledged.update(int(n) for lines in said for line in lines for n in line.split())
            with no_warnings():
                stored = Store(path).runs()
            numbers = [int(key[4:]) for key in stored["key"]]
            assert acknowledged <= set(numbers) and len(set(numbers)) == len(numbers)
            if numbers:
                assert_frame_equal(stored, rows(numbers))
            if len(numbers) == total:
                break
        assert numbers == list(range(total))
        assert not files(path, ".damaged")


def test_a_killed_prune_removes_a_group_whole_or_not_at_all(tmp_path: Path) -> None:
    draw, group = seeded(), {2**k: set(rows(range(k, 160, 8))["key"]) for k in range(8)}
    for n in range(0, 160, 20):
        Store(tmp_path, compact_at=1000).append(rows(range(n, n + 20)))
    gone: set[int] = set()
    for _ in range(6):
        child = start(PRUNE, tmp_path)
        wait_until_ready(child)
        time.sleep(draw.uniform(0, 0.03))
        child.kill()
        gone.update(int(line) for line in finish(child))
        left = Store(tmp_path).keys()
        for width, keys in group.items():
            assert keys <= left or keys.isdisjoint(left)
            assert width not in gone or keys.isdisjoint(left)
        gone.update(width for width, keys in group.items() if keys.isdisjoint(left))
    finish(start(PRUNE, tmp_path))
    assert Store(tmp_path).keys() == set()
    assert not files(tmp_path)


@pytest.mark.parametrize("prune", [True, False])
def test_what_a_kill_left_to_remove_is_not_read_and_removed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prune: bool
) -> None:
    store = Store(tmp_path)
    for n in range(4):
        store.append(rows([n]))

    def upkeep() -> None:
        Store(tmp_path).prune(pl.col("key").is_not_null()) if prune else Store(tmp_path).compact()

    with monkeypatch.context() as killed:
        killed.setattr(isolab.results.store.Folder, "remove", lambda folder, name: None)
        upkeep()
    assert len(files(tmp_path)) == 5
    assert Store(tmp_path).runs().height == (0 if prune else 4)
    upkeep()
    assert len(files(tmp_path)) == (0 if prune else 1)
    assert Store(tmp_path).runs().height == (0 if prune else 4)


COMPACT = (
    ROWS
    + """
say("ready")
store = Store(sys.argv[1])
for n in range(200, 300):
    store.append(rows([n]))
    store.compact()
    say(n)
"""
)


def test_pruned_runs_stay_away_while_another_process_compacts(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for n in range(0, 200, 5):
        store.append(rows(range(n, n + 5)))
    child = start(COMPACT, tmp_path)
    wait_until_ready(child)
    for n in range(0, 200, 10):
        keys = rows(range(n, n + 10))["key"].to_list()
        assert store.prune(pl.col("key").is_in(keys)) == 10
        assert store.keys().isdisjoint(keys)
    assert len(finish(child)) == 100
    assert_frame_equal(Store(tmp_path).runs(), rows(range(200, 300)))


def test_a_store_that_another_process_holds_can_still_be_read_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolab.results.store, "LOCK_SECONDS", 0.1)
    store = Store(tmp_path, compact_at=2)
    store.append(rows([0]))
    with store.folder.lock(0), no_warnings():
        with ThreadPoolExecutor(1) as other:
            other.submit(store.append, rows([1])).result()
            with pytest.raises(StoreError, match="lock"):
                other.submit(store.prune, pl.col("width") == 1).result()
        assert len(store.keys()) == 2
    store.compact()
    assert len(files(tmp_path)) == 1


def test_two_processes_with_the_same_batches_store_each_row_once(tmp_path: Path) -> None:
    """While they write and compact, a reader never sees a run vanish."""
    total, seen = 400, set[str]()
    children = [start(SWEEP, tmp_path, total, 4) for _ in range(2)]
    for child in children:
        wait_until_ready(child)
    with no_warnings():
        while any(child.poll() is None for child in children):
            keys = Store(tmp_path).keys()
            assert seen <= keys
            seen = keys
    said = [finish(child) for child in children]
    assert_frame_equal(Store(tmp_path).runs(), rows(range(total)))
    assert sum(map(len, said)) >= total // 4


class TornListing(MemoryFileSystem):
    """Runs `meanwhile` during its next listing, which shows only what outlives it.

    That is all that readdir promises of files that come or go while a folder is listed.
    """

    meanwhile: Callable[[], None] | None = None

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        before = super().ls(path, detail=True, **kwargs)
        if TornListing.meanwhile is not None:
            (call, TornListing.meanwhile) = (TornListing.meanwhile, None)
            call()
        after = [info["name"] for info in super().ls(path, detail=True, **kwargs)]
        infos = [info for info in before if info["name"] in after]
        return infos if detail else [info["name"] for info in infos]


def test_a_compaction_during_a_listing_hides_nothing() -> None:
    fsspec.register_implementation("torn", TornListing, clobber=True)
    path = "torn://runs"
    for n in range(6):
        Store(path).append(rows([n]))
    reader = Store(path)
    TornListing.meanwhile = Store(path).compact
    assert_frame_equal(reader.runs(), rows(range(6)))
    assert TornListing.meanwhile is None
    assert len(TornListing().ls(path)) == 1


NUMBERS = st.integers(0, 12)
OPERATIONS = st.one_of(
    st.tuples(st.just("append"), st.sets(NUMBERS, min_size=1, max_size=5)),
    st.tuples(st.just("prune"), st.sets(NUMBERS, min_size=1, max_size=3)),
    st.tuples(st.sampled_from(["compact", "reopen"]), st.just(frozenset())),
)


@settings(max_examples=40)
@given(st.lists(OPERATIONS, max_size=12), st.sampled_from([2, 3, 64]))
def test_operations_match_a_dictionary(
    operations: list[tuple[str, set[int]]], compact_at: int
) -> None:
    """Appends, prunes, compactions and reopenings in any order; the first row of a key stays."""
    expected: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as path, no_warnings():
        store = Store(path, compact_at=compact_at)
        for turn, (what, numbers) in enumerate(operations):
            keys = [f"run-{n:02d}" for n in sorted(numbers)]
            if what == "append":
                store.append(pl.DataFrame({"key": keys, "turn": [turn] * len(keys)}))
                expected = dict.fromkeys(keys, turn) | expected
            elif what == "prune":
                pruned = [expected.pop(key) for key in keys if key in expected]
                assert store.prune(pl.col("key").is_in(keys)) == len(pruned)
            elif what == "compact":
                store.compact()
            else:
                store = Store(path, compact_at=compact_at)
            assert store.keys() == expected.keys()
        if expected:
            assert store.runs(columns=["key", "turn"]).rows() == sorted(expected.items())


@settings(max_examples=15)
@given(fraction=st.floats(0, 1, exclude_max=True), flip=st.booleans())
def test_damage_is_reported_by_name_and_recomputed(fraction: float, flip: bool) -> None:
    """Any shorter length and any flipped bit; the other file's runs stay."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        victim = Path(Store(path).append(rows(range(10))))
        Store(path).append(rows(range(10, 20)))
        content = bytearray(victim.read_bytes())
        place = int(fraction * len(content))
        if flip:
            content[place] ^= 1
        victim.write_bytes(content if flip else content[:place])
        store = Store(path)
        with pytest.warns(StoreWarning, match=victim.name):
            assert store.keys() == {*rows(range(10, 20))["key"]}
        assert store.damaged() == [str(victim)]
        assert_frame_equal(store.runs(), rows(range(10, 20)))
        store.append(rows(range(10)))
        with no_warnings():
            assert_frame_equal(Store(path).runs(), rows(range(20)))
        assert files(path, ".damaged") == [victim.with_name(victim.name + ".damaged")]


def test_a_file_restored_after_damage_is_read_again_and_a_foreign_one_left_alone(
    tmp_path: Path,
) -> None:
    store = Store(tmp_path)
    victim = Path(store.append(rows(range(3))))
    content = victim.read_bytes()
    victim.write_bytes(b"")
    with pytest.warns(StoreWarning, match="0 bytes"):
        assert store.keys() == set()
    victim.write_bytes(content)
    store.append(rows([3]))
    assert_frame_equal(store.runs(), rows(range(4)))
    foreign = tmp_path / "table.parquet"
    rows(range(9)).write_parquet(foreign)
    for opened in (Store(tmp_path), Store(tmp_path)):
        with pytest.warns(StoreWarning, match=r"table\.parquet"):
            assert len(opened.keys()) == 4
        opened.append(rows([3]))
    assert foreign.exists()


FILL = (
    ROWS
    + """
import resource
store = Store(sys.argv[1])
store.append(rows(range(10)))
if sys.argv[2] == "limit":
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    store.append(rows(range(10, 50_000)))
except Exception as error:
    say(type(error).__name__)
    say(error)
store.append(rows(range(10, 20)))
"""
)


@pytest.mark.parametrize(
    ("how", "reason"), [("limit", "File too large"), ("disk", "No space left on device")]
)
def test_a_full_disk_keeps_what_was_stored(tmp_path: Path, how: str, reason: str) -> None:
    """A limit on the size of files stands for a full disk where mounting one is not permitted."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", tmp_path]
    if how == "disk" and subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk is not permitted here")
    try:
        name, message = finish(start(FILL, tmp_path, how))
        assert name == "StoreError"
        assert reason in message and str(tmp_path) in message and "49,990 rows" in message
        with no_warnings():
            assert_frame_equal(Store(tmp_path).runs(), rows(range(20)))
        assert len(list(tmp_path.iterdir())) == 2  # the temporary file is gone
    finally:
        if how == "disk":
            subprocess.run(["umount", tmp_path], check=True)


def test_a_compaction_that_fails_does_not_fail_the_append(tmp_path: Path) -> None:
    """The batch fits under the limit on a file's size, and the merged file does not."""
    script = ROWS + (
        "import resource, warnings\n"
        "store = Store(sys.argv[1], compact_at=2)\n"
        "store.append(rows(range(1_500)))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (25_000, 25_000))\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    store.append(rows(range(1_500, 3_000)))\n"
        "say([str(w.message) for w in caught])\n"
    )
    (said,) = finish(start(script, tmp_path))
    assert "could not compact" in said and "File too large" in said
    assert len(files(tmp_path)) == 2
    assert_frame_equal(Store(tmp_path).runs(), rows(range(3_000)))


def test_columns_may_be_added_and_widened(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.append(pl.DataFrame({"key": ["a"], "curve": [[]], "diverged": [None], "rate": [1]}))
    later = {"key": ["b"], "new": [True], "curve": [[2.5]], "diverged": [7], "rate": [0.5]}
    store.append(pl.DataFrame(later))
    expected = pl.DataFrame(
        {"key": ["a", "b"], "new": [None, True], "curve": [[], [2.5]]}
        | {"diverged": [None, 7], "rate": [1.0, 0.5]}
    )
    assert_frame_equal(store.runs(), expected)
    store.compact()
    assert len(files(tmp_path)) == 1
    assert_frame_equal(Store(tmp_path).runs(), expected)


@pytest.mark.parametrize("other", ["64", [64], True])
def test_columns_of_irreconcilable_types_are_refused_by_name(tmp_path: Path, other: object) -> None:
    """Polars alone would turn the number 64 and the string "64" into strings."""
    Store(tmp_path).append(pl.DataFrame({"key": ["a"], "width": [64]}))
    Store(tmp_path).append(pl.DataFrame({"key": ["b"], "width": [other]}))
    with pytest.raises(StoreError, match=r"'width' is .* and "):
        Store(tmp_path).runs()


# -- what isolab wrote before it had a lock

FORMER = Path(__file__).parent / "data"  # 9 runs of chapter 3's sweep `smoke`, 4 of base width


def test_former_runs_are_found_and_not_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs of the base width had a key for each rule: these were stored under rate_rule "full"."""
    import isolab
    from isolab.model.corpus import Corpus, load_corpus

    shutil.copytree(FORMER, tmp_path / "runs")
    stored = Store(tmp_path / "runs").runs().filter(pl.col("width") == pl.col("base_width"))
    fields = [field.name for field in dataclasses.fields(isolab.RunConfig)]
    configs = [isolab.RunConfig(**row) for row in stored.select(fields).to_dicts()]
    assert {config.rate_rule for config in configs} == {"full"} and len(configs) == 4
    load_corpus()  # the runs' own is the library of the Python that trained them
    there = property(lambda corpus: stored["corpus_fingerprint"][0], lambda corpus, found: None)
    monkeypatch.setattr(Corpus, "fingerprint", there, raising=False)
    for rule in ("full", "global", "none"):
        asked = [dataclasses.replace(config, rate_rule=rule) for config in configs]
        found = pl.concat(isolab.run(c, tmp_path / "runs", progress=False) for c in asked)
        columns = ["final_validation_loss", "curve_train_loss", "step_seconds"]
        assert_frame_equal(found.select(columns), stored.select(columns))
    assert {file.name for file in files(tmp_path / "runs")} == {f.name for f in files(FORMER)}


@pytest.mark.parametrize("prune", [True, False])
def test_former_prunes_hold(tmp_path: Path, prune: bool) -> None:
    """They were files that named rows (key, stored_at); a run stored later is another row."""
    store = Store(shutil.copytree(FORMER, tmp_path / "runs"))
    every = store.runs(columns=["key", "stored_at", "seed"])
    buffer = io.BytesIO()
    gone = every.filter(seed=0).select("key", "stored_at", pruned_at="stored_at")
    gone.write_parquet(buffer)
    name = hashlib.sha256(buffer.getvalue()).hexdigest() + ".pruned"
    (tmp_path / "runs" / name).write_bytes(buffer.getvalue())
    left = every.filter(seed=1)
    assert_frame_equal(Store(store.folder.path).runs(columns=every.columns), left)
    store.append(pl.DataFrame({"key": gone["key"][:1], "seed": [2]}))
    store.prune(pl.col("seed") == 3) if prune else store.compact()
    assert not files(tmp_path / "runs", ".pruned") and len(files(tmp_path / "runs")) == 1
    now = Store(store.folder.path).runs(pl.col("seed") < 2, every.columns)
    assert_frame_equal(now, left)  # stored_at as well
    assert len(store.keys()) == left.height + 1


def test_temporary_files_are_ignored_and_removed_after_a_day(tmp_path: Path) -> None:
    fresh, stale = tmp_path / ".a.parquet.1-ff.tmp", tmp_path / ".b.parquet.1-ff.tmp"
    fresh.write_bytes(b"half")
    stale.write_bytes(b"half")
    two_days_ago = time.time() - 2 * 86400
    os.utime(stale, (two_days_ago, two_days_ago))
    store = Store(tmp_path)
    with no_warnings():
        assert store.keys() == set()
        store.append(rows([1]))
        store.compact()
    assert fresh.exists() and not stale.exists()


@pytest.mark.parametrize("where", ["disk", "memory"])
def test_many_small_files_become_few(tmp_path: Path, where: str) -> None:
    path = str(tmp_path) if where == "disk" else "memory://runs-of-test-store"
    store = Store(path, compact_at=8)
    assert store.keys() == set()
    for n in range(30):
        store.append(rows([n, n + 1]))
        assert sum(name.endswith(".parquet") for name in store.folder.entries()) < 8
    assert store.prune(pl.col("key") > "run-00008") == 22
    with no_warnings():
        assert_frame_equal(Store(path).runs(), rows(range(9)))


def test_filters_and_columns(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.runs(pl.col("width") > 3).shape == (0, 1)
    assert store.runs(columns=["key", "width"]).columns == ["key", "width"]
    assert not any(tmp_path.iterdir())
    store.append(rows(range(20)))
    big = store.runs(pl.col("width") >= 64, ["final_validation_loss", "key"])
    numbers = [n for n in range(20) if n % 8 >= 6]
    assert_frame_equal(big, rows(numbers).select("final_validation_loss", "key"))
    assert store.runs(columns=["stored_at"]).height == 20
    with pytest.raises(ValueError, match=r"depth.*known: \['key', 'width'"):
        store.runs(pl.col("depth") == 1)
    with pytest.raises(ValueError, match="depth"):
        store.prune(pl.col("depth") == 1)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (rows([]), "batch of 0 rows"),
        (rows([1]).drop("key"), "allowed: 'key' of strings"),
        (rows([1]).with_columns(key=pl.lit(3)), "allowed: 'key' of strings"),
        (rows([1, 2]).with_columns(key=pl.lit(None, pl.String)), "null or repeated"),
        (rows([1, 2, 1]), r"\['run-00001'\] null or repeated"),
        (rows([1]).with_columns(stored_at=0), "any others but 'stored_at'"),
    ],
)
def test_batches_that_are_not_runs_are_refused(
    tmp_path: Path, frame: pl.DataFrame, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Store(tmp_path).append(frame)
    assert not any(tmp_path.iterdir())


def test_export_round_trips(tmp_path: Path) -> None:
    runs = rows(range(5)).with_columns(final_validation_loss=pl.lit(float("inf")))
    export(runs, tmp_path / "runs.parquet")
    assert_frame_equal(pl.read_parquet(tmp_path / "runs.parquet"), runs)
    export(runs, tmp_path / "runs.csv")
    table = pl.read_csv(tmp_path / "runs.csv")
    assert table["curve_step"].to_list()[2:] == ["0 1", "0 1 2", "0 1 2 3"]
    assert table["final_validation_loss"].to_list() == [float("inf")] * 5
    assert sorted(file.name for file in tmp_path.iterdir()) == ["runs.csv", "runs.parquet"]
    with pytest.raises(ValueError, match=r"allowed: \.csv and \.parquet"):
        export(runs, tmp_path / "runs.json")
    with pytest.raises(StoreError, match="runs"):
        export(runs, tmp_path / "runs.csv" / "runs.csv")


def test_the_store_needs_no_jax() -> None:
    script = (
        "import isolab.results.store, isolab.results.provenance, sys; print('jax' in sys.modules)"
    )
    assert finish(start(script)) == ["False"]
