"""Global SUV thresholds: the simplest baseline, after Küstner et al.'s weak-supervision study (paper 002, 2.3.1).

The paper applies one threshold per image, "a fixed SUV percentile" found by a grid search over 20 values between 20 and
50. Its published values (0.31 to 0.35) read like fractions of the maximum, the word like a percentile of the SUV
distribution. Both readings are rules here; `fraction` is the default, because a percentile between 20 and 50 of a
whole-body scan marks half of the body, which cannot have reached the published Dice of 0.29.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autopet.errors import AutopetError
from autopet.intensity import body_voxels

RULES = ("fraction", "percentile", "fixed", "suvmax41")


@dataclass(frozen=True)
class Settings:
    """What the method is; saved as config.json with the chosen values."""

    rule: str = "fraction"  # which of RULES a trained model applies
    grid_low: float = 20.0  # first value of the grid search, percent
    grid_high: float = 50.0  # last value of the grid search, percent
    grid_steps: int = 20  # values in the grid search
    fixed_suv: float = 4.0  # threshold of rule `fixed`, SUV
    max_percent: float = 41.0  # threshold of rule `suvmax41`, percent of the scan's SUVmax

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise AutopetError(f"threshold rule {self.rule!r} is unknown; use one of {', '.join(RULES)}")

    @property
    def grid(self) -> np.ndarray:
        """(grid_steps,) percentages that the search tries."""
        return np.linspace(self.grid_low, self.grid_high, self.grid_steps)


PRESETS = {"paper": Settings(), "demo": Settings()}


def thresholds_suv(suv: np.ndarray, rule: str, values: np.ndarray) -> np.ndarray:
    """The SUV thresholds that a rule gives for one scan.

    Parameters
    ----------
    suv : (z, y, x) array
        PET in SUV (g/ml).
    rule : str
        `fraction`, `suvmax41`: percent of the scan's SUVmax; `percentile`: percentile of the SUVs in the body;
        `fixed`: the values are SUVs already.
    values : (n,) array
        Percentages, percentiles or SUVs.

    Returns
    -------
    (n,) array
        Thresholds in SUV; voxels at or above one are lesion.

    Examples
    --------
    >>> thresholds_suv(np.array([[[0.0, 5.0, 10.0]]]), "fraction", np.array([41.0]))
    array([4.1])
    """
    if rule in ("fraction", "suvmax41"):
        return values / 100.0 * float(suv.max())
    if rule == "percentile":
        return np.percentile(body_voxels(suv), values)
    return np.asarray(values, dtype=float)


def dice_at(suv: np.ndarray, lesion: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """(n,) Dice of the masks `suv >= threshold` against the lesion, for all thresholds at once.

    Sorting once turns every threshold into two binary searches. Without lesion and without prediction: NaN.
    """
    everywhere = np.sort(suv, axis=None)
    inside = np.sort(suv[lesion != 0], axis=None)
    predicted = everywhere.size - np.searchsorted(everywhere, thresholds, side="left")
    hit = inside.size - np.searchsorted(inside, thresholds, side="left")
    total = predicted + inside.size
    return np.divide(2.0 * hit, total, out=np.full(len(thresholds), np.nan), where=total > 0)
