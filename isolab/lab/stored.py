"""The stored runs nearest to a setting, found fast enough to follow a slider.

What a run *is* (optimizer, parameterization, corpus, dtypes and so on) must be as asked; in how
large it is (width, rate, eps, steps and so on) the nearest stored one is taken, and how far it lies
from what was asked is told.  Seeds are gathered.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from isolab.analysis.seeds import require_columns
from isolab.lab.words import CHOICES, choice, label, plural
from isolab.optimizers.catalog import entry
from isolab.training.config import RunConfig, with_later_fields

NEAR = {
    "width": 1.0, "learning_rate": 1.0, "steps": 1.5, "batch_size": 1.5, "context": 2.0,
    "depth": 2.0, "base_width": 0.5, "eps": 0.3, "loss_scale": 0.2, "warmup_steps": 0.1,
}  # fmt: skip
"""Fields in which a near run will do, with what a factor of two weighs."""
LINE_FIELDS = {
    "optimizer": ("optimizer",),
    "width": ("width",),
    "variant": ("optimizer", "eps_rule"),
}
"""Fields whose values tell the lines of a question's right-hand chart apart."""
_SETTING = [f.name for f in fields(RunConfig) if f.name not in ("seed", "evaluate_every", "remat")]
_EXACT = [name for name in _SETTING if name not in NEAR]
_OPTIONAL = ("b1", "b2", "weight_decay", "eps")  # None for the optimizer's default
_TAKEN = ["seed", "final_validation_loss", "diverged", "curve_step", "curve_validation_loss"]
_LEAST = {"eps": 1e-24, "warmup_steps": 1.0}  # 0 lies an octave below
_SHORT = 3  # a line of fewer points is chosen only ...
_PENALTY = 3.0  # ... before one that is so much further away

Setting = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """The stored runs of one setting."""

    setting: Setting  # every field but those that seeds share; None for what plays no part
    losses: dict[int, float] = field(compare=False)  # final, by seed, nats/token; inf: diverged
    curves: list[list[Any]] = field(compare=False)  # steps, validation losses

    @property
    def finite(self) -> list[float]:
        """Final losses of the seeds that did not diverge."""
        return [loss for loss in self.losses.values() if math.isfinite(loss)]

    @property
    def diverged(self) -> int:
        """How many seeds diverged."""
        return len(self.losses) - len(self.finite)

    @property
    def mean(self) -> float:
        """Mean final loss; inf where a seed diverged."""
        return float(np.mean(list(self.losses.values())))

    def curve(self) -> tuple[tuple[int, ...], list[float]]:
        """Returns the steps and mean losses of the seeds whose curves have the same steps.

        Of several kinds the one with most seeds, then most points; means of finite losses, NaN
        where there are none.
        """
        counts = Counter(tuple(steps) for steps, _ in self.curves)
        steps = max(counts, key=lambda steps: (counts[steps], len(steps)))
        losses = [np.array(losses, float) for at, losses in self.curves if tuple(at) == steps]
        means = np.ma.masked_invalid(losses).mean(0)
        return steps, np.ma.filled(means, math.nan).tolist()


class StoredLine(NamedTuple):
    """Stored settings that differ in one field, which is on a chart's axis."""

    name: str  # what tells it from other lines, in words
    value: Any  # the same as it is stored: of the first field of the question's line
    cells: tuple[Cell, ...]  # ascending in that field; one cell where it does not apply


class Nearest(NamedTuple):
    """What is stored near a setting."""

    cell: Cell | None = None
    line: StoredLine | None = None
    others: tuple[StoredLine, ...] = ()  # what differs from the line only in what lines differ in


