"""Bootstrap of ranks: what is drawn, what comes out, and that chunks do not show."""

from __future__ import annotations

import time
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from board import board, one_metric
from scipy.stats import binom, kendalltau

from leaderboard import bootstrap
from leaderboard.bootstrap import bootstrap_ranks, chunk_size, resampled_counts
from leaderboard.ranking import SCHEMES, rank_submissions
from leaderboard.scheme import Scheme
from leaderboard.table import CaseTable, case_table


def table_of(values: np.ndarray, scheme: Scheme, **options: list[str]) -> CaseTable:
    return case_table(board(values, **options), scheme)


def test_subsets_keep_their_size():
    groups = (np.array([0, 3, 4]), np.array([1]), np.array([2, 5]))
    counts = np.concatenate(list(resampled_counts(groups, 500, seed=1, chunk=64)))
    assert counts.shape == (500, 6)
    for group in groups:
        assert (counts[:, group].sum(axis=1) == len(group)).all()
    assert (counts[:, 1] == 1).all()
    # how often case 0 is drawn is binomial: 3 draws with chance 1/3
    seen = np.bincount(counts[:, 0], minlength=4) / 500
    np.testing.assert_allclose(seen, binom.pmf(range(4), 3, 1 / 3), atol=0.07)


def test_chunks_and_repetitions_give_the_same_samples():
    groups = (np.arange(5), np.arange(5, 12))
    whole, parts, again = (
        np.concatenate(list(resampled_counts(groups, 100, seed=7, chunk=chunk))) for chunk in (100, 33, 100)
    )
    np.testing.assert_array_equal(whole, parts)
    np.testing.assert_array_equal(whole, again)
    halves = np.concatenate(list(resampled_counts((np.arange(5), np.arange(5, 10)), 100, seed=7, chunk=100)))
    assert (halves[:, :5] != halves[:, 5:]).any()  # subsets of one size are drawn apart from each other
    other = np.concatenate(list(resampled_counts(groups, 100, seed=8, chunk=100)))
    assert (whole != other).any()


@pytest.mark.parametrize(
    "scheme",
    [
        SCHEMES["I"],
        SCHEMES["II-2"],
        SCHEMES["III"],
        replace(SCHEMES["III"], combine="values", aggregate="median"),
        replace(SCHEMES["III"], method="rank-then-aggregate", missing="worst", ties="average"),
    ],
)
def test_every_sample_is_ranked_like_a_cohort_with_its_cases(scheme: Scheme):
    """The vectorised samples against `rank_submissions` on cohorts in which drawn cases are written out."""
    rng = np.random.default_rng(0)
    values = rng.integers(0, 6, (5, 12, 3)) / 5
    values[rng.random(values.shape) < 0.1] = np.nan
    tracers, centres = ["FDG"] * 7 + ["PSMA"] * 5, ["A", "B"] * 6
    scheme = replace(scheme, bootstraps=25)
    table = table_of(values, scheme, tracers=tracers, centres=centres)
    found = bootstrap_ranks(table, scheme)
    assert found is not None
    counts = np.concatenate(list(resampled_counts(table.groups, 25, seed=scheme.seed, chunk=25)))
    for ranks, count in zip(found.ranks, counts, strict=True):
        drawn = np.repeat(np.arange(12), count)
        cohort = board(values[:, drawn], tracers=[tracers[i] for i in drawn], centres=[centres[i] for i in drawn])
        expected = {s.submission.name: s.rank for s in rank_submissions(cohort, scheme)}
        assert dict(zip(table.names, ranks, strict=True)) == expected


def test_intervals_chances_and_tau():
    rng = np.random.default_rng(1)
    values = np.stack([rng.random(30) + shift for shift in (1.0, 0.05, 0.0)])[..., None]
    scheme = one_metric(bootstraps=400, interval=0.9)
    found = bootstrap_ranks(table_of(values, scheme, metrics=["dice"]), scheme)
    assert found is not None
    assert (found.low[0], found.high[0], found.p_first.tolist()) == (1, 1, [1.0, 0.0, 0.0])
    for i in range(3):
        ordered = np.sort(found.ranks[:, i])
        assert (found.low[i], found.high[i]) == (ordered[19], ordered[379])  # the 20th and the 380th of 400
    np.testing.assert_allclose(found.tau, [kendalltau(found.final, row).statistic for row in found.ranks])
    assert set(np.round(found.tau, 6)) == {1.0, round(1 / 3, 6)}  # the last two swap in some samples
    shares = found.shares()
    np.testing.assert_allclose(shares.sum(axis=1), 1.0)
    assert shares[1, 1] == np.mean(found.ranks[:, 1] == 2)


def test_equal_cases_and_ties_are_certain_and_one_case_says_nothing():
    scheme = one_metric(bootstraps=50)
    values = np.array([[[0.5]], [[0.5]], [[0.4]]])
    assert bootstrap_ranks(table_of(values, scheme, metrics=["dice"]), scheme) is None
    found = bootstrap_ranks(table_of(np.repeat(values, 2, axis=1), scheme, metrics=["dice"]), scheme)
    assert found is not None
    assert found.ranks.tolist() == [[1, 1, 3]] * 50
    assert found.p_first.tolist() == [1, 1, 0]  # a shared first place counts for both
    all_tied = bootstrap_ranks(table_of(np.full((2, 3, 1), 0.5), scheme, metrics=["dice"]), scheme)
    assert all_tied is not None
    assert np.isnan(all_tied.tau_mean)


def test_no_bootstrap_when_none_is_asked_for():
    scheme = one_metric(bootstraps=0)
    assert bootstrap_ranks(table_of(np.zeros((2, 2, 1)), scheme, metrics=["dice"]), scheme) is None


def test_small_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch):
    values = np.random.default_rng(2).random((4, 10, 3))
    scheme = replace(SCHEMES["I"], bootstraps=60)
    table = table_of(values, scheme)
    whole = bootstrap_ranks(table, scheme)
    monkeypatch.setattr(bootstrap, "CHUNK_BYTES", 7 * 8 * 4 * 4 * 3)
    assert chunk_size(table) == 7
    parts = bootstrap_ranks(table, scheme)
    assert whole is not None
    assert parts is not None
    np.testing.assert_array_equal(whole.ranks, parts.ranks)
    np.testing.assert_array_equal(whole.tau, parts.tau)


@pytest.mark.parametrize("name", ["I", "III"])
def test_ten_thousand_samples_of_a_large_challenge_take_seconds(name: str):
    """30 submissions x 200 cases x 3 metrics: measured 0.3 to 0.5 s on two idle cores; the bound is for busy ones."""
    rng = np.random.default_rng(3)
    values = rng.random((30, 200, 3)) + rng.random((30, 1, 1)) / 3
    scheme = SCHEMES[name]
    table = table_of(values, scheme, tracers=["FDG", "PSMA"] * 100, centres=["A", "A", "B", "B"] * 50)
    tracemalloc.start()
    started = time.monotonic()
    found = bootstrap_ranks(table, scheme)
    seconds, peak_bytes = time.monotonic() - started, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found is not None
    assert found.ranks.shape == (10_000, 30)
    assert seconds < 30
    assert peak_bytes < 4 * bootstrap.CHUNK_BYTES
