from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopet.checkpoint import read_config
from autopet.cohort import Case
from autopet.deadline import Deadline
from autopet.errors import AutopetError
from autopet.images import read_image
from autopet.sockets import LESIONS, Inputs
from autopet.volume import Volume
from baselines.threshold import predict
from baselines.threshold.model import RULES, Settings, dice_at, thresholds_suv
from baselines.threshold.train import train


def test_each_rule_by_hand():
    suv = np.array([[[0.0, 0.05, 1.0, 2.0, 3.0, 4.0, 10.0]]])
    assert thresholds_suv(suv, "fraction", np.array([20.0, 50.0])).tolist() == [2.0, 5.0]
    assert thresholds_suv(suv, "suvmax41", np.array([41.0])) == pytest.approx([4.1])
    assert thresholds_suv(suv, "fixed", np.array([4.0])).tolist() == [4.0]
    # the body (above 0.1) is 1, 2, 3, 4, 10: its median is 3
    assert thresholds_suv(suv, "percentile", np.array([50.0])).tolist() == [3.0]


def test_percentile_of_a_scan_without_body():
    assert thresholds_suv(np.zeros((1, 2, 2)), "percentile", np.array([50.0])).tolist() == [0.0]


@given(st.integers(0, 2**32 - 1), st.floats(0, 1))
@settings(max_examples=30, deadline=None)
def test_dice_by_search_equals_dice_by_counting(seed: int, share: float):
    rng = np.random.default_rng(seed)
    suv = rng.integers(0, 6, (3, 4, 5)).astype(float)  # ties on purpose
    lesion = rng.random((3, 4, 5)) < share
    thresholds = np.array([0.0, 1.0, 2.5, 5.0, 9.0])
    expected = []
    for threshold in thresholds:
        mask = suv >= threshold
        total = mask.sum() + lesion.sum()
        expected.append(2 * (mask & lesion).sum() / total if total else np.nan)
    np.testing.assert_allclose(dice_at(suv, lesion, thresholds), expected)


def test_unknown_rule():
    with pytest.raises(AutopetError, match="use one of fraction, percentile"):
        Settings(rule="otsu")


def test_training_takes_the_best_of_the_grid(cohort: list[Case], tmp_path: Path):
    folder = train(cohort, tmp_path / "model", settings=Settings(), work=tmp_path, device="cpu")
    config = read_config(folder, method="threshold")
    with (folder / "search.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 20 + 20 + 1 + 1
    for rule in RULES:
        best = max((row for row in rows if row["rule"] == rule), key=lambda row: float(row["mean_dice"]))
        assert float(best["value"]) == pytest.approx(config["values"][rule], abs=1e-4)
    assert "case03" not in config["training_cases"]  # no lesion: says nothing about Dice


def test_training_dice_is_what_prediction_gets(cohort: list[Case], tmp_path: Path):
    for rule in RULES:
        folder = train(cohort, tmp_path / rule, settings=Settings(rule=rule), work=tmp_path, device="cpu")
        model = predict.load(folder, "cpu")
        dice = []
        for case in (case for case in cohort if case.lesion_voxels):
            pet, lesion = read_image(case.suv), read_image(case.mask).array
            outputs = predict.predict(model, Inputs({"pet": pet, "ct": pet}, "x"), Deadline())
            mask = outputs[LESIONS.slug].array
            dice.append(2 * (mask * lesion).sum() / (mask.sum() + lesion.sum()))
        expected = read_config(folder, method="threshold")["training_dice"][rule]
        assert np.mean(dice) == pytest.approx(expected, abs=1e-6)


def test_no_lesion_anywhere(cohort: list[Case], tmp_path: Path):
    with pytest.raises(AutopetError, match="no training case has a lesion"):
        train([cohort[3]], tmp_path / "model", settings=Settings(), work=tmp_path, device="cpu")
    assert list(tmp_path.iterdir()) == []


def test_a_threshold_that_equals_a_voxel_includes_it():
    pet = Volume(np.array([[[1.0, 4.0, 10.0]]], np.float32))
    outputs = predict.predict(predict.Model("fixed", 4.0), Inputs({"pet": pet, "ct": pet}, "x"), Deadline())
    assert outputs[LESIONS.slug].array.tolist() == [[[0, 1, 1]]]


def test_a_scan_without_uptake_has_no_lesion():
    pet = Volume(np.zeros((2, 3, 4), np.float32))
    outputs = predict.predict(predict.Model("fraction", 41.0), Inputs({"pet": pet, "ct": pet}, "x"), Deadline())
    assert outputs[LESIONS.slug].array.sum() == 0
