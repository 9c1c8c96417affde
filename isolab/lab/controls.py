"""The lab's controls: widgets that hold a setting, and refuse one that cannot be, beside its cause.

A setting is a :class:`~isolab.RunConfig`; what no control shows is as in the one it started from.
"""

from __future__ import annotations

import dataclasses
import html
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import ipywidgets as widgets

from isolab.lab.questions import Question
from isolab.lab.words import (
    EPS_RULES,
    FIELDS,
    OPTIMIZERS,
    PARAMETERIZATIONS,
    RATE_RULES,
    choice,
    rate,
)
from isolab.model.corpus import load_corpus, validation_windows
from isolab.optimizers.catalog import entry
from isolab.training.config import RunConfig

WIDTHS = (16, 32, 48, 64, 80, 96, 112, 128, 160, 176, 208, 256, 304, 368, 432, 512)
EPSILONS = (*(10.0**-k for k in range(2, 21)), 0.0)
LOSS_SCALES = tuple(2.0**k for k in range(40, -85, -5))
LOG2_RATES = (-14, 10)
POINTS, LONGEST = 20, 100  # of a live curve: how many intervals, and how long one may be
MESSAGE = "isolab-lab-message"

_OF_OPTIMIZER: dict[str, Any] = {
    **dict.fromkeys(("b1", "b2", "weight_decay", "eps")),
    **{"eps_rule": "same", "atan2_a": 1.0, "atan2_b": 1.0},
}
"""What is given for one optimizer and dropped for another."""
_LARGEST = 2**31 - 1  # what int32 holds, as seeds and steps do in a compiled program
_LABELS = {
    "width": "width",
    "learning_rate": "learning rate",
    "optimizer": "optimizer",
    "parameterization": "parameterization",
    "rate_rule": "rates",
    "eps": "eps",
    "eps_rule": "rule of eps",
    "loss_scale": "loss scale",
    "steps": "steps",
    "seed": "seed",
    "corpus": "corpus",
}
_TIPS = {
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
_CHOICES = {
    "optimizer": OPTIMIZERS,
    "parameterization": PARAMETERIZATIONS,
    "rate_rule": RATE_RULES,
    "eps_rule": EPS_RULES,
}
_SLIDERS: dict[str, tuple[Any, ...]] = {
    "width": WIDTHS,
    "eps": EPSILONS,
    "loss_scale": LOSS_SCALES,
}


class Controls:
    """Widgets for a question's fields, and the setting that they make.

    Args:
        question: which fields have a control, and which are in front.
        start: the first setting.
        on_change: called after each change, also to one that is refused.

    Attributes:
        front: a box of the controls in front.
        more: a box of the others.
        general: where a refusal stands that no control has caused.
        config: the setting now, or None while it is refused.
        refusals: why, by field, or "" for none.
    """

    def __init__(self, question: Question, start: RunConfig, on_change: Callable[[], None]) -> None:
        self.config: RunConfig | None = start
        self.refusals: dict[str, str] = {}
        self._base = start
        self._on_change = on_change
        self._quiet = False
        self._corpora: dict[str, str | None] = {start.corpus: None}
        names = [*question.front, *question.more]
        self._controls = {name: _control(name, _value(start, name)) for name in names}
        self._notes = {name: _note() for name in [*names, ""]}
        rows = {name: self._row(name) for name in names}
        self.front = _grid([rows[name] for name in question.front])
        self.more = _grid([rows[name] for name in question.more])
        self.general = self._notes[""]
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
        before = self._base, {name: control.value for name, control in self._controls.items()}
        self._quiet = True
        try:
            rest = {name: v for name, v in values.items() if name not in self._controls}
            self._base = _based(self._base, rest, values.get("optimizer"))
            for name, value in values.items():
                if name in self._controls:
                    _move(self._controls[name], name, value)
            self._check()
            if self.refusals:
                raise ValueError("; ".join(self.refusals.values()))
        except Exception as error:
            self._base = before[0]
            for name, value in before[1].items():
                self._controls[name].value = value
            self._check()
            raise ValueError(str(error)) from None
        finally:
            self._quiet = False
        self._on_change()

    def _changed(self, _: Any) -> None:
        if not self._quiet:
            self._check()
            self._on_change()

    def _check(self) -> None:
        """Makes the setting, or says beside the control that caused it why there is none."""
        values = {name: _read(name, control) for name, control in self._controls.items()}
        chosen = entry(values.get("optimizer", self._base.optimizer))
        name = choice("optimizer", values.get("optimizer", self._base.optimizer))
        reasons = {}
        if "eps" not in chosen.defaults:
            reasons["eps"] = f"{name} has no eps"
        if not chosen.takes_eps_by_parameter:
            reasons["eps_rule"] = f"{name} has no eps for each layer"
        try:
            if "eps" in values and values["eps"] == chosen.defaults.get("eps"):
                values["eps"] = None  # as a config has it
            self.config = self._made({k: v for k, v in values.items() if k not in reasons})
            self.refusals = {}
        except (ValueError, OSError, ImportError) as error:
            self.config = None
            found = re.match(r"(\w+) is ", str(error))
            field = found[1] if found and found[1] in self._controls else ""
            self.refusals = {field: str(error)}
        for field, note in self._notes.items():
            self._say(field, note, reasons.get(field, ""))

    def _made(self, values: Mapping[str, Any]) -> RunConfig:
        steps = values.get("steps", self._base.steps)
        for name in ("steps", "seed"):
            if values.get(name, 0) > _LARGEST:
                raise ValueError(f"{name} is {values[name]}; allowed: up to {_LARGEST:,}")
        depending: dict[str, Any] = {
            "evaluate_every": interval(steps),
            "warmup_steps": max(steps, 0) // 10,
        }
        changed = {"optimizer": values.get("optimizer", self._base.optimizer)}
        if changed["optimizer"] != self._base.optimizer:  # what was given for another one
            depending |= _OF_OPTIMIZER
        config = dataclasses.replace(self._base, **{**depending, **values})
        reason = self._refused_corpus(config)
        if reason:
            raise ValueError(reason)
        return config

    def _refused_corpus(self, config: RunConfig) -> str | None:
        """Returns why there is no such corpus; one from a hub is looked for only in training."""
        name = config.corpus
        if name not in self._corpora:
            self._corpora[name] = None
            if not name.startswith("hub:"):
                try:
                    validation_windows(load_corpus(name), 1, config.context)
                except (ValueError, OSError, ImportError) as error:
                    self._corpora[name] = f"corpus is {name!r}: {error}"
        return self._corpora[name]

    def _row(self, name: str) -> widgets.VBox:
        row = widgets.VBox([self._controls[name], self._notes[name]])
        row.layout = widgets.Layout(width="auto", overflow="hidden")
        row.add_class(f"isolab-lab-control-{name}")
        return row

    def _say(self, field: str, note: widgets.HTML, reason: str) -> None:
        """Writes beside a control why it is refused, or does nothing, or what its value is."""
        refused = self.refusals.get(field, "")
        if refused:
            note.add_class(MESSAGE)
            note.value = _refusal(refused)
        else:
            note.remove_class(MESSAGE)
            hint = f"not used: {reason}" if reason else ""
            if field == "learning_rate" and not reason:
                hint = rate(_read(field, self._controls[field]))
            note.value = _indented(html.escape(hint)) if hint else ""
        note.layout.display = None if note.value else "none"
        if field in self._controls:
            self._controls[field].disabled = bool(reason)


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
    common: dict[str, Any] = {
        "description": _LABELS[name],
        "tooltip": _TIPS[name],
        "style": {"description_width": "112px"},
        "layout": widgets.Layout(width="auto", margin="2px 0"),
    }
    if name in _SLIDERS:
        options = _options(name, value)
        return widgets.SelectionSlider(options=options, value=value, **common)
    if name == "learning_rate":
        low, high = LOG2_RATES
        exponent = math.log2(value)
        return widgets.FloatLogSlider(
            value=value, base=2, min=min(low, math.floor(exponent)),
            max=max(high, math.ceil(exponent)), step=0.5, readout_format=".3g", **common,
        )  # fmt: skip
    if name in _CHOICES:
        options = [(said, stored) for stored, said in _CHOICES[name].items()]
        return widgets.Dropdown(options=options, value=value, **common)
    if name == "corpus":
        return widgets.Text(value=value, continuous_update=False, **common)
    return widgets.IntText(value=value, **common)


def _options(name: str, value: Any) -> list[tuple[str, Any]]:
    """Returns the steps of a slider, with a value that is not among them."""
    values = sorted({*_SLIDERS[name], value})
    return [(choice(name, v), v) for v in values]


def _move(control: Any, name: str, value: Any) -> None:
    """Gives a control a value, also one between its steps."""
    if name in _SLIDERS:
        value = _plain(name, value)
        if value not in [v for _, v in control.options]:
            control.options = _options(name, value)
    elif name in _CHOICES and value not in _CHOICES[name]:
        raise ValueError(f"{name} is {value!r}; allowed: one of {sorted(_CHOICES[name])}")
    elif name == "learning_rate":
        low, high = 2.0**control.min, 2.0**control.max
        if not low <= _plain(name, value) <= high:
            raise ValueError(f"{name} is {value!r}; allowed: {low:g} to {high:g}, as the slider")
    elif name in ("steps", "seed"):
        value = _plain(name, value)
    control.value = value


def _plain(name: str, value: Any) -> Any:
    """Returns the value, once :class:`RunConfig` has found nothing wrong with it by itself."""
    if name == "steps":
        RunConfig(steps=value, evaluate_every=1, warmup_steps=0)
    else:
        RunConfig(**{name: value})
    return value


def _based(base: RunConfig, values: Mapping[str, Any], optimizer: Any) -> RunConfig:
    """Returns what controls vary, with other values of fields that have no control."""
    dependent = {"warmup_steps", "evaluate_every"} & set(values)
    if dependent:
        raise ValueError(f"{sorted(dependent)[0]} follows from steps in the lab")
    changed: dict[str, Any] = {}
    if optimizer is not None and optimizer != base.optimizer:
        changed = {**_OF_OPTIMIZER, "optimizer": optimizer}
    return dataclasses.replace(base, **{**changed, **values})


def _read(name: str, control: Any) -> Any:
    """Returns a control's value; a slider's rate without what the browser rounded."""
    if name != "learning_rate":
        return control.value
    halves = 2 * math.log2(control.value)
    near = abs(halves - round(halves)) < 1e-6
    return 2.0 ** (round(halves) / 2) if near else control.value


def _value(config: RunConfig, name: str) -> Any:
    if name == "eps":
        return config.hyperparameters.get("eps", 1e-8)
    return getattr(config, name)


def _grid(rows: list[widgets.VBox]) -> widgets.GridBox:
    columns = "repeat(auto-fill, minmax(340px, 1fr))"
    layout = widgets.Layout(
        grid_template_columns=columns, grid_gap="2px 28px", width="100%", max_width="860px"
    )
    return widgets.GridBox(rows, layout=layout)


def _note() -> widgets.HTML:
    return widgets.HTML(layout=widgets.Layout(display="none", margin="0"))


def _indented(text: str) -> str:
    style = "margin-left:120px;line-height:1.3;opacity:0.75;font-size:0.92em"
    return f'<div style="{style}">{text}</div>'


def _refusal(text: str) -> str:
    words = re.sub(r"^(\w+) is ", lambda found: f"{FIELDS.get(found[1], found[1])} is ", text)
    style = (
        "margin:1px 0 4px 120px;padding-left:8px;line-height:1.3;"
        "border-left:3px solid var(--jp-error-color1, #d32f2f)"
    )
    return f'<div role="alert" style="{style}">&#9888; {html.escape(words)}</div>'
