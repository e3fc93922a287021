"""Values of a whole cohort: summaries that count what is missing, pooled detection, agreement of volumes and uptake."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from evaluation.agreement import bland_altman, icc, pearson
from evaluation.clicks import curve_area
from evaluation.lesions import Detection, share
from evaluation.metrics import detection_f1
from evaluation.statuses import SCORED

Row = Mapping[str, Any]
BIOMARKERS = {"mtv": ("gt_ml", "pred_ml"), "tlg": ("gt_tlg_g", "pred_tlg_g")}


@dataclass(frozen=True)
class Summary:
    """One metric over the cases that have a value; every number is None when none has.

    `std` has n - 1 in the denominator and is 0 for one value, quartiles are interpolated linearly, `iqr` is their
    difference. `missing` counts the cases without a value.
    """

    mean: float | None
    median: float | None
    std: float | None
    low: float | None
    high: float | None
    q1: float | None
    q3: float | None
    iqr: float | None
    count: int
    missing: int


def describe(values: Sequence[float | None]) -> Summary:
    """Summary of a metric's values, None and NaN left out.

    Examples
    --------
    >>> describe([1.0, None, 3.0]).mean
    2.0
    """
    kept = np.array([value for value in values if value is not None and not math.isnan(value)], dtype=float)
    missing = len(values) - kept.size
    if not kept.size:
        return Summary(None, None, None, None, None, None, None, None, 0, missing)
    q1, median, q3 = (float(value) for value in np.percentile(kept, (25, 50, 75)))
    return Summary(
        mean=float(kept.mean()),
        median=median,
        std=float(kept.std(ddof=1)) if kept.size > 1 else 0.0,
        low=float(kept.min()),
        high=float(kept.max()),
        q1=q1,
        q3=q3,
        iqr=q3 - q1,
        count=int(kept.size),
        missing=missing,
    )


def pooled_detection(rows: Sequence[Row]) -> Detection:
    """Sums of TP, FP and FN over the cases that have all three (keys `lesion_tp`, `lesion_fp`, `lesion_fn`)."""
    counts = [[row.get(key) for key in ("lesion_tp", "lesion_fp", "lesion_fn")] for row in rows]
    known = [triple for triple in counts if all(value is not None and math.isfinite(value) for value in triple)]
    tp, fp, fn = (int(sum(column)) for column in zip(*known, strict=True)) if known else (0, 0, 0)
    return Detection(tp=tp, fp=fp, fn=fn)


def pooled_f1(rows: Sequence[Row]) -> float:
    """Detection F1 of edition V: TP, FP and FN are summed over the cases first.

    False components of cases without lesions count. NaN when no case has a lesion.
    """
    counts = pooled_detection(rows)
    return detection_f1(counts.tp, counts.fp, counts.fn)


def pooled_f1_area(steps: Sequence[Sequence[Row]], *, edition: str) -> float:
    """Area under the curve of the pooled F1: one sequence of rows (all cases) per interactive step."""
    return curve_area([pooled_f1(rows) for rows in steps], edition=edition)


def cohort_values(rows: Sequence[Row], *, count_lost: bool = True) -> dict[str, Any]:
    """Cohort values for metrics.json, without NaN: what is undefined is None.

    Parameters
    ----------
    rows : sequence of mappings
        Rows of `results`; keys that are missing count as None.
    count_lost : bool
        Whether a lost case counts as one in which nothing was predicted (0 ml, 0 g). Left out, a submission that
        fails in hard cases would agree better than one that tries them.

    Returns
    -------
    dict
        `pooled_f1`, `pooled_sensitivity`, `pooled_precision` (TP / (TP + FP)), `pooled_tp|fp|fn`, and for each of mtv
        and tlg `icc_*` and `pearson_*` (value, ci95, n, reason) and `bland_altman_*` (see `evaluation.agreement`).
        `agreement` says of how many `cases` the `n` are, how many of them were `lost`, and whether these are counted.
    """
    found = pooled_detection(rows)
    values: dict[str, Any] = {
        "pooled_f1": _json(detection_f1(found.tp, found.fp, found.fn)),
        "pooled_sensitivity": _json(share(found.tp, found.tp + found.fn)),
        "pooled_precision": _json(share(found.tp, found.tp + found.fp)),
        **{f"pooled_{name}": count for name, count in asdict(found).items()},
    }
    for name, (true_key, predicted_key) in BIOMARKERS.items():
        pair = [row.get(true_key) for row in rows], [_predicted(row, predicted_key, count_lost) for row in rows]
        for kind, function in (("icc", icc), ("pearson", pearson), ("bland_altman", bland_altman)):
            values[f"{kind}_{name}"] = {key: _plain(value) for key, value in asdict(function(*pair)).items()}
    lost = sum(_is_lost(row) for row in rows)
    values["agreement"] = {"cases": len(rows), "lost": lost, "lost_counted_as_nothing_predicted": count_lost}
    return values


def _is_lost(row: Row) -> bool:
    return row.get("status", SCORED) != SCORED


def _predicted(row: Row, key: str, count_lost: bool) -> float | None:
    """A lost case is left out only where its truth has no value, or by the policy."""
    return 0.0 if _is_lost(row) and count_lost else row.get(key)


def _json(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
