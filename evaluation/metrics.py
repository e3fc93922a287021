"""The challenge's metrics, declared once: name, function, unit, direction, and what an empty ground truth means."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from autopet.components import components_apart
from autopet.errors import AutopetError


@dataclass(frozen=True, eq=False)
class MaskPair:
    """Ground truth and prediction of one case: (z, y, x) boolean arrays of one shape, and the voxel's volume."""

    ground_truth: np.ndarray
    prediction: np.ndarray
    voxel_volume_ml: float


@dataclass(frozen=True)
class Metric:
    """One number per case.

    `needs_lesions` says that the value is undefined (NaN) when the ground truth is empty, in editions that guard
    against it. `direction` is 'higher' or 'lower', whichever is better.
    """

    name: str
    title: str
    function: Callable[[MaskPair], float]
    unit: str
    direction: str
    needs_lesions: bool


@dataclass(frozen=True)
class Edition:
    """What an edition of the challenge does with a case without lesions.

    With `guards_empty_truth`, metrics that need lesions are NaN. Without, the formulas are applied as they stand:
    Dice is 0 (0/0, hence NaN, if the prediction is empty too) and FNV is 0.
    """

    name: str
    guards_empty_truth: bool


def dice(pair: MaskPair) -> float:
    """2 |G and P| / (|G| + |P|); NaN when both masks are empty."""
    total = np.count_nonzero(pair.ground_truth) + np.count_nonzero(pair.prediction)
    if total == 0:
        return math.nan
    return 2.0 * np.count_nonzero(pair.ground_truth & pair.prediction) / total


def fpv_ml(pair: MaskPair) -> float:
    """Volume of the predicted components (18-connected) without a voxel of ground truth; 0 for an empty prediction."""
    return components_apart(pair.prediction, pair.ground_truth) * pair.voxel_volume_ml


def fnv_ml(pair: MaskPair) -> float:
    """Volume of the ground truth's components (18-connected) without a predicted voxel; 0 for an empty truth."""
    return components_apart(pair.ground_truth, pair.prediction) * pair.voxel_volume_ml


METRICS = (
    Metric("dice", "Dice", dice, unit="", direction="higher", needs_lesions=True),
    Metric("fpv_ml", "FPV", fpv_ml, unit="ml", direction="lower", needs_lesions=False),
    Metric("fnv_ml", "FNV", fnv_ml, unit="ml", direction="lower", needs_lesions=True),
)
EDITIONS = {
    "I": Edition("I", guards_empty_truth=False),
    "III": Edition("III", guards_empty_truth=True),
}


def edition_named(name: str) -> Edition:
    """The edition's rules; an error that lists the known ones when there is none of that name."""
    if name not in EDITIONS:
        raise AutopetError(f"unknown edition {name!r} of the metrics, expected one of {', '.join(EDITIONS)}")
    return EDITIONS[name]


def score(
    ground_truth: np.ndarray, prediction: np.ndarray, *, voxel_volume_ml: float, edition: str = "III"
) -> dict[str, float]:
    """All metrics of one case.

    Parameters
    ----------
    ground_truth, prediction : (z, y, x) array, bool or number
        Masks on one grid, foreground where they are not zero.
    voxel_volume_ml : float
        Product of the spacings in mm, divided by 1000.
    edition : str
        Whose rules hold for cases without lesions, see `Edition`. In both editions an empty prediction has FPV 0,
        Dice 0 if there are lesions, and the whole lesion volume as FNV.

    Returns
    -------
    dict
        `dice` (0 to 1), `fpv_ml`, `fnv_ml`, and the volumes of both masks, `gt_ml` and `pred_ml`. NaN = undefined.

    Raises
    ------
    AutopetError
        The shapes differ or the edition is unknown.

    Examples
    --------
    >>> import numpy as np
    >>> lesion, guess = np.zeros((3, 9, 9), bool), np.zeros((3, 9, 9), bool)
    >>> lesion[1, 1:3, 1:3] = guess[1, 1:3, 2:4] = guess[1, 8, 8] = True
    >>> score(lesion, guess, voxel_volume_ml=0.5)
    {'dice': 0.4444444444444444, 'fpv_ml': 0.5, 'fnv_ml': 0.0, 'gt_ml': 2.0, 'pred_ml': 2.5}
    """
    rules = edition_named(edition)
    if ground_truth.shape != prediction.shape:
        raise AutopetError(f"expected a prediction of shape {ground_truth.shape} (z, y, x), found {prediction.shape}")
    pair = _cropped(_boolean(ground_truth), _boolean(prediction), voxel_volume_ml)
    gt_voxels, pred_voxels = int(np.count_nonzero(pair.ground_truth)), int(np.count_nonzero(pair.prediction))
    undefined = rules.guards_empty_truth and gt_voxels == 0
    scores = {m.name: math.nan if undefined and m.needs_lesions else float(m.function(pair)) for m in METRICS}
    return {**scores, "gt_ml": gt_voxels * voxel_volume_ml, "pred_ml": pred_voxels * voxel_volume_ml}


def _boolean(mask: np.ndarray) -> np.ndarray:
    return mask if mask.dtype == bool else mask != 0


def _cropped(ground_truth: np.ndarray, prediction: np.ndarray, voxel_volume_ml: float) -> MaskPair:
    """Both masks in the bounding box of their union: nothing outside can change a count or join two components."""
    for axis in range(ground_truth.ndim):  # slices first: every cut makes the next search cheaper
        others = tuple(other for other in range(ground_truth.ndim) if other != axis)
        used = np.flatnonzero(ground_truth.any(axis=others) | prediction.any(axis=others))
        span = slice(used[0], used[-1] + 1) if used.size else slice(0, 0)
        box = tuple(span if other == axis else slice(None) for other in range(ground_truth.ndim))
        ground_truth, prediction = ground_truth[box], prediction[box]
    return MaskPair(np.ascontiguousarray(ground_truth), np.ascontiguousarray(prediction), voxel_volume_ml)
