"""Ranking schemes as data, and the arithmetic of ranks on arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autopet.errors import AutopetError
from leaderboard.submissions import Submission

SCORE_DECIMALS = 9  # sums of weighted ranks that differ by less are ties, whatever the order of summation


@dataclass(frozen=True)
class Column:
    """One ranked metric: its key in metrics.json, its title, unit, weight, and whether higher is better."""

    metric: str
    title: str
    unit: str
    weight: float
    higher_is_better: bool


@dataclass(frozen=True)
class Scheme:
    """How an edition ranks: the weighted mean of the ranks by each column, then `tie_break` (a column's metric)."""

    name: str
    title: str
    columns: tuple[Column, ...]
    tie_break: str

    @property
    def words(self) -> str:
        """The scheme as a sentence."""
        parts = [
            f"mean {c.title} ({'higher' if c.higher_is_better else 'lower'} is better, weight {c.weight:g})"
            for c in self.columns
        ]
        return (
            f"Submissions are ranked by {', '.join(parts[:-1])} and {parts[-1]}; the weighted mean of these ranks, "
            f"lower is better, gives the final order. Ties are broken by mean {self.tie_break_column.title}; "
            "what is still tied shares a rank, and the ranks after it are skipped (1, 2, 2, 4)."
        )

    @property
    def tie_break_column(self) -> Column:
        """The column that breaks ties."""
        return self.columns[self.tie_break_index]

    @property
    def tie_break_index(self) -> int:
        """Where that column is."""
        return [column.metric for column in self.columns].index(self.tie_break)


SCHEMES = {
    "I": Scheme(
        name="I",
        title="autoPET I and II",
        columns=(
            Column("dice", "Dice", "", weight=0.5, higher_is_better=True),
            Column("fpv_ml", "FPV", "ml", weight=0.25, higher_is_better=False),
            Column("fnv_ml", "FNV", "ml", weight=0.25, higher_is_better=False),
        ),
        tie_break="dice",
    ),
}


@dataclass(frozen=True, eq=False)
class Ranks:
    """Ranks of n submissions by m metrics: (n, m) `by_metric`, (n,) `score` (weighted mean rank), (n,) `final`."""

    by_metric: np.ndarray
    score: np.ndarray
    final: np.ndarray


@dataclass(frozen=True)
class Standing:
    """A submission's place; `ranks` follows the scheme's columns, `undefined` names metrics without a value."""

    submission: Submission
    rank: int
    score: float
    means: tuple[float, ...]
    ranks: tuple[int, ...]
    undefined: tuple[str, ...]


def scheme_named(name: str) -> Scheme:
    """The ranking scheme of an edition; an error that lists the known ones when there is none of that name."""
    if name not in SCHEMES:
        raise AutopetError(f"unknown ranking scheme {name!r}, expected one of {', '.join(SCHEMES)}")
    return SCHEMES[name]


def competition_ranks(values: np.ndarray, *, higher_is_better: bool) -> np.ndarray:
    """Ranks with gaps after ties, 1 = best: one more than the number of strictly better values.

    Parameters
    ----------
    values : (..., n) array
        One value per submission; NaN ranks after every number, and NaNs tie with each other.

    Returns
    -------
    (..., n) int array

    Examples
    --------
    >>> competition_ranks(np.array([0.8, 0.7, 0.7, 0.1]), higher_is_better=True)
    array([1, 2, 2, 4])
    """
    costs = -np.asarray(values, dtype=float) if higher_is_better else np.asarray(values, dtype=float)
    costs = np.where(np.isnan(costs), np.inf, costs)
    return 1 + (costs[..., None, :] < costs[..., :, None]).sum(axis=-1)


def rank_means(means: np.ndarray, scheme: Scheme) -> Ranks:
    """Rank submissions by their means.

    Parameters
    ----------
    means : (..., n, m) array
        One row per submission, one column per column of the scheme, NaN = no value. Leading axes (bootstrap
        samples) are ranked independently of each other.
    scheme : Scheme

    Returns
    -------
    Ranks
        Arrays of shape (..., n, m), (..., n) and (..., n).
    """
    by_metric = np.stack(
        [competition_ranks(means[..., i], higher_is_better=c.higher_is_better) for i, c in enumerate(scheme.columns)],
        axis=-1,
    )
    weights = np.array([column.weight for column in scheme.columns])
    score = np.round((by_metric * weights).sum(axis=-1) / weights.sum(), SCORE_DECIMALS)
    ties = by_metric[..., scheme.tie_break_index]
    better = score[..., None, :] < score[..., :, None]
    better |= (score[..., None, :] == score[..., :, None]) & (ties[..., None, :] < ties[..., :, None])
    return Ranks(by_metric, score, 1 + better.sum(axis=-1))


def rank_submissions(submissions: Sequence[Submission], scheme: Scheme) -> list[Standing]:
    """Standings, best first; submissions that share a rank are in the order of their names."""
    metrics = [column.metric for column in scheme.columns]
    means = np.array([[submission.means[metric] for metric in metrics] for submission in submissions], dtype=float)
    ranks = rank_means(means, scheme)
    standings = [
        Standing(
            submission=submission,
            rank=int(ranks.final[i]),
            score=float(ranks.score[i]),
            means=tuple(float(value) for value in means[i]),
            ranks=tuple(int(rank) for rank in ranks.by_metric[i]),
            undefined=tuple(metric for metric, value in zip(metrics, means[i], strict=True) if np.isnan(value)),
        )
        for i, submission in enumerate(submissions)
    ]
    return sorted(standings, key=lambda standing: (standing.rank, standing.submission.name))
