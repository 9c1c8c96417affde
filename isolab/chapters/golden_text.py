"""README.md's sections of results, written from the numbers of ``golden.json``.

A section stands between ``<!-- results: NAME -->`` and ``<!-- end -->``, alone on their lines.
"""

from __future__ import annotations

import math
import textwrap
from typing import Any

_VERDICTS = ("reproduced", "not reproduced", "inconclusive")
_SCALINGS = {"standard": "standard", "ntk": "NTK", "mup": "muP", "mean_field": "mean-field"}
_RULES = {
    "global": "one global rate",
    "full": "per layer, full alignment",
    "none": "per layer, no alignment",
}
_THEORY = {-0.5: "-1/2", -1.5: "-3/2"}


def sections(golden: dict[str, Any]) -> dict[str, str]:
    """Returns the text of every section of README.md by its name."""
    return {
        "chapters": _chapters(golden),
        "speedup": _speedup(golden["speedup"]),
        "transfer": _transfer(golden["transfer"]),
        "epsilon": _epsilon(golden["epsilon"]),
    }


def replaced(readme: str, texts: dict[str, str]) -> str:
    """Returns the README with its sections written anew.

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


def number(chapter: dict[str, Any], table: str, column: str, **where: Any) -> float:
    """Returns one cell of a chapter's table.

    Args:
        chapter: of ``golden.json``.
        table: its name.
        column: the cell's.
        where: a value for each of as many columns as single the row out.

    Raises:
        ValueError: no such row, or several.
    """
    columns = chapter["tables"][table]
    rows = range(len(columns[column]))
    found = [i for i in rows if all(columns[name][i] == value for name, value in where.items())]
    if len(found) != 1:
        raise ValueError(f"{len(found)} rows of {table} with {where}; needed: one")
    value: float = columns[column][found[0]]
    return value


def span(low: float | None, high: float | None, digits: int) -> str:
    """Returns an interval in words; None is an open end.

    Example:
        >>> span(0.157, 0.335, 2), span(21.07, None, 0)
        ('0.16 to 0.34', '21 or more')
    """
    if low is None:
        return "open" if high is None else f"{high:.{digits}f} or less"
    return f"{low:.{digits}f} or more" if high is None else f"{low:.{digits}f} to {high:.{digits}f}"


def _claim(chapter: dict[str, Any], name: str, digits: int, unit: str = "", more: str = "") -> str:
    """Returns a claim's number, its unit and, in brackets, its interval and what else to say."""
    claim = chapter["claims"][name]
    if claim["measured"] is None or claim["interval"] is None:
        return f"no number ({claim['reason']})"
    low, high = claim["interval"]
    shown = f"{claim['measured']:.{digits}f}{unit and ' ' + unit}"
    return f"{shown} ({span(low, high, digits)}{more})"


def _verdicts(chapter: dict[str, Any], groups: list[tuple[str, dict[str, str]]]) -> str:
    """Returns all claims by their verdicts; each group has a beginning and its claims' words."""
    said = []
    for verdict in _VERDICTS:
        parts = []
        for lead, words in groups:
            its = [w for name, w in words.items() if chapter["claims"][name]["verdict"] == verdict]
            if its:
                parts.append(f"{lead} {', '.join(its)}" if lead else "; ".join(its))
        if parts:
            said.append(f"{verdict.capitalize()}: {'; '.join(parts)}")
    return ". ".join(said)


