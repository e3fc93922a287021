"""Summaries and the content of metrics.json."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
from evaluation_helpers import problems

from autopet.errors import AutopetError
from evaluation.aggregate import build_metrics, json_number, printable, summarise
from evaluation.lesions import LesionRow

LESION = LesionRow("truth", 1, 0.5, 9.0, 4.0, 0.0, 0.0, 0.0, "matched", 3, 0.2)


def row(case: str, dice: float | None, status: str = "scored") -> dict:
    values = {"dice": dice, "fpv_ml": 1.0, "fnv_ml": 0.5, "gt_ml": 2.0, "pred_ml": 2.0}
    return {"case": case, "status": status, "reason": "", **values}


def test_summary_is_that_of_pandas_without_undefined_values():
    values = [0.5, None, 0.9, 0.1, math.nan, 0.7]
    theirs = pd.Series([0.5, 0.9, 0.1, 0.7]).describe()
    ours = summarise(values)
    assert ours.pop("iqr") == pytest.approx(theirs["75%"] - theirs["25%"])
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


def test_the_older_form_is_a_table_with_the_same_summaries():
    rows = [row("a", 0.5), row("b", 0.75) | {"fpv_ml": 9.0}, row("c", None)]
    metrics = build_metrics(rows, name="x", edition="III", failed="empty")
    table = pd.DataFrame(metrics["case"])
    assert table["case"].tolist() == ["a", "b", "c"]
    for name in ("dice", "fpv_ml", "gt_ml"):
        theirs = table[name].astype(float).describe()
        assert {key: metrics["aggregates"][name][key] for key in theirs.index} == pytest.approx(theirs.to_dict())


def test_rows_of_what_knows_three_metrics_only_are_completed():
    metrics = build_metrics([row("a", 0.5)], name="x", edition="III", failed="empty")
    assert problems(metrics) == []
    assert metrics["results"][0]["nsd"] is None
    assert not [note for note in metrics["notes"] if "nsd" in note]


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

    metrics = build_metrics([row("case.1", 0.5)], name="x.y", edition="III", failed="nan", lesions=[LESION])
    assert metrics["cohort"]["detection_by_volume"][1]["lesions"] == 1
    assert not [key for key in keys(json.loads(json.dumps(metrics))) if "." in key]


def test_numbers_without_json_form_become_none():
    assert [json_number(value) for value in (math.nan, math.inf, 1.5)] == [None, None, 1.5]
    assert json.dumps([json_number(value) for value in (np.int64(3), 2, np.float64(2.0))]) == "[3, 2, 2.0]"


def test_text_of_others_is_shown_without_control_characters():
    assert printable("Müller's  mask 1") == "Müller's  mask 1"
    assert printable("a\x1b[2J\x07\x9b b") == "a\ufffd[2J\ufffd\ufffd b"
    assert printable("\u202etxt\u2066\u200f\u200b\ufeff\ud800") == "\ufffdtxt" + "\ufffd" * 5
    assert printable("a\nb\r\nc\u2028d\te") == "a b c d e"
    assert (len(printable("x" * 5000)), printable("x" * 5000)[-1]) == (2000, "…")
    assert printable("x" * 200, limit=200) == "x" * 200
    assert build_metrics([row("a", 0.5)], name="\x1b" + "n" * 500, edition="III", failed="empty")["name"] == (
        "\ufffd" + "n" * 198 + "…"
    )


def test_losing_hard_cases_does_not_raise_the_agreement():
    volumes_ml = [(1.0, 1.2), (2.0, 1.9), (4.0, 4.1), (50.0, None)]
    rows = [
        row(f"c{n}", 0.5, "scored" if pred is not None else "failed") | {"gt_ml": true, "pred_ml": pred}
        for n, (true, pred) in enumerate(volumes_ml)
    ]
    cohort = {
        failed: build_metrics(rows, name="x", edition="III", failed=failed)["cohort"]
        for failed in ("empty", "worst", "constant:dice=0", "nan")
    }
    assert cohort["empty"]["agreement"] == {"cases": 4, "lost": 1, "lost_counted_as_nothing_predicted": True}
    assert cohort["nan"]["agreement"] == {"cases": 4, "lost": 1, "lost_counted_as_nothing_predicted": False}
    for failed in ("empty", "worst", "constant:dice=0"):
        found = cohort[failed]
        assert [found[f"{kind}_mtv"]["n"] for kind in ("icc", "pearson", "bland_altman")] == [4, 4, 4]
        assert found["bland_altman_mtv"]["bias"] == pytest.approx((0.2 - 0.1 + 0.1 - 50) / 4)
        assert found["pearson_mtv"]["value"] == pytest.approx(np.corrcoef([1, 2, 4, 50], [1.2, 1.9, 4.1, 0])[0, 1])
        assert found["icc_mtv"]["value"] < 0.1
        assert found["icc_tlg"]["n"] == 0  # without images there is no true TLG, and nothing to compare 0 with
    assert (cohort["nan"]["icc_mtv"]["n"], cohort["nan"]["icc_mtv"]["value"] > 0.99) == (3, True)


def test_unknown_policy_is_refused():
    with pytest.raises(AutopetError, match=r"unknown policy 'best'.*empty, nan, worst, constant"):
        build_metrics([row("a", 0.5)], name="x", edition="III", failed="best")
