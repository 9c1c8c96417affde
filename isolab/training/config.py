"""What fixes a run: one frozen dataclass of plain values."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from isolab.model.transformer import TransformerConfig
from isolab.optimizers.catalog import entry
from isolab.theory.parameterization import ROLES, parameterization, per_layer_rates

if TYPE_CHECKING:
    import polars as pl

RECIPE_VERSION = 2
"""Raised when the same config would train differently, or a default changes; part of every key."""

TRACED = (
    "seed", "learning_rate", "b1", "b2", "eps", "weight_decay", "rate_rule", "base_width",
    "gamma_embedding", "gamma_hidden", "gamma_readout", "steps", "warmup_steps", "eps_rule",
    "loss_scale", "atan2_a", "atan2_b",
)  # fmt: skip
"""Fields whose values are arguments of the compiled program; the others are part of it.

``rate_rule``, ``base_width`` and the gammas enter it as :attr:`RunConfig.rates`, ``eps_rule`` as
:attr:`RunConfig.epsilons`.
"""

_CHOICES = {
    "rate_rule": ("global", "full", "none"),
    "schedule": ("cosine", "linear", "constant"),
    "eps_rule": ("same", "per_layer"),
    "moment_dtype": ("float32", "bfloat16"),
    "iso_size": ("rms", "graft"),
    "iso_factors": ("exact", "gradient"),
    "iso_blocks": ("whole", "shorter"),
    "iso_root": ("eigh", "newton"),
}
_MODEL = (
    "width", "depth", "head_size", "context", "mlp_ratio", "qk_norm", "z_loss", "dtype", "remat",
)  # fmt: skip
_COUNTS = ("base_width", "steps", "batch_size", "evaluate_every", "validation_windows")
_POSITIVE = (
    "learning_rate", "gamma_embedding", "gamma_hidden", "gamma_readout", "loss_scale", "atan2_a",
    "atan2_b",
)  # fmt: skip
_LEAST, _MOST = 2.0**-126, 2.0**127  # powers of two that float32 holds; below them it gives 0


@dataclass(frozen=True)
class RunConfig:
    """Everything that fixes a run.

    Attributes:
        parameterization: "standard", "ntk", "mup" or "mean_field".
        rate_rule: "global" (one rate), or per-layer rates at "full" or "none" alignment, relative
            to ``base_width``.
        base_width: width at which per-layer rates equal the global one.
        width, depth, head_size, context, mlp_ratio, qk_norm, z_loss, dtype, remat: the model, see
            :class:`isolab.model.transformer.TransformerConfig`.
        optimizer: a name of :data:`isolab.optimizers.CATALOG`.
        learning_rate: peak of the schedule.
        b1, b2, eps, weight_decay: None for the optimizer's default in the catalog.
        eps_rule: "same", or "per_layer": each role's eps is ``eps`` times (width /
            base_width)^-g, as its gradients shrink; for Adam and AdamW.
        moment_dtype: dtype in which Adam, AdamW and Adam-atan2 keep both moments.
        atan2_a, atan2_b: constants of Adam-atan2.
        loss_scale: the loss that is differentiated is multiplied by it; recorded losses are not.
        gamma_embedding, gamma_hidden, gamma_readout: constant factors on each role's rate.
        iso_size, iso_factors, iso_blocks, iso_root, iso_refresh, iso_tokens, iso_damping: how
            IsoAdam works, see :func:`isolab.isoadam`; ``iso_tokens`` bounds the tokens on which
            factors are measured (0: all); ``iso_refresh`` 0 lets the interval grow.
        schedule: "cosine" or "linear" decay to zero, or "constant", after a linear warm-up.
        warmup_steps: length of the warm-up, at most ``steps``.
        steps: updates; a multiple of ``evaluate_every``.
        batch_size: sequences per step; tokens per step are ``batch_size * context``.
        evaluate_every: steps between two points of the curve.
        validation_windows: held-out windows of ``context`` tokens in each evaluation.
        corpus: see :func:`isolab.load_corpus`.
        seed: fixes initialization and batches, whatever the optimizer.

    Raises:
        ValueError: an impossible value, by field, value and what is allowed.

    Example:
        >>> RunConfig(width=50)
        Traceback (most recent call last):
        ValueError: width is 50; allowed: multiples of head_size (16)
    """

    parameterization: str = "standard"
    rate_rule: str = "global"
    base_width: int = 64
    width: int = 64
    depth: int = 2
    head_size: int = 16
    context: int = 64
    mlp_ratio: int = 4
    qk_norm: bool = False
    z_loss: float = 0.0
    dtype: str = "float32"
    remat: bool = False
    optimizer: str = "adam"
    learning_rate: float = 0.01
    b1: float | None = None
    b2: float | None = None
    eps: float | None = None
    weight_decay: float | None = None
    eps_rule: str = "same"
    moment_dtype: str = "float32"
    atan2_a: float = 1.0
    atan2_b: float = 1.0
    loss_scale: float = 1.0
    gamma_embedding: float = 1.0
    gamma_hidden: float = 1.0
    gamma_readout: float = 1.0
    iso_size: str = "rms"
    iso_factors: str = "exact"
    iso_blocks: str = "shorter"
    iso_root: str = "eigh"
    iso_refresh: int = 0
    iso_tokens: int = 0
    iso_damping: float = 1e-7
    schedule: str = "cosine"
    warmup_steps: int = 40
    steps: int = 400
    batch_size: int = 32
    evaluate_every: int = 50
    validation_windows: int = 256
    corpus: str = "stdlib"
    seed: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            self._check_type(field.name, str(field.type))
        self.model_config(vocab_size=1)
        parameterization(self.parameterization)
        for name, allowed in _CHOICES.items():
            self._require(name, getattr(self, name) in allowed, f"one of {allowed}")
        for name in _COUNTS:
            self._require(name, getattr(self, name) >= 1, "a whole number of 1 or more")
        for name in _POSITIVE:
            self._require(name, getattr(self, name) > 0, "a number above 0")
        for name in ("iso_refresh", "iso_tokens", "iso_damping", "seed"):
            self._require(name, getattr(self, name) >= 0, "0 or more")
        self._require("warmup_steps", 0 <= self.warmup_steps <= self.steps, f"0 to {self.steps}")
        self._require(
            "steps",
            self.steps % self.evaluate_every == 0,
            f"multiples of evaluate_every ({self.evaluate_every})",
        )
        self._require(
            "loss_scale", _LEAST <= self.loss_scale <= _MOST, "2**-126 to 2**127, as in float32"
        )
        self._check_optimizer()
        if self.rate_rule != "global":
            per_layer_rates(
                self.parameterization, entry(self.optimizer).rule, self.width, self.base_width
            )

    def _check_optimizer(self) -> None:
        """Refuses hyperparameters that the optimizer does not have, or of impossible values."""
        chosen = entry(self.optimizer)
        known = chosen.defaults
        for name in ("b1", "b2", "eps", "weight_decay"):
            value = getattr(self, name)
            if value is not None:
                self._require(name, name in known, f"None, as {self.optimizer} has no {name}")
                if name in ("b1", "b2"):
                    self._require(name, 0 <= value < 1, "from 0 to below 1")
                else:
                    self._require(name, value >= 0, "0 or more")
        if not chosen.takes_eps_by_parameter:
            why = f"as {self.optimizer} has no eps for each parameter"
            self._require("eps_rule", self.eps_rule == "same", f"'same', {why}")
        if not chosen.takes_moment_dtype:
            why = f"as {self.optimizer} has no moments of another dtype"
            self._require("moment_dtype", self.moment_dtype == "float32", f"'float32', {why}")
        epsilons = [self.eps or 0.0, *self.epsilons.values()]
        held = all(eps == 0 or _LEAST <= eps <= _MOST for eps in epsilons)
        self._require("eps", held, "0, or 2**-126 to 2**127 for every role, as in float32")
        if self.optimizer != "adam_atan2":
            for name in ("atan2_a", "atan2_b"):
                why = f"as {self.optimizer} has no arctangent"
                self._require(name, getattr(self, name) == 1.0, f"1.0, {why}")

    def _check_type(self, name: str, annotation: str) -> None:
        value = getattr(self, name)
        if value is None and annotation.endswith("| None"):
            return
        kind = annotation.removesuffix(" | None")
        allowed, words = {
            "str": ((str,), "text"),
            "bool": ((bool,), "True or False"),
            "int": ((int,), "a whole number"),
            "float": ((int, float), "a number"),
        }[kind]
        right = isinstance(value, allowed) and (kind == "bool" or not isinstance(value, bool))
        self._require(name, right, words)
        if kind == "float":
            self._require(name, math.isfinite(value), "a finite number")
            object.__setattr__(self, name, float(value))

    def _require(self, name: str, holds: bool, allowed: str) -> None:
        if not holds:
            raise ValueError(f"{name} is {getattr(self, name)!r}; allowed: {allowed}")

    def model_config(self, vocab_size: int) -> TransformerConfig:
        """Returns the model's part of the config, for a corpus of so many symbols."""
        return TransformerConfig(vocab_size, **{name: getattr(self, name) for name in _MODEL})

    @property
    def hyperparameters(self) -> dict[str, float]:
        """b1, b2, eps and weight_decay of this run's optimizer, its defaults filled in."""
        defaults = entry(self.optimizer).defaults
        names = [name for name in ("b1", "b2", "eps", "weight_decay") if name in defaults]
        given = {name: getattr(self, name) for name in names}
        return {name: defaults[name] if value is None else value for name, value in given.items()}

    @property
    def rates(self) -> dict[str, float]:
        """Each role's factor on the learning rate, by ``rate_rule`` and the gammas."""
        gamma = {
            "embedding": self.gamma_embedding,
            "hidden": self.gamma_hidden,
            "readout": self.gamma_readout,
        }
        width = self.base_width if self.rate_rule == "global" else self.width
        alignment = "full" if self.rate_rule == "global" else self.rate_rule
        rule = entry(self.optimizer).rule
        return per_layer_rates(
            self.parameterization, rule, width, self.base_width, alignment, gamma
        )

    @property
    def eps_factors(self) -> dict[str, float]:
        """Each role's factor on eps, by ``eps_rule``."""
        exponent = parameterization(self.parameterization).gradient_exponent
        ratio = self.width / self.base_width if self.eps_rule == "per_layer" else 1.0
        return {role: ratio ** -exponent(role) for role in ROLES}

    @property
    def epsilons(self) -> dict[str, float]:
        """Each role's eps; empty where the optimizer takes one eps for all, or none."""
        if not entry(self.optimizer).takes_eps_by_parameter:
            return {}
        eps = self.hyperparameters["eps"]
        return {role: eps * factor for role, factor in self.eps_factors.items()}

    def row(self) -> dict[str, Any]:
        """Returns the columns of this run: every field, with the optimizer's defaults filled in."""
        return {**asdict(self), **self.hyperparameters}

    def key(self, fingerprint: str) -> str:
        """Returns the run's identity: SHA-256 of its canonical JSON, recipe and corpus.

        At the base width all rate rules and eps rules are one run, and have one key. Fields at
        their default are left out, so that a field which is added later, with a default that means
        what was done before, leaves the keys of stored runs as they are.
        """
        return self.keys(fingerprint)[0]

    def keys(self, fingerprint: str) -> list[str]:
        """Returns the run's key, and the others under which an earlier version may have stored it.

        Until keys became canonical, a run at the base width was stored under its own rules' names.
        """
        if self.width != self.base_width:
            return [self._key(fingerprint)]
        takes = entry(self.optimizer).takes_eps_by_parameter
        return [
            replace(self, rate_rule=rate_rule, eps_rule=eps_rule)._key(fingerprint)
            for eps_rule in (_CHOICES["eps_rule"] if takes else ("same",))
            for rate_rule in _CHOICES["rate_rule"]
        ]

    def _key(self, fingerprint: str) -> str:
        usual = {field.name: field.default for field in fields(self)}
        content = {name: value for name, value in self.row().items() if value != usual[name]}
        content |= {"recipe": RECIPE_VERSION, "corpus_fingerprint": fingerprint}
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def with_later_fields(frame: pl.DataFrame, names: Collection[str] | None = None) -> pl.DataFrame:
    """Returns stored runs with the fields that came after them at their default: what they did.

    Args:
        frame: a row per run; a field's column may be absent or hold nulls.
        names: fields to fill; default: all whose default is not None.
    """
    import polars as pl

    types = {str: pl.String, bool: pl.Boolean, int: pl.Int64, float: pl.Float64}
    defaults = {f.name: f.default for f in fields(RunConfig) if f.default is not None}
    return frame.with_columns(
        (pl.col(name).fill_null(value) if name in frame.columns else pl.lit(value))
        .cast(types[type(value)])
        .alias(name)
        for name, value in defaults.items()
        if names is None or name in names
    )
