"""Pictures of charts on disk; how the cache fails is in tests/results/test_cache.py."""

from isolab.charts import renderer
from isolab.charts.renderer import drawn, to_svg


def spec(value):
    point = {"type": "point"}
    encoding = {"x": {"field": "a", "type": "quantitative"}}
    return {"data": {"values": [{"a": value}]}, "mark": point, "encoding": encoding}


def test_a_picture_is_drawn_once_and_another_chart_anew(tmp_path, monkeypatch):
    calls = []
    for name in ("vegalite_to_png", "vegalite_to_svg"):
        real = getattr(renderer.vl_convert, name)

        def counted(*arguments, real=real, **options):
            calls.append(arguments)
            return real(*arguments, **options)

        monkeypatch.setattr(renderer.vl_convert, name, counted)
    monkeypatch.setenv("ISOLAB_RUNS", str(tmp_path))
    first = drawn(spec(1), 1)
    assert first.startswith(b"\x89PNG") and drawn(spec(1), 1) == first
    assert len(calls) == 1
    assert drawn(spec(2), 1) != first and drawn(spec(1), 2) != first
    assert len(calls) == 3
    svg = to_svg(spec(1))
    assert svg.startswith("<svg") and to_svg(spec(1)) == svg
    assert len(calls) == 4 and len(list((tmp_path / renderer.FOLDER).iterdir())) == 4
