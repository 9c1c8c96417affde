"""Pictures of charts, kept on disk: drawing one takes 0.3 s, and a notebook holds dozens."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import vl_convert

from isolab.charts.picture import smaller
from isolab.results.folder import Folder, runs_folder

VEGALITE = "6.4"
"""The version of Vega-Lite that draws."""
FOLDER = "pictures"
"""Beneath the folder of runs."""
MOST = 500
"""Pictures kept, about 30 MB: beyond them the older half goes."""


def drawn(spec: dict[str, Any], scale: int) -> bytes:
    """Returns the PNG of a Vega-Lite specification, from the disk where it was drawn before.

    A picture is kept by its specification and the renderer's version; one that is damaged is drawn
    anew, and a folder that cannot be written only means drawing again.

    Args:
        spec: the specification, its data in it.
        scale: pixels of the picture per pixel of the chart.
    """
    return _kept(
        [spec, scale],
        "png",
        lambda: smaller(vl_convert.vegalite_to_png(spec, vl_version=VEGALITE, scale=scale)),
    )


def drawn_svg(spec: dict[str, Any]) -> str:
    """Returns the SVG likewise, which takes a quarter of the time that a PNG takes."""
    picture = _kept(
        [spec, "svg"], "svg", lambda: vl_convert.vegalite_to_svg(spec, vl_version=VEGALITE).encode()
    )
    return picture.decode()


def _kept(asked: list[Any], suffix: str, draw: Callable[[], bytes]) -> bytes:
    """Returns what was drawn for this before, or draws and keeps it."""
    text = json.dumps([*asked, version("vl-convert-python")], sort_keys=True)
    name = f"{hashlib.sha256(text.encode()).hexdigest()}.{suffix}"
    folder = Folder(f"{runs_folder().rstrip('/')}/{FOLDER}")
    with contextlib.suppress(OSError):
        found, _, checksum = folder.read(name).rpartition(b"\n")
        if hashlib.sha256(found).hexdigest().encode() == checksum:
            return found
    picture = draw()
    with contextlib.suppress(OSError):
        folder.write(name, picture + b"\n" + hashlib.sha256(picture).hexdigest().encode())
        entries = sorted(folder.entries().values(), key=lambda entry: entry.modified)
        for entry in entries[: len(entries) - MOST // 2] if len(entries) > MOST else ():
            folder.remove(entry.name)
    return picture
