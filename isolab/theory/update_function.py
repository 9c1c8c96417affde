r"""The update as a function of :math:`r = \hat m / \sqrt{\hat v}`: Adam's and Adam-atan2's.

.. math:: u = \frac{r}{1 + \epsilon / \sqrt{\hat v}} \quad (\text{Adam}), \qquad
    u = a \arctan(r / b) \quad (\text{Adam-atan2})

Adam-atan2's slope at small ratios is a / b, so that a = b makes it Adam's there, the closer the
larger both are; its bound is :math:`a \pi / 2`. Where the gradient never changes r is 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import polars as pl


def update_function(
    constants: Sequence[tuple[float, float]] = ((1.0, 1.0), (4 / math.pi, 1.0), (4.0, 4.0)),
    eps_over_root: Sequence[float] = (0.0, 1.0),
    reach: float = 4.0,
    points: int = 161,
) -> pl.DataFrame:
    r"""Returns points of the update functions.

    Args:
        constants: pairs (a, b) of Adam-atan2, above 0.
        eps_over_root: :math:`\epsilon / \sqrt{\hat v}` of Adam, 0 or more.
        reach: ratios go from -reach to reach.
        points: of each function, 2 or more.

    Returns:
        A row per function and ratio: ``optimizer`` ("adam" or "adam_atan2"), ``function`` (in
        words), ``ratio``, ``update``, ``slope`` (at ratio 0) and ``bound`` (inf for Adam).

    Raises:
        ValueError: no function, a constant that is not positive, a negative eps, or no range.

    Example:
        >>> frame = update_function([(1.0, 1.0)], [1.0], reach=1.0, points=3)
        >>> frame.filter(optimizer="adam")["update"].to_list()
        [-0.5, 0.0, 0.5]
        >>> frame.filter(optimizer="adam_atan2")["update"].round(3).to_list()
        [-0.785, 0.0, 0.785]
    """
    if not (constants or eps_over_root) or points < 2 or not 0 < reach < math.inf:
        raise ValueError(
            f"{len(constants)} constants, {len(eps_over_root)} eps, {points} points, reach {reach};"
            " allowed: one function or more, 2 points or more, a positive reach"
        )
    for name, values, low in [
        *((f"constants {pair}", pair, math.ulp(0.0)) for pair in constants),
        ("eps_over_root", eps_over_root, 0.0),
    ]:
        if not all(low <= value < math.inf for value in values):
            allowed = "numbers of 0 or more" if low == 0 else "two numbers above 0"
            raise ValueError(f"{name} is {values}; allowed: {allowed}")
    ratios = np.linspace(-reach, reach, points)
    names = [*map(_adam_name, eps_over_root), *map(_adam_atan2_name, constants)]
    updates = [ratios / (1 + e) for e in eps_over_root]
    updates += [a * np.arctan2(ratios, b) for a, b in constants]
    slopes = [*(1 / (1 + e) for e in eps_over_root), *(a / b for a, b in constants)]
    bounds = [*(math.inf for _ in eps_over_root), *(a * math.pi / 2 for a, _ in constants)]
    functions = pl.DataFrame(
        {
            "optimizer": ["adam"] * len(eps_over_root) + ["adam_atan2"] * len(constants),
            "function": names,
            "ratio": [ratios] * len(names),
            "update": updates,
            "slope": slopes,
            "bound": bounds,
        }
    )
    return functions.explode("ratio", "update")


def _adam_name(eps_over_root: float) -> str:
    if not eps_over_root:
        return "Adam, eps = 0"
    return "Adam, eps = √v" if eps_over_root == 1 else f"Adam, eps = {eps_over_root:.3g} √v"


def _adam_atan2_name(constants: tuple[float, float]) -> str:
    a, b = constants
    return f"Adam-atan2, a = {a:.3g}, b = {b:.3g}"
