"""An executed notebook as one HTML file that fetches nothing: it reads the same offline.

Three things in nbconvert's pages need the network, and each has its answer here: formulas become
MathML, which browsers draw themselves; a widget is replaced by what it showed; the addresses of
script libraries are left out.
"""

from __future__ import annotations

import copy
import html
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

_VIEW = "application/vnd.jupyter.widget-view+json"
_STATE = "application/vnd.jupyter.widget-state+json"
_ADDRESSES = (
    "mathjax_url", "require_js_url", "jquery_url", "mermaid_js_url", "mermaid_layout_elk_js_url",
    "jupyter_widgets_base_url",
)  # fmt: skip


def write_page(notebook: Any, path: Path, images: Path) -> None:
    """Writes an executed notebook as a self-contained HTML page.

    Pictures that Markdown cells name, relative to the folder ``images``, are embedded.
    """
    flat = copy.deepcopy(notebook)
    _replace_widgets(flat)
    exporter = _exporter_class()(embed_images=True, **dict.fromkeys(_ADDRESSES, ""))
    resources = {"metadata": {"name": path.stem, "path": str(images)}}
    body, _ = exporter.from_notebook_node(flat, resources=resources)
    path.write_text(body, encoding="utf-8")


def mathml(tex: str, display: str) -> str:
    """Returns TeX as MathML, "inline" or "block"; what cannot be read stays as it is, as code."""
    from latex2mathml.converter import convert

    try:  # it does not know aligned, which sets its lines as split does
        return str(convert(tex.replace("{aligned}", "{split}"), display=display))
    except Exception:  # the parser raises whatever it stumbles over
        return f"<code>{html.escape(tex)}</code>"


@cache
def _exporter_class() -> Any:
    # Made on first use: nbconvert is slow to import, and only pages need it.
    from jinja2 import pass_context
    from nbconvert import HTMLExporter
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    class Renderer(IPythonRenderer):
        def block_math(self, body: str) -> str:
            return mathml(body, "block")

        def inline_math(self, body: str) -> str:
            return mathml(body, "inline")

        def latex_environment(self, name: str, body: str) -> str:
            return mathml(rf"\begin{{{name}}}{body}\end{{{name}}}", "block")

    class Exporter(HTMLExporter):
        @pass_context
        def markdown2html(self, context: Any, source: str) -> str:
            renderer = Renderer(
                escape=False,
                attachments=context.get("cell", {}).get("attachments", {}),
                embed_images=self.embed_images,
                path=context.get("resources", {}).get("metadata", {}).get("path", ""),
                anchor_link_text=self.anchor_link_text,
                exclude_anchor_links=self.exclude_anchor_links,
            )
            return str(MarkdownWithMath(renderer=renderer).render(source))

    return Exporter


def _replace_widgets(notebook: Any) -> None:
    """Puts in place of each widget what it showed when the notebook was saved."""
    state = notebook.metadata.pop("widgets", {}).get(_STATE, {}).get("state", {})
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [flat for output in cell.outputs for flat in _flatten(output, state)]


def _flatten(output: Mapping[str, Any], state: Mapping[str, Any]) -> Iterator[Any]:
    from nbformat import from_dict

    data = output.get("data", {})
    if _VIEW not in data:
        yield from_dict(output)
    elif "image/png" in data or data[_VIEW]["model_id"] not in state:
        # a picture made to stand for the widget; or one that was closed, and whatever else is there
        rest = {mime: its for mime, its in data.items() if mime != _VIEW}
        yield _display(rest, **output.get("metadata", {}))
    else:
        yield from _shown(data[_VIEW]["model_id"], state)


def _shown(model_id: str, state: Mapping[str, Any]) -> Iterator[Any]:
    model = state.get(model_id, {})
    values, kind = model.get("state", {}), model.get("model_name", "")
    value = values.get("value")
    if kind == "OutputModel":
        for output in values.get("outputs", ()):
            yield from _flatten(output, state)
    elif kind in ("HTMLModel", "HTMLMathModel") and value:
        yield _display({"text/html": value})
    elif kind == "LabelModel" and value:
        yield _display({"text/html": f"<p>{html.escape(value)}</p>"})
    elif kind == "ImageModel":
        for buffer in model.get("buffers", ()):
            yield _display({f"image/{values.get('format') or 'png'}": buffer["data"]})
    elif "children" in values:
        for child in values["children"]:
            yield from _shown(child.removeprefix("IPY_MODEL_"), state)
    elif values.get("description") and not kind.startswith(("Button", "FloatProgress")):
        if "_options_labels" in values and isinstance(values.get("index"), int):
            value = values["_options_labels"][values["index"]]
        if value is not None:
            text = f"{values['description'].rstrip(':')}: {value}"
            yield _display({"text/html": f"<p>{html.escape(text)}</p>"})


def _display(data: Mapping[str, Any], **metadata: Any) -> Any:
    from nbformat.v4 import new_output

    return new_output("display_data", data=dict(data), metadata=metadata)
