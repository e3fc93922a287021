"""Organ labels through nnU-Net's preprocessing: aligned with the image, and no foreground."""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from autopet.cohort import Case
from autopet.errors import AutopetError
from autopet.images import write_image
from autopet.volume import Volume

pytest.importorskip("torch")
pytest.importorskip("nnunetv2")

import torch
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from algorithms.lesiontracer.loss import has_organ_labels
from algorithms.lesiontracer.preprocessing import UNLABELLED, OrganPreprocessor, organ_files
from autopet.nnunet.workspace import Workspace, write_dataset

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


@pytest.mark.parametrize("labelled", [True, False])
def test_images_lesions_and_places_are_nnunet_s_own(case: Case, labelled: bool):
    images, labels, properties = preprocess(case, organ_files([case]) if labelled else {})
    plans = make_plans()
    files = [str(case.ct.resolve()), str(case.suv.resolve())], str(case.mask.resolve())
    theirs = DefaultPreprocessor(verbose=False).run_case(*files, plans, plans.get_configuration("3d_fullres"), DATASET)
    np.testing.assert_array_equal(images, theirs[0])
    np.testing.assert_array_equal(labels[:1], theirs[1])
    np.testing.assert_array_equal(properties["class_locations"][1], theirs[2]["class_locations"][1])


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


SCALES = [[1, 1, 1], [0.5, 0.5, 0.5], [0.25, 0.25, 0.25]]


class OneCase:
    """In place of nnU-Net's dataset: a case of 20 x 24 x 28 voxels, smaller than the enlarged patch."""

    identifiers = ("case",)

    def __init__(self, organs: np.ndarray, lesions: np.ndarray) -> None:
        self.seg = np.stack([lesions, organs]).astype(np.int16)
        self.data = np.stack([lesions, organs]).astype(np.float32)
        self.places = {1: np.concatenate([np.zeros((1, 1), int), np.argwhere(lesions == 1)[:1]], 1)}

    def load_case(self, identifier: str) -> tuple:
        return self.data, self.seg, None, {"class_locations": self.places}


def batches(dataset: OneCase, count: int) -> list[dict]:
    """Patches of 16 voxels a side through nnU-Net's loader and its whole training chain, with and without turning."""
    labels = SimpleNamespace(all_labels=[0, 1], has_ignore_label=False)
    chain = nnUNetTrainer.get_training_transforms((16, 16, 16), (-0.5, 0.5), SCALES, (0, 1, 2), False)
    loader = nnUNetDataLoader(dataset, 2, (26, 26, 26), (16, 16, 16), labels, 0.5, transforms=chain)
    np.random.seed(2)
    torch.manual_seed(2)
    return [next(loader) for _ in range(count)]


def test_both_label_maps_go_the_same_way_through_the_training_chain():
    """Organ 7 is where a lesion is, and nowhere else."""
    lesions = np.zeros(SHAPE, int)
    lesions[4:16, 5:14, 6:20] = 1
    lesions[:2] = -1  # outside the body: becomes background
    found = batches(OneCase(np.where(lesions == 1, 7, lesions), lesions), count=20)
    seen = 0
    for batch in found:
        assert [tuple(target.shape) for target in batch["target"]] == [(2, 2, edge, edge, edge) for edge in (16, 8, 4)]
        for target in batch["target"]:
            assert target.dtype == torch.int16
            assert torch.equal(target[:, 1], 7 * target[:, 0])
            assert set(target[:, 0].unique().tolist()) <= {0, 1}
        assert has_organ_labels(batch["target"][0]).all()
        seen += int(batch["target"][0][:, 0].sum() > 0)
    assert seen == 20  # half of a batch is centred on a lesion


