"""What the segmentation is trained on: cases on the working grid, cached, and deformed patches cut from them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import (
    CastToTyped,
    Compose,
    RandCropByPosNegLabeld,
    RandFlipd,
    RandRotated,
    RandScaleIntensityd,
    RandShiftIntensityd,
    RandZoomd,
)

from algorithms.swinmip.model import Settings
from algorithms.swinmip.preprocessing import Ranges, prepare
from autopet.case_folders import cache_folders
from autopet.cohort import Case
from autopet.images import read_image
from autopet.patches import (
    BACKGROUND,
    FOREGROUND,
    IMAGE,
    LABEL,
    SeededPatches,
    case_generator,
    save_case,
    some_centres,
)

INTENSITY_SHARE = 0.05  # largest random change of the normalised intensities: a factor 1 +- it, then a sum
ROTATION_DEGREES = 10.0  # largest random rotation about each axis
ZOOM = (0.95, 1.05)


def cache_cases(
    cases: Sequence[Case], folder: Path, settings: Settings, ranges: Ranges, spacing_mm: Sequence[float]
) -> dict[str, Path]:
    """Every case as the network sees it, one folder each; those of an earlier call are kept.

    Returns
    -------
    dict of str to Path
        By the case's name, a folder with image.npy (channel, x, y, z) float16 and label.npy (1, x, y, z) uint8, which
        are memory-mapped in training, and foreground.npy and background.npy, the voxels that patches are centred on:
        at most 100 000 of the lesion, and of everything else inside the crop.
    """
    write = partial(_cache_case, settings=settings, ranges=ranges, spacing_mm=spacing_mm)
    return cache_folders(cases, folder, write, title="swinmip: cases onto the working grid")


def _cache_case(case: Case, folder: Path, *, settings: Settings, ranges: Ranges, spacing_mm: Sequence[float]) -> None:
    images = {"CT": read_image(case.ct), "PET": read_image(case.suv)}
    prepared = prepare(images, ranges, settings, spacing_mm, mask=read_image(case.mask))
    label = np.asarray(prepared.label)[0] != 0
    rng = case_generator(settings.seed, case.name)
    foreground = some_centres(np.flatnonzero(label), rng)
    background = some_centres(np.flatnonzero(~label), rng)
    save_case(folder, np.asarray(prepared.image), label, foreground=foreground, background=background)


def lesion_voxels(folder: Path) -> int:
    """Lesion voxels of a cached case on the working grid; counted no further than the limit of kept centres."""
    return len(np.load(folder / f"{FOREGROUND}.npy", mmap_mode="r"))


class Patches(SeededPatches):
    """All patches of a training in their order: `patches_per_volume` of a case, then of the next.

    Every epoch visits every case once, in an order of its own. `seed` decides on order, places and deformations.
    """

    def __init__(self, folders: Sequence[Path], settings: Settings, *, seed: int) -> None:
        self.per_epoch = len(folders) * settings.patches_per_volume
        self.batch = settings.batch
        super().__init__(
            folders,
            patch_transform(settings),
            count=settings.cycles * settings.epochs_per_cycle * self.per_epoch,
            seed=seed,
            per_turn=settings.patches_per_volume,
        )

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch."""
        return len(self.folders) * math.ceil(self.per_turn / self.batch)

    def batches(self, first_epoch: int = 0) -> Iterator[list[int]]:
        """Indices of the patches that are fed together, from an epoch to the end: groups of one case's patches.

        The last group of a case is smaller when its patches do not divide by the batch.
        """
        for start in range(first_epoch * self.per_epoch, len(self), self.per_turn):
            end = start + self.per_turn
            for group in range(start, end, self.batch):
                yield list(range(group, min(group + self.batch, end)))


def patch_transform(settings: Settings) -> Compose:
    """MONAI's chain (section 2): cut by label, then change intensities and shape.

    The centre is a lesion voxel with probability `lesion_share`, else one of the others. No case is smaller than a
    patch: `prepare` has padded it.
    """
    keys = (IMAGE, LABEL)
    angle = math.radians(ROTATION_DEGREES)
    random: dict[str, Any] = {"prob": settings.augmentation_probability}
    return Compose(
        [
            RandCropByPosNegLabeld(
                keys,
                label_key=LABEL,
                spatial_size=settings.patch,
                pos=settings.lesion_share,
                neg=1 - settings.lesion_share,
                num_samples=1,
                fg_indices_key=FOREGROUND,
                bg_indices_key=BACKGROUND,
            ),
            CastToTyped(keys, dtype=torch.float32),
            RandScaleIntensityd(IMAGE, factors=INTENSITY_SHARE, **random),
            RandShiftIntensityd(IMAGE, offsets=INTENSITY_SHARE, **random),
            RandRotated(
                keys,
                range_x=angle,
                range_y=angle,
                range_z=angle,
                mode=("bilinear", "nearest"),
                padding_mode="border",
                **random,
            ),
            # nearest-exact: `nearest` takes another voxel than the one that the image's linear interpolation is nearest
            # to, and so moves the mask by up to half a voxel
            RandZoomd(
                keys,
                min_zoom=ZOOM[0],
                max_zoom=ZOOM[1],
                mode=("trilinear", "nearest-exact"),
                padding_mode="edge",
                **random,
            ),
            *(RandFlipd(keys, spatial_axis=axis, **random) for axis in range(3)),
        ]
    )
