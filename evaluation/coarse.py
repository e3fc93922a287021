"""A case as a small volume that a web page can carry: block-wise down-sampled, cut to the body, one byte per voxel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from autopet.components import Box, foreground_box
from autopet.views import patient_axes, radiological
from autopet.volume import Volume

TARGET_MM = 4.0  # about the resolution of a PET
MOST_VOXELS = 128  # along any axis
SUV_WINDOW = 10.0  # a byte of 255 stands for this SUV and everything above
MOST_SUV = 1e4  # no uptake is higher: an infinite voxel must not swallow its block
BODY_SUV = 0.1  # what is cut away lies outside every voxel of at least this SUV


@dataclass(frozen=True, eq=False)
class CoarseVolume:
    """Masks and SUV of one case on a coarse grid.

    Parameters
    ----------
    ground_truth, prediction : (z, y, x) bool array
        Index 0 is the head's end, the front and the patient's right. A voxel is set when one of its fine voxels is.
    spacing_mm : float x 3
        Of the axes z, y, x, in the order of the arrays.
    origin_mm : float x 3
        LPS position (x, y, z) of the centre of voxel (0, 0, 0). A point lies at index ((origin z - z) / spacing z,
        (y - origin y) / spacing y, (x - origin x) / spacing x) when the grid is not oblique.
    suv : (z, y, x) uint8 array, optional
        Mean SUV times 255 / `SUV_WINDOW`, cut off at 255; None without a PET image.
    """

    ground_truth: np.ndarray
    prediction: np.ndarray
    spacing_mm: tuple[float, float, float]
    origin_mm: tuple[float, float, float]
    suv: np.ndarray | None = None


def coarse_volume(ground_truth: Volume, prediction: Volume | None, pet: Volume | None) -> CoarseVolume:
    """Down-sample masks and PET, which share a grid, to about 4 mm and at most 128 voxels along any axis.

    Blocks are whole numbers of voxels. With a PET, what lies outside the body is cut off; an empty prediction stands
    in where there is none.
    """
    truth, spacing_mm = radiological(ground_truth)
    guess = radiological(prediction)[0] if prediction is not None else None
    suv = radiological(pet)[0] if pet is not None else None
    box = _body_box(truth, guess, suv)
    truth = truth[box]
    factors = [_factor(n, mm) for n, mm in zip(truth.shape, spacing_mm, strict=True)]
    coarse_truth = _any_in_block(truth, factors)
    z_mm, y_mm, x_mm = (mm * factor for mm, factor in zip(spacing_mm, factors, strict=True))
    return CoarseVolume(
        ground_truth=coarse_truth,
        prediction=np.zeros_like(coarse_truth) if guess is None else _any_in_block(guess[box], factors),
        spacing_mm=(z_mm, y_mm, x_mm),
        origin_mm=_centre_mm(ground_truth, [part.start + (f - 1) / 2 for part, f in zip(box, factors, strict=True)]),
        suv=None if suv is None else _mean_of_block(suv[box], factors),
    )


def _factor(voxels: int, spacing_mm: float) -> int:
    """Fine voxels that make one coarse voxel."""
    return max(1, round(TARGET_MM / spacing_mm), -(-voxels // MOST_VOXELS))


def _body_box(truth: np.ndarray, guess: np.ndarray | None, suv: np.ndarray | None) -> Box:
    """Bounding box of the body and of both masks; everything without a PET, or without a body in it."""
    whole = slice(0, truth.shape[0]), slice(0, truth.shape[1]), slice(0, truth.shape[2])
    if suv is None:
        return whole
    body = suv >= BODY_SUV
    if not body.any():
        return whole
    for mask in (truth, guess):
        if mask is not None:
            body |= mask != 0
    return foreground_box(body)


def _any_in_block(mask: np.ndarray, factors: list[int]) -> np.ndarray:
    return _reduced(mask, factors, np.logical_or, lambda slab: slab != 0)


def _mean_of_block(suv: np.ndarray, factors: list[int]) -> np.ndarray:
    """Means of blocks in bytes; undefined and negative values count as 0, the last block of an axis may be thinner."""
    sums = _reduced(suv, factors, np.add, lambda slab: np.clip(np.nan_to_num(slab.astype(np.float32)), 0.0, MOST_SUV))
    for axis, factor in enumerate(factors):
        counts = np.diff([*range(0, suv.shape[axis], factor), suv.shape[axis]])
        sums = sums / counts.reshape([-1 if other == axis else 1 for other in range(3)])
    return np.rint(np.clip(sums / SUV_WINDOW, 0.0, 1.0) * 255).astype(np.uint8)


def _reduced(
    array: np.ndarray, factors: list[int], combine: np.ufunc, clean: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Blocks of an array, each combined into one voxel, slab by slab: only one slab is ever copied and cleaned."""
    thick, *others = factors
    rows, columns = (np.arange(0, n, factor) for n, factor in zip(array.shape[1:], others, strict=True))
    planes = (combine.reduce(clean(array[z : z + thick]), axis=0) for z in range(0, array.shape[0], thick))
    return np.stack([combine.reduceat(combine.reduceat(plane, rows, axis=0), columns, axis=1) for plane in planes])


def _centre_mm(volume: Volume, index: list[float]) -> tuple[float, float, float]:
    """LPS position of a place on the turned grid, given in (fractional) voxels of `radiological`'s axes."""
    left, back, head = patient_axes(volume)
    matrix = np.reshape(volume.direction, (3, 3))
    signs = (-matrix[2, 2 - head], matrix[1, 2 - back], matrix[0, 2 - left])
    voxel_xyz = [0.0, 0.0, 0.0]
    for axis, sign, place in zip((head, back, left), signs, index, strict=True):
        voxel_xyz[2 - axis] = place if sign >= 0 else volume.array.shape[axis] - 1 - place
    x, y, z = (float(value) for value in (volume.affine @ [*voxel_xyz, 1.0])[:3])
    return x, y, z
