"""Dice, FPV and FNV against counts made by hand, against a naive implementation, and for every empty case."""

from __future__ import annotations

import math

import cc3d
import numpy as np
import pytest
from grand_challenge_metrics.stats import calculate_confusion_matrix, dice_from_confusion_matrix
from hypothesis import given, settings
from hypothesis import strategies as st

from autopet.errors import AutopetError
from autopet.volume import Volume
from evaluation.metrics import CURVES, EDITIONS, METRICS, PER_CASE, REGISTRY, detection_f1, score, score_case

SHAPE = (6, 7, 8)


def random_mask(seed: int, share: float) -> np.ndarray:
    return np.random.default_rng(seed).random(SHAPE) < share


MASKS = st.builds(random_mask, st.integers(0, 2**32), st.sampled_from([0.0, 0.01, 0.05, 0.15, 0.3]))
PAIRS = st.tuples(MASKS, MASKS)


def mask(*voxels: tuple[int, int, int]) -> np.ndarray:
    array = np.zeros(SHAPE, dtype=bool)
    for voxel in voxels:
        array[voxel] = True
    return array


def naive(truth: np.ndarray, guess: np.ndarray, voxel_ml: float) -> tuple[float, float]:
    """One search of the volume per component, as the official scripts do it."""

    def apart(first: np.ndarray, second: np.ndarray) -> int:
        labels = cc3d.connected_components(first, connectivity=18)
        parts = [np.isin(labels, index) for index in range(1, int(labels.max()) + 1)]
        return sum(int(part.sum()) for part in parts if not (part & second).any())

    return apart(guess, truth) * voxel_ml, apart(truth, guess) * voxel_ml


def test_counts_made_by_hand():
    truth = mask(
        (1, 1, 1), (1, 1, 2), (1, 2, 1), (4, 5, 6)
    )  # a lesion of 3 voxels that is hit, one of 1 that is missed
    guess = mask((1, 1, 2), (1, 1, 3), (4, 1, 1), (4, 1, 2))  # 1 of 2 voxels right, and a component of 2 in error
    scores = score(truth, guess, voxel_volume_ml=0.25)
    assert scores == {"dice": 2 * 1 / 8, "fpv_ml": 0.5, "fnv_ml": 0.25, "gt_ml": 1.0, "pred_ml": 1.0}


def test_voxels_that_share_an_edge_are_one_component_and_a_corner_is_not_enough():
    truth = mask((2, 2, 2))
    by_edge = score(truth, mask((2, 2, 2), (2, 3, 3)), voxel_volume_ml=1.0)
    by_corner = score(truth, mask((2, 2, 2), (3, 3, 3)), voxel_volume_ml=1.0)
    assert by_edge["fpv_ml"] == 0.0
    assert by_corner["fpv_ml"] == 1.0
    assert score(mask((2, 2, 2), (3, 3, 3)), truth, voxel_volume_ml=1.0)["fnv_ml"] == 1.0
    assert score(mask((2, 2, 2), (2, 3, 3)), truth, voxel_volume_ml=1.0)["fnv_ml"] == 0.0


EMPTY_CASES = [
    # edition, lesions?, prediction?, (dice, fpv, fnv)
    ("III", False, False, (math.nan, 0.0, math.nan)),
    ("III", False, True, (math.nan, 2.0, math.nan)),
    ("III", True, False, (0.0, 0.0, 3.0)),
    ("I", False, False, (math.nan, 0.0, 0.0)),
    ("I", False, True, (0.0, 2.0, 0.0)),
    ("I", True, False, (0.0, 0.0, 3.0)),
    ("II", False, False, (math.nan, 0.0, 0.0)),
    ("II", False, True, (math.nan, 2.0, 0.0)),
    ("II", True, False, (0.0, 0.0, 3.0)),
    ("IV", False, False, (math.nan, 0.0, 0.0)),
    ("IV", False, True, (0.0, 2.0, 0.0)),
    ("IV", True, False, (0.0, 0.0, 3.0)),
    ("V", False, False, (math.nan, 0.0, math.nan)),
    ("V", False, True, (math.nan, 2.0, math.nan)),
    ("V", True, False, (0.0, 0.0, 3.0)),
]


@pytest.mark.parametrize(("edition", "lesions", "predicted", "expected"), EMPTY_CASES)
def test_rules_for_empty_masks(edition: str, lesions: bool, predicted: bool, expected: tuple[float, float, float]):
    truth = mask((1, 1, 1), (1, 1, 2), (1, 1, 3)) if lesions else mask()
    guess = mask((4, 4, 4), (4, 4, 5)) if predicted else mask()
    scores = score(truth, guess, voxel_volume_ml=1.0, edition=edition)
    np.testing.assert_equal([scores[metric.name] for metric in METRICS], expected)


@settings(max_examples=80, deadline=None)
@given(PAIRS, st.sampled_from(sorted(EDITIONS)))
def test_volumes_equal_the_naive_search(pair: tuple[np.ndarray, np.ndarray], edition: str):
    truth, guess = pair
    scores = score(truth, guess, voxel_volume_ml=0.5, edition=edition)
    fpv, fnv = naive(truth, guess, 0.5)
    assert scores["fpv_ml"] == fpv
    if truth.any():
        assert scores["fnv_ml"] == fnv


