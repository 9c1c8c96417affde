"""Numbers, choices and settings as people write them."""

from __future__ import annotations

import math
from typing import Any

from isolab.charts.theme import NAMES
from isolab.training.config import RunConfig

LABELS = {
    "learning_rate": "learning rate",
    "rate_rule": "rates",
    "eps_rule": "rule of eps",
    "loss_scale": "loss scale",
    "warmup_steps": "warm-up",
    "batch_size": "batch",
    "base_width": "base width",
}
"""Fields as they are called, where that is not their name."""
CHOICES = {
    "optimizer": {
        "adam": "Adam",
        "adamw": "AdamW",
        "adam_atan2": "Adam-atan2",
        "isoadam": "IsoAdam",
        "iso": "Iso",
        "muon": "Muon",
        "adafactor": "Adafactor",
        "lion": "Lion",
        "sgd": "SGD",
    },
    "parameterization": NAMES["parameterization"],
    "rate_rule": NAMES["rate_rule"],
    "eps_rule": {"same": "one eps for all layers", "per_layer": "eps per layer"},
}
"""Values of fields, and how they are called."""


def label(field: str) -> str:
    """Returns what a field is called."""
    return LABELS.get(field, field)


def choice(field: str, value: Any) -> str:
    """Returns the value of a field as people write it.

    Example:
        >>> choice("optimizer", "isoadam"), choice("learning_rate", 2**-6.5), choice("eps", 1e-8)
        ('IsoAdam', '2^-6.5', '1e-8')
        >>> choice("eps", 2.3e-6), choice("eps", 0.0), choice("eps", None)
        ('2.3e-6', '0', 'none')
    """
    if field in CHOICES:
        return CHOICES[field].get(value, str(value))
    if field in ("learning_rate", "loss_scale"):
        return power_of_two(value)
    if field == "eps":
        if not value:
            return "none" if value is None else "0"
        head, _, exponent = f"{value:.2e}".partition("e")
        return f"{float(head):g}e{int(exponent)}"
    return str(value)


def power_of_two(value: float) -> str:
    """Returns a number as a power of two where its exponent is a multiple of a quarter.

    Example:
        >>> power_of_two(0.25), power_of_two(2**-6.5), power_of_two(0.3), power_of_two(1.0)
        ('2^-2', '2^-6.5', '0.3', '1')
    """
    quarters = 4 * math.log2(value)
    if abs(quarters - round(quarters)) > 1e-6:
        return f"{value:.3g}"
    return f"2^{round(quarters) / 4:g}" if round(quarters) else "1"


def run_label(config: RunConfig, usual: RunConfig) -> str:
    """Returns a run's name: optimizer, width, rate, and in what else it is not as usual.

    Example:
        >>> run_label(RunConfig(seed=3, steps=50), RunConfig())
        'Adam, width 64, 0.01, steps 50, seed 3'
    """
    parts = [choice("optimizer", config.optimizer), f"width {config.width}"]
    parts.append(choice("learning_rate", config.learning_rate))
    ours, others = config.row(), usual.row()
    for field in ("parameterization", "rate_rule", "eps", "eps_rule", "loss_scale", "steps",
                  "seed", "corpus", "depth", "context", "batch_size"):  # fmt: skip
        if ours[field] != others[field] and ours[field] is not None:
            named = field in CHOICES or field == "corpus"
            parts.append(("" if named else f"{label(field)} ") + choice(field, ours[field]))
    return ", ".join(parts)


def plural(count: int, noun: str) -> str:
    """Returns a count with its noun.

    Example:
        >>> plural(1, "seed"), plural(3, "seed")
        ('1 seed', '3 seeds')
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def error_line(error: BaseException, most: int = 500) -> str:
    """Returns an error as one line, ``ValueError: what was wrong``.

    Example:
        >>> error_line(KeyError("width"))
        "KeyError: 'width'"
    """
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= most else text[: most - 1] + "…"
