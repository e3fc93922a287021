"""The voxel spacing of a cohort along the patient's axes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autopet.cohort import Case
from autopet.images import read_grid
from autopet.views import patient_axes


def median_spacing_mm(cases: Sequence[Case]) -> tuple[float, float, float]:
    """Median voxel spacing of the cases' PET along the patient's left-right, front-back and head-feet axes.

    An oblique grid counts with the spacing of the axes that run closest to the patient's. Rounded to 1e-4 mm.
    """
    spacings = []
    for case in cases:
        grid = read_grid(case.suv)
        spacings.append([grid.spacing_zyx_mm[axis] for axis in patient_axes(grid)])
    x, y, z = (round(float(value), 4) for value in np.median(spacings, axis=0))
    return x, y, z
