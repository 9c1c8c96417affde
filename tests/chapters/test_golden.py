"""Golden verdicts: what is published is what the reference runs say."""

from __future__ import annotations

import json
import math
import re

import pytest

from isolab.chapters import golden
from isolab.chapters.golden import column, number

CHAPTERS = ("speedup", "transfer", "epsilon")
NOTEBOOKS = golden.ROOT / "notebooks"
PUBLISHED = golden.load()
TWO, THREE = PUBLISHED["transfer"], PUBLISHED["epsilon"]
ADAM_GLOBAL = {"optimizer": "adam", "rate_rule": "global"}


@pytest.fixture(scope="module")
def computed():
    return golden.compute()


def differences(published, found, where=""):
    """Names every place at which two JSON values differ; numbers to 1e-9."""
    if isinstance(published, dict) and isinstance(found, dict):
        names = dict.fromkeys([*published, *found])
        return [
            line
            for name in names
            for line in differences(published.get(name), found.get(name), f"{where}.{name}")
        ]
    if isinstance(published, list) and isinstance(found, list) and len(published) == len(found):
        pairs = enumerate(zip(published, found, strict=True))
        return [line for i, pair in pairs for line in differences(*pair, f"{where}[{i}]")]
    numbers = [type(value) in (int, float) for value in (published, found)]
    if all(numbers) and math.isclose(published, found, rel_tol=1e-9, abs_tol=1e-12):
        return []
    return [] if published == found else [f"{where}: published {published!r}, found {found!r}"]


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_published_numbers_are_the_reference_runs(chapter, computed):
    lines = differences(PUBLISHED[chapter], computed[chapter], chapter)
    assert not lines, "run make results:\n" + "\n".join(lines)


def test_the_file_is_small_and_as_written():
    assert golden.GOLDEN.stat().st_size < 300_000
    assert golden.GOLDEN.read_text(encoding="utf-8") == golden.text(PUBLISHED)


@pytest.mark.parametrize("section", ["chapters", "speedup", "transfer", "epsilon"])
def test_readme_says_what_was_published(section):
    texts = {section: golden.sections(PUBLISHED)[section]}
    readme = golden.README.read_text(encoding="utf-8")
    assert golden.stale(readme, texts) == [], "run make results"
    assert golden.stale(readme.replace(texts[section], "old"), texts) == [section]


def test_every_claim_is_told_with_its_verdict():
    told = golden.sections(PUBLISHED)["chapters"]
    *lines, other_models = told.splitlines()[2:]
    assert "your_model.ipynb" in other_models  # it has losses, and no claim
    for chapter, line in zip(CHAPTERS, lines, strict=True):
        claims = PUBLISHED[chapter]["claims"].values()
        for verdict in {claim["verdict"] for claim in claims}:
            assert f"{verdict.capitalize()}: " in line
    mean_field = TWO["claims"]["shift_mean_field"]
    assert mean_field["verdict"] == "inconclusive"
    assert re.search(rf"Inconclusive: .*{mean_field['measured']:.2f} .* under mean-field", told)


def claim(chapter, name):
    its = chapter["claims"][name]
    low, high = its["interval"]
    return {"value": its["measured"], "low": low, "high": high}


def power(scaling):
    return ends(TWO, "exponents", "exponent", parameterization=scaling, **ADAM_GLOBAL)


def ends(chapter, table, name, **where):
    names = {"value": name, "low": f"{name}_low", "high": f"{name}_high"}
    return {name: number(chapter, table, its, **where) for name, its in names.items()}


def hidden(width):
    gain = golden.hidden_gain
    return {"standard": gain(TWO, "standard", width), "mup": gain(TWO, "mup", width)}


def gamma(role, scaling):
    its = {"parameterization": scaling, "role": role}
    usual = number(TWO, "gamma", "loss", gamma=1.0, **its)
    return usual - number(TWO, "gamma", "loss", gamma=4.0, **its)


def apart():
    mup, standard = (
        number(TWO, "gamma", "loss", gamma=1.0, parameterization=name, role="hidden")
        for name in ("mup", "standard")
    )
    return mup - standard


def aligned(role):
    found = column(TWO, "alignment", "mean", kind="update", role=role)
    return min(found), max(found)


def slopes(rule):
    least, most = (column(TWO, "slopes", its, rate_rule=rule) for its in ("least", "most"))
    return min(least), max(most)


def gradient(name, role="hidden"):
    return ends(THREE, "gradients", "exponent", parameterization=name, role=role)


