"""An image becomes the networks' input, and their answer goes back onto the image's grid (paper, section 2).

MONAI's transforms on tensors that carry their affine: crop to the foreground of the CT, RAS axes, working spacing,
clipping, zero mean and unit deviation, padding to a patch. The inverses of the same transforms are the way back.
Arrays are (channel, x, y, z) here and (z, y, x) in a `Volume`; affines are RAS here and LPS there.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import (
    Compose,
    CropForegroundd,
    NormalizeIntensityd,
    Orientationd,
    Spacingd,
    SpatialPadd,
    SpatialResample,
    ThresholdIntensityd,
)

from algorithms.swinmip.model import CHANNELS, Settings
from autopet.cohort import Case
from autopet.errors import AutopetError
from autopet.images import read_image
from autopet.progress import track
from autopet.volume import Volume

MASK = "mask"
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
RAS_LABELS = (("L", "R"), ("P", "A"), ("I", "S"))
SAME_SPACING = 0.02  # an axis this close to the working spacing (as a share of it) keeps its own
FLAT = 1e-5  # of a range: an image whose values differ by less is constant, but for rounding
REHEARSED = 16  # the way back is tried on one slice of so many
WIDENED = {"ct_hu": 100.0, "pet_suv": 1.0}  # width of a range whose two percentiles are equal
logger = logging.getLogger("autopet")


@dataclass(frozen=True)
class Ranges:
    """What intensities are clipped to: low and high of the CT in HU and of the PET in SUV."""

    ct_hu: tuple[float, float]
    pet_suv: tuple[float, float]

    def __post_init__(self) -> None:
        for name in ("ct_hu", "pet_suv"):
            ends = getattr(self, name)
            if len(ends) != 2 or not np.isfinite(ends).all() or not ends[0] < ends[1]:
                raise AutopetError(f"the intensity range {name} needs a low and a higher number, found {ends}")


@dataclass(frozen=True, eq=False)
class Prepared:
    """The networks' input, and the way back.

    Attributes
    ----------
    image : (2, x, y, z) float32 tensor
        CT and PET on the working grid, no edge shorter than a patch.
    label : (1, x, y, z) uint8 tensor or None
        1 in lesions.
    grid : Volume
        The image's own grid; its voxels are 0 and take no memory.
    affine : (4, 4) tensor
        Of the working grid: voxel indices x, y, z to RAS millimetres.
    transforms : Compose
        What was done.
    trace : list
        MONAI's record of it.
    """

    image: torch.Tensor
    label: torch.Tensor | None
    grid: Volume
    affine: torch.Tensor
    transforms: Compose
    trace: list[dict[str, Any]]


# The input and the way back


def as_tensor(volume: Volume) -> MetaTensor:
    """A copy of the voxels as float32 (1, x, y, z), with the RAS affine of their grid."""
    voxels = np.array(volume.array, dtype=np.float32).transpose(2, 1, 0)
    return MetaTensor(torch.from_numpy(voxels)[None], affine=torch.from_numpy(LPS_TO_RAS @ volume.affine))


def foreground(image: torch.Tensor, above: float) -> torch.Tensor:
    """Voxels above a value; all of them when there is none, so that nothing is cropped to nothing."""
    inside = image > above
    return inside if inside.any() else torch.ones_like(inside)


def build_transforms(ranges: Ranges, settings: Settings, spacing_mm: Sequence[float]) -> Compose:
    """From the images as they are to what the networks see.

    Resampling is linear (nearest for the mask) and computed in float32: positions are exact to 1e-4 voxels on a grid of
    400 voxels, at half the memory. An axis whose spacing is within 2 % of the working spacing is not resampled.
    """
    keys = (*CHANNELS, MASK)
    target_mm = np.asarray(spacing_mm, dtype=float)
    above = partial(foreground, above=ranges.ct_hu[0])
    return Compose(
        [
            CropForegroundd(keys, source_key="CT", select_fn=above, allow_smaller=True, allow_missing_keys=True),
            Orientationd(keys, axcodes="RAS", labels=RAS_LABELS, allow_missing_keys=True),
            Spacingd(
                keys,
                pixdim=target_mm.tolist(),
                mode=("bilinear", "bilinear", "nearest"),
                dtype=np.float32,
                min_pixdim=(target_mm * (1 - SAME_SPACING)).tolist(),
                max_pixdim=(target_mm * (1 + SAME_SPACING)).tolist(),
                allow_missing_keys=True,
            ),
            *_clip("CT", ranges.ct_hu),
            *_clip("PET", ranges.pet_suv),
            Normalized("CT", FLAT * (ranges.ct_hu[1] - ranges.ct_hu[0])),
            Normalized("PET", FLAT * (ranges.pet_suv[1] - ranges.pet_suv[0])),
            SpatialPadd(keys, spatial_size=settings.patch, allow_missing_keys=True),  # 0: the mean, as MONAI pads tiles
        ]
    )


class Normalized(NormalizeIntensityd):
    """To mean 0 and deviation 1; to 0 throughout where values differ by less than `flat`.

    MONAI divides by any deviation but 0, and would make noise of what rounding leaves of a constant image.
    """

    def __init__(self, key: str, flat: float) -> None:
        super().__init__(key, channel_wise=True)
        self.flat = flat

    def __call__(self, data: Mapping) -> dict:
        done = dict(data)
        for key in self.key_iterator(done):
            image = done[key]
            varies = bool(image.amax() - image.amin() > self.flat)
            done[key] = self.normalizer(image) if varies else image * 0
        return done


def _clip(key: str, ends: tuple[float, float]) -> list[ThresholdIntensityd]:
    low, high = (float(end) for end in ends)
    return [
        ThresholdIntensityd(key, threshold=high, above=False, cval=high),
        ThresholdIntensityd(key, threshold=low, above=True, cval=low),
    ]


def prepare(
    images: Mapping[str, Volume],
    ranges: Ranges,
    settings: Settings,
    spacing_mm: Sequence[float],
    *,
    mask: Volume | None = None,
) -> Prepared:
    """The networks' input.

    Parameters
    ----------
    images : mapping
        `CT` in HU and `PET` in SUV, on one grid.
    spacing_mm : three floats
        Working spacing along the patient's left-right, front-back and head-feet axes.
    mask : Volume, optional
        Lesions, on the same grid.

    Raises
    ------
    AutopetError
        An image is missing, or lies on another grid than the PET.
    """
    missing = [name for name in CHANNELS if name not in images]
    if missing:
        raise AutopetError(f"the model wants the images {', '.join(CHANNELS)}; there are {', '.join(images) or 'none'}")
    given = {name: images[name] for name in CHANNELS} | ({} if mask is None else {MASK: mask})
    grid = images["PET"]
    for name, volume in given.items():
        difference = grid.grid_difference(volume)
        if difference:
            raise AutopetError(f"{name} is not on the PET's grid ({difference}); resample it onto the PET")
    transforms = build_transforms(ranges, settings, spacing_mm)
    # on the PET's grid to the last digit, so that all of them are turned and resampled alike
    done = transforms({name: as_tensor(grid.with_array(volume.array)) for name, volume in given.items()})
    return Prepared(
        image=torch.cat([done[name].as_tensor() for name in CHANNELS]),
        label=None if mask is None else (done[MASK].as_tensor() != 0).to(torch.uint8),
        grid=grid.with_array(np.broadcast_to(np.uint8(0), grid.shape)),
        affine=done["PET"].affine,
        transforms=transforms,
        trace=done["PET"].applied_operations,
    )


def restore(probability: torch.Tensor, prepared: Prepared, target: Volume) -> Volume:
    """Probabilities on the working grid, back on the grid of the image that was prepared.

    Parameters
    ----------
    probability : (1, x, y, z) tensor
        On the grid of `prepared.image`.
    target : Volume
        The image, for its grid; its voxels are not read.

    Returns
    -------
    Volume
        float32, linearly resampled where the spacing changed, 0 outside the crop.

    Raises
    ------
    AutopetError
        The shape is not that of the input, or the target is not the grid of the image.
    """
    expected = (1, *prepared.image.shape[1:])
    if tuple(probability.shape) != expected:
        raise AutopetError(f"expected probabilities of shape {expected}, found {tuple(probability.shape)}")
    difference = prepared.grid.grid_difference(target)
    if difference:
        raise AutopetError(f"the target is not the grid of the image that was prepared: {difference}")
    found = MetaTensor(
        probability.detach().cpu().float(),
        affine=prepared.affine.clone(),
        applied_operations=copy.deepcopy(prepared.trace),  # the inverses take entries away from it
    )
    back = prepared.transforms.inverse({"PET": found})["PET"].as_tensor()
    return target.with_array(np.ascontiguousarray(back[0].numpy().transpose(2, 1, 0), dtype=np.float32))


def rehearse(prepared: Prepared) -> float:
    """Resample a few slices as `restore` does, to be timed; returns how many times as long all of them take.

    0, at once, where nothing is resampled on the way back.
    """
    grid = prepared.grid
    own = LPS_TO_RAS @ grid.affine
    steps = np.linalg.solve(own[:3, :3], prepared.affine[:3, :3].numpy())  # along the working axes, in own voxels
    if np.allclose(np.sort(np.abs(steps), axis=0), [[0], [0], [1]], atol=1e-6):
        return 0.0
    slices = -(-grid.shape[0] // REHEARSED)
    resample = SpatialResample(padding_mode="border", dtype=np.float32)
    resample(
        MetaTensor(prepared.image[:1], affine=prepared.affine.clone()),
        dst_affine=torch.from_numpy(own),
        spatial_size=(*grid.shape[:0:-1], slices),
    )
    return grid.shape[0] / slices


# What is computed from the training set


def training_ranges(cases: Sequence[Case], settings: Settings) -> Ranges:
    """The settings' percentiles of CT and SUV over the lesion voxels of all cases; a range that is given wins.

    The paper says "percentile of training values"; its SUV range, 1.14 to 30.17, cannot be that of whole scans, which
    are air and muscle to more than 95 %, so the values are those of the lesions. Exact: kept are 8 bytes per
    lesion voxel (a thousand patients with 200 ml each: 130 MB), and one case's images at a time. Equal
    percentiles, as phantoms may have them, are widened to 100 HU or SUV 1 around the value.

    Raises
    ------
    AutopetError
        No case has a lesion, or one's images cannot be read or do not lie on one grid.
    """
    if settings.ct_range_hu and settings.pet_range_suv:
        return Ranges(tuple(settings.ct_range_hu), tuple(settings.pet_range_suv))
    found: dict[str, list[np.ndarray]] = {name: [] for name in CHANNELS}
    for case in track([case for case in cases if case.lesion_voxels], "intensities of the lesions"):
        for name, values in _lesion_values(case).items():
            found[name].append(values)
    if not any(map(len, found["PET"])):
        raise AutopetError(
            f"none of the {len(cases)} training cases has a lesion, so there is nothing to take the intensity ranges "
            "from; add cases with lesions, or set ct_range_hu and pet_range_suv"
        )
    return Ranges(
        tuple(settings.ct_range_hu) or _range("ct_hu", found["CT"], settings.percentiles),
        tuple(settings.pet_range_suv) or _range("pet_suv", found["PET"], settings.percentiles),
    )


def _lesion_values(case: Case) -> dict[str, np.ndarray]:
    """CT and SUV of a case's lesion voxels, float32."""
    mask = read_image(case.mask)
    lesions = mask.array != 0
    values = {}
    for name, path in (("CT", case.ct), ("PET", case.suv)):
        image = read_image(path)
        difference = image.grid_difference(mask)
        if difference:
            raise AutopetError(f"{path}: not on the grid of the mask ({difference}); convert the study again")
        values[name] = image.array[lesions].astype(np.float32)
    return values


def _range(name: str, values: Sequence[np.ndarray], percentiles: Sequence[float]) -> tuple[float, float]:
    low, high = (round(float(value), 4) for value in np.percentile(np.concatenate(values), percentiles))
    if low < high:
        return low, high
    width = WIDENED[name]
    logger.warning(
        "warning: %g %% to %g %% of the lesion voxels have %s %g; the range is widened to %g around it",
        *percentiles,
        name,
        low,
        width,
    )
    return low - width / 2, low + width / 2
