"""Pictures of charts, cached on disk: drawing one takes 0.3 s, and a notebook holds dozens."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import vl_convert

from isolab.charts.picture import smaller
from isolab.results.cache import cached_bytes

VEGALITE = "6.4"
"""The version of Vega-Lite that draws."""
FOLDER = "pictures"
"""Beneath the folder of runs."""


def drawn(spec: dict[str, Any], scale: int) -> bytes:
    """Returns the PNG of a Vega-Lite specification, from the disk where it was drawn before.

    Args:
        spec: the specification, its data in it.
        scale: pixels of the picture per pixel of the chart.
    """
    return cached_bytes(
        FOLDER,
        ["png", spec, scale, version("vl-convert-python")],
        lambda: smaller(vl_convert.vegalite_to_png(spec, vl_version=VEGALITE, scale=scale)),
    )


def drawn_svg(spec: dict[str, Any]) -> str:
    """Returns the SVG likewise, which takes a quarter of the time that a PNG takes."""
    picture = cached_bytes(
        FOLDER,
        ["svg", spec, version("vl-convert-python")],
        lambda: vl_convert.vegalite_to_svg(spec, vl_version=VEGALITE).encode(),
    )
    return picture.decode()
