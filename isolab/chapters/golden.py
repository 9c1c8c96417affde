"""Golden verdicts: every claim and quoted number of the chapters, from the reference runs alone.

``python -m isolab.chapters.golden`` writes them to ``data/reference/golden.json``, and README.md's
sections of results from it; with ``--check`` it says which sections are stale.  Nothing is trained:
seconds on one core.
"""

from __future__ import annotations

import json
import math
import textwrap
from pathlib import Path
from typing import Annotated, Any

import jinja2
import polars as pl
import typer

from isolab.analysis.groups import ends
from isolab.chapters import CHAPTERS
from isolab.results.provenance import PACKAGE

ROOT = PACKAGE.parent
GOLDEN = ROOT / "data" / "reference" / "golden.json"
README = ROOT / "README.md"


def compute() -> dict[str, Any]:
    """Returns claims and tables of every chapter as strict JSON: an infinite number is null."""
    found = {}
    for name, chapter in CHAPTERS.items():
        if chapter.reference is not None:
            evidence = chapter.evidence()
            claims = chapter.claims(evidence)
            tables = chapter.numbers(evidence) | {"runs": evidence.counted()}
            found[name] = {
                "claims": {key: claim.to_dict() for key, claim in claims.items()},
                "tables": {key: _columns(table) for key, table in tables.items()},
            }
    return found


def load() -> dict[str, Any]:
    """Returns the committed ``golden.json``."""
    found: dict[str, Any] = json.loads(GOLDEN.read_text(encoding="utf-8"))
    return found


def text(value: Any, depth: int = 0) -> str:
    """Returns ``golden.json``: objects are opened down to chapter, group, entry and field."""
    if depth == 4:
        return json.dumps(value)
    lines = (f"{json.dumps(key)}: {text(its, depth + 1)}" for key, its in value.items())
    indent = "\n" + " " * depth
    whole = "{" + indent + " " + f",{indent} ".join(lines) + indent + "}"
    return whole if depth else whole + "\n"


def sections(golden: dict[str, Any]) -> dict[str, str]:
    """Returns the text of every section of README.md, from ``results.md.j2``, by its name."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["wrap"] = lambda text: textwrap.fill(
        " ".join(text.split()), 105, break_long_words=False, break_on_hyphens=False
    )
    functions: tuple[Any, ...] = (
        column, number, cell, span, interval, claim, verdicts, hidden_gain, diverges_from, degraded,
        zip,
    )  # fmt: skip
    environment.globals |= {function.__name__: function for function in functions}
    found = environment.get_template("results.md.j2").make_module({"golden": golden})
    return {name: getattr(found, name)().strip() for name in ("chapters", *golden)}


def replaced(readme: str, texts: dict[str, str]) -> str:
    """Returns the README with its sections, between markers alone on their lines, written anew.

    Raises:
        ValueError: a section's markers are not there exactly once.
    """
    for name, text in texts.items():
        start, end = f"<!-- results: {name} -->\n", "\n<!-- end -->"
        before, *rest = readme.split(start)
        if len(rest) != 1 or end not in rest[0]:
            raise ValueError(f"README.md has {len(rest)} sections of results {name!r}; needed: one")
        after = rest[0].partition(end)[2]
        readme = f"{before}{start}\n{text}\n{end}{after}"
    return readme


def stale(readme: str, texts: dict[str, str]) -> list[str]:
    """Returns the names of sections that do not say what they should."""
    return [name for name, text in texts.items() if replaced(readme, {name: text}) != readme]


def column(chapter: dict[str, Any], table: str, name: str, **where: Any) -> list[Any]:
    """Returns a column of a table of ``golden.json``, of the rows with the given values."""
    columns = chapter["tables"][table]
    rows = range(len(columns[name]))
    return [columns[name][i] for i in rows if all(columns[k][i] == v for k, v in where.items())]


def number(chapter: dict[str, Any], table: str, name: str, **where: Any) -> float:
    """Returns the one cell of a column whose row has the given values; ValueError if not one."""
    found = column(chapter, table, name, **where)
    if len(found) != 1:
        raise ValueError(f"{len(found)} rows of {table} with {where}; needed: one")
    value: float = found[0]
    return value


def cell(chapter: dict[str, Any], table: str, name: str, digits: int, **where: Any) -> str:
    """Returns a number for a table's cell, with a space behind it; nothing where there is none."""
    found = column(chapter, table, name, **where)
    return "".join("diverged " if value is None else f"{value:.{digits}f} " for value in found)


