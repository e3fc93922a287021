"""Areas under the click curve, by hand and by SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.integrate import cumulative_trapezoid

from autopet.errors import AutopetError
from autopet.volume import Volume
from evaluation.clicks import curve_area
from evaluation.cohort import pooled_f1, pooled_f1_area
from evaluation.metrics import CURVES, REGISTRY, score_case, score_steps


def test_areas_by_hand():
    assert curve_area([1.0] * 11, edition="IV") == 10.0
    assert curve_area([1.0] * 6, edition="V") == 5.0
    assert curve_area([0, 1, 0, 1, 0, 1], edition="V") == 2.5  # 0.5 between every two steps
    assert curve_area([4, 0, 0, 0, 0, 2], edition="V") == 2 + 1  # the ends count half


@pytest.mark.parametrize(("edition", "steps"), [("IV", 11), ("V", 6)])
def test_areas_equal_scipy(edition: str, steps: int):
    for seed in range(20):
        values = np.random.default_rng(seed).random(steps)
        assert curve_area(values, edition=edition) == pytest.approx(cumulative_trapezoid(values)[-1], rel=1e-12)


def test_an_undefined_step_makes_the_area_undefined():
    assert math.isnan(curve_area([0.5] * 5 + [math.nan], edition="V"))


def test_wrong_numbers_of_steps_are_refused():
    with pytest.raises(AutopetError, match=r"edition V has 6 click steps.*found 11"):
        curve_area([0.5] * 11, edition="V")
    with pytest.raises(AutopetError, match=r"edition III has no click steps, expected one of IV, V"):
        curve_area([0.5] * 6, edition="III")


def line(*xs: int) -> Volume:
    mask = np.zeros((1, 1, 20), bool)
    mask[0, 0, list(xs)] = True
    return Volume(mask, (10.0, 10.0, 10.0))  # one voxel is 1 ml


def test_a_case_with_steps():
    truth = line(2, 3, 10, 11)  # two lesions of 2 ml
    steps = [line(), line(2), line(2, 3), line(2, 3, 16), line(2, 3, 10), line(2, 3, 10, 11)]
    case = score_steps(truth, steps, edition="V")
    dice = [0, 2 / 5, 4 / 6, 4 / 7, 6 / 7, 1]
    assert [step["dice"] for step in case.steps] == pytest.approx(dice)
    assert [step["fpv_ml"] for step in case.steps] == [0, 0, 0, 1, 0, 0]
    assert [step["fnv_ml"] for step in case.steps] == [4, 2, 2, 2, 0, 0]
    f1 = [0, 2 / 3, 2 / 3, 2 / 4, 1, 1]
    assert [step["lesion_f1"] for step in case.steps] == pytest.approx(f1)
    assert case.values["auc_dice"] == pytest.approx(sum(dice) - (dice[0] + dice[-1]) / 2)
    assert case.values["auc_f1"] == pytest.approx(sum(f1) - (f1[0] + f1[-1]) / 2)
    assert (case.values["auc_fpv_ml"], case.values["auc_fnv_ml"]) == (1.0, 8.0)
    alone = score_case(truth, steps[-1], edition="V")
    assert {**alone.values, **{curve.name: None for curve in CURVES}} == pytest.approx(
        {**case.values, **{curve.name: None for curve in CURVES}}, nan_ok=True
    )
    assert [row.volume_ml for row in case.lesions] == [2, 2, 2, 2]
    assert set(case.values) == {metric.name for metric in REGISTRY}


def test_the_number_of_steps_is_checked_before_the_work():
    with pytest.raises(AutopetError, match="found 2 values"):
        score_steps(line(1), [line(1), line(2)], edition="V")


def test_surfaces_are_computed_for_the_last_step_only():
    case = score_steps(line(2, 3), [line(2)] * 5 + [line(2, 3)], edition="V", surface=True)
    assert case.values["nsd"] == 1.0
    assert all(math.isnan(step["nsd"]) for step in case.steps[:-1])


def row(tp: int | None, fp: int | None, fn: int | None) -> dict[str, int | None]:
    return {"lesion_tp": tp, "lesion_fp": fp, "lesion_fn": fn}


def test_detection_is_pooled_before_f1():
    rows = [row(1, 0, 0), row(1, 3, 8)]
    assert pooled_f1(rows) == 2 * 2 / (4 + 3 + 8)  # the mean of both F1 would be (1 + 2/13) / 2
    assert pooled_f1([*rows, row(0, 5, 0)]) == 4 / (4 + 8 + 8)  # false components of a case without lesions count
    assert pooled_f1([*rows, row(None, None, None)]) == pooled_f1(rows)
    assert pooled_f1([row(0, 2, 3)]) == 0.0
    assert math.isnan(pooled_f1([row(0, 2, 0)]))
    assert math.isnan(pooled_f1([]))


def test_area_of_the_pooled_f1():
    worse, better = [row(0, 0, 1), row(0, 0, 1)], [row(1, 0, 0), row(0, 0, 1)]
    assert pooled_f1_area([worse] * 5 + [better], edition="V") == pytest.approx((2 / 3) / 2)