def test_unlabelled_stays_unlabelled_through_the_training_chain():
    """Whatever is turned, zoomed and padded, no label between 0 and 127 appears, and no patch seems labelled."""
    lesions = np.zeros(SHAPE, int)
    lesions[4:16, 5:14, 6:20] = 1
    found = batches(OneCase(np.full(SHAPE, UNLABELLED), lesions), count=20)
    padded = 0
    for batch in found:
        assert not has_organ_labels(batch["target"][0]).any()
        for target in batch["target"]:
            assert set(target[:, 1].unique().tolist()) <= {0, UNLABELLED}
        padded += int((batch["target"][0][:, 1] == 0).any())
    assert padded  # some patches reach over the image's edge, where the label is 0


def test_organ_labels_that_do_not_fit(case: Case):
    small = Volume(np.zeros((4, 4, 4), np.uint8), spacing_mm=(4.0, 3.0, 2.0), origin_mm=(0.0, 0.0, 0.0))
    write_image(case.image("ORGANS"), small)
    with pytest.raises(AutopetError, match="on the PET's grid"):
        preprocess(case, organ_files([case]))
    write_image(case.image("ORGANS"), Volume(np.full(SHAPE, 11, np.uint8), (4.0, 3.0, 2.0), (0.0, 0.0, 0.0)))
    with pytest.raises(AutopetError, match="expected whole numbers 0 to 10; make it anew with `autopet organs`"):
        preprocess(case, organ_files([case]))


@pytest.mark.parametrize("wrong", [2.5, -1.0])
def test_organ_labels_that_are_no_labels(case: Case, wrong: float):
    organs = np.zeros(SHAPE, np.float32)
    organs[5, 5, 5] = wrong
    write_image(case.image("ORGANS"), Volume(organs, (4.0, 3.0, 2.0), (0.0, 0.0, 0.0)))
    with pytest.raises(AutopetError, match="expected whole numbers 0 to 10"):
        preprocess(case, organ_files([case]))


def test_lesion_labels_that_are_no_mask(case: Case):
    """255 would be an index out of bounds in the loss: on a GPU an assertion without a name."""
    mask = np.zeros(SHAPE, np.uint8)
    mask[LESION] = 255
    write_image(case.mask, Volume(mask, (4.0, 3.0, 2.0), (0.0, 0.0, 0.0)))
    with pytest.raises(AutopetError, match=r"SEG.nii.gz: labels from 0 to 255, expected whole numbers 0 to 1"):
        preprocess(case, organ_files([case]))


def test_the_preprocessor_reaches_other_processes():
    """nnU-Net sends its bound method to processes that share nothing with this one."""
    sent = pickle.loads(pickle.dumps(OrganPreprocessor({"mask": "organs"}).run_case_save))
    assert isinstance(sent.__self__, OrganPreprocessor)
    assert sent.__self__.organs == {"mask": "organs"}


def test_only_cases_with_organ_labels_are_named(case: Case, cohort: list[Case]):
    assert organ_files([case, *cohort]) == {str(case.mask.resolve()): str(case.image("ORGANS").resolve())}


def test_cases_whose_masks_are_links_to_one_file_keep_their_own_organs(case: Case, tmp_path: Path):
    """Cases without lesions may share an empty mask: the mask's file does not tell whose organs are wanted."""
    twins = []
    for name in ("a", "b", "c"):
        twin = replace(case, name=name, folder=tmp_path / name)
        twin.folder.mkdir()
        for role in ("CTres", "SUV", "SEG"):
            twin.image(role).symlink_to(case.image(role))
        twins.append(twin)
    for twin in twins[:2]:
        shutil.copy(case.image("ORGANS"), twin.image("ORGANS"))
    space = Workspace(tmp_path / "work")
    write_dataset(space, twins)
    asked = json.loads((space.raw / "dataset.json").read_text())["dataset"]
    found = organ_files(twins)
    assert [found.get(asked[name]["label"]) for name in "abc"] == [
        str(twins[0].image("ORGANS")),
        str(twins[1].image("ORGANS")),
        None,
    ]