def _chapters(golden: dict[str, Any]) -> str:
    one, two, three = golden["speedup"], golden["transfer"], golden["epsilon"]
    steps = max(one["tables"]["losses"]["steps"])
    first = _verdicts(
        one,
        [
            (
                "",
                {
                    "loss_difference": "the loss is lower by "
                    + _claim(one, "loss_difference", 3, "nats/byte")
                    + f" at the same {steps} steps",
                    "steps": _claim(one, "steps", 2, "times fewer steps"),
                    "time": _claim(one, "time", 2, "times less time"),
                },
            )
        ],
    )

    def power(name: str, optimizer: str) -> str:
        theory = two["claims"][name]["threshold"]
        more = f"; theory {_THEORY.get(theory, f'{theory:g}')}"
        return f"n^{_claim(two, name, 2, more=more)} for {optimizer}"

    widest = int(max(two["tables"]["shifts"]["width"]))
    second = _verdicts(
        two,
        [
            (
                "under standard the best global rate goes as",
                {
                    "exponent_standard_adam": power("exponent_standard_adam", "Adam"),
                    "exponent_standard_sgd": power("exponent_standard_sgd", "SGD"),
                    "exponent_standard_adafactor": power(
                        "exponent_standard_adafactor", "Adafactor"
                    ),
                },
            ),
            (
                f"with per-layer rates Adam's best one moves, in grid steps from width 32 to"
                f" {widest}, by",
                {
                    f"shift_{name}": f"{_claim(two, f'shift_{name}', 2)} under {said}"
                    for name, said in _SCALINGS.items()
                },
            ),
            (
                "standard ends below muP by",
                {"standard_below_mup": _claim(two, "standard_below_mup", 3, "nats/byte")},
            ),
        ],
    )
    low, high = (
        int(number(three, "flat", f"log2_{end}_scale", case="adam_atan2")) for end in ("from", "to")
    )
    adam = int(number(three, "flat", "log2_from_scale", case="adam, eps = 1e-8"))
    margin = three["claims"]["equivalent_default_eps"]["threshold"]
    third = _verdicts(
        three,
        [
            (
                "",
                {
                    "decades": "Adam-atan2's loss is the same over "
                    + _claim(three, "decades", 0, "decades of loss scale")
                    + f", from 2^{high} down to 2^{low}, where Adam with eps 1e-8 keeps it down"
                    f" to 2^{adam}",
                    "shift_large_eps": "with an eps that stands in for a model 10,000 times as"
                    f" wide the best rate moves by {_claim(three, 'shift_large_eps', 2)} factors"
                    " of 2 from width 32 to 256",
                    "shift_atan2": f"Adam-atan2's by {_claim(three, 'shift_atan2', 2)}",
                },
            ),
            (
                f"at its best rate Adam-atan2 ends, within {margin:g} nats/byte,",
                {
                    "equivalent_default_eps": _claim(three, "equivalent_default_eps", 3)
                    + " above Adam with eps 1e-8",
                    "equivalent_best_eps": _claim(three, "equivalent_best_eps", 3)
                    + " above Adam with the best of four eps",
                },
            ),
        ],
    )
    rows = [
        ("1", "01_isoadam_speedup", "Is IsoAdam faster than Adam?", first),
        ("2", "02_lr_transfer", "Do learning rates transfer across width?", second),
        ("3", "03_atan2_stability", "Must Adam's epsilon scale, or go?", third),
    ]
    return "\n".join(
        ["| | question | verdict of the reference runs |", "|---|---|---|"]
        + [f"| [{n}](notebooks/{file}.ipynb) | {ask} | {said} |" for n, file, ask, said in rows]
    )


def _speedup(chapter: dict[str, Any]) -> str:
    losses, seeds = chapter["tables"]["losses"], chapter["tables"]["runs"]["seeds"][0]
    steps, rates = losses["steps"][0], sorted(set(losses["learning_rate"]))
    rows = []
    for optimizer, said in (("adam", "Adam"), ("isoadam", "IsoAdam")):
        found = {
            rate: loss
            for name, rate, loss in zip(
                losses["optimizer"], losses["learning_rate"], losses["loss"], strict=True
            )
            if name == optimizer
        }
        best = min(loss for loss in found.values() if loss is not None)
        rows.append([said, *(_loss(found, rate, best) for rate in rates)])
    challenger = {name: values[0] for name, values in chapter["tables"]["challenger"].items()}
    closest = min(
        zip(chapter["tables"]["horizons"]["steps"], chapter["tables"]["horizons"]["loss"],
            strict=True),
        key=lambda point: abs(point[1] - challenger["loss"]),
    )  # fmt: skip
    step = {end: number(chapter, "step_time", end, optimizer="isoadam")
            for end in ("ratio_to_adam", "low", "high")}  # fmt: skip
    return "\n\n".join(
        [
            _wrapped(
                "Chapter 1 trains a 2-layer, width-64 Transformer on the bytes of Python's standard"
                " library, with Adam and IsoAdam on as many learning rates, the same seeds and the"
                " same batches. Validation loss of the reference runs in nats per byte at"
                f" {steps} steps, mean over {seeds} seeds:"
            ),
            _table(["learning rate", *(f"{rate:.4g}" for rate in rates)], rows),
            _wrapped(
                "The power law through Adam's horizons misses them by"
                f" {challenger['law_residual']:.2f} nats. Read against Adam's own points: IsoAdam"
                f" ends {challenger['steps']} steps on {challenger['loss']:.3f}, Adam {closest[0]}"
                f" on {closest[1]:.3f}. A step of IsoAdam took {step['ratio_to_adam']:.2f} times"
                f" Adam's ({span(step['low'], step['high'], 2)} over the rounds)."
            ),
        ]
    )


