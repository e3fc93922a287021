"""Intensity statistics that several methods share."""

from __future__ import annotations

import numpy as np

BODY_SUV = 0.1  # SUV above which a voxel counts as body: air and scanner bed lie below


def body_voxels(suv: np.ndarray, *, floor: float = BODY_SUV) -> np.ndarray:
    """The SUVs of the voxels in the body, as one flat array; all voxels when none is above the floor.

    Without it a percentile of a whole-body scan is a percentile of air, which fills two thirds of the field of view.
    """
    inside = suv[suv > floor]
    return inside if inside.size else suv.ravel()
