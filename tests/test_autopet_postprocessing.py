"""Every rule of post-processing on masks small enough to count."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from typer.testing import CliRunner

from autopet import components
from autopet.checkpoint import publish_model, read_config, settings_from_dict
from autopet.commands import postprocess
from autopet.errors import AutopetError
from autopet.postprocessing import (
    Rules,
    apply_rules,
    body_axis,
    clear_below,
    remove_at_bottom,
    remove_few_voxels,
    remove_small,
    rules_of,
)
from autopet.volume import IDENTITY, Volume

EDGES = ndimage.generate_binary_structure(3, 2)  # 18-connectivity, of another library
FEET_LAST = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, -1.0)  # slice 0 is the uppermost


def column(*slices: int) -> np.ndarray:
    """A mask of one voxel per slice."""
    return np.array(slices, np.uint8)[:, None, None]


def test_voxels_below_a_value_are_cleared():
    mask = np.array([[[1, 1, 1, 0]]], np.uint8)
    hu = np.array([[[-1000.5, -1000.0, 50.0, 50.0]]])
    assert clear_below(mask, hu, -1000).tolist() == [[[0, 1, 1, 0]]]
    assert clear_below(mask, np.array([[[0.99, 1.0, np.nan, 9.0]]]), 1).tolist() == [[[0, 1, 0, 0]]]
    assert clear_below(mask.astype(bool), hu, -1000).dtype == bool
    assert mask.tolist() == [[[1, 1, 1, 0]]]
    with pytest.raises(AutopetError, match="resample it"):
        clear_below(mask, hu[..., :2], 0)


def test_components_of_few_voxels_go():
    # 3 voxels in a diagonal (they share edges: one component), 2 in a row, and 1 that touches the row by a corner only
    mask = np.zeros((2, 4, 9), np.uint8)
    mask[0, [0, 1, 2], [0, 1, 2]] = 1
    mask[0, 3, 5:7] = 1
    mask[1, 2, 7] = 1
    assert [int(remove_few_voxels(mask, n).sum()) for n in (0, 1, 2, 3, 4)] == [6, 6, 5, 3, 0]
    assert remove_few_voxels(mask, 3)[0, [0, 1, 2], [0, 1, 2]].all()


def test_the_limit_in_ml_is_a_volume():
    mask = np.zeros((1, 1, 20), np.uint8)
    mask[..., :10] = 1
    mask[..., 11:20] = 1
    voxel_ml = Volume(mask, (2.0, 2.0, 3.0)).voxel_volume_ml
    assert voxel_ml == pytest.approx(0.012)
    assert remove_small(mask, 0.12, voxel_ml=voxel_ml).sum() == 10  # 10 x 0.012 ml is exactly the limit, 9 x is below
    assert remove_small(mask, 0.12, voxel_ml=0.0119999999).sum() == 10  # a spacing that a file has rounded
    assert remove_small(mask, 0.1081, voxel_ml=voxel_ml).sum() == 10
    assert remove_small(mask, 0.108, voxel_ml=voxel_ml).sum() == 19
    assert remove_small(mask, 0.121, voxel_ml=voxel_ml).sum() == 0


@given(st.integers(0, 2**32 - 1), st.floats(0.05, 0.5), st.integers(0, 12))
@settings(max_examples=40, deadline=None)
def test_small_components_as_scipy_finds_them(seed: int, share: float, minimum: int):
    mask = (np.random.default_rng(seed).random((4, 9, 8)) < share).astype(np.uint8)
    labels, count = ndimage.label(mask, structure=EDGES)
    sizes = ndimage.sum_labels(mask, labels, np.arange(count + 1))
    expected = mask * (sizes[labels] >= minimum)
    np.testing.assert_array_equal(remove_few_voxels(mask, minimum), expected)
    np.testing.assert_array_equal(remove_small(mask, minimum * 0.5, voxel_ml=0.5), expected)


def test_the_bottom_is_where_the_feet_are():
    mask = column(1, 0, 0, 1, 0, 1)
    assert remove_at_bottom(mask, 1, direction=IDENTITY).ravel().tolist() == [0, 0, 0, 1, 0, 1]
    assert remove_at_bottom(mask, 1, direction=FEET_LAST).ravel().tolist() == [1, 0, 0, 1, 0, 0]
    assert remove_at_bottom(mask, 3, direction=FEET_LAST).ravel().tolist() == [1, 0, 0, 0, 0, 0]
    assert remove_at_bottom(mask, 2, direction=FEET_LAST).ravel().tolist() == [1, 0, 0, 1, 0, 0]
    assert remove_at_bottom(mask, 9, direction=IDENTITY).sum() == 0
    assert remove_at_bottom(mask, 0, direction=IDENTITY).tolist() == mask.tolist()


def test_a_component_that_reaches_further_up():
    mask = column(0, 1, 1, 0, 1)
    assert remove_at_bottom(mask, 2, direction=IDENTITY).ravel().tolist() == [0, 0, 0, 0, 1]
    assert remove_at_bottom(mask, 2, direction=IDENTITY, rule="within").ravel().tolist() == mask.ravel().tolist()
    assert remove_at_bottom(mask, 3, direction=IDENTITY, rule="within").ravel().tolist() == [0, 0, 0, 0, 1]


def test_the_body_s_axis_is_read_from_the_direction():
    assert body_axis(IDENTITY) == (0, True)
    assert body_axis(FEET_LAST) == (0, False)
    coronal = (1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, -1.0, 0.0)  # rows run down the body: y grows towards the feet
    assert body_axis(coronal) == (1, False)
    sagittal = (0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0)  # columns run up the body
    assert body_axis(sagittal) == (2, True)
    mask = np.zeros((2, 3, 4), np.uint8)
    mask[0, 2, 1] = mask[1, 0, 3] = 1
    assert np.argwhere(remove_at_bottom(mask, 1, direction=coronal)).tolist() == [[1, 0, 3]]
    assert np.argwhere(remove_at_bottom(mask, 2, direction=sagittal)).tolist() == [[1, 0, 3]]


@pytest.mark.parametrize("dtype", [np.uint8, bool])
def test_empty_masks_stay_empty(dtype: type):
    grid = Volume(np.zeros((3, 4, 5), dtype), (2.0, 2.0, 3.0), (1.0, 2.0, 3.0), FEET_LAST)
    rules = Rules(min_ct_hu=-1000, min_suv=1, bottom_slices=3, min_component_voxels=4, min_component_ml=0.1)
    image = grid.with_array(np.ones((3, 4, 5)))
    cleaned, said = apply_rules(grid, rules, suv=image, ct=image)
    assert said == ()
    assert not cleaned.array.any()
    assert cleaned.array.dtype == dtype
    for part in (remove_few_voxels(grid.array, 3), remove_at_bottom(grid.array, 3, direction=FEET_LAST)):
        assert not part.any()


def test_off_by_default():
    mask = Volume(np.ones((3, 1, 1), np.uint8))
    cleaned, said = apply_rules(mask, Rules(), suv=None, ct=None)
    assert cleaned.array is mask.array
    assert said == ()
    assert Rules().active == Rules(bottom_rule="within").active == {}
    assert settings_from_dict(Rules, {}, "x") == Rules()


def test_order_words_and_geometry():
    # One component of 5 voxels in a row; its middle voxel is in air, so two pieces of 2 remain, and both are too small.
    row = np.array([[[1, 1, 1, 1, 1, 0, 1, 1, 1]]], np.uint8)
    hu = np.full(row.shape, 40.0)
    hu[0, 0, 2] = -1001
    mask = Volume(row, (2.0, 2.0, 3.0), (-7.0, 5.0, 3.0), FEET_LAST)
    cleaned, said = apply_rules(mask, Rules(min_ct_hu=-1000, min_component_voxels=3), suv=None, ct=mask.with_array(hu))
    assert cleaned.array.ravel().tolist() == [0, 0, 0, 0, 0, 0, 1, 1, 1]
    assert cleaned.same_grid(mask)
    assert cleaned.array.dtype == np.uint8
    assert said == (
        "post-processing removed voxels with a CT below -1000 HU: 1 voxels (0.012 ml), components 2 -> 3",
        "post-processing removed components of fewer than 3 voxels: 4 voxels (0.048 ml), components 3 -> 1",
    )
    assert row.sum() == 8  # the input is not changed


@given(st.integers(0, 2**32 - 1), st.floats(0.05, 0.6), st.sampled_from(["touching", "within"]))
@settings(max_examples=40, deadline=None)
def test_all_rules_are_one_after_the_other(seed: int, share: float, bottom_rule: str):
    """`apply_rules` labels once for all rules; the functions, one by one on what is left, decide."""
    rng = np.random.default_rng(seed)
    mask = Volume((rng.random((6, 7, 8)) < share).astype(np.uint8), (5.0, 5.0, 10.0), direction=FEET_LAST)
    hu, suv = (mask.with_array(rng.normal(size=mask.shape)) for _ in range(2))
    rules = Rules(-1.5, -1.0, 2, bottom_rule, 3, 1.25)  # 0.25 ml a voxel: fewer than 5
    expected = [clear_below(mask.array, hu.array, -1.5)]
    expected.append(clear_below(expected[-1], suv.array, -1.0))
    expected.append(remove_at_bottom(expected[-1], 2, direction=FEET_LAST, rule=bottom_rule))
    expected.append(remove_few_voxels(expected[-1], 3))
    expected.append(remove_small(expected[-1], 1.25, voxel_ml=0.25))
    cleaned, said = apply_rules(mask, rules, suv=suv, ct=hu)
    np.testing.assert_array_equal(cleaned.array, expected[-1])
    counts = [ndimage.label(array, structure=EDGES)[1] for array in (mask.array, *expected)]
    sizes = [int(array.sum()) for array in (mask.array, *expected)]
    words = [
        f": {sizes[i] - sizes[i + 1]} voxels ({(sizes[i] - sizes[i + 1]) * 0.25:.3g} ml), components {counts[i]} -> "
        f"{counts[i + 1]}"
        for i in range(5)
        if sizes[i] != sizes[i + 1]
    ]
    assert [text[text.index(": ") :] for text in said] == words


def test_a_mask_is_labelled_once_for_all_rules_that_judge_components(monkeypatch: pytest.MonkeyPatch):
    """Of an image of 400 x 400 x 326 voxels a labelling takes a second, and the mask is due."""
    calls = []
    label = components.label_components
    monkeypatch.setattr(components, "label_components", lambda mask: calls.append(mask.size) or label(mask))
    mask = Volume(np.ones((4, 5, 6), np.uint8))
    image = mask.with_array(np.ones(mask.shape))
    apply_rules(mask, Rules(min_ct_hu=0, min_suv=0), suv=image, ct=image)
    assert calls == []
    rules = Rules(0, 0, bottom_slices=1, bottom_rule="within", min_component_voxels=4, min_component_ml=0.1)
    assert apply_rules(mask, rules, suv=image, ct=image)[0].array.all()
    assert calls == [120]


def test_every_rule_is_wired_to_its_image_and_unit():
    array = np.zeros((4, 1, 8), np.uint8)
    array[0, 0, 0] = array[3, 0, 0:2] = array[2, 0, 4:8] = 1
    mask = Volume(array, (10.0, 10.0, 10.0))  # 1 ml a voxel
    suv = mask.with_array(np.where(np.arange(8) == 7, 0.5, 2.0) * np.ones((4, 1, 1)))
    done = {
        "suv": apply_rules(mask, Rules(min_suv=1), suv=suv, ct=None),
        "bottom": apply_rules(mask, Rules(bottom_slices=1), suv=None, ct=None),
        "within": apply_rules(mask, Rules(bottom_slices=3, bottom_rule="within"), suv=None, ct=None),
        "ml": apply_rules(mask, Rules(min_component_ml=2.5), suv=None, ct=None),
    }
    assert {key: int(cleaned.array.sum()) for key, (cleaned, _) in done.items()} == {
        "suv": 6, "bottom": 6, "within": 2, "ml": 4,
    }  # fmt: skip
    words = ("an SUV below 1", "touching the 1 bottom slices", "within the 3 bottom slices", "less than 2.5 ml")
    assert all(word in said[0] for word, (_, said) in zip(words, done.values(), strict=True))


def test_a_rule_without_its_image():
    mask = Volume(np.ones((2, 2, 2), np.uint8))
    with pytest.raises(AutopetError, match=r"min_ct_hu needs the CT, .* --set min_ct_hu=off"):
        apply_rules(mask, Rules(min_ct_hu=-1000), suv=mask, ct=None)
    with pytest.raises(AutopetError, match="min_suv needs the PET"):
        apply_rules(mask, Rules(min_suv=1), suv=None, ct=mask)
    shifted = Volume(mask.array, origin_mm=(1.0, 0.0, 0.0))
    with pytest.raises(AutopetError, match=r"the PET is not on the mask's grid: corner voxels lie up to 1 mm apart"):
        apply_rules(mask, Rules(min_suv=1), suv=shifted, ct=None)


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_component_ml": -0.1},
        {"min_component_ml": "0.1"},
        {"min_component_ml": None},
        {"min_component_voxels": 2.5},
        {"min_component_voxels": True},
        {"bottom_slices": -1},
        {"min_suv": float("nan")},
        {"min_ct_hu": "air"},
        {"bottom_rule": "near"},
    ],
)
def test_values_that_make_no_sense(wrong: dict):
    with pytest.raises(AutopetError, match=next(iter(wrong))):
        Rules(**wrong)


def test_unknown_rules_are_errors():
    with pytest.raises(AutopetError, match="model: unknown setting min_component;"):
        settings_from_dict(Rules, {"min_component": 3}, "model")
    assert Rules(min_suv=0.0, min_component_voxels=4).active == {"min_suv": 0.0, "min_component_voxels": 4}


def call(*arguments: object) -> str:
    """What `autopet postprocess` prints; its errors are raised."""
    result = CliRunner().invoke(postprocess.app, [str(argument) for argument in arguments], catch_exceptions=True)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return " ".join(result.output.split())


def test_the_command_shows_sets_and_clears(tmp_path: Path):
    folder = publish_model(tmp_path / "m", lambda _: {"method": "toy"})
    untouched = read_config(folder, method="toy")
    assert call(folder).endswith("m: no post-processing")
    said = call(folder, "--set", "min_component_ml=0.1", "--set", "min_ct_hu=-1000", "--set", "bottom_slices=3")
    assert said.endswith("m: min_ct_hu = -1000, bottom_slices = 3, min_component_ml = 0.1")
    assert call(folder) == said
    config = read_config(folder, method="toy")
    assert config["postprocessing"] == {"min_component_ml": 0.1, "min_ct_hu": -1000, "bottom_slices": 3}
    assert call(folder, "--set", "min_ct_hu=off", "--set", "bottom_slices=off").endswith("m: min_component_ml = 0.1")
    assert read_config(folder, method="toy")["postprocessing"] == {"min_component_ml": 0.1}
    assert call(folder, "--off").endswith("no post-processing")
    assert read_config(folder, method="toy") == untouched


def test_rules_of_a_config_that_somebody_edited(tmp_path: Path):
    for nothing in ({}, {"postprocessing": None}, {"postprocessing": {}}):
        assert rules_of(nothing, "m") == Rules()
    assert rules_of({"postprocessing": {"min_suv": 1}}, "m") == Rules(min_suv=1)
    for nonsense in (["min_suv"], "off", 3):
        with pytest.raises(AutopetError, match="m: postprocessing is expected as an object"):
            rules_of({"postprocessing": nonsense}, "m")
    folder = publish_model(tmp_path / "m", lambda _: {"method": "toy", "postprocessing": None})
    assert call(folder).endswith("no post-processing")
    folder = publish_model(tmp_path / "m", lambda _: {"method": "toy", "postprocessing": {"min_component": 3}})
    with pytest.raises(AutopetError, match="unknown setting min_component;"):
        call(folder)
    assert call(folder, "--off").endswith("no post-processing")  # the way out


def test_the_command_refuses_what_it_cannot_do(tmp_path: Path):
    folder = publish_model(tmp_path / "m", lambda _: {"method": "toy"})
    for wrong in ("min_component=3", "min_component_ml=-1", "bottom_slices=many", "min_suv", "min_suv=hot"):
        with pytest.raises(AutopetError):
            call(folder, "--set", wrong)
    with pytest.raises(AutopetError, match="not both"):
        call(folder, "--off", "--set", "min_suv=1")
    assert "postprocessing" not in read_config(folder, method="toy")
    with pytest.raises(AutopetError, match="is no model folder"):
        call(tmp_path / "none")