def span(low: float | None, high: float | None, digits: int) -> str:
    """Returns an interval in words, such as "0.16 to 0.34" or "21 or more"; None is an open end."""
    if low is None:
        return "open" if high is None else f"{high:.{digits}f} or less"
    return f"{low:.{digits}f} or more" if high is None else f"{low:.{digits}f} to {high:.{digits}f}"


def interval(chapter: dict[str, Any], table: str, name: str, digits: int, **where: Any) -> str:
    """Returns a number of a table and, in brackets, its interval."""
    value, low, high = (number(chapter, table, its, **where) for its in ends(name))
    return f"{value:.{digits}f} ({span(low, high, digits)})"


def claim(chapter: dict[str, Any], name: str, digits: int, unit: str = "", more: str = "") -> str:
    """Returns a claim's number, its unit and, in brackets, its interval and what else to say."""
    its = chapter["claims"][name]
    if its["measured"] is None or its["interval"] is None:
        return f"no number ({its['reason']})"
    low, high = its["interval"]
    return f"{its['measured']:.{digits}f}{unit} ({span(low, high, digits)}{more})"


def verdicts(chapter: dict[str, Any], groups: list[tuple[str, dict[str, str]]]) -> str:
    """Returns all claims by their verdicts; each group has a beginning and its claims' words."""
    sentences = []
    for verdict in ("reproduced", "not reproduced", "inconclusive"):
        parts = []
        for lead, words in groups:
            its = [w for name, w in words.items() if chapter["claims"][name]["verdict"] == verdict]
            parts += [lead + (", " if lead else "; ").join(its)] if its else []
        sentences += [f"{verdict.capitalize()}: {'; '.join(parts)}"] if parts else []
    return ". ".join(sentences)


def hidden_gain(chapter: dict[str, Any], name: str, width: int) -> float:
    """Returns what hidden rates at 1/4 of the others are worth, in nats/byte."""
    usual, tuned = (
        number(chapter, "hidden", "loss", parameterization=name, hidden=its, width=width)
        for its in ("as the others", "1/4 of the others")
    )
    return usual - tuned


def diverges_from(chapter: dict[str, Any], eps: float) -> int:
    """Returns the log2 of the largest loss scale at which Adam's runs diverge with an eps."""
    adam = pl.DataFrame(chapter["tables"]["scale_map"]).filter(variant="adam", eps=eps)
    return int(max(adam.filter(pl.col("diverged") > 0)["log2_scale"]))


def degraded(chapter: dict[str, Any]) -> list[float]:
    """Returns Adam-atan2's losses at the loss scales below those where it is flat."""
    low = number(chapter, "flat", "log2_from_scale", case="adam_atan2")
    atan2 = pl.DataFrame(chapter["tables"]["scale_map"]).filter(variant="adam_atan2")
    return atan2.filter(pl.col("log2_scale") < low)["loss"].to_list()


def main(
    check: Annotated[bool, typer.Option(help="Say which sections are stale.")] = False,
) -> None:
    """Compute the golden verdicts, and bring README.md up to them."""
    if not check:
        GOLDEN.write_text(text(compute()), encoding="utf-8")
    readme, texts = README.read_text(encoding="utf-8"), sections(load())
    if not check:
        README.write_text(replaced(readme, texts), encoding="utf-8")
    elif old := stale(readme, texts):
        typer.echo(f"README.md: stale sections {', '.join(old)}; run make results", err=True)
        raise typer.Exit(1)


def _columns(table: pl.DataFrame) -> dict[str, list[Any]]:
    keys = [name for name, kind in table.schema.items() if kind == pl.String]
    ordered = table.sort(keys, maintain_order=True) if keys else table
    return {
        name: [
            None if isinstance(value, float) and not math.isfinite(value) else value
            for value in column
        ]
        for name, column in ordered.to_dict(as_series=False).items()
    }


if __name__ == "__main__":
    typer.run(main)