class Stored:
    """Runs, a row each as :func:`isolab.run` gives them, arranged for one question.

    Of several rows of one setting and seed the first counts.

    Args:
        runs: ValueError where a column is missing.
        x: the field along a line, "learning_rate" or "eps".
        line: what tells lines apart, a key of :data:`LINE_FIELDS`.
    """

    def __init__(self, runs: pl.DataFrame, x: str = "learning_rate", line: str = "width") -> None:
        self.x, self.line, self._runs = x, line, runs
        free = LINE_FIELDS[line]
        self._kind = [name for name in _EXACT if name not in free]
        if "optimizer" in free:  # how IsoAdam works is nothing that Adam could share
            self._kind = [name for name in self._kind if not name.startswith("iso_")]
        self._kind += ["rule"] if line == "variant" else []
        self._size = [name for name in NEAR if name not in (*free, x, "eps")]
        self._size += ["unusual_eps"] if x != "eps" else []
        others = [name for name in _SETTING if name != x]
        lines = defaultdict[tuple[Any, ...], list[Cell]](list)
        for cell in [] if runs.is_empty() else _cells(runs):
            lines[cell.setting[x] is None, *_values(cell.setting, others)].append(cell)
        self._alike = defaultdict[tuple[Any, ...], list[StoredLine]](list)
        self._comparable = defaultdict[tuple[Any, ...], list[StoredLine]](list)
        for cells in lines.values():
            setting = cells[0].setting
            along = sorted(cells, key=lambda cell: cell.setting[x] or 0.0)
            its = StoredLine(_line_name(setting, line), setting[free[0]], tuple(along))
            self._alike[_values(setting, _EXACT)].append(its)
            self._comparable[_values(setting, self._kind)].append(its)

    def joined(self, *more: pl.DataFrame) -> Stored:
        """Returns these runs and more, as of a store that was added to."""
        frames = [frame for frame in (self._runs, *more) if not frame.is_empty()]
        whole = pl.concat(frames, how="diagonal_relaxed") if frames else self._runs
        return Stored(whole, self.x, self.line)

    def nearest(self, config: RunConfig) -> Nearest:
        """Returns what is stored near a setting."""
        asked = _setting(config.row())
        alike = self._alike.get(_values(asked, _EXACT), [])
        comparable = self._comparable.get(_values(asked, self._kind), [])
        if not comparable:
            return Nearest()

        def far(line: StoredLine) -> tuple[float, int]:
            points, setting = len(line.cells), line.cells[0].setting
            short = points < _SHORT and setting[self.x] is not None
            return _distance(asked, setting, self.x) + _PENALTY * short, -points

        line = min(alike or comparable, key=far)
        size = _values(line.cells[0].setting, self._size)
        same = [each for each in comparable if _values(each.cells[0].setting, self._size) == size]
        others = {each.name: each for each in same}
        cell = None
        if alike:
            others.pop(line.name, None)
            cells = [*line.cells, *(cell for each in alike for cell in each.cells)]
            cell = min(cells, key=lambda cell: _distance(asked, cell.setting))
        shown = sorted(others.values(), key=lambda each: each.value)
        return Nearest(cell, line if alike else None, tuple(shown))


def differences(config: RunConfig, setting: Setting, without: str = "") -> dict[str, str]:
    """Returns in what a stored setting is not as asked, in words, by field but for ``without``.

    Example:
        >>> differences(RunConfig(width=96), RunConfig(width=64).row())
        {'width': 'width 64 instead of 96 (1.5x)'}
    """
    asked, found = _setting(config.row()), {}
    for name in NEAR:
        ours, theirs = asked[name], setting[name]
        if name == without or ours is None or theirs is None or ours == theirs:
            continue
        scaled = name == "warmup_steps" and ours * setting["steps"] == theirs * asked["steps"]
        if not scaled:
            text = f"{label(name)} {choice(name, theirs)} instead of {choice(name, ours)}"
            if ours and theirs:
                factor = max(ours / theirs, theirs / ours)
                text += f" ({f'{factor:.2g}' if factor < 100 else f'{factor:.4g}'}x)"
            found[name] = text
    return found


