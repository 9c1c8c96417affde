"""Charts that show offline: interactive in JupyterLab, a picture everywhere else.

Altair's own renderers need the network, or JupyterLab refuses what they emit: it bundles Vega-Lite
5.6 and knows the mimetype of version 5, while Altair 6 emits version 6. This one emits version 5
for JupyterLab, and a PNG for notebooks that are re-opened untrusted and for exported pages.
Pictures are cached on disk: drawing one takes 0.3 s, and a notebook holds dozens.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

import altair as alt
import numpy as np
import vl_convert

from isolab.charts.theme import CONFIG
from isolab.results.cache import cached_bytes

VEGALITE_MIME = "application/vnd.vegalite.v5+json"
FOLDER = "pictures"
"""Beneath the folder of runs."""
_SCHEMA = "https://vega.github.io/schema/vega-lite/v5.json"
_VEGALITE = "6.4"  # draws pictures
_NAME = "isolab"
_SCALE = 2  # PNG pixels per chart pixel
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_SUB = 1  # the row filter of a PNG that stores differences to the pixel on the left


def enable_offline_renderer() -> None:
    """Makes every Altair chart of this process show itself by :func:`offline_bundle`."""
    alt.renderers.register(_NAME, offline_bundle)
    alt.renderers.enable(_NAME)


def offline_bundle(
    spec: dict[str, Any], png: bool = True, **_: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns a specification's mime bundle and metadata: Vega-Lite 5 JSON, and a title as text.

    With ``png`` also a PNG at twice the resolution, and its display width: not for live charts,
    since it takes 0.25 s.
    """
    spec, title = _styled(spec), spec.get("title", "untitled")
    text = title["text"] if isinstance(title, Mapping) else title
    data: dict[str, Any] = {VEGALITE_MIME: spec | {"$schema": _SCHEMA}}
    data["text/plain"] = f"<chart: {text}>"
    if not png:
        return data, {}
    picture = to_png(spec)
    data["image/png"] = base64.b64encode(picture).decode()
    return data, {"image/png": {"width": size(picture)[0] // _SCALE}}


def to_png(spec: Mapping[str, Any]) -> bytes:
    """Returns the PNG of a specification, from the disk where it was drawn before."""
    draw = vl_convert.vegalite_to_png
    return _picture("png", spec, lambda its: smaller(draw(its, vl_version=_VEGALITE, scale=_SCALE)))


def to_svg(spec: Mapping[str, Any]) -> str:
    """Returns the SVG of a specification, which takes a quarter of the time that a PNG takes."""
    draw = vl_convert.vegalite_to_svg
    return _picture("svg", spec, lambda its: draw(its, vl_version=_VEGALITE).encode()).decode()


def _picture(kind: str, spec: Mapping[str, Any], draw: Callable[[Any], bytes]) -> bytes:
    spec = _styled(spec)
    key = [kind, spec, _SCALE, version("vl-convert-python")]
    return cached_bytes(FOLDER, key, lambda: draw(spec))


def _styled(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the specification with :data:`CONFIG` under its own configuration."""
    own = spec.get("config", {})
    parts = {n: CONFIG.get(n, {}) | its for n, its in own.items() if isinstance(its, Mapping)}
    return {**spec, "config": CONFIG | own | parts}


def smaller(png: bytes) -> bytes:
    """Returns the same picture, opaque and unfiltered: a chart shrinks to about a third.

    Charts are flat areas, which deflate packs better as they are than as differences. A PNG that is
    not as vl-convert writes it (8-bit RGBA, every row filtered by differences to the left, no
    transparency, not interlaced) is returned unchanged, as is one that would not shrink.
    """
    chunks, at = [], len(_SIGNATURE)
    while at < len(png):
        length, name = struct.unpack_from(">I4s", png, at)
        chunks.append((name, png[at + 8 : at + 8 + length]))
        at += 12 + length
    width, height, *kind = struct.unpack(">IIBBBBB", chunks[0][1])
    if kind != [8, 6, 0, 0, 0]:
        return png
    packed = b"".join(body for name, body in chunks if name == b"IDAT")
    rows = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(height, 4 * width + 1)
    pixels = rows[:, 1:].reshape(height, width, 4).cumsum(axis=1, dtype=np.uint8)
    if (rows[:, 0] != _SUB).any() or (pixels[..., 3] != 255).any():
        return png
    plain = np.zeros((height, 3 * width + 1), np.uint8)
    plain[:, 1:] = pixels[..., :3].reshape(height, -1)
    others = [its for its in chunks[1:-1] if its[0] != b"IDAT"]
    header = b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    kept = [header, *others, (b"IDAT", zlib.compress(plain.tobytes(), 9)), chunks[-1]]
    again = _SIGNATURE + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in kept
    )
    return min(png, again, key=len)


def size(png: bytes) -> tuple[int, int]:
    """Returns a PNG's width and height in pixels."""
    width, height = struct.unpack_from(">II", png, 16)
    return width, height
