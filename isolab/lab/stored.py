"""The stored runs nearest to a setting, found fast enough to follow a slider.

What a run *is* (optimizer, parameterization, corpus, dtypes and so on) must be as asked; in how
large it is (width, rate, eps, steps and so on) the nearest stored one is taken, and how far it lies
from what was asked is told.  Seeds are gathered.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from isolab.analysis.seeds import require_columns
from isolab.lab.questions import LINE_FIELDS, Line
from isolab.lab.words import apart, choice, plural
from isolab.optimizers.catalog import entry
from isolab.training.config import RunConfig, with_later_fields

NEAR = {
    "width": 1.0, "learning_rate": 1.0, "steps": 1.5, "batch_size": 1.5, "context": 2.0,
    "depth": 2.0, "base_width": 0.5, "eps": 0.3, "loss_scale": 0.2, "warmup_steps": 0.1,
}  # fmt: skip
"""Fields in which a near run will do, with what a factor of two weighs."""
_UNTOLD = ("seed", "evaluate_every", "remat")  # they change no number, or are gathered
_EXACT = tuple(f.name for f in fields(RunConfig) if f.name not in (*NEAR, *_UNTOLD))
_SHORT = 3  # a line of fewer points stands back ...
_BACK = 3.0  # ... behind one that is so much further away
_NO_EPS = 1e-24  # where eps = 0 lies among the others

Setting = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """The stored runs of one setting.

    Attributes:
        setting: every field but those that seeds share.
        losses: final validation loss by seed, nats/token; inf for a diverged run.
        curves: steps and validation losses by seed.
    """

    setting: Setting
    losses: dict[int, float]
    curves: dict[int, tuple[tuple[int, ...], tuple[float, ...]]]

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
        kinds: dict[tuple[int, ...], list[tuple[float, ...]]] = {}
        for steps, losses in self.curves.values():
            kinds.setdefault(steps, []).append(losses)
        steps, together = max(kinds.items(), key=lambda kind: (len(kind[1]), len(kind[0])))
        means = []
        for at in zip(*together, strict=True):
            good = [loss for loss in at if math.isfinite(loss)]
            means.append(float(np.mean(good)) if good else math.nan)
        return steps, means


class StoredLine(NamedTuple):
    """Stored settings that differ in one field, which is on a chart's axis.

    Attributes:
        name: what tells it from other lines, in words.
        value: the same as it is stored: of the first field of the question's line.
        setting: what its cells share.
        cells: ascending in that field; one cell with None where the field does not apply.
    """

    name: str
    value: Any
    setting: Setting
    cells: tuple[Cell, ...]


class Look(NamedTuple):
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

    Attributes:
        count: how many runs there are.
    """

    def __init__(self, runs: pl.DataFrame, x: str = "learning_rate", line: Line = "width") -> None:
        self.x, self.line = x, line
        self.count = len(runs)
        self._frame = runs
        self._cells = _gathered(runs)
        self._lines = self._arranged()
        ids: dict[tuple[Any, ...], int] = {}
        self._kinds = ids
        self._cell_kinds = _codes(ids, (cell.setting for cell in self._cells))
        self._line_kinds = _codes(ids, (line.setting for line in self._lines))
        self._kinds_beside = [self._kind_beside(line.setting) for line in self._lines]
        self._cell_places = _places(cell.setting for cell in self._cells)
        self._line_places = _places(line.setting for line in self._lines)

    def joined(self, runs: pl.DataFrame) -> Stored:
        """Returns these runs and more, as of a store that was added to."""
        frame = pl.concat([self._frame, runs], how="diagonal_relaxed") if self.count else runs
        return Stored(frame, self.x, self.line)

    def look(self, config: RunConfig) -> Look:
        """Returns what is stored near a setting."""
        asked = _setting(config)
        kind = self._kinds.get(_kind(asked), -1)
        place = _places([asked])[0]
        line = self._nearest_line(self._line_kinds == kind, place)
        cell = self._nearest_cell(self._cell_kinds == kind, place, line)
        return Look(cell, line, self._beside(asked, place, line))

    def _nearest_cell(
        self, allowed: np.ndarray, place: np.ndarray, line: StoredLine | None
    ) -> Cell | None:
        (at,) = np.nonzero(allowed)
        if not len(at):
            return None
        far = _distances(self._cell_places[at], place)
        least = at[far <= far.min() + 1e-9]
        nearest = [self._cells[i] for i in least]
        on_line = [cell for cell in nearest if line is not None and cell in line.cells]
        first: Cell = (on_line or nearest)[0]
        return first

    def _nearest_line(self, allowed: np.ndarray, place: np.ndarray) -> StoredLine | None:
        (at,) = np.nonzero(allowed)
        if not len(at):
            return None
        short = [len(self._lines[i].cells) < _SHORT and not _flat(self._lines[i], self.x)
                 for i in at]  # fmt: skip
        far = _distances(self._line_places[at], place, self.x) + _BACK * np.array(short)
        best = min(range(len(at)), key=lambda i: (far[i], -len(self._lines[at[i]].cells)))
        nearest: StoredLine = self._lines[at[best]]
        return nearest

    def _beside(
        self, asked: Setting, place: np.ndarray, line: StoredLine | None
    ) -> tuple[StoredLine, ...]:
        """Returns the lines that differ from the chosen one, or else the nearest, only in kind."""
        alike = self._kind_beside(asked)
        at = np.array([kind == alike for kind in self._kinds_beside], bool)
        centre = line or self._nearest_line(at, place)
        if centre is None:
            return ()
        same = self._size_beside(centre.setting)
        found = [
            self._lines[i]
            for i in np.flatnonzero(at)
            if self._lines[i] is not line and self._size_beside(self._lines[i].setting) == same
        ]
        once = {other.name: other for other in found if line is None or other.name != line.name}
        return tuple(sorted(once.values(), key=lambda other: _order(other.value)))

    def _kind_beside(self, setting: Setting) -> tuple[Any, ...]:
        free = LINE_FIELDS[self.line]
        names = [name for name in _EXACT if name not in free]
        rule = entry(setting["optimizer"]).rule if self.line == "variant" else ""
        if "optimizer" in free:  # how IsoAdam works is nothing that Adam could share
            names = [name for name in names if not name.startswith("iso_")]
        return (*(setting[name] for name in names), rule)

    def _size_beside(self, setting: Setting) -> tuple[Any, ...]:
        free = (*LINE_FIELDS[self.line], self.x, "eps")
        usual = entry(setting["optimizer"]).defaults.get("eps")
        eps = setting["eps"] if self.x != "eps" and setting["eps"] != usual else None
        return (*(setting[name] for name in NEAR if name not in free), eps)

    def _arranged(self) -> list[StoredLine]:
        groups: dict[tuple[Any, ...], list[Cell]] = {}
        for cell in self._cells:
            names = [name for name in (*_EXACT, *NEAR) if name != self.x]
            flat = cell.setting[self.x] is None
            groups.setdefault((*(cell.setting[n] for n in names), flat), []).append(cell)
        lines = []
        for cells in groups.values():
            setting = cells[0].setting
            along = sorted(cells, key=lambda cell: cell.setting[self.x] or 0.0)
            value = setting[LINE_FIELDS[self.line][0]]
            lines.append(StoredLine(line_name(setting, self.line), value, setting, tuple(along)))
        return lines


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


