"""Bytes and frames of measurements, made once and then read from the disk."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

import isolab.results.cache
from isolab.results.cache import MEASUREMENTS, cached, cached_bytes
from isolab.training.config import RunConfig

calls: list[tuple[object, ...]] = []


def make() -> bytes:
    calls.append(())
    return b"made\n\0"


def measured(config: RunConfig, widths: list[int], *, scale: float = 1.0) -> pl.DataFrame:
    calls.append((config, widths, scale))
    odd = [math.inf, math.nan, None]
    return pl.DataFrame({"width": widths, "value": [scale * w for w in widths], "odd": odd})


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("ISOLAB_RUNS", str(tmp_path / "runs"))
    calls.clear()
    return tmp_path / "runs"


def test_the_second_call_reads_what_the_first_made():
    config = RunConfig()
    first, second = (cached(measured, config, [16, 32, 64], scale=0.5) for _ in range(2))
    assert_frame_equal(first, second)
    assert len(calls) == 1
    assert_frame_equal(second, measured(config, [16, 32, 64], scale=0.5))


def test_other_arguments_and_other_code_are_measured_anew(monkeypatch):
    config = RunConfig()
    for arguments, options in [
        ((config, [16, 32, 64]), {}),
        ((config, [16, 32, 48]), {}),
        ((config, [16, 32, 64]), {"scale": 2.0}),
        ((dataclasses.replace(config, learning_rate=0.5), [16, 32, 64]), {}),
    ]:
        cached(measured, *arguments, **options)
    assert len(calls) == 4
    monkeypatch.setattr(isolab.results.cache, "_code", lambda: "changed")
    cached(measured, config, [16, 32, 64])
    assert len(calls) == 5


def test_the_code_is_that_of_the_whole_package(tmp_path, monkeypatch):
    for name in ("a.py", "room/b.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x = 1")
    monkeypatch.setattr(isolab.results.cache, "PACKAGE", tmp_path)
    code = isolab.results.cache._code.__wrapped__
    before = code()
    (tmp_path / "room" / "b.py").write_text("x = 2")
    assert code() != before
    assert (isolab.results.provenance.PACKAGE / "chapters" / "__init__.py").is_file()


@pytest.mark.parametrize("harm", ["truncate", "flip", "empty"])
def test_a_damaged_entry_is_made_again(runs: Path, harm: str):
    assert cached_bytes("things", [1], make) == b"made\n\0"
    (file,) = (runs / "things").iterdir()
    content = bytearray(file.read_bytes())
    if harm == "flip":
        content[2] ^= 1
    file.write_bytes(content[: {"truncate": len(content) // 2, "flip": None, "empty": 0}[harm]])
    assert cached_bytes("things", [1], make) == b"made\n\0"
    assert cached_bytes("things", [1], make) == b"made\n\0"
    assert len(calls) == 2


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("ISOLAB_RUNS", str(tmp_path / "file"))
    assert [cached(measured, RunConfig(), [1, 2, 3]).height for _ in range(2)] == [3, 3]
    assert len(calls) == 2


def test_old_entries_go(runs: Path, monkeypatch):
    monkeypatch.setattr(isolab.results.cache, "MOST", 4)
    for number in range(5):
        cached_bytes(MEASUREMENTS, [number], make)
    assert len(list((runs / MEASUREMENTS).iterdir())) == 2
    cached_bytes(MEASUREMENTS, [4], make)
    assert len(calls) == 5  # the newest stayed


def test_arguments_must_be_plain():
    with pytest.raises(TypeError, match=r"measured: an argument is .*allowed: RunConfigs"):
        cached(measured, RunConfig(), {16, 32})
