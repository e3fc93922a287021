"""Lesion by lesion: detection, rows of the report, bins by volume; all by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from autopet.components import Components
from autopet.volume import Volume
from evaluation import lesions
from evaluation.lesions import CasePair, Detection, LesionRow, lesion_rows, volume_binned
from evaluation.metrics import score_case


def line(*spans: tuple[int, int], length: int = 60) -> np.ndarray:
    mask = np.zeros((1, 1, length), bool)
    for start, stop in spans:
        mask[0, 0, start:stop] = True
    return mask


def pair(truth: np.ndarray, guess: np.ndarray, **options) -> CasePair:
    return CasePair(Components.of(truth), Components.of(guess), 0.5, grid=Volume(truth, (10.0, 10.0, 5.0)), **options)


def detection(truth: np.ndarray, guess: np.ndarray) -> Detection:
    return pair(truth, guess).detection


def test_an_iou_of_exactly_a_tenth_is_a_match_and_below_is_none():
    assert detection(line((0, 10)), line((9, 10))) == Detection(tp=1, fp=0, fn=0)  # 1 / 10
    assert detection(line((0, 11)), line((10, 11))) == Detection(tp=0, fp=1, fn=1)  # 1 / 11
    assert detection(line((0, 6)), line((5, 10))) == Detection(tp=1, fp=0, fn=0)  # 1 / (6 + 5 - 1)
    assert detection(line((0, 6)), line((5, 11))) == Detection(tp=0, fp=1, fn=1)  # 1 / 11


def test_several_components_on_one_lesion_are_one_hit_and_no_error():
    assert detection(line((0, 20)), line((1, 5), (6, 10), (12, 18))) == Detection(tp=1, fp=0, fn=0)


def test_one_component_over_several_lesions_finds_those_it_matches():
    truth = line((0, 5), (6, 11), (12, 13))
    assert detection(truth, line((0, 13))) == Detection(tp=2, fp=0, fn=1)  # 5/13, 5/13, 1/13
    assert detection(truth, line((0, 20))) == Detection(tp=2, fp=0, fn=1)  # 5/20, 5/20, 1/20
    assert detection(truth, line((0, 60))) == Detection(tp=0, fp=1, fn=3)  # 5/60: no match any more


def test_a_component_that_touches_without_matching_is_false_but_costs_no_volume():
    touching = pair(line((0, 20)), line((19, 40)))
    assert touching.detection == Detection(tp=0, fp=1, fn=1)
    assert (touching.false_voxels, touching.missed_voxels) == (0, 0)


def test_components_apart_are_counted_whole():
    truth, guess = line((0, 3), (5, 7), (9, 10)), line((2, 3))  # lesions of 3, 2 and 1 voxels; one voxel is a touch
    assert (pair(truth, guess).missed_voxels, pair(guess, truth).false_voxels) == (3, 3)


def test_empty_masks():
    nothing, some = line(), line((3, 5), (8, 9))
    assert detection(nothing, nothing) == Detection(0, 0, 0)
    assert detection(nothing, some) == Detection(tp=0, fp=2, fn=0)
    assert detection(some, nothing) == Detection(tp=0, fp=0, fn=2)
    assert lesion_rows(pair(nothing, nothing)) == ()


def test_rows_by_hand():
    truth, guess = line((0, 3), (10, 20), (30, 35)), line((18, 22), (34, 50), (55, 57))
    suv = np.arange(60, dtype=np.float32).reshape(1, 1, 60)
    rows = lesion_rows(pair(truth, guess, suv=suv))
    got = [(r.kind, r.lesion, r.volume_ml, r.status, r.overlap_voxels, r.iou, r.suv_max, r.suv_mean) for r in rows]
    assert got == [  # the largest of each mask first
        ("truth", 1, 5.0, "matched", 2, 2 / 12, 19.0, 14.5),
        ("truth", 2, 2.5, "missed", 1, 1 / 20, 34.0, 32.0),
        ("truth", 3, 1.5, "missed", 0, 0.0, 2.0, 1.0),
        ("prediction", 1, 8.0, "false", 1, 1 / 20, 49.0, 41.5),
        ("prediction", 2, 2.0, "matched", 2, 2 / 12, 21.0, 19.5),
        ("prediction", 3, 1.0, "false", 0, 0.0, 56.0, 55.5),
    ]
    assert [r.x_mm for r in rows] == [145.0, 320.0, 10.0, 415.0, 195.0, 555.0]  # 10 mm a voxel


def test_overlap_is_with_the_whole_other_mask_and_iou_with_the_best_component():
    row = lesion_rows(pair(line((0, 20)), line((0, 4), (6, 16))))[0]
    assert (row.overlap_voxels, row.iou) == (14, 10 / 20)


def test_without_suv_uptake_is_undefined():
    row = lesion_rows(pair(line((0, 3)), line()))[0]
    assert math.isnan(row.suv_max)
    assert math.isnan(row.suv_mean)


def test_centroids_follow_spacing_origin_and_direction():
    mask = np.zeros((6, 7, 8), bool)
    mask[2:4, 5, 1:3] = True  # centre at x 1.5, y 5, z 2.5
    turned = (0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0)  # the grid's x runs along the patient's y, y along -x
    grid = Volume(mask, (2.0, 3.0, 4.0), (100.0, 200.0, 300.0), turned)
    row = score_case(grid, grid.with_array(np.zeros_like(mask))).lesions[0]
    assert (row.x_mm, row.y_mm, row.z_mm) == (100 - 5 * 3.0, 200 + 1.5 * 2.0, 300 + 2.5 * 4.0)


def test_the_numbers_of_the_true_lesions_do_not_depend_on_the_prediction():
    rng = np.random.default_rng(2)
    truth = Volume(rng.random((8, 9, 10)) < 0.08)
    cases = [score_case(truth, truth.with_array(rng.random(truth.shape) < share)) for share in (0.0, 0.05, 0.5)]
    lists = [[(r.lesion, r.volume_ml, r.x_mm, r.y_mm, r.z_mm) for r in c.lesions if r.kind == "truth"] for c in cases]
    assert lists[0] == lists[1] == lists[2]
    assert [row[0] for row in lists[0]] == list(range(1, len(lists[0]) + 1))
    volumes = [row[1] for row in lists[0]]
    assert volumes == sorted(volumes, reverse=True)


def test_noise_is_counted_but_only_its_largest_components_get_rows(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lesions, "MOST_ROWS", 3)
    case = score_case(Volume(line()), Volume(line((0, 1), (5, 9), (12, 13), (20, 22), (30, 33))))
    assert case.values["pred_lesions"] == case.values["lesion_fp"] == 5
    assert [round(row.volume_ml * 1000) for row in case.lesions] == [4, 3, 2]


def row(kind: str, volume_ml: float, status: str) -> LesionRow:
    return LesionRow(kind, 1, volume_ml, math.nan, math.nan, 0, 0, 0, status, 0, 0.0)


def test_bins_by_volume():
    rows = [row("truth", 0.4, "missed"), row("truth", 0.5, "matched"), row("truth", 1.9, "missed")]
    rows += [row("truth", 60.0, "matched"), row("prediction", 0.1, "false"), row("prediction", 55.0, "matched")]
    bins = volume_binned(rows)
    assert [(b.low_ml, b.high_ml) for b in bins] == [(0, 0.5), (0.5, 2), (2, 10), (10, 50), (50, math.inf)]
    assert [(b.lesions, b.found, b.predicted, b.right) for b in bins] == [
        *[(1, 0, 1, 0), (2, 1, 0, 0), (0, 0, 0, 0), (0, 0, 0, 0), (1, 1, 1, 1)]
    ]
    np.testing.assert_equal([b.sensitivity for b in bins], [0.0, 0.5, math.nan, math.nan, 1.0])
    np.testing.assert_equal([b.precision for b in bins], [0.0, math.nan, math.nan, math.nan, 1.0])
    assert [b.lesions for b in volume_binned(rows, edges_ml=(0.0, 1.0, math.inf))] == [2, 2]
