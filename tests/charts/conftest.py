"""What the tests of charts share: a chart's panels and the rows that its marks draw."""

from __future__ import annotations

from typing import Any

import altair as alt
import pytest

LAST: list[Any] = [None, {}]  # chart and its specification: making one takes longer than the rest


def specification(chart: alt.TopLevelMixin) -> dict[str, Any]:
    if chart is not LAST[0]:
        LAST[:] = chart, chart.to_dict()
    return LAST[1]


@pytest.fixture(scope="session")
def spec_of():
    return specification


@pytest.fixture(scope="session")
def drawn():
    """Returns rows of every layer of one mark in a panel (by its title), or in all of them."""

    def rows(chart: alt.TopLevelMixin, mark: str, panel: str | None = None, **with_mark: Any):
        spec = specification(chart)
        found = []
        for part in spec.get("concat", [spec]):
            if panel is not None and part["title"]["text"] != panel:
                continue
            for layer in part["layer"]:
                its = layer["mark"]
                if its["type"] == mark and all(its.get(k) == v for k, v in with_mark.items()):
                    data = layer.get("data", part.get("data", spec.get("data")))
                    found.append(spec["datasets"][data["name"]])
        return found

    return rows


@pytest.fixture(scope="session")
def titles():
    """Returns the titles of a chart's panels, in order."""
    return lambda chart: [panel["title"]["text"] for panel in specification(chart)["concat"]]


@pytest.fixture(scope="session")
def subtitle():
    """Returns what a chart says under its title."""
    return lambda chart: " ".join(specification(chart)["title"].get("subtitle", []))
