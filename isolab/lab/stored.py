"""The stored runs nearest to a setting, found fast enough to follow a slider.

What a run *is* (optimizer, parameterization, corpus, dtypes and so on) must be as asked; in how
large it is (width, rate, eps, steps and so on) the nearest stored one is taken, and how far it lies
from what was asked is told.  Seeds are gathered.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from isolab.analysis.seeds import require_columns
from isolab.lab.questions import LINE_FIELDS, Line
from isolab.lab.words import CHOICES, choice, difference, label, plural
from isolab.optimizers.catalog import entry
from isolab.training.config import RunConfig, with_later_fields

NEAR = {
    "width": 1.0, "learning_rate": 1.0, "steps": 1.5, "batch_size": 1.5, "context": 2.0,
    "depth": 2.0, "base_width": 0.5, "eps": 0.3, "loss_scale": 0.2, "warmup_steps": 0.1,
}  # fmt: skip
"""Fields in which a near run will do, with what a factor of two weighs."""
_SETTING = [f.name for f in fields(RunConfig) if f.name not in ("seed", "evaluate_every", "remat")]
_EXACT = [name for name in _SETTING if name not in NEAR]
_TAKEN = ["seed", "final_validation_loss", "diverged", "curve_step", "curve_validation_loss"]
_LEAST = {"eps": 1e-24, "warmup_steps": 1.0}  # 0 lies an octave below
_SHORT = 3  # a line of fewer points is chosen only ...
_PENALTY = 3.0  # ... before one that is so much further away

Setting = Mapping[str, Any]
Curve = tuple[tuple[int, ...], tuple[float, ...]]  # steps and validation losses


@dataclass(frozen=True)
class Cell:
    """The stored runs of one setting."""

    setting: Setting  # every field but those that seeds share; None for what plays no part
    losses: dict[int, float] = field(compare=False)  # final, by seed, nats/token; inf: diverged
    curves: dict[int, Curve] = field(compare=False)  # by seed

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
        counts = Counter(steps for steps, _ in self.curves.values())
        steps = max(counts, key=lambda steps: (counts[steps], len(steps)))
        losses = [losses for at, losses in self.curves.values() if at == steps]
        means = np.ma.masked_invalid(losses).mean(0)
        return steps, [float(mean) for mean in np.ma.filled(means, math.nan)]


class StoredLine(NamedTuple):
    """Stored settings that differ in one field, which is on a chart's axis."""

    name: str  # what tells it from other lines, in words
    value: Any  # the same as it is stored: of the first field of the question's line
    setting: Setting  # what its cells share
    cells: tuple[Cell, ...]  # ascending in that field; one cell where it does not apply


class Nearest(NamedTuple):
    """What is stored near a setting."""

    cell: Cell | None
    line: StoredLine | None
    others: tuple[StoredLine, ...]  # what differs from the line only in what lines differ in


