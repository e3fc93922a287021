"""Volumes and uptake of all lesions together: metabolic tumour volume and total lesion glycolysis."""

from __future__ import annotations

import math

import numpy as np

from autopet.components import Components


def tumour_volume_ml(part: Components, *, voxel_volume_ml: float) -> float:
    """Metabolic tumour volume (MTV): the volume of the mask; 0 for an empty one."""
    return part.voxels * voxel_volume_ml


def lesion_glycolysis_g(part: Components, suv: np.ndarray | None, *, voxel_volume_ml: float) -> float:
    """Total lesion glycolysis (TLG) in g: mean SUV of the mask times its volume in ml (SUV is g/ml).

    0 for an empty mask, NaN without an SUV image.
    """
    if suv is None:
        return math.nan
    return float(part.values_of(suv).sum(dtype=float)) * voxel_volume_ml


def deviation(truth: float, prediction: float) -> float:
    """Size of the difference, without its sign (which `evaluation.agreement.bland_altman` keeps); NaN stays NaN."""
    return abs(prediction - truth)
