"""What a lab is set to: which controls are in front, where it starts, what its charts compare."""

from __future__ import annotations

from typing import Literal

from isolab.chapters import CHAPTERS
from isolab.chapters.chapter import Question

__all__ = ["LINE_FIELDS", "QUESTIONS", "Line", "Question", "question"]

Line = Literal["optimizer", "width", "variant"]

LINE_FIELDS: dict[str, tuple[str, ...]] = {
    "optimizer": ("optimizer",),
    "width": ("width",),
    "variant": ("optimizer", "eps_rule"),
}
"""Fields whose values tell the lines of the right-hand chart apart."""

QUESTIONS: dict[str, Question] = {name: chapter.question for name, chapter in CHAPTERS.items()}


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
