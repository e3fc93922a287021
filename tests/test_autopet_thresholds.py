"""Thresholds: the Dice curve against masks, the search against brute force, Lipton's rule, and the gate's promise."""

from __future__ import annotations

import dataclasses
import json
import math
import tracemalloc
from fractions import Fraction
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from autopet import topk_auroc
from autopet.errors import AutopetError
from autopet.thresholds import GRID, MARGINS, best_threshold, dice_curve, gate_threshold

STEP = 0.005


def masked_dice(lesions: np.ndarray, probability: np.ndarray, threshold: float) -> float:
    """Dice of the mask that a predictor would write."""
    mask = probability >= float(threshold)
    return 2 * int((mask & lesions).sum()) / int(mask.sum() + lesions.sum())


@st.composite
def scans(draw: st.DrawFn, values: st.SearchStrategy[float] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Lesions (one at least) and probabilities, many of them a threshold or its neighbour in their precision."""
    dtype = draw(st.sampled_from([np.float16, np.float32, np.float64]))
    size = draw(st.integers(1, 40))
    on_grid = st.sampled_from(GRID.astype(dtype).tolist())
    width = np.dtype(dtype).itemsize * 8
    probability = draw(arrays(dtype, size, elements=values or st.one_of(on_grid, st.floats(0, 1, width=width))))
    beside = draw(arrays(np.int8, size, elements=st.integers(-1, 1)))
    probability = np.where(beside == 0, probability, np.nextafter(probability, (beside > 0).astype(dtype)))
    lesions = draw(arrays(bool, size))
    lesions[draw(st.integers(0, size - 1))] = True
    return lesions, probability.astype(dtype)


def test_the_grid():
    assert GRID.size == 199
    assert [float(GRID[place]) for place in (0, 74, 99, 198)] == [0.005, 0.375, 0.5, 0.995]
    np.testing.assert_allclose(np.diff(GRID), STEP)
    with pytest.raises(ValueError, match="read-only"):
        GRID[0] = 0.0


# --- Dice curve ------------------------------------------------------------------------------------------------------


def test_a_curve_counted_by_hand():
    lesions = np.array([[1, 1, 1], [0, 0, 0]], dtype=bool)
    probability = np.array([[0.9, 0.6, 0.2], [0.7, 0.5, 0.1]])
    found = dice_curve(lesions, probability, np.array([0.05, 0.2, 0.5, 0.65, 0.9, 0.95]))
    # voxels predicted 6, 5, 4, 2, 1, 0; of the 3 of the lesion 3, 3, 2, 1, 1, 0
    assert found.tolist() == [6 / 9, 6 / 8, 4 / 7, 2 / 5, 2 / 4, 0.0]


@settings(max_examples=200, deadline=None)
@given(scans(), st.sampled_from([1, 7, topk_auroc.CHUNK]))
def test_the_curve_is_the_dice_of_every_mask(scan: tuple[np.ndarray, np.ndarray], chunk: int):
    with patch.object(topk_auroc, "CHUNK", chunk):
        found = dice_curve(*scan)
    assert found.tolist() == [masked_dice(*scan, threshold) for threshold in GRID]


def test_the_curve_of_a_volume_of_many_chunks():
    rng = np.random.default_rng(0)
    lesions = rng.random((60, 70, 80)) < 0.01
    probability = np.where(lesions, rng.beta(4, 2, lesions.shape), rng.beta(0.2, 4, lesions.shape)).astype(np.float32)
    assert lesions.size > 4 * topk_auroc.CHUNK
    expected = [masked_dice(lesions, probability, threshold) for threshold in GRID]
    assert dice_curve(lesions, probability).tolist() == expected
    assert dice_curve(lesions.T.astype(np.uint8), np.asfortranarray(probability).T).tolist() == expected
    assert dice_curve(lesions, probability.astype(">f4")).tolist() == expected
    assert len(set(expected)) > 150
    assert 0.1 < max(expected) < 0.9


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_probability_that_equals_a_threshold_is_a_lesion(dtype: type):
    at = GRID.astype(dtype)
    below = np.nextafter(at, dtype(0))
    for place, threshold in enumerate(GRID):
        lesions = np.array([True, True])
        found = dice_curve(lesions, np.array([at[place], below[place]]), np.array([threshold]))
        assert found.tolist() == [2 / 3]  # one of two voxels


def test_torch_and_numpy_apply_a_python_float_as_the_curve_does():
    torch = pytest.importorskip("torch")
    at = GRID.astype(np.float32)
    on_grid = [bool(at[place] >= float(GRID[place])) for place in range(GRID.size)]
    assert all(on_grid)
    assert all(bool(torch.from_numpy(at)[place] >= float(GRID[place])) for place in range(GRID.size))
    # why best_threshold returns a Python float: NumPy's own float64 loses voxels that lie on their threshold
    assert not all(bool(at[place] >= np.float64(GRID[place])) for place in range(GRID.size))
    threshold, _ = best_threshold(np.eye(GRID.size)[139:140])
    assert type(threshold) is float
    assert threshold == 0.7


def test_whole_numbers_and_booleans_are_compared_as_they_are():
    lesions = np.array([True, True, False])
    for dtype in (np.uint8, bool):
        assert set(dice_curve(lesions, np.array([1, 0, 1], dtype=dtype)).tolist()) == {0.5}


def test_scans_without_lesions_have_no_curve_and_empty_masks_have_dice_0():
    nothing = np.zeros((3, 4, 5))
    assert np.isnan(dice_curve(nothing.astype(bool), nothing)).all()
    assert np.isnan(dice_curve(nothing.astype(bool), nothing + 0.7)).all()
    assert dice_curve(nothing == 0, nothing).tolist() == [0.0] * GRID.size


def test_what_cannot_be_compared_is_an_error():
    lesions, probability = np.ones(3, bool), np.array([0.1, np.nan, 0.9])
    with pytest.raises(AutopetError, match="found NaN"):
        dice_curve(lesions, probability)
    with pytest.raises(AutopetError, match=r"shape \(3,\) of the lesions, found scores of shape \(2,\)"):
        dice_curve(lesions, probability[:2])
    for thresholds in ([], [0.5, 0.5], [0.5, 0.4], [[0.1, 0.2]], [0.1, math.nan], [math.nan]):
        with pytest.raises(AutopetError, match="ascending row"):
            dice_curve(lesions, np.zeros(3), np.array(thresholds))


@pytest.mark.parametrize("lowest", [0.0, 0.5])
def test_the_curve_needs_the_memory_of_a_chunk(lowest: float):
    rng = np.random.default_rng(1)
    probability = rng.uniform(lowest, 1, (100, 120, 160)).astype(np.float32)
    lesions = probability > 0.8
    for arrays_ in ((lesions, probability), (lesions, np.asfortranarray(probability))):
        tracemalloc.start()
        dice_curve(*arrays_)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 50 * topk_auroc.CHUNK < probability.nbytes / 2


# --- best threshold --------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(scans(), min_size=1, max_size=3))
def test_the_search_finds_the_optimum_of_the_grid(cases: list[tuple[np.ndarray, np.ndarray]]):
    threshold, mean = best_threshold(np.stack([dice_curve(*case) for case in cases]))
    means = [sum(masked_dice(*case, candidate) for case in cases) / len(cases) for candidate in GRID]
    assert threshold in GRID
    assert mean == pytest.approx(max(means), abs=1e-12)
    assert means[int(np.flatnonzero(threshold == GRID)[0])] == pytest.approx(max(means), abs=1e-12)


@pytest.mark.parametrize(
    ("means", "place"),
    [
        ([1, 2, 3, 2, 1], 2),
        ([3, 1, 3, 3, 3, 1, 3], 3),  # the longest run
        ([1, 3, 3, 3, 3, 1], 2),  # the lower of two middle ones
        ([3, 3, 1, 3, 3], 0),  # the lower of two runs
        ([1, 1, 3], 2),
        ([3, 1, 1], 0),
        ([0, 0, 0, 0, 0], 2),
        ([5], 0),
    ],
)
def test_of_equal_optima_the_middle_of_the_longest_run(means: list[int], place: int):
    thresholds = np.arange(1, len(means) + 1) / 16
    curves = np.array([means, means]) / 10
    assert best_threshold(curves, thresholds) == ((place + 1) / 16, max(means) / 10)


def test_scans_without_lesions_do_not_count():
    nothing = np.full(3, np.nan)
    curves = np.array([[0.2, 0.4, 0.3], nothing, [0.4, 0.4, 0.9], nothing])
    assert best_threshold(curves, np.array([0.25, 0.5, 0.75])) == (0.75, 0.6)


def test_a_threshold_without_scans_to_choose_it_on_is_an_error():
    for curves in (np.full((2, 199), np.nan), np.empty((0, 199))):
        with pytest.raises(AutopetError, match="chosen on scans with lesions, found none; choose it on more scans"):
            best_threshold(curves)
    with pytest.raises(AutopetError, match="NaN in places"):
        best_threshold(np.array([[0.1, np.nan]]), np.array([0.2, 0.4]))
    with pytest.raises(AutopetError, match=r"shape \(scans, 199\), found \(199,\)"):
        best_threshold(np.zeros(199))


# --- Lipton et al.: the optimal threshold is half of the optimal F1 --------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(arrays(np.int64, 199, elements=st.integers(1, 5)), st.sampled_from([1, 10, 100]), st.booleans())
def test_the_best_threshold_of_calibrated_scores_is_half_the_best_dice(
    groups: np.ndarray, low_scores: int, high_precision: bool
):
    """Exactly calibrated: of 200 voxels with score i/200, i are lesions.

    A group joins the mask if that raises Dice, which is when its score is above half of it. So half of the best Dice
    lies between the lowest score in the mask, which is the threshold, and the next one below, a step of the grid away.
    """
    groups = np.where(GRID < 0.1, groups * low_scores, groups)  # lesions may be common or rare
    steps = np.arange(1, 200)
    lesion_voxels, background_voxels = steps * groups, (200 - steps) * groups
    scores = np.concatenate([np.repeat(GRID, lesion_voxels), np.repeat(GRID, background_voxels)])
    lesions = np.repeat([True, False], [lesion_voxels.sum(), background_voxels.sum()])
    scores = scores.astype(np.float64 if high_precision else np.float32)
    threshold, dice = best_threshold(dice_curve(lesions, scores)[None])
    assert threshold - STEP - 1e-12 <= dice / 2 <= threshold + 1e-12


@pytest.mark.parametrize(("alpha", "beta"), [(0.05, 3.0), (0.3, 0.3), (0.5, 5.0), (2.0, 2.0), (1.0, 1.0)])
def test_drawn_calibrated_scores_follow_the_rule(alpha: float, beta: float):
    rng = np.random.default_rng(0)
    scores = rng.beta(alpha, beta, 2_000_000)
    lesions = rng.random(scores.size) < scores
    threshold, dice = best_threshold(dice_curve(lesions, scores.astype(np.float32))[None])
    assert dice / 2 == pytest.approx(threshold, abs=0.025)  # flat near the optimum: the draw moves it a few steps
    assert abs(threshold - 0.5) > 0.025 or dice > 0.9


def test_scores_that_are_not_calibrated_break_the_rule():
    rng = np.random.default_rng(0)
    scores = rng.beta(0.5, 5.0, 200_000)
    lesions = rng.random(scores.size) < scores
    threshold, dice = best_threshold(dice_curve(lesions, np.sqrt(scores))[None])  # the same order, other scores
    assert abs(threshold - dice / 2) > 0.1


# --- gate ------------------------------------------------------------------------------------------------------------

PROBABILITIES = st.one_of(st.floats(0, 1), st.floats(0, 1, width=32), st.sampled_from([0.0, 1.0, 0.05, 0.7]))
SHARES = st.one_of(st.sampled_from([0.0, 0.1]), st.floats(0, 1, exclude_max=True))


def test_a_gate_counted_by_hand():
    gate = gate_threshold([0.9, 0.5, 0.75], [0.1, 0.375, 0.46, 0.5, 0.8], margin=0.25)
    assert (gate.highest, gate.threshold, gate.margin) == (0.5, 0.375, 0.25)
    assert (gate.positives, gate.negatives, gate.negatives_caught) == (3, 5, 1)  # 0.375 is not below
    caught = {row.margin: row.negatives_caught for row in gate.table}
    assert caught == {0.0: 3, 0.01: 3, 0.02: 3, 0.05: 3, 0.1: 2, 0.2: 2, 0.25: 1, 0.3: 1, 0.5: 1}
    with pytest.raises(dataclasses.FrozenInstanceError):
        gate.threshold = 0.9  # type: ignore[misc]


@settings(max_examples=300, deadline=None)
@given(st.lists(PROBABILITIES, min_size=1, max_size=8), st.lists(PROBABILITIES, max_size=8), SHARES)
def test_no_positive_scan_it_was_chosen_on_is_ever_emptied(
    positives: list[float], negatives: list[float], margin: float
):
    gate = gate_threshold(positives, negatives, margin=margin)
    read = json.loads(json.dumps(dataclasses.asdict(gate)))
    assert read == {**dataclasses.asdict(gate), "table": [dataclasses.asdict(row) for row in gate.table]}
    for threshold in (read["threshold"], np.float32(read["threshold"]), np.float64(read["threshold"])):
        for score in positives:
            assert not score < threshold
            assert not np.float32(score) < threshold  # a score that was kept in single precision
            assert not float(np.float32(score)) < threshold  # and then compared in double
    assert gate.highest == min(positives)  # anything above it would empty that scan
    exact = Fraction(gate.highest) * (1 - Fraction(margin))
    assert float(exact) * (1 - 1e-6) - 1e-44 <= gate.threshold <= gate.highest
    assert gate.negatives_caught == sum(score < gate.threshold for score in negatives)


def test_rounding_to_the_nearest_float32_would_have_emptied_a_scan():
    score = 0.7  # float32 has 0.69999999: a scan that was scored 0.7 comes back lower
    assert float(np.float32(score)) < score
    gate = gate_threshold([score], [], margin=0.0)
    assert not float(np.float32(score)) < gate.threshold
    above = 0.1  # and 0.10000000149 for this one: as the threshold it would lie above the scan
    assert float(np.float32(above)) > above
    assert gate_threshold([above], [], margin=0.0).threshold <= above


@settings(max_examples=100, deadline=None)
@given(st.lists(PROBABILITIES, min_size=1, max_size=8), st.lists(PROBABILITIES, max_size=8), SHARES)
def test_the_table_says_what_each_margin_would_do(positives: list[float], negatives: list[float], margin: float):
    table = gate_threshold(positives, negatives, margin=margin).table
    assert [row.margin for row in table] == sorted({*MARGINS, margin})
    for row in table:
        gate = gate_threshold(positives, negatives, margin=row.margin)
        assert (row.threshold, row.negatives_caught) == (gate.threshold, gate.negatives_caught)
    caught = [row.negatives_caught for row in table]
    assert caught == sorted(caught, reverse=True)  # a wider margin never catches more


def test_a_gate_without_negative_scans_has_nothing_to_catch():
    gate = gate_threshold([0.5], [], margin=0.1)
    assert (gate.negatives, gate.negatives_caught) == (0, 0)
    assert gate.threshold == pytest.approx(0.45)


def test_a_positive_scan_of_score_0_leaves_the_gate_open():
    gate = gate_threshold([0.0, 0.9], [0.0, 0.1], margin=0.0)
    assert (gate.threshold, gate.negatives_caught) == (0.0, 0)


def test_a_gate_without_positive_scans_is_an_error():
    with pytest.raises(AutopetError, match="chosen on scans with lesions, found none; set more scans aside"):
        gate_threshold([], [0.1, 0.2], margin=0.1)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -0.1, 1.5])
def test_scores_that_are_no_probabilities_are_errors(wrong: float):
    with pytest.raises(AutopetError, match=f"found {wrong:g} for a positive scan; look at the classifier"):
        gate_threshold([0.5, wrong], [0.1], margin=0.1)
    with pytest.raises(AutopetError, match=f"found {wrong:g} for a negative scan"):
        gate_threshold([0.5], [0.1, wrong], margin=0.1)


@pytest.mark.parametrize("margin", [-0.1, 1.0, math.nan])
def test_margins_out_of_range_are_errors(margin: float):
    with pytest.raises(AutopetError, match="margin must be at least 0 and below 1"):
        gate_threshold([0.5], [], margin=margin)
