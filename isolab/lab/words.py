"""Numbers and choices as people write them."""

from __future__ import annotations

import math
from typing import Any

from isolab.charts.parts import NAMES
from isolab.training.config import RunConfig

OPTIMIZERS = {
    "adam": "Adam",
    "adamw": "AdamW",
    "adam_atan2": "Adam-atan2",
    "isoadam": "IsoAdam",
    "iso": "Iso",
    "muon": "Muon",
    "adafactor": "Adafactor",
    "lion": "Lion",
    "sgd": "SGD",
}
PARAMETERIZATIONS = NAMES["parameterization"]
RATE_RULES = {
    "global": "one global rate",
    "full": "per-layer, full alignment",
    "none": "per-layer, no alignment",
}
EPS_RULES = {"same": "one eps for all layers", "per_layer": "eps per layer"}
_CHOICES = {
    "optimizer": OPTIMIZERS,
    "parameterization": PARAMETERIZATIONS,
    "rate_rule": RATE_RULES,
    "eps_rule": EPS_RULES,
}
FIELDS = {
    "learning_rate": "rate",
    "rate_rule": "rates",
    "eps": "eps",
    "eps_rule": "rule of eps",
    "loss_scale": "loss scale",
    "warmup_steps": "warm-up",
}


def choice(field: str, value: Any) -> str:
    """Returns the value of a field as people write it.

    Example:
        >>> choice("optimizer", "isoadam"), choice("learning_rate", 2**-6.5), choice("eps", 1e-8)
        ('IsoAdam', '2^-6.5', '1e-8')
    """
    if field in _CHOICES:
        return _CHOICES[field].get(value, str(value))
    if field in ("learning_rate", "loss_scale"):
        return power_of_two(value)
    if field == "eps":
        return "none" if value is None else decimal(value)
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


def decimal(value: float) -> str:
    """Returns a small number briefly.

    Example:
        >>> decimal(1e-8), decimal(0.0), decimal(2.3e-6)
        ('1e-8', '0', '2.3e-6')
    """
    head, _, exponent = f"{value:.2e}".partition("e")
    return f"{float(head):g}e{int(exponent)}" if value else "0"


def rate(value: float) -> str:
    """Returns a learning rate as a power and as a number.

    Example:
        >>> rate(2**-6.5)
        '2^-6.5 = 0.011'
    """
    named = power_of_two(value)
    return f"{named} = {value:.2g}" if named.startswith("2^") else named


def run_label(config: RunConfig, usual: RunConfig) -> str:
    """Returns a run's name: optimizer, width, rate, and in what else it is not as usual.

    Example:
        >>> run_label(RunConfig(seed=3), RunConfig())
        'Adam, width 64, 0.01, seed 3'
    """
    parts = [
        choice("optimizer", config.optimizer),
        f"width {config.width}",
        choice("learning_rate", config.learning_rate),
    ]
    said = {
        "parameterization": "{}",
        "rate_rule": "{}",
        "eps": "eps {}",
        "eps_rule": "{}",
        "loss_scale": "loss scale {}",
        "steps": "{} steps",
        "seed": "seed {}",
        "corpus": "{}",
        "depth": "depth {}",
        "context": "context {}",
        "batch_size": "batch {}",
    }
    for field, text in said.items():
        value = getattr(config, field)
        if field == "eps":
            value, other = config.hyperparameters.get("eps"), usual.hyperparameters.get("eps")
            differs = value is not None and value != other
        else:
            differs = value != getattr(usual, field)
        if differs:
            parts.append(text.format(choice(field, value)))
    return ", ".join(parts)


def apart(field: str, asked: Any, stored: Any) -> str:
    """Returns in words what is stored in place of what was asked, with the factor between them.

    Example:
        >>> apart("width", 96, 64), apart("eps", 0.0, 1e-20)
        ('width 64 instead of 96 (1.5x)', 'eps 1e-20 instead of 0')
        >>> apart("steps", 100_000, 200)
        'steps 200 instead of 100000 (500x)'
    """
    name = FIELDS.get(field, field.replace("_", " "))
    text = f"{name} {choice(field, stored)} instead of {choice(field, asked)}"
    if not asked or not stored:
        return text
    factor = max(asked / stored, stored / asked)
    said = (
        f"{factor:.2g}" if factor < 100 else f"{factor:.0f}" if factor < 1000 else decimal(factor)
    )
    return f"{text} ({said}x)"


def plural(count: int, noun: str) -> str:
    """Returns a count with its noun.

    Example:
        >>> plural(1, "seed"), plural(3, "seed")
        ('1 seed', '3 seeds')
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