def _loss(found: dict[float, float | None], rate: float, best: float) -> str:
    if rate not in found:
        return ""
    loss = found[rate]
    if loss is None:
        return "diverged"
    return f"**{loss:.3f}**" if loss == best else f"{loss:.3f}"


def _transfer(chapter: dict[str, Any]) -> str:
    optima = chapter["tables"]["optima"]
    keys = zip(optima["parameterization"], optima["rate_rule"], optima["width"], strict=True)
    cells = dict(zip(keys, zip(optima["loss"], optima["rate"], strict=True), strict=True))
    widths = sorted(set(optima["width"]))
    rows = [
        [f"{said}, {words}"]
        + [
            "{:.3f} at {:.2g}".format(*cells[name, rule, width])
            if (name, rule, width) in cells
            else ""
            for width in widths
        ]
        for name, said in _SCALINGS.items()
        for rule, words in _RULES.items()
    ]
    regrets = ", ".join(
        f"{_cell(chapter, 'regrets', 'regret', 3, parameterization=name)} under {said}"
        for name, said in _SCALINGS.items()
    )
    alone = {"role": "hidden", "kind": "update"}
    aligned = [number(chapter, "alignment", "mean", parameterization=name, **alone)
               for name in _SCALINGS]  # fmt: skip
    worth = {
        (name, width): hidden_gain(chapter, name, width)
        for name in ("standard", "mup")
        for width in sorted(set(chapter["tables"]["hidden"]["width"]))
    }
    runs = {name: values[0] for name, values in chapter["tables"]["runs"].items()}
    gains = " and ".join(
        f"{worth['standard', width]:.2f} nats at width {width} (standard; muP:"
        f" {worth['mup', width]:.2f})"
        for width in sorted({width for _, width in worth})
    )
    powers = ", ".join(
        f"n^{_cell(chapter, 'exponents', 'exponent', 2, parameterization=name, **kind)} under"
        f" {_SCALINGS[name]} (theory {_THEORY.get(theory, f'{theory:g}')})"
        for kind in [{"optimizer": "adam", "rate_rule": "global"}]
        for name in ("ntk", "mup", "mean_field")
        for theory in [number(chapter, "exponents", "theory", parameterization=name, **kind)]
    )
    return "\n\n".join(
        [
            _wrapped(
                f"Mean validation loss of the {runs['runs']:,} reference runs"
                f" ({runs['hours']:.1f} hours of one core) at each width's best rate, Adam, 200"
                " steps of 1,024 tokens:"
            ),
            _table(["", *(str(width) for width in widths)], rows),
            _wrapped(
                f"What the narrowest width's best rate costs at width {widths[-1]}, per-layer"
                f" rates, in nats/byte: {regrets}."
            ),
            _wrapped(
                f"Adam's one global rate elsewhere: {powers}. The measured alignment of updates of"
                f" hidden matrices is {min(aligned):.2f} to {max(aligned):.2f}, not 1. Constants"
                f" are no detail: hidden rates at 1/4 of the others are worth {gains}, where the"
                " two parameterizations lie"
                f" {_apart(chapter, widths[0]):.2f} apart at width {widths[0]} and"
                f" {_apart(chapter, widths[-1]):.2f} at {widths[-1]}, per layer."
            ),
        ]
    )


def hidden_gain(chapter: dict[str, Any], name: str, width: int) -> float:
    """Returns what hidden rates at 1/4 of the others are worth, in nats/byte."""
    usual, tuned = (
        number(chapter, "hidden", "loss", parameterization=name, hidden=its, width=width)
        for its in ("as the others", "1/4 of the others")
    )
    return usual - tuned


def _apart(chapter: dict[str, Any], width: int) -> float:
    standard, mup = (
        number(chapter, "optima", "loss", parameterization=name, rate_rule="full", width=width)
        for name in ("standard", "mup")
    )
    return mup - standard


