"""From rows of cases to metrics.json: summaries, both conventions of the platform, no NaN anywhere."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from autopet import __version__
from evaluation.lesions import LesionRow, volume_binned
from evaluation.metrics import METRICS, REGISTRY
from evaluation.policies import DETECTION, FailedPolicy, parse_policy
from evaluation.statuses import SCORED, STATUSES

FORMAT = 2  # of metrics.json, raised when a reader of the earlier one would misread it
DICE_ALIAS = "dice_again"  # the platform counts a path once, so Dice's double weight needs a second key
NAME_CHARACTERS = 200  # most of a participant's name that is shown
TEXT_CHARACTERS = 2000  # most of a reason
LINE_END = re.compile("\r\n|[\t\n\v\f\r\x85\u2028\u2029]")
HIDDEN = frozenset({"Cc", "Cf", "Cs"})  # Unicode's control, format and surrogate characters


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
        "name": printable(name, limit=NAME_CHARACTERS),
        "edition": edition,
        "policy": {"failed": policy.spelled, "text": policy.text},
        "surface": None if tolerance_mm is None else {"tolerance_mm": tolerance_mm},
        "version": __version__,
        "cases": {"all": len(rows), **{status: statuses.get(status, 0) for status in STATUSES}},
        "metrics": [{"name": m.name, "title": m.title, "unit": m.unit, "direction": m.direction} for m in REGISTRY],
        "aggregates": {**aggregates, DICE_ALIAS: dict(aggregates["dice"])},
        "cohort": {**_cohort(rows, lesions, policy), "auc_pooled_f1": _pooled_area(rows, edition)},
        "results": rows,
        "case": {key: {str(i): row[key] for i, row in enumerate(rows)} for key in ("case", *names)},
        "unmatched": list(unmatched),
        "notes": [*notes, *_notes_on(rows, aggregates, failed)],
    }


def complete(row: dict[str, Any]) -> dict[str, Any]:
    """The row with a key for everything that a row of `results` has."""
    texts = dict.fromkeys(("case", "status", "reason", "tracer", "centre"), "")
    return {**texts, **{metric.name: None for metric in REGISTRY}, "detection_steps": None, "preview": "", **row}


def _cohort(rows: Sequence[dict[str, Any]], lesions: Sequence[LesionRow], policy: FailedPolicy) -> dict[str, Any]:
    """Values of the cohort as a whole, without NaN and infinity."""
    from evaluation.cohort import cohort_values

    bins = [
        {key: value if isinstance(value, int) else json_number(value) for key, value in asdict(one).items()}
        for one in volume_binned(lesions)
    ]
    return {**cohort_values(rows, count_lost=policy.counts_lost), "detection_by_volume": bins}


def _pooled_area(rows: Sequence[dict[str, Any]], edition: str) -> float | None:
    """Area under the click curve of the pooled F1, over the cases that count (not those that the policy left out)."""
    from evaluation.cohort import pooled_f1_area

    curves = [row["detection_steps"] for row in rows if row["detection_steps"]]
    steps = [[dict(zip(DETECTION, counts, strict=True)) for counts in step] for step in zip(*curves, strict=True)]
    return json_number(pooled_f1_area(steps, edition=edition)) if curves else None


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


def printable(text: str, *, limit: int = TEXT_CHARACTERS) -> str:
    """A participant's text as files, terminals and pages can show it.

    Control characters (Unicode category Cc), invisible ones that turn the direction of text (Cf) and lone surrogates
    (Cs: file names that are no UTF-8, hostile JSON) become U+FFFD; ends of lines and tabs become spaces. What is longer
    than `limit` characters is cut, with an ellipsis at the end.

    Examples
    --------
    >>> printable("two\\nlines", limit=6)
    'two l…'
    """
    shown = text if len(text) <= limit else f"{text[: limit - 1]}\N{HORIZONTAL ELLIPSIS}"
    return "".join(map(_shown, LINE_END.sub(" ", shown)))


def _shown(letter: str) -> str:
    return "\N{REPLACEMENT CHARACTER}" if unicodedata.category(letter) in HIDDEN else letter
