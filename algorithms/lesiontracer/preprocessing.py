"""Organ labels as a second segmentation channel through nnU-Net's preprocessing."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from algorithms.lesiontracer.model import LESION_CLASSES, ORGAN_CLASSES
from autopet.cohort import Case
from autopet.errors import AutopetError
from autopet.nnunet.workspace import label_path
from autopet.organs import ROLE

LESION, ORGAN = 0, 1  # segmentation channels
UNLABELLED = 127  # fills the organ channel of a case without organ labels; nnU-Net keeps labels up to 127 in one byte


class OrganPreprocessor(DefaultPreprocessor):
    """nnU-Net's preprocessing of an image with two label maps: lesions, and organs.

    Both are cropped and resampled in the same way, label by label. Places for patches with a lesion are drawn from the
    lesion channel alone. What lies outside the body's bounding mask is -1 in both, as in nnU-Net, and becomes
    background in training.

    Parameters
    ----------
    organs : mapping of str to str
        Path of a case's lesion mask -> path of its organ labels. A case that is not in it gets a channel of
        `UNLABELLED`, and its organ loss is left out.
    """

    def __init__(self, organs: Mapping[str, str]) -> None:
        super().__init__(verbose=False)
        self.organs = dict(organs)

    def run_case(
        self,
        image_files: list[str],
        seg_file: str | None,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        dataset_json: dict | str,
    ) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        """Images (channel, z, y, x), label maps (2, z, y, x) and nnU-Net's properties of one training case."""
        reader = plans_manager.image_reader_writer_class()
        images, properties = reader.read_images(image_files)
        lesions = self._labels(reader, str(seg_file), LESION_CLASSES)
        labels = np.concatenate([lesions, self._organ_channel(reader, str(seg_file), lesions)])
        return self.run_case_npy(images, labels, properties, plans_manager, configuration_manager, dataset_json)

    def _organ_channel(self, reader: Any, seg_file: str, lesions: np.ndarray) -> np.ndarray:
        path = self.organs.get(seg_file)
        if path is None:
            return np.full_like(lesions, UNLABELLED)
        organs = self._labels(reader, path, ORGAN_CLASSES)
        if organs.shape != lesions.shape:
            raise AutopetError(
                f"{path}: organ labels of shape {organs.shape[1:]}, the lesion mask has {lesions.shape[1:]};"
                " make them on the PET's grid"
            )
        return organs.astype(lesions.dtype)

    @staticmethod
    def _labels(reader: Any, path: str, classes: int) -> np.ndarray:
        """A label map (1, z, y, x) of whole numbers below `classes`; others would end the training on a GPU."""
        labels, _ = reader.read_seg(path)
        if not np.isin(labels, np.arange(classes)).all():
            raise AutopetError(
                f"{path}: labels from {labels.min():g} to {labels.max():g}, expected whole numbers 0 to {classes - 1};"
                f" make it anew{'' if classes == LESION_CLASSES else ' with `autopet organs`'}"
            )
        return labels

    @staticmethod
    def _sample_foreground_locations(seg: np.ndarray, *args: Any, **options: Any) -> dict:
        """Places of lesions, in the shape that nnU-Net stores; organs are no foreground."""
        return DefaultPreprocessor._sample_foreground_locations(seg[LESION : LESION + 1], *args, **options)


def organ_files(cases: Sequence[Case]) -> dict[str, str]:
    """Path of the lesion mask -> path of the organ labels, for the cases that have organ labels."""
    return {label_path(case): os.path.abspath(case.image(ROLE)) for case in cases if case.image(ROLE).is_file()}
