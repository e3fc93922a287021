"""Ranks of arrays: every function takes leading axes (bootstrap samples) and ranks along one axis."""

from __future__ import annotations

import numpy as np

SCORE_DECIMALS = 9  # what differs by less is a tie, whatever the order of summation


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
    values = np.asarray(values, dtype=float)
    return rank_costs(-values if higher_is_better else values, ties="min").astype(int)


def rank_costs(costs: np.ndarray, *, ties: str) -> np.ndarray:
    """Ranks along the last axis, the lowest cost first.

    Parameters
    ----------
    costs : (..., n) array
        NaN and infinity rank after every number and tie with each other.
    ties : str
        `min` (1, 2, 2, 4), `average` (1, 2.5, 2.5, 4) or `dense` (1, 2, 2, 3).

    Returns
    -------
    (..., n) float array
    """
    costs = np.where(np.isnan(costs), np.inf, costs)
    return _ranks_of_pairs(costs[..., None, :] < costs[..., :, None], costs[..., None, :] == costs[..., :, None], ties)


def rank_scores(score: np.ndarray, tie_break: np.ndarray | None, *, ties: str) -> np.ndarray:
    """Ranks of (..., n) scores, lower is better; equal scores are ordered by `tie_break`, lower is better."""
    better = score[..., None, :] < score[..., :, None]
    equal = score[..., None, :] == score[..., :, None]
    if tie_break is not None:
        better |= equal & (tie_break[..., None, :] < tie_break[..., :, None])
        equal &= tie_break[..., None, :] == tie_break[..., :, None]
    return _ranks_of_pairs(better, equal, ties)


def _ranks_of_pairs(better: np.ndarray, equal: np.ndarray, ties: str) -> np.ndarray:
    """Ranks from (..., n, n) truth values: is column j better than, or equal to, row i?"""
    if ties == "dense":  # each group of equals counts once
        size = equal.sum(axis=-1)
        return 1 + np.round((better / size[..., None, :]).sum(axis=-1))
    ranks = 1.0 + better.sum(axis=-1)
    return ranks + (equal.sum(axis=-1) - 1) / 2 if ties == "average" else ranks


def kendall_tau_b(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Kendall's tau-b of rankings along the last axis (Kendall 1945, Biometrika 33: corrected for ties).

    Parameters
    ----------
    first, second : (..., n) arrays
        Broadcast against each other.

    Returns
    -------
    (...) float array
        NaN where one of the two ranks everything the same (or n is 1).
    """
    first, second = np.broadcast_arrays(np.asarray(first, dtype=float), np.asarray(second, dtype=float))
    rows, columns = np.triu_indices(first.shape[-1], k=1)
    signs = [np.sign(ranks[..., rows] - ranks[..., columns]) for ranks in (first, second)]
    product = (signs[0] * signs[1]).sum(axis=-1)
    untied = np.count_nonzero(signs[0], axis=-1) * np.count_nonzero(signs[1], axis=-1).astype(float)
    return np.divide(product, np.sqrt(untied), out=np.full(product.shape, np.nan), where=untied > 0)