def in_words(config: RunConfig, nearest: Nearest, x: str) -> str:
    """Returns which stored runs are shown, and how far they are from what was asked."""
    cell, line = nearest.cell, nearest.line
    if cell is None:
        names = ", ".join(other.name for other in nearest.others)
        also = f" Faint lines at the right: {names}." if names else ""
        optimizer = choice("optimizer", config.optimizer)
        return f"Nothing is stored for {optimizer} with these choices: Train makes it.{also}"
    away, asked = differences(config, cell.setting), _setting(config.row())
    same = " and ".join(
        f"{label(name)} {choice(name, asked[name])}"
        for name in ("width", x)
        if name not in away and asked[name] is not None
    )
    parts = [*away.values(), f"{same} as asked" if same else ""]
    found = ", ".join(filter(None, parts)) if away else f"just what was asked, {same}"
    end = f"final loss {cell.mean:.3f}"
    if cell.diverged:
        end = f"{cell.diverged if cell.finite else 'all'} diverged"
    text = f"Stored (dashed): {found}; {plural(len(cell.losses), 'seed')}, {end}."
    if line is not None and cell not in line.cells:
        other = ", ".join(differences(config, line.cells[0].setting, x).values())
        text += f" Line at the right: {other or 'as asked'}."
    return text


def _cells(runs: pl.DataFrame) -> list[Cell]:
    """Returns the settings that were run; one at the base width under each rule, as all are one."""
    whole = with_later_fields(runs)
    require_columns(whole, [*_SETTING, *_TAKEN])
    loss = pl.col("final_validation_loss")
    lost = pl.col("diverged") | ~loss.is_finite().fill_null(False)
    groups = (
        whole.with_columns(pl.when(lost).then(math.inf).otherwise(loss).alias(_TAKEN[1]))
        .unique([*_SETTING, "seed"], keep="first", maintain_order=True)
        .group_by(_SETTING, maintain_order=True)
        .agg(*_TAKEN)
    )
    cells: dict[tuple[Any, ...], Cell] = {}
    for row in groups.iter_rows(named=True):
        rules: list[Setting] = [{}]
        if row["width"] == row["base_width"]:
            eps_rules = (
                CHOICES["eps_rule"] if entry(row["optimizer"]).takes_eps_by_parameter else ["same"]
            )
            every = itertools.product(CHOICES["rate_rule"], eps_rules)
            rules = [{"rate_rule": rate_rule, "eps_rule": rule} for rate_rule, rule in every]
        for rule in rules:
            setting = _setting({**row, **rule})
            cell = cells.setdefault(tuple(setting.values()), Cell(setting, {}, []))
            for seed, loss, _, *curve in zip(*(row[name] for name in _TAKEN), strict=True):
                if seed not in cell.losses:
                    cell.losses[seed] = loss
                    cell.curves.append(curve)
    return list(cells.values())


def _setting(row: Setting) -> dict[str, Any]:
    """Returns a run's setting, with None for what plays no part, and how its optimizer scales."""
    chosen = entry(row["optimizer"])
    setting = {name: row[name] for name in _SETTING}
    usual = [name for name in _OPTIONAL if row[name] == chosen.defaults.get(name)]
    setting |= dict.fromkeys(name for name in usual if name != "eps")
    if row["optimizer"] not in ("iso", "isoadam"):
        setting |= dict.fromkeys(name for name in _SETTING if name.startswith("iso_"))
    if (row["rate_rule"], row["eps_rule"]) == ("global", "same"):
        setting["base_width"] = None
    return setting | {"rule": chosen.rule, "unusual_eps": None if "eps" in usual else row["eps"]}


def _distance(asked: Setting, setting: Setting, without: str = "") -> float:
    """Returns the weighted sum of the octaves between two settings' fields that both have."""
    apart = 0.0
    for name, weight in NEAR.items():
        ours, theirs = asked[name], setting[name]
        if name != without and ours != theirs and ours is not None and theirs is not None:
            apart += weight * abs(_octave(name, ours) - _octave(name, theirs))
    return round(apart, 9)


def _octave(name: str, value: float) -> float:
    return math.log2(max(value, _LEAST.get(name, 0.0))) - (value == 0)


def _values(setting: Setting, names: Iterable[str]) -> tuple[Any, ...]:
    return tuple(setting[name] for name in names)


def _line_name(setting: Setting, line: str) -> str:
    """Returns what tells a line from others, in words."""
    if line == "width":
        return str(setting["width"])
    layered = line == "variant" and setting["eps_rule"] == "per_layer"
    name = choice("optimizer", setting["optimizer"])
    return f"{name}, {choice('eps_rule', 'per_layer')}" if layered else name
