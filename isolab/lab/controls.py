"""The lab's controls: widgets that hold a setting, each with a note below it.

A setting is a :class:`~isolab.RunConfig`; what no control shows is as in the one it started from.
One that cannot be is refused in the note of the control that caused it.
"""

from __future__ import annotations

import dataclasses
import html
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import ipywidgets as widgets

from isolab.chapters.chapter import Question
from isolab.lab.words import CHOICES, choice, label
from isolab.model.corpus import load_corpus, validation_windows
from isolab.optimizers.catalog import entry
from isolab.training.config import RunConfig

LOG2_RATES = (-14, 10)
SLIDERS: dict[str, tuple[Any, ...]] = {
    "width": (16, 32, 48, 64, 80, 96, 112, 128, 160, 176, 208, 256, 304, 368, 432, 512),
    "eps": (0.0, *(10.0**-k for k in range(20, 1, -1))),
    "loss_scale": tuple(2.0**k for k in range(-80, 45, 5)),
}
TOOLTIPS = {
    "width": "Features of the model; layers are this wide",
    "learning_rate": "Peak of the schedule, in half octaves",
    "optimizer": "What turns gradients into updates",
    "parameterization": "How initial sizes and rates follow the width",
    "rate_rule": "One rate for all layers, or one for each as the width demands",
    "eps": "What is added to the root of Adam's second moment",
    "eps_rule": "One eps, or one for each layer that shrinks with its gradients",
    "loss_scale": "The loss is multiplied by this before it is differentiated",
    "steps": "Updates; a tenth of them warm up",
    "seed": "Fixes initialization and batches",
    "corpus": "stdlib, zipf_markov, or the path of a text file or folder",
}
POINTS, LONGEST = 20, 100  # of a live curve: how many intervals, and how long one may be
_DROPPED: dict[str, Any] = {
    "b1": None, "b2": None, "weight_decay": None, "eps": None,
    "eps_rule": "same", "atan2_a": 1.0, "atan2_b": 1.0,
}  # fmt: skip
"""Fields of one optimizer, and what they are for another."""
_LARGEST = 2**31 - 1  # what int32 holds, as seeds and steps do in a compiled program


