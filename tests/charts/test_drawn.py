"""Pictures of charts kept on disk."""

import pytest

import isolab.charts.drawn
from isolab.charts.drawn import drawn, drawn_svg

calls = []


def spec(value):
    point = {"type": "point"}
    encoding = {"x": {"field": "a", "type": "quantitative"}}
    return {"data": {"values": [{"a": value}]}, "mark": point, "encoding": encoding}


@pytest.fixture(autouse=True)
def fresh(tmp_path, monkeypatch):
    calls.clear()
    for name in ("vegalite_to_png", "vegalite_to_svg"):
        real = getattr(isolab.charts.drawn.vl_convert, name)

        def counted(*arguments, real=real, **options):
            calls.append(arguments)
            return real(*arguments, **options)

        monkeypatch.setattr(isolab.charts.drawn.vl_convert, name, counted)
    monkeypatch.setenv("ISOLAB_RUNS", str(tmp_path))
    return tmp_path / isolab.charts.drawn.FOLDER


def test_a_picture_is_drawn_once_and_another_chart_anew(fresh):
    first = drawn(spec(1), 1)
    assert first.startswith(b"\x89PNG") and drawn(spec(1), 1) == first
    assert len(calls) == 1
    assert drawn(spec(2), 1) != first and drawn(spec(1), 2) != first
    assert len(calls) == 3


def test_an_svg_is_kept_beside_the_png(fresh):
    svg = drawn_svg(spec(1))
    assert svg.startswith("<svg") and drawn_svg(spec(1)) == svg
    assert drawn(spec(1), 1).startswith(b"\x89PNG")
    assert {file.suffix for file in fresh.iterdir()} == {".png", ".svg"}
    assert len(calls) == 2


def test_a_damaged_picture_is_drawn_anew(fresh):
    first = drawn(spec(1), 1)
    (file,) = fresh.iterdir()
    content = bytearray(file.read_bytes())
    content[60] ^= 1
    file.write_bytes(content)
    assert drawn(spec(1), 1) == first
    assert len(calls) == 2


def test_old_pictures_go(fresh, monkeypatch):
    monkeypatch.setattr(isolab.charts.drawn, "MOST", 4)
    pictures = [drawn(spec(value), 1) for value in range(5)]
    assert len(list(fresh.iterdir())) == 2
    assert drawn(spec(4), 1) == pictures[4]  # the newest stayed
    assert len(calls) == 5


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("ISOLAB_RUNS", str(tmp_path / "file"))
    assert drawn(spec(1), 1) == drawn(spec(1), 1)
    assert len(calls) == 2
