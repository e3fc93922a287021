"""MTV, TLG and their deviations, and cohort values, by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from autopet.components import Components
from autopet.errors import AutopetError
from autopet.volume import Volume
from evaluation.biomarker_summary import Group, summarise_groups, true_and_estimated
from evaluation.biomarkers import deviation, lesion_glycolysis_g, tumour_volume_ml
from evaluation.cohort import cohort_values, describe
from evaluation.metrics import score_case

SHAPE = (2, 3, 4)
GRID_MM = (5.0, 4.0, 10.0)  # 0.2 ml


def mask(*voxels: tuple[int, int, int]) -> np.ndarray:
    array = np.zeros(SHAPE, bool)
    for voxel in voxels:
        array[voxel] = True
    return array


def test_volume_and_glycolysis_by_hand():
    suv = np.arange(24, dtype=np.float32).reshape(SHAPE)
    part = Components.of(mask((0, 1, 1), (0, 1, 2), (1, 2, 3)))  # SUV 5, 6 and 23
    assert tumour_volume_ml(part, voxel_volume_ml=0.2) == pytest.approx(0.6)
    assert lesion_glycolysis_g(part, suv, voxel_volume_ml=0.2) == pytest.approx(34 / 3 * 0.6)  # mean SUV times volume
    assert math.isnan(lesion_glycolysis_g(part, None, voxel_volume_ml=0.2))
    assert lesion_glycolysis_g(Components.of(mask()), suv, voxel_volume_ml=0.2) == 0.0


def test_deviations_have_no_sign_and_keep_nan():
    assert deviation(3.0, 5.0) == deviation(5.0, 3.0) == 2.0
    assert math.isnan(deviation(math.nan, 1.0))


def test_a_case_with_and_without_suv():
    suv = Volume(np.full(SHAPE, 3.0), GRID_MM)
    truth, guess = Volume(mask((0, 0, 0), (0, 0, 1)), GRID_MM), Volume(mask((1, 2, 2)), GRID_MM)
    values = score_case(truth, guess, suv=suv).values
    names = ("gt_ml", "pred_ml", "mtv_deviation_ml", "gt_tlg_g", "pred_tlg_g", "tlg_deviation_g")
    assert [values[name] for name in names] == pytest.approx([0.4, 0.2, 0.2, 1.2, 0.6, 0.6])
    bare = score_case(truth, guess).values
    assert [bare[name] for name in names[:3]] == pytest.approx([0.4, 0.2, 0.2])
    assert all(math.isnan(bare[name]) for name in names[3:])
    nothing = score_case(Volume(mask(), GRID_MM), Volume(mask(), GRID_MM), suv=suv).values
    assert [nothing[name] for name in names] == [0.0] * 6


def test_an_suv_image_on_another_grid_is_refused():
    truth = Volume(mask((0, 0, 0)), GRID_MM)
    with pytest.raises(AutopetError, match="expected a SUV image on the grid of the ground truth, found corner voxels"):
        score_case(truth, truth, suv=Volume(np.ones(SHAPE), (5.0, 4.0, 11.0)))
    with pytest.raises(AutopetError, match="expected a prediction on the grid of the ground truth, found shape"):
        score_case(truth, Volume(np.ones((1, 1, 1), bool)))


def test_a_summary_counts_what_is_missing():
    found = describe([4.0, None, 1.0, math.nan, 2.0, 3.0])
    assert (found.mean, found.median, found.low, found.high, found.count, found.missing) == (2.5, 2.5, 1.0, 4.0, 4, 2)
    assert (found.q1, found.q3, found.iqr) == (1.75, 3.25, 1.5)
    assert found.std == pytest.approx(math.sqrt(5 / 3))
    assert describe([7.0]).std == 0.0
    nothing = describe([None, math.nan])
    assert (nothing.mean, nothing.iqr, nothing.count, nothing.missing) == (None, None, 0, 2)


def test_cohort_values_are_json_without_nan():
    rows = [
        {"gt_ml": true, "pred_ml": guess, "lesion_tp": 1, "lesion_fp": 2, "lesion_fn": 3}
        for true, guess in ((10.0, 12.0), (20.0, 18.0), (30.0, 33.0), (40.0, 45.0))
    ]
    rows.append({"gt_ml": 5.0, "pred_ml": None, "lesion_tp": None, "lesion_fp": None, "lesion_fn": None})
    values = json.loads(json.dumps(cohort_values(rows), allow_nan=False))
    assert values["pooled_f1"] == 8 / (8 + 8 + 12)
    assert (values["pooled_sensitivity"], values["pooled_precision"]) == (0.25, 1 / 3)
    assert (values["pooled_tp"], values["pooled_fp"], values["pooled_fn"]) == (4, 8, 12)
    assert values["bland_altman_mtv"]["bias"] == 2.0
    assert values["pearson_mtv"]["value"] == pytest.approx(570 / math.sqrt(500 * 666))
    assert values["icc_mtv"]["n"] == 4
    assert len(values["icc_mtv"]["ci95"]) == 2
    assert values["icc_tlg"] == {
        "value": None,
        "ci95": None,
        "n": 0,
        "reason": "0 cases have both values, at least 3 are needed",
    }
    empty = json.loads(json.dumps(cohort_values([]), allow_nan=False))
    assert empty["pooled_f1"] is None


# --- groups of cases -------------------------------------------------------------------------------------------------

FIVE = [  # true MTV, estimate; deviations 2, 2, 3, 5 and, in the case without lesions, 1
    {"status": "scored", "gt_ml": true, "pred_ml": guess, "mtv_deviation_ml": abs(guess - true), "dice": dice}
    | {"gt_tlg_g": 3 * true, "pred_tlg_g": 3 * guess, "tlg_deviation_g": 3 * abs(guess - true)}
    for true, guess, dice in (
        (10.0, 12.0, 0.2),
        (20.0, 18.0, 0.4),
        (30.0, 33.0, 0.6),
        (40.0, 45.0, 0.8),
        (0, 1.0, None),
    )
]


def anova_icc(true: list[float], guess: list[float]) -> float:
    """ICC(A,1) from the mean squares of a two-way analysis of variance (McGraw and Wong 1996, table 4)."""
    x = np.array([true, guess]).T
    n, k = x.shape
    rows, columns = x.mean(1, keepdims=True), x.mean(0, keepdims=True)
    of_rows = k * ((rows - x.mean()) ** 2).sum() / (n - 1)
    of_columns = n * ((columns - x.mean()) ** 2).sum() / (k - 1)
    of_errors = ((x - rows - columns + x.mean()) ** 2).sum() / ((n - 1) * (k - 1))
    return (of_rows - of_errors) / (of_rows + (k - 1) * of_errors + k * (of_columns - of_errors) / n)


def groups(rows: list[dict], **options) -> dict[str, Group]:
    return {group.title: group for group in summarise_groups(rows, **options)}


def test_deviations_by_hand_with_and_without_lesion_free_cases():
    found = groups(FIVE)
    assert list(found) == ["cases with lesions", "all cases"]
    some, every = found["cases with lesions"], found["all cases"]
    assert (some.cases, every.cases, some.lost) == (4, 5, 0)
    assert (some.dice.median, some.dice.iqr) == pytest.approx((0.5, 0.3))
    assert every.dice.missing == 1
    mtv = some.estimates["mtv"]
    assert (mtv.true.median, mtv.deviation.median, mtv.deviation.iqr) == (25.0, 2.5, 1.5)  # quartiles 2 and 3.5
    assert (every.estimates["mtv"].deviation.median, every.estimates["mtv"].deviation.iqr) == (2.0, 1.0)  # 1 2 2 3 5
    assert (some.estimates["tlg"].deviation.median, some.estimates["tlg"].deviation.iqr) == (7.5, 4.5)
    assert (mtv.bland_altman.bias, every.estimates["mtv"].bland_altman.bias) == (2.0, pytest.approx(1.8))
    assert mtv.icc.value == pytest.approx(anova_icc([10, 20, 30, 40], [12, 18, 33, 45]), abs=1e-9)
    assert every.estimates["mtv"].icc.value == pytest.approx(
        anova_icc([10, 20, 30, 40, 0], [12, 18, 33, 45, 1]), abs=1e-9
    )
    assert mtv.icc.value != pytest.approx(every.estimates["mtv"].icc.value, abs=1e-3)


def test_only_one_group_where_all_cases_have_lesions_or_none_has():
    assert list(groups(FIVE[:4])) == ["cases with lesions"]
    assert list(groups(FIVE[4:])) == ["all cases"]
    assert summarise_groups([]) == []


def test_a_lost_case_is_one_in_which_nothing_was_found_unless_the_policy_leaves_it_out():
    lost = {"status": "failed", "gt_ml": 50.0, "pred_ml": None, "mtv_deviation_ml": 50.0, "dice": 0.0}
    rows = [*FIVE[:4], {**lost, "gt_tlg_g": 90.0, "pred_tlg_g": None, "tlg_deviation_g": 90.0}]
    assert true_and_estimated(rows, "mtv")[1] == [12.0, 18.0, 33.0, 45.0, 0.0]
    assert true_and_estimated(rows, "tlg", count_lost=False) == (
        [30.0, 60.0, 90.0, 120.0, 90.0], [36.0, 54.0, 99.0, 135.0, None]
    )  # fmt: skip
    counted, left_out = (summarise_groups(rows, count_lost=flag)[0] for flag in (True, False))
    assert (counted.lost, left_out.lost) == (1, 1)
    assert counted.estimates["mtv"].bland_altman.bias == (2 - 2 + 3 + 5 - 50) / 5
    assert (left_out.estimates["mtv"].bland_altman.bias, left_out.estimates["mtv"].icc.n) == (2.0, 4)
    assert counted.estimates["mtv"].deviation.median == 3.0


def test_all_cases_agree_with_what_metrics_json_says_of_the_cohort():
    values = cohort_values(FIVE)
    every = groups(FIVE)["all cases"].estimates
    for key in ("mtv", "tlg"):
        assert every[key].icc.value == values[f"icc_{key}"]["value"]
        assert list(every[key].icc.ci95) == values[f"icc_{key}"]["ci95"]
        assert every[key].bland_altman.lower == values[f"bland_altman_{key}"]["lower"]
