"""From rows of cases to metrics.json: summaries, both conventions of the platform, no NaN anywhere."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from autopet import __version__
from evaluation.lesions import LesionRow, volume_binned
from evaluation.metrics import METRICS, REGISTRY
from evaluation.policies import parse_policy
from evaluation.statuses import SCORED, STATUSES

FORMAT = 2  # of metrics.json, raised when a reader of the earlier one would misread it
DICE_ALIAS = "dice_again"  # the platform counts a path once, so Dice's double weight needs a second key
SURROGATE = re.compile("[\ud800-\udfff]")


def summarise(values: Sequence[float | None]) -> dict[str, float | int | None]:
    """Mean, std (n - 1 in the denominator; 0 for one value), min, max, quartiles (linear), their distance and count.

    None and NaN are ignored: they come from the rule for cases without lesions, or from the policy 'nan'. Every
    number except `count` is None when nothing is left.

    Examples
    --------
    >>> summarise([1.0, None, 3.0])["mean"]
    2.0
    """
    from evaluation.cohort import describe  # SciPy's statistics take a second to import

    found = describe(values)
    return {
        "mean": found.mean,
        "std": found.std,
        "min": found.low,
        "max": found.high,
        "25%": found.q1,
        "50%": found.median,
        "75%": found.q3,
        "iqr": found.iqr,
        "count": found.count,
    }


def build_metrics(
    rows: Sequence[dict[str, Any]],
    *,
    name: str,
    edition: str,
    failed: str,
    unmatched: Sequence[dict[str, str]] = (),
    notes: Sequence[str] = (),
    lesions: Sequence[LesionRow] = (),
    steps: Sequence[Sequence[dict[str, float]]] = (),
    tolerance_mm: float | None = None,
) -> dict[str, Any]:
    """The content of metrics.json, as `evaluation/schema/metrics.schema.json` describes it.

    `results` and `aggregates` follow the platform's present convention, `case` is evalutils' older form. The
    platform takes an evaluation out of the ranking when a ranked value is null: that happens here only when not
    one case has a value for the metric, and `notes` says so.

    Parameters
    ----------
    rows : sequence of dict
        One for every case, the policy for lost cases applied; metrics that a row lacks are null.
    lesions : sequence of LesionRow
        Of all cases, for detection by volume.
    steps : sequence of sequences of dict
        The metrics of each case at each interactive step, in the order of `rows`.
    tolerance_mm : float, optional
        Of the normalised surface Dice, None when no surface was measured.
    """
    rows = [complete(row) for row in rows]
    names = [metric.name for metric in REGISTRY]
    aggregates: dict[str, Any] = {key: summarise([row[key] for row in rows]) for key in names}
    statuses = Counter(row["status"] for row in rows)
    policy = parse_policy(failed)
    return {
        "format": FORMAT,
        "name": name,
        "edition": edition,
        "policy": {"failed": policy.spelled, "text": policy.text},
        "surface": None if tolerance_mm is None else {"tolerance_mm": tolerance_mm},
        "version": __version__,
        "cases": {"all": len(rows), **{status: statuses.get(status, 0) for status in STATUSES}},
        "metrics": [{"name": m.name, "title": m.title, "unit": m.unit, "direction": m.direction} for m in REGISTRY],
        "aggregates": {**aggregates, DICE_ALIAS: dict(aggregates["dice"])},
        "cohort": {**_cohort(rows, lesions), "auc_pooled_f1": _pooled_area(rows, steps, edition)},
        "results": rows,
        "case": {key: {str(i): row[key] for i, row in enumerate(rows)} for key in ("case", *names)},
        "unmatched": list(unmatched),
        "notes": [*notes, *_notes_on(rows, aggregates, failed)],
    }


def complete(row: dict[str, Any]) -> dict[str, Any]:
    """The row with a key for everything that a row of `results` has."""
    texts = dict.fromkeys(("case", "status", "reason", "tracer", "centre"), "")
    return {**texts, **{metric.name: None for metric in REGISTRY}, "preview": "", **row}


def _cohort(rows: Sequence[dict[str, Any]], lesions: Sequence[LesionRow]) -> dict[str, Any]:
    """Values of the cohort as a whole, without NaN and infinity."""
    from evaluation.cohort import cohort_values

    bins = [
        {key: value if isinstance(value, int) else json_number(value) for key, value in asdict(one).items()}
        for one in volume_binned(lesions)
    ]
    return {**cohort_values(rows), "detection_by_volume": bins}


def _pooled_area(
    rows: Sequence[dict[str, Any]], steps: Sequence[Sequence[dict[str, float]]], edition: str
) -> float | None:
    """Area under the click curve of the pooled F1, over the cases that count (not those that the policy left out)."""
    from evaluation.cohort import pooled_f1_area

    kept = [one for row, one in zip(rows, steps, strict=True) if row["lesion_tp"] is not None] if any(steps) else []
    return json_number(pooled_f1_area(list(zip(*kept, strict=True)), edition=edition)) if kept else None


def _notes_on(rows: Sequence[dict[str, Any]], aggregates: dict[str, Any], failed: str) -> list[str]:
    notes = []
    lost = [row["case"] for row in rows if row["status"] != SCORED]
    if lost:
        policy = parse_policy(failed)
        notes.append(
            f"{len(lost)} of {len(rows)} cases without a valid prediction (policy {policy.spelled!r}: {policy.text})"
        )
    for metric in METRICS:
        if aggregates[metric.name]["count"] == 0:
            notes.append(
                f"{metric.name}: no case has a value, so its aggregates are null and the evaluation cannot be ranked "
                "by it"
            )
    return notes


def json_number(value: float) -> float | None:
    """The value, or None where JSON has no number for it (NaN, infinity); counts stay whole numbers."""
    if not math.isfinite(value):
        return None
    return int(value) if isinstance(value, (int, np.integer)) else float(value)


def printable(text: str) -> str:
    """The text without lone surrogates (file names that are no UTF-8, hostile JSON), which no file or page can hold."""
    return SURROGATE.sub("\N{REPLACEMENT CHARACTER}", text)
