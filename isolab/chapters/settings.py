"""The settings of a chapter: a preset, and what its reader changed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

PRESETS = ("smoke", "laptop", "full")


def choose(presets: dict[str, dict[str, Any]], preset: str, **overrides: Any) -> SimpleNamespace:
    """Returns a preset's settings with the overrides that are not None.

    Raises:
        ValueError: an unknown preset or setting, or an override whose kind is not the preset's.

    Example:
        >>> from isolab.chapters import SPEEDUP
        >>> choose(SPEEDUP, "smoke", width=48).width
        48
        >>> choose(SPEEDUP, "smoke", seeds=3)
        Traceback (most recent call last):
        ValueError: seeds is 3; allowed: a list such as [0, 1] (papermill passes lists by -y or -f)
    """
    if not isinstance(preset, str) or preset not in presets:
        raise ValueError(f"preset is {preset!r}; allowed: {list(presets)}")
    settings = dict(presets[preset])
    for name, value in overrides.items():
        if name not in settings:
            raise ValueError(f"unknown setting {name!r}; allowed: {sorted(settings)}")
        if value is None:
            continue
        usual = settings[name]
        if isinstance(usual, list):
            kind = str if isinstance(usual[0], str) else int
            if not (isinstance(value, list) and value and all(_is(kind, v) for v in value)):
                raise ValueError(
                    f"{name} is {value!r}; allowed: a list such as {usual}"
                    " (papermill passes lists by -y or -f)"
                )
        elif not _is(int, value):
            raise ValueError(f"{name} is {value!r}; allowed: a whole number such as {usual}")
        settings[name] = value
    return SimpleNamespace(**settings)


def require_several(settings: SimpleNamespace, *names: str) -> None:
    """Raises ValueError, by name and value, where a list has fewer than two different members."""
    for name in names:
        values = getattr(settings, name)
        if len(set(values)) < 2:
            raise ValueError(f"{name} is {values}; allowed: two different ones or more")


def rates(log2_range: list[int]) -> list[float]:
    """Returns the grid 2**k for k from the first number to before the second.

    Raises:
        ValueError: not two ascending numbers, or fewer than three rates.

    Example:
        >>> rates([-3, 0])
        [0.125, 0.25, 0.5]
    """
    if len(log2_range) != 2 or log2_range[1] - log2_range[0] < 3:
        raise ValueError(
            f"the range of log2 rates is {log2_range}; allowed: [start, stop) with"
            " three rates or more, so that a best one can have neighbours"
        )
    return [2.0**k for k in range(*log2_range)]


def _is(kind: type, value: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)
