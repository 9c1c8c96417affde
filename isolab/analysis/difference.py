"""Each group's loss less its reference's, paired over seeds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from isolab.analysis.groups import ends, joined, told
from isolab.analysis.seeds import Array
from isolab.analysis.width_group import WidthGroup


@dataclass(frozen=True)
class Level:
    """A group's loss at a width, or at infinite width.

    rows: (rows,) nats/token, of the seed average and each resample, +inf where diverged; None where
    there is none; widths: it rests on; note, reason: as in :mod:`isolab.analysis.groups`, or "".
    """

    rows: Array | None
    widths: Sequence[float]
    note: str
    reason: str

    def columns(self, group: WidthGroup, name: str, floor: float = -math.inf) -> dict[str, float]:
        """Returns the level and its interval as columns; a group that diverged is +inf for sure."""
        if self.rows is None:
            return {}
        if np.isinf(self.rows[0]):
            return dict.fromkeys(ends(name), math.inf)
        return group.columns(name, self.rows, floor=floor)


def differences(
    groups: Sequence[WidthGroup],
    levels: Sequence[Level],
    against: Mapping[str, Any],
    names: tuple[str, str],
) -> Iterator[dict[str, Any]]:
    """Returns a row per group that is not a reference: the difference of two levels.

    Args:
        groups, levels: one level a group.
        against: values of some columns of the groups' names; a group's reference is the one that
            has these and its own values of the others.
        names: of the columns of the difference (with its interval) and of the level; the
            reference's level is ``reference_`` and that.

    Raises:
        ValueError: for a column or values in ``against`` that no group has, or a reference with
            other seeds than the group's.
    """
    _check(groups, against)
    level_of = {id(group): level for group, level in zip(groups, levels, strict=True)}
    for group in groups:
        wanted = {**group.name, **against}
        if wanted == group.name:
            continue
        reference = next((its for its in groups if its.name == wanted), None)
        if reference is None:
            yield group.name | told([f"no reference: there is no group {wanted}"])
        elif reference.seeds != group.seeds:
            raise ValueError(
                f"seeds must be the same on both sides: {group.name} has {list(group.seeds)}, "
                f"{reference.name} has {list(reference.seeds)}"
            )
        else:
            levels_of_both = level_of[id(group)], level_of[id(reference)]
            yield group.name | _difference(group, *levels_of_both, *names)


def _check(groups: Sequence[WidthGroup], against: Mapping[str, Any]) -> None:
    columns = list(groups[0].name)
    if not against or not set(against) <= set(columns):
        raise ValueError(f"against={against} must give values of some of the columns {columns}")
    if not any(against.items() <= its.name.items() for its in groups):
        known = list(dict.fromkeys(str({c: g.name[c] for c in against}) for g in groups))
        raise ValueError(f"no group has {against}; there are {', '.join(known)}")


def _difference(
    group: WidthGroup, own: Level, other: Level, name: str, level: str
) -> dict[str, Any]:
    apart = f"widths differ: {own.widths} against {other.widths}"
    apart = apart if own.widths != other.widths else ""
    note, reason = (f"reference: {text}" if text else "" for text in (other.note, other.reason))
    row: dict[str, Any] = told([own.reason, reason, apart])
    row["note"] = joined([own.note, note, apart])
    if own.rows is not None:
        row[level] = own.rows[0]
    if other.rows is not None:
        row[f"reference_{level}"] = other.rows[0]
    if own.rows is None or other.rows is None or np.isinf(other.rows[0]):
        return row
    with np.errstate(invalid="ignore"):  # resamples in which both diverged
        rows = own.rows - other.rows
    return row | Level(rows, own.widths, "", "").columns(group, name)
