"""MTV and TLG over a group of cases: how far the estimates are from the truth, and how well both agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from evaluation.agreement import BlandAltman, Coefficient, bland_altman, icc
from evaluation.cohort import BIOMARKERS, Row, Summary, describe
from evaluation.statuses import SCORED

DEVIATIONS = {"mtv": "mtv_deviation_ml", "tlg": "tlg_deviation_g"}  # |estimate - truth| in a row of `results`


@dataclass(frozen=True)
class Estimate:
    """One biomarker over a group of cases, in ml (MTV) or g (TLG).

    `true` and `deviation` (the size of the difference, case by case) come with median and interquartile range.
    """

    true: Summary
    deviation: Summary
    icc: Coefficient
    bland_altman: BlandAltman


@dataclass(frozen=True)
class Group:
    """A group of cases: how many, how many of them without a valid prediction, Dice, and the biomarkers by key."""

    title: str
    cases: int
    lost: int
    dice: Summary
    estimates: dict[str, Estimate]


def summarise_groups(rows: Sequence[Row], *, count_lost: bool = True) -> list[Group]:
    """The cases with lesions, as published tables have them; and all cases, where there are others.

    Where the truth is 0, deviations of 0 would flatter the median of a method that fails in every patient with
    lesions: so both groups are there, and each says what it is.

    Parameters
    ----------
    rows : sequence of mappings
        Rows of `results` in metrics.json: `status`, `gt_ml`, `pred_ml`, `gt_tlg_g`, `pred_tlg_g`, `mtv_deviation_ml`,
        `tlg_deviation_g` and `dice`; None and NaN are left out.
    count_lost : bool
        Whether ICC and Bland-Altman count a case without a valid prediction as one in which nothing was found (0 ml,
        0 g), as `evaluation.cohort.cohort_values` does; its deviations are those that the evaluation's policy gave it.

    Returns
    -------
    list of Group
        Empty without rows.
    """
    positive = [row for row in rows if (row.get("gt_ml") or 0.0) > 0]
    groups = [("cases with lesions", positive)] if positive else []
    if len(positive) < len(rows):
        groups.append(("all cases", list(rows)))
    return [_group(title, members, count_lost) for title, members in groups]


def _group(title: str, rows: Sequence[Row], count_lost: bool) -> Group:
    lost = sum(row.get("status", SCORED) != SCORED for row in rows)
    estimates = {key: _estimate(rows, key, count_lost) for key in BIOMARKERS}
    return Group(title, len(rows), lost, describe([row.get("dice") for row in rows]), estimates)


def _estimate(rows: Sequence[Row], key: str, count_lost: bool) -> Estimate:
    true, estimates = true_and_estimated(rows, key, count_lost=count_lost)
    deviations = describe([row.get(DEVIATIONS[key]) for row in rows])
    return Estimate(describe(true), deviations, icc(true, estimates), bland_altman(true, estimates))


def true_and_estimated(
    rows: Sequence[Row], key: str, *, count_lost: bool = True
) -> tuple[list[float | None], list[float | None]]:
    """The true and the estimated values of `mtv` or `tlg`, a case's lost prediction as 0 if that counts."""
    true_key, predicted_key = BIOMARKERS[key]

    def estimated(row: Row) -> Any:
        return 0.0 if count_lost and row.get("status", SCORED) != SCORED else row.get(predicted_key)

    return [row.get(true_key) for row in rows], [estimated(row) for row in rows]
