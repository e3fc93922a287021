"""Summaries and the content of metrics.json."""

from __future__ import annotations

import json
import math

import pandas as pd
import pytest

from autopet.errors import AutopetError
from evaluation.aggregate import build_metrics, json_number, policy_text, summarise


def row(case: str, dice: float | None, status: str = "scored") -> dict:
    values = {"dice": dice, "fpv_ml": 1.0, "fnv_ml": 0.5, "gt_ml": 2.0, "pred_ml": 2.0}
    return {"case": case, "status": status, "reason": "", **values}


def test_summary_is_that_of_pandas_without_undefined_values():
    values = [0.5, None, 0.9, 0.1, math.nan, 0.7]
    theirs = pd.Series([0.5, 0.9, 0.1, 0.7]).describe()
    ours = summarise(values)
    assert ours == {key: pytest.approx(theirs[key]) for key in ours}
    assert ours["count"] == 4


def test_summary_of_one_value_and_of_none():
    assert summarise([0.25])["std"] == 0.0
    nothing = summarise([None, math.nan])
    assert nothing.pop("count") == 0
    assert set(nothing.values()) == {None}


def test_both_conventions_and_the_alias_that_doubles_dice():
    metrics = build_metrics([row("b", 0.5), row("a", None)], name="x", edition="III", failed="empty")
    assert metrics["aggregates"]["dice"]["mean"] == 0.5
    assert metrics["aggregates"]["dice_again"] == metrics["aggregates"]["dice"]
    assert metrics["case"]["dice"] == {"0": 0.5, "1": None}
    assert metrics["case"]["case"] == {"0": "b", "1": "a"}
    assert [entry["case"] for entry in metrics["results"]] == ["b", "a"]
    assert metrics["cases"] == {"all": 2, "scored": 2, "missing": 0, "failed": 0, "refused": 0}


def test_a_metric_without_any_value_is_null_and_noted():
    metrics = build_metrics([row("a", None)], name="x", edition="III", failed="empty")
    assert metrics["aggregates"]["dice"]["mean"] is None
    assert any("dice" in note and "null" in note for note in metrics["notes"])


def test_lost_cases_are_noted_with_the_policy():
    metrics = build_metrics([row("a", 0.0, "failed"), row("b", 1.0)], name="x", edition="III", failed="empty")
    assert metrics["policy"]["failed"] == "empty"
    assert any(note.startswith("1 of 2 cases without a valid prediction") for note in metrics["notes"])


def test_no_key_has_a_dot():
    def keys(value: object) -> list[str]:
        if isinstance(value, dict):
            return [*value, *(key for inner in value.values() for key in keys(inner))]
        return [key for inner in value for key in keys(inner)] if isinstance(value, list) else []

    metrics = build_metrics([row("case.1", 0.5)], name="x.y", edition="III", failed="nan")
    assert not [key for key in keys(json.loads(json.dumps(metrics))) if "." in key]


def test_numbers_without_json_form_become_none():
    assert [json_number(value) for value in (math.nan, math.inf, 1.5)] == [None, None, 1.5]


def test_unknown_policy_is_refused():
    with pytest.raises(AutopetError, match=r"unknown policy 'worst'.*empty, nan"):
        policy_text("worst")