class Stored:
    """Stored runs, arranged for one question.

    Args:
        runs: a row per run, with the columns of :func:`isolab.run`; more rows of one setting and
            seed than one: the first counts.
        x: the field along a line, "learning_rate" or "eps".
        line: what tells lines apart, a key of :data:`~isolab.lab.questions.LINE_FIELDS`.

    Raises:
        ValueError: missing columns.
    """

    def __init__(self, runs: pl.DataFrame, x: str = "learning_rate", line: Line = "width") -> None:
        self.x, self.line = x, line
        self._runs = runs
        free = LINE_FIELDS[line]
        self._kind = [name for name in _EXACT if name not in free]
        if "optimizer" in free:  # how IsoAdam works is nothing that Adam could share
            self._kind = [name for name in self._kind if not name.startswith("iso_")]
        self._kind += ["rule"] if line == "variant" else []
        self._size = [name for name in NEAR if name not in (*free, x, "eps")]
        self._size += ["unusual_eps"] if x != "eps" else []
        self._alike: dict[tuple[Any, ...], pl.DataFrame] = {}
        self._comparable: dict[tuple[Any, ...], pl.DataFrame] = {}
        if not runs.is_empty():
            cells = _cells(runs, x)
            self._alike = cells.partition_by(_EXACT, as_dict=True)
            self._comparable = cells.partition_by(self._kind, as_dict=True)

    def joined(self, runs: pl.DataFrame) -> Stored:
        """Returns these runs and more, as of a store that was added to."""
        frames = [runs] if self._runs.is_empty() else [self._runs, runs]
        return Stored(pl.concat(frames, how="diagonal_relaxed"), self.x, self.line)

    def nearest(self, config: RunConfig) -> Nearest:
        """Returns what is stored near a setting."""
        asked = _asked(config)
        alike = self._alike.get(tuple(asked[name] for name in _EXACT))
        comparable = self._comparable.get(tuple(asked[name] for name in self._kind))
        if comparable is None:
            return Nearest(None, None, ())
        line, cell = None, None
        if alike is not None:
            line = self._nearest_line(alike, asked)
            order = _distance(asked).round(9), pl.col("line") != line["line"]
            cell = _cell(alike.sort(order, maintain_order=True).row(0, named=True))
        centre = line or self._nearest_line(comparable, asked)
        same_size = comparable.filter(_equal(self._size, centre))
        lines = {
            rows["line"][0]: self._line(rows)
            for rows in same_size.partition_by("line", maintain_order=True)
        }
        chosen = lines.pop(line["line"]) if line is not None else None
        names = {each.name: each for each in lines.values()}
        names.pop(chosen.name if chosen else "", None)
        return Nearest(cell, chosen, tuple(sorted(names.values(), key=lambda each: each.value)))

    def _nearest_line(self, cells: pl.DataFrame, asked: Setting) -> Setting:
        """Returns a cell of the nearest line; of two, the one with more points."""
        short = (pl.col("points") < _SHORT) & pl.col(self.x).is_not_null()
        far = (_distance(asked, self.x) + _PENALTY * short).round(9)
        return cells.sort(far, -pl.col("points").cast(pl.Int64), maintain_order=True).row(
            0, named=True
        )

    def _line(self, rows: pl.DataFrame) -> StoredLine:
        cells = tuple(_cell(row) for row in rows.sort(self.x).iter_rows(named=True))
        setting = cells[0].setting
        value = setting[LINE_FIELDS[self.line][0]]
        return StoredLine(line_name(setting, self.line), value, setting, cells)


def line_name(setting: Setting, line: Line) -> str:
    """Returns what tells a line from others, in words.

    Example:
        >>> line_name({"optimizer": "adam", "eps_rule": "per_layer"}, "variant")
        'Adam, eps per layer'
    """
    if line == "width":
        return str(setting["width"])
    name = choice("optimizer", setting["optimizer"])
    layered = line == "variant" and setting["eps_rule"] == "per_layer"
    return f"{name}, {choice('eps_rule', 'per_layer')}" if layered else name


def differences(config: RunConfig, setting: Setting, without: str = "") -> dict[str, str]:
    """Returns in what a stored setting is not as asked, in words, by field.

    Args:
        config: what was asked.
        setting: what is stored.
        without: a field to leave out.

    Example:
        >>> asked = RunConfig(width=96)
        >>> differences(asked, RunConfig(width=64).row())
        {'width': 'width 64 instead of 96 (1.5x)'}
    """
    asked, found = _asked(config), {}
    for name in NEAR:
        ours, theirs = asked[name], setting[name]
        if name == without or ours is None or theirs is None or ours == theirs:
            continue
        scaled = name == "warmup_steps" and ours * setting["steps"] == theirs * asked["steps"]
        if not scaled:
            found[name] = difference(name, ours, theirs)
    return found


def in_words(config: RunConfig, nearest: Nearest, x: str) -> str:
    """Returns which stored runs are shown, and how far they are from what was asked."""
    cell, line = nearest.cell, nearest.line
    if cell is None:
        names = ", ".join(other.name for other in nearest.others)
        also = f" Faint lines at the right: {names}." if names else ""
        optimizer = choice("optimizer", config.optimizer)
        return f"Nothing is stored for {optimizer} with these choices: Train makes it.{also}"
    away, asked = differences(config, cell.setting), _asked(config)
    same = " and ".join(
        f"{label(name)} {choice(name, asked[name])}"
        for name in ("width", x)
        if name not in away and asked[name] is not None
    )
    parts = [*away.values(), f"{same} as asked" if same else ""]
    found = ", ".join(filter(None, parts)) if away else f"just what was asked, {same}"
    seeds = plural(len(cell.losses), "seed")
    if cell.diverged:
        seeds += f", {'all' if not cell.finite else cell.diverged} diverged"
    else:
        seeds += f", final loss {cell.mean:.3f}"
    text = f"Stored (dashed): {found}; {seeds}."
    if line is not None and cell not in line.cells:
        other = ", ".join(differences(config, line.setting, x).values())
        text += f" Line at the right: {other or 'as asked'}."
    return text


