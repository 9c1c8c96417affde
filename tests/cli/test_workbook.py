"""Reruns of small real notebooks through the command, papermill, a kernel and nbconvert."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from typer.testing import CliRunner, Result

from isolab.cli import app
from isolab.cli.page import mathml
from isolab.cli.workbook import chapters

PARAMETERS = 'preset = "laptop"  # smoke, laptop or full\nseeds = None  # list of int'
CLAIM = """from isolab.analysis.claim import Claim
Claim("Is three above one?", 3.0, (2.5, 3.5), 1.0, unit="nats")"""
KERNELSPEC = {"name": "python3", "display_name": "Python 3", "language": "python"}


def write(path: Path, *cells: str, parameters: str = PARAMETERS) -> Path:
    """Writes a notebook: a parameters cell, then code cells, "# " ones as Markdown."""
    notebook = new_notebook(metadata={"kernelspec": KERNELSPEC})
    notebook.cells = [new_code_cell(parameters, metadata={"tags": ["parameters"]})]
    for source in cells:
        make = new_markdown_cell if source.startswith("# ") else new_code_cell
        notebook.cells.append(make(source))
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    return path


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["workbook", *map(str, arguments)])


def printed(path: Path) -> str:
    """All that an executed notebook wrote to its standard output."""
    cells = nbformat.read(path, as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    return "".join(output.text for output in outputs if output.output_type == "stream")


# What a browser would fetch for a page by itself.
FETCHED = r"""<(?:link|script|img|source|iframe)\b[^>]*\b(?:href|src|srcset)=["'](?!data:|["'])"""


def test_workbook_runs_a_notebook_and_says_its_verdict(tmp_path):
    notebook = write(
        tmp_path / "notebooks" / "01_tiny.ipynb",
        "# Claim\n\nThe rate goes as $n^{-c}$:\n\n$$c = \\alpha - a$$",
        "import sys, pathlib; print(preset, seeds, sys.executable, pathlib.Path.cwd().name)",
        CLAIM,
    )
    out = tmp_path / "out"
    result = run(notebook, "--preset", "smoke", "--out", out, "-p", "seeds=[0, 1]")
    assert result.exit_code == 0, result.output
    assert (
        "  verdict reproduced; Is three above one?; measured 3 nats (95% interval 2.5 to 3.5); "
        "threshold above 1 nats\n" in result.output
    )
    assert str(out / "01_tiny.ipynb") in result.output
    assert str(out / "01_tiny.html") in result.output
    # The kernel is this Python, whatever the PATH says; the folder is the notebook's.
    assert printed(out / "01_tiny.ipynb") == f"smoke [0, 1] {sys.executable} notebooks\n"
    page = (out / "01_tiny.html").read_text()
    assert "Is three above one?" in page and "<title>01_tiny</title>" in page
    assert page.count("<math") == 2 and "$$" not in page.partition("<main>")[2]


def test_page_fetches_nothing_and_keeps_what_widgets_showed(tmp_path):
    picture = """import ipywidgets as w
dot = bytes.fromhex("89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c489"
    "0000000d49444154789c6360606060000000050001a5f645400000000049454e44ae426082")"""
    # assigned, as a block of `with shown:` now and then hangs a headless client
    widgets = """import base64
shown = w.Output(outputs=(
    {"output_type": "display_data", "metadata": {},
     "data": {"image/png": base64.b64encode(dot).decode(), "text/plain": "dot"}},
    {"output_type": "stream", "name": "stdout", "text": "inside the output"}))
w.VBox([w.IntSlider(128, max=512, description="width"), w.Label("a label"), shown,
    w.Dropdown(options=["adam", "iso"], value="iso", description="optimizer"),
    w.HTML("<b>bold words</b>"), w.Image(value=dot, format="png"), w.Button(description="Stop")])"""
    notebook = write(tmp_path / "02_widgets.ipynb", picture, widgets)
    out = tmp_path / "out"
    result = run(notebook, "--preset", "smoke", "--out", out)
    assert result.exit_code == 0, result.output
    assert "shows no claim" in result.output
    page = (out / "02_widgets.html").read_text()
    assert not re.findall(FETCHED, page)
    assert not re.findall(r"(?:url\(|@import|import\()\s*[\"']?https?:", page)
    body = page.partition("<main>")[2]
    for shown in ("width: 128", "a label", "inside the output", "optimizer: iso", "bold words"):
        assert shown in body.replace("w.", ""), shown
    outputs = re.sub(r'(?s)<div class="jp-Cell-inputWrapper".*?jp-Cell-outputWrapper', "", body)
    assert outputs.count("data:image/png;base64,") == 2
    assert "Stop" not in outputs


@pytest.mark.parametrize("at_once", [1, 2])
def test_failed_notebook_is_named_and_the_others_run(tmp_path, at_once):
    bad = write(tmp_path / "01_bad.ipynb", "print('before')", "\nratio = 1 / 0", "print('after')")
    good = write(tmp_path / "02_good.ipynb", CLAIM)
    out = tmp_path / "out"
    out.mkdir()
    (out / "01_bad.html").write_text("of an earlier run")
    result = run(bad, good, "--preset", "smoke", "--out", out, "--at-once", at_once)
    assert result.exit_code == 1
    assert "at cell [4] `ratio = 1 / 0`: ZeroDivisionError: division by zero" in result.output
    assert f"as far as it got: {out / '01_bad.ipynb'}" in result.output
    assert "1 of 2 failed: 01_bad" in result.output
    assert printed(out / "01_bad.ipynb") == "before\n"
    assert not (out / "01_bad.html").exists()
    assert "verdict reproduced; Is three above one?" in result.output
    assert (out / "02_good.html").exists()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import time\ntime.sleep(300)", "cell `import time`: A cell timed out"),
        ("import os\nos._exit(1)", "DeadKernelError: Kernel died"),
    ],
)
def test_cell_that_hangs_or_kills_its_kernel_is_named(tmp_path, code, message):
    notebook = write(tmp_path / "01_slow.ipynb", code)
    result = run(notebook, "--preset", "smoke", "--out", tmp_path / "out", "--timeout", "2")
    assert result.exit_code == 1 and message in result.output
    assert (tmp_path / "out" / "01_slow.ipynb").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--preset", "huge"], "unknown preset 'huge'; known: smoke, laptop, full"),
        (["-p", "sedes=3"], "has no parameter 'sedes'; its cell tagged 'parameters' sets: preset"),
        (["-p", "seeds"], "--parameter 'seeds' is not NAME=VALUE"),
        (["nowhere.ipynb"], "no notebook nowhere.ipynb"),
        (["--out", "{folder}"], "would be overwritten"),
        (["{folder}/again/01_tiny.ipynb"], "two notebooks would be written to"),
        (["{folder}/02_torn.ipynb"], "02_torn.ipynb cannot be read as a notebook"),
        (["{folder}/03_bare.ipynb"], "03_bare.ipynb has no parameter 'preset'"),
        (["--out", "{folder}/01_tiny.ipynb"], "is not a folder"),
    ],
)
def test_wrong_argument_ends_with_2_before_anything_runs(tmp_path, arguments, words):
    notebook = write(tmp_path / "01_tiny.ipynb", "open('ran', 'w').close()")
    write(tmp_path / "again" / "01_tiny.ipynb")
    (tmp_path / "02_torn.ipynb").write_text('{"cells": [')
    write(tmp_path / "03_bare.ipynb", parameters="width = 1")
    given = [argument.format(folder=tmp_path) for argument in arguments]
    result = run(notebook, "--out", tmp_path / "out", *given)
    assert result.exit_code == 2, result.output
    assert words in result.output
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out").exists()


def test_chapters_are_the_numbered_notebooks_in_order_and_your_model(tmp_path, monkeypatch):
    wanted = ["00_a.ipynb", "02_b.ipynb", "10_c.ipynb", "your_model.ipynb"]
    for name in (*reversed(wanted), "scratch.ipynb", "03_notes.md"):
        (tmp_path / name).touch()
    assert [path.name for path in chapters(tmp_path)] == wanted
    monkeypatch.chdir(tmp_path)
    nowhere = run()
    assert nowhere.exit_code == 2
    assert nowhere.stderr.startswith("isolab workbook: no chapters in notebooks/")


def test_a_formula_that_cannot_be_read_stays_as_it_is():
    assert mathml(r"\left( a < b", "inline") == r"<code>\left( a &lt; b</code>"
    assert "<mfrac>" in mathml(r"\frac{1}{2}", "block")
    assert mathml(r"\begin{aligned} a &= b \\ c &= d \end{aligned}", "block").count("<mtr>") == 2
