"""What the U-Net is trained on: cases on the working grid, cached, and patches cut from them by label."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from monai.transforms import CastToTyped, Compose, RandAffined, RandCropByPosNegLabeld, RandFlipd

from autopet.case_folders import cache_folders
from autopet.cohort import Case
from autopet.images import read_image
from autopet.intensity import BODY_SUV
from autopet.patches import (
    BACKGROUND,
    FOREGROUND,
    IMAGE,
    LABEL,
    SeededPatches,
    case_generator,
    plain_tensors,
    save_case,
    some_centres,
)
from autopet.volume import resample
from baselines.unet3d.model import CHANNELS, Settings, prepare

__all__ = ["Patches", "cache_cases", "patch_transform", "plain_tensors"]

LEFT_RIGHT = 2  # axis of a (z, y, x) array along the patient's left and right


def cache_cases(
    cases: Sequence[Case], folder: Path, settings: Settings, spacing_mm: Sequence[float]
) -> dict[str, Path]:
    """Every case as the network sees it, one folder each; those of an earlier call are kept.

    image.npy (channel, z, y, x) float16 and label.npy (1, z, y, x) uint8 are memory-mapped in training, so that a patch
    costs what it holds and not what the scan holds; foreground.npy and background.npy are the voxels to centre on.
    """
    write = partial(_cache_case, settings=settings, spacing_mm=spacing_mm)
    return cache_folders(cases, folder, write, title="U-Net: cases onto the working grid")


def _cache_case(case: Case, folder: Path, *, settings: Settings, spacing_mm: Sequence[float]) -> None:
    pet, mask = read_image(case.suv), read_image(case.mask)
    image, grid = prepare({"CT": read_image(case.ct), "PET": pet}, CHANNELS, settings, spacing_mm)
    label = (mask if grid is pet else resample(mask, grid, nearest=True)).array != 0
    missing = [(0, max(edge - n, 0)) for n, edge in zip(label.shape, settings.patch, strict=True)]
    image, label = np.pad(image, [(0, 0), *missing]), np.pad(label, missing)
    low, high = settings.pet_range_suv
    body = image[CHANNELS.index("PET")] > (BODY_SUV - low) / (high - low)
    rng = case_generator(settings.seed, case.name)
    foreground = some_centres(np.flatnonzero(label), rng)
    background = some_centres(np.flatnonzero(body & ~label), rng)
    if not len(foreground) + len(background):  # an empty scan
        background = some_centres(np.flatnonzero(~label), rng)
    save_case(folder, image, label, foreground=foreground, background=background)


class Patches(SeededPatches):
    """All patches of a training in their order; the cases take turns, one patch each (see `SeededPatches`)."""

    def __init__(self, folders: Sequence[Path], settings: Settings) -> None:
        count = settings.epochs * settings.iterations_per_epoch * settings.batch
        super().__init__(folders, patch_transform(settings), count=count, seed=settings.seed)


def patch_transform(settings: Settings) -> Compose:
    """MONAI's chain: cut by label, mirror left and right, rotate about the body axis and change the size."""
    keys = (IMAGE, LABEL)
    angle, share = math.radians(settings.rotation_degrees), settings.scale_share
    return Compose(
        [
            RandCropByPosNegLabeld(
                keys,
                label_key=LABEL,
                spatial_size=settings.patch,
                pos=settings.foreground_share,
                neg=1 - settings.foreground_share,
                num_samples=1,
                fg_indices_key=FOREGROUND,
                bg_indices_key=BACKGROUND,
            ),
            CastToTyped(keys, dtype=torch.float32),
            RandFlipd(keys, prob=settings.flip_probability, spatial_axis=LEFT_RIGHT),
            RandAffined(
                keys,
                prob=1.0 if angle or share else 0.0,
                rotate_range=(angle, 0.0, 0.0),
                scale_range=(share, share, share),
                mode=("bilinear", "nearest"),
                padding_mode="border",
            ),
        ]
    )
