"""Edition V's F1: lesions pooled over the cases at each click step, all by hand."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from board import board

from autopet.errors import AutopetError
from leaderboard.explain import explain
from leaderboard.pooled import pooled_f1_costs
from leaderboard.ranking import SCHEMES, rank_samples, rank_submissions
from leaderboard.submissions import Submission
from leaderboard.table import case_table

NAN = math.nan
V = SCHEMES["V"]
Counts = tuple[float, float, float]
# A finds 90 of 100 lesions of the first patient and misses the only one of the second; B finds 10, and the only one
A: list[Counts] = [(90, 0, 10), (0, 0, 1)]
B: list[Counts] = [(10, 0, 90), (1, 0, 0)]


def entries(tables: dict[str, list[Counts | None]], **options: dict) -> list[Submission]:
    """The same counts at six steps, the same Dice, and the areas by case as `evaluate` writes them."""
    values = {name: [(2.5, _area(counts)) for counts in rows] for name, rows in tables.items()}
    steps = {name: [None if counts is None else (counts,) * 6 for counts in rows] for name, rows in tables.items()}
    return board(values, metrics=("auc_dice", "auc_f1"), steps=steps, **options)


def _area(counts: Counts | None) -> float:
    if counts is None or counts[0] + counts[2] == 0:
        return NAN
    return 5 * 2 * counts[0] / (2 * counts[0] + counts[1] + counts[2])


def test_lesions_are_pooled_before_f1():
    first, second = rank_submissions(entries({"B": B, "A": A}), V)
    assert [(first.submission.name, first.rank), (second.submission.name, second.rank)] == [("A", 1), ("B", 2)]
    assert first.means[1] == pytest.approx(5 * 180 / 191)  # TP 90, FN 11
    assert second.means[1] == pytest.approx(5 * 22 / 112)  # TP 11, FN 90
    assert np.mean([_area(c) for c in A]) < np.mean([_area(c) for c in B])  # the mean over cases says the opposite


def test_the_area_is_a_trapezoid_over_the_steps():
    # F1 at three steps: 0, 2/3 (TP 1, FP 0, FN 1), 1 -> 1/3 + 5/6
    steps = np.array([[[(0, 0, 2), (1, 0, 1), (2, 0, 0)]]], dtype=float)
    assert pooled_f1_costs(steps, np.ones((1, 1))).item() == pytest.approx(-(1 / 3 + 5 / 6))


def test_false_lesions_of_a_case_without_lesions_count():
    standings = rank_submissions(entries({"calm": [(5, 0, 5), (0, 0, 0)], "wild": [(5, 0, 5), (0, 30, 0)]}), V)
    assert [(s.submission.name, s.ranks[1]) for s in standings] == [("calm", 1), ("wild", 2)]
    assert [s.means[1] for s in standings] == pytest.approx([5 * 10 / 15, 5 * 10 / 45])


def test_samples_count_cases_as_often_as_they_are_drawn():
    steps = np.array([[[c] * 6 for c in A], [[c] * 6 for c in B]], dtype=float)
    found = pooled_f1_costs(steps, np.array([[1, 1], [0, 2], [2, 0], [0, 0]]))
    expected = [[-5 * 180 / 191, -5 * 22 / 112], [0, -5], [-4.5 / 0.95, -1 / 1.1], [NAN, NAN]]
    np.testing.assert_allclose(found, expected)  # 90/100: F1 180/190; 10/100: F1 20/110
    table = case_table(entries({"A": A, "B": B}), V)
    assert rank_samples(table, V, np.array([[1, 1], [0, 2]])).by_metric[..., 1].tolist() == [[1, 2], [2, 1]]


def test_a_lost_case_without_counts_is_the_worst():
    lost: dict[str, list[Counts | None]] = {"A": [(90, 0, 10), None], "B": B}
    statuses = {"A": ["scored", "failed"]}
    assert [s.submission.name for s in rank_submissions(entries(lost, statuses=statuses), V)] == ["B", "A"]
    with pytest.raises(
        AutopetError, match=r"results of 'A' lack \(case case001\); evaluate them anew with click steps"
    ):
        rank_submissions(entries(lost), V)  # scored, but without counts


def test_results_without_steps_or_with_other_steps_are_refused():
    values = {"A": [(2.5, 2.0)]}
    with pytest.raises(AutopetError, match="needs detection_steps, which the results of 'A' lack"):
        rank_submissions(board(values, metrics=("auc_dice", "auc_f1")), V)
    mixed = {"A": [((1, 0, 0),) * 6, ((1, 0, 0),) * 5]}
    with pytest.raises(AutopetError, match="5 steps for one case and 6 for another"):
        rank_submissions(board({"A": [(2.5, 2.0)] * 2}, metrics=("auc_dice", "auc_f1"), steps=mixed), V)


def test_explain_says_what_leaving_a_case_out_takes_away():
    metric = explain(entries({"A": A, "B": B}), V, algorithm="A", against="B").metrics[1]
    assert (metric.mean_a, metric.mean_b) == pytest.approx((5 * 180 / 191, 5 * 22 / 112))
    whole = 5 * 180 / 191 - 5 * 22 / 112
    # without the first A has 0 and B 5; without the second 180/190 and 20/110 of 5
    by_case = {share.case: share.advantage for share in metric.cases}
    assert by_case == pytest.approx({"case000": whole + 5, "case001": whole - 5 * (18 / 19 - 2 / 11)})


def test_many_samples_as_by_plain_loops():
    rng = np.random.default_rng(5)
    steps = rng.integers(0, 4, (3, 7, 6, 3)).astype(float)
    steps[1, 2] = NAN  # left out
    counts = rng.multinomial(7, [1 / 7] * 7, size=40)
    found = pooled_f1_costs(steps, counts)
    for sample, times in enumerate(counts):
        for n in range(3):
            f1 = []
            for step in range(6):
                drawn = [
                    steps[n, c, step] for c in range(7) for _ in range(times[c]) if not np.isnan(steps[n, c, step, 0])
                ]
                tp, fp, fn = (sum(one[i] for one in drawn) for i in range(3))
                f1.append(2 * tp / (2 * tp + fp + fn))
            area = sum((a + b) / 2 for a, b in pairwise(f1))
            assert found[sample, n] == pytest.approx(-area)
