"""Charts that show offline: interactive in JupyterLab, a picture everywhere else.

Altair's own renderers need the network, or JupyterLab refuses what they emit: it bundles Vega-Lite
5.6 and knows the mimetype of version 5, while Altair 6 emits version 6. This one emits version 5
for JupyterLab, and a PNG for notebooks that are re-opened untrusted and for exported pages.
Pictures are cached on disk: drawing one takes 0.3 s, and a notebook holds dozens.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import altair as alt
import vl_convert

from isolab.charts.picture import size, smaller
from isolab.charts.theme import CONFIG
from isolab.results.cache import cached_bytes

VEGALITE_MIME = "application/vnd.vegalite.v5+json"
_SCHEMA = "https://vega.github.io/schema/vega-lite/v5.json"
_NAME = "isolab"
VEGALITE = "6.4"
"""The version of Vega-Lite that draws pictures."""
FOLDER = "pictures"
"""Beneath the folder of runs."""
SCALE = 2  # PNG pixels per chart pixel


def enable_offline_renderer() -> None:
    """Makes every Altair chart of this process show itself by :func:`offline_bundle`."""
    alt.renderers.register(_NAME, offline_bundle)
    alt.renderers.enable(_NAME)


def offline_bundle(
    spec: dict[str, Any], png: bool = True, **_: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns a chart's mime bundle and metadata.

    Args:
        spec: a Vega-Lite specification, as of ``chart.to_dict()``.
        png: also draw the picture (0.25 s); False for live charts that are redrawn often.

    Returns:
        ``(data, metadata)`` with Vega-Lite 5 JSON, a title as text and, with ``png``, a PNG at
        twice the resolution with its display width in the metadata.
    """
    spec = styled(spec)
    data: dict[str, Any] = {
        VEGALITE_MIME: {**spec, "$schema": _SCHEMA},
        "text/plain": f"<chart: {_title(spec)}>",
    }
    if not png:
        return data, {}
    picture = drawn(spec, SCALE)
    data["image/png"] = base64.b64encode(picture).decode()
    return data, {"image/png": {"width": size(picture)[0] // SCALE}}


def to_png(chart: alt.TopLevelMixin) -> bytes:
    """Returns the PNG of a chart as :func:`offline_bundle` shows it, at twice its size."""
    return drawn(styled(chart.to_dict()), SCALE)


def to_svg(spec: Mapping[str, Any]) -> str:
    """Returns the SVG of a specification, which takes a quarter of the time that a PNG takes."""
    spec = styled(spec)
    key = ["svg", spec, version("vl-convert-python")]
    draw = vl_convert.vegalite_to_svg
    return cached_bytes(FOLDER, key, lambda: draw(spec, vl_version=VEGALITE).encode()).decode()


def drawn(spec: dict[str, Any], scale: int) -> bytes:
    """Returns the PNG of a specification, from the disk where it was drawn before.

    Args:
        spec: the specification, its data in it.
        scale: pixels of the picture per pixel of the chart.
    """
    key = ["png", spec, scale, version("vl-convert-python")]
    draw = vl_convert.vegalite_to_png
    return cached_bytes(FOLDER, key, lambda: smaller(draw(spec, vl_version=VEGALITE, scale=scale)))


def styled(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the specification with :data:`CONFIG` under its own configuration."""
    return {**spec, "config": _merged(CONFIG, spec.get("config", {}))}


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = {**under, **over}
    for name in under.keys() & over.keys():
        if isinstance(under[name], Mapping) and isinstance(over[name], Mapping):
            merged[name] = _merged(under[name], over[name])
    return merged


def _title(spec: Mapping[str, Any]) -> str:
    panels = [panel for kind in ("hconcat", "vconcat", "concat") for panel in spec.get(kind, [])]
    title = spec.get("title")
    text = title.get("text") if isinstance(title, Mapping) else title
    if text:
        return " ".join(text) if isinstance(text, list) else str(text)
    return "; ".join(_title(panel) for panel in panels) or "untitled"
