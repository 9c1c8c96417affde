"""Measurements kept on disk."""

import dataclasses
import math
from pathlib import Path

import polars as pl
import pytest

import isolab.results.measurements
from isolab.results.measurements import kept
from isolab.training.config import RunConfig

calls: list[tuple[object, ...]] = []


def measured(config: RunConfig, widths: list[int], *, scale: float = 1.0) -> pl.DataFrame:
    calls.append((config, widths, scale))
    odd = [math.inf, math.nan, None]
    return pl.DataFrame({"width": widths, "value": [scale * w for w in widths], "odd": odd})


def both(config: RunConfig) -> tuple[pl.DataFrame, ...]:
    calls.append((config,))
    return pl.DataFrame({"a": [1]}), pl.DataFrame({"b": ["x"], "c": [[1.0, 2.0]]})


@pytest.fixture(autouse=True)
def fresh(tmp_path, monkeypatch):
    monkeypatch.setenv("ISOLAB_RUNS", str(tmp_path / "runs"))
    calls.clear()
    return tmp_path / "runs" / isolab.results.measurements.FOLDER


def test_second_call_reads_what_the_first_measured():
    config = RunConfig()
    first = kept(measured, config, [16, 32, 64], scale=0.5)
    second = kept(measured, config, [16, 32, 64], scale=0.5)
    assert len(calls) == 1
    assert first.equals(second) and first.schema == second.schema
    pair = kept(both, config)
    again = kept(both, config)
    assert len(calls) == 2 and isinstance(again, tuple)
    assert [a.equals(b) for a, b in zip(pair, again, strict=True)] == [True, True]


def test_other_arguments_are_measured_anew():
    config = RunConfig()
    for arguments, options in [
        ((config, [16, 32, 64]), {}),
        ((config, [16, 32, 48]), {}),
        ((config, [16, 32, 64]), {"scale": 2.0}),
        ((dataclasses.replace(config, learning_rate=0.5), [16, 32, 64]), {}),
    ]:
        kept(measured, *arguments, **options)
    assert len(calls) == 4


def test_other_code_is_measured_anew(monkeypatch):
    kept(both, RunConfig())
    monkeypatch.setattr(isolab.results.measurements, "_code", lambda: "changed")
    kept(both, RunConfig())
    assert len(calls) == 2


@pytest.mark.parametrize("harm", ["truncate", "flip", "empty"])
def test_damage_is_measured_anew(fresh: Path, harm: str):
    expected = kept(both, RunConfig())
    (file,) = fresh.iterdir()
    content = bytearray(file.read_bytes())
    if harm == "flip":
        content[-20] ^= 1
    file.write_bytes(content[: {"truncate": len(content) // 2, "flip": None, "empty": 0}[harm]])
    found = kept(both, RunConfig())
    assert len(calls) == 2
    assert all(a.equals(b) for a, b in zip(found, expected, strict=True))
    kept(both, RunConfig())
    assert len(calls) == 2  # and was mended


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("ISOLAB_RUNS", str(tmp_path / "file"))
    kept(both, RunConfig())
    kept(both, RunConfig())
    assert len(calls) == 2


def test_arguments_must_be_plain():
    with pytest.raises(TypeError, match=r"measured: an argument is .*allowed: RunConfigs"):
        kept(measured, RunConfig(), {16, 32})
