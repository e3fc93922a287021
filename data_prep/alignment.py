"""The CT on the PET grid."""

from __future__ import annotations

import numpy as np

from autopet.errors import AutopetError
from autopet.volume import Volume, resample

OUTSIDE_CT_HU = -1024
LEAST_CT_COVER = 0.95  # of the PET's length, less is a warning
POINTS_ACROSS = 9  # along each side of a slice


def ct_on_grid(ct: Volume, pet: Volume) -> Volume:
    """CT in HU on the PET grid, linear, -1024 outside; int16 (rounded) when the CT is."""
    resampled = resample(ct, pet, fill=OUTSIDE_CT_HU)
    if np.issubdtype(ct.array.dtype, np.integer):
        return resampled.with_array(np.rint(resampled.array).astype(np.int16))
    return resampled.with_array(resampled.array.astype(np.float32))


def ct_cover_warnings(ct: Volume, pet: Volume) -> list[str]:
    """A warning when the CT is shorter than the PET; an error when they do not overlap."""
    covered = slices_covered(ct, pet)
    if not covered.any():
        raise AutopetError("CT and PET do not overlap (ImagePositionPatient (0020,0032)): are they of one examination?")
    if covered.mean() < LEAST_CT_COVER:
        return [f"the CT covers {100 * covered.mean():.0f} % of the PET's length, -1024 HU beyond"]
    return []


def slices_covered(ct: Volume, pet: Volume) -> np.ndarray:
    """(slices of the PET,) bool: whether any of a few points of the slice lies within the CT.

    The points are a grid across the slice, so that slices oblique to the CT are judged as well as parallel ones.
    """
    across = [np.linspace(0, size - 1, POINTS_ACROSS) for size in pet.shape[:0:-1]]
    x, y, z = np.meshgrid(*across, np.arange(pet.shape[0]), indexing="ij")
    points = np.stack([x, y, z, np.ones_like(x)]).reshape(4, -1)
    indices = (np.linalg.inv(ct.affine) @ pet.affine @ points)[:3]
    limits = np.array(ct.shape[::-1], dtype=float)[:, None] - 0.5
    inside = ((indices >= -0.5) & (indices <= limits)).all(axis=0)
    return inside.reshape(POINTS_ACROSS**2, -1).any(axis=0)
