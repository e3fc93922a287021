"""Ranks without cases and subsets, and under other schemes, against ranking what is left."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from board import board, one_metric
from scipy.stats import kendalltau

from leaderboard.ranking import SCHEMES, rank_submissions
from leaderboard.robustness import under_each_scheme, without_each_case, without_each_subset
from leaderboard.scheme import Scheme
from leaderboard.table import case_table

TRACERS, CENTRES = ["FDG"] * 5 + ["PSMA"] * 3, ["A", "A", "B", "B", "B", "A", "A", "A"]
SCHEMES_TO_TRY = [
    SCHEMES["I"],
    replace(SCHEMES["III"], missing="worst"),
    replace(SCHEMES["I"], method="test-then-rank"),
    replace(SCHEMES["III"], method="rank-then-aggregate"),
]


def random_values() -> np.ndarray:
    values = np.random.default_rng(0).random((4, 8, 3))
    values[1, 2] = np.nan
    return values


def places(values: np.ndarray, keep: list[int], scheme: Scheme) -> list[float]:
    entries = board(values[:, keep], tracers=[TRACERS[i] for i in keep], centres=[CENTRES[i] for i in keep])
    found = {s.submission.name: s.rank for s in rank_submissions(entries, scheme)}
    return [found[entry.name] for entry in entries]


@pytest.mark.parametrize("scheme", SCHEMES_TO_TRY)
def test_without_each_case(scheme: Scheme):
    values = random_values()
    table = case_table(board(values, tracers=TRACERS, centres=CENTRES), scheme)
    found = without_each_case(table, scheme)
    assert found is not None
    assert found.names == table.cases
    for case in range(8):
        expected = places(values, [i for i in range(8) if i != case], scheme)
        assert found.ranks[case].tolist() == expected
    full = places(values, list(range(8)), scheme)
    np.testing.assert_allclose(found.tau, [kendalltau(full, row).statistic for row in found.ranks])


@pytest.mark.parametrize("scheme", SCHEMES_TO_TRY)
def test_without_each_subset(scheme: Scheme):
    values = random_values()
    entries = board(values, tracers=TRACERS, centres=CENTRES)
    found = without_each_subset(case_table(entries, scheme), scheme, entries[0])
    assert found is not None
    assert found.names == ("FDG A", "FDG B", "PSMA A")
    for row, left_out in enumerate([("FDG", "A"), ("FDG", "B"), ("PSMA", "A")]):
        keep = [i for i in range(8) if (TRACERS[i], CENTRES[i]) != left_out]
        assert found.ranks[row].tolist() == places(values, keep, scheme)


def test_nothing_to_leave_out():
    entries = board(np.array([[[0.5]], [[0.4]]]), metrics=["dice"])
    table = case_table(entries, one_metric())
    assert without_each_case(table, one_metric()) is None
    assert without_each_subset(table, one_metric(), entries[0]) is None


def test_under_the_schemes_that_apply():
    values = random_values()
    with_origin = under_each_scheme(board(values, tracers=TRACERS, centres=CENTRES), SCHEMES["III"])
    variants = ("mean-then-rank", "median-then-rank", "rank-then-mean", "rank-then-median", "test-then-rank")
    editions = ("autoPET I", "autoPET II", "autoPET II, award category 2", "autoPET III")
    assert with_origin.names == (*editions, *(f"autoPET III: {name}" for name in variants))
    for name, scheme in (("autoPET I", SCHEMES["I"]), ("autoPET III", SCHEMES["III"])):
        row = with_origin.names.index(name)
        assert with_origin.ranks[row].tolist() == places(values, list(range(8)), scheme)
    assert with_origin.tau[with_origin.names.index("autoPET III")] == 1.0
    plain = under_each_scheme(board(values), SCHEMES["I"])
    assert "autoPET III" not in plain.names
    assert "autoPET V" not in plain.names
    row = plain.names.index("autoPET I: median-then-rank")
    expected = rank_submissions(board(values), replace(SCHEMES["I"], aggregate="median"))
    assert [s.rank for s in expected] == sorted(plain.ranks[row])


def test_an_edition_whose_metrics_nobody_has_does_not_apply():
    values = np.random.default_rng(1).random((3, 4, 4))
    values[..., 3] = np.nan
    found = under_each_scheme(board(values, metrics=["dice", "fpv_ml", "auc_dice", "auc_f1"]), one_metric())
    assert "autoPET V" not in found.names
    values[..., 3] = 0.5
    found = under_each_scheme(board(values, metrics=["dice", "fpv_ml", "auc_dice", "auc_f1"]), one_metric())
    assert "autoPET V" not in found.names  # its lesions are pooled by click step
    steps = {f"s{i:02d}": [((1, 0, 1),) * 6] * 4 for i in range(3)}
    entries = board(values, metrics=["dice", "fpv_ml", "auc_dice", "auc_f1"], steps=steps)
    assert "autoPET V" in under_each_scheme(entries, one_metric()).names
    own = under_each_scheme(entries, replace(SCHEMES["V"], bootstraps=0))
    assert "autoPET V: median-then-rank" in own.names