@settings(max_examples=40, deadline=None)
@given(PAIRS)
def test_dice_equals_grand_challenge_metrics(pair: tuple[np.ndarray, np.ndarray]):
    truth, guess = pair
    truth[0, 0, 0] = True
    theirs = dice_from_confusion_matrix(calculate_confusion_matrix(truth, guess, [0, 1]))[1]
    assert score(truth, guess, voxel_volume_ml=1.0)["dice"] == pytest.approx(theirs, abs=1e-12)


def test_number_types_and_memory_order_do_not_matter():
    rng = np.random.default_rng(3)
    truth, guess = rng.random(SHAPE) > 0.8, rng.random(SHAPE) > 0.8
    expected = score(truth, guess, voxel_volume_ml=0.1)
    assert score(truth.astype(np.uint8), np.asfortranarray(guess.astype(np.float32)), voxel_volume_ml=0.1) == expected


def test_unknown_edition_and_other_shape_are_refused():
    with pytest.raises(AutopetError, match=r"unknown edition 'VII'.*I, III"):
        score(mask(), mask(), voxel_volume_ml=1.0, edition="VII")
    with pytest.raises(AutopetError, match=r"expected a prediction of shape \(6, 7, 8\)"):
        score(mask(), mask()[:-1], voxel_volume_ml=1.0)


CONTRACT = """dice fpv_ml fnv_ml lesion_tp lesion_fp lesion_fn lesion_f1 sensitivity precision gt_lesions pred_lesions
    gt_ml pred_ml mtv_deviation_ml gt_tlg_g pred_tlg_g tlg_deviation_g nsd hd95_mm
    auc_dice auc_fpv_ml auc_fnv_ml auc_f1"""


def test_every_metric_is_declared_once_with_unit_direction_and_empty_case():
    assert [metric.name for metric in REGISTRY] == CONTRACT.split()
    assert len({metric.title for metric in REGISTRY}) == len(REGISTRY)
    for metric in REGISTRY:
        assert metric.direction in ("higher", "lower", "none")
        assert metric.empty
        assert metric.unit == next((unit for unit in ("ml", "mm", "g") if metric.name.endswith(f"_{unit}")), "")
    assert {curve.of for curve in CURVES} <= {metric.name for metric in PER_CASE}
    assert REGISTRY[: len(METRICS)] == METRICS


def test_editions_say_where_their_rules_come_from():
    assert list(EDITIONS) == ["I", "II", "III", "IV", "V"]
    assert {name: rules.click_steps for name, rules in EDITIONS.items() if rules.click_steps} == {"IV": 11, "V": 6}
    for rules in EDITIONS.values():
        assert rules.source
        assert rules.undefined_without_lesions <= {metric.name for metric in METRICS}


def case_values(truth: np.ndarray, guess: np.ndarray) -> dict[str, float]:
    return score_case(Volume(truth), Volume(guess)).values


def test_detection_of_a_case_by_hand():
    truth = mask((1, 1, 1), (1, 1, 2), (1, 1, 3), (4, 5, 6), (4, 1, 1))  # lesions of 3, 1 and 1 voxels
    guess = mask((1, 1, 3), (4, 5, 6), (1, 5, 1), (5, 1, 6))  # hits two, misses one, two false
    values = case_values(truth, guess)
    counts = ("gt_lesions", "pred_lesions", "lesion_tp", "lesion_fp", "lesion_fn")
    assert [values[name] for name in counts] == [3, 4, 2, 2, 1]
    assert (values["sensitivity"], values["precision"], values["lesion_f1"]) == (2 / 3, 2 / 4, 4 / 7)
    harmonic = 2 / (1 / values["sensitivity"] + 1 / values["precision"])
    assert values["lesion_f1"] == pytest.approx(harmonic)


def test_detection_of_empty_cases():
    names = ("lesion_f1", "sensitivity", "precision", "lesion_tp", "lesion_fp", "lesion_fn")
    nothing, some = mask(), mask((1, 1, 1), (4, 4, 4))
    np.testing.assert_equal([case_values(nothing, nothing)[n] for n in names], [math.nan] * 3 + [0, 0, 0])
    np.testing.assert_equal([case_values(nothing, some)[n] for n in names], [math.nan, math.nan, 0.0, 0, 2, 0])
    np.testing.assert_equal([case_values(some, nothing)[n] for n in names], [0.0, 0.0, math.nan, 0, 0, 2])
    assert math.isnan(detection_f1(0, 3, 0))


def test_a_case_and_the_short_score_say_the_same():
    rng = np.random.default_rng(4)
    for edition in EDITIONS:
        truth, guess = rng.random(SHAPE) < 0.1, rng.random(SHAPE) < 0.1
        grid = (2.0, 3.0, 4.0)
        case = score_case(Volume(truth, grid), Volume(guess, grid), edition=edition)
        assert set(case.values) == set(CONTRACT.split())
        short = score(truth, guess, voxel_volume_ml=0.024, edition=edition)
        assert {name: case.values[name] for name in short} == short
