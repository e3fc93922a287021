"""How lost cases count, on tables counted by hand."""

from __future__ import annotations

import pytest

from autopet.errors import AutopetError
from evaluation.metrics import REGISTRY
from evaluation.policies import DIRECTIONS, apply_policy, parse_policy


def row(case: str, status: str, **values: float | None) -> dict:
    return {"case": case, "status": status, "gt_ml": 8.0, "pred_ml": 7.0, **values}


SCORED = [
    row("a", "scored", dice=0.9, fpv_ml=3.0, fnv_ml=0.0, precision=0.5, lesion_fn=5),
    row("b", "scored", dice=0.4, fpv_ml=0.5, fnv_ml=20.0, precision=1.0, lesion_fn=0),
]
WITH_LESIONS = row("c", "failed", dice=0.0, fpv_ml=0.0, fnv_ml=8.0, precision=None, lesion_fn=1) | {"pred_ml": None}
WITHOUT = {**WITH_LESIONS, "case": "d", "gt_ml": 0.0, "dice": None, "fnv_ml": None, "lesion_fn": 0}


def values(policy: str, lost: dict, *keys: str) -> list[float | None]:
    rows = apply_policy([*SCORED, lost], parse_policy(policy))
    assert rows[:2] == SCORED
    assert (rows[2]["gt_ml"], rows[2]["pred_ml"], rows[2]["status"]) == (lost["gt_ml"], None, "failed")
    return [rows[2][key] for key in keys or ("dice", "fpv_ml", "fnv_ml", "precision", "lesion_fn")]


def test_a_lost_case_with_lesions():
    assert values("empty", WITH_LESIONS) == [0.0, 0.0, 8.0, None, 1]
    assert values("nan", WITH_LESIONS) == [None] * 5
    # worst: Dice is bounded by the empty mask's 0, FPV and FNV are the worst observed, lesions missed are its own
    assert values("worst", WITH_LESIONS) == [0.0, 3.0, 20.0, 0.5, 1]
    assert values("constant:dice=0.1,fpv_ml=500", WITH_LESIONS) == [0.1, 500.0, 8.0, None, 1]


def test_the_worst_is_never_better_than_an_empty_mask():
    assert values("worst", {**WITH_LESIONS, "gt_ml": 90.0, "fnv_ml": 90.0}, "fnv_ml") == [90.0]


def test_what_the_edition_leaves_undefined_stays_undefined():
    assert values("worst", WITHOUT) == [None, 3.0, None, None, 0]
    assert values("constant:dice=0.1,fpv_ml=500,fnv_ml=7", WITHOUT) == [None, 500.0, None, None, 0]


def test_numbers_that_need_an_image_stay_undefined_without_it():
    scored = [{**one, "tlg_deviation_g": 5.0} for one in SCORED]
    lost = apply_policy([*scored, {**WITH_LESIONS, "tlg_deviation_g": None}], parse_policy("worst"))[2]
    assert lost["tlg_deviation_g"] is None


def test_worst_without_any_scored_case_is_the_empty_mask():
    assert apply_policy([WITH_LESIONS], parse_policy("worst")) == [WITH_LESIONS]


def test_policies_are_spelled_as_they_are_read():
    for text in ("empty", "nan", "worst", "constant:dice=0,fpv_ml=12.5"):
        assert parse_policy(text).spelled == text
        assert parse_policy(parse_policy(text).spelled) == parse_policy(text)
    assert "dice=0,fpv_ml=12.5" in parse_policy("constant:dice=0,fpv_ml=12.5").text
    assert {name for name in DIRECTIONS} == {m.name for m in REGISTRY if m.direction != "none"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("best", "unknown policy 'best' for failed cases, expected one of empty, nan, worst, constant"),
        ("constant", "expected values for 'constant' only, as in constant:dice=0,fpv_ml=500"),
        ("worst:3", "expected values for 'constant' only"),
        ("constant:0", "expected METRIC=NUMBER"),
        ("constant:dice=nan", "found 'dice=nan'"),
        ("constant:dice=1.5", "found 'dice=1.5'"),
        ("constant:fpv_ml=-1", "found 'fpv_ml=-1'"),
        ("constant:gt_ml=1", "found 'gt_ml=1'"),
    ],
)
def test_policies_that_cannot_be_read(text: str, words: str):
    with pytest.raises(AutopetError, match=words):
        parse_policy(text)
