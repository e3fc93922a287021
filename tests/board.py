"""Submissions made of tables: shared by the tests of ranking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from leaderboard.scheme import Column, Scheme
from leaderboard.submissions import CaseResult, Submission

METRICS = ("dice", "fpv_ml", "fnv_ml")
DICE = Column("dice", "Dice", "", 1.0, True)


def board(
    values: Mapping[str, Sequence[Sequence[float]]] | np.ndarray,
    *,
    metrics: Sequence[str] = METRICS,
    tracers: Sequence[str] = (),
    centres: Sequence[str] = (),
    statuses: Mapping[str, Sequence[str]] | None = None,
    steps: Mapping[str, Sequence[tuple[tuple[float, ...], ...] | None]] | None = None,
) -> list[Submission]:
    """Submissions from cases x metrics per name, or from an array (n, k, m) of submissions named s00, s01, ..."""
    if isinstance(values, np.ndarray):
        values = {f"s{i:02d}": rows.tolist() for i, rows in enumerate(values)}
    return [
        _submission(name, rows, metrics, tracers, centres, (statuses or {}).get(name), (steps or {}).get(name))
        for name, rows in values.items()
    ]


def _submission(
    name: str,
    rows: Sequence[Sequence[float]],
    metrics: Sequence[str],
    tracers: Sequence[str],
    centres: Sequence[str],
    statuses: Sequence[str] | None,
    steps: Sequence[tuple[tuple[float, ...], ...] | None] | None,
) -> Submission:
    cases = tuple(
        CaseResult(
            f"case{i:03d}",
            statuses[i] if statuses else "scored",
            "",
            dict(zip(metrics, map(float, row), strict=True)),
            tracers[i] if tracers else "",
            centres[i] if centres else "",
            steps[i] if steps else None,
        )
        for i, row in enumerate(rows)
    )
    return Submission(name, "III", "nan", "lost cases are left out", "", cases, means={})


def one_metric(**changes: object) -> Scheme:
    """A scheme that ranks by Dice alone, with few bootstrap samples."""
    return replace(Scheme("one", "One metric", (DICE,), bootstraps=200), **changes)  # type: ignore[arg-type]