class Controls:
    """Widgets for a question's fields, and the setting that they make.

    ``on_change`` is called after each change, also to a setting that is refused.
    """

    def __init__(self, question: Question, start: RunConfig, on_change: Callable[[], None]) -> None:
        self.config: RunConfig | None = start  # the setting now, or None while it is refused
        self.refusals: dict[str, str] = {}  # why, by field, or "" where no control has caused it
        self._base = start
        self._corpus = start.corpus  # the last that was found
        self._on_change = on_change
        self._moving = False  # several controls are being moved at once
        names = [*question.front, *question.more]
        self._controls = {name: _control(name, _value(start, name)) for name in names}
        self._notes = {name: widgets.HTML(layout={"margin": "0"}) for name in [*names, ""]}
        self.front, self.more = self._grid(question.front), self._grid(question.more)
        self.general = self._notes[""]  # of a refusal that no control has caused
        for control in self._controls.values():
            control.observe(self._changed, names="value")
        self._check()

    def set(self, **values: Any) -> None:
        """Moves controls, and sets what has none, at once.

        Raises:
            ValueError: an unknown field, or an impossible value; all stays as it was.
        """
        known = [field.name for field in dataclasses.fields(RunConfig)]
        for name in values:
            if name not in known:
                raise ValueError(f"unknown field {name!r}; known: {known}")
            if name in ("warmup_steps", "evaluate_every"):
                raise ValueError(f"{name} follows from steps in the lab")
        try:
            self._base = config = self._made(self._read() | values)
        except (OSError, ImportError) as error:
            raise ValueError(str(error)) from error
        self._moving = True
        try:
            for name in values.keys() & self._controls.keys():
                value = _value(config, name) if values[name] is None else values[name]
                _show(self._controls[name], name, value)
        finally:
            self._moving = False
        self._changed()

    def _changed(self, _: Any = None) -> None:
        if not self._moving:
            self._check()
            self._on_change()

    def _check(self) -> None:
        """Makes the setting, or says at the control that caused it why there is none."""
        values = self._read()
        self.config, self.refusals = None, {}
        try:
            self.config = self._made(values)
        except (ValueError, OSError, ImportError) as error:
            found = re.match(r"(\w+) is ", str(error))
            field = found[1] if found and found[1] in self._controls else ""
            self.refusals = {field: str(error)}
        unused = _unused(values.get("optimizer", self._base.optimizer))
        for field, note in self._notes.items():
            text = f"not used: {unused[field]}" if field in unused else ""
            if field == "learning_rate":
                text = choice(field, values[field])
                text += f" = {values[field]:.2g}" if text.startswith("2^") else ""
            _write(note, text, self.refusals.get(field, ""))
            if field in self._controls:
                self._controls[field].disabled = field in unused

    def _read(self) -> dict[str, Any]:
        """Returns the controls' values; a slider's rate without what the browser rounded."""
        values = {name: control.value for name, control in self._controls.items()}
        if "learning_rate" in values:
            halves = 2 * math.log2(values["learning_rate"])
            if abs(halves - round(halves)) < 1e-6:
                values["learning_rate"] = 2.0 ** (round(halves) / 2)
        return values

    def _made(self, values: Mapping[str, Any]) -> RunConfig:
        """Returns the setting with these values.

        Raises:
            ValueError, OSError, ImportError: an impossible value, or a corpus that is not there.
        """
        optimizer = values.get("optimizer", self._base.optimizer)
        changed = dict(_DROPPED) if optimizer != self._base.optimizer else {}
        unused = _unused(optimizer)
        changed |= {name: value for name, value in values.items() if name not in unused}
        if "eps" in changed and changed["eps"] == entry(optimizer).defaults.get("eps"):
            changed["eps"] = None  # as a config has it
        for name in ("steps", "seed"):
            value = changed.get(name)
            if isinstance(value, int) and value > _LARGEST:
                raise ValueError(f"{name} is {value}; allowed: up to {_LARGEST:,}")
        if isinstance(steps := changed.get("steps", self._base.steps), int):
            changed |= {"evaluate_every": interval(steps), "warmup_steps": max(steps, 0) // 10}
        config = dataclasses.replace(self._base, **changed)
        if config.corpus != self._corpus and not config.corpus.startswith("hub:"):
            try:  # one from a hub is looked for only in training
                validation_windows(load_corpus(config.corpus), 1, config.context)
            except (ValueError, OSError, ImportError) as error:
                raise ValueError(f"corpus is {config.corpus!r}: {error}") from error
            self._corpus = config.corpus
        return config

    def _grid(self, names: tuple[str, ...]) -> widgets.GridBox:
        rows = []
        for name in names:
            parts = [self._controls[name], self._notes[name]]
            row = widgets.VBox(parts, layout={"width": "auto", "overflow": "hidden"})
            rows.append(row.add_class(f"isolab-lab-control-{name}"))
        columns = "repeat(auto-fill, minmax(340px, 1fr))"
        layout = widgets.Layout(
            grid_template_columns=columns, grid_gap="2px 28px", width="100%", max_width="860px"
        )
        return widgets.GridBox(rows, layout=layout)


def interval(steps: int) -> int:
    """Returns the divisor of ``steps`` that is nearest to a live curve's interval.

    Example:
        >>> interval(200), interval(210), interval(7), interval(100_000)
        (10, 10, 1, 100)
    """
    if steps < 1:
        return 1
    wanted = min(max(steps // POINTS, 1), LONGEST)
    small = [k for k in range(1, math.isqrt(steps) + 1) if steps % k == 0]
    divisors = [*small, *(steps // k for k in small)]
    return min(divisors, key=lambda k: abs(math.log(k / wanted)))


def _control(name: str, value: Any) -> Any:
    kind: type[Any] = widgets.IntText
    given: dict[str, Any] = {}
    if name in SLIDERS or name in CHOICES:
        kind = widgets.SelectionSlider if name in SLIDERS else widgets.Dropdown
        given = {"options": _options(name, [*(SLIDERS | CHOICES)[name]])}
    elif name == "learning_rate":
        low, high = LOG2_RATES
        given = {"base": 2, "min": low, "max": high, "step": 0.5, "readout_format": ".3g"}
        kind = widgets.FloatLogSlider
    elif name == "corpus":
        kind, given = widgets.Text, {"continuous_update": False}
    given["style"] = {"description_width": "112px"}
    given["layout"] = {"width": "auto", "margin": "2px 0"}
    control = kind(description=label(name), tooltip=TOOLTIPS[name], **given)
    _show(control, name, value)
    return control


def _options(name: str, values: list[Any]) -> list[tuple[str, Any]]:
    return [(choice(name, value), value) for value in values]


def _show(control: Any, name: str, value: Any) -> None:
    """Gives a control a value, also one that is not among its options or beyond its ends."""
    if name in SLIDERS or name in CHOICES:
        values = [option for _, option in control.options]
        if value not in values:
            values = sorted([*values, value]) if name in SLIDERS else [*values, value]
            control.options = _options(name, values)
    elif name == "learning_rate":
        control.min = min(control.min, math.floor(math.log2(value)))
        control.max = max(control.max, math.ceil(math.log2(value)))
    control.value = value


def _value(config: RunConfig, name: str) -> Any:
    """Returns the value of a field that its control shows."""
    value = config.row()[name]
    return 1e-8 if name == "eps" and value is None else value


def _unused(optimizer: str) -> dict[str, str]:
    """Returns why fields play no part for an optimizer."""
    chosen, name = entry(optimizer), choice("optimizer", optimizer)
    unused = {} if "eps" in chosen.defaults else {"eps": f"{name} has no eps"}
    if not chosen.takes_eps_by_parameter:
        unused["eps_rule"] = f"{name} has no eps for each layer"
    return unused


def _write(note: widgets.HTML, text: str, refusal: str) -> None:
    """Writes a refusal below a control, or else a text."""
    indented = "margin-left:120px;line-height:1.3;"
    if refusal:
        named = re.sub(r"^(\w+) is ", lambda found: f"{label(found[1])} is ", refusal)
        edge = "padding-left:8px;border-left:3px solid var(--jp-error-color1, #d32f2f)"
        text, role = f"&#9888; {html.escape(named)}", 'role="alert" '
    else:
        edge, text, role = "opacity:0.75;font-size:0.92em", html.escape(text), ""
    note.value = f'<div {role}style="{indented}{edge}">{text}</div>' if text else ""
    note.layout.display = None if text else "none"
