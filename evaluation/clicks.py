"""Areas under the click curve: how fast a method gets better with every interactive step (editions IV and V)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autopet.errors import AutopetError
from evaluation.editions import EDITIONS, edition_named


def curve_area(values: Sequence[float], *, edition: str) -> float:
    """Unnormalised trapezoid over a metric's values at the interactive steps, one step apart.

    Parameters
    ----------
    values : sequence of float
        One value per step, the one without clicks first: 11 in edition IV (so a perfect Dice has area 10), 6 in
        edition V (area 5).
    edition : str
        IV or V.

    Returns
    -------
    float
        NaN when a value is NaN, as in the released script.

    Raises
    ------
    AutopetError
        The edition has no interactive steps, or another number of them.

    Examples
    --------
    >>> curve_area([0.0, 0.5, 0.5, 1.0, 1.0, 1.0], edition="V")
    3.5
    """
    steps = edition_named(edition).click_steps
    if steps is None:
        interactive = ", ".join(name for name, rules in EDITIONS.items() if rules.click_steps)
        raise AutopetError(f"edition {edition} has no click steps, expected one of {interactive}")
    if len(values) != steps:
        raise AutopetError(
            f"edition {edition} has {steps} click steps (0 to {steps - 1} clicks), found {len(values)} values; "
            "give one for every step"
        )
    return float(np.trapezoid(np.asarray(values, dtype=float)))
