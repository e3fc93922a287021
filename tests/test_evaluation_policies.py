"""How lost cases count, on tables counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from autopet.errors import AutopetError
from autopet.volume import Volume
from evaluation.metrics import REGISTRY, score_case
from evaluation.policies import DIRECTIONS, apply_policy, parse_policy, worst_values


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


def test_worst_without_any_scored_case_is_the_worst_that_a_mask_can_have():
    bound = {"fpv_ml": 992.0, "precision": 0.0}
    found = apply_policy([WITH_LESIONS], parse_policy("worst"), bounds=[bound])
    # an empty mask has the worst Dice, FNV and count of missed lesions, but the best FPV
    assert found == [{**WITH_LESIONS, "fpv_ml": 992.0, "precision": 0.0}]
    assert apply_policy([WITH_LESIONS], parse_policy("worst"))[0]["fpv_ml"] is None  # not known, and not 0
    assert apply_policy([*SCORED, WITH_LESIONS], parse_policy("worst"), bounds=[{}, {}, bound])[2]["fpv_ml"] == 3.0
    for policy, fpv_ml in (("empty", 0.0), ("constant:dice=0", 0.0), ("nan", None)):
        assert apply_policy([WITH_LESIONS], parse_policy(policy), bounds=[bound])[0]["fpv_ml"] == fpv_ml


def test_no_mask_is_worse_than_the_bounds():
    rng = np.random.default_rng(4)
    suv = Volume(rng.normal(1.0, 2.0, size=(2, 3, 3)).astype(np.float32), (10.0, 10.0, 10.0))  # 1 ml per voxel
    truth = suv.with_array(np.zeros(suv.shape, bool))
    truth.array[0, 0, :2] = truth.array[1, 2, 2] = True
    bound = worst_values(truth, suv, steps=6)
    assert (bound["fpv_ml"], bound["auc_fpv_ml"], bound["mtv_deviation_ml"]) == (15.0, 75.0, 15.0)
    assert bound["lesion_fp"] == 2 * 1 * 2 * 2
    masks = [rng.random(suv.shape) < share for share in (0.2, 0.5, 0.8) for _ in range(40)]
    scores = [score_case(truth, suv.with_array(mask), suv=suv).values for mask in (*masks, ~truth.array, suv.array > 0)]
    for name in ("fpv_ml", "mtv_deviation_ml", "tlg_deviation_g", "lesion_fp"):
        assert max(score[name] for score in scores) <= bound[name] + 1e-6
    assert scores[-2]["fpv_ml"] == bound["fpv_ml"]  # all but the lesions
    sums = [np.minimum(suv.array, 0).sum(), np.maximum(suv.array, 0).sum()]
    true_g = suv.array[truth.array].sum()
    assert bound["tlg_deviation_g"] == pytest.approx(max(true_g - sums[0], sums[1] - true_g), rel=1e-6)
    assert "tlg_deviation_g" not in worst_values(truth, None, steps=1)


def test_counts_at_every_step():
    scored = [
        {**SCORED[0], "detection_steps": [[1, 4, 2], [2, 0, 1]]},
        {**SCORED[1], "detection_steps": [[0, 1, 1], [1, 3, 0]]},
    ]
    lost = {**WITH_LESIONS, "detection_steps": [[0, 0, 1], [0, 0, 1]]}
    bounds = [{}, {}, {"lesion_fp": 50}]

    def steps(policy: str, *rows: dict, bounds: list[dict]) -> list | None:
        return apply_policy(rows, parse_policy(policy), bounds=bounds)[-1]["detection_steps"]

    assert steps("empty", *scored, lost, bounds=bounds) == [[0, 0, 1], [0, 0, 1]]
    assert steps("worst", *scored, lost, bounds=bounds) == [[0, 4, 1], [0, 3, 1]]
    assert steps("worst", lost, bounds=bounds[2:]) == [[0, 50, 1], [0, 50, 1]]
    assert steps("constant:lesion_fp=7", *scored, lost, bounds=bounds) == [[0, 7, 1], [0, 7, 1]]
    assert steps("nan", *scored, lost, bounds=bounds) is None
    assert [row["detection_steps"] for row in apply_policy(scored, parse_policy("nan"))] == [
        one["detection_steps"] for one in scored
    ]


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
