"""What a chapter is: settings, sweeps, measurements and claims, of the reference or of a reader.

One function makes the claims from the evidence, whoever's it is: the runs that are part of the
repository (``data/reference``), or those that a reader trains with settings of their own.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import polars as pl

from isolab.analysis.claim import Claim, Estimate
from isolab.results.cache import cached
from isolab.results.provenance import PACKAGE
from isolab.results.store import Store
from isolab.sweeps.batch import rows_of
from isolab.sweeps.plan import plan
from isolab.sweeps.sweep import Sweep, run
from isolab.training.config import RunConfig, with_later_fields

REFERENCE = PACKAGE.parent / "data" / "reference"
Origin = Literal["reference", "yours"]
Measurement = functools.partial[pl.DataFrame]
"""A function that measures, with its arguments."""


@dataclass(frozen=True)
class Question:
    """A question that a lab is set to: its heading, and a sentence on what to try.

    front, more: fields whose controls are in front, and behind "More settings"; start: the first
    setting; x: the field on the right-hand chart's axis; line: what tells its lines apart.
    """

    title: str
    sentence: str
    front: tuple[str, ...]
    more: tuple[str, ...]
    start: RunConfig
    x: Literal["learning_rate", "eps"] = "learning_rate"
    line: Literal["optimizer", "width", "variant"] = "width"


def _nothing(_: Any) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Chapter:
    """A chapter: what it trains, measures, claims and asks.

    Attributes:
        presets: settings by preset: a frozen dataclass of plain values that checks itself.
        question: the lab's.
        sweeps, tables: the named sweeps and measurements of some settings; a reference table's name
            is its folder's.
        claims, numbers: the named claims that some evidence supports, and the tables of numbers
            that README and the notebook's prose quote.
        reference: the settings of the reference results; None where there are none.
        folder: of the reference runs, in ``data/reference``.
    """

    name: str
    presets: Mapping[str, Any]
    question: Question
    sweeps: Callable[[Any], dict[str, Sweep]] = _nothing
    tables: Callable[[Any], dict[str, Measurement]] = _nothing
    claims: Callable[[Evidence], dict[str, Claim]] = _nothing
    numbers: Callable[[Evidence], dict[str, pl.DataFrame]] = _nothing
    reference: Any = None
    folder: str = ""

    def settings(self, preset: str, **overrides: Any) -> Any:
        """Returns a preset's settings with the overrides that are not None.

        Raises:
            ValueError: an unknown preset or setting, an override whose kind is not the preset's, or
                what the settings refuse.
        """
        if not isinstance(preset, str) or preset not in self.presets:
            raise ValueError(f"preset is {preset!r}; allowed: {list(self.presets)}")
        usual = self.presets[preset]
        names = sorted(field.name for field in dataclasses.fields(usual))
        if unknown := [name for name in overrides if name not in names]:
            raise ValueError(f"unknown setting {unknown[0]!r}; allowed: {names}")
        given = {name: value for name, value in overrides.items() if value is not None}
        checked = {name: _checked(name, v, getattr(usual, name)) for name, v in given.items()}
        return dataclasses.replace(usual, **checked)

    def evidence(self) -> Evidence:
        """Returns the reference results as evidence."""
        return Evidence(self, self.reference, "reference")


@dataclass(frozen=True, eq=False)
class Evidence:
    """What claims are made from: the runs and measurements of one origin, at some settings."""

    chapter: Chapter
    settings: Any
    origin: Origin
    _found: dict[str, pl.DataFrame] = dataclasses.field(default_factory=dict, repr=False)

    @functools.cached_property
    def sweeps(self) -> dict[str, Sweep]:
        """The sweeps by name, without those that the settings leave empty."""
        return {name: s for name, s in self.chapter.sweeps(self.settings).items() if len(s)}

    @functools.cached_property
    def tables(self) -> dict[str, Measurement]:
        """The measurements by name; of the reference, those that are there."""
        tables = self.chapter.tables(self.settings)
        ours = self.origin == "yours"
        return {name: made for name, made in tables.items() if ours or (REFERENCE / name).is_dir()}

    @property
    def sweep(self) -> Sweep:
        """All runs, each once."""
        return Sweep.union(self.sweeps.values())

    @functools.cached_property
    def everything(self) -> pl.DataFrame:
        """A row per run of any sweep; a reader's are trained where they are not stored."""
        if self.origin == "reference":
            return load(self.chapter.folder)
        return run(self.sweep, processes=getattr(self.settings, "processes", None))

    def runs(self, name: str) -> pl.DataFrame:
        """Returns a sweep's runs, a row for each config that there is a run of, in its order."""
        if name not in self._found:
            runs = self.everything
            trained_on = dict(runs.select("corpus", "corpus_fingerprint").unique().iter_rows())
            configs = [config for config in self.sweeps[name] if config.corpus in trained_on]
            self._found[name] = rows_of(configs, runs, trained_on)
        return self._found[name]

    def table(self, name: str) -> pl.DataFrame:
        """Returns a measurement, from the disk where it was made before."""
        if self.origin == "reference":
            return load(name)
        measurement = self.tables[name]
        return cached(measurement.func, *measurement.args, **measurement.keywords)

    def counted(self) -> pl.DataFrame:
        """Returns one row: how many runs there are, of how many seeds, and their hours."""
        hours = (pl.col("step_seconds") * pl.col("steps")).sum() / 3600
        return self.everything.select(
            pl.len().alias("runs"), pl.col("seed").n_unique().alias("seeds"), hours.alias("hours")
        )


