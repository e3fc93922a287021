"""From rows of cases to metrics.json: summaries, both conventions of the platform, no NaN anywhere."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from autopet import __version__
from autopet.errors import AutopetError
from evaluation.metrics import METRICS

SCORED, MISSING, FAILED, REFUSED = "scored", "missing", "failed", "refused"
STATUSES = (SCORED, MISSING, FAILED, REFUSED)
POLICIES = {
    "empty": "a case without a valid prediction is scored as if an empty mask had been predicted: "
    "Dice 0, FNV the whole lesion volume, FPV 0, and the edition's rule when there are no lesions",
    "nan": "a case without a valid prediction is left out of the means; its status stays in the results",
}
DICE_ALIAS = "dice_again"  # the platform counts a path once, so Dice's double weight needs a second key
SURROGATE = re.compile("[\ud800-\udfff]")
EMPTY_SUMMARY = dict.fromkeys(("mean", "std", "min", "max", "25%", "50%", "75%"))


def policy_text(failed: str) -> str:
    """What happens to cases without a valid prediction, in words; an error for an unknown policy."""
    if failed not in POLICIES:
        raise AutopetError(f"unknown policy {failed!r} for failed cases, expected one of {', '.join(POLICIES)}")
    return POLICIES[failed]


def summarise(values: Sequence[float | None]) -> dict[str, float | int | None]:
    """Mean, std (n - 1 in the denominator; 0 for one value), min, max, quartiles (linear) and count.

    None and NaN are ignored: they come from the rule for cases without lesions, or from the policy 'nan'. Every
    number except `count` is None when nothing is left.

    Examples
    --------
    >>> summarise([1.0, None, 3.0])["mean"]
    2.0
    """
    kept = np.array([value for value in values if value is not None and not math.isnan(value)], dtype=float)
    if kept.size == 0:
        return {**EMPTY_SUMMARY, "count": 0}
    low, middle, high = (float(q) for q in np.percentile(kept, (25, 50, 75)))
    return {
        "mean": float(kept.mean()),
        "std": float(kept.std(ddof=1)) if kept.size > 1 else 0.0,
        "min": float(kept.min()),
        "max": float(kept.max()),
        "25%": low,
        "50%": middle,
        "75%": high,
        "count": int(kept.size),
    }


def build_metrics(
    rows: Sequence[dict[str, Any]],
    *,
    name: str,
    edition: str,
    failed: str,
    unmatched: Sequence[dict[str, str]] = (),
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """The content of metrics.json.

    `results` and `aggregates` follow the platform's present convention, `case` is evalutils' older form. The
    platform takes an evaluation out of the ranking when a ranked value is null: that happens here only when not
    one case has a value for the metric, and `notes` says so.
    """
    aggregates: dict[str, Any] = {m.name: summarise([row[m.name] for row in rows]) for m in METRICS}
    notes = [*notes, *_notes_on(rows, aggregates, failed)]
    statuses = Counter(row["status"] for row in rows)
    return {
        "name": name,
        "edition": edition,
        "policy": {"failed": failed, "text": policy_text(failed)},
        "version": __version__,
        "cases": {"all": len(rows), **{status: statuses.get(status, 0) for status in STATUSES}},
        "metrics": [{"name": m.name, "unit": m.unit, "direction": m.direction} for m in METRICS],
        "aggregates": {**aggregates, DICE_ALIAS: dict(aggregates["dice"])},
        "results": list(rows),
        "case": {key: {str(i): row[key] for i, row in enumerate(rows)} for key in ("case", *(m.name for m in METRICS))},
        "unmatched": list(unmatched),
        "notes": notes,
    }


def _notes_on(rows: Sequence[dict[str, Any]], aggregates: dict[str, Any], failed: str) -> list[str]:
    notes = []
    lost = [row["case"] for row in rows if row["status"] != SCORED]
    if lost:
        notes.append(
            f"{len(lost)} of {len(rows)} cases without a valid prediction (policy {failed!r}: {POLICIES[failed]})"
        )
    for name, summary in aggregates.items():
        if summary["count"] == 0:
            notes.append(
                f"{name}: no case has a value, so its aggregates are null and the evaluation cannot be ranked by it"
            )
    return notes


def json_number(value: float) -> float | None:
    """The value, or None where JSON has no number for it (NaN, infinity)."""
    return float(value) if math.isfinite(value) else None


def printable(text: str) -> str:
    """The text without lone surrogates (file names that are no UTF-8, hostile JSON), which no file or page can hold."""
    return SURROGATE.sub("\N{REPLACEMENT CHARACTER}", text)