def distance(config: RunConfig, setting: Setting, without: str = "") -> list[str]:
    """Returns in what a stored setting is not as asked, in words.

    Args:
        config: what was asked.
        setting: what is stored.
        without: a field to leave out.

    Example:
        >>> asked = RunConfig(width=96)
        >>> distance(asked, RunConfig(width=64).row())
        ['width 64 instead of 96 (1.5x)']
    """
    asked = _setting(config)
    said = []
    for name in NEAR:
        ours, theirs = asked[name], setting[name]
        if name == without or ours is None or theirs is None or ours == theirs:
            continue
        scaled = name == "warmup_steps" and ours * setting["steps"] == theirs * asked["steps"]
        if not scaled:
            said.append(apart(name, ours, theirs))
    return said


def in_words(config: RunConfig, look: Look, x: str) -> str:
    """Returns which stored runs are shown, and how far they are from what was asked."""
    who = f"{choice('optimizer', config.optimizer)} with these choices"
    if look.cell is None:
        faint = ", ".join(line.name for line in look.others)
        also = f" Faint lines at the right: {faint}." if faint else ""
        return f"Nothing is stored for {who}: Train makes it.{also}"
    cell = look.cell
    away = distance(config, cell.setting)
    size = [f"width {config.width}"] if not any(s.startswith("width") for s in away) else []
    value = _setting(config)[x]
    label = {"learning_rate": "rate", "eps": "eps"}[x]
    if value is not None and not any(s.startswith(f"{label} ") for s in away):
        size.append(f"{label} {choice(x, value)}")
    kept = f"{' and '.join(size)} as asked" if size else ""
    seeds = plural(len(cell.losses), "seed")
    if cell.diverged:
        all_of = "all" if cell.diverged == len(cell.losses) else str(cell.diverged)
        seeds += f", {all_of} diverged"
    else:
        seeds += f", final loss {cell.mean:.3f}"
    parts = [*away, kept] if away else [f"just what was asked, {' and '.join(size)}"]
    said = f"Stored (dashed): {', '.join(part for part in parts if part)}; {seeds}."
    if look.line is not None and cell not in look.line.cells:
        other = distance(config, look.line.setting, x)
        said += f" Line at the right: {', '.join(other) or 'as asked'}."
    return said


