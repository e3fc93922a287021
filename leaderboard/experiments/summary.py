"""From the rows of an experiment to its numbers: means and spreads over seeds, and differences within pairs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.metrics import METRICS
from leaderboard.experiments.common import Row


@dataclass(frozen=True)
class Group:
    """Test cases that are looked at together."""

    title: str
    has: Callable[[Row], bool]


GROUPS = (
    Group("all", lambda row: True),
    Group("FDG", lambda row: row.tracer == "FDG"),
    Group("PSMA", lambda row: row.tracer == "PSMA"),
    Group("CT aligned", lambda row: not row.misaligned),
    Group("CT misaligned", lambda row: bool(row.misaligned)),
)
LESIONLESS = Group("without lesions", lambda row: not row.positive)


@dataclass(frozen=True)
class Spread:
    """One value per seed, with its mean and its standard deviation (n - 1 in the denominator; NaN for one seed)."""

    values: tuple[float, ...]

    @property
    def known(self) -> list[float]:
        """The values that are not NaN."""
        return [value for value in self.values if not math.isnan(value)]

    @property
    def mean(self) -> float:
        """NaN without any value."""
        return float(np.mean(self.known)) if self.known else math.nan

    @property
    def std(self) -> float:
        """Spread over the seeds."""
        return float(np.std(self.known, ddof=1)) if len(self.known) > 1 else math.nan


def seeds_of(rows: Sequence[Row]) -> list[int]:
    """The seeds in ascending order."""
    return sorted({row.seed for row in rows})


def variants_of(rows: Sequence[Row]) -> list[str]:
    """The variants in the order of their first row."""
    return list(dict.fromkeys(row.variant for row in rows))


def over_seeds(rows: Sequence[Row], *, variant: str, metric: str, group: Group) -> Spread:
    """The mean over a group's cases, per seed; cases where the metric is undefined do not count."""
    return Spread(
        tuple(
            mean_known([getattr(row, metric) for row in _of(rows, variant, seed) if group.has(row)])
            for seed in seeds_of(rows)
        )
    )


def against(rows: Sequence[Row], *, variant: str, reference: str, metric: str, group: Group) -> Spread:
    """Variant minus reference: the mean over the cases of a group, per seed, both on the same case."""
    differences = []
    for seed in seeds_of(rows):
        known = {row.case: getattr(row, metric) for row in _of(rows, reference, seed)}
        chosen = [row for row in _of(rows, variant, seed) if group.has(row) and row.case in known]
        differences.append(mean_known([getattr(row, metric) - known[row.case] for row in chosen]))
    return Spread(tuple(differences))


def moved_against_fixed(rows: Sequence[Row], *, variant: str, metric: str) -> Spread:
    """What misaligning the CT costs: moved minus fixed, the mean over the patients that were tested both ways."""
    differences = []
    for seed in seeds_of(rows):
        mine = _of(rows, variant, seed)
        fixed = {row.patient_id: getattr(row, metric) for row in mine if not row.misaligned}
        moved = [row for row in mine if row.misaligned and row.patient_id in fixed]
        differences.append(mean_known([getattr(row, metric) - fixed[row.patient_id] for row in moved]))
    return Spread(tuple(differences))


def better_seeds(difference: Spread, metric: str) -> int:
    """In how many seeds a difference goes the better way; equality is not better."""
    wanted = 1 if next(one.direction for one in METRICS if one.name == metric) == "higher" else -1
    return sum(wanted * value > 0 for value in difference.known)


def mean_known(values: Sequence[float]) -> float:
    """Mean of the values that are not NaN; NaN when there are none."""
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def _of(rows: Sequence[Row], variant: str, seed: int) -> list[Row]:
    return [row for row in rows if row.variant == variant and row.seed == seed]
