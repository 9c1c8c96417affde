"""Numbers, choices and settings as people write them."""

from __future__ import annotations

import math
from typing import Any

from isolab.charts import theme
from isolab.training.config import RunConfig

LABELS = {
    "rate_rule": "rates",
    "eps_rule": "rule of eps",
    "warmup_steps": "warm-up",
    "batch_size": "batch",
}
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
    "parameterization": theme.NAMES["parameterization"],
    "rate_rule": theme.NAMES["rate_rule"],
    "eps_rule": {"same": "one eps for all layers", "per_layer": "eps per layer"},
}
"""Values of fields, and how they are called."""


def label(field: str) -> str:
    """Returns what a field is called."""
    return LABELS.get(field, theme.words(field))


def choice(field: str, value: Any) -> str:
    """Returns the value of a field; a rate whose log2 is a multiple of a quarter is a power of two.

    Example:
        >>> [choice("learning_rate", rate) for rate in (2**-6.5, 0.3, 1.0)]
        ['2^-6.5', '0.3', '1']
        >>> [choice("eps", eps) for eps in (1e-8, 2.3e-6, 0.0, None)]
        ['1e-8', '2.3e-6', '0', 'none']
    """
    if field in CHOICES:
        return CHOICES[field].get(value, str(value))
    if field in ("learning_rate", "loss_scale"):
        quarters = 4 * math.log2(value)
        if abs(quarters - round(quarters)) > 1e-6:
            return f"{value:.3g}"
        return f"2^{round(quarters) / 4:g}" if round(quarters) else "1"
    if value is None:
        return "none"
    if field == "eps":
        head, _, exponent = f"{value:.2e}".partition("e")
        return f"{float(head):g}e{int(exponent)}" if value else "0"
    return str(value)


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
    """Returns a count with its noun, such as "3 seeds"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def error_line(error: BaseException, most: int = 500) -> str:
    """Returns an error as one line, ``ValueError: what was wrong``, of at most so many letters."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= most else text[: most - 1] + "…"
