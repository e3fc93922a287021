"""What the statistics say, in the order of the site: best submission first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from autopet.errors import AutopetError
from leaderboard import robustness
from leaderboard.analysis import Analysis
from leaderboard.rank_arithmetic import kendall_tau_b
from leaderboard.ranking import rank_submissions
from leaderboard.view import Board, Comparison, Findings, RankColumn, SubsetTable, Uncertainty

TEST_WORDS = (
    "P values of one-sided Wilcoxon signed-rank tests over the cases, corrected by Holm's method over all pairs of "
    "algorithms."
)


def make_findings(board: Board, analysis: Analysis) -> Findings:
    """Arrange an analysis of the board's submissions for the pages."""
    order = [analysis.index(entrant.standing) for entrant in board.entrants]
    subsets = _subset_tables(board)
    return Findings(
        uncertainty=_uncertainty(analysis, order),
        comparisons=_comparisons(board, analysis, order),
        subsets=tuple(table for table in subsets if table.cases < len(board.patients)),
        columns=(
            *_metric_columns(board),
            *_subset_columns(board, subsets),
            *_condition_columns("Without", analysis.without_subset, order),
            *_condition_columns("Scheme", analysis.schemes, order),
        ),
        single_cases=_single_case_words(analysis.without_case),
        methods=analysis.methods,
        notes=analysis.notes,
    )


def _uncertainty(analysis: Analysis, order: Sequence[int]) -> Uncertainty | None:
    stability = analysis.stability
    if stability is None:
        return None
    resamples = len(stability.ranks)
    words = (
        f"Intervals hold {100 * analysis.scheme.interval:g} % of the ranks in {resamples:,} bootstrap samples of the "
        "cases; P(rank 1) is the share of samples with rank 1."
    )
    if math.isfinite(stability.tau_mean):
        tau = "Kendall's \N{GREEK SMALL LETTER TAU} of the samples with this ranking"
        words += f" {tau} is {stability.tau_mean:.2f} on average."
    return Uncertainty(
        shares=stability.shares()[order],
        low=tuple(float(value) for value in stability.low[order]),
        high=tuple(float(value) for value in stability.high[order]),
        first=tuple(float(value) for value in stability.p_first[order]),
        coverage=analysis.scheme.interval,
        words=words,
    )


def _comparisons(board: Board, analysis: Analysis, order: Sequence[int]) -> tuple[Comparison, ...]:
    tests = analysis.significance
    if len(order) < 2:
        return ()
    return tuple(
        Comparison(
            board.ranked[i].caption, tests.p_holm[np.ix_(order, order)][..., i], analysis.scheme.alpha, TEST_WORDS
        )
        for i in range(len(tests.metrics))
    )


def _metric_columns(board: Board) -> list[RankColumn]:
    return [
        RankColumn("Metric", measure.title, tuple(float(e.standing.ranks[i]) for e in board.entrants))
        for i, measure in enumerate(board.ranked)
    ]


def _subset_tables(board: Board) -> list[SubsetTable]:
    """The scheme on the cases of each tracer, each centre, and each combination, where there are several."""
    tracers = sorted({patient.tracer for patient in board.patients} - {""})
    centres = sorted({patient.centre for patient in board.patients} - {""})
    wanted = [(tracer, (tracer, "")) for tracer in tracers]
    wanted += [(f"centre {centre}", ("", centre)) for centre in centres]
    if len(tracers) > 1 and len(centres) > 1:
        wanted += [(f"{tracer}, centre {centre}", (tracer, centre)) for tracer in tracers for centre in centres]
    tables = (_subset_table(board, title, *key) for title, key in wanted)
    return [table for table in tables if table is not None]


def _subset_table(board: Board, title: str, tracer: str, centre: str) -> SubsetTable | None:
    inside = [p.number for p in board.patients if tracer in ("", p.tracer) and centre in ("", p.centre)]
    if not inside:
        return None
    submissions = [e.standing.submission for e in board.entrants]
    smaller = [replace(s, cases=tuple(s.cases[i] for i in inside)) for s in submissions]
    try:
        standings = rank_submissions(smaller, board.scheme)
    except AutopetError:  # a case without the attribute that the scheme needs
        return None
    entrants = {entrant.name: entrant for entrant in board.entrants}
    rows = tuple((entrants[s.submission.name], float(s.rank), s.means) for s in standings)
    return SubsetTable(title, len(inside), rows)


def _subset_columns(board: Board, tables: Sequence[SubsetTable]) -> list[RankColumn]:
    full = np.array([float(entrant.standing.rank) for entrant in board.entrants])
    columns = []
    for table in tables:
        if table.cases == len(board.patients):
            continue
        by_name = {entrant.name: rank for entrant, rank, _ in table.rows}
        ranks = np.array([by_name[name] for name in board.names])
        tau = float(kendall_tau_b(full, ranks[None])[0])
        columns.append(RankColumn("Only", table.title, tuple(ranks.tolist()), tau))
    return columns


def _condition_columns(group: str, conditions: robustness.Comparison | None, order: Sequence[int]) -> list[RankColumn]:
    if conditions is None:
        return []
    return [
        RankColumn(group, name, tuple(float(rank) for rank in conditions.ranks[i][order]), float(conditions.tau[i]))
        for i, name in enumerate(conditions.names)
    ]


def _single_case_words(conditions: robustness.Comparison | None) -> str:
    """What leaving out one case at a time does to the ranking."""
    if conditions is None:
        return ""
    known = np.isfinite(conditions.tau)
    if not known.any():
        return ""
    lowest = int(np.where(known, conditions.tau, np.inf).argmin())
    changed = int((conditions.tau[known] < 1 - 1e-9).sum())
    if not changed:
        return "Leaving out any single case does not change the order."
    return (
        f"Leaving out a single case changes the order for {changed} of {len(conditions.names)} cases; the most "
        f"for {conditions.names[lowest]} (Kendall's \N{GREEK SMALL LETTER TAU} {conditions.tau[lowest]:.2f})."
    )
