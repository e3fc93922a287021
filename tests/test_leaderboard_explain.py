"""What decided a difference: shares of cases, single cases that turn the order, and lesions, all by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from board import board, one_metric
from rich.console import Console

from autopet.errors import AutopetError
from leaderboard.explain import case_weights, explain
from leaderboard.explanation_text import explanation_json, explanation_tables, metric_words, turning_words
from leaderboard.ranking import SCHEMES, rank_submissions

NAN = math.nan
HEADER = "case,kind,lesion,volume_ml,suv_max,suv_mean,x_mm,y_mm,z_mm,status,overlap_voxels,iou\n"
LESIONS_A = HEADER + "c1,truth,1,5.0,9.5,4,1,2,3,matched,10,0.5\nc1,truth,2,2.0,,,4,5,6,missed,0,0\n"
LESIONS_B = HEADER + (
    "c1,truth,1,5.0,9.5,4,1,2,3,missed,0,0\nc1,truth,2,2.0,,,4,5,6,missed,0,0\n"
    "c1,prediction,1,7.5,3,2,0,0,0,false,0,0\nc2,prediction,1,1,3,2,0,0,0,matched,4,0.3\n"
)


def test_shares_by_hand():
    # A - B per case: +0.3, -0.1, 0; mean difference 0.2 / 3
    entries = board({"A": [[0.8], [0.4], [0.5]], "B": [[0.5], [0.5], [0.5]]}, metrics=["dice"])
    found = explain(entries, one_metric(), algorithm="A", against="B")
    metric = found.metrics[0]
    assert (found.rank_a, found.rank_b, metric.mean_a, metric.mean_b) == (1, 2, pytest.approx(1.7 / 3), 0.5)
    assert metric.advantage == pytest.approx(0.2 / 3)
    assert [(c.case, c.a, c.b) for c in metric.cases][:2] == [("case000", 0.8, 0.5), ("case001", 0.4, 0.5)]
    assert [c.advantage for c in metric.cases] == pytest.approx([0.1, -0.1 / 3, 0.0])
    assert [c.share for c in metric.cases] == pytest.approx([1.5, -0.5, 0.0])
    # without the first case B is ahead: 0.45 against 0.5
    assert [(w.case, w.rank_a, w.rank_b, w.turns) for w in found.without_case] == [
        ("case000", 2, 1, True),
        ("case001", 1, 2, False),
        ("case002", 1, 2, False),
    ]
    assert turning_words(found).startswith("The order of the two changes when this case is left out: case000 (")
    turned = explain(entries, one_metric(), algorithm="B", against="A").metrics[0]
    assert [c.share for c in turned.cases] == pytest.approx([1.5, -0.5, 0.0])
    assert turned.advantage == -metric.advantage


@pytest.mark.parametrize("name", ["I", "III"])
@pytest.mark.parametrize("missing", ["ignore", "drop-case"])
def test_shares_add_up_to_the_difference_of_the_means(name: str, missing: str):
    rng = np.random.default_rng(0)
    values = rng.random((3, 9, 3))
    values[0, 4] = NAN
    values[:, 2, 0] = NAN
    scheme = replace(SCHEMES[name], missing=missing, combine="values")
    entries = board(values, tracers=["FDG"] * 6 + ["PSMA"] * 3, centres=["A", "B"] * 4 + ["A"])
    standings = {s.submission.name: s for s in rank_submissions(entries, scheme)}
    found = explain(entries, scheme, algorithm="s00", against="s02")
    for index, metric in enumerate(found.metrics):
        means = [standings[n].means[index] for n in ("s00", "s02")]
        assert [metric.mean_a, metric.mean_b] == pytest.approx(means)
        assert metric.advantage == pytest.approx((means[0] - means[1]) * (1 if index == 0 else -1))
        assert sum(c.advantage for c in metric.cases) == pytest.approx(metric.advantage)
        assert sum(c.share for c in metric.cases) == pytest.approx(1.0)
        assert (metric.rank_a, metric.rank_b) == tuple(standings[n].ranks[index] for n in ("s00", "s02"))


def test_weights_of_subsets():
    groups = (np.array([0, 1]), np.array([2]), np.array([3]))
    assert case_weights(np.array([1.0, NAN, 2.0, NAN]), groups).tolist() == [0.5, 0.0, 0.5, 0.0]


def test_equal_means_have_no_shares():
    entries = board({"A": [[0.4], [0.6]], "B": [[0.6], [0.4]]}, metrics=["dice"])
    found = explain(entries, one_metric(), algorithm="A", against="B")
    assert all(math.isnan(c.share) for c in found.metrics[0].cases)
    assert explanation_json(found)["metrics"][0]["cases"][0]["share"] is None


def test_a_missing_value_that_counts_as_the_worst_decides():
    entries = board({"A": [[0.8], [NAN], [0.6]], "B": [[0.5], [0.5], [0.5]]}, metrics=["dice"])
    found = explain(entries, one_metric(missing="worst"), algorithm="A", against="B")
    metric = found.metrics[0]
    assert (metric.rank_a, metric.rank_b) == (2, 1)
    assert (metric.cases[0].case, metric.cases[0].advantage, metric.advantage) == ("case001", -math.inf, -math.inf)
    assert math.isnan(metric.mean_a)
    assert metric.mean_b == 0.5
    assert [w.turns for w in found.without_case] == [False, True, False]
    assert "A is worse" in metric_words(found, metric)
    json.dumps(explanation_json(found), allow_nan=False)


def test_lesions_that_tell_two_apart(tmp_path: Path):
    a, b = board({"A": [[0.8]], "B": [[0.5]]}, metrics=["dice"])
    (tmp_path / "a.csv").write_text(LESIONS_A)
    (tmp_path / "b.csv").write_text(LESIONS_B)
    entries = [replace(a, lesions=tmp_path / "a.csv"), replace(b, lesions=tmp_path / "b.csv")]
    found = explain(entries, one_metric(), algorithm="A", against="B").lesions
    assert found is not None
    assert [(x.lesion.kind, x.lesion.volume_ml, x.what, x.to_the_good_of) for x in found] == [
        ("prediction", 7.5, "false lesion", "a"),
        ("truth", 5.0, "found by one only", "a"),
    ]
    assert explain([a, entries[1]], one_metric(), algorithm="A", against="B").lesions is None
    (tmp_path / "b.csv").write_text(LESIONS_B.replace("c1,truth,2", "c1,truth,3"))
    with pytest.raises(AutopetError, match="different true lesions"):
        explain(entries, one_metric(), algorithm="A", against="B")


def test_unknown_names_are_refused():
    entries = board({"A": [[0.8]], "B": [[0.5]]}, metrics=["dice"])
    with pytest.raises(AutopetError, match="no submission is named 'C'; the results are those of A, B"):
        explain(entries, one_metric(), algorithm="A", against="C")
    with pytest.raises(AutopetError, match="cannot be compared with itself"):
        explain(entries, one_metric(), algorithm="A", against="A")


def test_tables_show_names_as_they_are_and_only_the_top(tmp_path: Path):
    entries = board({"[bold]A": [[0.8], [0.7], [0.6]], "B": [[0.5], [0.6], [NAN]]}, metrics=["dice"])
    found = explain(entries, one_metric(), algorithm="[bold]A", against="B")
    console = Console(width=150, record=True, file=(tmp_path / "out").open("w"))
    for part in explanation_tables(found, top=1):
        console.print(part)
    text = console.export_text()
    assert "[bold]A (rank 1) is ahead of B (rank 2) by the scheme One metric." in text
    # around the level 0.625 of both: 0.175/3 + 0.125/2, 0.075/3 + 0.025/2, -0.025/3 (only the first has a value)
    assert [c.advantage for c in found.metrics[0].cases] == pytest.approx([0.7250 / 6, 0.225 / 6, -0.05 / 6])
    assert ("case000" in text, "case001" in text, "81%" in text) == (True, False, True)
    assert "lesions.csv is missing" in text
    json.dumps(explanation_json(found), allow_nan=False)
