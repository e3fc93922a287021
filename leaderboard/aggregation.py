"""Means, medians and variances over cases that count several times or not at all.

A bootstrap sample, the full cohort and the cohort without one case are all rows of counts: how often each case is in.
So one matrix product gives the means of thousands of samples.
"""

from __future__ import annotations

import numpy as np


def aggregate(costs: np.ndarray, counts: np.ndarray, how: str) -> np.ndarray:
    """Mean, median or variance of costs over the cases, each case taken as often as it counts.

    Parameters
    ----------
    costs : (n, k, m) array
        n submissions, k cases, m metrics. NaN is left out; infinity is the worst there is.
    counts : (b, k) array of whole numbers
    how : str
        `mean`, `median` (the mean of the two middle values when their number is even) or `variance` (n - 1).

    Returns
    -------
    (b, n, m) array
        NaN where nothing is left (or one value, for the variance); infinity where the mean holds one.
    """
    submissions, cases, metrics = costs.shape
    flat = costs.transpose(1, 0, 2).reshape(cases, submissions * metrics)
    function = {"mean": _means, "median": _medians, "variance": _variances}[how]
    return function(flat, counts).reshape(len(counts), submissions, metrics)


def _means(flat: np.ndarray, counts: np.ndarray) -> np.ndarray:
    weights = counts.astype(float)
    finite = np.isfinite(flat)
    sums, totals = weights @ np.where(finite, flat, 0.0), weights @ finite
    means = np.divide(sums, totals, out=np.full(sums.shape, np.nan), where=totals > 0)
    return _with_infinite(means, flat, weights)


def _variances(flat: np.ndarray, counts: np.ndarray) -> np.ndarray:
    weights = counts.astype(float)
    finite = np.isfinite(flat)
    number = finite.sum(axis=0)
    centre = np.where(finite, flat, 0.0).sum(axis=0) / np.maximum(number, 1)
    centred = np.where(finite, flat - centre, 0.0)  # near zero, so that squares of large values do not cancel
    sums, squares, totals = weights @ centred, weights @ centred**2, weights @ finite
    spread = squares - np.divide(sums**2, totals, out=np.zeros(sums.shape), where=totals > 0)
    variances = np.divide(np.maximum(spread, 0.0), totals - 1, out=np.full(sums.shape, np.nan), where=totals > 1)
    return _with_infinite(variances, flat, weights)


def _with_infinite(values: np.ndarray, flat: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Infinity where a sample holds an infinite cost (a product with it would be NaN for samples that do not)."""
    infinite = np.isinf(flat)
    return np.where(weights @ infinite > 0, np.inf, values) if infinite.any() else values


def _medians(flat: np.ndarray, counts: np.ndarray) -> np.ndarray:
    medians = np.full((len(counts), flat.shape[1]), np.nan)
    columns_first = np.ascontiguousarray(counts.T, dtype=np.int32)  # (k, b): a case's counts lie side by side
    for column, values in enumerate(flat.T):
        order = np.argsort(values)[: np.count_nonzero(~np.isnan(values))]  # NaN sorts last
        if order.size:
            medians[:, column] = _weighted_median(values[order], columns_first[order])
    return medians


def _weighted_median(ordered: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(b,) medians of (k,) ordered values that count (k, b) times; NaN where nothing counts."""
    running = np.cumsum(counts, axis=0, dtype=np.int32)
    total = running[-1]
    low, high = ((running <= position).sum(axis=0) for position in ((total - 1) // 2, total // 2))
    last = len(ordered) - 1
    middle = (ordered[np.minimum(low, last)] + ordered[np.minimum(high, last)]) / 2
    return np.where(total > 0, middle, np.nan)
