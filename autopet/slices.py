"""Axial slices of CT and PET for networks that see one slice at a time: their grid, a cache, batches, augmentation.

Slices are square. Their rows run from the patient's front to the back, their columns from right to left, and slices
from feet to head (the axes of LPS), whatever the scanner's grid. `autopet/slice_changes.py` deforms them.

Früh et al. is the paper whose slices these are: "Weakly supervised segmentation of tumor lesions in PET-CT hybrid
imaging", J. Med. Imaging 8(5), 054003, 2021.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from autopet.case_folders import cache_folders
from autopet.cohort import Case
from autopet.errors import AutopetError
from autopet.images import read_image
from autopet.intensity import BODY_SUV
from autopet.slice_changes import Augmentation, augment
from autopet.views import patient_axes
from autopet.volume import IDENTITY, Volume, resample
from autopet.work import claim_work

CHANNELS = ("CT", "PET")  # in this order in every cached slice
FILL = {"CT": -1024.0, "PET": 0.0}  # HU and SUV outside the field of view
IMAGE, MASK, LABEL = "image.npy", "mask.npy", "label.npy"  # in a case's folder of the cache
TARGETS = ("label", "mask")
TAIL_SHARE = 0.0005  # of the body's voxels that may lie beyond either end of what counts as its width
RIM_PIXELS = 2  # free on either side of a body that fills the slice
SAME_SPACING = 0.02  # slices this close to the wanted distance (as a share of it) stay where they are
LARGEST_HALF = 60_000.0  # what float16 holds


@dataclass(frozen=True)
class Frame:
    """Size of the slices: `size` x `size` pixels of `pixel_mm`, `slice_mm` apart (0: as the scan's own slices)."""

    size: int = 256
    pixel_mm: float = 2.0
    slice_mm: float = 0.0

    def __post_init__(self) -> None:
        if self.size < 1 or self.pixel_mm <= 0 or self.slice_mm < 0:
            raise AutopetError(
                "slices need size and pixel_mm above 0 and slice_mm of 0 or more, found "
                f"{self.size}, {self.pixel_mm:g} and {self.slice_mm:g}"
            )


# From a scan to slices, and back


def slice_grid(pet: Volume, *, size: int = 256, pixel_mm: float = 2.0, slice_mm: float = 0.0) -> Volume:
    """The grid of a scan's slices: `size` x `size` pixels around the middle of the body, all slices of the scan.

    A body that is wider or deeper than the window gets larger pixels, so that it is seen whole and not cut off. Body is
    what takes up more than SUV 0.1, but for the outermost 0.05 % at either side (noise in the air); of a scan without
    any, the field of view counts.

    Parameters
    ----------
    pet : Volume
        PET in SUV on any grid, also an oblique one.
    size : int
        Pixels along both edges.
    pixel_mm : float
        Smallest edge of a pixel (Früh et al., section 2.1.1: 256 x 256 pixels of 2 mm).
    slice_mm : float
        Distance of slices; 0 keeps the scan's, as does one within 2 %.

    Returns
    -------
    Volume
        (slices, size, size) voxels of 0, which take no memory.
    """
    frame = Frame(size, pixel_mm, slice_mm)
    low_mm, high_mm = _body_box_mm(pet)
    edge_mm = float((high_mm - low_mm)[:2].max()) / max(size - 2 * RIM_PIXELS, 1)
    edge_mm = max(frame.pixel_mm, edge_mm)
    own_mm = pet.spacing_zyx_mm[patient_axes(pet)[2]]
    keep = not slice_mm or abs(own_mm / slice_mm - 1) <= SAME_SPACING
    step_mm = own_mm if keep else slice_mm
    count = max(int(np.ceil((high_mm - low_mm)[2] / step_mm - 1e-4)), 1)  # 1e-4: rounding of file headers
    ends_mm = (np.array([size, size, count]) - 1) / 2 * [edge_mm, edge_mm, step_mm]
    x, y, z = (float(value) for value in (low_mm + high_mm) / 2 - ends_mm)
    empty = np.broadcast_to(np.uint8(0), (count, size, size))
    return Volume(empty, (edge_mm, edge_mm, step_mm), (x, y, z), IDENTITY)


def _body_box_mm(pet: Volume) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest x, y, z (LPS) of the body, cut out along the grid's axes in the slices' plane alone."""
    across, back, head = patient_axes(pet)
    body = pet.array > BODY_SUV
    ends = {across: _extent(body, across), back: _extent(body, back), head: (0, pet.shape[head] - 1)}
    (z0, z1), (y0, y1), (x0, x1) = (ends[axis] for axis in range(3))
    corners = [[x, y, z, 1.0] for x in (x0 - 0.5, x1 + 0.5) for y in (y0 - 0.5, y1 + 0.5) for z in (z0 - 0.5, z1 + 0.5)]
    points_mm = (np.array(corners) @ pet.affine.T)[:, :3]
    return points_mm.min(axis=0), points_mm.max(axis=0)


def _extent(body: np.ndarray, axis: int) -> tuple[int, int]:
    """First and last index along an axis between which the body lies, but for TAIL_SHARE of it at either end."""
    profile = np.count_nonzero(body, axis=tuple(other for other in range(3) if other != axis))
    if not profile.any():
        return 0, len(profile) - 1
    total = np.cumsum(profile)
    tail = TAIL_SHARE * total[-1]
    return int(np.searchsorted(total, tail, side="right")), int(np.searchsorted(total, total[-1] - tail))


def slice_images(images: Mapping[str, Volume], grid: Volume, *, channels: Sequence[str] = CHANNELS) -> np.ndarray:
    """CT in HU and PET in SUV on the grid of `slice_grid`, linear: (slice, channel, y, x) float32."""
    unknown = sorted(set(channels) - set(images))
    if unknown:
        raise AutopetError(f"the model wants the channels {', '.join(channels)}; there are {', '.join(images)}")
    layers = [resample(images[name], grid, fill=FILL[name]).array for name in channels]
    return np.stack(layers, axis=1).astype(np.float32, copy=False)


def slice_labels(mask: Volume, grid: Volume) -> np.ndarray:
    """Whether a slice has a lesion: any voxel of the mask whose centre lies in it, (slice,) bool.

    Read from the mask's own voxels: a lesion that falls between the pixels of the slices counts, too. Voxels outside
    the grid count for none.
    """
    z, y, x = np.nonzero(mask.array)
    height_mm = np.stack([x, y, z], axis=1) @ mask.affine[2, :3] + mask.affine[2, 3]
    places = np.rint((height_mm - grid.origin_mm[2]) / grid.spacing_mm[2]).astype(int)
    labels = np.zeros(grid.shape[0], bool)
    labels[places[(places >= 0) & (places < len(labels))]] = True
    return labels


def normalise(images: np.ndarray, ranges: Sequence[Sequence[float]]) -> np.ndarray:
    """Each channel's range becomes 0 to 1 and what lies outside is clipped, float32.

    Air is 0 where the range begins at it or above, and what a deformation brings in from outside the slice is 0, too.

    Parameters
    ----------
    images : (..., channel, y, x) array
        HU and SUV.
    ranges : (low, high) of every channel
    """
    low, high = np.asarray(ranges, np.float32).T[..., None, None]  # (channel, 1, 1)
    if len(low) != images.shape[-3] or not (high > low).all():
        raise AutopetError(f"{images.shape[-3]} channels need as many ranges from low to high, found {list(ranges)}")
    return np.clip((images.astype(np.float32) - low) / (high - low), 0.0, 1.0)


def slices_to_mask(values: np.ndarray, grid: Volume, target: Volume) -> Volume:
    """Mask on the grid `target` from probabilities or a mask of slices: linear resampling, then above 0.5.

    Parameters
    ----------
    values : (slice, y, x) array
        On the grid of `slice_grid`; outside of it there is no lesion.
    """
    found = resample(grid.with_array(values.astype(np.float32)), target)
    return target.with_array((found.array > 0.5).astype(np.uint8))


# The cache


def cache_slices(
    cases: Sequence[Case], folder: Path, *, size: int = 256, pixel_mm: float = 2.0, slice_mm: float = 0.0
) -> dict[str, Path]:
    """The slices of every case, one folder each; those of an earlier call are kept.

    image.npy (slice, channel, y, x) float16 in HU and SUV, of which a slice is read without the others; mask.npy
    (slice, y, x) uint8, nearest neighbour; label.npy (slice,) bool, from `slice_labels` and the mask.

    Parameters
    ----------
    cases : sequence of Case
        With a lesion mask.
    size, pixel_mm, slice_mm
        See `slice_grid`.

    Returns
    -------
    dict of str to Path
        The folder by the case's name.

    Raises
    ------
    AutopetError
        The folder holds slices of another size or spacing.
    """
    frame = Frame(size, pixel_mm, slice_mm)
    claim_work(folder, frame, "slices", what="cache of slices of another size or spacing")
    return cache_folders(cases, folder, partial(_cache_case, frame=frame), title="cases into slices")


def _cache_case(case: Case, folder: Path, *, frame: Frame) -> None:
    pet, mask = read_image(case.suv), read_image(case.mask)
    grid = slice_grid(pet, size=frame.size, pixel_mm=frame.pixel_mm, slice_mm=frame.slice_mm)
    images = slice_images({"CT": read_image(case.ct), "PET": pet}, grid)
    found = resample(mask.with_array((mask.array != 0).astype(np.uint8)), grid, nearest=True).array
    np.save(folder / IMAGE, np.clip(images, -LARGEST_HALF, LARGEST_HALF).astype(np.float16))
    np.save(folder / MASK, found)
    np.save(folder / LABEL, slice_labels(mask, grid) | found.any(axis=(1, 2)))


def read_slices(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, masks and labels of one case of the cache; the first two are memory-mapped and not to be written to."""
    images, masks = (np.load(folder / name, mmap_mode="r") for name in (IMAGE, MASK))
    return images, masks, np.load(folder / LABEL)


def read_labels(folders: Sequence[Path]) -> np.ndarray:
    """Labels of the slices of several cases of the cache, one case after the other, (slices,) bool."""
    return np.concatenate([np.load(folder / LABEL) for folder in folders]) if folders else np.zeros(0, bool)


def lesion_weight(labels: np.ndarray) -> float:
    """Negative slices per positive one: the lesion's weight in a cross-entropy with which both classes count the same.

    Früh et al. (section 2.3.3) give 7.7 for slices of which 13.5 to 14 % were positive, without saying where it comes
    from: this quotient is 6.1 to 6.4 there, and 7.7 is 1 / 0.13.

    Raises
    ------
    AutopetError
        No slice with a lesion, or none without: there is nothing to tell apart.
    """
    positives = int(np.count_nonzero(labels))
    if not 0 < positives < len(labels):
        raise AutopetError(
            f"training needs slices with and without lesions, found {positives} with one among {len(labels)}; "
            "give more cases"
        )
    return (len(labels) - positives) / positives


# Batches


class Slices(Dataset):
    """All slices of a training in their order: slice i is the same in every run, whoever reads it, and when.

    Every epoch shows every slice once, in another order; or some of them, with `limit`.

    Parameters
    ----------
    folders : sequence of Path
        Of `cache_slices`.
    ranges : (low, high) of every channel
        For `normalise`.
    target : str
        What comes with a slice: its `label` (a number), or its `mask` (y, x), int64 of 0 and 1.
    augmentation : Augmentation or None
        None leaves the slices as they are.
    limit : int
        Slices of an epoch, drawn anew for each; 0: all.
    lesion_share : float
        With a limit: the share of slices with lesions among them, shown more than once where there are too few. 0: as
        they come.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        *,
        ranges: Sequence[Sequence[float]],
        target: str,
        augmentation: Augmentation | None,
        epochs: int,
        seed: int,
        limit: int = 0,
        lesion_share: float = 0.0,
    ) -> None:
        if target not in TARGETS:
            raise AutopetError(f"target {target!r} is unknown; use {' or '.join(TARGETS)}")
        self.folders, self.ranges, self.target = list(folders), ranges, target
        self.augmentation, self.epochs, self.seed = augmentation, epochs, seed
        per_case = [np.load(folder / LABEL) for folder in self.folders]
        self.labels = np.concatenate(per_case) if per_case else np.zeros(0, bool)
        self.starts = np.cumsum([0, *(len(labels) for labels in per_case)])
        self.lesion_share = lesion_share if limit else 0.0
        if self.lesion_share:
            lesion_weight(self.labels)  # an error where there is one kind only
        self.per_epoch = limit if self.lesion_share else min(limit or len(self.labels), len(self.labels))
        self._order: tuple[int, np.ndarray] = (-1, np.zeros(0, int))

    def __len__(self) -> int:
        return self.epochs * self.per_epoch

    def slice_of(self, index: int) -> int:
        """Which of the slices, counted through the cases, is the training's slice `index`."""
        epoch, place = divmod(index, self.per_epoch)
        if self._order[0] != epoch:  # an order of all slices of a cohort is not made for every one of them
            self._order = (epoch, self._draw(np.random.default_rng([self.seed, 0, epoch])))
        return int(self._order[1][place])

    def _draw(self, rng: np.random.Generator) -> np.ndarray:
        """The slices of an epoch in their order."""
        if not self.lesion_share:
            return rng.permutation(len(self.labels))[: self.per_epoch]
        count = round(self.lesion_share * self.per_epoch)
        parts = []
        for wanted, kind in ((count, self.labels), (self.per_epoch - count, ~self.labels)):
            there = rng.permutation(np.flatnonzero(kind))
            parts.append(np.resize(there, wanted))  # goes round again where there are too few
        return rng.permutation(np.concatenate(parts))

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Image (channel, y, x) float32, and the target."""
        chosen = self.slice_of(index)
        case = int(np.searchsorted(self.starts, chosen, side="right")) - 1
        folder, place = self.folders[case], chosen - self.starts[case]
        read = np.array(np.load(folder / IMAGE, mmap_mode="r")[place])
        image = torch.from_numpy(normalise(read, self.ranges))
        mask = None
        if self.target == "mask":
            mask = torch.from_numpy(np.array(np.load(folder / MASK, mmap_mode="r")[place]))
        if self.augmentation:
            rng = np.random.default_rng([self.seed, 1, index])
            image, mask = augment(image, mask, rng=rng, augmentation=self.augmentation)
        return image, torch.tensor(int(self.labels[chosen])) if mask is None else mask.long()
