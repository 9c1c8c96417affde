"""The chapters: each is settings, sweeps, measurements and claims, in one file.

Preset ``smoke`` takes seconds (continuous integration), ``laptop`` minutes on two cores, ``full``
hours on an accelerator.  ``python -m isolab.chapters NAME`` trains and measures what the reference
results of a chapter lack.
"""

from typing import Any

from isolab.chapters import epsilon, speedup, start, transfer
from isolab.chapters.chapter import Chapter, Evidence, Opened

CHAPTERS: dict[str, Chapter] = {
    module.CHAPTER.name: module.CHAPTER for module in (start, speedup, transfer, epsilon)
}

__all__ = ["CHAPTERS", "Chapter", "Evidence", "Opened", "open"]


def open(name: str, preset: str = "laptop", **overrides: Any) -> Opened:
    """Opens a chapter: its reference results, and runs of your own at a preset.

    Args:
        name: of :data:`CHAPTERS`.
        preset: "smoke", "laptop" or "full".
        **overrides: settings; None keeps the preset's.

    Raises:
        ValueError: an unknown name, preset or setting, or a setting that cannot be; before any
            training.

    Example:
        >>> open("speedup", "smoke", width=48).settings.width
        48
        >>> open("speedup", "smoke", seeds=3)
        Traceback (most recent call last):
        ValueError: seeds is 3; allowed: a list such as [0, 1] (papermill passes lists by -y or -f)
    """
    if name not in CHAPTERS:
        raise ValueError(f"unknown chapter {name!r}; known: {list(CHAPTERS)}")
    chapter = CHAPTERS[name]
    own = Evidence(chapter, chapter.settings(preset, **overrides), "yours")
    _ = own.sweeps  # refuses what cannot be
    return Opened(own, None if chapter.reference is None else chapter.evidence())