def _cells(runs: pl.DataFrame, x: str) -> pl.DataFrame:
    """Returns a row per setting with lists of its seeds, and the line along x that it is on."""
    whole = with_later_fields(runs)
    require_columns(whole, [*_SETTING, *_TAKEN])
    loss = pl.col("final_validation_loss")
    lost = pl.col("diverged") | ~loss.is_finite().fill_null(False)
    cells = (
        _comparable(_under_every_rule(whole.select(*_SETTING, *_TAKEN)))
        .with_columns(pl.when(lost).then(math.inf).otherwise(loss).alias("final_validation_loss"))
        .unique([*_SETTING, "seed"], keep="first", maintain_order=True)
        .group_by(_SETTING, maintain_order=True)
        .agg(*_TAKEN, pl.exclude(*_SETTING, *_TAKEN).first())
        .with_row_index("cell")
    )
    along = [pl.col(name) for name in _SETTING if name != x]
    line = pl.col("cell").first().over(*along, pl.col(x).is_null())
    return cells.with_columns(line=line).with_columns(points=pl.len().over("line"))


def _under_every_rule(runs: pl.DataFrame) -> pl.DataFrame:
    """Returns the runs, those at the base width under each rule, as all are one there."""
    at_base = pl.col("width") == pl.col("base_width")
    layered = [name for name in runs["optimizer"].unique() if entry(name).takes_eps_by_parameter]
    copies = [
        runs.filter(at_base, (pl.lit(eps_rule) == "same") | pl.col("optimizer").is_in(layered))
        .with_columns(rate_rule=pl.lit(rate_rule), eps_rule=pl.lit(eps_rule))
        for rate_rule in CHOICES["rate_rule"]
        for eps_rule in CHOICES["eps_rule"]
    ]  # fmt: skip
    return pl.concat([runs.filter(~at_base), *copies])


def _comparable(runs: pl.DataFrame) -> pl.DataFrame:
    """Returns settings with null for what plays no part, and the logarithms of their sizes."""
    entries = {name: entry(name) for name in runs["optimizer"].unique()}
    rules = {name: each.rule for name, each in entries.items()}
    optimizer = pl.col("optimizer")

    def unusual(name: str) -> pl.Expr:
        value = pl.col(name).cast(pl.Float64)
        defaults = {key: each.defaults.get(name) for key, each in entries.items()}
        usual = optimizer.replace_strict(defaults, return_dtype=pl.Float64)
        return pl.when(value != usual).then(value)

    def octaves(name: str) -> pl.Expr:
        value = pl.col(name).cast(pl.Float64)
        return value.clip(_LEAST.get(name, 0.0)).log(2) - (value == 0).cast(pl.Float64)

    layered = (pl.col("rate_rule") != "global") | (pl.col("eps_rule") != "same")
    of_iso = pl.col([name for name in _SETTING if name.startswith("iso_")])
    return runs.with_columns(
        *(unusual(name).alias(name) for name in ("b1", "b2", "weight_decay")),
        pl.when(optimizer.is_in(["iso", "isoadam"])).then(of_iso),
        pl.when(layered).then(pl.col("base_width")).alias("base_width"),
        unusual_eps=unusual("eps"),
        rule=optimizer.replace_strict(rules),
    ).with_columns(octaves(name).alias(f"log2_{name}") for name in NEAR)


@functools.lru_cache(maxsize=8)
def _asked(config: RunConfig) -> dict[str, Any]:
    return _comparable(pl.DataFrame([config.row()])).row(0, named=True)


def _distance(asked: Setting, without: str = "") -> pl.Expr:
    """Returns the weighted sum of the fields' factors, as octaves, where they apply to both."""
    terms = [
        weight * (pl.col(f"log2_{name}") - asked[f"log2_{name}"]).abs()
        for name, weight in NEAR.items()
        if name != without and asked[name] is not None
    ]
    return pl.sum_horizontal(terms)


def _equal(names: Iterable[str], setting: Setting) -> list[pl.Expr]:
    return [
        pl.col(name).is_null() if setting[name] is None else pl.col(name) == setting[name]
        for name in names
    ]


def _cell(row: Setting) -> Cell:
    seeds = row["seed"]
    curves = [
        (tuple(steps), tuple(math.nan if loss is None else loss for loss in losses))
        for steps, losses in zip(row["curve_step"], row["curve_validation_loss"], strict=True)
    ]
    return Cell(
        {name: row[name] for name in _SETTING},
        dict(zip(seeds, row["final_validation_loss"], strict=True)),
        dict(zip(seeds, curves, strict=True)),
    )
