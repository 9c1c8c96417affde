"""A claim's verdict follows from its interval, and its display says all of it."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from isolab.analysis.claim import MIME, Claim

NUMBERS = st.floats(-1e6, 1e6)


@pytest.mark.parametrize(
    ("interval", "threshold", "direction", "verdict"),
    [
        ((1.2, 1.9), 1.1, "above", "reproduced"),
        ((0.9, 1.05), 1.1, "above", "not reproduced"),
        ((1.0, 1.9), 1.1, "above", "inconclusive"),
        ((1.1, 1.9), 1.1, "above", "inconclusive"),
        ((1.0, 1.1), 1.1, "above", "not reproduced"),
        ((1.2, math.inf), 1.1, "above", "reproduced"),
        ((-0.5, -0.1), 0.0, "below", "reproduced"),
        ((-0.4, 0.9), 1.0, "within", "reproduced"),
        ((0.0, 0.0), 0.0, "within", "reproduced"),
        ((-1.5, -1.1), 1.0, "within", "not reproduced"),
        ((0.5, 1.5), 1.0, "within", "inconclusive"),
        ((-9.0, 9.0), 1.0, "within", "inconclusive"),
        ((-1.0, -0.8), -1.0, "contains", "reproduced"),
        ((-0.9, -0.4), -1.0, "contains", "not reproduced"),
        ((-1.2, -0.5), -1.0, "contains", "inconclusive"),
        ((-math.inf, math.inf), -1.0, "contains", "inconclusive"),
    ],
)
def test_verdicts(interval, threshold, direction, verdict):
    rival = -0.5 if direction == "contains" else None
    claim = Claim("Is it so?", interval[0], interval, threshold, direction, rival=rival)
    assert claim.verdict == verdict
    assert (claim.reason is None) == (verdict != "inconclusive")
    if rival is not None:
        assert "contains -1 and not -0.5" in str(claim) and claim.to_dict()["rival"] == rival
        assert verdict != "inconclusive" or "also contains -0.5" in claim.reason


@given(st.tuples(NUMBERS, NUMBERS).map(sorted).map(tuple), NUMBERS)
def test_turning_the_direction_turns_the_verdict(interval, threshold):
    assume(threshold not in interval)
    above = Claim("q", interval[0], interval, threshold, "above").verdict
    below = Claim("q", interval[0], interval, threshold, "below").verdict
    turned = {"reproduced": "not reproduced", "not reproduced": "reproduced"}
    assert below == turned.get(above, "inconclusive")


@given(st.tuples(NUMBERS, NUMBERS).map(sorted).map(tuple), NUMBERS, st.floats(0, 1e6))
def test_a_wider_interval_never_decides_more(interval, threshold, more):
    wide = (interval[0] - more, interval[1] + more)
    for direction in ("above", "below", "within"):
        limit = abs(threshold) if direction == "within" else threshold
        narrow = Claim("q", interval[0], interval, limit, direction).verdict
        assert Claim("q", interval[0], wide, limit, direction).verdict in (narrow, "inconclusive")


def test_a_reason_forces_inconclusive():
    claim = Claim("q", 1.6, (1.4, 1.9), 1.1, inconclusive="the best rate is at the edge")
    assert (claim.verdict, claim.reason) == ("inconclusive", "the best rate is at the edge")
    nothing = Claim("q", None, None, 1.1, inconclusive="out of range")
    assert nothing.verdict == "inconclusive" and "no number" in str(nothing)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"interval": (math.nan, 1.0)}, "interval's low end is nan; allowed: a number"),
        ({"interval": (2.0, 1.0)}, "low end 2 above its high end 1"),
        ({"measured": "many"}, "measured is 'many'; allowed: a number"),
        ({"interval": None}, "say in inconclusive why"),
        ({"threshold": math.nan}, "threshold is nan; allowed: a number"),
        ({"threshold": (0.0, 1.0)}, r"threshold is \(0.0, 1.0\); allowed: a number"),
        ({"threshold": -1.0, "direction": "within"}, "must be 0 or above, got -1"),
        ({"direction": "over"}, r"unknown direction 'over'; known: \['above', 'below', 'within'"),
        ({"question": " "}, "question is empty"),
        ({"inconclusive": ""}, "empty reason"),
        ({"confidence": 95}, "between 0 and 1, got 95"),
        ({"direction": "contains"}, "rival is None and direction 'contains'"),
        ({"rival": 0.5}, "rival is 0.5 and direction 'above'"),
    ],
)
def test_impossible_claims_are_refused(changes, message):
    given = {"question": "q", "measured": 1.5, "interval": (1.0, 2.0), "threshold": 1.1}
    with pytest.raises(ValueError, match=message):
        Claim(**(given | changes))


def test_one_block_says_everything():
    more = {"source": "Jackson, arXiv:2307.12979", "prediction": "a speedup above 1.1"}
    claim = Claim("Is it <sooner>?", 1.6234567, (1.41, math.inf), 1.1, unit="times", **more)
    bundle = claim._repr_mimebundle_()
    for text in (bundle["text/plain"], bundle["text/html"]):
        for part in ("1.623 times", "1.41 to ∞", "above 1.1 times", "arXiv:2307.12979"):
            assert part in text
        assert "reproduced" in text and "a speedup above 1.1" in text and "95% interval" in text
    page = bundle["text/html"]
    assert "&lt;sooner&gt;" in page and "<sooner>" not in page
    assert "background" not in page and " color:" not in page  # the theme's own, light or dark


@given(NUMBERS, st.sampled_from([(0.0, math.inf), (-math.inf, 1.0), (-1.0, 1.0)]))
def test_the_machine_readable_claim_is_strict_json(measured, interval):
    claim = Claim("q", measured, interval, 0.5, unit="nats")
    found = json.loads(json.dumps(claim._repr_mimebundle_()[MIME], allow_nan=False))
    assert found["measured"] == measured
    assert found["interval"] == [None if math.isinf(v) else v for v in interval]
    assert (found["verdict"], found["reason"]) == (claim.verdict, claim.reason)
    assert {"question", "threshold", "direction", "unit"} <= set(found)
