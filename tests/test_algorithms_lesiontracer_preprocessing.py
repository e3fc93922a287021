"""Organ labels through nnU-Net's preprocessing: aligned with the image, and no foreground."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from autopet.cohort import Case
from autopet.errors import AutopetError
from autopet.images import write_image
from autopet.volume import Volume

pytest.importorskip("torch")
pytest.importorskip("nnunetv2")

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from algorithms.lesiontracer.preprocessing import UNLABELLED, OrganPreprocessor, organ_files

SHAPE = (20, 24, 28)
LIVER, BRAIN = (slice(8, 14), slice(8, 16), slice(4, 12)), (slice(8, 14), slice(8, 16), slice(16, 24))
LESION = (slice(9, 12), slice(10, 14), slice(6, 10))
DATASET = {"channel_names": {"0": "CT", "1": "PET"}, "labels": {"background": 0, "lesion": 1}, "file_ending": ".nii.gz"}


def make_plans() -> PlansManager:
    """To 4 x 3 x 2 mm, from 2 x 3 x 4 mm: z halves, y stays, x doubles."""
    seg = {"is_seg": True, "order": 1, "order_z": 0, "force_separate_z": None}
    data = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    statistics = {"mean": 0.0, "std": 1.0, "percentile_00_5": -1e6, "percentile_99_5": 1e6}
    return PlansManager(
        {
            "dataset_name": "D",
            "plans_name": "P",
            "image_reader_writer": "SimpleITKIO",
            "transpose_forward": [0, 1, 2],
            "transpose_backward": [0, 1, 2],
            "label_manager": "LabelManager",
            "foreground_intensity_properties_per_channel": {"0": statistics, "1": statistics},
            "configurations": {
                "3d_fullres": {
                    "spacing": [4.0, 3.0, 2.0],
                    "normalization_schemes": ["CTNormalization"] * 2,
                    "use_mask_for_norm": [False, False],
                    "resampling_fn_data": "resample_data_or_seg_to_shape",
                    "resampling_fn_seg": "resample_data_or_seg_to_shape",
                    "resampling_fn_data_kwargs": data,
                    "resampling_fn_seg_kwargs": seg,
                    "architecture": {},
                }
            },
        }
    )


@pytest.fixture
def case(tmp_path: Path) -> Case:
    """A body that fills all but a rim, two organs whose CT values are theirs alone, and a lesion in the liver."""
    folder = tmp_path / "case"
    ct, suv, lesions, organs = (np.zeros(SHAPE, kind) for kind in (np.int16, np.float32, np.uint8, np.uint8))
    inside = (slice(2, 18), slice(2, 22), slice(2, 26))
    ct[inside], suv[inside] = 40, 1
    ct[LIVER], ct[BRAIN] = 300, 600
    organs[LIVER], organs[BRAIN] = 3, 6
    lesions[LESION] = 1
    place = {"spacing_mm": (4.0, 3.0, 2.0), "origin_mm": (0.0, 0.0, 0.0)}
    for role, array in {"CTres": ct, "SUV": suv, "SEG": lesions, "ORGANS": organs}.items():
        write_image(folder / f"{role}.nii.gz", Volume(array, **place))
    return Case("case", "patient", folder, lesion_voxels=int(lesions.sum()))


def preprocess(case: Case, organs: dict[str, str]) -> tuple[np.ndarray, np.ndarray, dict]:
    plans = make_plans()
    images = [str(case.ct.resolve()), str(case.suv.resolve())]
    preprocessor = OrganPreprocessor(organs)
    mask = str(case.mask.resolve())
    return preprocessor.run_case(images, mask, plans, plans.get_configuration("3d_fullres"), DATASET)


def test_organ_labels_stay_where_their_organs_are(case: Case):
    images, labels, _ = preprocess(case, organ_files([case]))
    # cropped to the body (16, 20, 24), then resampled
    assert images.shape == (2, 8, 20, 48)
    assert labels.shape == (2, 8, 20, 48)
    # the body starts at 2, 2, 2: liver z 6:12 -> 3:6, y 6:14, x 2:10 -> 4:20; brain x 14:22 -> 28:44
    expected = np.zeros((8, 20, 48), int)
    expected[3:6, 6:14, 4:20], expected[3:6, 6:14, 28:44] = 3, 6
    np.testing.assert_array_equal(labels[1], expected)
    liver, brain = (np.median(images[0][labels[1] == organ]) for organ in (3, 6))
    assert (liver, brain) == (300, 600)
    assert set(np.unique(labels[0])) == {0, 1}
    assert (labels[1][labels[0] == 1] == 3).all()


def test_lesions_are_the_same_as_without_organs(case: Case):
    with_organs, without = preprocess(case, organ_files([case])), preprocess(case, {})
    np.testing.assert_array_equal(with_organs[0], without[0])
    np.testing.assert_array_equal(with_organs[1][0], without[1][0])


def test_patches_are_centred_on_lesions_alone(case: Case):
    _, labels, properties = preprocess(case, organ_files([case]))
    places = properties["class_locations"]
    assert list(places) == [1]
    assert len(places[1]) == (labels[0] == 1).sum()
    assert (places[1][:, 0] == 0).all()
    assert (labels[0][tuple(places[1][:, 1:].T)] == 1).all()


def test_a_case_without_organ_labels_is_marked_everywhere(case: Case):
    _, labels, _ = preprocess(case, {})
    assert (labels[1] == UNLABELLED).all()


def test_outside_the_body_both_channels_are_minus_one(case: Case, tmp_path: Path):
    """A corner that is zero in both images, inside the bounding box: nnU-Net makes it background in training."""
    from autopet.images import read_image

    for path in (case.ct, case.suv):
        volume = read_image(path)
        array = volume.array.copy()
        array[2:6, 2:6, 2:6] = 0
        write_image(path, volume.with_array(array))
    _, labels, _ = preprocess(case, organ_files([case]))
    assert (labels[:, 0, 0, 0] == -1).all()
    assert (labels[1] == 3).sum() == 3 * 8 * 16


def test_organ_labels_that_do_not_fit(case: Case):
    small = Volume(np.zeros((4, 4, 4), np.uint8), spacing_mm=(4.0, 3.0, 2.0), origin_mm=(0.0, 0.0, 0.0))
    write_image(case.image("ORGANS"), small)
    with pytest.raises(AutopetError, match="on the PET's grid"):
        preprocess(case, organ_files([case]))
    write_image(case.image("ORGANS"), Volume(np.full(SHAPE, 11, np.uint8), (4.0, 3.0, 2.0), (0.0, 0.0, 0.0)))
    with pytest.raises(AutopetError, match="expected 0 to 10"):
        preprocess(case, organ_files([case]))


def test_only_cases_with_organ_labels_are_named(case: Case, cohort: list[Case]):
    assert organ_files([case, *cohort]) == {str(case.mask.resolve()): str(case.image("ORGANS").resolve())}
