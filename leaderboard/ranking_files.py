"""An analysis as files: ranking.json, ranking.csv and methods.txt."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from autopet import __version__
from autopet.errors import AutopetError, one_line
from autopet.folders import whole_file
from evaluation.statuses import STATUSES
from leaderboard.analysis import Analysis
from leaderboard.ranking import Standing
from leaderboard.robustness import Comparison
from leaderboard.significance import Significance

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def write_ranking(analysis: Analysis, out: Path) -> None:
    """Write ranking.json, ranking.csv and methods.txt into a folder; each appears whole or not at all."""
    texts = {
        "ranking.json": json.dumps(ranking_json(analysis), indent=2, allow_nan=False) + "\n",
        "ranking.csv": ranking_csv(analysis),
        "methods.txt": analysis.methods,
    }
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            write_text(out / name, text)
    except OSError as error:
        raise AutopetError(f"{out}: the ranking cannot be written ({one_line(error)})") from error


def write_text(path: Path, text: str) -> None:
    """Write a text file that appears whole or not at all."""
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8", errors="replace")


def ranking_json(analysis: Analysis) -> dict[str, Any]:
    """The analysis as plain data; null where a number is undefined."""
    return {
        "version": __version__,
        "scheme": {**asdict(analysis.scheme), "words": analysis.scheme.words},
        "cases": list(analysis.table.cases),
        "subsets": {
            name: [analysis.table.cases[index] for index in group]
            for name, group in zip(analysis.table.group_names, analysis.table.groups, strict=True)
        },
        "standings": [_standing(analysis, standing) for standing in analysis.standings],
        "bootstrap": _bootstrap(analysis),
        "significance": _significance(analysis.significance, analysis.table.names),
        "without_subset": _comparison(analysis.without_subset, analysis.table.names),
        "without_case": _comparison(analysis.without_case, analysis.table.names),
        "schemes": _comparison(analysis.schemes, analysis.table.names),
        "notes": list(analysis.notes),
        "methods": analysis.methods,
    }


def ranking_csv(analysis: Analysis) -> str:
    """One line per submission, best first; what is undefined is empty."""
    metrics = analysis.scheme.metrics
    columns = [f"{c.aggregate or analysis.scheme.aggregate}_{c.metric}" for c in analysis.scheme.columns]
    columns += [f"rank_{m}" for m in metrics]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["rank", "name", "score", "rank_low", "rank_high", "p_first", "eligible", *columns, *STATUSES])
    for standing in analysis.standings:
        row = _standing(analysis, standing)
        numbers = [row[key] for key in ("score", "rank_low", "rank_high", "p_first")]
        per_metric = [row[part][metric] for part in ("values", "ranks") for metric in metrics]
        statuses = [standing.submission.count(status) for status in STATUSES]
        cells = [*numbers, row["eligible"], *per_metric, *statuses]
        writer.writerow(
            [row["rank"], no_formula(standing.submission.name), *("" if cell is None else cell for cell in cells)]
        )
    return buffer.getvalue()


def no_formula(name: str) -> str:
    """Names come from participants: spreadsheets must not run them."""
    return "'" + name if name.lstrip().startswith(FORMULA_STARTS) else name


def plain(value: float | np.floating | np.integer) -> float | int | None:
    """A number for JSON: whole where it is, None where it is undefined."""
    number = float(value)
    if not math.isfinite(number):
        return None
    return int(number) if number.is_integer() else number


def _standing(analysis: Analysis, standing: Standing) -> dict[str, Any]:
    index, stability, metrics = analysis.index(standing), analysis.stability, analysis.scheme.metrics
    ends = [math.nan] * 3
    if stability is not None:
        ends = [stability.low[index], stability.high[index], stability.p_first[index]]
    return {
        "rank": standing.rank,
        "name": standing.submission.name,
        "score": standing.score,
        "eligible": standing.eligible,
        **{key: plain(end) for key, end in zip(("rank_low", "rank_high", "p_first"), ends, strict=True)},
        "values": {m: None if math.isnan(v) else v for m, v in zip(metrics, standing.means, strict=True)},
        "ranks": dict(zip(metrics, standing.ranks, strict=True)),
        "undefined": list(standing.undefined),
        "wins": {m: int(analysis.significance.wins[index, c]) for c, m in enumerate(metrics)},
        "cases": {"all": len(standing.submission.cases), **{s: standing.submission.count(s) for s in STATUSES}},
    }


def _bootstrap(analysis: Analysis) -> dict[str, Any] | None:
    stability = analysis.stability
    if stability is None:
        return None
    shares = stability.shares()
    defined = stability.tau[~np.isnan(stability.tau)]
    quantiles = np.quantile(defined, (0.025, 0.5, 0.975)) if defined.size else [math.nan] * 3
    return {
        "samples": len(stability.ranks),
        "seed": analysis.scheme.seed,
        "interval": analysis.scheme.interval,
        "kendall_tau_b": {
            "mean": plain(stability.tau_mean),
            **{key: plain(value) for key, value in zip(("2.5%", "50%", "97.5%"), quantiles, strict=True)},
        },
        "rank_shares": {name: row.tolist() for name, row in zip(stability.names, shares, strict=True)},
    }


def _significance(significance: Significance, names: tuple[str, ...]) -> dict[str, Any]:
    """Per metric, p values of 'row is better than column'."""
    return {
        "names": list(names),
        **{
            metric: {"p": significance.p[..., c].tolist(), "p_holm": significance.p_holm[..., c].tolist()}
            for c, metric in enumerate(significance.metrics)
        },
    }


def _comparison(comparison: Comparison | None, names: tuple[str, ...]) -> list[dict[str, Any]]:
    if comparison is None:
        return []
    return [
        {
            "name": name,
            "kendall_tau_b": plain(tau),
            "ranks": {submission: plain(rank) for submission, rank in zip(names, ranks, strict=True)},
        }
        for name, tau, ranks in zip(comparison.names, comparison.tau, comparison.ranks, strict=True)
    ]