class Verdicts(dict[Origin, dict[str, Claim]]):
    """Claims by origin and name; a notebook shows all of them."""

    def _ipython_display_(self) -> None:
        from IPython.display import Markdown, display

        for origin, heading in (("reference", "From the reference"), ("yours", "From your runs")):
            if claims := self.get(origin):  # type: ignore[call-overload]  # both are origins
                told = [dataclasses.replace(claim, origin=origin) for claim in claims.values()]
                display(Markdown(f"**{heading}**"), *told)  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Opened:
    """A chapter in a reader's hands: the reference results, and runs at settings of their own.

    Attributes:
        own: the reader's evidence; nothing is trained before it is asked for.
        reference: the reference results, where the chapter has them.
    """

    own: Evidence
    reference: Evidence | None

    @property
    def settings(self) -> Any:
        """The reader's settings."""
        return self.own.settings

    @property
    def origins(self) -> list[Evidence]:
        """The reference results, if there are any, and the reader's."""
        return [self.own] if self.reference is None else [self.reference, self.own]

    def train(self) -> None:
        """Trains the reader's runs that are not stored yet."""
        _ = self.own.everything

    def each(self, function: Callable[[Evidence], pl.DataFrame]) -> pl.DataFrame:
        """Returns what a function makes of each origin's evidence, with a column ``origin``."""
        return _by_origin(self.origins, function)

    def runs(self, name: str) -> pl.DataFrame:
        """Returns the runs of a sweep, with a column ``origin``: "reference" or "yours".

        Raises:
            ValueError: a sweep that neither has.
        """
        return self._all("sweeps", name, lambda one: one.runs(name))

    def table(self, name: str) -> pl.DataFrame:
        """Returns a measurement, with ``origin``; raises as :meth:`runs`."""
        return self._all("tables", name, lambda one: one.table(name))

    def claims(self) -> Verdicts:
        """Returns the claims on the reference results, and on the reader's own."""
        return Verdicts({one.origin: one.chapter.claims(one) for one in self.origins})

    def _all(
        self, of: str, name: str, function: Callable[[Evidence], pl.DataFrame]
    ) -> pl.DataFrame:
        there = [one for one in self.origins if name in getattr(one, of)]
        if not there:
            known = sorted({name for one in self.origins for name in getattr(one, of)})
            raise ValueError(f"unknown name {name!r}; the chapter's {of} are {known}")
        return _by_origin(there, function)

    def __str__(self) -> str:
        parts = [f"{name} {len(plan(sweep).keys)}" for name, sweep in self.own.sweeps.items()]
        whole = len(plan(self.own.sweep).keys)
        lines = [f"{self.own.chapter.name}: {whole} runs ({', '.join(parts)})"]
        lines += [f"measurements: {', '.join(self.own.tables)}"] if self.own.tables else []
        return "\n".join(lines)


def _by_origin(
    evidence: Sequence[Evidence], function: Callable[[Evidence], pl.DataFrame]
) -> pl.DataFrame:
    frames = [function(one).with_columns(origin=pl.lit(one.origin)) for one in evidence]
    return pl.concat(frames, how="diagonal_relaxed")


@functools.cache
def load(name: str) -> pl.DataFrame:
    """Returns the reference runs of a folder, with the columns of :func:`isolab.run`, or a table.

    Raises:
        FileNotFoundError: an installed package without the repository's data.
    """
    place = REFERENCE / name
    if not any(place.glob("*.parquet")):
        raise FileNotFoundError(
            f"no reference results in {place}: they are part of the repository, not of the"
            " installed package; clone it, or train them with python -m isolab.chapters"
        )
    if (place / "table.parquet").exists():
        return pl.read_parquet(place / "table.parquet")
    return with_later_fields(Store(place).runs())


def claim_of(
    frame: pl.DataFrame, where: Mapping[str, str], name: str, question: str, **claim: Any
) -> Claim:
    """Makes a claim on the number ``name``, with its interval, of one row of an analysis.

    ``where`` has a value for each of as many columns as single the row out, and names of columns in
    braces in the question are replaced by the row's values; ``claim`` is as of :class:`Claim`.

    Raises:
        ValueError: no such row, or several.
    """
    found = frame.filter(**where)
    if len(found) != 1:
        there = frame.select(*where).unique().rows()
        raise ValueError(f"{len(found)} rows of {dict(where)}; needed: one. There are {there}")
    row = found.row(0, named=True)
    return Estimate.of(row, name).claim(question.format_map(row), **claim)


def _checked(name: str, value: Any, usual: Any) -> Any:
    """Returns an override as a setting holds it: a list as a tuple."""
    if not isinstance(usual, tuple):
        if type(value) is not int:
            raise ValueError(f"{name} is {value!r}; allowed: a whole number such as {usual}")
        return value
    kind = type(usual[0])
    if not (isinstance(value, list | tuple) and value and all(type(v) is kind for v in value)):
        raise ValueError(
            f"{name} is {value!r}; allowed: a list such as {list(usual)}"
            " (papermill passes lists by -y or -f)"
        )
    return tuple(value)
