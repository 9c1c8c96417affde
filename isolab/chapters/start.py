"""The first notebook: the width and the steps, a multiple of 10, of its one small sweep."""

from __future__ import annotations

from dataclasses import dataclass

from isolab.chapters.chapter import Chapter, Question
from isolab.chapters.grids import lab_setting


@dataclass(frozen=True)
class Settings:
    """The width and the steps of the sweep."""

    width: int = 64
    steps: int = 200


CHAPTER = Chapter(
    "start",
    {"smoke": Settings(16, 20), "laptop": Settings(), "full": Settings(256, 2000)},
    Question(
        "The lab",
        "Move a slider: the charts show stored runs near your setting. Train runs the real thing.",
        ("width", "learning_rate", "optimizer", "parameterization"),
        ("rate_rule", "steps", "seed", "corpus"),
        lab_setting("standard", -5),
    ),
)
