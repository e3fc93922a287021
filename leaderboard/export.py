"""leaderboard.csv and leaderboard.json: the table of the first page for other programs."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import asdict
from typing import Any

from evaluation.statuses import STATUSES
from leaderboard.ranking_files import no_formula
from leaderboard.view import Board, Entrant, Findings


def leaderboard_csv(board: Board, findings: Findings) -> str:
    """One line per submission; means that are undefined and intervals that were not computed are empty."""
    metrics = board.scheme.metrics
    header = ["rank", "name", "score", "rank_low", "rank_high", "p_rank_1"]
    header += [f"{c.aggregate or 'mean'}_{c.metric}" for c in board.scheme.columns]
    header += [*(f"rank_{m}" for m in metrics), "cases", *STATUSES]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    for entrant in board.entrants:
        s, (low, high, first) = entrant.standing, _sure(findings, entrant)
        means = ["" if math.isnan(value) else repr(value) for value in s.means]
        counts = [s.submission.count(status) for status in STATUSES]
        sure = ["" if value is None else f"{value:g}" for value in (low, high, first)]
        name = no_formula(s.submission.name)
        writer.writerow([s.rank, name, repr(s.score), *sure, *means, *s.ranks, len(s.submission.cases), *counts])
    return buffer.getvalue()


def leaderboard_json(board: Board, findings: Findings) -> str:
    """The standings with the scheme that made them; null where something is undefined or was not computed."""
    first = board.entrants[0].standing.submission
    content = {
        "title": board.title,
        "scheme": {**asdict(board.scheme), "words": board.scheme.words},
        "edition": first.edition,
        "policy": {"failed": first.policy, "text": first.policy_text},
        "notes": list(findings.notes),
        "standings": [_standing(board, findings, entrant) for entrant in board.entrants],
    }
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def _standing(board: Board, findings: Findings, entrant: Entrant) -> dict[str, Any]:
    s, metrics = entrant.standing, board.scheme.metrics
    low, high, first = _sure(findings, entrant)
    return {
        "rank": s.rank,
        "name": s.submission.name,
        "score": s.score,
        "eligible": s.eligible,
        "rank_interval": None if low is None else [low, high],
        "p_rank_1": first,
        "means": {m: None if math.isnan(v) else v for m, v in zip(metrics, s.means, strict=True)},
        "ranks": dict(zip(metrics, s.ranks, strict=True)),
        "undefined": list(s.undefined),
        "cases": {"all": len(s.submission.cases), **{x: s.submission.count(x) for x in STATUSES}},
        "notes": list(s.submission.notes),
    }


def _sure(findings: Findings, entrant: Entrant) -> tuple[float | None, float | None, float | None]:
    """Both ends of the rank interval and the share of samples with rank 1."""
    known, i = findings.uncertainty, entrant.number
    return (None, None, None) if known is None else (known.low[i], known.high[i], known.first[i])
