"""Ranks of submissions by a scheme: of the full cohort, and of thousands of samples of its cases at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from leaderboard.aggregation import aggregate
from leaderboard.pooled import pooled_f1_costs
from leaderboard.rank_arithmetic import SCORE_DECIMALS, competition_ranks, rank_costs, rank_scores
from leaderboard.scheme import Column, Scheme
from leaderboard.scheme_file import SCHEMES, scheme_named
from leaderboard.significance import significant_wins
from leaderboard.submissions import Submission
from leaderboard.table import CaseTable, case_table

__all__ = [
    "SCHEMES",
    "Column",
    "Ranks",
    "Scheme",
    "Standing",
    "competition_ranks",
    "rank_means",
    "rank_samples",
    "rank_submissions",
    "scheme_named",
]


@dataclass(frozen=True, eq=False)
class Ranks:
    """Ranks of n submissions by m metrics in any number of samples (leading axes).

    `by_metric` is (..., n, m), a mean over the subsets or cases where the scheme averages ranks; `score` (..., n) is
    their weighted mean and `final` (..., n) its rank. `eligible` (..., n) is False for submissions that the scheme's
    `above_median` keeps out: they share the last place.
    """

    by_metric: np.ndarray
    score: np.ndarray
    final: np.ndarray
    eligible: np.ndarray


@dataclass(frozen=True)
class Standing:
    """A submission's place; `means` (mean, median or variance, as the scheme says) and `ranks` follow its columns.

    `undefined` names metrics without a value. Ranks are whole numbers unless the scheme averages ranks.
    """

    submission: Submission
    rank: float
    score: float
    means: tuple[float, ...]
    ranks: tuple[float, ...]
    undefined: tuple[str, ...]
    eligible: bool = True


def rank_means(means: np.ndarray, scheme: Scheme) -> Ranks:
    """Rank submissions by values that are aggregated already.

    Parameters
    ----------
    means : (..., n, m) array
        One row per submission, one column per column of the scheme, NaN = no value. Leading axes are ranked
        independently of each other.
    scheme : Scheme
        Its columns, ties and tie-break are used.
    """
    signs = np.array([-1.0 if column.higher_is_better else 1.0 for column in scheme.columns])
    return _combined(_ranks_by_metric(np.asarray(means, dtype=float) * signs, scheme), scheme)


def rank_samples(table: CaseTable, scheme: Scheme, counts: np.ndarray) -> Ranks:
    """The whole scheme on samples of the cases.

    Parameters
    ----------
    table : CaseTable
        n submissions, k cases, m metrics, made with the same scheme.
    counts : (b, k) array of whole numbers
        How often each case is in each sample: ones for the full cohort, a zero for a case left out, drawn numbers
        for a bootstrap. A subset of which nothing is left is left out of the averages over subsets.

    Returns
    -------
    Ranks
        Arrays of shape (b, n, m) and (b, n). A submission without a value ranks last in that metric; a subset in
        which no submission has a value for a metric says nothing about it and is left out.
    """
    if scheme.method == "aggregate-then-rank":
        values = aggregated(table, scheme, counts)
        if scheme.combine == "values":
            values = mean_of_defined(values)[None]
        eligible = eligible_submissions(table, scheme, counts)
        values = np.where(eligible[None, :, :, None], values, np.inf)
        by_group = np.stack([_ranks_by_metric(group, scheme) for group in values])
        defined = np.isfinite(values).any(axis=2, keepdims=True)
        return _combined(_average_groups(by_group, defined, scheme), scheme, eligible)
    per_group = _case_rank_groups if scheme.method == "rank-then-aggregate" else _test_rank_groups
    return _combined(_average_groups(*per_group(table, scheme, counts), scheme), scheme)


def aggregated(table: CaseTable, scheme: Scheme, counts: np.ndarray) -> np.ndarray:
    """(groups, b, n, m) aggregated costs within each subset, lower = better; NaN where there is no value."""
    return np.stack([_aggregated_group(table, scheme, g, counts[:, g]) for g in table.groups])


def _aggregated_group(table: CaseTable, scheme: Scheme, group: np.ndarray, counts: np.ndarray) -> np.ndarray:
    values = aggregate(table.costs[:, group], counts, scheme.aggregate)
    if table.steps is not None:
        for index in scheme.pooled:
            values[..., index] = pooled_f1_costs(table.steps[:, group], counts)
    return values


def eligible_submissions(table: CaseTable, scheme: Scheme, counts: np.ndarray) -> np.ndarray:
    """(b, n) truth values: is the mean of `above_median` better than the median over the submissions?"""
    if not scheme.above_median:
        return np.ones((len(counts), len(table.names)), dtype=bool)
    column = scheme.metrics.index(scheme.above_median)
    means = np.round(aggregate(table.costs[..., column : column + 1], counts, "mean")[..., 0], SCORE_DECIMALS)
    means = np.where(np.isnan(means), np.inf, means)
    return means < np.median(means, axis=-1, keepdims=True)


def rank_submissions(submissions: Sequence[Submission], scheme: Scheme) -> list[Standing]:
    """Standings, best first; submissions that share a rank are in the order of their names."""
    table = case_table(submissions, scheme)
    ranks = rank_samples(table, scheme, table.every_case_once)
    shown = shown_values(table, scheme, table.every_case_once)[0]
    standings = [
        Standing(
            submission=submission,
            rank=_whole(ranks.final[0, i]),
            score=float(ranks.score[0, i]),
            means=tuple(float(value) for value in shown[i]),
            ranks=tuple(_whole(rank) for rank in ranks.by_metric[0, i]),
            undefined=tuple(m for m, value in zip(scheme.metrics, shown[i], strict=True) if np.isnan(value)),
            eligible=bool(ranks.eligible[0, i]),
        )
        for i, submission in enumerate(submissions)
    ]
    return sorted(standings, key=lambda standing: (standing.rank, standing.submission.name))


def shown_values(table: CaseTable, scheme: Scheme, counts: np.ndarray) -> np.ndarray:
    """(b, n, m) aggregated values in the metrics' own direction, averaged over subsets; NaN where there is none.

    What the ranks of an aggregate-then-rank scheme are made of; for the other methods the same numbers as a summary.
    """
    values = mean_of_defined(aggregated(table, scheme, counts))
    signs = np.array([-1.0 if c.higher_is_better and scheme.aggregate != "variance" else 1.0 for c in scheme.columns])
    return np.where(np.isfinite(values), values * signs + 0.0, np.nan)


def _ranks_by_metric(costs: np.ndarray, scheme: Scheme) -> np.ndarray:
    """(..., n, m) ranks of (..., n, m) costs."""
    rounded = np.moveaxis(np.round(costs, SCORE_DECIMALS), -1, 0)
    return np.stack([rank_costs(column, ties=scheme.ties) for column in rounded], axis=-1)


def mean_of_defined(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis without NaN; NaN where nothing else is there."""
    defined = ~np.isnan(values)
    number = defined.sum(axis=0)
    total = np.where(defined, values, 0.0).sum(axis=0)
    return np.divide(total, number, out=np.full(total.shape, np.nan), where=number > 0)


