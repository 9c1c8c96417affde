"""The stored runs nearest to a setting, found fast enough to follow a slider.

What a run *is* (optimizer, parameterization, corpus, dtypes and so on) must be as asked; in how
large it is (width, rate, eps, steps and so on) the nearest stored one is taken, and how far it lies
from what was asked is told.  Seeds are gathered.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

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
_TAKEN = ["seed", "final_validation_loss", "diverged", "curve_step", "curve_validation_loss"]
_LEAST = {"eps": 1e-24, "warmup_steps": 1.0}  # 0 lies an octave below
_SHORT = 3  # a line of fewer points is chosen only ...
_PENALTY = 3.0  # ... before one that is so much further away

Setting = Mapping[str, Any]
Octaves = NDArray[np.float64]


@dataclass(frozen=True)
class Cell:
    """The stored runs of one setting."""

    setting: Setting  # every field but those that seeds share; None for what plays no part
    losses: dict[int, float] = field(compare=False)  # final, by seed, nats/token; inf: diverged
    curves: list[tuple[list[int], list[float]]] = field(compare=False)  # steps, validation losses

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
        size = [name for name in NEAR if name not in (*free, x, "eps")]
        size += ["unusual_eps"] if x != "eps" else []
        self._alike: dict[tuple[Any, ...], list[int]] = {}
        self._comparable: dict[tuple[Any, ...], list[int]] = {}
        if runs.is_empty():
            return
        cells = _cells(runs, x)
        self._alike = _groups(cells, _EXACT, "cell")
        self._comparable = _groups(cells, self._kind, "cell")
        self._cells = [_cell(row) for row in cells.iter_rows(named=True)]
        self._octaves = cells.select(f"log2_{name}" for name in NEAR).to_numpy()  # NaN: no part
        self._line_of, self._points = cells["line"].to_numpy(), cells["points"].to_numpy()
        self._short = (self._points < _SHORT) & cells[x].is_not_null().to_numpy()
        lines = _groups(cells.sort(x, maintain_order=True), ["line"], "cell").items()
        self._lines = {number: self._stored_line(places) for (number,), places in lines}
        groups = _groups(cells.unique("line", maintain_order=True), [*self._kind, *size], "line")
        self._comparable_lines = {number: group for group in groups.values() for number in group}

    def joined(self, *more: pl.DataFrame) -> Stored:
        """Returns these runs and more, as of a store that was added to."""
        frames = [frame for frame in (self._runs, *more) if not frame.is_empty()]
        return Stored(
            pl.concat([*frames, pl.DataFrame()], how="diagonal_relaxed"), self.x, self.line
        )

    def nearest(self, config: RunConfig) -> Nearest:
        """Returns what is stored near a setting."""
        asked = _asked(config)
        alike = self._alike.get(tuple(asked[name] for name in _EXACT))
        comparable = self._comparable.get(tuple(asked[name] for name in self._kind))
        if comparable is None:
            return Nearest()
        octaves = np.array([asked[f"log2_{name}"] for name in NEAR], float)
        # a cell of the nearest line; of two, of the one with more points
        places = comparable if alike is None else alike
        far = self._distance(places, octaves, self.x) + _PENALTY * self._short[places]
        number = self._line_of[places[np.lexsort((-self._points[places], far))[0]]]
        line, cell = None, None
        if alike is not None:
            line, away = self._lines[number], self._distance(alike, octaves)
            cell = self._cells[alike[np.lexsort((self._line_of[alike] != number, away))[0]]]
        lines = [self._lines[other] for other in self._comparable_lines[number]]
        others = {each.name: each for each in lines}
        others.pop(line.name if line else "", None)
        return Nearest(cell, line, tuple(sorted(others.values(), key=lambda each: each.value)))

    def _distance(self, places: list[int], octaves: Octaves, without: str = "") -> Octaves:
        """Returns the weighted sum of the fields' octaves, where they apply to both."""
        weights = np.array([0.0 if name == without else NEAR[name] for name in NEAR])
        apart: Octaves = weights * abs(self._octaves[places] - octaves)
        return np.asarray(np.nansum(apart, axis=1).round(9))

    def _stored_line(self, places: list[int]) -> StoredLine:
        cells = tuple(self._cells[place] for place in places)
        setting = cells[0].setting
        value = setting[LINE_FIELDS[self.line][0]]
        name = str(value) if self.line == "width" else choice("optimizer", value)
        if self.line == "variant" and setting["eps_rule"] == "per_layer":
            name += f", {choice('eps_rule', 'per_layer')}"
        return StoredLine(name, value, cells)


def differences(config: RunConfig, setting: Setting, without: str = "") -> dict[str, str]:
    """Returns in what a stored setting is not as asked, in words, by field but for ``without``.

    Example:
        >>> differences(RunConfig(width=96), RunConfig(width=64).row())
        {'width': 'width 64 instead of 96 (1.5x)'}
    """
    asked, found = _asked(config), {}
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
    away, asked = differences(config, cell.setting), _asked(config)
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
    return cells.with_columns(line=line).with_columns(points=pl.len().over("line").cast(pl.Int64))


def _under_every_rule(runs: pl.DataFrame) -> pl.DataFrame:
    """Returns the runs, those at the base width once for each rule: there all rules are one."""
    at_base = pl.col("width") == pl.col("base_width")
    layered = [name for name in runs["optimizer"].unique() if entry(name).takes_eps_by_parameter]
    for rule, applies in (
        ("rate_rule", at_base),
        ("eps_rule", at_base & pl.col("optimizer").is_in(layered)),
    ):
        every = pl.when(applies).then(pl.lit(list(CHOICES[rule])))
        runs = runs.with_columns(every.otherwise(pl.concat_list(rule)).alias(rule)).explode(rule)
    return runs


def _comparable(runs: pl.DataFrame) -> pl.DataFrame:
    """Returns settings with null for what plays no part, and the logarithms of their sizes."""
    entries = {name: entry(name) for name in runs["optimizer"].unique()}
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
        rule=optimizer.replace_strict({name: each.rule for name, each in entries.items()}),
    ).with_columns(octaves(name).alias(f"log2_{name}") for name in NEAR)


@functools.lru_cache(maxsize=8)
def _asked(config: RunConfig) -> dict[str, Any]:
    return _comparable(pl.DataFrame([config.row()])).row(0, named=True)


def _groups(cells: pl.DataFrame, names: list[str], column: str) -> dict[tuple[Any, ...], list[int]]:
    """Returns a column's values where these fields are equal, by the fields' values."""
    groups = cells.group_by(names, maintain_order=True).agg(column)
    return {tuple(key): values for *key, values in groups.iter_rows()}


def _cell(row: Setting) -> Cell:
    setting = {name: row[name] for name in _SETTING}
    losses = dict(zip(row["seed"], row["final_validation_loss"], strict=True))
    curves = zip(row["curve_step"], row["curve_validation_loss"], strict=True)
    return Cell(setting, losses, list(curves))
