"""What fixes a run: one frozen dataclass of plain values."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, get_args

from isolab.model.fields import Count, NonNegative, Range, check, require
from isolab.model.transformer import Dtype, TransformerConfig
from isolab.optimizers.catalog import entry
from isolab.theory.parameterization import (
    MATRIX_ROLES,
    ROLES,
    RULES,
    parameterization,
    per_layer_rates,
)

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

RateRule: TypeAlias = Literal["global", "full", "none"]
EpsRule: TypeAlias = Literal["same", "per_layer"]

_OF_OPTIMIZERS = ("b1", "b2", "eps", "weight_decay")
_LEAST, _MOST = 2.0**-126, 2.0**127  # powers of two that float32 holds; below them it gives 0

_Positive: TypeAlias = Annotated[float, Range(math.ulp(0.0), math.inf, "a number above 0")]
_Whole: TypeAlias = Annotated[int, Range(0, math.inf, "0 or more")]
_Seed: TypeAlias = Annotated[int, Range(0, 2**31 - 1, "a whole number from 0 to 2**31 - 1")]
_Decay: TypeAlias = Annotated[float, Range(0, math.nextafter(1, 0), "from 0 to below 1")]
_InFloat32: TypeAlias = Annotated[
    _Positive, Range(_LEAST, _MOST, "2**-126 to 2**127, as in float32")
]


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
    rate_rule: RateRule = "global"
    base_width: Count = 64
    width: Count = 64
    depth: Count = 2
    head_size: Count = 16
    context: Count = 64
    mlp_ratio: Count = 4
    qk_norm: bool = False
    z_loss: NonNegative = 0.0
    dtype: Dtype = "float32"
    remat: bool = False
    optimizer: str = "adam"
    learning_rate: _Positive = 0.01
    b1: _Decay | None = None
    b2: _Decay | None = None
    eps: NonNegative | None = None
    weight_decay: NonNegative | None = None
    eps_rule: EpsRule = "same"
    moment_dtype: Dtype = "float32"
    atan2_a: _Positive = 1.0
    atan2_b: _Positive = 1.0
    loss_scale: _InFloat32 = 1.0
    gamma_embedding: _Positive = 1.0
    gamma_hidden: _Positive = 1.0
    gamma_readout: _Positive = 1.0
    iso_size: Literal["rms", "graft"] = "rms"
    iso_factors: Literal["exact", "gradient"] = "exact"
    iso_blocks: Literal["whole", "shorter"] = "shorter"
    iso_root: Literal["eigh", "newton"] = "eigh"
    iso_refresh: _Whole = 0
    iso_tokens: _Whole = 0
    iso_damping: NonNegative = 1e-7
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: int = 40
    steps: Count = 400
    batch_size: Count = 32
    evaluate_every: Count = 50
    validation_windows: Count = 256
    corpus: str = "stdlib"
    seed: _Seed = 0

    def __post_init__(self) -> None:
        check(self)
        self.model_config(vocab_size=1)
        parameterization(self.parameterization)
        whole = self.steps % self.evaluate_every == 0
        require(self, "warmup_steps", 0 <= self.warmup_steps <= self.steps, f"0 to {self.steps}")
        require(self, "steps", whole, f"multiples of evaluate_every ({self.evaluate_every})")
        self._check_optimizer()
        if self.rate_rule != "global":
            per_layer_rates(
                self.parameterization, entry(self.optimizer).rule, self.width, self.base_width
            )

    def _check_optimizer(self) -> None:
        """Refuses hyperparameters that the optimizer does not have, and an eps out of float32."""
        name, chosen = self.optimizer, entry(self.optimizer)
        atan2 = name == "adam_atan2"
        for field, usual, takes, lacking in (
            *((field, None, field in chosen.defaults, field) for field in _OF_OPTIMIZERS),
            ("eps_rule", "same", chosen.takes_eps_by_parameter, "eps for each parameter"),
            ("moment_dtype", "float32", chosen.takes_moment_dtype, "moments of another dtype"),
            *((field, 1.0, atan2, "arctangent") for field in ("atan2_a", "atan2_b")),
        ):
            right = takes or getattr(self, field) == usual
            require(self, field, right, f"{usual!r}, as {name} has no {lacking}")
        epsilons = [self.eps or 0.0, *self.epsilons.values()]
        held = all(eps == 0 or _LEAST <= eps <= _MOST for eps in epsilons)
        require(self, "eps", held, "0, or 2**-126 to 2**127 for every role, as in float32")

    def model_config(self, vocab_size: int) -> TransformerConfig:
        """Returns the model's part of the config, for a corpus of so many symbols."""
        _, *shape = fields(TransformerConfig)
        return TransformerConfig(vocab_size, **{f.name: getattr(self, f.name) for f in shape})

    @property
    def hyperparameters(self) -> dict[str, float]:
        """b1, b2, eps and weight_decay of this run's optimizer, its defaults filled in."""
        defaults = entry(self.optimizer).defaults
        given = {name: getattr(self, name) for name in _OF_OPTIMIZERS if name in defaults}
        return {name: defaults[name] if value is None else value for name, value in given.items()}

    @property
    def rates(self) -> dict[str, float]:
        """Each role's factor on the learning rate, by ``rate_rule`` and the gammas."""
        gamma = {role: getattr(self, f"gamma_{role}") for role in MATRIX_ROLES}
        width = self.base_width if self.rate_rule == "global" else self.width
        alignment = "full" if self.rate_rule == "global" else self.rate_rule
        rule = entry(self.optimizer).rule
        rates = per_layer_rates(
            self.parameterization, rule, width, self.base_width, alignment, gamma
        )
        return {role: rates[role] for role in ROLES}

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
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return named | self.hyperparameters

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
        row, usual = self.row(), {field.name: field.default for field in fields(self)}
        rules: Any = [(self.rate_rule, self.eps_rule)]
        fixed: dict[str, Any] = {"recipe": RECIPE_VERSION, "corpus_fingerprint": fingerprint}
        if self.width != self.base_width:
            rule = entry(self.optimizer).rule
            if self.rate_rule != "global" and rule not in RULES:
                fixed["rule"] = rule  # those of Muon, Iso and IsoAdam were Adam's before
        else:
            takes = entry(self.optimizer).takes_eps_by_parameter
            eps_rules = get_args(EpsRule) if takes else ("same",)
            rules = [(rate, eps) for eps in eps_rules for rate in get_args(RateRule)]
        found = []
        for rate_rule, eps_rule in rules:
            row |= {"rate_rule": rate_rule, "eps_rule": eps_rule}
            content = {name: value for name, value in row.items() if value != usual[name]}
            text = json.dumps(content | fixed, sort_keys=True, separators=(",", ":"))
            found.append(hashlib.sha256(text.encode()).hexdigest())
        return found


def with_later_fields(frame: pl.DataFrame, names: Collection[str] | None = None) -> pl.DataFrame:
    """Returns stored runs with the fields that came after them at their default: what they did.

    A field's column may be absent or hold nulls; by default all whose default is not None are
    filled.
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
