"""Wilcoxon tests and Holm's correction against SciPy and statsmodels."""

from __future__ import annotations

import math

import numpy as np
import pytest
from board import board, one_metric
from scipy.stats import wilcoxon
from statsmodels.stats.multitest import multipletests

from leaderboard.significance import (
    differences,
    holm,
    pairwise_p,
    pairwise_significance,
    signed_rank_normal,
    signed_rank_p,
    significant_wins,
)
from leaderboard.table import case_table

NAN, INF = math.nan, math.inf


def scipy_p(d: np.ndarray, **options: str) -> tuple[float, float]:
    kept = d[d != 0]
    return tuple(float(wilcoxon(kept, alternative=side, **options).pvalue) for side in ("greater", "less"))  # type: ignore[return-value]


@pytest.mark.parametrize("size", [1, 2, 5, 17, 50])
def test_exact_p_without_ties_as_scipy(size: int):
    rng = np.random.default_rng(size)
    for _ in range(20):
        d = rng.normal(0.3, 1, size)
        assert signed_rank_p(d) == pytest.approx(scipy_p(d, method="exact"), abs=1e-12)


@pytest.mark.parametrize("size", [2, 4, 8, 11])
def test_exact_p_with_ties_as_scipy_permutations(size: int):
    rng = np.random.default_rng(size)
    for _ in range(10):
        d = rng.integers(-3, 5, size).astype(float)
        if not d.any():
            continue
        # up to 13 differences SciPy goes through every assignment of signs
        assert signed_rank_p(d) == pytest.approx(scipy_p(d, method="auto"), abs=1e-9)


@pytest.mark.parametrize("size", [51, 120, 400])
@pytest.mark.parametrize("tied", [True, False])
def test_normal_p_as_scipy(size: int, tied: bool):
    rng = np.random.default_rng(size)
    d = rng.integers(-6, 8, size).astype(float) if tied else rng.normal(0.1, 1, size)
    d = np.concatenate([d, [0.0, NAN]])
    if np.count_nonzero(d[:-1]) > 50:
        assert signed_rank_p(d) == pytest.approx(scipy_p(d[:-1], method="asymptotic"), rel=1e-9)


def test_weighted_differences_are_repeated_differences():
    rng = np.random.default_rng(3)
    d = np.concatenate([rng.normal(0, 1, 20).round(1), [0.0, NAN]])
    counts = rng.integers(0, 4, (22, 30)).astype(float)
    greater, less = signed_rank_normal(d, counts)
    for b in range(30):
        repeated = np.repeat(d, counts[:, b].astype(int))
        expected = scipy_p(repeated[~np.isnan(repeated)], method="asymptotic")
        assert (greater[b], less[b]) == pytest.approx(expected, rel=1e-9)


def test_nothing_to_test_is_not_significant():
    assert signed_rank_p(np.array([0.0, NAN])) == (1.0, 1.0)
    none = signed_rank_normal(np.array([1.0]), np.zeros((1, 2)))
    assert [p.tolist() for p in none] == [[1.0, 1.0], [1.0, 1.0]]


def test_four_cases_are_never_significant_at_five_per_cent():
    # the least possible p is 1/16; the normal distribution with ties would say 0.023
    assert signed_rank_p(np.ones(4)) == (1 / 16, 1.0)
    assert signed_rank_normal(np.ones(4), np.ones((4, 1)))[0][0] < 0.03


def test_equal_differences_and_failed_cases():
    assert differences(np.array([0.3, 0.2]), np.array([0.2, 0.1])).tolist() == [0.1, 0.1]
    assert differences(np.array([INF, INF, 1.0]), np.array([INF, 1.0, INF])).tolist() == [0.0, INF, -INF]
    assert signed_rank_p(np.array([INF, 1.0, -2.0])) == signed_rank_p(np.array([9.0, 1.0, -2.0]))


def test_holm_as_statsmodels():
    rng = np.random.default_rng(4)
    p = rng.random((25, 12)) ** 3
    p[0] = 0.01
    expected = [multipletests(row, method="holm")[1] for row in p]
    np.testing.assert_allclose(holm(p), expected, rtol=1e-12)


def test_pairs_of_a_table():
    rng = np.random.default_rng(5)
    values = rng.random((4, 30, 1)) + np.array([0.4, 0.3, 0.0, 0.0])[:, None, None]
    table = case_table(board(values, metrics=["dice"]), one_metric())
    found = pairwise_significance(table, one_metric())
    pairs = [(i, j) for i in range(4) for j in range(4) if i != j]
    p = [wilcoxon(values[i, :, 0], values[j, :, 0], alternative="greater", method="exact").pvalue for i, j in pairs]
    reject, adjusted, *_ = multipletests(p, alpha=0.05, method="holm")
    for (i, j), single, holmed in zip(pairs, p, adjusted, strict=True):
        assert found.p[i, j, 0] == pytest.approx(single, abs=1e-12)
        assert found.p_holm[i, j, 0] == pytest.approx(holmed, abs=1e-12)
    wins = [sum(bool(r) for (i, _), r in zip(pairs, reject, strict=True) if i == k) for k in range(4)]
    assert found.wins[:, 0].tolist() == wins
    assert wins[0] == wins[1] == 2
    assert (found.p[range(4), range(4)] == 1).all()


def test_lower_is_better_where_the_metric_says_so():
    values = np.array([[[float(i)] for i in range(8)], [[i + 1.0] for i in range(8)]])
    wins = significant_wins(values, np.ones((1, 8), dtype=int), alpha=0.05)  # costs
    assert wins[0, :, 0].tolist() == [1, 0]


def test_samples_at_once_are_samples_one_by_one():
    rng = np.random.default_rng(6)
    costs = rng.random((3, 25, 2)) + np.array([0.0, 0.2, 0.5])[:, None, None]
    counts = rng.integers(0, 3, (6, 25))
    counts[2] = 1
    together = significant_wins(costs, counts, alpha=0.05)
    for b in range(6):
        np.testing.assert_array_equal(together[b], significant_wins(costs, counts[b : b + 1], alpha=0.05)[0])
    repeated = np.repeat(costs, counts[0], axis=1)
    expected = wilcoxon(repeated[0, :, 0], repeated[1, :, 0], alternative="less", method="asymptotic").pvalue
    assert counts[0].max() > 1
    assert pairwise_p(costs, counts[:1])[0, 0, 1, 0] == pytest.approx(expected, rel=1e-9)
    left_out = np.ones((1, 25), dtype=int)
    left_out[0, [3, 8]] = 0
    kept = np.delete(costs, [3, 8], axis=1)
    without, fewer = pairwise_p(costs, left_out), pairwise_p(kept, np.ones((1, 23), dtype=int))
    np.testing.assert_array_equal(without, fewer)
    assert without[0, 0, 1, 0] == wilcoxon(kept[0, :, 0], kept[1, :, 0], alternative="less", method="exact").pvalue
    exact = [wilcoxon(costs[0, :, m], costs[2, :, m], alternative="less", method="exact").pvalue for m in range(2)]
    assert max(exact) * 6 < 0.05  # even times the number of tests
    assert (together[2, 0] >= 1).all()
