"""Two masks of a case, lesion by lesion: overlaps, detection, and one row per lesion."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from autopet.components import Components
from autopet.volume import Volume
from evaluation.surface import SurfaceDistances, surface_distances

DETECTION_IOU = 0.1
TRUTH, PREDICTION = "truth", "prediction"
MATCHED, MISSED, FALSE = "matched", "missed", "false"
MOST_ROWS = 10_000  # per mask: noise of a million specks is counted, but not written out speck by speck
BIN_EDGES_ML = (0.0, 0.5, 2.0, 10.0, 50.0, math.inf)


@dataclass(frozen=True, eq=False)
class Overlaps:
    """Pairs of a true lesion and a predicted component that share a voxel: arrays of one length.

    `truth` and `prediction` are labels from 1, `voxels` is what they share, `iou` their intersection over union.
    """

    truth: np.ndarray
    prediction: np.ndarray
    voxels: np.ndarray
    iou: np.ndarray


@dataclass(frozen=True)
class Detection:
    """Lesions found (`tp`), missed (`fn`), and predicted components that match none (`fp`)."""

    tp: int
    fp: int
    fn: int


@dataclass(frozen=True, eq=False)
class CasePair:
    """Ground truth and prediction of one case on one grid; whatever is asked of them is computed once.

    Parameters
    ----------
    truth, prediction : Components
        Both masks. A truth may be shared by several pairs.
    voxel_volume_ml : float
        Product of the spacings in mm, divided by 1000.
    grid : Volume, optional
        The grid, for what needs millimetres.
    suv : (z, y, x) array, optional
        SUV on that grid.
    tolerance_mm : float
        Of the normalised surface Dice.
    """

    truth: Components
    prediction: Components
    voxel_volume_ml: float
    grid: Volume | None = None
    suv: np.ndarray | None = None
    tolerance_mm: float = math.nan

    @cached_property
    def overlaps(self) -> Overlaps:
        """All touching pairs, by one pass over the voxels that both masks share."""
        # both masks list their voxels in raster order, so the shared ones come in the same order from either
        truth = self.truth.labels[self.truth.inside(self.prediction)].astype(np.int64)
        prediction = self.prediction.labels[self.prediction.inside(self.truth)]
        stride = self.prediction.count + 1
        keys, voxels = np.unique(truth * stride + prediction, return_counts=True)
        first, second = keys // stride, keys % stride
        union = self.truth.sizes[first - 1] + self.prediction.sizes[second - 1] - voxels
        return Overlaps(first, second, voxels, voxels / union)

    @cached_property
    def shared_voxels(self) -> int:
        """Voxels that are foreground in both masks."""
        return int(self.overlaps.voxels.sum())

    @cached_property
    def missed_voxels(self) -> int:
        """Voxels of the true lesions that no predicted voxel touches: the basis of FNV."""
        return voxels_apart(self.truth, self.overlaps.truth)

    @cached_property
    def false_voxels(self) -> int:
        """Voxels of the predicted components that touch no true voxel: the basis of FPV."""
        return voxels_apart(self.prediction, self.overlaps.prediction)

    @cached_property
    def detection(self) -> Detection:
        """Lesion detection of edition V: a pair matches when its IoU is at least `DETECTION_IOU`.

        A true lesion is found (TP) when some predicted component matches it, and missed (FN) otherwise; a predicted
        component is false (FP) when it matches no lesion. Nothing is assigned one to one: two components on one lesion
        are one TP and no FP, one component on two lesions is two TP.
        """
        match = self.overlaps.iou >= DETECTION_IOU
        found = np.unique(self.overlaps.truth[match]).size
        right = np.unique(self.overlaps.prediction[match]).size
        return Detection(tp=found, fp=self.prediction.count - right, fn=self.truth.count - found)

    @cached_property
    def distances(self) -> SurfaceDistances:
        """Distances between the surfaces of both masks."""
        return surface_distances(self.truth, self.prediction, spacing_zyx_mm=self._known_grid.spacing_zyx_mm)

    @property
    def diagonal_mm(self) -> float:
        """Distance between the centres of opposite corner voxels of the image: the largest that two voxels can have."""
        steps = np.array(self._known_grid.shape) - 1
        return float(np.linalg.norm(steps * self._known_grid.spacing_zyx_mm))

    @property
    def affine(self) -> np.ndarray:
        """(4, 4) matrix from voxel indices (x, y, z, 1) to LPS millimetres."""
        return self._known_grid.affine

    @property
    def _known_grid(self) -> Volume:
        if self.grid is None:
            raise ValueError("millimetres need the grid of the case")
        return self.grid


def voxels_apart(components: Components, touched: np.ndarray) -> int:
    """Voxels of those components whose labels are not among the `touched`."""
    apart = np.ones(components.count, dtype=bool)
    apart[touched - 1] = False
    return int(components.sizes[apart].sum())


@dataclass(frozen=True)
class LesionRow:
    """One lesion of the ground truth or of the prediction.

    `lesion` counts from 1, the largest first, and depends on its own mask only. `x_mm, y_mm, z_mm` is the centroid in
    LPS patient coordinates. `status` is 'matched', or 'missed' (truth) or 'false' (prediction), by the rule of
    `CasePair.detection`. `overlap_voxels` are shared with the whole other mask (0: the lesion counts for FNV or FPV),
    `iou` is the best with a single component of it. SUVs are NaN without an SUV image.
    """

    kind: str
    lesion: int
    volume_ml: float
    suv_max: float
    suv_mean: float
    x_mm: float
    y_mm: float
    z_mm: float
    status: str
    overlap_voxels: int
    iou: float


def lesion_rows(pair: CasePair) -> tuple[LesionRow, ...]:
    """Rows of all lesions, the truth's first, the largest first; at most `MOST_ROWS` of each mask.

    Raises
    ------
    ValueError
        The pair has no grid.
    """
    found = pair.overlaps
    return (
        *_rows(pair, TRUTH, pair.truth, found.truth, unmatched=MISSED),
        *_rows(pair, PREDICTION, pair.prediction, found.prediction, unmatched=FALSE),
    )


def _rows(pair: CasePair, kind: str, part: Components, touched: np.ndarray, *, unmatched: str) -> list[LesionRow]:
    z, y, x = part.centroids.T
    order = np.lexsort((x, y, z, -part.sizes))[:MOST_ROWS]
    shared = np.bincount(touched, weights=pair.overlaps.voxels, minlength=part.count + 1)[1:]
    best = np.zeros(part.count + 1)
    np.maximum.at(best, touched, pair.overlaps.iou)
    mean, highest = _uptake(pair, part)
    places_mm = (np.stack([x, y, z, np.ones_like(x)], axis=1)[order] @ pair.affine.T)[:, :3]
    return [
        LesionRow(
            kind=kind,
            lesion=number,
            volume_ml=int(part.sizes[i]) * pair.voxel_volume_ml,
            suv_max=float(highest[i]),
            suv_mean=float(mean[i]),
            x_mm=float(place[0]),
            y_mm=float(place[1]),
            z_mm=float(place[2]),
            status=MATCHED if best[i + 1] >= DETECTION_IOU else unmatched,
            overlap_voxels=int(shared[i]),
            iou=float(best[i + 1]),
        )
        for number, (i, place) in enumerate(zip(order, places_mm, strict=True), start=1)
    ]


def _uptake(pair: CasePair, part: Components) -> tuple[np.ndarray, np.ndarray]:
    """(count,) mean and maximum SUV of each component, NaN without an SUV image."""
    if pair.suv is None:
        return np.full(part.count, math.nan), np.full(part.count, math.nan)
    values = part.values_of(pair.suv).astype(float)
    highest = np.full(part.count + 1, -math.inf)
    np.maximum.at(highest, part.labels, values)
    sums = np.bincount(part.labels, weights=values, minlength=part.count + 1)[1:]
    return sums / part.sizes, highest[1:]


@dataclass(frozen=True)
class VolumeBin:
    """Detection of the lesions with `low_ml` <= volume < `high_ml`, over all cases of a cohort.

    `sensitivity` is found / lesions, `precision` is right / predicted; NaN without any.
    """

    low_ml: float
    high_ml: float
    lesions: int
    found: int
    sensitivity: float
    predicted: int
    right: int
    precision: float


def volume_binned(rows: Iterable[LesionRow], *, edges_ml: Sequence[float] = BIN_EDGES_ML) -> tuple[VolumeBin, ...]:
    """Sensitivity by the volume of true lesions and precision by the volume of predicted ones.

    Parameters
    ----------
    rows : iterable of LesionRow
        Lesions of all cases.
    edges_ml : ascending volumes
        Of the bins: by default 0 to 0.5, to 2, to 10, to 50 ml, and above. The lower edge belongs to its bin.
    """
    known = list(rows)
    bins = []
    for low_ml, high_ml in pairwise(edges_ml):
        inside = [row for row in known if low_ml <= row.volume_ml < high_ml]
        true = [row.status == MATCHED for row in inside if row.kind == TRUTH]
        guessed = [row.status == MATCHED for row in inside if row.kind == PREDICTION]
        bins.append(
            VolumeBin(
                low_ml=low_ml,
                high_ml=high_ml,
                lesions=len(true),
                found=sum(true),
                sensitivity=share(sum(true), len(true)),
                predicted=len(guessed),
                right=sum(guessed),
                precision=share(sum(guessed), len(guessed)),
            )
        )
    return tuple(bins)


def share(part: float, whole: float) -> float:
    """part / whole, NaN when there is nothing to share."""
    return part / whole if whole else math.nan
