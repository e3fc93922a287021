"""MTV, TLG and their deviations, and cohort values, by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from autopet.components import Components
from autopet.errors import AutopetError
from autopet.volume import Volume
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
