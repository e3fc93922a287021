"""Maximum intensity projections of the SUV: volumes cached once, deformed in 3D, then projected (section 7).

Volumes are (1, x, y, z) tensors: x from the patient's left to right, y from back to front, z from feet to head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import (
    Compose,
    CropForeground,
    NormalizeIntensity,
    Orientation,
    RandFlip,
    RandRotate,
    RandScaleIntensity,
    RandShiftIntensity,
    RandZoom,
    Resize,
    Spacing,
    SpatialPad,
)
from torch.utils.data import Dataset

from algorithms.swinmip.model import PROJECTIONS, Settings
from algorithms.swinmip.preprocessing import RAS_LABELS, SAME_SPACING, Ranges, as_tensor, foreground
from autopet.cohort import Case
from autopet.errors import AutopetError
from autopet.folders import remove_leftovers, whole_file
from autopet.images import read_image
from autopet.progress import track
from autopet.volume import Volume
from autopet.work import claim_work

IMAGE_CHANNELS = 3  # of a projection: the same one three times, as ImageNet weights want it
INTENSITY_FACTOR = 0.1  # largest random change of the SUV: of its share, and of its value
ROTATION_DEGREES = 10.0  # largest, about each axis
ZOOM = (0.95, 1.05)
FEWEST_VOXELS = (2, 2, 2)  # along x, y and z: a single one, made smaller by the zoom, would be none


def projection_size(settings: Settings, axis: str) -> tuple[int, int]:
    """Pixels of a projection along `axis`: of what stands across, then of the height; along z a square."""
    if axis not in PROJECTIONS:
        raise AutopetError(f"projections are along {', '.join(PROJECTIONS)}, found {axis!r}")
    across, height = settings.cls_size
    return (across, across) if axis == "z" else (across, height)


def standard_volume(suv: Volume, ranges: Ranges, settings: Settings) -> torch.Tensor:
    """A scan as all projections of it start: along the patient's axes, cropped, on one spacing, clipped.

    Parameters
    ----------
    suv : Volume
        On any grid. An oblique one is resampled, so that projections are along the patient's axes and not the grid's.
    ranges : Ranges
        Of which the PET's: voxels above its lower end are the foreground that is cropped to, and it clips.
    settings : Settings
        `cls_spacing_mm`; without one the scan keeps its own, as does an axis within 2 % of it.

    Returns
    -------
    (1, x, y, z) float32 tensor
        From left to right, back to front, feet to head (RAS). A scan without foreground is not cropped. No edge is
        shorter than 2.
    """
    low, high = ranges.pet_suv
    crop = CropForeground(select_fn=partial(foreground, above=low), allow_smaller=True)
    image: Any = crop(Orientation("RAS", labels=RAS_LABELS)(as_tensor(suv)))
    spacing_mm = np.asarray(settings.cls_spacing_mm or np.linalg.norm(np.asarray(image.affine)[:3, :3], axis=0))
    space = Spacing(
        spacing_mm,
        diagonal=True,
        padding_mode="zeros",
        dtype=np.float32,
        min_pixdim=spacing_mm * (1 - SAME_SPACING),
        max_pixdim=spacing_mm * (1 + SAME_SPACING),
    )
    image = crop(space(image))  # again: the box around an oblique box is larger than the patient
    padded = SpatialPad(FEWEST_VOXELS, value=low)(image)
    assert isinstance(padded, MetaTensor)
    return padded.as_tensor().clamp(low, high)


def cache_volumes(cases: Sequence[Case], folder: Path, settings: Settings, ranges: Ranges) -> dict[str, Path]:
    """`standard_volume` of every case in a file of its own, float16; those of an earlier call are kept.

    Raises
    ------
    AutopetError
        The folder holds volumes of another range or spacing.
    """
    claim_work(folder, ranges, settings.cls_spacing_mm, what="cache of another SUV range or cls_spacing_mm")
    remove_leftovers(folder)
    paths = {case.name: folder / f"{case.name}.npy" for case in cases}
    missing = [case for case in cases if not paths[case.name].is_file()]
    for case in track(missing, "classifier: volumes to project") if missing else ():
        volume = standard_volume(read_image(case.suv), ranges, settings)
        with whole_file(paths[case.name]) as part:
            np.save(part, volume.numpy().astype(np.float16))
    return paths


def read_volume(path: Path) -> torch.Tensor:
    """A volume of `cache_volumes`, (1, x, y, z) float32."""
    return torch.from_numpy(np.load(path).astype(np.float32))


def project(volume: torch.Tensor, axis: str, settings: Settings) -> torch.Tensor:
    """The maximum along an axis of the patient, as the classifier sees it.

    Parameters
    ----------
    volume : (1, x, y, z) float tensor
    axis : str
        x: rows go from back to front, columns from feet to head. y: rows from left to right, columns from feet to head.
        z: rows from left to right, columns from back to front.

    Returns
    -------
    (3, rows, columns) float32 tensor
        Three times the same, of mean 0 and standard deviation 1 over the pixels that are not 0, which stay 0; 0
        everywhere when the projection is constant.
    """
    size = projection_size(settings, axis)
    flat = volume.amax(dim=1 + PROJECTIONS.index(axis))  # (1, rows, columns)
    if bool(flat.amin() == flat.amax()):  # what rounding would make of it is no picture
        return torch.zeros(IMAGE_CHANNELS, *size)
    image = Resize(size, mode="area")(flat.float())
    scaled: Any = NormalizeIntensity(nonzero=True, channel_wise=True)(image)
    plain = scaled.as_tensor() if isinstance(scaled, MetaTensor) else scaled
    return plain.repeat(IMAGE_CHANNELS, 1, 1)


def augmentation(settings: Settings) -> Compose:
    """Random changes of a volume (1, x, y, z) before it is projected: intensity, rotation, size, mirroring.

    Rotations are in voxels, as the authors' were. What comes into the field of view repeats its border.
    """
    chance, angle = settings.cls_augmentation_probability, math.radians(ROTATION_DEGREES)
    return Compose(
        [
            RandScaleIntensity(factors=INTENSITY_FACTOR, prob=chance),
            RandShiftIntensity(offsets=INTENSITY_FACTOR, prob=chance),
            RandRotate(range_x=angle, range_y=angle, range_z=angle, prob=chance, padding_mode="border"),
            RandZoom(min_zoom=ZOOM[0], max_zoom=ZOOM[1], prob=chance, mode="trilinear", padding_mode="edge"),
            *(RandFlip(prob=chance, spatial_axis=axis) for axis in range(3)),
        ]
    )


class Projections(Dataset):
    """All images of a training in their order: image i is the same in every run, whoever makes it, and when.

    Every epoch shows all volumes once, in another order. To be used inside `autopet.patches.plain_tensors`.

    Parameters
    ----------
    volumes : sequence of Path
        Of `cache_volumes`.
    labels : sequence of float
        1 for a volume with lesions, else 0.
    key : sequence of int
        What the random numbers depend on besides the image's place.
    """

    def __init__(
        self, volumes: Sequence[Path], labels: Sequence[float], *, axis: str, settings: Settings, key: Sequence[int]
    ) -> None:
        self.volumes, self.labels, self.key = list(volumes), list(labels), list(key)
        self.axis, self.settings = axis, settings
        self.transform = augmentation(settings)

    def __len__(self) -> int:
        return self.settings.cls_cycles * self.settings.cls_epochs_per_cycle * len(self.volumes)

    def volume_of(self, index: int) -> int:
        """Which of the volumes image `index` is made of."""
        epoch, place = divmod(index, len(self.volumes))
        return int(np.random.default_rng([*self.key, 0, epoch]).permutation(len(self.volumes))[place])

    def __getitem__(self, index: int) -> tuple[torch.Tensor, float]:
        """Image (3, rows, columns) and label."""
        chosen = self.volume_of(index)
        seed = np.random.default_rng([*self.key, 1, index]).integers(2**32)
        changed = self.transform.set_random_state(seed=int(seed))(read_volume(self.volumes[chosen]))
        return project(changed, self.axis, self.settings), self.labels[chosen]
