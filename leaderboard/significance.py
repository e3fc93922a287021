"""Is one submission better than another? Pairwise one-sided Wilcoxon signed-rank tests, corrected by Holm's method."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.special import ndtr

from leaderboard.scheme import Scheme
from leaderboard.table import CaseTable

EXACT_UP_TO = 50  # non-zero differences; above, the normal distribution is close
DIFFERENCE_DECIMALS = 12  # 0.3 - 0.2 and 0.2 - 0.1 are one difference


@dataclass(frozen=True, eq=False)
class Significance:
    """Tests of n submissions by m metrics: entry [i, j, c] asks whether i is better than j by metric c.

    `p` and `p_holm` are (n, n, m), 1 on the diagonal; `wins` is (n, m), the number of significantly worse submissions.
    """

    metrics: tuple[str, ...]
    p: np.ndarray
    p_holm: np.ndarray
    wins: np.ndarray


def pairwise_significance(table: CaseTable, scheme: Scheme) -> Significance:
    """Test every ordered pair on all cases, each metric apart; Holm over the n (n - 1) tests of a metric.

    References
    ----------
    Wiesenfarth et al. 2021, "Methods and open-source toolkit for analyzing and visualizing challenge results".
    """
    p = pairwise_p(table.costs, table.every_case_once)[0]
    p_holm = _holm_off_diagonal(p)
    return Significance(scheme.metrics, p, p_holm, (p_holm <= scheme.alpha).sum(axis=1))


def pairwise_p(costs: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """One-sided p values of every ordered pair, in samples of the cases.

    Parameters
    ----------
    costs : (n, k, m) array
        Lower is better.
    counts : (b, k) array of whole numbers
        How often each case is in each sample. Up to 50 non-zero differences the distribution is exact (given the
        ties) when no case is in twice; otherwise it is taken as normal, with tie correction.

    Returns
    -------
    (b, n, n, m) array
        Entry [b, i, j, c] is small when i is better than j; 1 on the diagonal.
    """
    number, _, metrics = costs.shape
    p = np.ones((len(counts), number, number, metrics))
    columns, once = counts.T.astype(float), np.asarray((counts <= 1).all(axis=1))
    for metric in range(metrics):
        for i in range(number):
            for j in range(i):
                d = differences(costs[j, :, metric], costs[i, :, metric])
                p[:, i, j, metric], p[:, j, i, metric] = _sample_p(d, columns, once)
    return p


def significant_wins(costs: np.ndarray, counts: np.ndarray, *, alpha: float) -> np.ndarray:
    """(b, n, m) numbers of others that each submission beats significantly; arguments as of `pairwise_p`."""
    return (_holm_off_diagonal(pairwise_p(costs, counts)) <= alpha).sum(axis=2)


def _sample_p(d: np.ndarray, counts: np.ndarray, once: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    greater, less = signed_rank_normal(d, counts)
    used = ~np.isnan(d) & (d != 0)
    for sample in np.flatnonzero(once & (counts[used].sum(axis=0) <= EXACT_UP_TO)):
        greater[sample], less[sample] = signed_rank_p(d[counts[:, sample] > 0])
    return greater, less


def differences(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """first - second, rounded so that equal differences are equal; two infinite costs differ by nothing."""
    with np.errstate(invalid="ignore"):
        d = np.round(first - second, DIFFERENCE_DECIMALS)
    return np.where(np.isinf(first) & np.isinf(second), 0.0, d)


def signed_rank_p(d: np.ndarray) -> tuple[float, float]:
    """P values of the Wilcoxon signed-rank test that differences are above, and below, zero.

    Parameters
    ----------
    d : (k,) array
        Zeros and NaN are dropped (Wilcoxon's own way); infinity is the largest difference.

    Returns
    -------
    greater, less : float
        1 and 1 when nothing is left.
    """
    kept = d[~np.isnan(d) & (d != 0)]
    if kept.size == 0:
        return 1.0, 1.0
    if kept.size > EXACT_UP_TO:
        greater, less = signed_rank_normal(kept, np.ones((kept.size, 1)))
        return float(greater[0]), float(less[0])
    doubled = _doubled_midranks(np.abs(kept))
    sums = _null_distribution(tuple(sorted(doubled.tolist())))
    plus = int(doubled[kept > 0].sum())
    return float(min(1.0, sums[plus:].sum())), float(min(1.0, sums[: plus + 1].sum()))


def signed_rank_normal(d: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same by the normal distribution with tie correction and without continuity correction.

    Parameters
    ----------
    d : (k,) array
    counts : (k, b) array of floats
        How often each difference is in each sample.

    Returns
    -------
    greater, less : (b,) arrays
    """
    order = np.argsort(np.abs(d))
    order = order[~np.isnan(d[order]) & (d[order] != 0)]
    if order.size == 0:
        return np.ones(counts.shape[1]), np.ones(counts.shape[1])
    size, positive, counted = np.abs(d[order]), (d[order] > 0)[:, None], counts[order]
    starts = np.flatnonzero(np.concatenate([[True], size[1:] != size[:-1]]))
    tied = np.add.reduceat(counted, starts, axis=0)  # (groups, b): how many differences of one size
    midranks = np.cumsum(tied, axis=0) - (tied - 1) / 2
    plus = (np.add.reduceat(counted * positive, starts, axis=0) * midranks).sum(axis=0)
    n = tied.sum(axis=0)
    variance = n * (n + 1) * (2 * n + 1) / 24 - (tied**3 - tied).sum(axis=0) / 48
    deviation = plus - n * (n + 1) / 4
    z = np.divide(deviation, np.sqrt(variance), out=np.zeros(len(n)), where=variance > 0)
    return np.where(n > 0, ndtr(-z), 1.0), np.where(n > 0, ndtr(z), 1.0)


def holm(p: np.ndarray) -> np.ndarray:
    """P values of t tests along the last axis, corrected by Holm's step-down method (1979, Scand J Stat 6)."""
    tests = p.shape[-1]
    order = np.argsort(p, axis=-1)
    stepped = np.take_along_axis(p, order, axis=-1) * np.arange(tests, 0, -1)
    adjusted = np.minimum(np.maximum.accumulate(stepped, axis=-1), 1.0)
    back = np.empty_like(adjusted)
    np.put_along_axis(back, order, adjusted, axis=-1)
    return back


def _holm_off_diagonal(p: np.ndarray) -> np.ndarray:
    """Holm over the pairs of (..., n, n, m) p values, each metric apart; the diagonal stays 1."""
    number = p.shape[-2]
    off = ~np.eye(number, dtype=bool)
    adjusted = np.ones_like(p)
    if number > 1:
        pairs = np.moveaxis(p[..., off, :], -1, -2)  # (..., m, pairs)
        adjusted[..., off, :] = np.moveaxis(holm(pairs), -2, -1)
    return adjusted


def _doubled_midranks(size: np.ndarray) -> np.ndarray:
    """Twice the mean ranks of (n,) sizes: whole numbers."""
    smaller = (size[None, :] < size[:, None]).sum(axis=1)
    equal = (size[None, :] == size[:, None]).sum(axis=1)
    return 2 * smaller + equal + 1


@lru_cache(maxsize=256)  # without ties it depends on the number of differences only
def _null_distribution(doubled: tuple[int, ...]) -> np.ndarray:
    """Probabilities of every sum of doubled ranks with a positive sign, when each sign is a coin's toss."""
    sums = np.zeros(sum(doubled) + 1)
    sums[0] = 1.0
    for rank in doubled:
        shifted = np.zeros_like(sums)
        shifted[rank:] = sums[: len(sums) - rank]
        sums = (sums + shifted) / 2
    return sums
