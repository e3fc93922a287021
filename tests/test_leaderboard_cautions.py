"""What a ranking must not hide: metrics without values, lost cases, a bootstrap that cannot vary, other editions."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from board import board, one_metric
from rich.console import Console

from autopet.commands.statistics import _rank_table
from autopet.errors import AutopetError
from leaderboard.analysis import analyse
from leaderboard.explain import explain
from leaderboard.ranking import SCHEMES, rank_submissions
from leaderboard.ranking_files import no_formula
from leaderboard.scheme import Column
from leaderboard.submissions import MetricInfo

NAN = math.nan
LOSSY = {"careful": [[0.6], [0.6], [0.6]], "one": [[0.9], [NAN], [NAN]]}
STATUSES = {"one": ["scored", "failed", "missing"]}


def test_a_metric_without_any_value_is_refused():
    entries = board({"a": [[0.5, NAN, 1.0]] * 2, "b": [[0.4, NAN, 1.0]] * 2})
    with pytest.raises(AutopetError, match="by metric 'fpv_ml', for which no submission has a value in any case; rank"):
        analyse(entries, SCHEMES["I"])
    for metric, remedy in (("nsd", "with --surface"), ("auc_dice", "with click steps")):
        scheme = one_metric(columns=(Column(metric, "M", "", 1.0, True),))
        with pytest.raises(AutopetError, match=f"by metric '{metric}', for which no submission .* evaluate {remedy}"):
            analyse(board({"a": [[NAN]], "b": [[NAN]]}, metrics=[metric]), scheme)
    with pytest.raises(AutopetError, match="'fpv_ml', for which no submission"):
        explain(entries, SCHEMES["I"], algorithm="a", against="b")


@pytest.mark.parametrize("told", ["lower", "none"])
def test_the_direction_of_the_results_is_not_contradicted(told: str):
    entries = [
        replace(s, metrics=(MetricInfo("dice", "D", "", told),)) for s in board({"a": [[0.5]]}, metrics=["dice"])
    ]
    with pytest.raises(
        AutopetError, match=f"says that higher is better for metric 'dice', the results of 'a' say '{told}'"
    ):
        rank_submissions(entries, one_metric())
    agreed = [replace(s, metrics=(MetricInfo("dice", "D", "", "higher"),)) for s in entries]
    assert rank_submissions(agreed, one_metric())[0].rank == 1


def test_losing_cases_does_not_win_by_a_shipped_scheme():
    entries = board(LOSSY, metrics=["dice"], statuses=STATUSES)
    ranked = rank_submissions(entries, one_metric(missing=SCHEMES["I"].missing, lost=SCHEMES["I"].lost))
    assert [s.submission.name for s in ranked] == ["careful", "one"]
    # a case without lesions (scored, undefined) is still left out, and one that all lost is, too
    clean = board({"careful": [[0.6], [0.6], [0.6]], "one": [[0.9], [NAN], [NAN]]}, metrics=["dice"])
    assert rank_submissions(clean, one_metric(lost="worst"))[0].submission.name == "one"


def test_ignored_lost_cases_are_shouted():
    entries = board(LOSSY, metrics=["dice"], statuses=STATUSES)
    found = analyse(entries, one_metric())
    assert found.standings[0].submission.name == "one"
    assert len(found.notes) == 1
    assert "WARNING: lost cases are left out" in found.notes[0]
    assert "one (2 of 3)" in found.notes[0]
    assert found.notes[0] in found.methods
    assert analyse(entries, one_metric(lost="worst")).notes == ()
    assert analyse([replace(s, policy="empty") for s in entries], one_metric()).notes == ()


def test_a_lost_case_can_be_dropped_for_all():
    entries = board(LOSSY, metrics=["dice"], statuses=STATUSES)
    ranked = rank_submissions(entries, one_metric(lost="drop-case"))
    assert [(s.submission.name, s.means[0]) for s in ranked] == [("one", 0.9), ("careful", 0.6)]


def test_a_cohort_of_one_case_has_no_interval():
    found = analyse(board({"a": [[0.5]], "b": [[0.4]]}, metrics=["dice"]), one_metric())
    assert found.stability is None
    assert found.notes == ("NOTE: there is one case only; nothing can be said of the uncertainty of the ranks.",)
    console = Console(width=120)
    with console.capture() as shown:
        console.print(_rank_table(found))
    line = next(line for line in shown.get().splitlines() if " a " in line)
    assert [cell.strip() for cell in line.strip("│ ").split("│")][:4] == ["1", "a", "-", "-"]


def test_a_subset_of_one_case_is_named():
    tables = {"a": [[0.5]] * 3, "b": [[0.4]] * 3}
    scheme = one_metric(subsets=("centre",))
    found = analyse(board(tables, metrics=["dice"], centres=["X", "X", "Y"]), scheme)
    assert found.stability is not None
    assert ["the same in every bootstrap sample: Y; rank intervals" in note for note in found.notes] == [True]
    frozen = analyse(board(tables, metrics=["dice"], centres=["X", "Y", "Z"]), scheme)
    assert frozen.stability is None
    assert "X, Y, Z; no subset has more" in frozen.notes[0]
    assert analyse(board(tables, metrics=["dice"]), one_metric()).notes == ()


def test_edition_three_ranked_by_the_scheme_of_edition_one():
    entries = board({"a": [[0.5, 1.0, 1.0]] * 2, "b": [[0.4, 1.0, 1.0]] * 2})
    scheme = replace(SCHEMES["I"], bootstraps=10)
    assert "--scheme III" in analyse(entries, scheme).notes[0]
    assert analyse([replace(s, edition="I") for s in entries], scheme).notes == ()


def test_formulas_behind_spaces():
    assert [no_formula(name) for name in (" =1+1", "\u00a0@x", "a=b")] == ["' =1+1", "'\u00a0@x", "a=b"]
