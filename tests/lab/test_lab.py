"""The lab as a person uses it, without a browser: real widgets, real runs, real notebooks."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import altair as alt
import nbformat
import polars as pl
import pytest
from nbclient import NotebookClient

import isolab
from isolab.chapters import CHAPTERS
from isolab.charts.renderer import VEGALITE_MIME
from isolab.cli.page import write_page
from isolab.lab.lab import VIEW
from isolab.lab.live import Live
from isolab.results.store import Store
from isolab.training.config import RunConfig

TINY = RunConfig(
    width=16, depth=1, context=16, mlp_ratio=1, batch_size=4, validation_windows=4, steps=20,
    warmup_steps=2, evaluate_every=1, base_width=16, learning_rate=2.0**-6, rate_rule="full",
)  # fmt: skip
PATIENCE = 120  # seconds; a run takes three on an idle core


@pytest.fixture
def lab(tmp_path):
    made = isolab.Lab("start", TINY, runs=pl.DataFrame(), store=tmp_path / "store")
    yield made
    made.stop()
    made.join(PATIENCE)


def control(lab, field):
    return lab._controls._controls[field]


def alert(lab):
    return "" if lab._alert.layout.display == "none" else lab._alert.value


def described(chart):
    return chart.spec["description"]


def check_charts(lab):
    for chart in (lab._curve, lab._summary):
        alt.LayerChart.from_dict(dict(chart.spec))  # raises SchemaValidationError
        assert "NaN" not in json.dumps(chart.spec) and "Infinity" not in json.dumps(chart.spec)


def trained(lab):
    lab.train()
    lab.join(PATIENCE)
    return lab.runs[-1]


@pytest.mark.parametrize("name", CHAPTERS)
def test_every_chapter_opens_on_stored_runs_of_just_its_setting(name):
    lab = isolab.Lab(name, store=None)
    assert lab.config == CHAPTERS[name].question.start and lab.refusals == {}
    assert alert(lab) == ""
    check_charts(lab)
    if name != "epsilon":  # its reference runs are another sweep's
        assert "just what was asked" in lab.status
        assert "stored" in json.dumps(lab._curve.spec)
        assert "Bold line" in described(lab._summary)


def test_a_moved_slider_redraws_from_the_nearest_stored_runs():
    lab = isolab.Lab("transfer", store=None)
    before = lab._curve.widget.outputs, lab._summary.widget.outputs
    control(lab, "width").value = 208
    assert "width 256 instead of 208 (1.2x), learning rate 2^-6 as asked" in lab.status
    assert lab.status in lab._status.value and 'role="status"' in lab._status.value
    assert lab._curve.widget.outputs != before[0]
    assert lab._summary.widget.outputs != before[1]
    assert "Bold line width 256" in described(lab._summary)
    control(lab, "learning_rate").value = 2.0**-4.5
    assert "Marked: learning rate 2^-4.5" in described(lab._summary)


def test_a_refused_setting_leaves_the_charts_and_cannot_be_trained(lab):
    shown = lab._curve.spec
    control(lab, "steps").value = 0
    assert lab.config is None and list(lab.refusals) == ["steps"]
    assert lab._train_button.disabled and lab._curve.spec is shown
    assert lab._more.selected_index == 0  # opened, as the reason stands there
    with pytest.raises(ValueError, match="steps is 0"):
        lab.train()
    control(lab, "steps").value = 20
    assert lab.config == TINY and not lab._train_button.disabled


def test_a_trained_run_is_listed_drawn_stored_inspected_and_found_again(lab, tmp_path):
    assert "Nothing is stored for Adam" in lab.status
    run = trained(lab)
    assert (run.end.number, run.label) == (1, "Adam, width 16, 2^-6")
    assert run.end.state == "finished" and lab.runs == [run] and not lab.running
    final = run.end.curve_validation_loss[-1]
    assert "Run 1: finished" in described(lab._curve)
    assert f"Run 1: 2^-6, loss {final:.3f} at step 20" in described(lab._summary)
    assert "just what was asked" in lab.status and f"Run 1: loss {final:.3f}" in lab.status
    assert not lab._train_button.disabled and lab._stop_button.disabled

    panel = lab._inspector
    assert panel._layers.spec is None  # it draws only while it is open
    panel.widget.selected_index = 0
    assert panel._layers.spec is not None and panel._spectra.spec is not None
    assert "What it writes before training" in panel._text.value
    assert "What it writes after training" in panel._text.value
    assert alert(lab) == ""

    rows = Store(tmp_path / "store").runs()
    assert rows["final_validation_loss"].to_list() == [final]
    alone = isolab.run(TINY, store=None, progress=False)
    assert alone["final_validation_loss"].item() == final  # to the bit, as the same program
    again = isolab.Lab("start", TINY, store=tmp_path / "store")
    assert f"1 seed, final loss {final:.3f}" in again.status


def test_runs_are_hidden_and_removed_by_hand(lab):
    first = trained(lab)
    lab.set(learning_rate=2.0**-5)
    second = trained(lab)
    assert first.check_box.description == "1: Adam, width 16, 2^-6"
    first.check_box.value = False
    assert "Run 1" not in described(lab._curve) and "Run 2" in described(lab._curve)
    first.check_box.value = True
    assert "Run 1" in described(lab._curve)
    check_charts(lab)
    first.remove_button.click()
    assert lab.runs == [second]
    assert first.row not in lab._list.children and second.row in lab._list.children
    assert "Run 1" not in described(lab._curve) and "Run 1" not in described(lab._summary)


def test_a_run_is_stopped_by_its_button_and_not_stored(lab, tmp_path):
    lab.set(steps=20_000)  # minutes
    started = threading.Event()
    lab._curve.widget.observe(lambda _: started.set(), names="outputs")
    lab._train_button.click()
    assert alert(lab) == "" and lab._train_button.disabled and not lab._stop_button.disabled
    with pytest.raises(RuntimeError, match="a run is training"):
        lab.train()
    assert started.wait(PATIENCE)
    control(lab, "width").value = 32  # sliders answer meanwhile
    assert "width 16, 2^-6" not in described(lab._curve) and "width 32" in described(lab._curve)
    lab._stop_button.click()
    lab.join(PATIENCE)
    (run,) = lab.runs
    assert run.end.state == "stopped" and run.end.step < 20_000
    assert not lab.running and not lab._train_button.disabled
    assert Store(tmp_path / "store").runs().is_empty()
    assert "Run 1: stopped, " in lab.status


def test_a_run_that_ends_while_it_is_asked_to_stop_has_the_last_word(lab, monkeypatch):
    lab.set(steps=20_000)
    lab.train()
    stop = Live.stop

    def stop_and_end(live):
        stop(live)
        live.join(PATIENCE)

    monkeypatch.setattr(Live, "stop", stop_and_end)
    lab.stop()
    assert "stopped at step" in lab._progress_text.value


def test_what_diverged_is_drawn_as_diverged(lab):
    lab.set(optimizer="sgd", learning_rate=2.0**10)
    run = trained(lab)
    assert run.end.state == "diverged" and run.end.diverged and run.outcome == "diverged"
    assert "Run 1: diverged, diverged." in described(lab._curve)
    marks = [layer["data"]["values"] for layer in lab._curve.spec["layer"]]
    marks = [(row["text"], row["y"]) for rows in marks for row in rows if "y" in row]
    assert dict(marks) == {"stored": 9, "1 diverged": 22}  # not on each other
    assert "Run 1: 2^10, diverged." in described(lab._summary)
    assert "1 seed, all diverged" in lab.status
    check_charts(lab)
    lab = isolab.Lab("epsilon", store=None)
    lab.set(eps=0.0, loss_scale=2.0**-60)  # which is not a tiny eps
    assert "Stored (dashed): just what was asked" in lab.status and "all diverged" in lab.status
    assert '"text": "stored"' in json.dumps(lab._curve.spec)
    check_charts(lab)


def test_a_run_that_fails_says_why_and_another_can_be_trained(lab, tmp_path):
    corpus = tmp_path / "words.txt"
    corpus.write_text("all work and no play " * 200)
    lab.set(corpus=str(corpus))
    corpus.unlink()
    lab.train()
    lab.join(PATIENCE)
    assert lab.runs == [] and "FileNotFoundError" in alert(lab) and 'role="alert"' in alert(lab)
    assert "Run 1 failed" in lab.status
    lab.set(corpus="stdlib")
    assert alert(lab) == ""
    assert trained(lab).end.number == 2


def test_an_exception_is_shown_and_leaves_the_lab_usable(lab, tmp_path):
    stored, lab._stored = lab._stored, None
    control(lab, "width").value = 32
    assert "AttributeError" in alert(lab) and "Traceback" in alert(lab)
    lab._stored = stored
    control(lab, "width").value = 48
    assert alert(lab) == "" and "width 48" in described(lab._curve)
    (tmp_path / "file").write_text("no folder")
    assert "NotADirectoryError" in alert(isolab.Lab("start", store=tmp_path / "file" / "store"))


def test_pictures_are_sent_until_the_front_end_has_drawn_a_chart(lab):
    def sent():
        (output,) = lab._curve.widget.outputs
        return output["data"]

    assert sent()["image/svg+xml"].startswith("<svg") and "image/png" not in sent()
    lab.set(learning_rate=2.0**-7)
    assert "2^-7" in sent()["image/svg+xml"]
    told = next(w for w in lab._front_end.widget.children if "isolab-lab-draws" in w._dom_classes)
    told.click()
    lab.set(learning_rate=2.0**-8)
    assert "image/svg+xml" not in sent() and len(sent()["image/png"]) < 100
    assert "2^-8" in json.dumps(sent()[VEGALITE_MIME])


def test_a_run_notebook_and_its_page_hold_the_picture(tmp_path: Path):
    cell = nbformat.v4.new_code_cell("import isolab\nlab = isolab.Lab('start', store=None)\nlab")
    notebook = nbformat.v4.new_notebook(cells=[cell])
    NotebookClient(notebook, timeout=PATIENCE, kernel_name="python3").execute()
    (output,) = notebook.cells[0].outputs
    assert set(output["data"]) == {VIEW, "image/png", "text/plain"}
    assert "just what was asked" in output["data"]["text/plain"]
    width = output["metadata"]["image/png"]["width"]
    assert 700 < width < 1000
    write_page(notebook, tmp_path / "page.html", tmp_path)
    body = (tmp_path / "page.html").read_text().partition("<main>")[2]
    picture = output["data"]["image/png"].replace("\n", "")
    assert body.replace("\n", "").count(picture) == 1
    assert f'width="{width}"' in body
    assert body.count("<img") == 1 and "learning rate:" not in body  # the widgets are not listed
