"""Charts that show offline: interactive in JupyterLab, a picture everywhere else.

Altair's own renderers need the network, or JupyterLab refuses what they emit: it bundles Vega-Lite
5.6 and knows the mimetype of version 5, while Altair 6 emits version 6. This one emits version 5
for JupyterLab, and a PNG for notebooks that are re-opened untrusted and for exported pages.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import altair as alt

from isolab.charts.drawn import drawn, drawn_svg
from isolab.charts.picture import size
from isolab.charts.theme import CONFIG

VEGALITE_MIME = "application/vnd.vegalite.v5+json"
_SCHEMA = "https://vega.github.io/schema/vega-lite/v5.json"
_NAME = "isolab"
SCALE = 2  # PNG pixels per chart pixel


def enable_offline_renderer() -> None:
    """Makes every Altair chart of this process show itself by :func:`offline_bundle`.

    Calling it again changes nothing.
    """
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
    """Returns the SVG of a specification as :func:`offline_bundle` shows it."""
    return drawn_svg(styled(spec))


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