def _average_groups(by_group: np.ndarray, defined: np.ndarray, scheme: Scheme) -> np.ndarray:
    """Mean ranks over (groups, b, n, m) without the groups that say nothing; all tie where none says anything."""
    mean = mean_of_defined(np.where(defined, by_group, np.nan))
    tied = (mean.shape[-2] + 1) / 2 if scheme.ties == "average" else 1.0
    return np.where(np.isnan(mean), tied, mean)


def _case_rank_groups(table: CaseTable, scheme: Scheme, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ranks on every case, aggregated within each subset: they are the same in every sample."""
    ranks = np.moveaxis(_ranks_by_metric(np.moveaxis(table.costs, 0, 1), scheme), 0, 1)  # ranked along submissions
    ranks = np.where(np.isnan(table.costs), np.nan, ranks)
    groups = np.stack([aggregate(ranks[:, g], counts[:, g], scheme.aggregate) for g in table.groups])
    defined = ~np.isnan(groups).all(axis=2, keepdims=True)
    return np.where(np.isnan(groups), len(table.names), groups), defined


def _test_rank_groups(table: CaseTable, scheme: Scheme, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ranks by the number of significant wins within each subset."""
    wins = [significant_wins(table.costs[:, g], counts[:, g], alpha=scheme.alpha) for g in table.groups]
    by_group = np.stack([_ranks_by_metric(-group.astype(float), scheme) for group in wins])
    some = [(counts[:, g].astype(float) @ (~np.isnan(table.costs[:, g])).any(axis=0)) > 0 for g in table.groups]
    return by_group, np.stack(some)[:, :, None, :]


def _combined(by_metric: np.ndarray, scheme: Scheme, eligible: np.ndarray | None = None) -> Ranks:
    weights = np.array([column.weight for column in scheme.columns])
    by_metric = np.round(by_metric, SCORE_DECIMALS)
    score = np.round((by_metric * weights).sum(axis=-1) / weights.sum(), SCORE_DECIMALS)
    tie_break = None if scheme.tie_break_index is None else by_metric[..., scheme.tie_break_index]
    final = rank_scores(score, tie_break, ties=scheme.ties)
    return Ranks(by_metric, score, final, np.ones(score.shape, bool) if eligible is None else eligible)


def _whole(rank: float) -> float:
    """1 instead of 1.0: averaged ranks keep their fraction."""
    return int(rank) if float(rank).is_integer() else float(rank)
