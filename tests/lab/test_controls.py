"""Controls make a setting, and say below the one at fault why there is none."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isolab.chapters import CHAPTERS
from isolab.lab.controls import LONGEST, POINTS, SLIDERS, Controls, interval

ALL = CHAPTERS["epsilon"].question  # it has every control


def made(start=ALL.start):
    changes = []
    controls = Controls(ALL, start, lambda: changes.append(controls.config))
    controls.changes = changes
    return controls


@pytest.fixture
def controls():
    return made()


def widget(controls, field):
    return controls._controls[field]


def messages(controls):
    """The refusals, as a person sees them, by field."""
    values = {field: note.value for field, note in controls._notes.items()}
    return {field: value for field, value in values.items() if 'role="alert"' in value}


MOVES = {
    "steps": 400,
    "width": 128,
    "learning_rate": 2.0**-4.5,
    "optimizer": "adamw",
    "parameterization": "mup",
    "rate_rule": "none",
    "eps": 1e-12,
    "eps_rule": "per_layer",
    "loss_scale": 2.0**-20,
    "seed": 7,
}


@pytest.mark.parametrize("field", MOVES)
def test_a_moved_control_changes_its_field_and_nothing_else(controls, field):
    widget(controls, field).value = MOVES[field]
    changed = {field: MOVES[field]}
    if field == "steps":  # they bring the warm-up and the interval with them
        changed |= {"warmup_steps": 40, "evaluate_every": 20}
    assert controls.config == dataclasses.replace(ALL.start, **changed)
    assert controls.changes == [controls.config]


@given(st.integers(1, 10**6))
def test_an_interval_divides_the_steps_and_is_the_nearest_that_does(steps):
    chosen = interval(steps)
    assert steps % chosen == 0
    wanted = min(max(steps // POINTS, 1), LONGEST)
    tried = range(1, min(steps, 3000) + 1)
    best = min(max(k, wanted) / min(k, wanted) for k in tried if steps % k == 0)
    assert max(chosen, wanted) / min(chosen, wanted) <= best * (1 + 1e-12)  # of float division


@pytest.mark.parametrize(
    ("field", "wrong", "words"),
    [
        ("steps", 0, "steps is 0; allowed: a whole number of 1 or more"),
        ("seed", -1, "seed is -1; allowed: a whole number"),
        ("seed", 2**31, "allowed: up to 2,147,483,647"),
        ("corpus", "no/such/file", "corpus is &#x27;no/such/file&#x27;"),
        ("corpus", "zipf_markov:size=3", "unknown option"),
        ("corpus", "zipf_markov:length=100", "fewer than context"),
    ],
)
def test_a_wrong_value_is_refused_at_its_control_until_it_is_right(controls, field, wrong, words):
    right = widget(controls, field).value
    widget(controls, field).value = wrong
    for _ in range(2):
        assert controls.config is None and list(controls.refusals) == [field]
        assert list(messages(controls)) == [field] and words in messages(controls)[field]
        widget(controls, "width").value = 128  # another change does not hide it
    widget(controls, field).value = right
    assert controls.config == dataclasses.replace(ALL.start, width=128)
    assert controls.refusals == messages(controls) == {}


def test_a_text_file_is_a_corpus_and_an_empty_one_is_none(controls, tmp_path):
    text, empty = tmp_path / "words.txt", tmp_path / "empty.txt"
    text.write_text("all work and no play " * 200)
    empty.touch()
    widget(controls, "corpus").value = str(text)
    assert controls.config.corpus == str(text)
    widget(controls, "corpus").value = str(empty)
    assert controls.config is None and "empty" in messages(controls)["corpus"]


def test_what_another_optimizer_does_not_have_is_dropped_and_its_control_disabled():
    controls = made(dataclasses.replace(ALL.start, b2=0.9))
    widget(controls, "eps").value = 1e-4
    widget(controls, "eps_rule").value = "per_layer"
    widget(controls, "optimizer").value = "adam_atan2"
    assert controls.config == dataclasses.replace(ALL.start, optimizer="adam_atan2")  # no b2
    for field in ("eps", "eps_rule"):
        assert widget(controls, field).disabled
        assert "Adam-atan2 has no eps" in controls._notes[field].value
    assert messages(controls) == {}  # a reason is no refusal
    widget(controls, "optimizer").value = "adam"
    assert not widget(controls, "eps").disabled
    assert (controls.config.eps, controls.config.eps_rule) == (1e-4, "per_layer")


def test_a_refusal_that_no_control_caused_stands_apart():
    controls = made(dataclasses.replace(ALL.start, moment_dtype="bfloat16"))
    widget(controls, "optimizer").value = "sgd"
    assert controls.config is None and "moment dtype is" in messages(controls)[""]


def test_a_rate_that_the_browser_rounded_is_the_rate_on_the_grid(controls):
    widget(controls, "learning_rate").value = 0.011048543456
    assert controls.config.learning_rate == 2.0**-6.5
    assert "2^-6.5 = 0.011" in controls._notes["learning_rate"].value


def test_set_moves_all_at_once_and_tells_once(controls):
    # between the sliders' steps, beyond their ends, and without a control
    assert 144 not in SLIDERS["width"]
    controls.set(width=144, steps=100, depth=3, eps=0.0, learning_rate=2.0**12, optimizer="adamw",
                 weight_decay=0.2)  # fmt: skip
    got = controls.config
    assert (got.width, got.steps, got.depth, got.eps) == (144, 100, 3, 0.0)
    assert (got.optimizer, got.weight_decay) == ("adamw", 0.2)
    assert controls.changes == [got]
    assert widget(controls, "width").label == "144"
    assert widget(controls, "learning_rate").value == got.learning_rate == 2.0**12


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"width": 50}, "width is 50"),
        ({"wdith": 64}, "unknown field 'wdith'"),
        ({"optimizer": "adma"}, "unknown optimizer 'adma'"),
        ({"warmup_steps": 3}, "follows from steps"),
        ({"depth": 0}, "depth is 0"),
        ({"corpus": "no/such/file"}, "corpus is 'no/such/file'"),
    ],
)
def test_an_impossible_set_changes_nothing(controls, wrong, words):
    before = controls.config
    with pytest.raises(ValueError, match=words):
        controls.set(loss_scale=2.0**-10, **wrong)
    assert controls.config == before and controls.refusals == {}
    assert widget(controls, "loss_scale").value == 1.0
    assert controls.changes == []
