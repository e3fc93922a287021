"""Aggregates of weighted cases, against the same cases written out, and ranks and Kendall's tau against SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import kendalltau, rankdata

from leaderboard.aggregation import aggregate
from leaderboard.rank_arithmetic import kendall_tau_b, rank_costs, rank_scores

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize("how", ["mean", "median", "variance"])
def test_cases_that_count_twice_are_two_cases(how: str):
    rng = np.random.default_rng(0)
    costs = rng.normal(1e4, 1, (4, 9, 3))
    costs[rng.random(costs.shape) < 0.2] = NAN
    counts = rng.integers(0, 4, (50, 9))
    counts[0] = 0
    found = aggregate(costs, counts, how)
    for b, n, m in np.ndindex(found.shape):
        written_out = np.repeat(costs[n, :, m], counts[b])
        kept = written_out[~np.isnan(written_out)]
        if kept.size < (2 if how == "variance" else 1):
            assert np.isnan(found[b, n, m])
        else:
            expected = {
                "mean": kept.mean,
                "median": lambda x=kept: np.median(x),
                "variance": lambda x=kept: x.var(ddof=1),
            }
            assert found[b, n, m] == pytest.approx(expected[how](), rel=1e-9, abs=1e-9)


def test_infinite_costs_count_only_where_they_are_drawn():
    costs = np.array([[[1.0], [INF], [3.0]]])
    counts = np.array([[1, 0, 1], [1, 1, 1], [0, 2, 1]])
    assert aggregate(costs, counts, "mean").ravel().tolist() == [2.0, INF, INF]
    assert aggregate(costs, counts, "median").ravel().tolist() == [2.0, 3.0, INF]
    assert aggregate(costs, counts, "variance").ravel().tolist() == [2.0, INF, INF]


def test_variance_of_equal_large_values_is_zero():
    assert aggregate(np.full((1, 7, 1), 1e7 + 0.1), np.ones((1, 7)), "variance").item() == 0.0


@pytest.mark.parametrize("ties", ["min", "average", "dense"])
def test_ranks_as_scipy(ties: str):
    rng = np.random.default_rng(1)
    costs = rng.integers(0, 5, (40, 8)).astype(float)
    np.testing.assert_array_equal(rank_costs(costs, ties=ties), rankdata(costs, method=ties, axis=-1))


def test_undefined_costs_are_last_and_tie():
    assert rank_costs(np.array([NAN, 1.0, INF]), ties="min").tolist() == [2, 1, 2]


def test_scores_with_a_tie_break():
    score, breaker = np.array([2.0, 1.0, 2.0, 2.0]), np.array([3.0, 9.0, 1.0, 3.0])
    assert rank_scores(score, breaker, ties="min").tolist() == [3, 1, 2, 3]
    assert rank_scores(score, breaker, ties="dense").tolist() == [3, 1, 2, 3]
    assert rank_scores(score, breaker, ties="average").tolist() == [3.5, 1, 2, 3.5]
    assert rank_scores(score, None, ties="dense").tolist() == [2, 1, 2, 2]


def test_kendall_tau_by_hand():
    # pairs: (1,2) same order, (1,3) same, (2,3) turned: (2 - 1) / 3
    assert kendall_tau_b(np.array([1, 2, 3]), np.array([1, 3, 2])) == pytest.approx(1 / 3)


@settings(max_examples=200, deadline=None)
@given(arrays(float, st.tuples(st.just(2), st.integers(2, 9)), elements=st.integers(1, 4).map(float)))
def test_kendall_tau_as_scipy(ranks: np.ndarray):
    expected = kendalltau(ranks[0], ranks[1], variant="b").statistic
    np.testing.assert_allclose(kendall_tau_b(ranks[0], ranks[1]), expected, atol=1e-12)


def test_kendall_tau_of_many_rankings_at_once():
    rng = np.random.default_rng(2)
    full, samples = rng.permutation(6), rng.integers(1, 4, (20, 6))
    together = kendall_tau_b(full, samples)
    np.testing.assert_allclose(together, [kendalltau(full, row).statistic for row in samples], atol=1e-12)
    assert np.isnan(kendall_tau_b(np.array([1.0]), np.array([1.0])))
