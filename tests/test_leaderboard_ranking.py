"""Ranks computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from autopet.errors import AutopetError
from leaderboard.ranking import SCHEMES, competition_ranks, rank_means, rank_submissions, scheme_named
from leaderboard.submissions import Submission

NAN = math.nan
SCHEME = SCHEMES["I"]


def submission(name: str, dice: float, fpv: float, fnv: float) -> Submission:
    means = {"dice": dice, "fpv_ml": fpv, "fnv_ml": fnv}
    return Submission(name, "III", "empty", "", "", cases=(), means=means)


def test_competition_ranks_leave_gaps_after_ties():
    assert competition_ranks(np.array([0.7, 0.9, 0.7, 0.1]), higher_is_better=True).tolist() == [2, 1, 2, 4]
    assert competition_ranks(np.array([3.0, 0.0, 0.0, 1.0]), higher_is_better=False).tolist() == [4, 1, 1, 3]


@pytest.mark.parametrize("higher", [True, False])
def test_undefined_values_rank_last_and_tie(higher: bool):
    assert competition_ranks(np.array([NAN, 1.0, NAN]), higher_is_better=higher).tolist() == [2, 1, 2]


def test_weighted_mean_rank_by_hand():
    standings = rank_submissions(
        [
            submission("A", 0.60, 5.0, 2.0),  # ranks 2, 3, 1 -> 0.5*2 + 0.25*3 + 0.25*1 = 2.0
            submission("B", 0.70, 4.0, 3.0),  # ranks 1, 2, 2 -> 1.5
            submission("C", 0.50, 1.0, 4.0),  # ranks 3, 1, 3 -> 2.5
        ],
        SCHEME,
    )
    assert [(s.submission.name, s.rank, s.score, s.ranks) for s in standings] == [
        ("B", 1, 1.5, (1, 2, 2)),
        ("A", 2, 2.0, (2, 3, 1)),
        ("C", 3, 2.5, (3, 1, 3)),
    ]


def test_dice_breaks_ties_of_the_mean_rank():
    # A: ranks 1, 2, 2 -> 1.5; B: ranks 2, 1, 1 -> 1.5
    standings = rank_submissions([submission("B", 0.6, 1.0, 1.0), submission("A", 0.7, 2.0, 2.0)], SCHEME)
    assert [(s.submission.name, s.rank, s.score) for s in standings] == [("A", 1, 1.5), ("B", 2, 1.5)]


def test_what_is_still_tied_shares_a_rank_in_the_order_of_names():
    same = [submission(name, 0.6, 1.0, 1.0) for name in ("z", "b")]
    standings = rank_submissions([*same, submission("best", 0.9, 0.5, 0.5), submission("last", 0.1, 9.0, 9.0)], SCHEME)
    assert [(s.submission.name, s.rank) for s in standings] == [("best", 1), ("b", 2), ("z", 2), ("last", 4)]


def test_submission_without_a_value_ranks_last_and_is_named():
    standings = rank_submissions([submission("null", NAN, 0.0, 0.0), submission("ok", 0.1, 9.0, 9.0)], SCHEME)
    by_name = {s.submission.name: s for s in standings}
    assert by_name["null"].ranks == (2, 1, 1)
    assert by_name["null"].undefined == ("dice",)
    assert [s.submission.name for s in standings] == ["ok", "null"]  # both 1.5, Dice decides


def test_bootstrap_samples_are_ranked_at_once():
    rng = np.random.default_rng(0)
    means = rng.random((5, 4, 3)).round(1)
    means[0, 1, 0] = NAN
    together = rank_means(means, SCHEME)
    for i in range(5):
        alone = rank_means(means[i], SCHEME)
        np.testing.assert_array_equal(together.final[i], alone.final)
        np.testing.assert_array_equal(together.by_metric[i], alone.by_metric)


def test_order_of_submissions_does_not_matter():
    rng = np.random.default_rng(1)
    means = rng.integers(0, 4, (7, 3)) / 4
    order = rng.permutation(7)
    np.testing.assert_array_equal(rank_means(means, SCHEME).final[order], rank_means(means[order], SCHEME).final)


def test_scheme_in_words_and_unknown_scheme():
    assert "mean Dice (higher is better, weight 0.5)" in SCHEME.words
    assert sum(column.weight for column in SCHEME.columns) == 1.0
    with pytest.raises(AutopetError, match="unknown ranking scheme 'X'"):
        scheme_named("X")