def carried(part, case, width, column="grid_steps"):
    return ends(THREE, "carried", column, part=part, case=case, width=width)


def equal_from():
    """The log2 of the least loss scale to which Adam-atan2 ends on the same bits."""
    high = number(THREE, "flat", "log2_to_scale", case="adam_atan2")
    return high - number(THREE, "flat", "equal_decades", case="adam_atan2") / math.log10(2)


def bite(name, column="width"):
    return number(THREE, "bite", column, parameterization=name)


def at_eps(eps):
    return number(THREE, "width_map", "loss", variant="adam", eps=eps, width=32)


def equivalence(of, against):
    low, value, high = (
        number(THREE, "equivalences", column, of=of, against=against)
        for column in ("low", "difference", "high")
    )
    return {"low": low, "value": value, "high": high}


def hours(chapter):
    return chapter["tables"]["runs"]["hours"][0]


LARGE, ATAN2 = "adam, eps = 0.01", "adam_atan2"
P2, P3 = "02_lr_transfer", "03_atan2_stability"
S = slopes
# fmt: off
PROSE = [
    (P2, "(two cores, about {0})", lambda: ["two hours" if 3 < hours(TWO) < 4.5 else hours(TWO)]),
    (P2, "no layer's change grows faster than $n^{{{0:.2f}}}$, and some shrink, by up to"
         " $n^{{{1:.2f}}}$. Under one global rate changes grow by up to $n^{{{2:.2f}}}$ (standard),"
         " and by up to $n^{{{3:.2f}}}$ with rates that assume no alignment",
     lambda: [S("full")[1], S("full")[0], S("global")[1], S("none")[1]]),
    (P2, "{0:.2f} to {1:.2f} in hidden matrices, {2:.2f} to {3:.2f} in readouts",
     lambda: [*aligned("hidden"), *aligned("readout")]),
    (P2, "is worth {standard:.2f} nats under the standard parameterization and {mup:.2f} under muP",
     lambda: hidden(32)),
    (P2, "from the other side ({0:.2f} and {1:.2f}), and so does a readout rate under standard"
         " ({2:.2f})",
     lambda: [gamma("embedding", "standard"), gamma("embedding", "mup"),
              gamma("readout", "standard")]),
    (P2, "the two parameterizations are {0:.2f} apart", lambda: [apart()]),
    (P2, "the {0:.2f} and {1:.2f} nats of width 32 are {2:.2f} and {3:.2f} at width 128.",
     lambda: [*hidden(32).values(), *hidden(128).values()]),
    (P2, "best global rate goes as $n^{{{value:.2f}}}$ ({low:.2f} to {high:.2f})",
     lambda: claim(TWO, "exponent_standard_adam")),
    (P2, "by {0:.2f} grid steps under standard, {1:.2f} under NTK and {2:.2f} under muP",
     lambda: [claim(TWO, f"shift_{name}")["value"] for name in ("standard", "ntk", "mup")]),
    (P2, "ends {value:.3f} nats/byte below muP at width 256",
     lambda: claim(TWO, "standard_below_mup")),
    (P2, "moves by {value:.2f} grid steps, but the interval, {low:.2f} to {high:.2f}, reaches past",
     lambda: claim(TWO, "shift_mean_field")),
    (P2, "$n^{{{value:.2f}}}$ under NTK ({low:.2f} to {high:.2f}; theory",
     lambda: power("ntk")),
    (P2, "$n^{{{value:.2f}}}$ under muP ({low:.2f} to {high:.2f}; theory",
     lambda: power("mup")),
    (P2, "under mean-field $n^{{{value:.2f}}}$ ({low:.2f} to {high:.2f}) decides nothing",
     lambda: power("mean_field")),
    (P2, "SGD's goes as $n^{{{value:.2f}}}$ ({low:.2f} to {high:.2f}; theory",
     lambda: claim(TWO, "exponent_standard_sgd")),
    (P2, "Adafactor's as $n^{{{value:.2f}}}$ ({low:.2f} to {high:.2f}; theory",
     lambda: claim(TWO, "exponent_standard_adafactor")),
    (P3, "under mean-field as $n^{{-{0:.2f}}}$ (theory $-3/2$), under muP and NTK as"
         " $n^{{-{1:.2f}}}$ and $n^{{-{2:.2f}}}$ ($-1$)",
     lambda: [gradient(name)["value"] for name in ("mean_field", "mup", "ntk")]),
    (P3, "rises by {value:.1f} factors of two ({low:.1f} to {high:.1f}) from width 32 to 256",
     lambda: claim(THREE, "shift_large_eps")),
    (P3, "best rate costs {value:.2f} nats/byte there",
     lambda: carried("transfer", LARGE, 256, "regret")),
    (P3, "by {value:.1f} factors ({low:.1f} to {high:.1f}) from 32 to 128",
     lambda: carried("transfer_mup", "adam, eps = 0.02", 128)),
    (P3, "at the same setting ({value:.1f} factors of two)", lambda: claim(THREE, "shift_atan2")),
    (P3, "from a loss scale of $2^{{{0}}}$ down to $2^{{{1}}}$, to the last bit down to"
         " $2^{{{2:.0f}}}$; Adam's, with 1e-8, down to $2^{{{3}}}$",
     lambda: [*(number(THREE, "flat", f"log2_{end}_scale", case=ATAN2) for end in ("to", "from")),
              equal_from(), number(THREE, "flat", "log2_from_scale", case="adam, eps = 1e-8")]),
    (P3, "within {0:.3f} nats/byte of epsilon 1e-8 and {1:.3f} of the best of four",
     lambda: [claim(THREE, f"equivalent_{which}_eps")["value"] for which in ("default", "best")]),
    (P3, "Adam diverges from a loss scale of $2^{{{0}}}$ on, with $10^{{-30}}$ from $2^{{{1}}}$",
     lambda: [golden.diverges_from(THREE, eps) for eps in (0.0, 1e-30)]),
    (P3, "from $2^{{-50}}$ on it ends on {0:.2f} to {1:.2f} instead of {2:.2f}",
     lambda: [min(golden.degraded(THREE)), max(golden.degraded(THREE)),
              number(THREE, "scale_map", "loss", variant=ATAN2, log2_scale=0)]),
    (P3, "moves a seed's final loss by up to {0:.3f}",
     lambda: [max(THREE["tables"]["rounding"]["largest"])]),
    (P3, "*lowers* the loss ({0:.2f} against {1:.2f})", lambda: [at_eps(1e-4), at_eps(1e-8)]),
    (P3, "tuning epsilon is worth {value:.3f} ({low:.3f} to {high:.3f})",
     lambda: equivalence("default", "best")),
    (P3, "at the best rate ({0:.3f} to {1:.3f})",
     lambda: [end(THREE["tables"]["constants"]["loss"]) for end in (min, max)]),
    (P3, "is further than {0:.3f} nats/byte from float32's",
     lambda: [max(THREE["tables"]["bfloat16_gap"]["largest"])]),
    *((P3, "by as much ({value:.1f} factors of two from width 32 to 128, as in float32)",
       lambda part=part, case=case: carried(part, case, 128))
      for part, case in (("transfer", LARGE),
                         ("narrow_moments", "adam, bfloat16 moments, eps = 0.01"),
                         ("narrow_compute", "adam, all in bfloat16, eps = 0.01"))),
    (P3, "Adam-atan2 keeps its rate ({0:.1f} and {1:.1f})",
     lambda: [carried("narrow_moments", "adam_atan2, bfloat16 moments", 128)["value"],
              carried("narrow_compute", "adam_atan2, all in bfloat16", 128)["value"]]),
    (P3, "as $n^{{-{value:.2f}}}$ with an interval from {low:.2f} to {high:.2f} (theory 1/2)",
     lambda: gradient("standard")),
    (P3, "faster than theory says ({value:.2f}; theory 1/2)", lambda: gradient("ntk", "readout")),
    (P3, "{0:,} under mean-field ({1:,} to {2:,})",
     lambda: [1000 * round(bite("mean_field", f"width{end}") / 1000)
              for end in ("", "_low", "_high")]),
    *((P3, "about $10^{0:.0f}$ under muP and NTK", lambda name=name: [math.log10(bite(name))])
      for name in ("mup", "ntk")),
    *((P3, "an extrapolation over {0:.1f} and {1:.1f} decades",
       lambda name=name: [bite("mean_field", "decades_beyond"), bite(name, "decades_beyond")])
      for name in ("mup", "ntk")),
    (P3, "three had left that question open at {high:.3f} against",
     lambda: equivalence("adam_atan2", "best")),
]
# fmt: on


@pytest.mark.parametrize(("notebook", "sentence", "values"), PROSE)
def test_notebooks_quote_what_was_published(notebook, sentence, values):
    cells = json.loads((NOTEBOOKS / f"{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
    prose = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    its = values()
    said = sentence.format(**its) if isinstance(its, dict) else sentence.format(*its)
    assert said in prose