def _epsilon(chapter: dict[str, Any]) -> str:
    shown: list[tuple[str, str, float | None]] = [
        *((f"Adam, eps = {said}", "adam", eps) for said, eps in (
            ("0", 0.0), ("1e-8", 1e-8), ("1e-5", 1e-5), ("0.0001", 1e-4), ("0.001", 1e-3),
            ("0.01", 1e-2))),
        *((f"Adam, eps = {eps:g} per layer", "adam, eps per layer", eps) for eps in (1e-4, 1e-3)),
        ("Adam-atan2", "adam_atan2", None),
    ]  # fmt: skip
    cells, widths = (
        chapter["tables"]["width_map"],
        sorted(set(chapter["tables"]["width_map"]["width"])),
    )
    loss = {
        key: loss
        for *key_, loss in zip(
            *(cells[c] for c in ("variant", "eps", "width", "loss")), strict=True
        )
        for key in [tuple(key_)]
    }
    rows = [
        [said]
        + [
            "diverged" if (its := loss[variant, eps, width]) is None else f"{its:.2f}"
            for width in widths
        ]
        for said, variant, eps in shown
    ]
    low, high = (int(number(chapter, "flat", f"log2_{end}_scale", case="adam_atan2"))
                 for end in ("from", "to"))  # fmt: skip
    ends = degraded(chapter)
    at_one = number(chapter, "scale_map", "loss", variant="adam_atan2", log2_scale=0)
    bites = [number(chapter, "bite", f"width{end}", parameterization="mean_field")
             for end in ("", "_low", "_high")]  # fmt: skip
    about = number(chapter, "bite", "width", parameterization="mup")
    falls = {name: _falls(chapter, name) for name in ("mean_field", "mup", "standard")}
    runs = {name: values[0] for name, values in chapter["tables"]["runs"].items()}
    gap = max(chapter["tables"]["bfloat16_gap"]["largest"])
    return "\n\n".join(
        [
            _wrapped(
                "Mean final loss of the reference runs under the mean-field parameterization, at"
                " one rate, by eps and width:"
            ),
            _table(["", *(str(width) for width in widths)], rows),
            _wrapped(
                "Without eps Adam diverges from a loss scale of"
                f" 2^{diverges_from(chapter, 0.0)} on, because v underflows before m; Adam-atan2"
                f" holds from 2^{high} to 2^{low} and then ends on {min(ends):.2f} to"
                f" {max(ends):.2f} instead of {at_one:.2f}. The width at which 1e-8 would equal"
                " hidden gradients is an extrapolation:"
                f" {_thousands(bites[0])} ({_thousands(bites[1])} to {_thousands(bites[2])}) under"
                f" mean-field, about 10^{math.log10(about):.0f} under muP. Gradients of hidden"
                " matrices go as"
                f" {falls['mean_field']} there (theory -3/2), {falls['mup']} under muP (-1) and"
                f" {falls['standard']} under standard (-1/2). These are {runs['runs']:,} runs of"
                f" 200 steps, {runs['hours']:.1f} hours of one core. With moments or everything in"
                f" bfloat16 no cell of the map of widths moves by more than {gap:.3f}, and transfer"
                " breaks, and holds, as in float32."
            ),
        ]
    )


def diverges_from(chapter: dict[str, Any], eps: float) -> int:
    """Returns the log2 of the largest loss scale at which Adam's runs diverge with an eps."""
    table = chapter["tables"]["scale_map"]
    rows = zip(table["variant"], table["eps"], table["log2_scale"], table["diverged"], strict=True)
    return max(
        int(scale)
        for variant, its, scale, count in rows
        if (variant, its) == ("adam", eps) and count
    )


def degraded(chapter: dict[str, Any]) -> list[float]:
    """Returns Adam-atan2's losses at the loss scales below those where it is flat."""
    low = number(chapter, "flat", "log2_from_scale", case="adam_atan2")
    table = chapter["tables"]["scale_map"]
    rows = zip(table["variant"], table["log2_scale"], table["loss"], strict=True)
    return [loss for variant, scale, loss in rows if variant == "adam_atan2" and scale < low]


def _falls(chapter: dict[str, Any], name: str) -> str:
    value, low, high = (
        -number(chapter, "gradients", f"exponent{end}", parameterization=name, role="hidden")
        for end in ("", "_low", "_high")
    )
    return f"n^{value:.2f} ({span(high, low, 2)})"


def _cell(chapter: dict[str, Any], table: str, column: str, digits: int, **where: Any) -> str:
    value, low, high = (
        number(chapter, table, f"{column}{end}", **where) for end in ("", "_low", "_high")
    )
    return f"{value:.{digits}f} ({span(low, high, digits)})"


def _thousands(value: float) -> str:
    return f"{1000 * round(value / 1000):,}"


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    text = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    return text.replace("| --- ", "|---").replace("|--- |", "|---|").replace("|  |", "| |")


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 105, break_long_words=False, break_on_hyphens=False)