def _gathered(runs: pl.DataFrame) -> list[Cell]:
    """Returns a cell per setting, those that train alike under several names under each."""
    if runs.is_empty():
        return []
    names = [f.name for f in fields(RunConfig) if f.name not in _UNTOLD]
    taken = ["seed", "final_validation_loss", "diverged", "curve_step", "curve_validation_loss"]
    whole = with_later_fields(runs)
    require_columns(whole, [*names, *taken])
    grouped = whole.group_by(names, maintain_order=True).agg(pl.col(name) for name in taken)
    cells: dict[tuple[Any, ...], Cell] = {}
    for row in grouped.iter_rows(named=True):
        raw = {name: row[name] for name in names}
        found = zip(*(row[name] for name in taken), strict=True)
        of_seeds = [
            (seed, math.inf if lost or loss is None or not math.isfinite(loss) else loss,
             (tuple(steps), tuple(math.nan if v is None else v for v in curve)))
            for seed, loss, lost, steps, curve in found
        ]  # fmt: skip
        for setting in _same_training(raw):
            key = tuple(setting.values())
            cell = cells.setdefault(key, Cell(setting, {}, {}))
            for seed, loss, curve in of_seeds:
                cell.losses.setdefault(seed, loss)
                cell.curves.setdefault(seed, curve)
    return list(cells.values())


def _same_training(raw: Setting) -> Iterable[dict[str, Any]]:
    """Returns the settings under which a run trains as it did: at the base width rules are one."""
    if raw["width"] != raw["base_width"]:
        yield _plain(raw)
        return
    layered = entry(raw["optimizer"]).takes_eps_by_parameter
    for rate_rule in ("global", "full", "none"):
        for eps_rule in ("same", "per_layer") if layered else ("same",):
            yield _plain({**raw, "rate_rule": rate_rule, "eps_rule": eps_rule})


def _setting(config: RunConfig) -> dict[str, Any]:
    row = asdict(config) | {"eps": config.hyperparameters.get("eps")}
    return _plain({name: row[name] for name in row if name not in _UNTOLD})


def _plain(raw: Setting) -> dict[str, Any]:
    """Returns a setting with None for what is at the optimizer's default or plays no part."""
    setting = dict(raw)
    defaults = entry(setting["optimizer"]).defaults
    for name in ("b1", "b2", "weight_decay"):
        if setting[name] == defaults.get(name):
            setting[name] = None
    if "eps" not in defaults:
        setting["eps"] = None
    elif setting["eps"] is None:
        setting["eps"] = defaults["eps"]
    if setting["optimizer"] not in ("iso", "isoadam"):
        setting |= {name: None for name in setting if name.startswith("iso_")}
    if setting["rate_rule"] == "global" and setting["eps_rule"] == "same":
        setting["base_width"] = None
    return setting


def _kind(setting: Setting) -> tuple[Any, ...]:
    return tuple(setting[name] for name in _EXACT)


def _codes(ids: dict[tuple[Any, ...], int], settings: Iterable[Setting]) -> np.ndarray:
    return np.array([ids.setdefault(_kind(setting), len(ids)) for setting in settings], int)


def _places(settings: Iterable[Setting]) -> np.ndarray:
    """Returns the logarithms of all fields of :data:`NEAR`, NaN where one does not apply."""

    def place(name: str, value: Any) -> float:
        if value is None:
            return math.nan
        least = _NO_EPS if name == "eps" else 1.0 if name == "warmup_steps" else 0.0
        zero = name == "eps" and value == 0  # beside the tiniest, and not the same
        return math.log2(max(value, least)) - zero

    rows = [[place(name, setting[name]) for name in NEAR] for setting in settings]
    return np.array(rows, float).reshape(-1, len(NEAR))


def _distances(places: np.ndarray, place: np.ndarray, without: str = "") -> np.ndarray:
    weights = np.array([0.0 if name == without else weight for name, weight in NEAR.items()])
    return np.asarray(np.nansum(weights * np.abs(places - place), axis=1))


def _flat(line: StoredLine, x: str) -> bool:
    return line.cells[0].setting[x] is None


def _order(value: Any) -> tuple[float, str]:
    return (value, "") if isinstance(value, int) else (0.0, str(value))
