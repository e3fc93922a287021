"""The CT on the PET grid."""

from __future__ import annotations

import numpy as np

from autopet.errors import AutopetError
from autopet.volume import Volume, overlap_mm, resample

OUTSIDE_CT_HU = -1024
LEAST_CT_COVER = 0.95  # of the PET's length, less is a warning


def ct_on_grid(ct: Volume, pet: Volume) -> Volume:
    """CT in HU on the PET grid, linear, -1024 outside; int16 (rounded) when the CT is."""
    resampled = resample(ct, pet, fill=OUTSIDE_CT_HU)
    if np.issubdtype(ct.array.dtype, np.integer):
        return resampled.with_array(np.rint(resampled.array).astype(np.int16))
    return resampled.with_array(resampled.array.astype(np.float32))


def ct_cover_warnings(ct: Volume, pet: Volume) -> list[str]:
    """A warning when the CT is shorter than the PET; an error when they do not overlap."""
    shared_mm, whole_mm = overlap_mm(ct, pet), overlap_mm(pet, pet)
    if min(shared_mm) <= 0:
        raise AutopetError("CT and PET do not overlap (ImagePositionPatient (0020,0032)): are they of one examination?")
    if shared_mm[2] < LEAST_CT_COVER * whole_mm[2]:
        return [f"the CT covers {100 * shared_mm[2] / whole_mm[2]:.0f} % of the PET's length, -1024 HU beyond"]
    return []
