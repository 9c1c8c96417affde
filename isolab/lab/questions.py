"""What a lab is set to: which controls are in front, where it starts, what its charts compare."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from isolab.chapters import SPEEDUP, choose, speedup_plan
from isolab.training.config import RunConfig

Line = Literal["optimizer", "width", "variant"]

LINE_FIELDS: dict[str, tuple[str, ...]] = {
    "optimizer": ("optimizer",),
    "width": ("width",),
    "variant": ("optimizer", "eps_rule"),
}
"""Fields whose values tell the lines of the right-hand chart apart."""


@dataclass(frozen=True)
class Question:
    """A question that a lab is set to.

    Attributes:
        title: the lab's heading.
        sentence: what to try.
        front: fields whose controls are in front; those of ``more`` stand behind "More settings".
        more: the other fields that have a control.
        start: the first setting.
        x: the field on the right-hand chart's axis, "learning_rate" or "eps".
        line: what tells its lines apart, a key of :data:`LINE_FIELDS`.
    """

    title: str
    sentence: str
    front: tuple[str, ...]
    more: tuple[str, ...]
    start: RunConfig
    x: Literal["learning_rate", "eps"] = "learning_rate"
    line: Line = "width"


def _start(parameterization: str, log2_rate: int) -> RunConfig:
    """Returns a setting of the reference runs: width 64, relative to a base width of 32."""
    return RunConfig(
        parameterization=parameterization, rate_rule="full", base_width=32, width=64,
        learning_rate=2.0**log2_rate, batch_size=16, steps=200, warmup_steps=20, evaluate_every=10,
    )  # fmt: skip


QUESTIONS: dict[str, Question] = {
    "start": Question(
        "The lab",
        "Move a slider: the charts show stored runs near your setting. Train runs the real thing.",
        ("width", "learning_rate", "optimizer", "parameterization"),
        ("rate_rule", "steps", "seed", "corpus"),
        _start("standard", -5),
    ),
    "speedup": Question(
        "Chapter 1: which optimizer, at which rate?",
        "Give each optimizer its best rate before you compare them.",
        ("optimizer", "learning_rate"),
        ("width", "steps", "parameterization", "rate_rule", "seed", "corpus"),
        dataclasses.replace(
            speedup_plan(choose(SPEEDUP, "laptop")).base, learning_rate=2.0**-5, evaluate_every=20
        ),
        line="optimizer",
    ),
    "transfer": Question(
        "Chapter 2: does the best rate stay as the width grows?",
        "Find the best rate at a narrow width, keep it, and widen the model.",
        ("width", "learning_rate", "parameterization", "rate_rule"),
        ("optimizer", "steps", "seed", "corpus"),
        _start("mup", -6),
    ),
    "epsilon": Question(
        "Chapter 3: when does epsilon matter?",
        "Raise eps, widen the model or shrink the loss until Adam stops learning; then Adam-atan2.",
        ("eps", "width", "loss_scale", "optimizer"),
        ("eps_rule", "learning_rate", "parameterization", "rate_rule", "steps", "seed", "corpus"),
        _start("mean_field", -3),
        x="eps",
        line="variant",
    ),
}


def question(name: str) -> Question:
    """Returns a question by name.

    Raises:
        ValueError: an unknown name; the message lists the known ones.

    Example:
        >>> question("epsilon").x
        'eps'
    """
    if name not in QUESTIONS:
        raise ValueError(f"unknown question {name!r}; known: {sorted(QUESTIONS)}")
    return QUESTIONS[name]
